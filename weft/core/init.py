"""How weights start, in one place.

    matrices      normal, std of the config, or fan_in^-1/2
    last matrix of a residual part (out, down)    the same, times what `Init.residual` says
    tables        normal; norms 1; biases 0
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.stack import Stack
from weft.errors import RecipeError

RESIDUAL = ("attn.out.weight", "cross.out.weight", "down.weight")


@torch.no_grad()
def initialise(model: nn.Module, config: c.Init, seed: int | None = None) -> None:
    """Set every parameter of `model`, in order of name. The same seed gives the same bits on every device."""
    if config.residual not in ("plain", "scaled", "zero"):
        raise RecipeError(f"Init.residual is 'plain', 'scaled' or 'zero', not {config.residual!r}.")
    generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
    parts = 0.0
    for module in model.modules():
        if isinstance(module, Stack):
            parts = max(parts, sum(3.0 if block.crosses else 2.0 for block in module.blocks))
    scale = {"plain": 1.0, "scaled": max(parts, 1.0) ** -0.5, "zero": 0.0}[config.residual]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            fill(parameter, config.embedding, generator)
        elif parameter.dim() >= 2:
            std = config.std or parameter[0].numel() ** -0.5
            fill(parameter, std * (scale if name.endswith(RESIDUAL) else 1.0), generator)
        elif name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("weight"):
            parameter.fill_(1.0)
        elif not name.endswith("temperature"):
            raise RecipeError(f"No rule says how {name!r} {tuple(parameter.shape)} starts.")


def fill(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Normal numbers, drawn on the CPU so that devices agree."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
