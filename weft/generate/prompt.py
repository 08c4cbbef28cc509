"""Samples -> tensors that decoding starts from.

Shape letters:  B rows  T tokens of the longest prompt  A position axes  n prompts

    [image]▒▒▒▒▒▒▒▒[question]is it red?[answer]     one row each, padded on the right; what is produced is
    [image]▒▒▒▒[question]colour?[answer]· · · ·     appended as columns, at positions that go on from each row's end
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from weft.arrows.sample import Sample
from weft.core.view import Tokens
from weft.data import pack
from weft.data.pack import Document, Part, Piece


@dataclass
class Prompts:
    """tokens (B,T) of the model's own stream; last (B,) index of each row's last token; place (B,) position of the next
    one; source: the encoder's side, for an encoder-decoder."""

    tokens: Tokens
    last: Tensor
    place: Tensor
    source: Tokens | None = None

    @property
    def plain(self) -> bool:
        """Whether the rows are ids without padding, which nothing has to tell apart."""
        tokens = self.tokens
        return tokens.document is None and tokens.positions is None and not tokens.media

    def placed(self, rows: Tensor, offset: Tensor) -> Tensor | None:
        """(n,1|3) positions of what these rows produce, so far (1|3,) from the first of it; None: counted on."""
        return None if self.plain else self.place[rows, None] + offset.to(rows.device)

    def to(self, device: torch.device | str) -> Prompts:
        source = None if self.source is None else self.source.to(device)
        return Prompts(self.tokens.to(device), self.last.to(device), self.place.to(device), source)


def lay(samples: Sequence[Sample], *, pad: int = 0, two: bool = False) -> Prompts:
    """Prompts (rendered without output content) -> one row each.

    two  the model is an encoder-decoder: inputs go to the source, and the stream starts with `pad`, as in training
         (Raffel et al. 2020)
    """
    if not two:
        return _rows([pack.flatten(sample.spans)[0] for sample in samples])
    heads = []
    for sample in samples:
        given = [span.ids for span in sample.part("output") if span.ids is not None]
        ids = np.concatenate([[pad], *given]).astype(np.int32)
        heads.append(Piece(ids, advance=float(len(ids))))
    prompts = _rows(heads)
    prompts.source = _rows([pack.flatten(sample.part("input"))[0] for sample in samples]).tokens
    return prompts


def _rows(pieces: Sequence[Piece]) -> Prompts:
    longest = max(len(piece) for piece in pieces)
    tokens = pack.collate([[[Part(piece)]] for piece in pieces], len(pieces), longest).tokens
    last = torch.tensor([len(piece) - 1 for piece in pieces])
    return Prompts(tokens, last, torch.tensor([piece.advance for piece in pieces]))


@dataclass
class Shared:
    """Many prompts in few rows: a picture that ten questions ask about stands there once.

    tokens (B,T); at (m,) where in the flattened tokens the m prompts of this batch end; which (m,) their numbers
    """

    tokens: Tokens
    at: Tensor
    which: np.ndarray


def shared(samples: Sequence[Sample], length: int, tokens: int) -> list[Shared]:
    """Prompts packed with common beginnings shared, in batches of about `tokens` tokens, rows of `length` or longer."""
    documents = pack.share(samples, length)
    lengths = np.array([sum(len(part.piece) for part in document) for document in documents])
    batches = []
    for low, high in ((0, length), (length, np.inf)):  # the few that are longer than a row get rows of their own
        mine = np.flatnonzero((lengths > low) & (lengths <= high))
        if len(mine):
            width = max(length, int(lengths[mine].max()))
            rows = [[int(mine[i]) for i in row] for row in pack.pack(lengths[mine], width, np.random.default_rng(0))]
            height = max(1, tokens // width)
            chunks = [rows[start : start + height] for start in range(0, len(rows), height)]
            batches += [_collated([[documents[i] for i in row] for row in chunk], width) for chunk in chunks]
    return batches


def _collated(rows: list[list[Document]], width: int) -> Shared:
    stream = pack.collate(rows, len(rows), width)
    numbers = stream.arrow.flatten().numpy()
    places = np.flatnonzero(numbers >= 0)
    at = np.full(numbers.max() + 1, -1)
    np.maximum.at(at, numbers[places], places)  # the last token of each prompt
    which = np.flatnonzero(at >= 0)
    return Shared(stream.tokens, torch.from_numpy(at[which]), which)


def identity(sample: Sample) -> bytes:
    """Bytes that tell what a prompt asks: equal for equal prompts, whatever row they come from."""
    digest = hashlib.blake2b(digest_size=16)
    for span in sample.spans:
        content = np.ascontiguousarray(span.ids if span.ids is not None else span.values)
        digest.update(f"{span.kind}{content.shape}".encode())
        digest.update(content.data)
    return digest.digest()


def begun(sample: Sample, end: int) -> Sample:
    """A sample with its output as the beginning to go on from: a closing `end` is taken off."""
    spans = []
    for span in sample.spans:
        if span.loss and span.ids is not None and len(span) and span.ids[-1] == end:
            span = replace(span, ids=span.ids[:-1], advance=float(len(span) - 1))
        if len(span):
            spans.append(span)
    return replace(sample, spans=tuple(spans))
