"""Adapters by name on one base; a run of adapters merged and exported."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

import weft
from weft.adapt.merge import plain
from weft.core.view import Tokens
from weft.errors import ConvertError, RunError
from weft.generate.predict import Predictor
from weft.run import Run

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import tiny

QUICK = [word for word in tiny.SMALL if not word.startswith("model.")]
ASK = [{"question": f"what colour is the {c} cat number 3?"} for c in tiny.COLOURS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters trained on it, and one on another base."""
    folder = tmp_path_factory.mktemp("shelf")
    data = str(tiny.table(folder / "data"))
    train = lambda name, *words, steps=3: weft.train(
        data, "question -> answer:text", out=folder / name, steps=steps, overrides=[*words]
    )
    train("base", *tiny.SMALL)
    train("other", *tiny.SMALL, "seed=9", steps=2)
    for name, source, seed in (("one", "base", 1), ("two", "base", 2), ("far", "other", 1)):
        lora = ["model.lora.rank=2", f"seed={seed}", "train.lr=0.05"]
        train(name, f'model.source="{folder / source}"', *QUICK, *lora, steps=6)
    (folder / "base" / "adapters").mkdir()
    shutil.copytree(folder / "one" / "adapter", folder / "base" / "adapters" / "one")
    return folder


def logits(model) -> torch.Tensor:
    return model.logits(model.hidden(Tokens(torch.arange(30)[None])))


def test_each_adapter_answers_as_its_own_run(world: Path) -> None:
    predictor = Predictor(world / "base")
    base = logits(predictor.model)
    found = {}
    for adapter, run in (("one", "one"), (str(world / "two"), "two"), ("one", "one")):
        predictor.use(adapter)
        found[run] = logits(predictor.model)
        torch.testing.assert_close(found[run], logits(Run.open(world / run).model()), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found["one"], found["two"])
    predictor.use("none")
    assert torch.equal(logits(predictor.model), base)
    run = world / "base"
    assert weft.predict(run, "question -> answer", ASK, adapter="one") == weft.predict(
        world / "one", "question -> answer", ASK
    )


def test_a_run_of_adapters_answers_as_its_base_too(world: Path) -> None:
    predictor = Predictor(world / "one", adapter="none")
    assert torch.equal(logits(predictor.model), logits(Run.open(world / "base").model()))
    predictor.use("")
    assert torch.equal(logits(predictor.model), logits(Run.open(world / "one").model()))


def test_another_base_and_no_adapter_at_all_stop(world: Path) -> None:
    with pytest.raises(ConvertError, match="made for another base"):
        Predictor(world / "base", adapter=str(world / "far"))
    with pytest.raises(RunError, match=r"no adapter 'oen'.*Did you mean 'one'"):
        Predictor(world / "base", adapter="oen")


def test_merged_it_is_one_plain_model(world: Path, tmp_path: Path) -> None:
    beside, merged = Run.open(world / "one").model(), plain(Run.open(world / "one").model())
    names = lambda model: {name for name, _ in model.named_parameters()}
    assert names(merged) == names(Run.open(world / "base").model())
    torch.testing.assert_close(logits(merged), logits(beside), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConvertError, match="--merge"):
        weft.export(world / "one", tmp_path / "x")
