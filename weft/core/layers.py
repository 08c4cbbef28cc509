"""Torch's layers without their own start: memory is taken and left as it is, until `init.initialise` fills all of it.

(Torch's own start would be thrown away, and on the meta device it imports the compiler: seconds, to count parameters.)
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Left to `init`."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Left to `init`."""


class Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Left to `init`."""
