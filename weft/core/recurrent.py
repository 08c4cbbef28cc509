"""Recurrent layers: a state is carried from token to token.

Shape letters:  B rows  T tokens  N = B*T  n tokens of one step  D width  H width of a state

    h ───┬───────────── reset, update ──┬── h'       LSTM: a second state c runs along, and gates write to it
         └── W h ─(+)── gates ──────────┘
    x ────── W x ──┘
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache
from weft.core.chain import Chain, chain
from weft.core.layers import Linear
from weft.core.mask import View
from weft.core.record import Recorder
from weft.core.view import Layout
from weft.errors import RecipeError, nearest

GATES = {"lstm": 4, "gru": 3, "tanh": 1}


class Cell(nn.Module):
    """One direction of one layer. Rows of its matrices are those of torch.nn.LSTM (in, forget, new, out), GRU (reset,
    update, new) and RNN."""

    def __init__(self, kind: str, dim: int, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.take = Linear(dim, GATES[kind] * width)
        self.turn = Linear(width, GATES[kind] * width)

    def forward(self, x: Tensor, walk: Chain, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(B,T,D) -> h, c, each (B,T,H); c is h where the cell has no second state. past: the cache's (B,1,P,H)."""
        taken = self.take(x)  # (B,T,D) -> (B,T,GH)
        steps = taken.flatten(0, 1)[walk.order].split(walk.sizes)
        h = self.begin(walk.start, past, 0, taken)
        s = self.begin(walk.start, past, 1, taken) if self.kind == "lstm" else h
        states: list[Tensor] = []
        cells: list[Tensor] = []
        for step, before in zip(steps, walk.before, strict=True):
            which = slice(len(step)) if before is None else before
            h, s = self.step(step, h[which], s[which])
            states.append(h)
            cells.append(s)
        place = lambda parts: torch.empty_like(joined := torch.cat(parts)).index_copy(0, walk.order, joined)
        shape = (*x.shape[:2], self.width)
        h = place(states).view(shape)
        return h, place(cells).view(shape) if self.kind == "lstm" else h

    def begin(self, start: Tensor, past: tuple[Tensor, Tensor] | None, which: int, like: Tensor) -> Tensor:
        """(n,H) states before the first step: of the cached tokens, or zero."""
        dtype = torch.float32 if which else like.dtype  # the LSTM's sum over time is kept in full precision
        if past is None:
            return torch.zeros(len(start), self.width, dtype=dtype, device=like.device)
        held = past[which].squeeze(1).flatten(0, 1).to(dtype)  # (B,1,P,H) -> (B*P,H)
        return held[start.clamp(min=0)] * (start >= 0)[:, None]

    def step(self, taken: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(n,GH), (n,H), (n,H) -> the next (n,H), (n,H)."""
        turned = self.turn(h)  # (n,H) -> (n,GH)
        if self.kind == "lstm":
            i, f, g, o = (taken + turned).float().chunk(4, -1)
            s = f.sigmoid() * s + i.sigmoid() * g.tanh()
            return (o.sigmoid() * s.tanh()).to(taken.dtype), s
        if self.kind == "gru":
            (r, z, a), (u, w, b) = taken.chunk(3, -1), turned.chunk(3, -1)
            new = (a + (r + u).sigmoid() * b).tanh()
            h = torch.lerp(new, h, (z + w).sigmoid())
        else:
            h = (taken + turned).tanh()
        return h, h


class Recurrent(nn.Module):
    """`depth` layers, one or both ways. Takes and gives what a `Stack` does, in the same places."""

    compiles = False  # a step for each token of the longest document: a graph of hundreds of nodes, new for each batch

    def __init__(self, config: c.RecurrentConfig) -> None:
        super().__init__()
        if config.cell not in GATES:
            raise RecipeError(
                f"A recurrent cell is lstm, gru or tanh, not {config.cell!r}.{nearest(config.cell, GATES)}"
            )
        if config.both and config.dim % 2:
            raise RecipeError(f"A width of {config.dim} cannot be halved for the two ways of reading.")
        self.config = config
        ways, width = (2, config.dim // 2) if config.both else (1, config.dim)
        cells = lambda: nn.ModuleList(Cell(config.cell, config.dim, width) for _ in range(ways))
        self.layers = nn.ModuleList(cells() for _ in range(config.depth))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        for number, layer in enumerate(self.layers):
            if number:
                x = self.drop(x)
            past = None if view.cache is None else view.cache.layers.get(number)
            found = [cell(x, walk, past) for cell, walk in zip(layer.children(), view.chains, strict=True)]
            if view.cache is not None:
                h, s = found[0]
                view.cache.extend(number, h[:, None], s[:, None])  # (B,T,H) -> (B,1,T,H), as a head's key and value
            if view.record is not None:
                view.record.add(number, "state", found[0][0])
            x = torch.cat([h for h, _ in found], -1)
        return gathered(x, view.chains[0]) if self.config.both else x


def gathered(x: Tensor, walk: Chain) -> Tensor:
    """(B,T,D) with the forward half of each document's last token put at its first, beside the backward half."""
    half = x.shape[-1] // 2
    flat = x.flatten(0, 1)
    ends = torch.cat((flat[walk.last, :half], flat[walk.first, half:]), -1)
    return flat.index_copy(0, walk.first, ends).view_as(x)


def follow(
    config: c.RecurrentConfig, x: Tensor, layout: Layout, cache: Cache | None = None, record: Recorder | None = None
) -> View:
    """The view of a recurrent stack: who comes before whom, in this stream and in the cache."""
    view = View(cache=cache, record=record)
    past = None if cache is None else cache.layout
    walks = [chain(layout, len(x), past)]
    if config.both:
        walks.append(chain(layout, len(x), backwards=True))
    if cache is not None:
        cache.arrive(layout)
    view.chains = walks
    return view
