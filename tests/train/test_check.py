"""The checks are red when they should be: each is shown a model, a loader or a table with that very fault."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny import ARROWS, SMALL, table

from weft.data import pack
from weft.data.sources import open_table
from weft.errors import CheckError
from weft.train import check as check_command
from weft.train import loop
from weft.train.prepare import prepare
from weft.train.session import make_recipe

module = sys.modules["weft.train.check"]


def bench(folder: Path, *arrows: str, family: str = "weft"):
    recipe, _ = make_recipe(table(folder, 120), arrows or ARROWS, family=family, overrides=[*SMALL, "train.steps=5"])
    return module.small(recipe, prepare(recipe, open_table(recipe.data)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return bench(tmp_path_factory.mktemp("check"))


@pytest.mark.parametrize(
    ("family", "arrows"),
    [
        ("weft", ARROWS),
        ("gpt", ARROWS),
        ("t5", ("~note", "question -> answer")),
        ("bert", ("~note", "question -> answer")),
        ("clip", ("question <-> note",)),
    ],
)
def test_every_kind_of_model_is_proven(tmp_path, family, arrows):
    found = check_command(table(tmp_path, 120), *arrows, family=family, overrides=SMALL)
    assert found.ok and len(found.findings) == len(module.CHECKS) == 9
    assert [f["name"] for f in found.as_dict()] == [f.name for f in found.findings]
    assert str(found).count("  ok ") == 9


def assert_red(finding, *words: str) -> None:
    assert not finding.ok, finding
    for word in words:
        assert word in finding.detail


def test_a_head_that_already_prefers_something(world, monkeypatch):
    real = type(world).model

    def model(self):
        built = real(self)
        with torch.no_grad():
            built.heads["language"].weight.normal_(std=3.0)
        return built

    monkeypatch.setattr(type(world), "model", model)
    assert_red(module.starting_loss(world), "guessing gives")


def test_padding_that_is_seen(world, monkeypatch):
    real = module.narrow
    monkeypatch.setattr(module, "narrow", lambda batch: shifted(real(batch)))

    def shifted(batch):  # as if the last token of each sample were padding
        batch.tokens.document[:, -2:] = 7
        return batch

    assert_red(module.padding(world), "row ", "padding changes the loss")


@pytest.mark.parametrize("part", ["document", "branch", "positions"])
def test_documents_that_see_each_other_or_stand_elsewhere(world, monkeypatch, part):
    real = pack.collate

    def collate(rows, height, length):
        stream = real(rows, height, length)
        if part == "document":
            stream.tokens.document.clamp_(max=1)
        if part == "branch" and len(rows) == 1:
            stream.tokens.branch[:, 1:3] = 3  # hidden from the trunk
        if part == "positions" and len(rows) == 1:
            stream.tokens.positions *= 2
        return stream

    assert module.packing(world).ok
    monkeypatch.setattr(pack, "collate", collate)
    assert_red(module.packing(world), "row ", "packing changes the loss")


def test_a_loss_that_is_averaged_per_batch(world, monkeypatch):
    real = module.OBJECTIVES["next"]

    def mean(model, batch):
        loss, report = real(model, batch)
        return loss * batch.total / max(1.0, float(report["counts"].sum())), report

    monkeypatch.setitem(module.OBJECTIVES, "next", mean)
    assert_red(module.accumulation(world), "row by row")


def test_a_cache_that_forgets(world, monkeypatch):
    from weft.core.cache import Growing

    real = Growing.extend

    def extend(self, layer, key, value):
        k, v = real(self, layer, key, value)
        return k, torch.cat([torch.zeros_like(v[:, :, :1]), v[:, :, 1:]], 2)

    monkeypatch.setattr(Growing, "extend", extend)
    assert_red(module.decoding(world), "row ", "a cache changes hidden states")


def test_a_row_that_trains_nothing(world, monkeypatch):
    real = world.prepared.renderer.render

    def render(record, arrow, *, row=-1, **words):
        sample = real(record, arrow, row=row, **words)
        if record["note"] == note:
            object.__setattr__(sample, "spans", tuple(s for s in sample.spans if not s.loss))
        return sample

    world.prepared.split[17] = "train"
    note = world.prepared.table.row(17)["note"]
    monkeypatch.setattr(world.prepared.renderer, "render", render)
    assert_red(module.every_row(world), "row 17 trains no token")


def test_a_tensor_that_nothing_trains(world, monkeypatch):
    real = type(world).model

    def model(self):
        built = real(self)
        built.forgotten = torch.nn.Parameter(torch.ones(3))
        return built

    monkeypatch.setattr(type(world), "model", model)
    assert_red(module.gradients(world), "forgotten")


def test_weights_that_are_not_saved(world, monkeypatch):
    from weft.train import checkpoint

    monkeypatch.setattr(checkpoint, "fill", lambda model, tensors: None)
    assert_red(module.saving(world), "loaded weights change hidden states")


@pytest.mark.parametrize("fault", ["optimizer", "place"])
def test_a_resume_that_forgets(world, monkeypatch, fault):
    if fault == "optimizer":
        monkeypatch.setattr(module.Optimizer, "load", lambda self, states: None)
    else:
        real = loop.restore

        def restore(session, say):
            real(session, say)
            session.state.step += 1
            return True

        monkeypatch.setattr(module, "restore", restore)
    assert_red(module.resume(world), "in one go")


def test_red_stops_a_training_with_a_check_error(tmp_path, monkeypatch):
    from weft.train import train

    broken = module.Finding("rows", False, "row 3 trains no token")
    monkeypatch.setattr(module, "CHECKS", (lambda bench: broken,))
    overrides = [word for word in SMALL if "check" not in word]
    with pytest.raises(CheckError, match="row 3 trains no token"):
        train(table(tmp_path, 60), *ARROWS, out=tmp_path / "run", steps=2, overrides=overrides)
    assert not (tmp_path / "run" / "model.safetensors").exists()
