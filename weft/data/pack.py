"""From samples to packed rows: documents as trees, rows filled to the brim, tensors in one sweep.

Shape letters:  L tokens of a piece  B rows  T tokens of a row  N media tokens  F features of one

    samples of one image            one document                         a row of T tokens
    [image][q1][a1]                 trunk  [image]                       |document 1      |document 2|doc 3 |pad|
    [image][q2][a2]       share     branch   [q1][a1]        pack        |trunk|q1 a1|q2 a2|...
    [image][q3][a3]       ----->    branch   [q2][a2]        ----->
                                    branch   [q3][a3]                    every branch starts at the trunk's end

A *piece* is a run of spans made flat: ids, what is predicted at each of them, positions, media. Pieces are made once
and kept; a step is then a few concatenations and one scatter.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from weft.arrows.sample import Sample, Span
from weft.core.view import Media, Tokens
from weft.errors import WeftError

UNTRAINED = -100


class Item(NamedTuple):
    """A continuous item inside a piece: its kind, (N,F) values, the token it starts at, and its name (see Span)."""

    kind: str
    values: np.ndarray
    start: int
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of tokens that stays together.

    ids        (L,) int32; 0 at media places
    targets    (L,) int32, what is predicted at each token; None: nothing anywhere
    positions  (L,3) float32 from the piece's start; None: 0..L-1 on every axis
    items      its media
    advance    how far the position has moved past its end
    """

    ids: np.ndarray
    targets: np.ndarray | None = None
    positions: np.ndarray | None = None
    items: tuple[Item, ...] = ()
    advance: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes it holds itself; media values belong to the renderer's cache."""
        return sum(a.nbytes for a in (self.ids, self.targets, self.positions) if a is not None) + 400


class Part(NamedTuple):
    """A piece in its place: where its positions start, its branch (0: trunk), and whose loss it bears.

    row is the table's, of the sample that the loss belongs to; -1: nobody's, as of a trunk.
    """

    piece: Piece
    start: float = 0.0
    branch: int = 0
    arrow: int = -1
    weight: float = 1.0
    row: int = -1


Document = list[Part]


def tree(trunk: Piece | None, branches: Sequence[Piece], arrows: Sequence[int], weights: Sequence[float]) -> Document:
    """A document of one trunk and its branches; without a trunk, branches alone. arrows: number of each one's arrow."""
    start = 0.0 if trunk is None else trunk.advance
    parts = [] if trunk is None else [Part(trunk)]
    first = 0 if trunk is None and len(branches) == 1 else 1
    for number, (piece, arrow) in enumerate(zip(branches, arrows, strict=True), first):
        parts.append(Part(piece, start, number, arrow, weights[arrow]))
    return parts


def flatten(spans: Sequence[Span]) -> tuple[Piece, np.ndarray]:
    """Spans in a row -> (piece with next-token targets, (L,) bool which of its tokens bear loss)."""
    lengths = [len(span) for span in spans]
    total = sum(lengths)
    ids, loss = np.zeros(total, np.int32), np.zeros(total, bool)
    positions: np.ndarray | None = None
    if any(span.positions is not None or (span.advance and span.advance != len(span)) for span in spans):
        positions = np.empty((total, 3), np.float32)
    items, at, place = [], 0, 0.0
    for span, length in zip(spans, lengths, strict=True):
        here = slice(at, at + length)
        if span.ids is not None:
            ids[here] = span.ids
        elif span.values is not None:
            items.append(Item(span.kind, span.values, at, span.name))
        loss[here] = span.loss
        if positions is not None:
            offsets = np.arange(length, dtype=np.float32)[:, None] if span.positions is None else span.positions
            if len(offsets) != length:  # one would be spread over all without a word
                raise WeftError(f"A span of {length} tokens came with positions for {len(offsets)}.")
            positions[here] = offsets + place
        at, place = at + length, place + (span.advance or length)
    return Piece(ids, shifted(ids, loss), positions, tuple(items), float(place)), loss


def shifted(ids: np.ndarray, loss: np.ndarray) -> np.ndarray | None:
    """(L,) at each token the next one, where the next one bears loss; None where none does."""
    if not loss.any():
        return None
    targets = np.full(len(ids), UNTRAINED, np.int32)
    targets[:-1][loss[1:]] = ids[1:][loss[1:]]
    return targets


def window(piece: Piece, start: int, stop: int) -> Piece:
    """Tokens start..stop of a piece without media, positions counted from its own start. Targets go on over the cut."""
    targets = None if piece.targets is None else piece.targets[start:stop]
    positions = None if piece.positions is None else piece.positions[start:stop] - piece.positions[start]
    return Piece(piece.ids[start:stop], targets, positions, (), float(stop - start))


