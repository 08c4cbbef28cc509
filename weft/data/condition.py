"""Inputs left out, so that what is produced can be guided towards what was asked (Ho and Salimans 2022).

    as it is        [caption] a red circle [image] ▒▒▒▒▒▒▒▒
    left out        [caption] [caption] [caption] [caption] [image] ▒▒▒▒▒▒▒▒      of a share of the samples, each epoch

Every token of the inputs becomes their first marker, so that a sample keeps its length, its places and its place in the
plan. What learned both says, at each step of decoding, what the question changes; guidance makes more of that
(generate/decode.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.arrows.grammar import Arrow
from weft.arrows.sample import Sample
from weft.data.pack import UNTRAINED, Document, Piece
from weft.errors import RecipeError


def guidable(arrow: Arrow, columns: Mapping[str, Any]) -> bool:
    """Whether an arrow's inputs can be left out: it draws or speaks from words alone."""
    words = all(columns[column.name].name in ("text", "label") for column in arrow.inputs)
    return arrow.kind == "produce" and words and columns[arrow.output].name in ("image", "audio")


def asked_nothing(sample: Sample) -> Sample:
    """The sample with its inputs left out."""
    first = next(span.ids[0] for span in sample.spans if span.ids is not None)
    spans = [
        replace(span, ids=np.full_like(span.ids, first), key=None)
        if span.role == "input" and span.ids is not None else span
        for span in sample.spans
    ]  # fmt: skip
    return Sample(sample.row, sample.arrow, tuple(spans))


class Dropout:
    """Leaves the inputs out of a share of the documents, by a hash of (seed, epoch, its first sample).

    Raises RecipeError for a share of nothing: where no arrow can be guided.
    """

    def __init__(self, share: float, arrows: Sequence[Arrow], columns: Mapping[str, Any], seed: int) -> None:
        self.share, self.seed = share, seed
        self.arrows = {number for number, arrow in enumerate(arrows) if share > 0 and guidable(arrow, columns)}
        if share > 0 and not self.arrows:
            raise RecipeError(
                f"train.options.condition_dropout={share:g} needs an arrow that draws or speaks from words alone, like "
                "'caption -> image'; there is none. Leave it out."
            )

    def drops(self, document: Document, epoch: int) -> bool:
        """Whether nothing is to be asked in this document."""
        own = [part for part in document if part.arrow >= 0]
        if not own or any(part.arrow not in self.arrows for part in own):
            return False
        return np.random.default_rng([self.seed, 6, epoch, own[0].row, own[0].arrow]).random() < self.share


def emptied(document: Document) -> Document:
    """A document, or its encoder's side, with nothing asked. Pieces themselves stay as they are."""
    return [part._replace(piece=_emptied(part.piece, document[0].piece.ids[0])) for part in document]


def _emptied(piece: Piece, marker: int) -> Piece:
    """The tokens before the marker of what is produced, which is the first to be trained, become `marker`."""
    stop = len(piece) if piece.targets is None else int(np.argmax(piece.targets != UNTRAINED))
    return replace(piece, ids=np.concatenate([np.full(stop, marker, piece.ids.dtype), piece.ids[stop:]]))
