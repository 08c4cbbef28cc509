"""Norms by their config. Like every part of a block they take (x, view); only a PerModality norm looks at the view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.mask import View


class RMSNorm(nn.Module):
    """x / rms(x), times a learned weight if it has one."""

    def __init__(self, config: c.RMSNorm, dim: int) -> None:
        super().__init__()
        self.dim, self.eps = dim, config.eps
        self.weight = nn.Parameter(torch.empty(dim)) if config.weight else None

    def forward(self, x: Tensor, view: View | None = None) -> Tensor:
        weight = self.weight if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, (self.dim,), weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """In the dtype of its input: under autocast nothing is widened."""

    def reset_parameters(self) -> None:
        """Left to `init`."""

    def forward(self, x: Tensor, view: View | None = None) -> Tensor:
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def make_norm(config: c.LayerNorm | c.RMSNorm, dim: int) -> nn.Module:
    """The module of a norm over the last `dim` features."""
    if isinstance(config, c.RMSNorm):
        return RMSNorm(config, dim)
    return LayerNorm(dim, config.eps, bias=config.bias)
