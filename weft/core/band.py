"""A Window whose cost is linear in the length: chunks of queries, each with the keys of its band and the global ones.

Shape letters:  B rows  T tokens  n chunks  C queries of one  W = left + C + right  G global tokens  H heads  E features

    keys      g . . . . . . . . . . .        chunk 2 of C = 4, left = right = 2, one global token g
    queries           [ a b c d ]            scores (C, W + G) = [ C x (2 + 4 + 2) | C x g ]
                      ^^^^^^^^^^^
                   2 | 4 | 2 keys            g itself asks all T keys, apart (`Marked`): G x T

Beltagy et al. 2020, section 3.1 ("sliding chunks"), without the tokens that their version sees twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core import config as c
from weft.core.pattern import additive, is_global, visible
from weft.core.view import Layout

FAR = 1 << 40  # the place of what is outside of the row: further than any window
LEAST = 32  # queries of a chunk, at least: smaller products are no quicker


@dataclass
class Marked:
    """Global tokens, gathered: G of them in the row that has most, the others filled up with unreal ones.

    at    (1|B,G) int64 their places           mask  (1|B,1,G,S) what each sees, added to its scores
    slot  (1|B,T) int64 the number of each token among them, -1: it is none
    real  (1|B,G) bool
    """

    at: Tensor
    real: Tensor
    slot: Tensor
    mask: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """(B,H,T,E) -> (B,H,G,E) of the global tokens."""
        at = self.at[:, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])
        return x.gather(2, at)

    def put(self, x: Tensor, found: Tensor) -> Tensor:
        """(B,T,...) with (B,G,...) at the places of the global tokens."""
        slot = self.slot.view(*self.slot.shape, *[1] * (x.dim() - 2))
        here = slot.clamp(min=0).expand(x.shape[0], -1, *x.shape[2:])
        return torch.where(slot >= 0, found.gather(1, here), x)


@dataclass
class Band:
    """A Window in n chunks. mask (R,n,1,C,W+G), R 1 or B, is added to the scores."""

    chunk: int
    left: int
    right: int
    mask: Tensor


def bands(pattern: c.Window, layout: Layout) -> bool:
    """Whether a row is long enough for bands, and tokens near each other in a document are near in the row."""
    if len(layout) < 2 * (pattern.left + pattern.right) + LEAST or layout.branch is not None:
        return False
    if layout.document is None:
        return True
    order, document = layout.order, layout.document
    follows = (order[:, 1:] - order[:, :-1] == 1) | (document[:, 1:] != document[:, :-1])
    starts = (order == 0).expand_as(document) & (document > 0)  # a document that comes back after another: not in bands
    documents = torch.where(document > 0, document, 0).amax(1)
    return bool(follows.all()) and bool((starts.sum(1) == documents).all())


def marked(pattern: c.Window, q: Layout, k: Layout, dtype: torch.dtype) -> Marked | None:
    """The global tokens of a stream; None where it has none."""
    flag = is_global(pattern, q)
    if flag is None:
        return None
    if q.document is not None:
        flag = flag & (q.document > 0)
    most = int(flag.sum(1).max())
    if not most:
        return None
    at = flag.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
    real = flag.gather(1, at)
    slot = torch.where(flag, flag.cumsum(1) - 1, -1)
    asking = gathered(q, at)
    asking.globals = torch.ones_like(at)
    return Marked(at, real, slot, additive(finite(visible(pattern, asking, k), at, k), dtype))


def finite(seen: Tensor | None, at: Tensor, k: Layout) -> Tensor:
    """`seen`, and all keys for a query that would see none: an unreal one, whose answer nobody reads."""
    if seen is None:
        return torch.ones(len(at), at.shape[1], len(k), dtype=torch.bool, device=at.device)
    return seen | ~seen.any(-1, keepdim=True)


def gathered(layout: Layout, at: Tensor) -> Layout:
    """The layout of the tokens at (R,G)."""
    rows = max(len(at), len(layout.index), len(layout.order))

    def pick(t: Tensor) -> Tensor:
        wide = max(rows, len(t))
        return t.expand(wide, -1).gather(1, at.expand(wide, -1))

    return replace(layout, place=None, span=None).map(pick)


def band(pattern: c.Window, layout: Layout, marks: Marked | None, dtype: torch.dtype) -> Band:
    """The mask of a stream upon itself, in chunks."""
    left, right = pattern.left, pattern.right
    chunk = max(LEAST, -(-(left + right) // 2))
    count = -(-len(layout) // chunk)
    width = left + chunk + right
    plain = replace(layout, place=None, span=None, branch=None, globals=None)
    if marks is not None:
        plain.globals = (marks.slot >= 0).int()
    rows = max(len(t) for t in (plain.index, plain.order, plain.document, plain.globals) if t is not None)
    plain = plain.map(lambda t: t.expand(rows, -1))

    def cut(fill: Callable[[Tensor], int], before: int, after: int, size: int) -> Layout:
        """Every tensor (R,T) filled up on both sides and cut into pieces, (R*n,size)."""
        tail = count * chunk - len(layout)
        pieces = lambda t: F.pad(t, (before, after + tail), value=fill(t)).unfold(1, size, chunk).flatten(0, 1)
        return plain.map(pieces)

    outside: Callable[[Tensor], int] = lambda t: FAR if t is plain.index or t is plain.order else 0
    asking, keys = cut(outside, 0, 0, chunk), cut(outside, left, right, width)
    none = torch.zeros_like
    near = visible(pattern, replace(asking, globals=none(asking.index)), replace(keys, globals=none(keys.index)))
    seen = near if near is not None else torch.ones(len(asking.index), chunk, width, dtype=torch.bool)
    if marks is not None and keys.globals is not None:
        seen = seen & (keys.globals == 0)[:, None, :]  # they stand in columns of their own
        spread = lambda t: t[:, None].expand(-1, count, -1).flatten(0, 1)  # (R,G) -> (R*n,G)
        shared = gathered(plain, marks.at).map(spread)
        ones, real = torch.ones_like(shared.index), spread(marks.real.expand(rows, -1))
        met = visible(pattern, replace(asking, globals=none(asking.index)), replace(shared, globals=ones))
        met = real[:, None, :] if met is None else met & real[:, None, :]
        seen = torch.cat((seen, met.expand(-1, chunk, -1)), -1)
    seen = seen | ~seen.any(-1, keepdim=True)  # what fills up the last chunk
    return Band(chunk, left, right, additive(seen, dtype).unflatten(0, (rows, count)))


def attend_band(q: Tensor, k: Tensor, v: Tensor, band: Band, marks: Marked | None, scale: float | None) -> Tensor:
    """(B,H,T,E), (B,K,T,E) twice -> (B,T,H*E)."""
    batch, heads, length = q.shape[:3]
    count, size = band.mask.shape[1], band.left + band.chunk + band.right
    tail = count * band.chunk - length
    asking = F.pad(q, (0, 0, 0, tail)).unflatten(2, (count, band.chunk)).transpose(1, 2)  # (B,n,H,C,E)

    def near(t: Tensor) -> Tensor:  # (B,K,T,E) -> (B*n,K,W+G,E)
        cut = F.pad(t, (0, 0, band.left, band.right + tail)).unfold(2, size, band.chunk)  # (B,K,n,E,W)
        cut = cut.permute(0, 2, 1, 4, 3)
        if marks is not None:
            cut = torch.cat((cut, marks.gather(t)[:, None].expand(-1, count, -1, -1, -1)), 3)
        return cut.flatten(0, 1)

    mask = band.mask.expand(batch, -1, -1, -1, -1).flatten(0, 1)  # (B*n,1,C,W+G)
    grouped = heads != k.shape[1]
    y = F.scaled_dot_product_attention(
        asking.flatten(0, 1), near(k), near(v), mask, scale=scale, enable_gqa=grouped
    )  # (B*n,H,C,E)
    return y.unflatten(0, (batch, count)).transpose(2, 3).flatten(1, 2)[:, :length].flatten(2)  # -> (B,T,H*E)
