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
        self.across = None
        if isinstance(config.cross, c.GatedCross) and layer % config.cross_every == 0:
            self.across = GatedCross(config, config.cross, layer)
        elif isinstance(config.cross, c.Attention) and layer % config.cross_every == 0:
            self.crosses = True
            self.cross = CrossAttention(config.cross, dim, config.source or dim, layer)
            self.cross_norm, self.cross_scale = block_norm(config), make_scale(config)
        self.ffn, self.ffn_norm = make_feedforward(config.feedforward, dim), block_norm(config)
        self.attn_scale, self.ffn_scale = make_scale(config), make_scale(config)
        self.drop = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        if self.across is not None:
            x = self.across(x, view)
        x = self.add(x, (self.attn, self.attn_norm, self.attn_scale), view, view)
        if self.crosses:
            x = self.add(x, (self.cross, self.cross_norm, self.cross_scale), view, view.across)
        return self.add(x, (self.ffn, self.ffn_norm, self.ffn_scale), view, view)

    def add(self, x: Tensor, parts: tuple[nn.Module, ...], view: View, seen: View | None) -> Tensor:
        part, norm, scale = parts
        if self.post:
            return norm(x + self.drop(scale(part(x, seen))), view)
        return x + self.drop(scale(part(norm(x, view), seen)))


class GatedCross(nn.Module):
    """Alayrac et al. 2022, section 3.2: a look across and a thought, each through a gate that is shut at first."""

    def __init__(self, config: c.StackConfig, cross: c.GatedCross, layer: int) -> None:
        super().__init__()
        self.attn = CrossAttention(cross.attention, config.dim, config.source or config.dim, layer)
        self.attn_norm, self.ffn_norm = block_norm(config), block_norm(config)
        self.ffn = make_feedforward(c.FeedForward(cross.hidden, cross.activation), config.dim)
        self.attn_gate, self.ffn_gate = (nn.Parameter(torch.empty(())) for _ in range(2))

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        if view.across is None:  # nothing to look at: words pass by
            return x
        opened = self.attn_gate.tanh() * self.attn(self.attn_norm(x, view), view.across)
        thought = x + self.let(opened, view.across)
        return thought + self.let(self.ffn_gate.tanh() * self.ffn(self.ffn_norm(thought, view), view), view.across)

    def let(self, added: Tensor, seen: View) -> Tensor:
        """Nothing for tokens that see no item."""
        return added if seen.found is None else added * seen.found.to(added.dtype)


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
