"""From a stream of ids and continuous items to vectors.

Shape letters:  B rows  T tokens  N media tokens  F features of one  D width  p patch side
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.layers import Conv2d, Embedding, Linear
from weft.core.norm import make_norm
from weft.core.position import sinusoidal
from weft.core.view import Layout, Media, Tokens
from weft.errors import RecipeError, WeftError, nearest


class Input(nn.Module):
    """Embeds a stream: table, stems at the media places, added positions, segments, norm."""

    def __init__(self, config: c.TextInput, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.table = Embedding(config.vocab, dim)
        self.stems = nn.ModuleDict({kind: make_stem(stem, dim) for kind, stem in config.stems.items()})
        if isinstance(config.positions, c.Learned):
            self.places = Embedding(config.positions.length, dim)
        self.segments = Embedding(config.segments, dim) if config.segments else None
        self.norm = make_norm(config.norm, dim) if config.norm else nn.Identity()

    def forward(self, tokens: Tokens, layout: Layout) -> Tensor:  # ids (B,T) -> (B,T,D)
        dtype = compute_dtype(self.table.weight)
        x = self.table(tokens.ids).to(dtype)
        for media in tokens.media:
            x = put(x, media, self.stem(media)(media.values.to(dtype)))
        if self.config.scale != 1.0:
            x = x * self.config.scale
        if self.config.positions is not None:
            x = x + self.positions(self.config.positions, layout).to(dtype)
        if self.segments is not None:
            segment = torch.zeros_like(tokens.ids) if tokens.segment is None else tokens.segment
            x = x + self.segments(segment).to(dtype)
        return self.norm(x)

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
        needed = int(layout.index[0, -1]) + 1  # of one document; only if that is too many, look at the numbers
        if needed > config.length and (needed := int(layout.order.max()) + 1) > config.length:
            raise WeftError(
                f"{needed} tokens in one document, but the table of learned positions ends at {config.length}."
            )
        return self.places(layout.order.long())


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


def make_stem(config: c.Stem, dim: int) -> nn.Module:
    """The module of a stem: (N,F) -> (N,D)."""
    if isinstance(config, c.LinearStem):
        return Linear(config.features, dim, bias=config.bias)
    if isinstance(config, c.MlpStem):
        return nn.Sequential(Linear(config.features, config.hidden), nn.GELU(), Linear(config.hidden, dim))
    return ConvStem(config, dim)
