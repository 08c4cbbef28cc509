"""How weights start, in one place.

matrices          normal, std of the config, or fan_in^-1/2
last matrices     of a residual part (out, down): the same, times `Init.residual`
query rows        where attention has a scale of its own: times E^-1/2 / scale, so that scores start alike (T5)
tables, heads     normal, stds of their own
norms 1, biases 0
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import Attention, CrossAttention
from weft.core.counted import Markov
from weft.core.stack import LayerScale, Stack
from weft.core.topology import DualEncoder
from weft.errors import RecipeError

RESIDUAL = ("attn.out.weight", "cross.out.weight", "down.weight")


@torch.no_grad()
def initialise(model: nn.Module, config: c.Init, seed: int | None = None) -> None:
    """Set every parameter of `model`, in order of name. The same seed gives the same bits on every device."""
    generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    parts = max((sum(3 if block.crosses else 2 for block in stack.blocks) for stack in stacks), default=1)
    residual = config.residual or max(parts, 1) ** -0.5
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # counted: it starts as its module says
        if id(parameter) in tables:
            fill(parameter, config.embedding, generator)
        elif name.endswith("language.weight"):
            fill(parameter, config.head, generator)
        elif parameter.dim() >= 2:
            std = config.std or parameter[0].numel() ** -0.5
            fill(parameter, std * (residual if name.endswith(RESIDUAL) else 1.0), generator)
        elif name.endswith("score_bias"):
            parameter.fill_(dual(model).config.bias or 0.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("_gate"):
            parameter.zero_()  # shut: tanh(0)
        elif name.endswith("weight"):
            parameter.fill_(1.0)
        elif name.endswith("sharpness"):
            parameter.fill_(-math.log(dual(model).config.temperature))
        else:
            raise RecipeError(f"No rule says how {name!r} {tuple(parameter.shape)} starts.")
    for module in model.modules():
        if isinstance(module, Markov):
            module.begin(generator)
        if isinstance(module, LayerScale):
            module.weight.fill_(module.start)
        if isinstance(module, Attention | CrossAttention) and module.scale is not None:
            rows = module.qkv.weight[: module.sizes[0]] if isinstance(module, Attention) else module.q.weight
            rows.mul_(module.width**-0.5 / module.scale)


def dual(model: nn.Module) -> DualEncoder:
    """The dual encoder, which says where its scores start."""
    return next(m for m in model.modules() if isinstance(m, DualEncoder))


def fill(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Normal numbers, drawn on the CPU so that devices agree."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
