"""Watchers and forecast: the alarm rings for an ignored input and for no other; minutes become steps."""

from __future__ import annotations

import csv
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from tiny import ARROWS, SMALL, table

from weft.data.sources import Table
from weft.objectives import OBJECTIVES
from weft.recipe import Recipe, TrainOptions, TrainRecipe
from weft.run import Run
from weft.train import forecast as f
from weft.train import machine, plan, train
from weft.train.machine import autocast, eager, free_memory, peak_memory, pick_dtype
from weft.train.prepare import prepare
from weft.train.progress import Progress, blend, clock
from weft.train.session import assemble, make_recipe, settle
from weft.train.watch import Evaluate, Losses, losses, quantile, rise, spread, swapped


@pytest.fixture(scope="module")
def blind_run(tmp_path_factory) -> Run:
    """The answer is in `hint`; `noise` says nothing."""
    folder = tmp_path_factory.mktemp("blind")
    rng = np.random.default_rng(0)
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["hint", "noise", "answer"])
        for i in range(500):
            answer = ("yes", "no", "maybe")[i % 3]
            writer.writerow([f"{answer[0]} {i}", f"{rng.integers(10**6)}", answer])
    overrides = [*SMALL, "train.options.evaluate_every=60", "train.tokens=256", "split.validation=0.3"]
    arrow = "hint:text, noise:text -> answer"
    return train(folder / "t.csv", arrow, out=folder / "run", steps=120, overrides=overrides)


def test_the_alarm_knows_which_input_is_used(blind_run):
    last = {line["column"]: line for line in blind_run.metrics("event") if line["event"] == "blind"}
    assert set(last) == {"hint", "noise"} and all(line["step"] == 120 for line in last.values())
    assert not last["hint"]["ignored"] and last["hint"]["shuffled"] > last["hint"]["loss"] + 0.3
    assert last["noise"]["ignored"] and last["noise"]["shuffled"] < last["noise"]["loss"] + 0.1
    steps = [line["step"] for line in blind_run.metrics("event") if line["event"] == "blind"]
    assert sorted(set(steps)) == [60, 120], "in the middle and at the end"


def test_validations_carry_intervals_that_hold_the_mean(blind_run):
    lines = blind_run.metrics("validation")
    assert [line["step"] for line in lines] == [60, 120]
    for line in lines:
        for name, (low, high, n) in line["validation"]["intervals"].items():
            assert low <= line["validation"]["arrows"][name] <= high and n > 0


@given(st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 50)), min_size=2, max_size=20))
@settings(deadline=None, max_examples=50)
def test_the_spread_is_that_of_a_weighted_mean(batches):
    found = np.array([(loss * count, count) for loss, count in batches])
    mean, error = spread(found)
    assert mean == pytest.approx(np.average([b[0] for b in batches], weights=[b[1] for b in batches]))
    doubled = np.concatenate([found, found])
    assert error >= 0 and spread(doubled)[0] == pytest.approx(mean) and spread(doubled)[1] <= error + 1e-9
    empty = np.concatenate([found, np.zeros((3, 2))])
    assert spread(empty) == pytest.approx((mean, error)), "batches without the arrow say nothing"


def test_the_error_of_the_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3, 1, 400)
    _, error = spread(np.stack([values * 5, np.full(400, 5.0)], 1))
    assert error == pytest.approx(values.std(ddof=1) / 20, rel=1e-6)


def of_rows(values: np.ndarray, rows: np.ndarray | None = None, tokens: int = 3) -> Losses:
    """One arrow's losses: `tokens` tokens a row of so much each."""
    rows = np.arange(len(values)) if rows is None else rows
    return Losses(rows, np.zeros(len(rows), np.int64), values * tokens, np.full(len(values), float(tokens)))


def test_a_rise_is_paired_by_row():
    """Rows differ a hundred times more among themselves than the exchange changes them: paired, it is seen."""
    rng = np.random.default_rng(0)
    plain = rng.exponential(2.0, 40)
    found = rise(of_rows(plain), of_rows(plain + rng.normal(0.03, 0.01, 40)), 0)
    assert found.low > 0 and not found.ignored and found.rows == 40
    unpaired = 2 * math.hypot(spread(of_rows(plain).of(0))[1], spread(of_rows(plain).of(0))[1])
    assert found.shuffled - found.loss < unpaired, "control: unpaired it drowned in noise, and the alarm rang"
    nothing = rise(of_rows(plain), of_rows(plain + rng.normal(0, 0.01, 40)), 0)
    assert nothing.ignored and nothing.low < 0 < nothing.high


