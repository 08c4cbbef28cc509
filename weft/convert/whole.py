"""The vocabulary of a run that was trained from nothing, as one tokenizer that other programs read.

    ids     0      1      2       3 ...          35 ...     40 ...       331 ...
    tokens  <|pad|> <|end|> <|mask|> <|hidden 0|>  <|text|>   byte pairs   <|answer: yes|>   <|image code 0|>

The run's own tokenizer.json knows its texts alone, from id 0 on; the model's ids begin with weft's own. What is no text
is a control token here, so that no text becomes one. A run of one arrow `-> text` begins each text with its marker, as
it was trained; for others what stands before an answer is the arrow's own: column by column its marker and its value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, processors

from weft.arrows.types import Label
from weft.arrows.vocabulary import ROLES
from weft.convert.tokenizer import SavedTokenizer
from weft.modalities.text import TextCodec

if TYPE_CHECKING:
    from weft.arrows.render import Renderer

SPECIAL = ("pad", "end", "mask")


def from_nothing(renderer: Renderer) -> bool:
    """Whether weft's own ids stand before those of the text."""
    return renderer.text is not None and renderer.vocabulary.block("text").start > 0


def whole(renderer: Renderer) -> SavedTokenizer:
    """The tokenizer of all ids of a run that was trained from nothing."""
    vocabulary, start = renderer.vocabulary, renderer.vocabulary.block("text").start
    tree = json.loads(renderer.text.tokenizer.to_str())  # type: ignore[union-attr]
    pieces = {piece: number + start for piece, number in tree["model"]["vocab"].items()}
    control: dict[str, int] = {}
    for number, name in named(renderer):
        token = f"<|{name}|>"
        while token in pieces or token in control:  # as a merge of the user's texts, or of another column
            token = f"{token[:-2]}'|>"
        control[token] = number
    tree["model"]["vocab"] = pieces | control
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    texts = {number: token for token, number in control.items()}
    roles = {"eos": vocabulary.end, "pad": vocabulary.pad, "mask": vocabulary.mask}
    begins = len(renderer.arrows) == 1 and renderer.arrows[0].kind == "model"
    if begins:
        roles["bos"] = vocabulary.marker(renderer.arrows[0].output)
        first = texts[roles["bos"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, roles["bos"])]
        )
    return SavedTokenizer(TextCodec(tokenizer), roles, (vocabulary.end,), begins=begins)


def named(renderer: Renderer) -> Iterator[tuple[int, str]]:
    """Every id that is no text, with what it stands for."""
    vocabulary = renderer.vocabulary
    for name, ids in vocabulary.blocks.items():
        kind, _, column = name.partition(":")
        for index, number in enumerate(ids):
            if name == "special":
                yield number, SPECIAL[index] if index < len(SPECIAL) else f"hidden {index - len(SPECIAL)}"
            elif name == "marker":
                yield number, vocabulary.columns[index]
            elif name == "role":
                yield number, f"role {ROLES[index]}"
            elif kind == "label" and isinstance(label := renderer.columns.get(column), Label):
                yield number, f"{column}: {label.values[index]}"
            elif name != "text":
                yield number, f"{column} code {index}"
