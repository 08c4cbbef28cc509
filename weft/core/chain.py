"""Who comes before whom: a stream of packed documents and branches, as a recurrent layer walks along it.

Shape letters:  B rows  T tokens  P cached tokens  N = B*T  n tokens of one step

    document  1 1 1 1 1 2 2 2        step 0   1a 2a          all chains at once: as many steps as the longest document,
    branch    0 0 0 1 2 0 0 0        step 1   1b 2b          whatever rows they were packed into
    token     a b c d e a b c        step 2   1c 2c
                                     step 3   1d 1e          both branches go on from the trunk's end, 1c
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft.core.view import Layout, together
from weft.errors import WeftError


@dataclass
class Chain:
    """One direction of walking.

    order   (N,) places in the flattened tokens, step by step
    sizes   tokens of each step
    before  per step (n,), for each of its tokens the number of the predecessor within the step before; None: the first
            n of them, in order
    start   (n,) of the first step: the cached token it follows, in the flattened (B*P); -1: none
    first   (m,) places of the tokens without a predecessor; last: the end of the document of each
    """

    order: Tensor
    sizes: list[int]
    before: list[Tensor | None]
    start: Tensor
    first: Tensor
    last: Tensor


def chain(layout: Layout, rows: int, past: Layout | None = None, *, backwards: bool = False) -> Chain:
    """The walk along `layout` of so many `rows`, whose tokens follow the `past` of a cache.

    A token follows the last one that it sees by looking back. Raises WeftError for branches where that is no tree of
    chains: backwards, or where a trunk goes on after its branches began.
    """
    length, device = len(layout), layout.index.device
    place = torch.arange(length, device=device)
    seen = together(layout, layout)
    if seen is None:
        parent = (place + 1 if backwards else place - 1).expand(rows, -1)
        parent = parent.masked_fill(parent == length, -1)
        depth = (place.flip(0) if backwards else place).expand(rows, -1)
        last = place.flip(0)[:1].expand(rows, length) if not backwards else place[:1].expand(rows, length)
    else:
        if backwards and layout.branch is not None and bool((layout.branch > 0).any()):
            raise WeftError("A recurrent stack that reads both ways cannot follow branches of a shared beginning.")
        seen = seen.expand(rows, -1, -1)
        other = place[None, None, :]
        near = seen & (other > place[:, None] if backwards else other < place[:, None])
        parent = other.expand_as(near).masked_fill(~near, length if backwards else -1)
        parent = parent.amin(-1) if backwards else parent.amax(-1)  # (B,T,T) -> (B,T)
        parent = parent.masked_fill(parent == length, -1)
        depth = near.sum(-1)
        last = other.expand_as(seen).masked_fill(~seen, 0 if not backwards else length)
        last = last.amin(-1) if backwards else last.amax(-1)
    return _walk(parent, depth, last, _start(layout, rows, past))


def _start(layout: Layout, rows: int, past: Layout | None) -> Tensor | None:
    """(B,T) the cached token that each would follow, in the flattened (B*P); -1: none. None without a cache."""
    if past is None:
        return None
    known = past.index < layout.index[:, :1]  # (1|B,P): free places of a fixed cache have not arrived
    seen = together(layout, past)
    allowed = known[:, None, :] if seen is None else seen & known[:, None, :]
    slot = torch.arange(len(past), device=known.device)[None, None]
    found = slot.masked_fill(~allowed, -1).amax(-1).expand(rows, len(layout))  # (B,T,P) -> (B,T)
    offset = torch.arange(rows, device=known.device)[:, None] * len(past)
    return torch.where(found < 0, -1, found + offset)


def _walk(parent: Tensor, depth: Tensor, last: Tensor, start: Tensor | None) -> Chain:
    rows, length = parent.shape
    offset = torch.arange(rows, device=parent.device)[:, None] * length
    flat = torch.where(parent < 0, -1, parent + offset).flatten()  # (N,)
    depth = depth.flatten()
    has = flat >= 0
    above = torch.where(has, depth[flat.clamp(min=0)] + 1, 0)
    if not torch.equal(above, depth):
        raise WeftError("A recurrent stack cannot follow a trunk that goes on after its branches began.")
    order = depth.argsort(stable=True)
    sizes = torch.bincount(depth).tolist() if len(depth) else [0]
    begins = torch.tensor([0, *sizes[:-1]], device=depth.device).cumsum(0)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    within = rank - begins[depth]
    before = torch.where(has, within[flat.clamp(min=0)], -1)[order]
    differs = torch.zeros(len(sizes), dtype=torch.long, device=order.device)
    differs.index_add_(0, depth[order], (before != within[order]).long())
    steps = [part if other else None for part, other in zip(before.split(sizes), differs.tolist(), strict=True)]
    first = order[: sizes[0]]
    begun = torch.full_like(first, -1) if start is None else start.flatten()[first]
    return Chain(order, sizes, [None, *steps[1:]], begun, first, (last + offset).flatten()[first])
