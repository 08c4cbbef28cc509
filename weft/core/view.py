"""What a stream of tokens is made of, and what each token may see.

Shape letters:  B rows  T tokens (queries)  S tokens (keys)  A position axes  N media tokens  F features of one of them

One row of a batch may hold several documents, and one document may be a tree: a trunk (an image) and branches (the
questions about it). A token sees its own document's trunk and its own branch, nothing else, so packing never changes
what a sample means:

    document  1 1 1 1 1 1 1 1 2 2 2 0        0 = padding
    branch    0 0 0 0 1 1 2 2 0 0 1 0        0 = trunk
    span      0 1 1 1 0 0 0 0 0 0 0 0        > 0: media; tokens of one span see each other both ways (Prefix pattern)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Media:
    """Continuous items that take the place of tokens: image patches, sound frames.

    kind    names the stem that embeds them ("image", "audio")
    values  (N,F) float: one row per media token
    at      (N,) int64: where each goes, an index into the flattened (B*T) tokens
    grid    rows and columns of every item, where all have the same (a sound: 1 and its tokens); None: `span` tells
    states  values are what an encoder of items has made of them already: (k*N,D')
    """

    kind: str
    values: Tensor
    at: Tensor
    grid: tuple[int, int] | None = None
    states: bool = False

    def to(self, device: torch.device | str) -> Media:
        return replace(self, values=self.values.to(device), at=self.at.to(device))


@dataclass
class Tokens:
    """One stream, packed. Everything but `ids` may be None, which means the plain case.

    ids        (B,T) int64; what stands at a media place is ignored
    document   (B,T) int32; None: every token is of one document and none is padding
    branch     (B,T) int32; None: all trunk
    span       (B,T) int32; None: no media
    positions  (B,T) or (B,T,A) float32; None: 0..T-1 (after a cache: counted on). Axes: sequence, row, column.
    media      continuous items to put into their places
    segment    (B,T) int64 row of the segment table, for inputs that have one (BERT's sentence A or B); None: 0
    globals    (B,T) int32, 1: a global token of Window attention; None: the pattern's own first ones
    """

    ids: Tensor
    document: Tensor | None = None
    branch: Tensor | None = None
    span: Tensor | None = None
    positions: Tensor | None = None
    media: tuple[Media, ...] = ()
    segment: Tensor | None = None
    globals: Tensor | None = None

    def to(self, device: torch.device | str) -> Tokens:
        """The same stream on another device."""
        moved = {
            name: value.to(device)
            for name in ("ids", "document", "branch", "span", "positions", "segment", "globals")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved, media=tuple(m.to(device) for m in self.media))


@dataclass
class Layout:
    """Where the tokens of a stream stand: what masks and positions are made from. None: the plain case.

    index     (1|B,T) int64 arrival: 0.. in the stream, counted on after a cache
    document, branch, span, globals   (B,T) as in Tokens
    order     (1|B,T) int64 place in the own document: how many tokens are seen before this one by looking back
    place     (B,T,A) float32 positions as given; None: `order` on every axis
    coded     (B,T) int64 how many picture codes are seen up to this token, where positions need it
    """

    index: Tensor
    order: Tensor
    document: Tensor | None = None
    branch: Tensor | None = None
    span: Tensor | None = None
    place: Tensor | None = None
    globals: Tensor | None = None
    coded: Tensor | None = None

    def __len__(self) -> int:
        return self.index.shape[1]

    @staticmethod
    def of(tokens: Tokens, past: Layout | None = None, start: int = 0) -> Layout:
        """The layout of `tokens`, which follow the `past` of a cache; `start` tokens have arrived before them."""
        length = tokens.ids.shape[1]
        index = torch.arange(start, start + length, device=tokens.ids.device)[None]
        document = tokens.document
        if document is None and past is not None and past.document is not None:
            document = torch.ones_like(tokens.ids, dtype=past.document.dtype)
        here = Layout(index, index, document, tokens.branch, tokens.span, globals=tokens.globals)
        if document is not None or tokens.branch is not None:
            # The tokens it sees by looking back: right for packed documents, branches, padding and caches alike.
            here.order = here.count() + (-1 if past is None else here.furthest(past, past.order).long())
        if tokens.positions is not None:
            if tokens.positions.dim() == 3:
                here.place = tokens.positions
            else:
                here.order = tokens.positions
        elif past is not None and past.place is not None:
            axes = past.place.shape[-1]
            counted = here.furthest(past, past.place.amax(-1)) + here.count()
            here.place = counted[..., None].expand(-1, -1, axes)  # (B,T) -> (B,T,A)
        return here

    def count(self) -> Tensor:
        """(B,T) how many tokens of this layout each sees by looking back, itself included."""
        exporting = torch.compiler.is_exporting()  # a written graph has no search, and its length is open
        if self.branch is None and self.document is not None and not exporting:  # at a cost not squared in T
            found, at = self.document.sort(dim=1, stable=True)
            rank = torch.arange(1, len(self) + 1, device=at.device) - torch.searchsorted(found, found)
            return torch.empty_like(rank).scatter_(1, at, rank)
        seen = together(self, self)
        back = self.index[:, None, :] <= self.index[:, :, None]
        return (back if seen is None else seen & back).sum(-1)

    def count_of(self, which: Tensor, past: Layout | None, name: str) -> Tensor:
        """(B,T) how many tokens of `which` (B,T) bool each sees by looking back, itself included, and before them those
        that the past has counted under this name."""
        seen = together(self, self)
        if seen is None:
            here = which.cumsum(1)
        else:
            back = self.index[:, None, :] <= self.index[:, :, None]
            here = (seen & back & which[:, None, :]).sum(-1)
        reached = None if past is None else getattr(past, name)
        return here if reached is None else here + self.furthest(past, reached).clamp(min=0)  # type: ignore[arg-type]

    def furthest(self, past: Layout, reached: Tensor) -> Tensor:
        """(B,T) the largest of `reached` (B,P) among the past tokens that each sees; -1 if it sees none."""
        seen = together(self, past)
        reached = reached[:, None, :].expand(-1, self.index.shape[1], -1)  # (B,P) -> (B,T,P)
        return (reached if seen is None else reached.masked_fill(~seen, -1)).amax(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Layout:
        """Every tensor of it changed by `change`, absent ones left absent."""
        names = ("document", "branch", "span", "place", "globals", "coded")
        rest = {n: t if (t := getattr(self, n)) is None else change(t) for n in names}
        return Layout(change(self.index), change(self.order), **rest)


def together(q: Layout, k: Layout) -> Tensor | None:
    """(B,T,S) bool: same document, and the key on the trunk or on the query's branch. None: all of them."""
    seen = None
    if q.document is not None or k.document is not None:
        # Where only one of them tells documents apart, the other is all of document 1: it must not see padding.
        one, other = (torch.ones_like(t.index) if t.document is None else t.document for t in (q, k))
        seen = one[:, :, None] == other[:, None, :]
    if k.branch is not None:
        own = torch.zeros_like(q.index) if q.branch is None else q.branch
        branch = k.branch[:, None, :]
        same = (branch == 0) | (branch == own[:, :, None])
        seen = same if seen is None else seen & same
    return seen
