"""Training from weights that are there: what stays, what is new, what trains; resumed bit for bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weft
from weft.adapt import lora
from weft.arrows.render import LAYOUT
from weft.errors import RecipeError, RunError
from weft.run import Run
from weft.train.session import make_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import tiny

QUICK = [word for word in tiny.SMALL if not word.startswith("model.")]
ADAPT = ["model.lora.rank=4", 'model.lora.target=["attn", "ffn"]']


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A table, and a run of one of its columns to start from."""
    folder = tmp_path_factory.mktemp("adapt")
    data = str(tiny.table(folder / "data"))
    weft.train(data, "-> note", out=folder / "base", steps=4, overrides=list(tiny.SMALL))
    return data, folder


def tuned(world: tuple[str, Path], name: str, *overrides: str, arrows=tiny.ARROWS, steps: int = 4) -> Run:
    data, folder = world
    out = folder / name
    if (out / "recipe.toml").exists():
        return Run.open(out)
    words = [f'model.source="{folder / "base"}"', *QUICK, *overrides]
    return weft.train(data, *arrows, out=out, steps=steps, overrides=words)


def test_the_vocabulary_keeps_its_ids_and_grows(world) -> None:
    run = tuned(world, "full")
    before, after = Run.open(world[1] / "base").renderer.vocabulary, run.renderer.vocabulary
    assert after.block("text") == before.block("text") and after.marker("note") == before.marker("note")
    assert after.marker("answer") >= before.size and after.block("label:answer").start >= before.size
    base, source = load_file(run.path / "base.safetensors"), load_file(world[1] / "base" / "model.safetensors")
    for name in ("body.input.table.weight", "heads.language.weight"):
        assert torch.equal(base[name][: before.size], source[name])
        torch.testing.assert_close(base[name][before.size :], source[name].mean(0).expand(5, -1))
    name = "body.stack.blocks.0.attn.qkv.weight"
    assert torch.equal(base[name], source[name])
    assert not torch.equal(load_file(run.path / "model.safetensors")[name], source[name]), "all of it was trained"


def test_rates_are_gentle_unless_they_are_said(world) -> None:
    data, folder = world
    of = lambda *words: make_recipe(data, ["-> note"], overrides=[f"model.source={folder / 'base'}", *words])[0].train
    assert (of().optimizer, of().lr) == ("adamw", 1e-4)
    assert of("model.lora.rank=2").lr == 1e-3
    assert (of("train.lr=0.02").optimizer, of("train.lr=0.02").lr) == ("muon", 0.02)


def test_adapters_train_and_nothing_else(world) -> None:
    run = tuned(world, "lora", *ADAPT)
    saved = load_file(run.path / "model.safetensors")
    assert all(".adapters." in name or name.endswith(".rows") for name in saved), list(saved)
    state = torch.load(next(run.path.glob("checkpoints/*/optimizer.pt")), weights_only=True)
    assert sum(len(one["state"]) for one in state) == len(saved), "optimiser state for what trains, and only that"
    model = run.model()
    matrix = model.get_submodule("body.stack.blocks.0.attn.qkv")
    source = load_file(world[1] / "base" / "model.safetensors")
    assert torch.equal(matrix.weight, source["body.stack.blocks.0.attn.qkv.weight"])
    assert matrix.adapters["default"].b["q"].any()


def test_a_run_of_adapters_can_be_started_from(world) -> None:
    first = tuned(world, "lora", *ADAPT)
    data, folder = world
    words = [f'model.source="{first.path}"', *QUICK]
    again = weft.train(data, *tiny.ARROWS, out=folder / "again", steps=1, overrides=words)
    assert again.renderer.vocabulary == first.renderer.vocabulary, "nothing new, nothing appended"
    from weft.adapt.source import merged

    base = load_file(again.path / "base.safetensors")
    for name, tensor in merged(first).items():
        assert torch.equal(base[name], tensor), name


