"""Attention: each token asks, its visible tokens answer.

Shape letters:  B rows  T queries  S keys  D width  H query heads  K key/value heads  E features of a head

    x (B,T,D) ─ qkv ─┬─ q (B,T,H,E) ─ norm ─ turn ─┐
                     ├─ k (B,S,K,E) ─ norm ─ turn ─┼─ softmax(q k^T / sqrt(E) + mask) v ─ out ─ (B,T,D)
                     └─ v (B,S,K,E) ───────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.band import Marked, attend_band
from weft.core.layers import Linear
from weft.core.mask import View
from weft.core.norm import make_norm
from weft.core.position import rotate
from weft.errors import RecipeError


class Attention(nn.Module):
    """Vaswani et al. 2017, section 3.2; grouped heads of Ainslie et al. 2023. One matrix for q, k and v."""

    def __init__(self, config: c.Attention, dim: int, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.heads, config.kv_heads or config.heads, head_width(config, dim)
        self.layer, self.scale = layer, config.scale
        self.sizes = (self.heads * self.width, self.kv_heads * self.width, self.kv_heads * self.width)
        self.qkv = Linear(dim, sum(self.sizes), bias=config.bias and config.key_bias)
        lone = config.bias and not config.key_bias
        self.q_bias = nn.Parameter(torch.empty(self.sizes[0])) if lone else None
        self.v_bias = nn.Parameter(torch.empty(self.sizes[2])) if lone else None
        self.out = Linear(self.sizes[0], dim, bias=config.bias if config.out_bias is None else config.out_bias)
        self.global_qkv = None
        if config.globals:
            if not isinstance(config.pattern, c.Window) or not config.pattern.right or config.position is not None:
                raise RecipeError("Global tokens with matrices of their own need a Window that sees both ways.")
            self.global_qkv = Linear(dim, sum(self.sizes), bias=config.bias)
        self.q_norm = make_norm(config.qk_norm, self.width) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config.qk_norm, self.width) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        q, k, v = self.split(self.qkv(x))  # (B,T,H|K,E)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias.view(-1, self.width), v + self.v_bias.view(-1, self.width)
        q, k = self.q_norm(q), self.k_norm(k)
        if view.rotation is not None:
            q, k = rotate(q, view.rotation), rotate(k, view.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B,T,H,E) -> (B,H,T,E)
        if view.cache is not None:
            k, v = view.cache.extend(self.layer, k, v)  # (B,K,T,E) -> (B,K,S,E)
        if view.band is not None:
            y = attend_band(q, k, v, view.band, view.marked, self.scale)
        else:
            y = attend(q, k, v, view, scale=self.scale, layer=self.layer, part="self")
        return self.out(y if view.marked is None else self.mark(x, (q, k, v), y, view, view.marked))

    def split(self, qkv: Tensor) -> Sequence[Tensor]:
        """(B,T,(H+2K)E) -> (B,T,H,E), (B,T,K,E) twice."""
        return [part.unflatten(-1, (-1, self.width)) for part in qkv.split(self.sizes, -1)]

    def mark(self, x: Tensor, qkv: Sequence[Tensor], y: Tensor, view: View, marks: Marked) -> Tensor:
        """(B,T,H*E) with the answers to global tokens in place: they ask all keys."""
        if self.global_qkv is not None:
            qkv = [t.transpose(1, 2) for t in self.split(self.global_qkv(x))]  # (B,H|K,T,E)
        apart = replace(view, mask=marks.mask, causal=False, band=None, marked=None)
        q, k, v = qkv
        found = attend(marks.gather(q), k, v, apart, scale=self.scale, layer=self.layer, part="globals")
        if view.record is not None:
            view.record.overlay(self.layer, marks.put)
        return marks.put(y, found)


class CrossAttention(nn.Module):
    """Queries from the stream, keys and values from a source of width `source`."""

    def __init__(self, config: c.Attention, dim: int, source: int, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.heads, config.kv_heads or config.heads, head_width(config, dim)
        self.layer, self.scale = layer, config.scale
        self.q = Linear(dim, self.heads * self.width, bias=config.bias)
        self.kv = Linear(source, 2 * self.kv_heads * self.width, bias=config.bias and config.key_bias)
        lone = config.bias and not config.key_bias
        self.v_bias = nn.Parameter(torch.empty(self.kv_heads * self.width)) if lone else None
        self.out = Linear(self.heads * self.width, dim, bias=config.bias)
        self.q_norm = make_norm(config.qk_norm, self.width) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config.qk_norm, self.width) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D), view.memory (B,S,D) -> (B,T,D)
        q = self.q_norm(self.q(x).unflatten(-1, (-1, self.width))).transpose(1, 2)  # (B,H,T,E)
        k, v = self.keys(view)
        return self.out(attend(q, k, v, view, scale=self.scale, layer=self.layer, part="cross"))

    def keys(self, view: View) -> tuple[Tensor, Tensor]:
        """(B,K,S,E) each, from the cache if they are there."""
        if view.kept is not None and self.layer in view.kept.layers:
            return view.kept.layers[self.layer]
        k, v = self.kv(view.memory).unflatten(-1, (2, -1, self.width)).unbind(2)  # (B,S,K,E)
        if self.v_bias is not None:
            v = v + self.v_bias.view(-1, self.width)
        k, v = self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        if view.kept is not None:
            view.kept.layers[self.layer] = (k, v)
        return k, v


def head_width(config: c.Attention, dim: int) -> int:
    """E: as said, or the width shared among the heads."""
    return config.head_dim or dim // config.heads


def attend(q: Tensor, k: Tensor, v: Tensor, view: View, *, scale: float | None, layer: int, part: str) -> Tensor:
    """(B,H,T,E), (B,K,S,E) twice -> (B,T,H*E), by the fused kernel, or by plain products where those are better."""
    grouped = q.shape[1] != k.shape[1]
    if view.record is None and not plain_is_faster(q, k):
        y = F.scaled_dot_product_attention(q, k, v, view.mask, is_causal=view.causal, scale=scale, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)  # (B,H,T,E) -> (B,T,H*E)
    if grouped:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))  # (B,K,S,E) -> (B,H,S,E)
    scores = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)  # (B,H,T,S)
    if view.mask is not None:
        scores = scores.add_(view.mask)
    if view.causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    weights = scores.softmax(-1)
    if view.record is not None:
        view.record.add(layer, part, weights)
    return (weights @ v).transpose(1, 2).flatten(2)


def plain_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether to compute by plain products: on CPUs the fused kernel's backward is slow, and so are single queries.

    Forward and backward took 22 to 25 ms fused against 7 to 13 plain, at 2,048 tokens in rows of 128 or 256; 43 against
    22 in rows of 512 (bf16, 3 heads of 64, one core). Longer rows would hold too much memory. One new token for each of
    512 rows after 70: 5.7 ms fused, 2.7 plain; of 16 rows after 300: 3.2 and 0.7 (4 heads of 32, 9 of 64, two cores).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return False
    return (q.requires_grad and k.shape[2] <= 512) or (q.shape[2] == 1 and q.shape[0] > 1)