def leading(sample: Sample) -> tuple[Hashable, ...]:
    """Keys of the spans at the sample's beginning that other samples could share.

    The span before a trained one is never shared: its last token predicts, and a shared token predicts one thing only.
    """
    keys: list[Hashable] = []
    for span, following in pairwise(sample.spans):
        if span.key is None or span.loss or following.loss:
            break
        keys.append(span.key)
    return tuple(keys)


def common(keys: Sequence[tuple[Hashable, ...]]) -> int:
    """How many leading keys are equal in all."""
    return next((i for i, column in enumerate(zip(*keys, strict=False)) if len(set(column)) > 1), min(map(len, keys)))


def share(samples: Sequence[Sample], room: int) -> list[Document]:
    """Samples -> documents: those that begin with the same column (marker and content) become branches of one trunk.

    The branches' arrow numbers are the numbers of the samples. A document is of about `room` tokens: longer only where
    one sample is.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, sample in enumerate(samples):
        keys = leading(sample)
        groups.setdefault(keys[:2] if len(keys) > 1 else ("alone", number), []).append(number)
    documents, even = [], [1.0] * len(samples)
    for members in groups.values():
        spans = common([leading(samples[i]) for i in members]) if len(members) > 1 else 0
        trunk = flatten(samples[members[0]].spans[:spans])[0] if spans else None
        pieces = [flatten(samples[i].spans[spans:])[0] for i in members]
        left = max(room - (len(trunk) if trunk else 0), max(map(len, pieces)))
        for part in fill([len(piece) for piece in pieces], left):
            documents.append(tree(trunk, [pieces[i] for i in part], [members[i] for i in part], even))
    return documents


def fill(lengths: Sequence[int], room: int, names: Sequence[Hashable] = ()) -> list[list[int]]:
    """Branches over few documents of `room` tokens each, all but the last filled to the brim: lists of branch numbers.

    names  of the branches, if some are copies of another: no document holds two of one name. Copies are laid first,
           each into a document of its own, or full ones would leave them none

    (Filled evenly instead, the demo's rows of 256 were padded by 10 %, against 2.5 %: half-filled documents leave gaps
    that nothing fits.)
    """
    if len(lengths) and max(lengths) > room:
        raise WeftError(
            f"A branch of {max(lengths)} tokens does not fit into {room}; longer samples are listed before."
        )
    copies = Counter(names)
    order = sorted(range(len(lengths)), key=lambda i: (not names or copies[names[i]] == 1, -lengths[i], i))
    parts: list[list[int]] = []
    free: list[int] = []
    within: list[set[Hashable]] = []
    for index in order:
        need, name = lengths[index], names[index] if names else index
        fits = (part for part, left in enumerate(free) if left >= need and name not in within[part])
        best = min(fits, key=free.__getitem__, default=-1)
        if best < 0:
            parts.append([])
            free.append(room)
            within.append(set())
        parts[best].append(index)
        within[best].add(name)
        free[best] -= need
    return parts


def pack(lengths: np.ndarray, room: int, rng: np.random.Generator, span: int = 1024) -> list[list[int]]:
    """Documents into rows of `room` tokens: lists of document numbers, in random order.

    lengths  (documents, streams): a row holds at most `room` tokens of each stream
    span     so many documents, taken at random, are packed together by best fit, longest first; rows that are left with
             much room give their documents to the next such window

    The same `rng` state gives the same rows.
    """
    if lengths.ndim == 1:
        lengths = lengths[:, None]
    if len(lengths) and lengths.max() > room:
        raise WeftError(f"A document of {lengths.max()} tokens does not fit into a row of {room}.")
    order = rng.permutation(len(lengths))
    done: list[list[int]] = []
    left: list[int] = []
    for start in range(0, len(order), span):
        rows, free = _fit(lengths, [*left, *order[start : start + span].tolist()], room)
        last = start + span >= len(order)
        keep = [last or room_left <= room // 16 for room_left in free]
        done += [row for row, kept in zip(rows, keep, strict=True) if kept]
        left = [number for row, kept in zip(rows, keep, strict=True) if not kept for number in row]
    return [done[i] for i in rng.permutation(len(done))]


def _fit(lengths: np.ndarray, numbers: list[int], room: int) -> tuple[list[list[int]], list[int]]:
    """Best fit, longest first: each document goes to the fullest row with room for it. Rows, and what each has free."""
    largest = lengths.max(1)
    rows: list[list[int]] = []
    free: list[list[int]] = []  # per row, per stream
    by_room: list[tuple[int, int]] = []  # (free tokens of the fuller stream, row), sorted
    for number in sorted(numbers, key=lambda n: (-largest[n], n)):
        need = lengths[number].tolist()
        at = bisect_left(by_room, (min(need), -1))
        while at < len(by_room) and any(n > f for n, f in zip(need, free[by_room[at][1]], strict=True)):
            at += 1
        if at < len(by_room):
            row = by_room.pop(at)[1]
        else:
            row = len(rows)
            rows.append([])
            free.append([room] * len(need))
        rows[row].append(number)
        free[row] = [f - n for n, f in zip(need, free[row], strict=True)]
        insort(by_room, (min(free[row]), row))
    return rows, [min(one) for one in free]


@dataclass
class Stream:
    """Packed tensors of one stream (see Batch). real: tokens that are not padding."""

    tokens: Tokens
    targets: torch.Tensor
    weights: torch.Tensor
    arrow: torch.Tensor
    row: torch.Tensor
    real: int = 0
    trained: float = field(default=0.0)  # sum of the weights


def collate(rows: Sequence[Sequence[Document]], height: int, length: int) -> Stream:
    """Rows of documents -> tensors (height, length); rows that are missing stay padding."""
    parts, document, offset = [], [], []
    for number, row in enumerate(rows):
        at = number * length
        for index, one in enumerate(row, 1):
            for part in one:
                parts.append(part)
                document.append(index)
                offset.append(at)
                at += len(part.piece)
        if at > (number + 1) * length:
            raise WeftError(f"A row of {at - number * length} tokens was packed for a length of {length}.")
    lengths = np.array([len(part.piece) for part in parts], np.int64)
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # place within the piece
    where = np.repeat(np.array(offset, np.int64), lengths) + inside  # place within the flattened (height * length)

    def spread(values: list, dtype: type) -> np.ndarray:  # one value per piece -> one per token
        return np.repeat(np.array(values, dtype), lengths)

    def put(values: np.ndarray, fill: float, dtype: type, *axes: int) -> torch.Tensor:
        whole = np.full((height * length, *axes), fill, dtype)
        whole[where] = values
        return torch.from_numpy(whole.reshape(height, length, *axes))

    targets = _joined([part.piece.targets for part in parts], lengths)
    trained = targets != UNTRAINED
    weights = spread([part.weight for part in parts], np.float32) * trained
    start = spread([part.start for part in parts], np.float32)
    media, spans = _media(parts, offset, height * length)
    return Stream(
        Tokens(
            ids=put(np.concatenate([p.piece.ids for p in parts]) if parts else where, 0, np.int64),
            document=put(spread(document, np.int32), 0, np.int32),
            branch=put(spread([part.branch for part in parts], np.int32), 0, np.int32),
            span=torch.from_numpy(spans.reshape(height, length)),
            positions=put(_positions(parts, lengths, inside, start), 0, np.float32, 3),
            media=media,
        ),
        put(targets, UNTRAINED, np.int64),
        put(weights, 0, np.float32),
        put(spread([part.arrow for part in parts], np.int64), -1, np.int64),
        put(spread([part.row for part in parts], np.int64), -1, np.int64),
        int(lengths.sum()),
        float(weights.sum(dtype=np.float64)),
    )


def _joined(targets: list[np.ndarray | None], lengths: np.ndarray) -> np.ndarray:
    joined = np.full(lengths.sum(), UNTRAINED, np.int64)
    at = 0
    for one, length in zip(targets, lengths.tolist(), strict=True):
        if one is not None:
            joined[at : at + length] = one
        at += length
    return joined


def _positions(parts: list[Part], lengths: np.ndarray, inside: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(tokens,3): each piece's own positions, counted on from where it starts."""
    positions = np.repeat(inside.astype(np.float32)[:, None], 3, axis=1)
    at = 0
    for part, length in zip(parts, lengths.tolist(), strict=True):
        if part.piece.positions is not None:
            positions[at : at + length] = part.piece.positions
        at += length
    return positions + start[:, None]


def _media(parts: list[Part], offset: list[int], size: int) -> tuple[tuple[Media, ...], np.ndarray]:
    """All items of each kind as one, and (size,) int32 the number of the item that each token belongs to."""
    spans = np.zeros(size, np.int32)
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    number = 0
    for part, at in zip(parts, offset, strict=True):
        for item in part.piece.items:
            number += 1
            place = np.arange(at + item.start, at + item.start + len(item.values))
            spans[place] = number
            values, places = found.setdefault(item.kind, ([], []))
            values.append(item.values)
            places.append(place)
    media = tuple(
        Media(kind, torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(places)))
        for kind, (values, places) in sorted(found.items())
    )
    return media, spans
