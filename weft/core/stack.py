"""Blocks, and stacks of them.

Shape letters:  B rows  T tokens  S source tokens  D width

    pre                                  post
    x ──┬── norm ── attention ──(+)──    x ──┬── attention ──(+)── norm ──
        └───────────────────────┘            └────────────────┘
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import Attention, CrossAttention
from weft.core.feedforward import PerModality, make_feedforward
from weft.core.layers import Embedding
from weft.core.mask import View
from weft.core.norm import make_norm
from weft.errors import RecipeError


class Block(nn.Module):
    """Look around, look across, think."""

    def __init__(self, config: c.StackConfig, layer: int) -> None:
        super().__init__()
        if config.order not in ("pre", "post"):
            raise RecipeError(f"A stack's order is 'pre' or 'post', not {config.order!r}.")
        dim = config.dim
        self.post = config.order == "post"
        self.attn, self.attn_norm = Attention(config.attention, dim, layer), block_norm(config)
        self.crosses = False
        if config.cross is not None and layer % config.cross_every == 0:
            self.crosses = True
            self.cross = CrossAttention(config.cross, dim, config.source or dim, layer)
            self.cross_norm, self.cross_scale = block_norm(config), make_scale(config)
        self.ffn, self.ffn_norm = make_feedforward(config.feedforward, dim), block_norm(config)
        self.attn_scale, self.ffn_scale = make_scale(config), make_scale(config)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        x = self.add(x, (self.attn, self.attn_norm, self.attn_scale), view, view)
        if self.crosses:
            x = self.add(x, (self.cross, self.cross_norm, self.cross_scale), view, view.across)
        return self.add(x, (self.ffn, self.ffn_norm, self.ffn_scale), view, view)

    def add(self, x: Tensor, parts: tuple[nn.Module, ...], view: View, seen: View | None) -> Tensor:
        part, norm, scale = parts
        if self.post:
            return norm(x + self.drop(scale(part(x, seen))), view)
        return x + self.drop(scale(part(norm(x, view), seen)))


class LayerScale(nn.Module):
    """x times a learned factor per feature: parts that start small leave the stream as it is (Touvron et al. 2021)."""

    def __init__(self, start: float, dim: int) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:  # (B,T,D) -> (B,T,D)
        return x * self.weight.to(x.dtype)


def make_scale(config: c.StackConfig) -> nn.Module:
    """The factor on what a part adds, or none."""
    return LayerScale(config.layer_scale, config.dim) if config.layer_scale else nn.Identity()


class Stack(nn.Module):
    """`depth` blocks; a last norm when they are normed before. It owns the table of a relative bias."""

    compiles = True

    def __init__(self, config: c.StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = block_norm(config) if config.order == "pre" else None
        position = config.attention.position
        self.bias = (
            Embedding(position.buckets, config.attention.heads) if isinstance(position, c.RelativeBias) else None
        )

    def forward(self, x: Tensor, view: View, layers: int | None = None) -> Tensor:
        """(B,T,D) -> (B,T,D). layers: only the first so many blocks, and no last norm."""
        if self.bias is not None:
            bias = self.bias(view.buckets).permute(0, 3, 1, 2).to(x.dtype)  # (1|B,T,S) -> (1|B,H,T,S)
            view = replace(view, mask=bias if view.mask is None else bias + view.mask)
        for block in self.blocks[:layers]:
            x = block(x, view)
        return x if self.norm is None or layers is not None else self.norm(x, view)


def block_norm(config: c.StackConfig) -> nn.Module:
    """A norm of the stack's kind and width."""
    if isinstance(config.norm, c.PerModality):
        return PerModality(config.norm, config.dim)
    return make_norm(config.norm, config.dim)
