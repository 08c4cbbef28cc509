"""From a stream of ids and continuous items to vectors.

Shape letters:  B rows  T tokens  N media tokens  F features of one  D width  p patch side
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.layers import Conv1d, Conv2d, Embedding, Linear
from weft.core.norm import make_norm
from weft.core.position import interpolate, sinusoidal
from weft.core.view import Layout, Media, Tokens
from weft.errors import RecipeError, WeftError, nearest


class Input(nn.Module):
    """Embeds a stream: table, stems at the media places, added positions, segments, norm."""

    def __init__(self, config: c.TextInput, dim: int) -> None:
        super().__init__()
        outer, dim = dim, config.width or dim
        self.config, self.dim = config, dim
        self.table = Embedding(config.vocab, dim) if config.vocab else None
        self.stems = nn.ModuleDict({kind: make_stem(stem, dim) for kind, stem in config.stems.items()})
        if isinstance(config.positions, c.Learned | c.Grid):
            before = config.positions.offset if isinstance(config.positions, c.Learned) else 0
            self.places = Embedding(config.positions.length + before, dim)
        if isinstance(config.positions, c.CodeGrid):
            self.places = Embedding(config.positions.length, dim)
            self.rows, self.columns = (Embedding(config.positions.side, dim) for _ in range(2))
        self.segments = Embedding(config.segments, dim) if config.segments else None
        self.norm = make_norm(config.norm, dim) if config.norm else nn.Identity()
        self.widen = Linear(dim, outer) if config.width else nn.Identity()

    def forward(self, tokens: Tokens, layout: Layout) -> Tensor:  # ids (B,T) -> (B,T,D)
        dtype = compute_dtype(next(self.parameters()))
        if self.table is None:
            x = torch.zeros(*tokens.ids.shape, self.dim, dtype=dtype, device=tokens.ids.device)
        else:
            x = self.table(tokens.ids).to(dtype)
        for media in tokens.media:
            x = put(x, media, embed(self.stem(media), media, tokens, dtype))
        if self.config.scale != 1.0:
            x = x * self.config.scale
        if isinstance(self.config.positions, c.Grid):
            x = x + self.grid(self.config.positions, tokens, layout).to(dtype)
        elif isinstance(self.config.positions, c.CodeGrid):
            x = x + self.codes(self.config.positions, tokens, layout).to(dtype)
        elif self.config.positions is not None:
            x = x + self.positions(self.config.positions, layout).to(dtype)
        if self.segments is not None:
            segment = torch.zeros_like(tokens.ids) if tokens.segment is None else tokens.segment
            x = x + self.segments(segment).to(dtype)
        return self.widen(self.norm(x))

    def stem(self, media: Media) -> nn.Module:
        """The stem of a kind. Raises WeftError when the model has none for it."""
        if media.kind not in self.stems:
            raise WeftError(
                f"The model has no stem for {media.kind!r}.{nearest(media.kind, self.stems)} Give the family `stems`."
            )
        return self.stems[media.kind]

    def positions(self, config: c.Learned | c.Sinusoidal, layout: Layout) -> Tensor:
        """(1|B,T,D) of each token's place in its document. Raises WeftError past the end of a learned table."""
        if isinstance(config, c.Sinusoidal):
            return sinusoidal(layout.order, self.dim, config.theta)
        if torch.compiler.is_exporting():  # no number is there to look at
            return self.places(layout.order.long() + config.offset)
        needed = int(layout.index[0, -1]) + 1  # of one document; only if that is too many, look at the numbers
        if needed > config.length and (needed := int(layout.order.max()) + 1) > config.length:
            raise WeftError(
                f"{needed} tokens in one document, but the table of learned positions ends at {config.length}."
            )
        return self.places(layout.order.long() + config.offset)

    def codes(self, config: c.CodeGrid, tokens: Tokens, layout: Layout) -> Tensor:
        """(B,T,D): a code by its row and its column in its picture, another id by its order."""
        if layout.coded is None:
            raise WeftError("A grid of codes stands at the input of a tower only.")
        number = tokens.ids - config.first
        code = (number >= 0) & (number < config.count)
        at = (layout.coded - 1).clamp(min=0) % config.side**2  # pictures are whole: the next one begins anew
        order = layout.order.long().expand_as(code)
        if bool((order[~code] >= config.length).any()):
            raise WeftError(f"{int(order[~code].max()) + 1} tokens in one document; the table of positions ends at "
                            f"{config.length}.")  # fmt: skip
        drawn = self.rows(at // config.side) + self.columns(at % config.side)
        return torch.where(code[..., None], drawn, self.places(order.clamp(max=config.length - 1)))

    def grid(self, config: c.Grid, tokens: Tokens, layout: Layout) -> Tensor:
        """(B,T,D) of each token's place: patches by row and column in their own picture, the others by their order."""
        x = self.places(layout.order.long().clamp(0, max(config.before - 1, 0))).expand(*tokens.ids.shape, -1)
        if not config.before:
            x = torch.zeros_like(x)
        for media in tokens.media:
            if media.grid is not None:
                table = interpolate(self.places.weight[config.before :], config, *media.grid)
                x = put(x, media, table.repeat(media.at.shape[0] // table.shape[0], 1))
                continue
            if tokens.positions is None or tokens.positions.dim() != 3:
                raise WeftError("A grid of positions needs the rows and columns of patches: `positions` (B,T,3).")
            place = tokens.positions.flatten(0, 1)[media.at, -2:].round().long()  # (N,2)
            item, count = items(media, tokens)
            low = torch.full((count, 2), 1 << 40, device=place.device).scatter_reduce(
                0, item[:, None].expand(-1, 2), place, "amin"
            )
            place = place - low[item]  # from the picture's own corner
            size = torch.zeros_like(low).scatter_reduce(0, item[:, None].expand(-1, 2), place, "amax") + 1
            found = x.new_empty(len(place), self.dim)
            for rows, columns in {tuple(pair) for pair in size.tolist()}:
                table = interpolate(self.places.weight[config.before :], config, rows, columns)  # (rows*columns,D)
                here = (size[item] == size.new_tensor((rows, columns))).all(-1).nonzero()[:, 0]
                found = found.index_copy(0, here, table[place[here, 0] * columns + place[here, 1]].to(x.dtype))
            x = put(x, media, found)
        return x


def embed(stem: nn.Module, media: Media, tokens: Tokens, dtype: torch.dtype) -> Tensor:
    """(N,F) -> (N,D) by a stem; one that looks beyond a token is told which items the tokens are of."""
    values = media.values.to(dtype)
    if not isinstance(stem, FrameStem | PyramidStem):
        return stem(values)
    item, count = items(media, tokens)
    if isinstance(stem, FrameStem):
        return stem(values, item, count)
    place = torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)  # within its item
    row = torch.zeros_like(place)
    where = coordinates(media, tokens, item, count, place) if stem.rows > 1 else torch.stack((row, place), -1)
    return stem(values, item, count, where)


def items(media: Media, tokens: Tokens) -> tuple[Tensor, int]:
    """(N,) the number of the item (picture, sound) that each media token is of, and how many there are."""
    if media.grid is not None:
        size = media.grid[0] * media.grid[1]
        count = media.at.shape[0]
        return torch.arange(count, device=media.at.device) // size, count // size
    if tokens.span is None:
        raise WeftError("Media need `span` numbers, so that each item is seen by itself.")
    row = media.at // tokens.ids.shape[1]
    span = tokens.span.flatten()[media.at]
    new = torch.ones_like(row, dtype=torch.bool)
    new[1:] = (row[1:] != row[:-1]) | (span[1:] != span[:-1])
    item = new.cumsum(0) - 1
    return item, int(new.sum())


def coordinates(media: Media, tokens: Tokens, item: Tensor, count: int, place: Tensor) -> Tensor:
    """(M,2) int64 row and column of each media token in its own item; a single row where nothing tells them."""
    if media.grid is not None:
        return torch.stack((place // media.grid[1], place % media.grid[1]), -1)
    if tokens.positions is None or tokens.positions.dim() != 3:
        return torch.stack((torch.zeros_like(place), place), -1)
    where = tokens.positions.flatten(0, 1)[media.at, -2:].round().long()
    low = torch.full((count, 2), 1 << 40, device=where.device)
    return where - low.scatter_reduce(0, item[:, None].expand(-1, 2), where, "amin")[item]


def put(x: Tensor, media: Media, vectors: Tensor) -> Tensor:
    """(B,T,D) with the (N,D) vectors at their places."""
    return x.flatten(0, 1).index_copy(0, media.at, vectors.to(x.dtype)).view_as(x)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that products are made in: autocast's, or the weights' own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class ConvStem(nn.Module):
    """A small convolutional net inside each patch: (N,F) as (N,C,p,p) -> 3x3 stride 2, twice -> (N,D)."""

    def __init__(self, config: c.ConvStem, dim: int) -> None:
        super().__init__()
        side = math.isqrt(config.features // config.channels)
        if side * side * config.channels != config.features:
            raise RecipeError(f"A conv stem needs square patches of {config.channels} channels; got {config.features}.")
        self.shape = (config.channels, side, side)
        self.first = Conv2d(config.channels, config.width, 3, stride=2, padding=1)
        self.second = Conv2d(config.width, 2 * config.width, 3, stride=2, padding=1)
        last = -(-side // 4)
        self.out = Linear(2 * config.width * last * last, dim)

    def forward(self, values: Tensor) -> Tensor:  # (N,F) -> (N,D)
        h = F.gelu(self.first(values.unflatten(-1, self.shape)))  # (N,C,p,p) -> (N,W,p/2,p/2)
        return self.out(F.gelu(self.second(h)).flatten(1))


class FrameStem(nn.Module):
    """Whisper's: (N,2*M) -> (N,D) by two convolutions over the frames of each item; outside of it are zeros."""

    def __init__(self, config: c.FrameStem, dim: int) -> None:
        super().__init__()
        if config.features % 2:
            raise RecipeError(f"A frame stem takes two frames in a token; {config.features} features are no two alike.")
        self.mels = config.features // 2
        self.first = Conv1d(self.mels, dim, 3, padding=1)
        self.second = Conv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, values: Tensor, item: Tensor, count: int) -> Tensor:  # (N,2*M), (N,) -> (N,D)
        place = torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)  # within its item
        size = int(place.max()) + 1 if len(place) else 1
        at = item * size + place
        spread = values.new_zeros(count * size, values.shape[1]).index_copy(0, at, values)
        frames = spread.view(count, 2 * size, self.mels).transpose(1, 2)  # (I,M,2S)
        inside = values.new_zeros(count * size).index_fill(0, at, 1.0).view(count, 1, size).repeat_interleave(2, 2)
        h = F.gelu(self.first(frames)) * inside  # what stands past an item's end must not come back in
        h = F.gelu(self.second(h))  # (I,D,2S) -> (I,D,S)
        return h.transpose(1, 2).flatten(0, 1)[at]


class PyramidStem(nn.Module):
    """(N,C*p*q) -> (N,D): cells put together again, halved by convolutions until each is one token."""

    def __init__(self, config: c.PyramidStem, dim: int) -> None:
        super().__init__()
        self.cell, (channels, self.rows, columns) = config.cell, config.cell
        widths = [channels, *config.widths, dim]
        size = 2 ** (len(widths) - 1)
        if columns != size or self.rows not in (1, size):
            raise RecipeError(
                f"A pyramid of {len(widths) - 1} convolutions makes one token of {size} columns, and of one row or "
                f"{size}; a cell of {self.rows} x {columns} came."
            )
        kernel, stride, padding = ((1, 3), (1, 2), (0, 1)) if self.rows == 1 else ((3, 3), (2, 2), (1, 1))
        self.convs = nn.ModuleList(Conv2d(a, b, kernel, stride, padding) for a, b in pairwise(widths))

    def forward(self, values: Tensor, item: Tensor, count: int, where: Tensor) -> Tensor:
        """values (N,F), item (N,) number of each one's item, where (N,2) row and column in it -> (N,D)."""
        channels, p, q = self.cell
        rows, columns = (int(n) + 1 for n in where.amax(0)) if len(where) else (1, 1)
        at = (item * rows + where[:, 0]) * columns + where[:, 1]
        spread = lambda t: t.new_zeros(count * rows * columns, *t.shape[1:]).index_copy(0, at, t)
        grid = spread(values).view(count, rows, columns, -1)
        if p == 1:  # frames of mels
            h = grid.view(count, rows, columns, p, q, channels).permute(0, 5, 1, 3, 2, 4)
        else:
            h = grid.view(count, rows, columns, channels, p, q).permute(0, 3, 1, 4, 2, 5)
        h = h.reshape(count, channels, rows * p, columns * q)  # (I,C,H,W)
        inside = spread(values.new_ones(len(values))).view(count, 1, rows, columns)
        for conv in self.convs[:-1]:
            h = F.gelu(conv(h))
            mask = inside.repeat_interleave(h.shape[2] // rows, 2).repeat_interleave(h.shape[3] // columns, 3)
            h = h * mask  # what stands past an item's edge must not come back in
        return self.convs[-1](h).permute(0, 2, 3, 1).flatten(0, 2)[at]  # (I,D,rows,columns) -> (N,D)


def make_stem(config: c.Stem, dim: int) -> nn.Module:
    """The module of a stem: (N,F) -> (N,D)."""
    if isinstance(config, c.FrameStem):
        return FrameStem(config, dim)
    if isinstance(config, c.PyramidStem):
        return PyramidStem(config, dim)
    if isinstance(config, c.LinearStem):
        return Linear(config.features, dim, bias=config.bias)
    if isinstance(config, c.MlpStem):
        return nn.Sequential(Linear(config.features, config.hidden), nn.GELU(), Linear(config.hidden, dim))
    return ConvStem(config, dim)
