"""Feed-forward: each token thinks by itself.

Shape letters:  B rows  T tokens  D width  M hidden width
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.layers import Linear
from weft.core.mask import View
from weft.core.norm import make_norm
from weft.errors import RecipeError, nearest

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016; CLIP
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021 (Primer)
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """D -> M -> D. Gated: one matrix holds the gate's rows, then the others (Shazeer 2020)."""

    def __init__(self, config: c.FeedForward, dim: int) -> None:
        super().__init__()
        if config.activation not in ACTIVATIONS:
            raise RecipeError(
                f"Activation {config.activation!r} is not known.{nearest(config.activation, ACTIVATIONS)}"
            )
        self.gated, self.activation = config.gated, ACTIVATIONS[config.activation]
        self.up = Linear(dim, config.hidden * (2 if config.gated else 1), bias=config.bias)
        self.down = Linear(config.hidden, dim, bias=config.bias)

    def forward(self, x: Tensor, view: View | None = None) -> Tensor:  # (B,T,D) -> (B,T,D)
        h = self.up(x)
        if self.gated:
            gate, h = h.chunk(2, -1)
            return self.down(self.activation(gate) * h)
        return self.down(self.activation(h))


class PerModality(nn.Module):
    """Tokens of each kind through their own copy: the first for text, one for each of the named kinds."""

    def __init__(self, config: c.PerModality, dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({kind: self.make(config.part, dim) for kind in ("text", *config.kinds)})

    @staticmethod
    def make(part: c.FeedForward | c.LayerNorm | c.RMSNorm, dim: int) -> nn.Module:
        return FeedForward(part, dim) if isinstance(part, c.FeedForward) else make_norm(part, dim)

    def forward(self, x: Tensor, view: View) -> Tensor:  # (B,T,D) -> (B,T,D)
        if not view.kinds:
            return self.parts["text"](x)
        flat, out = x.flatten(0, -2), torch.empty_like(x).flatten(0, -2)  # (B*T,D)
        for part, at in zip(self.parts.values(), view.kinds, strict=True):
            out = out.index_copy(0, at, part(flat.index_select(0, at)))
        return out.view_as(x)


def make_feedforward(config: c.FeedForward | c.PerModality, dim: int) -> nn.Module:
    """The module of a feed-forward part."""
    return PerModality(config, dim) if isinstance(config, c.PerModality) else FeedForward(config, dim)
