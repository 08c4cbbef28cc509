"""The command line: what the words mean, what is printed, which exit code; with stand-ins for the work itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import weft
from weft.cli import app, check_inputs, column_words, split_words
from weft.errors import RecipeError, RunError

runner = CliRunner()
VQA = "image, question -> answer"


def run(*words: str) -> SimpleNamespace:
    found = runner.invoke(app, list(words))
    return SimpleNamespace(code=found.exit_code, out=found.stdout, err=found.stderr, exception=found.exception)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Put a stand-in in the place of a public function; returns the list of its calls."""

    def put(name: str, result: object) -> list[tuple[tuple, dict]]:
        calls: list[tuple[tuple, dict]] = []

        def stand_in(*args: object, **kwargs: object) -> object:
            calls.append((args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(weft, name, stand_in)
        return calls

    return put


# ------------------------------------------------------------------------------------------------ light and quick


def test_import_and_help_are_light() -> None:
    """Neither the package nor the command line loads what is slow before it is needed."""
    code = (
        "import sys, weft, weft.cli\n"
        "heavy = {'torch', 'numpy', 'PIL', 'tokenizers', 'pyarrow', 'soundfile', 'scipy'} & set(sys.modules)\n"
        "print(sorted(heavy)); weft.cli.app(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "[]"
    assert lines[-1] == "[]"
    assert "predict" in done.stdout


def test_module_and_function_of_one_name_both_hold() -> None:
    """`weft.train` is a room and a function: whatever was imported first, it can be called and has its modules."""
    code = (
        "import weft, weft.train.schedule, weft.evaluate.chart\n"
        "assert callable(weft.train) and callable(weft.evaluate)\n"
        "assert weft.train.schedule.factor and weft.evaluate.chart.ticks\n"
        "weft.public = lambda name: lambda *a, **k: (name, a, k)\n"
        "assert weft.train('x', out=1) == ('train', ('x',), {'out': 1})\n"
        "assert weft.evaluate('run') == ('evaluate', ('run',), {})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    for name in weft.__all__:
        assert getattr(weft, name) is not None, name
        assert name in dir(weft)
    with pytest.raises(AttributeError, match="Public names: WeftError, chat, check"):
        _ = weft.trian


def test_help_lists_what_is_there_and_nothing_else() -> None:
    found = run("--help")
    assert found.code == 0
    commands = [line.split()[0] for line in found.out.split("Commands:")[1].splitlines() if line.strip()]
    assert [c for c in commands if c.islower() and len(c) > 3] == commands
    first = ["plan", "check", "train", "predict", "eval", "compare", "report", "import", "export"]
    assert commands == [*first, "chat", "embed", "search"]
    assert run("--version").out == f"weft {weft.__version__}\n"


@pytest.mark.parametrize("command", ["plan", "check", "train", "predict", "eval", "compare", "report"])
def test_each_command_explains_itself(command: str) -> None:
    found = run(command, "--help")
    assert found.code == 0
    assert "--json" in found.out


# ------------------------------------------------------------------------------------------------ words


def test_words_are_told_apart() -> None:
    words = ["photos/metadata.csv", VQA, "train.lr=0.01", "~text", "a <-> b", "2* image -> caption", "-> text"]
    assert split_words(words) == (
        "photos/metadata.csv",
        [VQA, "~text", "a <-> b", "2* image -> caption", "-> text"],
        ["train.lr=0.01"],
    )


def test_a_file_with_an_equals_sign_in_its_name_is_data(tmp_path: Path) -> None:
    path = tmp_path / "lr=3.csv"
    path.write_text("a,b\n1,2\n")
    assert split_words([str(path), "a -> b"]) == (str(path), ["a -> b"], [])
    assert split_words(["t.csv", "a -> b", str(tmp_path / "lr=4.csv")])[2] == [str(tmp_path / "lr=4.csv")]


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "Name the data first"), (["a -> b"], "Name the data first"), (["a.csv", "b.csv"], "'b.csv' is neither")],
)
def test_words_that_mean_nothing(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        split_words(words)


def test_column_words() -> None:
    words = ["--image", "cat.png", "--question=why = how?", "out=x", "--text", "--", "--n", "-5"]
    assert column_words(words) == {"image": "cat.png", "question": "why = how?", "out": "x", "text": "--", "n": "-5"}
    for wrong, message in (
        (["cat.png"], "What is 'cat.png'"),
        (["--a"], "needs a value"),
        (["a=1", "--a", "2"], "given twice"),
    ):
        with pytest.raises(RecipeError, match=message):
            column_words(wrong)


def test_inputs_are_the_arrows_own() -> None:
    from weft.arrows.grammar import parse

    arrow = parse(VQA)
    assert check_inputs(arrow, {"question": "why?", "image": "a.png"}) == {"question": "why?", "image": "a.png"}
    with pytest.raises(RecipeError, match="Did you mean 'question'"):
        check_inputs(arrow, {"image": "a.png", "qestion": "why?"})
    with pytest.raises(RecipeError, match="needs question as well: --question"):
        check_inputs(arrow, {"image": "a.png"})


# ------------------------------------------------------------------------------------------------ commands


def trained(path: Path, event: str) -> SimpleNamespace:
    """What `weft.train` gives back."""
    return SimpleNamespace(path=path, metrics=lambda key: [{"event": "start"}, {"event": event}])


def test_train_hands_on_what_was_said(fake: Callable, tmp_path: Path) -> None:
    calls = fake("train", trained(tmp_path, "end"))
    found = run(
        "train", "t.csv", VQA, "-> question", "train.lr=0.1", "--out", "runs/mine", "--minutes", "3", "--seed", "7"
    )
    assert found.code == 0, found.err
    ((args, kwargs),) = calls
    assert args == ("t.csv", VQA, "-> question")
    assert kwargs["out"] == Path("runs/mine")
    assert (kwargs["minutes"], kwargs["steps"], kwargs["family"]) == (3.0, None, None)
    assert kwargs["overrides"] == ["train.lr=0.1", "seed=7"]
    assert f"weft eval {tmp_path}" in found.out


def test_a_train_that_was_stopped_is_not_called_ready(fake: Callable, tmp_path: Path) -> None:
    calls = fake("train", trained(tmp_path, "stop"))
    found = run("train", "t.csv", "-> text", "--no-check")
    assert (found.code, found.out) == (0, "")
    assert calls[0][1]["overrides"] == ["train.options.check=false"]


def test_resume_takes_the_runs_own_recipe(fake: Callable) -> None:
    calls = fake("train", trained(Path("runs/mine"), "end"))
    assert run("train", "--resume", "runs/mine").code == 0
    assert calls[0][1]["resume"] == Path("runs/mine")
    found = run("train", "--resume", "runs/mine", "other.csv", "a -> b")
    assert found.code == 2
    assert "own recipe" in found.err
    found = run("train", "--resume", "runs/mine", "--no-check")
    assert found.code == 2 and "--no-check" in found.err, "it would do nothing"
    assert len(calls) == 1


def test_the_users_fault_is_one_message_and_exit_2(fake: Callable) -> None:
    fake("evaluate", RunError("runs/x holds no run."))
    found = run("eval", "runs/x")
    assert (found.code, found.out, found.err) == (2, "", "weft: runs/x holds no run.\n")


def test_our_own_fault_keeps_its_traceback(fake: Callable) -> None:
    fake("evaluate", ValueError("a bug"))
    found = run("eval", "runs/x")
    assert found.code == 1
    assert isinstance(found.exception, ValueError)


def test_an_interrupt_is_130_without_a_traceback(fake: Callable) -> None:
    fake("evaluate", KeyboardInterrupt())
    found = run("eval", "runs/x")
    assert found.code == 130
    assert found.err == "weft: interrupted\n"


def test_an_unknown_word_names_the_nearest() -> None:
    assert "Did you mean 'train'" in run("trian").err
    found = run("train", "--minuts", "3")
    assert found.code == 2
    assert "--minutes" in found.err


RESULT = {
    "arrow": VQA, "split": "test", "metric": "accuracy", "value": 0.962, "low": 0.951, "high": 0.972, "n": 1000,
    "hash": "3f9a1c", "baselines": {"majority": 0.32},
}  # fmt: skip


def test_eval_prints_a_table_or_json(fake: Callable) -> None:
    calls = fake("evaluate", [RESULT])
    found = run("eval", "runs/mine", "--arrow", VQA, "--limit", "50", "--split", "validation")
    assert calls[0] == ((Path("runs/mine"),), {"split": "validation", "arrows": [VQA], "limit": 50, "before": False})
    assert found.code == 0
    lines = [" ".join(line.split()) for line in found.out.splitlines() if line]
    assert lines == [f"{VQA} (1,000 test rows, 3f9a1c)", "accuracy 0.962 0.951 - 0.972", "majority 0.320"]
    assert json.loads(run("eval", "runs/mine", "--json").out) == [RESULT]


def test_predict_prints_text(fake: Callable) -> None:
    calls = fake("predict", ["blue"])
    found = run(
        "predict", "runs/mine", VQA, "--image", "cat.png", "--question", "what colour is it?", "--temperature", "0.5"
    )
    assert (found.code, found.out) == (0, "blue\n"), found.err
    ((args, kwargs),) = calls
    assert args == (Path("runs/mine"), VQA, [{"image": "cat.png", "question": "what colour is it?"}])
    assert kwargs["temperature"] == 0.5


def test_predict_goes_on_from_a_beginning(fake: Callable) -> None:
    calls = fake("predict", [" a time"])
    found = run("predict", "runs/mine", "-> text", "--text", "Once upon")
    assert (found.code, found.out) == (0, " a time\n"), found.err
    assert calls[0][0][2] == [{"text": "Once upon"}]
    assert run("predict", "runs/mine", "-> text").code == 0, "or from nothing"
    assert calls[1][0][2] == [{}]
    found = run("predict", "runs/mine", "-> text", "--txt", "Once")
    assert found.code == 2 and "Did you mean 'text'" in found.err


def test_predict_writes_pictures_and_sounds_and_never_over_others(fake: Callable, tmp_path: Path) -> None:
    fake("predict", [np.zeros((8, 8, 3), np.uint8)])
    words = ("predict", "runs/mine", "caption -> image", "--caption", "a red circle", "--out", str(tmp_path))
    assert run(*words).out == f"{tmp_path / 'image.png'}\n"
    assert run(*words).out == f"{tmp_path / 'image-2.png'}\n"
    assert (tmp_path / "image.png").read_bytes()[:4] == b"\x89PNG"
    fake("predict", [np.zeros(1600, np.float32)])
    found = run("predict", "runs/mine", "text -> speech", "--text", "hello", "--out", str(tmp_path), "--json")
    assert json.loads(found.out) == [
        {"arrow": "text -> speech", "inputs": {"text": "hello"}, "output": str(tmp_path / "speech.wav")}
    ]
    assert (tmp_path / "speech.wav").read_bytes()[:4] == b"RIFF"


def test_predict_writes_where_out_says(fake: Callable, tmp_path: Path) -> None:
    fake("predict", [np.zeros((8, 8, 3), np.uint8)])
    draw = ("predict", "runs/mine", "caption -> image", "--caption", "a red circle", "--out")
    named = tmp_path / "made" / "circle.png"
    assert run(*draw, str(named)).out == f"{named}\n" and named.is_file(), "a single picture's file by its name"
    (tmp_path / "notes.py").write_text("kept")
    found = run(*draw, str(tmp_path / "notes.py"))
    assert found.code == 0 and (tmp_path / "notes.py").read_text() == "kept" and Path(found.out.strip()).is_file()
    calls = fake("predict", ["blue"])
    ask = ("predict", "runs/mine", VQA, "--image", "cat.png", "--question", "why?", "--out")
    assert run(*ask, str(tmp_path / "a.txt")).out == "blue\n" and (tmp_path / "a.txt").read_text() == "blue\n"
    assert run(*ask, str(tmp_path / "a.jsonl")).code == 0
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"answer": "blue"}
    assert run(*ask, str(tmp_path)).code == 0 and (tmp_path / "answer.txt").read_text() == "blue\n", "into a folder"
    done = len(calls)
    found = run(*ask, str(tmp_path / "a.txt" / "b.txt"))
    assert found.code == 2 and "a.txt is a file" in found.err and len(calls) == done, "before the model runs"


def test_predict_refuses_unknown_columns_before_it_loads_a_model(fake: Callable) -> None:
    calls = fake("predict", ["blue"])
    found = run("predict", "runs/mine", VQA, "--imag", "cat.png", "--question", "why?")
    assert found.code == 2
    assert "Did you mean 'image'" in found.err
    assert not calls


def test_predict_for_a_table(fake: Callable, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("caption,other\na red circle,1\na blue circle,2\n")
    calls = fake("predict", ["x", "y"])
    found = run("predict", "runs/mine", "caption -> answer", "--table", str(table))
    assert found.out == "x\ny\n", found.err
    assert calls[0][0][2] == [{"caption": "a red circle"}, {"caption": "a blue circle"}]
    found = run("predict", "runs/mine", "captoin -> answer", "--table", str(table))
    assert found.code == 2
    assert "Did you mean 'caption'" in found.err


def test_an_arrow_that_cannot_be_read_is_marked() -> None:
    found = run("predict", "runs/mine", "caption => answer", "--caption", "x")
    assert found.code == 2
    assert "->" in found.err


def test_report_and_compare(fake: Callable) -> None:
    fake("report", Path("runs/mine/report.html"))
    assert run("report", "runs/mine").out == "runs/mine/report.html\n"
    assert json.loads(run("report", "runs/mine", "--json").out) == {"report": "runs/mine/report.html"}
    calls = fake("compare", {"difference": 0.01})
    assert run("compare", "runs/a", "runs/b", "--json").code == 0
    assert calls[0][0] == (Path("runs/a"), Path("runs/b"))


def test_a_key_may_hold_an_arrow() -> None:
    from weft.cli import adapting, split_words

    words = ["d.csv", "a, b -> c", '"k=v" -> c', 'mix."a, b -> c"=0.5', 'arrows=["a -> b"]', "train.lr=0.1", "~text"]
    assert split_words(words) == ("d.csv", ["a, b -> c", '"k=v" -> c', "~text"], [words[3], words[4], words[5]])
    assert adapting("runs/a", "r=4,alpha=8,target=attn.qkv+ffn,dora", ["blocks.0"], "plain.txt", "runs/t") == [
        'model.source="runs/a"', "model.lora.rank=4", "model.lora.alpha=8", 'model.lora.target=["attn.qkv", "ffn"]',
        "model.lora.dora=true", 'train.freeze=["blocks.0"]', 'train.options.keep_text="plain.txt"',
        'model.guide.teacher="runs/t"',
    ]  # fmt: skip
    with pytest.raises(weft.WeftError, match=r"--lora: 'rnk=3' means nothing\. Did you mean 'rank'"):
        adapting("x", "rnk=3")
