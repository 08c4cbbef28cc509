"""From an encoder of items to the width of the main stream.

    Mlp       k states side by side ── up ── act ── out             of each token of the main stream alone
    Shuffle   k states side by side ── out
    Resample  queries ── [ ask states and queries ; think ] x depth ── norm ── out        upon all states of the item

Shape letters:  M tokens of the main stream  N states, N = k M  k states a token brings  D' width of the encoder
                D main width  r factor  p patch side  I items  S states of the longest  Q tokens of the longest
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import CrossAttention
from weft.core.feedforward import ACTIVATIONS, FeedForward
from weft.core.layers import Embedding, Linear
from weft.core.mask import View
from weft.core.norm import make_norm
from weft.core.pattern import additive
from weft.errors import RecipeError, WeftError


class Mlp(nn.Module):
    """(M*k,D') -> (M,k*D') -> (M,hidden) -> (M,D)."""

    def __init__(self, config: c.MlpBridge, inner: int, dim: int, each: int) -> None:
        super().__init__()
        self.each = each
        self.up = Linear(inner * each, config.hidden, bias=config.bias)
        self.out = Linear(config.hidden, dim, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, item: Tensor, count: int) -> Tensor:
        return self.out(self.activation(self.up(x.unflatten(0, (-1, self.each)).flatten(1))))


class Shuffle(nn.Module):
    """(M*k,D') -> (M,k*D') -> (M,D): Shi et al. 2016, backwards; Laurençon et al. 2024 (Idefics3)."""

    def __init__(self, config: c.ShuffleBridge, inner: int, dim: int, each: int) -> None:
        super().__init__()
        self.each = each
        self.out = Linear(inner * each, dim, bias=config.bias)

    def forward(self, x: Tensor, item: Tensor, count: int) -> Tensor:
        return self.out(x.unflatten(0, (-1, self.each)).flatten(1))


class Asking(nn.Module):
    """One layer of a resampler: queries ask the states and each other, then think."""

    def __init__(self, config: c.ResampleBridge, inner: int, layer: int) -> None:
        super().__init__()
        norm = c.LayerNorm()
        self.state_norm, self.query_norm, self.ffn_norm = (make_norm(norm, inner) for _ in range(3))
        self.attn = CrossAttention(c.Attention(config.heads), inner, inner, layer)
        self.ffn = FeedForward(c.FeedForward(config.hidden), inner)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:  # (I,Q,D'), (I,S,D'), (I,1,1,S+Q)
        asked = self.query_norm(x)
        memory = torch.cat((self.state_norm(states), asked), 1)  # (I,S+Q,D')
        x = x + self.attn(asked, View(mask, memory=memory))
        return x + self.ffn(self.ffn_norm(x))


class Resample(nn.Module):
    """The Perceiver resampler (Alayrac et al. 2022, section 3.1): an item of any size -> as many vectors as it has
    tokens in the main stream. (M*k,D'), item (M,) -> (M,D)."""

    def __init__(self, config: c.ResampleBridge, inner: int, dim: int, each: int) -> None:
        super().__init__()
        self.each = each
        self.queries = Embedding(config.queries, inner)
        self.layers = nn.ModuleList(Asking(config, inner, i) for i in range(config.depth))
        self.norm = make_norm(c.LayerNorm(), inner)
        self.out = Linear(inner, dim)

    def forward(self, x: Tensor, item: Tensor, count: int) -> Tensor:
        place = torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)  # within its item
        tokens = torch.bincount(item, minlength=count)  # (I,)
        longest = int(tokens.max()) if count else 0
        if longest > self.queries.num_embeddings:
            raise WeftError(
                f"An item of {longest} tokens came, and the resampler has {self.queries.num_embeddings} queries. "
                "Make items smaller, or train with more queries."
            )
        at = item * longest + place  # (M,)
        groups = x.unflatten(0, (-1, self.each))  # (M,k,D')
        states = groups.new_zeros(count * longest, *groups.shape[1:]).index_copy(0, at, groups)
        states = states.unflatten(0, (count, longest)).flatten(1, 2)  # (I,S,D'), S = longest * k
        there = torch.arange(longest, device=item.device) < tokens[:, None]  # (I,Q)
        seen = torch.cat((there.repeat_interleave(self.each, 1), there), 1)
        mask = additive(seen[:, None], x.dtype)  # (I,1,1,S+Q)
        asking = self.queries.weight[:longest].to(x.dtype).expand(count, -1, -1)  # (I,Q,D')
        for layer in self.layers:
            asking = layer(asking, states, mask)
        return self.out(self.norm(asking.flatten(0, 1)[at]))


BRIDGES = {c.MlpBridge: Mlp, c.ShuffleBridge: Shuffle, c.ResampleBridge: Resample}


def make_bridge(config: c.Bridge, inner: int, dim: int, each: int) -> nn.Module:
    """The module of a bridge from width `inner` to `dim`, for `each` states a token: (N,D'), (M,), I -> (M,D)."""
    return BRIDGES[type(config)](config, inner, dim, each)  # type: ignore[arg-type]


def cut(values: Tensor, factor: int, line: bool = False, channels: int = 3) -> Tensor:
    """(M,C*(r*p)^2) squares of pixels -> (M*r*r,C*p*p) patches, row by row within each square.

    line  (M,r*F) stretches of frames -> (M*r,F)
    """
    if factor == 1:
        return values
    if line:
        return values.unflatten(1, (factor, -1)).flatten(0, 1)
    side = math.isqrt(values.shape[1] // channels) // factor
    if channels * (side * factor) ** 2 != values.shape[1]:
        raise RecipeError(f"{values.shape[1]} features are no square of {factor} x {factor} patches of 3 channels.")
    pixels = values.unflatten(1, (channels, factor, side, factor, side))  # (M,C,r,p,r,p)
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
