"""What decoding keeps from the tokens before: keys, values and where they stood. Caches are arguments.

    Growing   all keys, in tensors that grow             any length
    Fixed     all keys, in tensors of a fixed size       static shapes
    Sliding   the first `globals` and last `left` keys   for Window(left, 0, globals): memory does not grow
    Cross     a source's keys and values, once per layer

Shape letters:  B rows  K kv heads  T new tokens  S cached tokens  E features of a head
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.core.view import Layout
from weft.errors import WeftError

KeyValue = tuple[Tensor, Tensor]
SPARE = 64  # tokens that a room has space for beyond those that it was made for


class Growing:
    """Keeps everything. `layout` is None before the first tokens."""

    roomy = True  # whether layers are kept in memory with space at its end

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.seen = 0  # tokens that have arrived
        self.layers: dict[int, KeyValue] = {}
        self.source: Any = None  # what the words look across to, once encoded (CrossFusion)
        self.rooms: dict[int, KeyValue] = {}  # the memory that `layers` look into, with space left at its end

    def arrive(self, new: Layout) -> Layout:
        """Tell the cache what comes; answers the layout of all keys the new tokens will meet."""
        self.layout = new if self.layout is None else join(self.layout, new)
        self.seen += len(new)
        return self.layout

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        """(B,K,T,E) new ones -> (B,K,S+T,E) all. Where no gradient is asked for, old ones are seldom copied."""
        if layer in self.layers:
            old = self.layers[layer]
            if torch.is_grad_enabled() or not self.roomy:
                key, value = torch.cat((old[0], key), 2), torch.cat((old[1], value), 2)
            else:
                key, value = self.append(layer, old, (key, value))
        self.layers[layer] = (key, value)
        return key, value

    def append(self, layer: int, old: KeyValue, new: KeyValue) -> KeyValue:
        """The old ones and the new, in a room that is twice as large whenever it has to grow."""
        seen, total = old[0].shape[2], old[0].shape[2] + new[0].shape[2]
        room = self.rooms.get(layer)
        if room is None or total > room[0].shape[2] or room[0].data_ptr() != old[0].data_ptr():
            size = max(2 * seen, total + SPARE)
            room = tuple(t.new_empty(*t.shape[:2], size, t.shape[3]) for t in old)
            for place, tensor in zip(room, old, strict=True):
                place[:, :, :seen] = tensor
            self.rooms[layer] = room = (room[0], room[1])
        for place, tensor in zip(room, new, strict=True):
            place[:, :, seen:total] = tensor
        return room[0][:, :, :total], room[1][:, :, :total]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order (beams; rows that are done)."""
        if self.layout is not None:
            self.layout = self.layout.map(lambda t: t if t.shape[0] == 1 else t[rows])
        self.source = None if self.source is None else self.source.select(rows)
        self.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.layers.items()}


class Fixed(Growing):
    """Room for `capacity` tokens, taken at once. Raises WeftError when it is full."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.start = 0  # where the tokens of this forward begin

    def arrive(self, new: Layout) -> Layout:
        if self.seen + len(new) > self.capacity:
            raise WeftError(
                f"The cache holds {self.capacity} tokens; {self.seen} are there and {len(new)} came. Make it larger."
            )
        self.start = self.seen
        known = new if self.layout is None else join(self.layout.map(lambda t: t[:, : self.seen]), new)
        self.seen += len(new)
        self.layout = known.map(lambda t: pad(t, self.capacity))
        # Free places have arrived "later" than any token: looking back never meets them.
        self.layout.index = torch.arange(self.capacity, device=new.index.device)[None]
        return self.layout

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        if layer not in self.layers:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self.layers[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        keys, values = self.layers[layer]
        keys[:, :, self.start : self.seen] = key
        values[:, :, self.start : self.seen] = value
        return keys, values


class Sliding(Growing):
    """Keeps the last `left` real tokens of each row, and the first `globals` of its last document. No branches."""

    roomy = False  # what it keeps is gathered anew each time

    def __init__(self, left: int, globals: int = 0) -> None:
        super().__init__()
        self.left, self.globals = left, globals
        self.keep: Tensor | None = None  # (1|B,left+globals) which of all keys stay after this forward

    def arrive(self, new: Layout) -> Layout:
        if new.branch is not None:
            raise WeftError("A sliding cache cannot follow branches: a branch may need trunk tokens long gone.")
        full = new if self.layout is None else join(self.layout, new)
        self.seen += len(new)
        self.keep = keep = None
        if len(full) > self.left + self.globals:
            first = full.order < self.globals
            real = full.index.expand_as(first)
            if full.document is not None:  # what follows belongs to the last document of each row
                first = first & (full.document == full.document.amax(1, keepdim=True))
                real = real.masked_fill(full.document == 0, -1)
            real = real.masked_fill(first, self.seen)
            self.keep = keep = real.topk(self.left + self.globals, -1).indices.sort(-1).values
        self.layout = full if keep is None else full.map(lambda t: take(t, keep))
        return full

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        key, value = super().extend(layer, key, value)
        if self.keep is not None:
            at = self.keep[:, None, :, None].expand(key.shape[0], key.shape[1], -1, key.shape[3])
            self.layers[layer] = (key.gather(2, at), value.gather(2, at))
        return key, value


class Cross:
    """The source's keys and values: made by the first call of each layer, kept for the next."""

    def __init__(self) -> None:
        self.layers: dict[int, KeyValue] = {}

    def select(self, rows: Tensor) -> None:
        self.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.layers.items()}


Cache = Growing | Fixed | Sliding


def join(a: Layout, b: Layout) -> Layout:
    """One layout after the other; where only one has a field, the other gets its plain value."""
    a, b = (with_places(one, other) for one, other in ((a, b), (b, a)))
    plains = (("document", 1), ("branch", 0), ("span", 0), ("place", 0), ("globals", 0), ("coded", 0))
    rest = {name: _both(a, b, name, plain) for name, plain in plains}
    return Layout(concat(a.index, b.index), concat(a.order, b.order), **rest)


def with_places(layout: Layout, other: Layout) -> Layout:
    """`layout` with its order on every axis, if only the other has places."""
    if layout.place is not None or other.place is None:
        return layout
    return replace(layout, place=layout.order[..., None].float().expand(-1, -1, other.place.shape[-1]))


def _both(a: Layout, b: Layout, name: str, plain: int) -> Tensor | None:
    left, right = getattr(a, name), getattr(b, name)
    if left is None and right is None:
        return None
    if left is None:
        left = torch.full_like(right[:, :1], plain).expand(-1, len(a), *right.shape[2:])
    if right is None:
        right = torch.full_like(left[:, :1], plain).expand(-1, len(b), *left.shape[2:])
    return concat(left, right)


def concat(a: Tensor, b: Tensor) -> Tensor:
    """(1|B,T,...), (1|B,T',...) -> (1|B,T+T',...)."""
    rows = max(len(a), len(b))
    return torch.cat((a.expand(rows, *a.shape[1:]), b.expand(rows, *b.shape[1:])), 1)


def pad(t: Tensor, length: int) -> Tensor:
    """(B,T,...) -> (B,length,...) with zeros."""
    return torch.cat((t, t.new_zeros(t.shape[0], length - t.shape[1], *t.shape[2:])), 1)


def take(t: Tensor, at: Tensor) -> Tensor:
    """(1|B,S,...) -> the places `at` (1|B,n) of each row."""
    rows = max(len(t), len(at))
    t, at = t.expand(rows, *t.shape[1:]), at.expand(rows, -1)
    return t.gather(1, at if t.dim() == 2 else at[..., None].expand(-1, -1, t.shape[2]))