def test_few_rows_do_not_ring_the_alarm():
    plain = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    after = plain + np.array([0.9, -0.8, 0.7, -0.6, 0.1])
    found = rise(of_rows(plain), of_rows(after), 0)
    assert found.low < 0 < found.high and not found.ignored, "no rise is seen, but a large one may have been missed"
    assert rise(of_rows(plain[:4]), of_rows(after[:4]), 0) is None
    assert rise(of_rows(plain), of_rows(after, np.arange(9, 14)), 0) is None, "not the same rows"
    moved = np.array([4, 3, 2, 1, 0])
    assert rise(of_rows(plain), of_rows(after[moved], moved), 0) == pytest.approx(found), "found by number, not place"


@pytest.mark.parametrize(("rows", "expected"), [(5, 2.776), (6, 2.571), (11, 2.228), (31, 2.042), (1001, 1.962)])
def test_quantiles_are_those_of_the_tables(rows, expected):
    assert quantile(rows) == pytest.approx(expected, rel=0.003)


def test_a_single_row_has_no_interval(blind_run, monkeypatch):
    from weft.train import session as course

    opened, prepared = course.reopen(blind_run)
    monkeypatch.setattr(course, "SAMPLES", 1)
    watcher = Evaluate(course.look_at(opened, prepared, prepared.table))
    told: list[dict] = []
    monkeypatch.setattr(Run, "record", lambda self, **values: told.append(values))
    watcher(opened, None)
    ((low, high, n),) = told[0]["validation"]["intervals"].values()
    assert (low, high, n) == (None, None, 1)


def test_losses_are_told_for_every_row(blind_run):
    """Summed over rows they are the loss of the batches; and a row's own is what it has alone."""
    from weft.train import session as course

    opened, prepared = course.reopen(blind_run)
    batches = course.look_at(opened, prepared, prepared.table)
    found = losses(opened, batches)
    assert set(found.row) == {row for batch in batches for row in batch.rows} and len(found.row) == course.SAMPLES
    one = losses(opened, [b for b in batches if found.row[0] in b.rows])
    assert one.of(0)[one.rows(0) == found.row[0]] == pytest.approx(found.of(0)[:1], rel=1e-4)
    with torch.no_grad(), eager(opened.model.eval()):
        whole = sum(float(OBJECTIVES[b.objective](opened.model, b)[1]["sums"].sum()) for b in batches)
    assert found.sums.sum() == pytest.approx(whole, rel=1e-4)


def test_swapping_moves_every_cell_of_the_rows_and_no_other():
    t = Table({"a": [f"v{i}" for i in range(20)], "b": list(range(20))})
    rows = np.arange(5, 15)
    new = swapped(t, "a", rows, seed=0)
    inside = [new.column("a")[i] for i in rows]
    assert all(cell != f"v{i}" for i, cell in zip(rows, inside, strict=True))
    assert sorted(inside) == sorted(f"v{i}" for i in rows), "the same cells, elsewhere"
    assert [new.column("a")[i] for i in range(5)] == [f"v{i}" for i in range(5)] and new.column("b") == t.column("b")


def test_a_column_with_one_value_cannot_be_swapped_and_blank_cells_stay():
    t = Table({"a": ["x", "x", "x", "y"], "b": ["1", None, "2", "3"]})
    assert swapped(t, "a", np.array([0, 1, 2]), 0) is None
    assert swapped(t, "b", np.array([0, 1, 2]), 0).column("b") == ["2", None, "1", "3"]


# ------------------------------------------------------------------------------------------------ forecast


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    recipe, _ = make_recipe(table(folder), ARROWS, overrides=[w for w in SMALL if "compile" not in w])
    run = Run(folder, recipe)
    return assemble(run, prepare(recipe, run.table), torch.device("cpu"))


def test_minutes_become_steps_that_fit_and_weights_are_as_before(session):
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, minutes=0.05, micro=0))
    before = {n: p.detach().clone() for n, p in session.model.named_parameters()}
    batches = settle(session)
    assert session.recipe.micro == 2, "all rows of the step fit into memory"
    found, recipe = f.forecast(session, batches, columns=1)
    assert recipe.train.steps == found.steps > 1 and recipe.train.options.compile == "off"
    assert found.seconds < 3.0 and found.steps * found.step < 3.0, "three seconds were asked for"
    assert recipe.train.options.save_every > 0 and recipe.train.options.evaluate_every == math.ceil(found.steps / 20)
    assert all(torch.equal(p, before[n]) for n, p in session.model.named_parameters())
    assert session.state.step == 0 and not session.optimizer.optimizers[0].state
    assert 50e6 < found.memory < 64e9 and re.search(r"\d steps of .* minutes", str(found))


