"""Muon for the hidden matrices, AdamW for everything else.

Shape letters:  K matrices of one shape   M rows   N columns

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
orthogonal matrix, so that every direction learns at the same rate:

    gradient (M,N) -> momentum -> U S V'  ->  U V'     (the quintic Newton-Schulz iteration brings S near 1)

torch.optim.Muon goes matrix by matrix. A small model has dozens of small ones; here those of one shape are stacked and
iterated together. On one thread that takes the same time; on two threads that other work competes for, starting each
small product costs more than the product, and stacking was 4 to 17 times quicker (32 of 256 x 256; of 128 x 128).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from weft.adapt.freeze import factors
from weft.errors import RecipeError, nearest
from weft.recipe import TrainRecipe

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at zero, settles between 0.7 and 1.2
OPTIMIZERS = ("muon", "adamw")


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(K,M,N) -> (K,M,N) bfloat16, each with singular values near 1."""
    a, b, c = QUINTIC
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # (K,M,N) -> (K,M,M)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # ax + (b XX' + c (XX')²)x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum with Nesterov's look-ahead, for 2-D parameters only.

    The update of an (M,N) matrix is scaled by sqrt(max(1, M/N)), as in the original. Weight decay is decoupled.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices; a parameter of shape {tuple(p.shape)} came")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there; a parameter without one is left as it is."""
        for group in self.param_groups:
            for params in same_shape(p for p in group["params"] if p.grad is not None).values():
                grads = torch.stack([p.grad for p in params if p.grad is not None])  # (K,M,N)
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(buffers, list(grads.unbind()), 1 - group["momentum"])
                update = orthogonalize(grads.lerp_(torch.stack(buffers), group["momentum"]))
                rows, columns = params[0].shape
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_add_(params, list(update.to(params[0].dtype).unbind()), alpha=scale)


def same_shape(params: Iterable[Tensor]) -> dict[torch.Size, list[Tensor]]:
    """Parameters by shape, in a fixed order."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        shapes.setdefault(p.shape, []).append(p)
    return shapes


def hidden_matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear maps inside the model's stacks: what Muon is for. Tables, stems and heads are not."""
    inside = {id(m) for stack in model.stack_modules() for m in stack.modules()}  # type: ignore[operator]
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }


def by_rate(groups: list[dict[str, Any]], times: dict[int, float]) -> list[dict[str, Any]]:
    """Groups of parameters parted by the factors on their learning rates; empty ones are left out."""
    parted = []
    for group in groups:
        for factor in dict.fromkeys(times[id(p)] for p in group["params"]):
            mine = {**group, "params": [p for p in group["params"] if times[id(p)] == factor]}
            parted.append(mine if factor == 1.0 else {**mine, "times": factor})
    return parted


class Optimizer:
    """The optimisers of one model, stepped together.

    rates  for each group of each optimiser, the recipe's learning rate before the schedule's factor
    """

    def __init__(self, model: nn.Module, recipe: TrainRecipe) -> None:
        if recipe.optimizer not in OPTIMIZERS:
            raise RecipeError(f"train.optimizer is {recipe.optimizer!r}.{nearest(recipe.optimizer, OPTIMIZERS)}")
        decay = recipe.options.weight_decay
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        times = {id(named[name]): factor for name, factor in factors(model, recipe.parts).items()}
        hidden = {name: p for name, p in hidden_matrices(model).items() if name in named}
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        rest = [p for name, p in named.items() if name not in hidden]
        muon = recipe.optimizer == "muon"
        groups = [  # decay pulls matrices only: a norm's weight or a rare word's row has nothing to shrink for
            {"params": [p for p in rest if p.ndim >= 2 and id(p) not in tables], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2 or id(p) in tables], "weight_decay": 0.0},
        ]
        if not muon:
            groups.append({"params": list(hidden.values()), "weight_decay": decay})
        groups = by_rate(groups, times)
        self.optimizers: list[torch.optim.Optimizer] = []
        if groups:
            rate = recipe.adam_lr if muon else recipe.lr
            self.optimizers.append(torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-10, fused=True))
        if muon and hidden:
            turned = by_rate([{"params": list(hidden.values())}], times)
            self.optimizers.append(Muon(turned, lr=recipe.lr, weight_decay=decay))
        self.rates = [[g["lr"] * g.get("times", 1.0) for g in o.param_groups] for o in self.optimizers]
        self.params = list(named.values())

    def step(self, factor: float) -> None:
        """One update at `factor` times the recipe's rates; gradients are dropped after it."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        self.zero()

    def zero(self) -> None:
        """Drop the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """Tensors and plain numbers, for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load(self, states: list[dict[str, Any]]) -> None:
        """What `state` gave, back in place."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
