"""A stand-in for the renderer: whole words as tokens, media as made-up features of the right size."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from weft.arrows.grammar import Arrow, parse
from weft.arrows.sample import Sample, Span
from weft.arrows.types import Image, Label, Text, kind_of
from weft.arrows.vocabulary import Vocabulary
from weft.errors import DataError

WORDS = 400


@dataclass
class Resolved:
    objective: str
    head: str = "language"


class WordRenderer:
    """[marker] content for each column; text and labels are one id per word, images 4 tokens of 6 features."""

    def __init__(self, arrows: list[Arrow], labels: dict[str, tuple[str, ...]] | None = None, image: int = 4) -> None:
        self.arrows, self.labels, self.image = arrows, labels or {}, image
        columns = list(dict.fromkeys(name for arrow in arrows for name in arrow.columns))
        self.vocabulary = Vocabulary(columns, WORDS, {name: len(v) for name, v in self.labels.items()})
        self.columns = {
            name: Label(self.labels[name]) if name in self.labels else Image() if name == "image" else Text()
            for name in columns
        }
        self.codecs: dict = {}
        self.media: dict[object, np.ndarray] = {}
        self.rendered = 0

    def talks(self, arrow_index: int) -> bool:
        return False

    def length(self, record: dict, arrow_index: int, *, row: int = -1) -> int:
        return len(self.render(record, arrow_index, row=row))

    @property
    def text(self):
        return SimpleNamespace(encode=self.words)

    @property
    def reader(self):
        return SimpleNamespace(count=lambda kind, source, key: len(self.content("", Path(source))))

    def words(self, text: str) -> np.ndarray:
        start = self.vocabulary.block("text").start
        return np.array([start + zlib.crc32(word.encode()) % WORDS for word in text.split()], np.int64)

    def marker(self, column: str, role: str = "input") -> Span:
        ids = np.array([self.vocabulary.marker(column)])
        return Span("ids", ids, advance=1.0, role=role, key=("marker", column) if role == "input" else None)

    def content(self, column: str, value: object) -> Span:
        if kind_of(value) == "image":
            if isinstance(value, Path) and value.stem.startswith("broken"):
                raise DataError(f"{value}: not a readable image")
            if value not in self.media:
                rng = np.random.default_rng(zlib.crc32(str(value).encode()))
                self.media[value] = rng.standard_normal((self.image, 6)).astype(np.float16)
            side = round(self.image**0.5)
            places = np.stack([np.zeros(self.image), *np.divmod(np.arange(self.image), side)], 1).astype(np.float32)
            values = self.media[value]
            return Span("image", None, values, places, float(side), column=column, key=("image", str(value)))
        if kind_of(value) == "audio":
            frames = round(float(Path(str(value)).stem.split("-")[-1])) if "-" in str(value) else 20
            values = np.zeros((frames, 8), np.float16)
            places = np.repeat(np.arange(frames, dtype=np.float32)[:, None], 3, 1)
            return Span("audio", None, values, places, float(frames), column=column, key=("audio", str(value)))
        ids = self.words(str(value))
        return Span("ids", ids, advance=float(len(ids)), column=column, key=(column, str(value)))

    def render(
        self, record: dict, arrow_index: int, *, row: int = -1, output: bool = True, rng: int | None = None
    ) -> Sample:
        self.rendered += 1
        arrow = self.arrows[arrow_index]
        spans: list[Span] = []
        for column in arrow.inputs:
            spans += [self.marker(column.name), self.content(column.name, record[column.name])]
        for column in arrow.outputs:
            spans.append(self.marker(column.name, "output"))
            if arrow.kind == "align":
                spans.append(replace(self.content(column.name, record[column.name]), role="output", key=None))
                continue
            if column.name in self.labels:
                at = self.labels[column.name].index(str(record[column.name]))
                ids = np.array([self.vocabulary.block(f"label:{column.name}")[at]])
            else:
                ids = np.concatenate([self.words(str(record[column.name])), [self.vocabulary.end]])
            spans.append(Span("ids", ids, advance=float(len(ids)), role="output", loss=True, column=column.name))
        return Sample(row, arrow_index, tuple(spans))


@pytest.fixture
def renderer():
    """(arrows as text, label values by column) -> (parsed arrows, renderer)."""

    def make(*texts: str, **labels: tuple[str, ...]) -> tuple[list[Arrow], WordRenderer]:
        arrows = [parse(text) for text in texts]
        return arrows, WordRenderer(arrows, labels)

    return make


@pytest.fixture
def resolved():
    """Objective and head, as `resolve` gives them."""
    return Resolved