@pytest.mark.parametrize("words", [ADAPT, ["train.freeze=['body.input', 'attn']"], []], ids=["lora", "freeze", "full"])
def test_a_resumed_run_gives_the_same_bits(world, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = world[1]
    name = "r" + str(len("".join(words)))
    keep = ["train.options.save_every=3", "train.options.keep=9"]
    whole = tuned(world, name, *words, *keep, steps=6)
    half = folder / (name + "-half")
    shutil.copytree(whole.path, half)
    shutil.rmtree(half / "checkpoints" / "step-000006")
    lines = [line for line in (half / "metrics.jsonl").read_text().splitlines() if '"event": "end"' not in line]
    (half / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    weft.train(resume=half)
    one, other = load_file(whole.path / "model.safetensors"), load_file(half / "model.safetensors")
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_frozen_parts_stay(world) -> None:
    run = tuned(world, "frozen", "train.freeze=['body.input', 'attn']")
    base, saved = load_file(run.path / "base.safetensors"), load_file(run.path / "model.safetensors")
    assert not any(".attn." in name or name.startswith("body.input") for name in saved)
    model = dict(run.model().named_parameters())
    for name, tensor in base.items():
        assert torch.equal(model[name], saved.get(name, tensor))
        assert torch.equal(model[name], tensor) == (name not in saved), name


def test_patterns_that_fit_nothing_stop(world) -> None:
    for words, message in (
        (["train.freeze=['body.imput']"], "train.freeze: 'body.imput'.*'body.input'"),
        (["train.parts.haeds=2.0"], "train.parts: 'haeds'.*'heads'"),
        (["model.lora.rank=2", 'model.lora.target=["qvk"]'], "lora target: 'qvk'.*'qkv'"),
    ):
        with pytest.raises(RecipeError, match=message):
            tuned(world, "none", *words)


def test_rates_by_part(world) -> None:
    from weft.train.optim import Optimizer

    run = tuned(world, "full")
    model = run.model()
    recipe = make_recipe(world[0], ["-> note"], overrides=["train.parts.heads=10", "train.parts.attn=0.5"])[0].train
    optimizer = Optimizer(model, recipe)
    rates = {
        id(p): rate
        for one, rates in zip(optimizer.optimizers, optimizer.rates, strict=True)
        for group, rate in zip(one.param_groups, rates, strict=True)
        for p in group["params"]
    }
    rate = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert rate["heads.language.weight"] == pytest.approx(0.03) and rate["body.input.table.weight"] == 0.003
    assert rate["body.stack.blocks.0.attn.qkv.weight"] == 0.01 and rate["body.stack.blocks.0.ffn.up.weight"] == 0.02


def test_what_cannot_be_started_from_says_so(world, tmp_path: Path) -> None:
    data, _ = world
    with pytest.raises(weft.WeftError, match="nowhere"):
        weft.plan(data, "-> note", overrides=[f"model.source={tmp_path / 'nowhere'}"])
    with pytest.raises(RecipeError, match="--from"):
        weft.train(data, "-> note", out=tmp_path / "x", steps=1, overrides=["model.lora.rank=2", *tiny.SMALL])
    run = tuned(world, "full")
    broken = tmp_path / "broken"
    shutil.copytree(run.path, broken)
    (broken / "start.json").write_text(json.dumps({"source": "x"}))
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(broken).model()


def test_plan_says_what_is_trained(world) -> None:
    data, folder = world
    found = weft.plan(data, *tiny.ARROWS, overrides=[f'model.source="{folder / "base"}"', *QUICK, *ADAPT])
    assert 0 < found.trained < found.parameters / 2
    assert f"{found.trained:,} of them trained" in str(found)


def test_check_holds_from_weights(world) -> None:
    data, folder = world
    found = weft.check(data, *tiny.ARROWS, overrides=[f'model.source="{folder / "base"}"', *QUICK, *ADAPT])
    assert found.ok, str(found)
    assert lora.DEFAULT == "default"


def test_codes_stand_where_the_source_drew_them(tmp_path: Path) -> None:
    """A run from before rows and columns is gone on with in a line; one that begins anew is not."""
    picture = lambda shade: np.full((16, 16, 3), shade, np.uint8)
    rows = [{"word": "dark", "image": picture(9)}, {"word": "light", "image": picture(240)}]
    words = [*tiny.SMALL, "image.size=16", "image.codes=4", "image.codebook=4", "image.codec_steps=2"]

    def train(name: str, words: list[str]) -> Run:
        return weft.train(rows * 12, "word:text -> image", out=tmp_path / name, steps=1, overrides=words)

    first = train("first", words)
    assert first.renderer.layout == LAYOUT == 2
    told = json.loads((first.path / "renderer.json").read_text())
    (first.path / "renderer.json").write_text(json.dumps({**told, "layout": 1}))
    rest = [word for word in words if not word.startswith("model.")]
    second = train("second", [*rest, f'model.source="{first.path}"'])
    assert second.renderer.layout == 1
    told = json.loads((second.path / "codecs" / "report.json").read_text())["image"]
    assert told["codebook"] == 4 and told["pairs"] and "steps" not in told, "the source's codec, shown as it is"
    reads = weft.train(
        rows * 12, "image -> word:label", out=tmp_path / "third", steps=1,
        overrides=[*rest, f'model.source="{first.path}"'],
    )  # fmt: skip
    assert "image" in reads.renderer.codecs, "kept though nothing is drawn"
