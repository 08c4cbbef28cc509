"""Tiny random models of transformers, and their weights as models of weft by its layouts, without a file between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from weft.convert.hf import converted, written
from weft.convert.layouts import find
from weft.convert.weights import assign
from weft.model import Model, build

VOCAB = 60
Pair = tuple[torch.nn.Module, Model]


@dataclass(frozen=True)
class Case:
    """theirs  class name and its config's; sizes that differ from `base`."""

    architecture: str
    config: str
    fields: dict[str, Any]


def ids(*shape: int, seed: int = 0, low: int = 3) -> Tensor:
    return torch.randint(low, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that every part is heard: biases, norms, tables."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def theirs(case: Case) -> torch.nn.Module:
    """Their model of a case, random and loud."""
    config = getattr(transformers, case.config)(**case.fields, attn_implementation="eager")
    torch.manual_seed(0)
    return loud(getattr(transformers, case.architecture)(config))


def raw(model: torch.nn.Module) -> dict[str, Any]:
    """Its config.json."""
    return {**model.config.to_dict(), "architectures": [type(model).__name__]}


def ours(model: torch.nn.Module, change: Callable[[dict[str, Tensor]], None] = lambda state: None) -> Model:
    """Our model with its weights, `change`d before they are read."""
    tree = raw(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    config, tensors = converted(tree, state)
    written(find(tree), config, tree)  # its config.json can be written again
    found = build(config, device="meta")
    assign(found, tensors)
    return found.eval()


def pair(case: Case) -> Pair:
    model = theirs(case)
    return model, ours(model)


def off(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, at the places that are real."""
    if where is not None:
        a, b = a[where > 0], b[where > 0]
    return (a - b).abs().max().item()