def test_given_steps_are_kept_and_time_already_spent_counts(session):
    batches = [session.loader.step(0)]
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, steps=7))
    assert f.forecast(session, batches)[1].train.steps == 7
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, steps=0, minutes=0.05))
    much, little = (f.forecast(session, batches, spent=spent)[1].train.steps for spent in (0.0, 2.0))
    assert little < much
    assert f.forecast(session, batches, spent=1000.0)[1].train.steps == 1, "a run has one step at least"


def test_compiling_is_for_long_runs():
    train_recipe = TrainRecipe(options=TrainOptions(dtype="bfloat16"))
    assert f.pays(train_recipe, pace=1.0, left=600) and not f.pays(train_recipe, pace=1.0, left=60)
    assert f.pays(replace(train_recipe, steps=500), 1.0, 0) and not f.pays(replace(train_recipe, steps=50), 1.0, 0)


def test_a_machine_that_cannot_compile_goes_on_without_and_says_so(session, monkeypatch):
    said: list[str] = []

    def broken(session):
        for stack in session.model.stack_modules():
            stack._compiled_call_impl = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no C++ compiler"))

    monkeypatch.setattr(f, "compile_stacks", broken)
    monkeypatch.setattr(f, "pays", lambda *a: True)
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, steps=3))
    found, recipe = f.forecast(session, [session.loader.step(0)], say=said.append)
    assert recipe.train.options.compile == "off" and not found.compile and not f.is_compiled(session.model)
    assert said == ["compiling is not possible here (no C++ compiler): going on without"]


def test_compiling_that_does_not_help_is_undone(session, monkeypatch):
    def useless(session):
        for stack in session.model.stack_modules():
            stack._compiled_call_impl = stack._call_impl

    monkeypatch.setattr(f, "compile_stacks", useless)
    monkeypatch.setattr(f, "pays", lambda *a: True)
    monkeypatch.setattr(f, "timed", lambda *a: (1.0, 100.0))
    said: list[str] = []
    _, recipe = f.forecast(session, [session.loader.step(0)], say=said.append)
    assert recipe.train.options.compile == "off" and "going on without" in said[0]
    with eager(session.model):
        pass
    times = iter([(1.0, 100.0), (0.5, 100.0)])
    monkeypatch.setattr(f, "timed", lambda *a: next(times))
    monkeypatch.setattr(f, "fed", lambda session, pace, steps: (0.5, 0.0))
    found, recipe = f.forecast(session, [session.loader.step(0)], say=said.append)
    assert recipe.train.options.compile == "on" and found.step == 0.5 and f.is_compiled(session.model)
    with eager(session.model):
        assert not f.is_compiled(session.model)
    assert f.is_compiled(session.model), "after a validation the compiled call is back"
    f.uncompile(session.model)


def test_little_memory_means_smaller_micro_batches(session, monkeypatch):
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, tokens=64 * 64))
    batch = session.loader.step(0)[0]
    assert f.rows_that_fit(session, batch) == 64
    monkeypatch.setattr(f, "free_memory", lambda device: 4 << 20)
    assert 1 <= f.rows_that_fit(session, batch) < 64
    monkeypatch.setattr(f, "free_memory", lambda device: 0)
    assert f.rows_that_fit(session, batch) == 1


# ------------------------------------------------------------------------------------------------ the rest


