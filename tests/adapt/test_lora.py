"""Adapters: start as the base, learn, merge exactly, lie side by side."""

from __future__ import annotations

import pytest
import torch

from weft import families
from weft.adapt import lora
from weft.adapt.lora import Lora
from weft.core.view import Tokens
from weft.errors import RecipeError
from weft.model import Model, build

IDS = torch.arange(24).reshape(2, 12)


def tiny(family: str = "llama", **options) -> Model:
    config = families.make(family, vocab=97, length=32, dim=32, depth=2, heads=4, options=options)
    return build(config, seed=3).eval()


def scores(model: Model) -> torch.Tensor:
    return model.logits(model.hidden(Tokens(IDS)))


def disturb(model: Model) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".adapters." in name:
                p += 0.3 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt", "bert"])
def test_an_adapter_starts_as_its_base_and_merges_exactly(family: str, dora: bool) -> None:
    model = tiny(family)
    before = scores(model)
    lora.attach(model, Lora(rank=4, alpha=8.0, dora=dora))
    assert torch.equal(scores(model), before), "zero start"
    disturb(model)
    adapted = scores(model)
    assert (adapted - before).abs().max() > 1e-3, "the disturbed adapter does something"
    with lora.using(model, ""):
        assert torch.equal(scores(model), before), "switched off it is the base to the bit"
    lora.merge(model)
    assert not lora.adapters(model)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in tiny(family).named_parameters()}
    torch.testing.assert_close(scores(model), adapted, atol=2e-5, rtol=1e-5)


def test_patterns_choose_whole_matrices_or_parts_of_fused_ones() -> None:
    model = tiny(kv_heads=2)
    assert set(lora.targets(model, ["attn.qkv"])) == {f"body.stack.blocks.{i}.attn.qkv" for i in (0, 1)}
    assert set(lora.targets(model, ["attn.qkv.v"]).values()) == {("v",)}
    assert set(lora.targets(model, ["blocks.1.*.q"])) == {"body.stack.blocks.1.attn.qkv"}
    every = lora.targets(model, ["all"])
    assert every == lora.targets(model, ["stack.*.ffn.*", "attn"]), "all is every linear part of the stacks"
    assert every["body.stack.blocks.0.ffn.up"] == ("gate", "up")


def test_a_pattern_that_fits_nothing_names_near_ones() -> None:
    with pytest.raises(RecipeError, match=r"'attn.qvk' fits no part.*Did you mean 'attn.qkv'"):
        lora.targets(tiny(), ["attn.qvk"])


def test_only_the_chosen_parts_change() -> None:
    model = tiny()
    lora.attach(model, Lora(rank=2, target=("attn.qkv.v",)))
    disturb(model)
    matrix = model.get_submodule("body.stack.blocks.0.attn.qkv")
    changed = (matrix.merged("default") - matrix.weight).abs().amax(1) > 0  # (O,)
    assert not changed[:64].any() and changed[64:].all()


def test_several_adapters_lie_side_by_side() -> None:
    model = tiny()
    base = scores(model)
    lora.attach(model, Lora(rank=2), "one")
    lora.attach(model, Lora(rank=3, target=("ffn",)), "two", seed=1)
    disturb(model)
    found = {}
    for name in ("one", "two", ""):
        with lora.using(model, name):
            found[name] = scores(model)
    assert torch.equal(found[""], base)
    assert not torch.allclose(found["one"], found["two"])
    assert lora.active(model) == "two"
    with pytest.raises(RecipeError, match=r"no adapter 'tow'.*'two'"):
        lora.use(model, "tow")


def test_gradients_reach_adapters_and_nothing_else_when_the_base_is_frozen() -> None:
    model = tiny()
    model.requires_grad_(False)
    lora.attach(model, Lora(rank=2, dora=True))
    scores(model).square().mean().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (".adapters." in name), name
    zero = [n for n, p in model.named_parameters() if ".adapters." in n and ".b." in n and not p.grad.any()]
    assert not zero
