"""A rendered sample as a person can read it, its trained tokens visibly marked.

|image| [image 64 tokens] |question| what colour is it? |answer| «blue»

|name|   the marker of a column        «...»   trained (and green where colours are)
[...]    media, or codes, by number    ⏎ ␀     characters that would disturb the terminal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrows.render import Renderer
from weft.arrows.sample import Sample, Span
from weft.arrows.vocabulary import ROLES

if TYPE_CHECKING:
    from rich.text import Text

LONGEST = 200  # characters shown of one text
TRAINED = "bold green"
STYLES = {"marker": "cyan", "media": "magenta", "text": ""}


def show(sample: Sample, renderer: Renderer, *, colour: bool = True) -> Text | str:
    """One line: a rich Text, or with `colour=False` a str."""
    pieces = [piece for span in sample.spans for piece in _pieces(span, renderer)]
    if not colour:
        return " ".join(f"«{words}»" if trained else words for words, _, trained in pieces)
    from rich.text import Text

    line = Text()
    for index, (words, style, trained) in enumerate(pieces):
        line.append(" " if index else "")
        line.append(f"«{words}»" if trained else words, TRAINED if trained else STYLES[style])
    return line


def _pieces(span: Span, renderer: Renderer) -> list[tuple[str, str, bool]]:
    """(words, style, trained) of one span: runs of ids of one block, media as one."""
    if span.ids is None:
        return [(f"[{span.kind} {len(span)} tokens]", "media", span.loss)]
    places = [renderer.vocabulary.place(int(token)) for token in span.ids]
    pieces: list[tuple[str, str, bool]] = []
    start = 0
    for stop in range(1, len(places) + 1):
        if stop == len(places) or places[stop][0] != places[start][0]:
            block, numbers = places[start][0], [number for _, number in places[start:stop]]
            pieces += [(words, style, span.loss) for words, style in _words(block, numbers, renderer)]
            start = stop
    return pieces


def _words(block: str, numbers: list[int], renderer: Renderer) -> list[tuple[str, str]]:
    """What a run of ids of one block says."""
    if block == "text":
        return [(plain(renderer.text.decode(np.array(numbers))), "text")]  # type: ignore[union-attr]
    if block == "marker":
        return [(f"|{plain(renderer.vocabulary.columns[number])}|", "marker") for number in numbers]
    if block == "special":
        names = {0: "pad", 1: "end", 2: "mask"}
        return [(f"|{names.get(number, f'hidden {number - 3}')}|", "marker") for number in numbers]
    if block == "role":
        return [(f"|{ROLES[number]}|", "marker") for number in numbers]
    if block.startswith("label:"):
        kind: Any = renderer.columns[block.removeprefix("label:")]
        return [(plain(kind.values[number]), "text") for number in numbers]
    return [(f"[{block.removeprefix('codes:')} {len(numbers)} codes]", "media")]


def plain(text: str) -> str:
    """`text` without what would disturb a terminal, and not too long."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
    return "".join("⏎" if c == "\n" else c if c.isprintable() else "␀" for c in text)
