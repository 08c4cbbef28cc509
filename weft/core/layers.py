"""Torch's layers without their own start: memory is taken and left as it is, until `init.initialise` fills all of it.

(Torch's own start would be thrown away, and on the meta device it imports the compiler: seconds, to count parameters.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Left to `init`."""


class Embedding(nn.Embedding):
    """rows: where only the last rows of a table are trained, they are a parameter of their own; else None."""

    rows: nn.Parameter | None

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim)
        self.register_parameter("rows", None)

    def reset_parameters(self) -> None:
        """Left to `init`."""

    def forward(self, input: Tensor) -> Tensor:
        if self.rows is None:
            return super().forward(input)
        first = self.num_embeddings - len(self.rows)
        new = F.embedding((input - first).clamp(min=0), self.rows)
        return torch.where((input >= first)[..., None], new, super().forward(input))


class Conv1d(nn.Conv1d):
    def reset_parameters(self) -> None:
        """Left to `init`."""


class Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Left to `init`."""
