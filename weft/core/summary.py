"""How large a model is and what a token costs, told from its config alone (for forecasts and reports).

Shape letters:  S tokens that a token sees  E features of a head  H heads
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from weft.core import config as c
from weft.core.attention import head_width
from weft.core.stack import Stack


@dataclass(frozen=True)
class Summary:
    """parameters  all of them, shared ones once
    matrices      those that each token is multiplied with (tables are looked up, not multiplied)
    forward       floating-point operations of one token's forward: 2 per weight, and 4 S H E per attention
    """

    parameters: int
    matrices: int
    forward: float

    @property
    def training(self) -> float:
        """Operations of one token's forward and backward: three times the forward (Kaplan et al. 2020)."""
        return 3 * self.forward


def summary(model: nn.Module, length: int) -> Summary:
    """Of `model` (it may be on the meta device) at `length` tokens a row: attention is counted over the whole row.

    Media stems are left out of `forward`: they meet media tokens only. A head counts for every token, though a training
    step meets it at trained places only.
    """
    parameters = sum(p.numel() for p in model.parameters())
    heads: nn.Module | None = getattr(model, "heads", None)
    multiplied = sum(_weights(module) for module in model.modules() if isinstance(module, Stack))
    multiplied += sum(p.numel() for p in heads.parameters() if p.dim() == 2) if heads is not None else 0
    attention = 0.0
    for module in model.modules():
        if isinstance(module, Stack):
            attention += _attention(module.config, length)
    return Summary(parameters, multiplied, 2 * multiplied + attention)


def _weights(stack: Stack) -> int:
    """Weights of a stack's matrices that one token meets: one part of a PerModality."""
    total = sum(m.weight.numel() for m in stack.modules() if isinstance(m, nn.Linear))
    part = stack.config.feedforward
    if isinstance(part, c.PerModality) and isinstance(part.part, c.FeedForward):
        one = part.part.hidden * stack.config.dim * (3 if part.part.gated else 2)
        total -= stack.config.depth * one * len(part.kinds)
    return total


def _attention(config: c.StackConfig, length: int) -> float:
    """Operations per token of scores and sums, in all layers."""
    layers = [(config.attention, config.depth)]
    if config.cross is not None:
        across = config.cross.attention if isinstance(config.cross, c.GatedCross) else config.cross
        layers.append((across, -(-config.depth // config.cross_every)))
    return sum(4.0 * length * a.heads * head_width(a, config.dim) * count for a, count in layers)
