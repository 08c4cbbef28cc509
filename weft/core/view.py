"""What a stream of tokens is made of, and what each token may see.

Shape letters:  B rows  T tokens (queries)  S tokens (keys)  A position axes  N media tokens  F features of one media token

One row of a batch may hold several documents, and one document may be a tree: a trunk (an image) and branches (the
questions about it). A token sees its own document's trunk and its own branch, nothing else, so packing never changes
what a sample means:

    document  1 1 1 1 1 1 1 1 2 2 2 0        0 = padding
    branch    0 0 0 0 1 1 2 2 0 0 1 0        0 = trunk
    span      0 1 1 1 0 0 0 0 0 0 0 0        > 0: media; tokens of one span see each other both ways (Prefix pattern)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Media:
    """Continuous items that take the place of tokens: image patches, sound frames.

    kind    names the stem that embeds them ("image", "audio")
    values  (N,F) float: one row per media token
    at      (N,) int64: where each goes, an index into the flattened (B*T) tokens
    """

    kind: str
    values: Tensor
    at: Tensor

    def to(self, device: torch.device | str) -> Media:
        return Media(self.kind, self.values.to(device), self.at.to(device))


@dataclass
class Tokens:
    """One stream, packed. Everything but `ids` may be None, which means the plain case.

    ids        (B,T) int64; what stands at a media place is ignored
    document   (B,T) int32; None: every token is of one document and none is padding
    branch     (B,T) int32; None: all trunk
    span       (B,T) int32; None: no media
    positions  (B,T) or (B,T,A) float32; None: 0..T-1 (after a cache: counted on). Axes: sequence, row, column.
    media      continuous items to put into their places
    """

    ids: Tensor
    document: Tensor | None = None
    branch: Tensor | None = None
    span: Tensor | None = None
    positions: Tensor | None = None
    media: tuple[Media, ...] = ()

    def to(self, device: torch.device | str) -> Tokens:
        """The same stream on another device."""
        moved = {
            name: value.to(device)
            for name in ("ids", "document", "branch", "span", "positions")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved, media=tuple(m.to(device) for m in self.media))