def test_a_plan_says_everything_and_writes_nothing(tmp_path, monkeypatch):
    data = table(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    found = plan(data, *ARROWS, overrides=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["data"] and [p.name for p in (tmp_path / "data").iterdir()] == [
        "animals.csv"
    ]
    text = str(found)
    for words in ("question -> answer", "one of 3 labels", "«", "parameters", "GFLOP", "minutes", "20 rows each"):
        assert words in text or words == "20 rows each", words
    assert len(found.samples) >= 3 and all("«" in sample for sample in found.samples)
    assert found.as_dict()["forecast"]["steps"] > 0 and found.rows["train"] > found.rows["test"] > 0


def test_progress_is_plain_where_there_is_no_terminal_and_drawn_where_there_is():
    plain = Console(record=True, force_terminal=False, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    progress = Progress(10, console=plain)
    with progress.shown():
        progress.step(4, 2.0, {"a -> b": 1.5}, 100)
        progress.step(5, float("nan"), {}, 100)
    text = plain.export_text()
    assert "step 5/10" in text and "a -> b 1.500" in text and "tokens/s" in text and "left" in text
    assert progress.loss == 2.0, "a step that was not finite does not show as nan for ever"
    plain.file.close()
    drawn = Console(record=True, force_terminal=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    progress = Progress(10, done=2, console=drawn)
    with progress.shown():
        progress.step(3, 2.0, {"a -> b": 1.5}, 100)
        assert 0 < progress.left < 100
    assert "3/10" in drawn.export_text()
    drawn.file.close()


def test_memory_that_cannot_be_told_is_said_so(monkeypatch):
    """Windows has neither `resource` nor `os.sysconf`, nor /proc."""
    cpu = torch.device("cpu")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(machine.os, "sysconf")

    def nothing(*args, **more):
        raise FileNotFoundError

    monkeypatch.setattr(machine, "open", nothing, raising=False)
    assert peak_memory(cpu) == machine.used_memory(cpu) == 0
    assert free_memory(cpu) == machine.UNKNOWN
    found = f.Forecast(seconds=60, memory=0, step=0.1, steps=600, tokens=1000, compile=False, compiling=0)
    assert "memory unknown" in str(found) and "0 GB" not in str(found)


def test_small_things():
    assert [clock(s) for s in (65, 3723, float("nan"))] == ["1:05", "1:02:03", "--:--"]
    assert blend(float("nan"), 3.0) == 3.0 and blend(1.0, float("nan")) == 1.0 and 1 < blend(1.0, 2.0) < 1.1
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) == "float32" and pick_dtype("auto", cpu) in ("float32", "bfloat16")
    assert 1e7 < peak_memory(cpu) < 1e12 and 1e6 < free_memory(cpu) < 1e14
    a = torch.randn(4, 4)
    for dtype in ("float32", "bfloat16"):
        with autocast(cpu, dtype):
            assert str((a @ a).dtype) == f"torch.{dtype}"
    assert Recipe().train.options.dtype == "auto"


def test_the_forecast_is_fed_few_steps_where_they_are_slow(session, monkeypatch):
    taken: list[int] = []
    real = f.step
    monkeypatch.setattr(f, "step", lambda *given: taken.append(1) or real(*given))
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, steps=0))
    assert f.fed(session, 0.001, 1000)[0] > 0 and len(taken) == f.FED
    taken.clear()
    assert f.fed(session, 10.0, 1000)[0] > 0 and len(taken) == f.TIMED, "a large model's steps are no minute of waiting"
    plan = session.loader.round(0)
    asked: list[int] = []
    made = session.loader.step
    monkeypatch.setattr(session.loader, "step", lambda number: asked.append(number) or made(number))
    f.fed(session, 0.001, plan.steps / plan.epochs)
    assert asked and len(asked) == len(set(asked)), "within one epoch every step opens media, the timed ones too"
    asked.clear()
    f.fed(session, 0.001, 1000)
    assert sorted(asked)[: 2 * f.TIMED] == [n // 2 for n in range(2 * f.TIMED)], "else they were opened before"
    taken.clear()
    monkeypatch.setattr(f, "FEEDING", 0.0)  # as if all of it went by in the first steps
    assert f.fed(session, 0.001, 1000)[0] > 0 and len(taken) == f.TIMED, "nor are those of a slow loader"
    taken.clear()
    session.run.recipe = replace(session.run.recipe, train=replace(session.recipe, steps=2))
    assert f.fed(session, 0.001, 1000)[0] > 0 and len(taken) == 2, "a run of two steps is foreseen by two"


def test_what_the_loader_will_keep_is_foreseen(session):
    plan, assembler = session.loader.round(0), session.loader.assembler
    epoch = round(plan.steps / plan.epochs)
    _, grows = f.fed(session, 0.001, 1)
    assert grows > 0 and assembler.kept > 0
    assert f.to_keep(session, grows, 0) == 0
    assembler.forget()
    assert assembler.kept == 0
    first = [f.to_keep(session, grows, steps) for steps in (1, epoch // 2, epoch, 10 * epoch)]
    assert first[0] < first[1] < first[2] and first[2] <= first[3] <= grows * (epoch + 1), "an epoch is kept, no more"
    for number in range(epoch):
        session.loader.step(number)
    assert 0.5 < first[3] / assembler.kept < 2.5
    assembler.budget = 1000
    assert f.to_keep(session, grows, epoch) == 0, "within the budget, which is used up"
