"""Media of an epoch, moved: pictures by pixels and bent, sounds by bands and blanked in runs, by hash (seed, epoch, item).

What is moved is a copy of the values when a batch is put together. Samples for next-token prediction are rendered once,
as they are, and kept, so that an epoch costs no rendering of them; every sample of an item shows it moved alike.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace

import numpy as np

from weft.data.pack import Document, Item, Piece
from weft.modalities.audio import blank_runs, shift_bands
from weft.modalities.image import move_patches
from weft.recipe import Recipe

MEMORY = 8 << 20  # bytes of moved items that are remembered: rows of one step often share theirs


class Augment:
    """Moves the items of documents as a recipe's `image.augment` and `warp`, `audio.augment` and `mask` say."""

    def __init__(self, recipe: Recipe) -> None:
        self.image, self.audio = recipe.image, recipe.audio
        shares = {"image": max(self.image.augment, self.image.warp), "audio": max(self.audio.augment, self.audio.mask)}
        self.kinds = frozenset(kind for kind, share in shares.items() if share > 0)
        self._recent: OrderedDict[tuple[int, str, str], np.ndarray] = OrderedDict()
        self._bytes = 0

    def document(self, document: Document, turn: int) -> Document:
        """The document with its items moved. turn: the seed of this epoch's moves. Pieces themselves stay as they are."""
        return [part._replace(piece=self._piece(part.piece, turn)) if part.piece.items else part for part in document]

    def _piece(self, piece: Piece, turn: int) -> Piece:
        items = tuple(
            item._replace(values=self._values(piece, item, turn)) if item.kind in self.kinds else item
            for item in piece.items
        )
        return replace(piece, items=items)

    def _values(self, piece: Piece, item: Item, turn: int) -> np.ndarray:
        """(N,F) of an item, moved."""
        key = (turn, item.kind, item.name)
        known = self._recent.get(key)
        if known is None:
            known = self._picture(piece, item, turn) if item.kind == "image" else self._sound(item, turn)
            self._recent[key] = known
            self._bytes += known.nbytes
            while self._bytes > MEMORY and len(self._recent) > 1:
                self._bytes -= self._recent.popitem(last=False)[1].nbytes
        return known

    def _picture(self, piece: Piece, item: Item, turn: int) -> np.ndarray:
        move = shift_of(turn, item.name, round(self.image.augment * self.image.size))
        change = change_of(turn, item.name, self.image.warp) if self.image.warp else None
        if piece.positions is None:  # a patch alone, whose row and column are its place
            return move_patches(item.values, len(item.values), self.image.patch, *move, change)
        first, last = piece.positions[[item.start, item.start + len(item.values) - 1], 2]
        return move_patches(item.values, round(float(last - first)) + 1, self.image.patch, *move, change)

    def _sound(self, item: Item, turn: int) -> np.ndarray:
        mels, mask = self.audio.mels, self.audio.mask
        up = shift_of(turn, item.name, round(self.audio.augment * mels))[0]
        moved = shift_bands(item.values, up, mels) if up else item.values
        if not mask:
            return moved
        frames = item.values.size // mels
        first, second, span = (run_of(turn, f"{item.name} {n}", size, share) for n, size, share in (
            (1, mels, mask), (2, mels, mask), (3, frames, mask / 2)
        ))  # fmt: skip
        return blank_runs(moved, mels, (first, second), span)


def run_of(seed: int, name: str, size: int, share: float) -> tuple[int, int]:
    """(start, stop) of a run of 0 to `share` of `size` places: a hash of (seed, name)."""
    digest = hashlib.blake2b(f"run {seed} {name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    long = int.from_bytes(digest[:8], "big") % (int(share * size) + 1)
    start = int.from_bytes(digest[8:], "big") % (size - long + 1)
    return start, start + long


def change_of(seed: int, name: str, most: float) -> np.ndarray:
    """(2,2) for `bend`: the identity, each number changed by -most to most, which turns, zooms, stretches and slants a
    picture at once: a hash of (seed, name)."""
    digest = hashlib.blake2b(f"bend {seed} {name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    drawn = np.frombuffer(digest, ">u4").astype(np.float64) / 2**31 - 1  # each from -1 to 1
    return np.eye(2) + most * drawn.reshape(2, 2)


def shift_of(seed: int, name: str, most: int) -> tuple[int, int]:
    """(rows, columns), each from -most to most: a hash of (seed, name), so that all samples of an item share it."""
    digest = hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    span = 2 * most + 1
    return int.from_bytes(digest[:8], "big") % span - most, int.from_bytes(digest[8:], "big") % span - most
