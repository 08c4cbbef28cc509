"""A table that a head shares with the input is one tensor: on the meta device, in memory, and after an update."""

from __future__ import annotations

import pytest
import torch

from weft import families
from weft.model import build


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_what_is_shared_stays_shared(name: str) -> None:
    stems = {"image": 12} if families.FAMILIES[name].media else {}
    config = families.make(name, vocab=60, length=16, dim=32, depth=1, heads=2, stems=stems)
    planned, built = build(config, device="meta"), build(config, seed=0)
    assert [n for n, _ in built.named_parameters()] == [n for n, _ in planned.named_parameters()]
    assert sum(p.numel() for p in built.parameters()) == sum(p.numel() for p in planned.parameters())


def test_an_update_of_the_table_is_seen_by_its_head() -> None:
    model = build(families.make("llama", vocab=60, length=16, dim=32, depth=1, heads=2, options={"tied": True}), seed=0)
    table, head = model.body.input.table.weight, model.heads["language"].weight
    assert table is head
    untied = build(families.make("llama", vocab=60, length=16, dim=32, depth=1, heads=2), seed=0)
    assert untied.heads["language"].weight is not untied.body.input.table.weight
    with torch.no_grad():
        table.add_(1.0)
    hidden = torch.ones(1, 32)
    assert torch.allclose(model.logits(hidden), hidden @ table.T)
