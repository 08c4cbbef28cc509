from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny import ARROWS, SMALL, table

from weft.errors import DataError, RecipeError, RunError
from weft.run import Run
from weft.train import checkpoint, loop, session, train


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics("step")]


def same_weights(a: Run, b: Run) -> bool:
    one, two = (checkpoint.weights(run.model()) for run in (a, b))
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Run:
    """Twelve steps in one go."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return train(data, *ARROWS, out=out, steps=12, overrides=SMALL)


def test_a_run_directory_holds_all_that_is_promised(whole, data):
    there = {p.name for p in whole.path.iterdir()}
    promised = "recipe.toml config.json model.safetensors tokenizer.json renderer.json checkpoints metrics.jsonl"
    assert {*promised.split(), "card.md", "command.txt"} <= there
    assert whole.recipe.train.steps == 12 and whole.recipe.types == {
        "question": "text",
        "answer": "label",
        "note": "text",
    }
    assert whole.recipe.text.vocabulary > 256 and Path(whole.recipe.data) == data
    assert [line["step"] for line in whole.metrics("step")] == list(range(1, 13))
    first, last = (
        line["validation"]["loss"] for line in (whole.metrics("validation")[0], whole.metrics("validation")[-1])
    )
    assert last < first, "it learns"
    events = {line["event"] for line in whole.metrics("event")}
    assert events == {"start", "blind", "end"}
    assert {name for line in whole.metrics("step") for name in line["arrows"]} == set(ARROWS)
    assert "12 steps" in (whole.path / "card.md").read_text()
    start, end = whole.metrics("event")[0], whole.metrics("event")[-1]
    for key in ("seconds", "memory"):
        assert end["hit"][key] == pytest.approx(end[key] / start["forecast"][key]), "the forecast is held against it"


def test_a_run_is_opened_again_as_it_was(whole):
    again = Run.open(whole.path)
    assert again.recipe == whole.recipe and same_weights(again, whole)
    assert [str(a) for a in again.arrows] == list(ARROWS)
    assert again.renderer.vocabulary == whole.renderer.vocabulary and (again.split == whole.split).all()


def test_the_same_recipe_and_seed_give_the_same_bits_and_another_seed_does_not(whole, data, tmp_path):
    again = train(data, *ARROWS, out=tmp_path / "again", steps=12, overrides=SMALL)
    assert losses(again) == losses(whole) and same_weights(again, whole)
    other = train(data, *ARROWS, out=tmp_path / "other", steps=12, overrides=[*SMALL, "seed=1"])
    assert losses(other) != losses(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_a_resume_repeats_the_rest(
    whole, data, tmp_path, monkeypatch, number, capsys
):
    real, before = loop.step, signal.getsignal(number)

    def step(s, *args):
        if s.state.step == 4:
            os.kill(os.getpid(), number)
        return real(s, *args)

    monkeypatch.setattr(loop, "step", step)
    run = train(data, *ARROWS, out=tmp_path / "run", steps=12, overrides=SMALL)
    assert [line["step"] for line in run.metrics("step")] == [1, 2, 3, 4, 5], "the step that was begun is finished"
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["step-000005"]
    assert f"weft train --resume {run.path}" in capsys.readouterr().err
    assert signal.getsignal(number) is before, "the handlers are put back"
    monkeypatch.undo()
    run = train(resume=run.path)
    assert losses(run) == losses(whole) and same_weights(run, whole)
    again = train(resume=run.path)
    assert losses(again) == losses(whole), "resuming a run that is done does nothing"
    assert "is done" in capsys.readouterr().err


def test_a_second_signal_ends_at_once():
    with loop.Interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_damaged_checkpoint_is_said_and_the_one_before_gives_the_same_end(whole, data, tmp_path, capsys):
    overrides = [*SMALL, "train.options.save_every=4", "train.options.keep=3"]
    run = train(data, *ARROWS, out=tmp_path / "run", steps=12, overrides=overrides)
    last = run.path / "checkpoints" / "step-000012"
    file = last / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-20])
    run = train(resume=run.path)
    said = capsys.readouterr().err
    assert "step-000012 is damaged" in said and "going on with" in said and "after step 8" in said
    assert losses(run) == losses(whole) and same_weights(run, whole) and checkpoint.damage(last) == ""


def test_all_checkpoints_damaged_means_from_the_first_step(whole, data, tmp_path, capsys):
    run = train(data, *ARROWS, out=tmp_path / "run", steps=12, overrides=SMALL)
    for path in (run.path / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    run = train(resume=run.path)
    assert "at its first step" in capsys.readouterr().err
    assert losses(run) == losses(whole)


def test_a_full_disk_leaves_the_last_checkpoint_and_a_resume_goes_on(whole, data, tmp_path, monkeypatch):
    real = checkpoint.WRITERS[".pt"]

    def full(path, content):
        if "step-000008" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setitem(checkpoint.WRITERS, ".pt", full)
    with pytest.raises(RunError, match=r"step 8 .*No space left.*step-000004 is intact"):
        train(data, *ARROWS, out=tmp_path / "run", steps=12, overrides=[*SMALL, "train.options.save_every=4"])
    monkeypatch.undo()
    run = train(resume=tmp_path / "run")
    assert losses(run) == losses(whole) and same_weights(run, whole)


def test_steps_that_are_not_finite_change_nothing_are_counted_and_stop_the_run_when_they_go_on(
    data, tmp_path, monkeypatch
):
    real, bad = loop.backward, set()

    def backward(s, batches):
        total, sums, counts = real(s, batches)
        if s.state.step in bad:
            next(p for p in s.optimizer.params if p.grad is not None).grad.fill_(float("nan"))
        return total, sums, counts

    before = {}

    def watch(s, report):
        here = {n: t.clone() for n, t in checkpoint.weights(s.model).items()}
        unchanged = before and all(torch.equal(here[n], before[n]) for n in here)
        assert bool(unchanged) == (s.state.step in bad and s.state.step > 1), s.state.step
        before.update(here)

    monkeypatch.setattr(loop, "backward", backward)
    monkeypatch.setattr(session, "Save", lambda: watch)
    bad |= {3, 5, 6, 7, 8}
    run = train(data, *ARROWS, out=tmp_path / "some", steps=12, overrides=SMALL)
    assert [line["step"] for line in run.metrics("event") if line["event"] == "nonfinite"] == [3, 5, 6, 7, 8]
    assert run.metrics("event")[-1]["nonfinite"] == 5
    before.clear()
    bad |= {9}
    with pytest.raises(RunError, match=r"5 steps in a row, the last at step 9.*train.lr=0.0067"):
        train(data, *ARROWS, out=tmp_path / "stop", steps=12, overrides=SMALL)


def test_two_trainings_in_one_directory_are_refused(whole):
    with whole.lock(), pytest.raises(RunError, match=f"in use by another training .process {os.getpid()}"):
        train(resume=whole.path)


def test_changed_data_is_refused_at_resume(tmp_path):
    data = table(tmp_path / "data")
    run = train(data, *ARROWS, out=tmp_path / "run", steps=2, overrides=SMALL)
    data.write_text(data.read_text().replace("blue", "pink"))
    with pytest.raises(RunError, match="content has changed"):
        train(resume=run.path)


def test_a_directory_with_a_run_is_not_overwritten(whole, data):
    before = (whole.path / "recipe.toml").read_text()
    with pytest.raises(RunError, match=r"holds a run already.*--resume"):
        train(data, *ARROWS, out=whole.path, steps=1)
    assert (whole.path / "recipe.toml").read_text() == before


def test_rows_in_memory_train_and_resume_with_the_same_rows(tmp_path):
    rows = [{"question": f"is {i} even?", "answer": "yes" if i % 2 == 0 else "no"} for i in range(60)]
    run = train(rows, "question -> answer", out=tmp_path / "run", steps=2, overrides=SMALL)
    with pytest.raises(RunError, match="held in memory"):
        train(resume=run.path)
    assert train(rows, resume=run.path).recipe.train.steps == 2


def test_a_recipe_file_brings_its_arrows_and_words_overrule_it(data, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'data = "{data}"\narrows = ["-> note"]\n[train]\nsteps = 1\ntokens = 128\nlength = 64\n[model]\ndim = 32\n'
    )
    recipe, source = session.make_recipe(path, (), steps=3, overrides=["seed=5"])
    assert (recipe.arrows, recipe.train.steps, recipe.seed, recipe.train.tokens, source) == (
        ("-> note",),
        3,
        5,
        128,
        None,
    )
    recipe, _ = session.make_recipe(path, ("question -> answer",), minutes=2)
    assert recipe.arrows == ("question -> answer",) and recipe.train.steps == 0 and recipe.train.minutes == 2


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"overrides": ["train.lrr=1"]}, RecipeError, "lr"),
        ({"family": "wefft"}, RecipeError, "weft"),
        ({"minutes": -1.0}, RecipeError, "minutes"),
        ({"overrides": ["model.options.gatd=true"]}, RecipeError, "gated"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_name(data, tmp_path, words, kind, message):
    with pytest.raises(kind, match=message):
        train(data, *ARROWS, out=tmp_path / "run", **{"steps": 1, **words})


def test_missing_data_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        train(tmp_path / "nowhere.csv", "a -> b", out=tmp_path / "run", steps=1)


def test_json_is_all_that_stdout_gets(data, tmp_path, capsys):
    train(data, *ARROWS, out=tmp_path / "run", steps=2, overrides=SMALL, json=True)
    found = json.loads(capsys.readouterr().out)
    assert {line["arrow"] for line in found} == set(ARROWS)
    assert all(
        line["split"] == "validation" and line["low"] <= line["value"] <= line["high"] and line["n"] > 0
        for line in found
    )
