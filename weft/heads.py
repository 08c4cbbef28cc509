"""From hidden states to answers.

Shape letters:  D width  V vocabulary  C classes; heads work on any leading shape
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.layers import Linear
from weft.core.norm import make_norm


class Language(nn.Module):
    """(...,D) -> (...,V): by the input's table when tied; BERT puts a dense layer, GELU and a norm before it.

    rows: where only the last rows of the matrix are trained, they are a parameter of their own; else None.
    """

    rows: nn.Parameter | None

    def __init__(self, config: c.Language, dim: int, table: nn.Embedding) -> None:
        super().__init__()
        self.scale = config.scale
        self.dense = Linear(dim, dim) if config.transform else None
        self.norm = make_norm(config.transform, dim) if config.transform else None
        self.weight = table.weight if config.tied else nn.Parameter(torch.empty(config.vocab, dim))
        self.bias = nn.Parameter(torch.empty(config.vocab)) if config.bias else None
        self.register_parameter("rows", None)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.rows is None:
            return F.linear(self.ready(hidden), self.weight, self.bias)
        ready, old = self.ready(hidden), self.weight[: len(self.weight) - len(self.rows)]
        logits = torch.cat((F.linear(ready, old), F.linear(ready, self.rows)), -1)  # (...,V-n), (...,n) -> (...,V)
        return logits if self.bias is None else logits + self.bias

    def ready(self, hidden: Tensor) -> Tensor:
        """(...,D) -> (...,D): all but the last product."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(F.gelu(self.dense(hidden)))
        return hidden if self.scale == 1.0 else hidden * self.scale


class Classify(nn.Module):
    """(...,D) -> (...,C), with a tanh layer between if it has one."""

    def __init__(self, config: c.Classify, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, config.hidden) if config.hidden else None
        self.out = Linear(config.hidden or dim, config.classes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden if self.dense is None else torch.tanh(self.dense(hidden)))


def make_head(config: c.Language | c.Classify, dim: int, table: nn.Embedding) -> nn.Module:
    """The module of a head on hidden states of width `dim`; `table` is the input's embedding."""
    return Language(config, dim, table) if isinstance(config, c.Language) else Classify(config, dim)
