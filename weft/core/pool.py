"""From the hidden states of a row to one vector.

Shape letters:  B rows  T tokens  D width  H heads  E features of a head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import Attention, attend
from weft.core.feedforward import FeedForward
from weft.core.layers import Linear
from weft.core.mask import View
from weft.core.norm import make_norm
from weft.core.pattern import additive
from weft.core.view import Tokens
from weft.errors import RecipeError, nearest

PLAIN = ("first", "last", "mean")


class Pool(nn.Module):
    """The first or last real token of each row, or the mean of them; or the first one of a certain id."""

    def __init__(self, where: str | c.AtToken) -> None:
        super().__init__()
        if isinstance(where, str) and where not in PLAIN:
            raise RecipeError(f"A row is read at {', '.join(PLAIN)}, not {where!r}.{nearest(where, PLAIN)}")
        self.where = where

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:  # (B,T,D) -> (B,D)
        if isinstance(self.where, c.AtToken):
            return at_token(hidden, tokens, self.where.token)
        return pool(hidden, tokens, self.where)


class AttentionPool(nn.Module):
    """A learned query looks across to the tokens; then it thinks."""

    def __init__(self, config: c.AttentionPool, dim: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, dim))
        self.attn = Attention(config.attention, dim, 0)
        self.norm = make_norm(config.norm, dim)
        self.ffn = FeedForward(config.feedforward, dim)

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:  # (B,T,D) -> (B,D)
        view, attn = View(), self.attn
        if tokens.document is not None:
            real = tokens.document > 0
            view.mask = additive((real | ~real.any(1, keepdim=True))[:, None], hidden.dtype)  # (B,1,1,T)
        asking = self.probe.to(hidden.dtype).expand(hidden.shape[0], 1, -1)
        q = attn.split(attn.qkv(asking))[0].transpose(1, 2)  # (B,H,1,E)
        k, v = (t.transpose(1, 2) for t in attn.split(attn.qkv(hidden))[1:])  # (B,K,T,E)
        x = attn.out(attend(q, k, v, view, scale=attn.scale, layer=0, part="pool"))  # (B,1,D)
        return (x + self.ffn(self.norm(x)))[:, 0]


def pool(hidden: Tensor, tokens: Tokens, where: str) -> Tensor:
    """(B,T,D) -> (B,D): the first or last real token of each row, or the mean of them."""
    if where == "mean":
        real = torch.ones_like(tokens.ids) if tokens.document is None else (tokens.document > 0)
        real = real[..., None].to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1).clamp(min=1)
    length = hidden.shape[1]
    if tokens.document is None:
        return hidden[:, 0 if where == "first" else length - 1]
    real = (tokens.document > 0).int()
    at = real.argmax(1) if where == "first" else length - 1 - real.flip(1).argmax(1)
    return hidden[torch.arange(at.shape[0], device=at.device), at]


def at_token(hidden: Tensor, tokens: Tokens, token: int) -> Tensor:
    """(B,T,D) -> (B,D) where the id stands first; at the last real token of a row that has none of it."""
    here = tokens.ids == token
    if tokens.document is not None:
        here = here & (tokens.document > 0)
    found = hidden[torch.arange(here.shape[0], device=here.device), here.int().argmax(1)]
    return torch.where(here.any(1, keepdim=True), found, pool(hidden, tokens, "last"))


def make_pool(config: c.Pool, tower: c.TowerConfig) -> nn.Module:
    """The module of a pool, on a tower's hidden states."""
    return AttentionPool(config, tower.stack.dim) if isinstance(config, c.AttentionPool) else Pool(config)


def make_project(config: c.Project | None, dim: int, width: int) -> nn.Module:
    """The matrix behind a pool. Raises RecipeError where there is none and the widths differ."""
    if config is not None:
        return Linear(dim, width, bias=config.bias)
    if dim != width:
        raise RecipeError(f"A tower of width {dim} without a matrix cannot reach a space of width {width}.")
    return nn.Identity()
