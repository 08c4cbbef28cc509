from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weft.errors import RecipeError
from weft.recipe import TrainOptions, TrainRecipe
from weft.train.optim import Muon, Optimizer, hidden_matrices, orthogonalize
from weft.train.schedule import factor


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.stack = nn.ModuleList([nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 8), nn.Embedding(3, 8)])
        self.head = nn.Linear(8, 11)

    def stack_modules(self):
        return [self.stack]

    def forward(self, ids):
        x = self.table(ids) + self.stack[3](ids % 3)
        return self.head(self.stack[2](self.stack[1](self.stack[0](x))))


def test_orthogonalize_brings_every_singular_value_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (2, 32, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert values.min() > 0.3 and values.max() < 1.3, (shape, values)
    assert torch.linalg.svdvals(torch.randn(16, 16)).max() > 3, "control: a random matrix is far from orthogonal"


def test_orthogonalize_keeps_the_singular_vectors():
    torch.manual_seed(1)
    g = torch.randn(1, 12, 20)
    u, _, vh = torch.linalg.svd(g[0], full_matrices=False)
    inner = u.T @ orthogonalize(g)[0].float() @ vh.T  # diagonal where the vectors are kept
    off = inner - torch.diag(inner.diagonal())
    assert off.abs().max() < 0.05 and inner.diagonal().min() > 0.3


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_the_batched_muon_is_torchs_own(shape):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    a = Muon(mine, lr=0.02, momentum=0.95, weight_decay=0.01)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.01)
    start = [p.detach().clone() for p in mine]
    for _ in range(4):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn(shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, s in zip(mine, theirs, start, strict=True):
        moved = (q - s).abs().max()
        assert moved > 0.01 and (p - q).abs().max() < 0.02 * moved, "the same up to the rounding of bfloat16"


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="shape"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)


def test_only_linear_maps_inside_the_stacks_are_muons():
    model = Small()
    assert set(hidden_matrices(model)) == {"stack.0.weight", "stack.2.weight"}
    optimizer = Optimizer(model, TrainRecipe())
    ids = [id(p) for o in optimizer.optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters()), "every parameter is in one group, once"
    decayed = {id(p) for o in optimizer.optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {"stack.0.weight", "stack.2.weight", "head.weight"}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_and_load_go_on_bit_for_bit(name):
    recipe = TrainRecipe(optimizer=name, lr=0.01)

    def steps(model, optimizer, start, count):
        for step in range(start, start + count):
            g = torch.Generator().manual_seed(step)
            ids = torch.randint(0, 11, (16,), generator=g)
            nn.functional.cross_entropy(model(ids), ids).backward()
            optimizer.step(1 / step)

    torch.manual_seed(0)
    whole = Small()
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    steps(whole, Optimizer(whole, recipe), 1, 6)
    first = Small()
    first.load_state_dict(start)
    optimizer = Optimizer(first, recipe)
    steps(first, optimizer, 1, 3)
    second = Small()
    second.load_state_dict(first.state_dict())
    fresh = Optimizer(second, recipe)
    fresh.load(optimizer.state())
    steps(second, fresh, 4, 3)
    for (n, p), q in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), n
        assert not torch.equal(p, start[n]), f"{n} was trained"


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(RecipeError, match="muon"):
        Optimizer(Small(), TrainRecipe(optimizer="muno"))


@given(st.integers(1, 3000), st.sampled_from(["wsd", "cosine", "constant"]), st.floats(0, 0.5), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_rate_is_never_zero_and_never_above_one(steps, name, warmup, decay):
    recipe = TrainRecipe(steps=steps, schedule=name, options=TrainOptions(warmup=warmup, decay=decay))
    rates = [factor(step, recipe) for step in range(1, steps + 1)]
    assert all(0 < r <= 1 for r in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_the_shapes_of_the_schedules():
    recipe = TrainRecipe(steps=100, options=TrainOptions(warmup=0.1, decay=0.4))
    assert factor(1, recipe) == pytest.approx(1 / 11) and factor(11, recipe) == 1 and factor(60, recipe) == 1
    assert factor(100, recipe) == pytest.approx(1 / 41)
    cosine = replace(recipe, schedule="cosine")
    assert factor(11, cosine) == 1 and factor(56, cosine) == pytest.approx(0.5) and factor(100, cosine) < 0.001
    assert factor(100, replace(recipe, schedule="constant")) == 1
    with pytest.raises(RecipeError, match="'cosine'"):
        factor(1, replace(recipe, schedule="cosin"))
    assert math.isclose(factor(1, replace(recipe, steps=1)), 0.5) or factor(1, replace(recipe, steps=1)) == 1
