"""The run directory: made once, read by everything, held by one process, never half written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from weft.convert.load import load
from weft.errors import RunError
from weft.recipe import Recipe, TrainRecipe
from weft.run import Run, kind_of, replace_text


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "mine", Recipe(data="x.csv", arrows=("-> text",)), command="weft train x.csv")


def test_create_then_open_gives_the_same_recipe(run):
    assert Run.open(run.path).recipe == run.recipe
    assert (run.path / "command.txt").read_text() == "weft train x.csv\n"


def test_a_directory_without_a_run_names_those_beside_it(run, tmp_path):
    with pytest.raises(RunError, match=r"holds no run.*mine"):
        Run.open(tmp_path / "other")
    with pytest.raises(RunError, match="none"):
        Run.open(tmp_path / "nowhere" / "other")


def test_a_run_that_never_got_far_says_so(run):
    for ask in (lambda: run.renderer, lambda: run.config):
        with pytest.raises(RunError, match="never finished"):
            ask()
    with pytest.raises(RunError, match="nothing was saved"):
        load(run.path)


def test_weights_that_cannot_be_read_are_a_run_error(run, monkeypatch):
    (run.path / "model.safetensors").write_bytes(b"not weights")
    monkeypatch.setattr("weft.model.build", lambda config: None)
    monkeypatch.setattr(Run, "config", None)
    with pytest.raises(RunError, match=r"model.safetensors cannot be read"):
        run.model()


def test_a_place_that_cannot_be_written_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made or written"):
        Run.create(tmp_path / "file" / "run", Recipe())


HOLD = """
import sys
from weft.recipe import Recipe
from weft.run import Run
with Run(__import__("pathlib").Path(sys.argv[1]), Recipe()).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_by_name_and_a_killed_one_leaves_no_lock(run):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by another training .process {child.pid}"), run.lock():
            pytest.fail("the lock was given twice")
    finally:
        child.kill()
        child.communicate()
    with run.lock():
        assert (run.path / ".lock").read_text() == str(os.getpid())
    with run.lock():
        pass  # and it is given back when the block ends


def test_metrics_are_told_apart_and_a_cut_off_line_is_left_out(run):
    run.record(event="start")
    for step in (1, 2, 3):
        run.record(step=step, loss=1 / step)
    run.record(step=2, validation={"loss": 0.5})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.metrics("step")] == [1, 2, 3]
    assert [kind_of(line) for line in run.metrics()] == ["event", "step", "step", "step", "validation"]
    run.forget_after(2)
    assert [line.get("step") for line in run.metrics()] == [None, 1, 2, 2]
    assert (run.path / "metrics.jsonl").read_text().endswith("}\n"), "what was cut off is gone, so lines can be added"


def test_skipped_rows_are_written_one_per_line(run):
    run.skip([])
    assert not (run.path / "skipped.jsonl").exists()
    run.skip([{"row": 1, "reason": "画"}, {"row": 2, "reason": "b"}])
    lines = (run.path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2] and "画" in lines[0]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    replace_text(path, "old")

    def broken(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no"):
        replace_text(path, "new")
    assert path.read_text() == "old"


def test_a_resolved_recipe_survives_the_file(run):
    recipe = Recipe(data="数据.csv", arrows=("a -> b", "2* c -> d"), train=TrainRecipe(steps=7, lr=0.1 + 0.2))
    run.keep(recipe)
    assert Run.open(run.path).recipe == recipe
