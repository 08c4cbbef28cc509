"""A whole evaluation on a tiny run with random weights: what is written, what is compared, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from decoding_world import ARROWS, make_model, make_renderer

from weft.data.sources import Table
from weft.errors import ArrowError, DataError, RunError
from weft.evaluate.compare import compare, lines
from weft.evaluate.measure import told
from weft.evaluate.run import evaluate
from weft.evaluate.scoring import scores
from weft.evaluate.show import chosen, slug
from weft.generate.reread import SIDES
from weft.generate.sample import Sampling
from weft.modalities.audio import to_wav
from weft.modalities.image import to_png
from weft.recipe import Recipe, TrainRecipe
from weft.run import Run

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
PLAIN = ["image, question -> answer", "image -> text", "-> text"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Sixty rows: pictures of one colour, a question about it, its caption, and a tone for a voice."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    cells: dict[str, list] = {name: [] for name in ("image", "question", "answer", "text", "speech")}
    for i in range(60):
        colour = "red" if rng.random() < 0.5 else "blue"
        picture = np.clip(rng.normal(COLOURS[colour], 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        (folder / f"{i}.png").write_bytes(to_png(picture))
        tone = 0.3 * np.sin(2 * np.pi * (300 if colour == "red" else 900) / 16_000 * np.arange(6_400))
        (folder / f"{i}.wav").write_bytes(to_wav(tone.astype(np.float32)))
        cells["image"].append(f"{i}.png")
        cells["speech"].append(f"{i}.wav")
        cells["question"].append("what colour is it?" if i % 2 else "is it red?")
        cells["answer"].append(colour if i % 2 else {"red": "yes", "blue": "no"}[colour])
        cells["text"].append(f"a {colour} circle")
    return Table(cells, folder, "tiny")


def open_run(folder: Path, table: Table, seed: int = 2, family: str = "weft", arrows: Sequence[str] = ARROWS) -> Run:
    run = Run(folder, Recipe(train=TrainRecipe(length=44)))
    renderer = make_renderer(arrows)
    split = np.array(["train"] * 36 + ["validation"] * 4 + ["test"] * 20)
    run.__dict__ |= {"table": table, "split": split, "renderer": renderer}
    run.model = lambda device="cpu": make_model(renderer, family, seed=seed)  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    return run


@pytest.fixture(scope="module")
def evaluated(table: Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict], list[str]]:
    run, said = open_run(tmp_path_factory.mktemp("run"), table), []
    return run, evaluate(run, judge=False, say=said.append), said


def first_of(results: list[dict], arrow: str) -> dict:
    return next(result for result in results if result["arrow"] == arrow)


def test_every_arrow_gets_its_headline_first(evaluated: tuple) -> None:
    _, results, said = evaluated
    heads = {arrow: first_of(results, arrow)["metric"] for arrow in dict.fromkeys(r["arrow"] for r in results)}
    assert heads == {
        "image, question -> answer": "accuracy", "speech -> text": "word error", "image -> text": "exact match",
        "text -> image": "reconstruction error", "text -> speech": "reconstruction error", "-> text": "bits per byte",
    }  # fmt: skip
    assert len(said) == len(heads)


def test_results_hold_what_they_promise(evaluated: tuple) -> None:
    run, results, _ = evaluated
    for result in results:
        assert set(result) >= {"arrow", "split", "metric", "value", "low", "high", "n", "hash", "baselines"}
        assert result["low"] <= result["value"] <= result["high"], result
        assert result["n"] == 20
        assert len(result["hash"]) == 8
    assert json.loads((run.path / "results.json").read_text()) == results


def test_baselines_are_on_the_same_rows(evaluated: tuple) -> None:
    """The answer follows from colour and question: the neighbour finds both, the blind guess cannot know the colour."""
    _, results, _ = evaluated
    found = first_of(results, "image, question -> answer")["baselines"]
    assert found["nearest neighbour"] == 1.0
    assert found["blind (no image)"] < 0.9
    assert found["majority"] <= found["blind (no image)"]
    assert "shuffled image" in found
    assert first_of(results, "image -> text")["baselines"]["support vector machine"] == 1.0
    assert first_of(results, "-> text")["baselines"]["3-gram (Kneser-Ney)"] < first_of(results, "-> text")["value"]


def test_lines_give_the_scores_again(evaluated: tuple) -> None:
    run, results, _ = evaluated
    for arrow in PLAIN:
        head = first_of(results, arrow)
        again = scores(head["kind"], lines(run.path, arrow, "test"), head["metric"])[0]
        assert again.value == pytest.approx(head["value"])


def test_samples_have_their_files(evaluated: tuple) -> None:
    run, _, _ = evaluated
    index = json.loads((run.path / "samples" / "index.json").read_text())
    assert {sample["arrow"] for sample in index} == {
        "image, question -> answer", "speech -> text", "image -> text", "text -> image", "text -> speech",
    }  # fmt: skip
    for sample in index:
        for value in (*sample["inputs"].values(), sample["expected"], sample["produced"]):
            if value.endswith((".png", ".wav")):
                assert (run.path / "samples" / value).stat().st_size > 50


def test_one_arrow_again_leaves_the_others(evaluated: tuple) -> None:
    run, results, _ = evaluated
    before = json.loads((run.path / "results.json").read_text())
    again = evaluate(run, arrows=["image, question -> answer"], judge=False, say=lambda text: None)
    after = json.loads((run.path / "results.json").read_text())
    assert {(r["arrow"], r["metric"], r["value"]) for r in before} == {
        (r["arrow"], r["metric"], r["value"]) for r in after
    }
    assert [r["value"] for r in again] == [r["value"] for r in results if r["arrow"] == "image, question -> answer"]


def test_two_runs_are_compared_row_by_row(evaluated: tuple, table: Table, tmp_path: Path) -> None:
    run, results, _ = evaluated
    other = open_run(tmp_path / "other", table, seed=5)
    theirs = evaluate(other, arrows=PLAIN, judge=False, say=lambda text: None)
    found = compare(run, other)
    line = next(one for one in found if one["arrow"] == PLAIN[0] and one["metric"] == "accuracy")
    assert line["a"] == first_of(results, PLAIN[0])["value"]
    assert line["b"] == first_of(theirs, PLAIN[0])["value"]
    assert line["difference"] == pytest.approx(line["b"] - line["a"])
    assert line["low"] <= line["difference"] <= line["high"]
    assert {one["arrow"] for one in found} == set(PLAIN)
    assert "accuracy" in str(found)
    same = compare(run, run)
    assert all(one["difference"] == 0 and one["p"] == 1 for one in same), "a run does not differ from itself"


def test_unlike_scores_are_refused(evaluated: tuple, table: Table, tmp_path: Path) -> None:
    run, _, _ = evaluated
    fewer = open_run(tmp_path / "fewer", table)
    evaluate(fewer, arrows=PLAIN[:1], limit=10, judge=False, say=lambda text: None)
    with pytest.raises(RunError, match="different rows"):
        compare(run, fewer)
    path = fewer.path / "results.json"
    evaluate(fewer, arrows=PLAIN[:1], judge=False, say=lambda text: None)
    compare(run, fewer)
    for part, said in (("prompt", "types"), ("scorer", "scored"), ("decoding", "decoded")):
        told = json.loads(path.read_text())
        changed = [result | {"parts": result["parts"] | {part: "other"}} for result in told]
        path.write_text(json.dumps(changed))
        with pytest.raises(RunError, match=said):
            compare(run, fewer)
        path.write_text(json.dumps(told))


def test_faults_are_named(evaluated: tuple, tmp_path: Path, table: Table) -> None:
    run, _, _ = evaluated
    with pytest.raises(RunError, match="no split 'tests'"):
        evaluate(run, split="tests")
    with pytest.raises(ArrowError, match="no arrow"):
        evaluate(run, arrows=["question -> answer"])
    fresh = open_run(tmp_path / "fresh", table)
    with pytest.raises(RunError, match="not evaluated yet"):
        compare(run, fresh)
    fresh.__dict__["split"] = np.array(["train"] * 60)
    with pytest.raises(DataError, match="No row"):
        evaluate(fresh, say=lambda text: None)


def test_a_table_that_has_changed_is_told(table: Table, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", table)
    for fingerprint, changed in (("another", True), (table.fingerprint, False)):
        (run.path / "prepared.json").write_text(json.dumps({"fingerprint": fingerprint}))
        said: list[str] = []
        evaluate(run, arrows=["-> text"], judge=False, limit=4, say=said.append)
        assert any("tiny has changed since the run was trained" in line for line in said) == changed


def test_a_row_that_cannot_be_read_is_counted(table: Table, tmp_path: Path) -> None:
    broken = Table({name: list(table.column(name)) for name in table.columns}, table.folder, "broken")
    broken.column("image")[45] = "gone.png"
    run = open_run(tmp_path / "broken", broken)
    result = evaluate(run, arrows=PLAIN[:1], judge=False, say=lambda text: None)[0]
    assert result["n"] == 19
    assert "1 of 20 rows" in result["note"]
    assert "gone.png" in result["note"]


@pytest.mark.parametrize(
    ("arrow", "family"), [("image <-> text", "clip"), ("-> speech", "weft"), ("text -> image", "weft")]
)
def test_rows_that_cannot_be_read_are_counted_whatever_the_arrow(
    table: Table, tmp_path: Path, arrow: str, family: str
) -> None:
    """One of the test rows, and one of the training rows that baselines look at and that training listed."""
    broken = Table({name: list(table.column(name)) for name in table.columns}, table.folder, "broken")
    for column in ("image", "speech"):
        for row in (3, 45):
            broken.column(column)[row] = f"gone-{row}.bin"
    run = open_run(tmp_path / "run", broken, family=family, arrows=[arrow])
    run.skip([{"row": 3, "file": "gone-3.bin", "arrow": arrow, "reason": "gone"}])
    result = evaluate(run, judge=False, say=lambda text: None)[0]
    assert "1 of 20 rows" in result["note"] and "gone-45.bin" in result["note"]
    if arrow == "text -> image":  # without a judge there are no lines; what is shown is of the rows that were measured
        shown = json.loads((run.path / "samples" / "index.json").read_text())
        assert shown and all((run.path / "samples" / sample["expected"]).is_file() for sample in shown)
    else:
        assert len(lines(run.path, arrow, "test")) == 19


@pytest.mark.parametrize(
    ("family", "arrow", "metric", "chance"),
    [
        ("bert", "~text", "accuracy", 0.3),
        ("t5", "~text", "accuracy", 0.3),
        ("gpt", "-> text", "bits per byte", 0.0),
        ("clip", "image <-> text", "recall@1", 1.0),
    ],
)
def test_other_arrows_and_families(
    table: Table, tmp_path: Path, family: str, arrow: str, metric: str, chance: float
) -> None:
    run = open_run(tmp_path / family, table, family=family, arrows=[arrow])
    result = evaluate(run, say=lambda text: None)[0]
    assert result["metric"] == metric
    assert result["low"] <= result["value"] <= result["high"]
    if chance:
        assert result["value"] <= chance, "random weights know nothing"
    assert len(lines(run.path, arrow, "test")) == 20
    again = evaluate(run, say=lambda text: None)[0]
    assert again["value"] == result["value"], "what is hidden is the same each time"


def test_names_and_choices() -> None:
    assert slug("image, question -> answer") == "image-question-_to_-answer"
    assert len({slug(arrow) for arrow in ("a -> b", "a <-> b", "-> b", "~b")}) == 4
    assert chosen(3) == [0, 1, 2]
    assert chosen(100)[0] == 0
    assert chosen(100)[-1] == 99
    assert chosen(0) == []


def test_what_is_as_usual_is_no_part_of_the_hash() -> None:
    """A new way to decode changes the hashes of those who use it alone."""
    assert told(Sampling()) == "{}"
    assert told(Sampling(temperature=1.0)) == "{'temperature': 1.0}" != told(Sampling(temperature=1.0, guidance=2.0))
    assert str(SIDES) in told(Sampling(temperature=1.0, tries=4)), "what is read again is read by these moves"
