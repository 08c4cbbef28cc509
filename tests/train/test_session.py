"""The course of a run: what is free, written and listed, however it begins and ends."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from tiny import ARROWS, SMALL, table

from weft.data.plan import PLAN
from weft.errors import DataError, WeftError
from weft.run import COMMAND, LOCK, RECIPE, SKIPPED, Run, read_lines
from weft.train import loop, session, train

PICTURES = ("image.size=16", "image.patch=8", *SMALL)


def pictures(folder: Path, broken: tuple[int, ...] = (), rows: int = 40) -> Path:
    """Small pictures with a colour each; those of `broken` rows are no pictures, though their header is whole."""
    folder.mkdir(parents=True)
    lines = [["image", "colour", "split"]]
    for i in range(rows):
        name = ("red", "green", "blue")[i % 3]
        path = folder / f"{i}.png"
        Image.new("RGB", (16, 16), name).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:45])
        lines.append([path.name, name, "validation" if i % 5 == 4 else "train"])
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "metadata.csv"


def listed(path: Path) -> list[int]:
    return [line["row"] for line in read_lines(path / SKIPPED)]


def test_a_beginning_that_fails_leaves_out_free(tmp_path):
    data = table(tmp_path / "data")
    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"longer than train\.length=4"):
        train(data, ARROWS[0], out=out, steps=2, overrides=[*SMALL, "train.length=4"])
    assert len(listed(out)) > 200 and not {RECIPE, COMMAND, LOCK} & {path.name for path in out.iterdir()}
    run = train(data, *ARROWS, out=out, steps=2, overrides=SMALL)
    assert run.path == out and run.metrics("event")[-1]["event"] == "end", "the same --out, without a word"
    assert [event["event"] for event in run.metrics("event")].count("start") == 1, "nothing of the first is left"


def test_a_beginning_that_fails_at_once_leaves_no_folder(tmp_path):
    data, out = table(tmp_path / "data"), tmp_path / "run"
    for mine in (None, "notes.txt"):
        if mine:
            out.mkdir()
            (out / mine).write_text("mine")
        with pytest.raises(WeftError, match="qestion"):
            train(data, "qestion -> answer", out=out, steps=2, overrides=SMALL)
        assert (not out.exists()) if mine is None else [path.name for path in out.iterdir()] == [mine]


def test_a_signal_in_the_last_step_is_an_end(tmp_path, monkeypatch, capsys):
    real = loop.step

    def step(s, *args):
        if s.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(s, *args)

    monkeypatch.setattr(loop, "step", step)
    run = train(table(tmp_path / "data"), *ARROWS, out=tmp_path / "run", steps=3, overrides=SMALL)
    assert run.metrics("event")[-1]["event"] == "end" and run.metrics("event")[-1]["step"] == 3
    assert "Go on with" not in capsys.readouterr().err, "there is nothing to go on with"


def test_an_end_that_was_killed_before_it_was_written_is_written_by_the_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "finish", lambda *args: None)
    run = train(table(tmp_path / "data"), *ARROWS, out=tmp_path / "run", steps=2, overrides=SMALL)
    assert "end" not in {event["event"] for event in run.metrics("event")}
    monkeypatch.undo()
    run = train(resume=run.path)
    assert run.metrics("event")[-1]["event"] == "end"


def test_too_many_bad_rows_stop_the_run_and_are_listed(tmp_path):
    data = pictures(tmp_path / "data", broken=(0, 1, 2))
    with pytest.raises(DataError, match=r"rows cannot be used, more than the allowed 5.00%"):
        train(
            data,
            "image -> colour",
            out=tmp_path / "run",
            steps=3,
            overrides=[*PICTURES, "train.options.skip_share=0.05"],
        )
    assert len(listed(tmp_path / "run")) == 3, "the third was one too many"


def test_bad_rows_of_the_validation_are_listed_too(tmp_path, capsys):
    data = pictures(tmp_path / "data", broken=(3, 4))
    run = train(
        data, "image -> colour", out=tmp_path / "run", steps=2, overrides=[*PICTURES, "train.options.skip_share=0.1"]
    )
    assert listed(run.path) == [3, 4], "row 4 is held out"
    assert "left out: 2 x a row" in capsys.readouterr().err, "and it is said"
    assert run.metrics("event")[-1]["skipped"] == 2


def test_a_checkpoint_holds_where_the_rounds_end(tmp_path):
    run = train(table(tmp_path / "data"), *ARROWS, out=tmp_path / "run", steps=2, overrides=SMALL)
    opened = session.reopen(run)[0]
    assert opened.loader.ends == opened.state.rounds and len(opened.loader.ends) == 1


def test_a_run_that_an_older_weft_planned_is_told_so(tmp_path, capsys):
    data = table(tmp_path / "data")
    for times, planned, told in ((2, 1, True), (2, PLAN, False), (1, 1, False)):
        out = tmp_path / f"{times}-{planned}"
        run = train(data, ARROWS[0], out=out, steps=1, overrides=[*SMALL, f'mix."{ARROWS[0]}"={times}'])
        path = run.path / session.PREPARED
        path.write_text(json.dumps({**json.loads(path.read_text()), "plan": planned}))
        capsys.readouterr()
        session.reopen(Run.open(out))
        assert ("an older weft planned this run" in capsys.readouterr().err) == told
