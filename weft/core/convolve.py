"""Convolutional networks: over the tokens of a text, and over whole pictures.

Shape letters:  B rows  T tokens  D width  k tokens of a window  n pictures  C channels  H, W pixels  M media tokens

    text      ── [ k neighbours, matrix, ReLU ] of each k, side by side ── largest over the document, at its first token
    picture   ── conv 3, norm, ReLU ── [ conv 3, norm, ReLU, conv 3, norm, (+), ReLU ] x blocks, in stages ── mean
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache
from weft.core.embed import compute_dtype, coordinates, items
from weft.core.layers import Conv2d, Linear
from weft.core.mask import View
from weft.core.record import Recorder
from weft.core.view import Layout, Media, Tokens
from weft.errors import RecipeError, WeftError


class Convolve(nn.Module):
    """Kim 2014, section 2. Neighbours of another document, or before and behind all, are zeros."""

    compiles = False

    def __init__(self, config: c.ConvolveConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.windows)
        if config.dim < count or any(size < 1 for size in config.windows):
            raise RecipeError(f"Windows {config.windows} cannot share a width of {config.dim}.")
        sizes = [config.dim // count + (i < config.dim % count) for i in range(count)]
        self.convolutions = nn.ModuleList(
            Linear(window * config.dim, size) for window, size in zip(config.windows, sizes, strict=True)
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        if view.around is None:
            raise WeftError("A convolution over tokens needs to know their documents.")
        if self.config.windows:
            x = torch.cat(
                [
                    F.relu(part(near(x, view.around, k)))
                    for part, k in zip(self.convolutions, self.config.windows, strict=True)
                ],
                -1,
            )
        document, first = view.around
        flat = x.flatten(0, 1)  # (B*T,D)
        index = document.flatten()[:, None].expand_as(flat)
        largest = torch.zeros_like(flat).scatter_reduce(0, index, flat, "amax", include_self=False)
        flat = flat.index_copy(0, first, largest[document.flatten()[first]])
        return self.drop(flat.view_as(x))


def near(x: Tensor, around: tuple[Tensor, Tensor], window: int) -> Tensor:
    """(B,T,D) -> (B,T,k*D): the k tokens around each, in order, (k-1)//2 of them before it."""
    document, length, parts = around[0], x.shape[1], []
    for step in range(-((window - 1) // 2), window // 2 + 1):
        moved, whose = x.roll(-step, 1), document.roll(-step, 1)
        place = torch.arange(length, device=x.device) + step
        same = (whose == document) & (place >= 0) & (place < length)
        parts.append(moved * same[..., None])
    return torch.cat(parts, -1)


def surround(
    config: c.ConvolveConfig, x: Tensor, layout: Layout, cache: Cache | None = None, record: Recorder | None = None
) -> View:
    """The view of a convolution: the document of each token, numbered through all rows, and where each begins."""
    rows, length = x.shape[:2]
    if layout.branch is not None and bool((layout.branch > 0).any()):
        raise WeftError("A convolution cannot follow branches of a shared beginning.")
    own = torch.ones(rows, length, dtype=torch.long, device=x.device) if layout.document is None else layout.document
    numbers = own.long() + torch.arange(rows, device=x.device)[:, None] * (int(own.max()) + 1)
    _, document = numbers.unique(return_inverse=True)
    place = torch.arange(rows * length, device=x.device)
    count = int(document.max()) + 1
    first = torch.full((count,), rows * length, device=x.device).scatter_reduce(0, document.flatten(), place, "amin")
    return View(around=(document, first), record=record)


# ---------------------------------------------------------------------------------------------------- pictures


class Residual(nn.Module):
    """Two convolutions and what came in; where size and width change, every second pixel, new channels zero."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.second = Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = (nn.GroupNorm(math.gcd(groups, width), width) for _ in range(2))
        self.stride, self.more = stride, width - before

    def forward(self, x: Tensor) -> Tensor:  # (n,C,H,W) -> (n,C',H',W')
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(x + y)


class Picture(nn.Module):
    """(M,F) patches of pictures -> (M,D), the same at all places of one picture."""

    def __init__(self, config: c.PictureConfig, dim: int) -> None:
        super().__init__()
        self.config, self.side = config, math.isqrt(config.features // 3)
        if 3 * self.side**2 != config.features:
            raise RecipeError(f"{config.features} features are no square patch of 3 channels.")
        if list(config.widths) != sorted(config.widths) or not config.widths:
            raise RecipeError(f"The widths of a residual network grow from stage to stage; got {config.widths}.")
        self.stem = Conv2d(3, config.widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(config.groups, config.widths[0]), config.widths[0])
        blocks, before = [], config.widths[0]
        for stage, width in enumerate(config.widths):
            for number in range(config.blocks):
                blocks.append(Residual(before, width, 2 if stage and not number else 1, config.groups))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Identity() if before == dim else Linear(before, dim)

    def forward(self, media: Media, tokens: Tokens, record: Recorder | None = None) -> Tensor:
        item, count = items(media, tokens)
        start = torch.searchsorted(item, torch.arange(count, device=item.device))
        where = coordinates(media, tokens, item, count, torch.arange(len(item), device=item.device) - start[item])
        size = torch.zeros(count, 2, dtype=where.dtype, device=where.device)
        size = size.scatter_reduce(0, item[:, None].expand(-1, 2), where, "amax") + 1  # (count,2) rows, columns
        values = media.values.to(compute_dtype(self.stem.weight))
        parts, owners = [], []
        for rows, columns in sorted({tuple(pair) for pair in size.tolist()}):
            which = (size == size.new_tensor((rows, columns))).all(-1).nonzero()[:, 0]  # (n,) pictures of this size
            mine = (size[item] == size.new_tensor((rows, columns))).all(-1).nonzero()[:, 0]
            place = torch.searchsorted(which, item[mine]) * rows * columns + where[mine, 0] * columns + where[mine, 1]
            patches = values.new_zeros(len(which) * rows * columns, values.shape[1]).index_copy(0, place, values[mine])
            parts.append(self.pooled(together(patches.unflatten(0, (len(which), rows, columns)), self.side)))
            owners.append(which)
        if not parts:
            return self.project(values.new_zeros(0, self.config.widths[-1]))
        return self.project(torch.cat(parts)[torch.cat(owners).argsort()])[item]

    def pooled(self, pixels: Tensor) -> Tensor:  # (n,3,H,W) -> (n,C)
        return self.blocks(F.relu(self.norm(self.stem(pixels)))).mean((2, 3))


def together(patches: Tensor, side: int) -> Tensor:
    """(n,rows,columns,3*p*p) -> (n,3,rows*p,columns*p)."""
    count, rows, columns, _ = patches.shape
    pixels = patches.unflatten(-1, (3, side, side)).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(count, 3, rows * side, columns * side)
