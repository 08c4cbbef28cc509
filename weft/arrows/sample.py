"""A sample is a list of typed spans: one record, rendered for one arrow.

Nothing below this line of the program knows what a column is. Lengths are derived here once; truncation and packing
work on spans, so an image or a sound is never cut in half.

    image, question -> answer          [image][▒▒▒▒ 64 ▒▒▒▒][question][what colour is it?][answer][blue]
                                        marker    media       marker          text          marker  label
                                        ────────────── input ─────────────────────────────────────  output, trained
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """One piece of a sample: token ids, or a continuous item.

    kind       "ids" (text, markers, labels, codes: all are ids of the vocabulary), "image" or "audio" (continuous)
    ids        (L,) int64 for kind "ids", else None
    values     (L,F) float16/float32 features for continuous kinds, else None
    positions  (L,3) float32 offsets (sequence, row, column) from where the span starts; None: 0..L-1 on every axis
    advance    how far the position moves past this span (text: L; image: max(rows, columns); sound: seconds * rate)
    role       "input", or "output" (what the arrow produces; for `a <-> b` the right side)
    loss       whether its ids are trained
    column     the column it renders; None for structure
    name       of a continuous item: the path or the hash that equal content shares; else ""
    key        equal keys mean equal spans: packing shares a common beginning between samples. None: never shared.
    """

    kind: str
    ids: np.ndarray | None = None
    values: np.ndarray | None = None
    positions: np.ndarray | None = None
    advance: float = 0.0
    role: str = "input"
    loss: bool = False
    column: str | None = None
    name: str = ""
    key: Hashable | None = None

    def __len__(self) -> int:
        return len(self.ids) if self.ids is not None else len(self.values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One record under one arrow. `row` numbers the table's row, `arrow` the arrow within the run."""

    row: int
    arrow: int
    spans: tuple[Span, ...] = field(default=())

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def trained(self) -> int:
        """How many tokens bear loss."""
        return sum(len(span) for span in self.spans if span.loss)

    def part(self, role: str) -> tuple[Span, ...]:
        """The spans of one role, in order."""
        return tuple(span for span in self.spans if span.role == role)
