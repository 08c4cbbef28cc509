"""From an encoder of items to the width of the main stream.

Shape letters:  M tokens of the main stream  N patches  D' width of the encoder  D main width  r factor  p patch side
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from weft.core import config as c
from weft.core.feedforward import ACTIVATIONS
from weft.core.layers import Linear
from weft.errors import RecipeError


class Mlp(nn.Module):
    """(N,D') -> (N,hidden) -> (N,D)."""

    factor = 1

    def __init__(self, config: c.MlpBridge, inner: int, dim: int) -> None:
        super().__init__()
        self.up = Linear(inner, config.hidden, bias=config.bias)
        self.out = Linear(config.hidden, dim, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x)))


class Shuffle(nn.Module):
    """(M*r*r,D') -> (M,r*r*D') -> (M,D): Shi et al. 2016, backwards; Laurençon et al. 2024 (Idefics3)."""

    def __init__(self, config: c.ShuffleBridge, inner: int, dim: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.out = Linear(inner * config.factor**2, dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.unflatten(0, (-1, self.factor**2)).flatten(1))


def make_bridge(config: c.Bridge, inner: int, dim: int) -> Mlp | Shuffle:
    """The module of a bridge from width `inner` to `dim`."""
    return Mlp(config, inner, dim) if isinstance(config, c.MlpBridge) else Shuffle(config, inner, dim)


def cut(values: Tensor, factor: int, channels: int = 3) -> Tensor:
    """(M,C*(r*p)^2) squares of pixels -> (M*r*r,C*p*p) patches, row by row within each square."""
    if factor == 1:
        return values
    side = math.isqrt(values.shape[1] // channels) // factor
    if channels * (side * factor) ** 2 != values.shape[1]:
        raise RecipeError(f"{values.shape[1]} features are no square of {factor} x {factor} patches of 3 channels.")
    pixels = values.unflatten(1, (channels, factor, side, factor, side))  # (M,C,r,p,r,p)
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
