"""DPO by hand and as trl writes it; distillation; what a teacher has to be."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import weft
from weft.core.view import Tokens
from weft.data.loader import Loader
from weft.errors import ArrowError, RecipeError
from weft.evaluate.scoring import scores
from weft.generate.predict import Predictor
from weft.objectives import OBJECTIVES
from weft.objectives.distill import softened
from weft.objectives.guide import Guide, refer
from weft.objectives.prefer import dpo, pairs
from weft.recipe import GuideRecipe
from weft.run import Run

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import tiny

QUICK = [word for word in tiny.SMALL if not word.startswith("model.")]
ARROW = "question -> chosen > rejected"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers, and rows that prefer one answer."""
    folder = tmp_path_factory.mktemp("prefer")
    data = str(tiny.table(folder / "data"))
    weft.train(data, "question -> answer:text", out=folder / "base", steps=3, overrides=list(tiny.SMALL))
    rows = [
        {"question": f"what colour is cat {i}?", "chosen": "blue" if i % 2 else "deep blue", "rejected": f"red {i % 5}"}
        for i in range(120)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_of(world: Path, name: str, *words: str, steps: int = 3) -> Run:
    out = world / name
    if (out / "recipe.toml").exists():
        return Run.open(out)
    source = f'model.source="{world / "base"}"'
    return weft.train(str(world / "pairs.jsonl"), ARROW, out=out, steps=steps, overrides=[source, *QUICK, *words])


def batch_of(run: Run):
    from weft.arrows.resolve import resolve

    resolutions = [resolve(arrow, run.renderer.columns, "decoder") for arrow in run.arrows]
    loader = Loader(
        run.table, run.renderer, arrows=run.arrows, resolutions=resolutions, recipe=run.recipe, split=run.split
    )
    return loader.step(0)[0]


def by_hand(model, run: Run, row: int) -> torch.Tensor:
    """(2,) log probabilities of the two answers, each by itself in a row of its own."""
    words, text = run.renderer.vocabulary, run.renderer.text
    record, start = run.table.row(row), words.block("text").start
    found = []
    for column in ("chosen", "rejected"):
        prompt = [words.marker("question"), *(text.encode(record["question"]) + start), words.marker("chosen")]
        answer = [*(text.encode(record[column]) + start), words.end]
        ids = torch.tensor([[*prompt, *answer]])
        log_p = F.log_softmax(model.logits(model.hidden(Tokens(ids)))[0], -1)
        found.append(sum(log_p[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
    return torch.stack(found)


def test_the_loss_is_equation_7(world: Path) -> None:
    run = run_of(world, "full", "train.lr=0.01")
    model = run.model()
    from weft.adapt.start import load_start, make

    frozen = make(run.config, run.recipe, *load_start(run.path)).eval()
    model.guide = Guide(GuideRecipe(beta=0.3), reference=frozen)
    batch = batch_of(run)
    loss, report = OBJECTIVES[batch.objective](model, batch)
    assert batch.objective == "prefer" and batch.total == len(batch.rows) == report["counts"].sum()
    with torch.no_grad():
        own = torch.stack([by_hand(model, run, row) for row in batch.rows])
        theirs = torch.stack([by_hand(frozen, run, row) for row in batch.rows])
    # as trl's DPOTrainer writes it (loss_type "sigmoid", no label smoothing)
    policy, reference = own[:, 0] - own[:, 1], theirs[:, 0] - theirs[:, 1]
    wanted = -F.logsigmoid(0.3 * (policy - reference)).mean()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    assert abs(loss.item() - np.log(2)) > 1e-4, "it has moved from its start"
    order = pairs(model, batch).log_p.detach()
    torch.testing.assert_close(order.sort(0).values, own.sort(0).values, atol=1e-4, rtol=1e-4)


def test_at_the_start_nothing_is_preferred(world: Path) -> None:
    for name, words in (("full", ["train.lr=0.01"]), ("lora", ["model.lora.rank=4", "train.lr=0.01"])):
        first = run_of(world, name, *words).metrics("step")[0]
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-6), "the reference is the model itself"


def test_it_learns_to_prefer_with_adapters_and_without(world: Path) -> None:
    for name, words, least in (  # adapters beside nearly random weights have little to work with
        ("long", ["train.lr=0.005"], 0.62), ("long-lora", ["model.lora.rank=4", "train.lr=0.05"], 0.691),
    ):  # fmt: skip
        run = run_of(world, name, *words, steps=16)
        assert run.metrics("validation")[-1]["validation"]["loss"] < least, name
        assert Predictor(run).produce(ARROW, [{"question": "what colour is cat 3?"}])[0].value is not None


def test_adapters_need_no_copy_of_the_model(world: Path) -> None:
    model = Run.open(world / "base").model()
    from weft.adapt import freeze, lora

    copy = refer(model)
    assert copy is not None and copy is not model
    model.requires_grad_(False)
    lora.attach(model, lora.Lora(2))
    assert refer(model) is None
    freeze.keep_only(model, ["heads.language.weight"])
    shared = refer(model)
    own, theirs = dict(model.named_parameters()), dict(shared.named_parameters())
    assert theirs["body.stack.norm.weight"] is own["body.stack.norm.weight"], "what is frozen is shared"
    assert theirs["heads.language.weight"] is not own["heads.language.weight"]


def test_dpo_has_the_signs_of_the_paper() -> None:
    zero = torch.zeros(1, 2)
    assert float(dpo(zero, zero, 0.1)) == pytest.approx(np.log(2))
    better = torch.tensor([[1.0, -1.0]])
    assert float(dpo(better, zero, 1.0)) == pytest.approx(-np.log(1 / (1 + np.exp(-2.0))))
    assert float(dpo(better, zero, 1.0)) < float(dpo(-better, zero, 1.0))


def test_preferences_need_a_start_and_two_answers_of_one_type(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--from"):
        weft.train(str(world / "pairs.jsonl"), ARROW, out=tmp_path / "x", steps=1, overrides=list(tiny.SMALL))
    with pytest.raises(ArrowError, match="encoder model does not"):
        weft.plan(str(world / "pairs.jsonl"), ARROW, family="bert")


# ------------------------------------------------------------------------------------------------ distillation


def student(world: Path, name: str, *words: str, teacher: str = "base", steps: int = 2) -> Run:
    out = world / name
    data, small = str(world / "data" / "animals.csv"), list(tiny.SMALL)
    guide = f'model.guide.teacher="{world / teacher}"'
    return weft.train(data, "question -> answer:text", out=out, steps=steps, overrides=[*small, guide, *words])


def test_distillation_takes_the_teachers_vocabulary_and_its_loss_is_hintons(world: Path) -> None:
    run = student(world, "student", "model.guide.share=0.7", "model.guide.temperature=3.0", "seed=4")
    teacher = Run.open(world / "base")
    assert run.renderer.vocabulary == teacher.renderer.vocabulary
    model = run.model()
    model.guide = Guide(GuideRecipe(share=0.7, temperature=3.0, hidden=0.2), teacher=teacher.model())
    batch = batch_of(run)
    assert batch.objective == "distill"
    loss, report = OBJECTIVES["distill"](model, batch)
    places = batch.targets.flatten() != -100
    with torch.no_grad():
        h, g = (m.hidden(batch.tokens).flatten(0, 1)[places] for m in (model, model.guide.teacher))
        own, theirs = model.logits(h), model.guide.teacher.logits(g)
    p, q = F.softmax(theirs / 3, -1), F.softmax(own / 3, -1)
    soft = 9 * (p * (p.log() - q.log())).sum(-1)
    plain = F.cross_entropy(own, batch.targets.flatten()[places], reduction="none")
    wanted = (0.3 * plain + 0.7 * soft + 0.2 * (h - g).square().mean(-1)).mean()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(report["loss"], plain.mean(), atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is None for p in model.guide.teacher.parameters())


def test_a_student_comes_closer_to_its_teacher(world: Path) -> None:
    teacher = Run.open(world / "base").model()
    found = {}
    for share in (0.0, 1.0):
        run = student(world, f"share{share}", f"model.guide.share={share}", "seed=5", steps=16)
        batch, model = batch_of(run), run.model()
        places = batch.targets.flatten() != -100
        with torch.no_grad():
            logits = [m.logits(m.hidden(batch.tokens).flatten(0, 1)[places]) for m in (model, teacher)]
        found[share] = float(softened(*logits, 1.0).mean())
    assert found[1.0] < 0.7 * found[0.0], found


def test_a_teacher_of_another_vocabulary_or_width_stops(world: Path) -> None:
    data, guide = str(world / "data" / "animals.csv"), f'model.guide.teacher="{world / "base"}"'
    with pytest.raises(RecipeError, match=r"vocabulary of .* ids .* cannot be compared"):
        weft.train(data, "-> note", out=world / "bad", steps=1, overrides=[*tiny.SMALL, guide])
    words = [*tiny.SMALL, guide, "model.dim=16", "model.guide.hidden=1.0"]
    with pytest.raises(RecipeError, match="32 wide and the model's 16"):
        weft.train(data, "question -> answer:text", out=world / "bad", steps=1, overrides=words)


# ------------------------------------------------------------------------------------------------ what was there


def test_what_was_there_is_measured_before_and_after(world: Path) -> None:
    plain = world / "plain.txt"
    plain.write_text("what colour is the red cat? " * 40)
    run = run_of(world, "kept", f'train.options.keep_text="{plain}"', "train.lr=0.05", steps=5)
    events = [line for line in run.metrics("event") if line["event"] == "keep"]
    assert [line["step"] for line in events] == [0, 5]
    base = Run.open(world / "base")
    ids = torch.from_numpy(base.renderer.text.encode(plain.read_text()) + base.renderer.vocabulary.block("text").start)
    losses = []
    model = base.model()
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 64):
            window = ids[start : start + 65]
            logits = model.logits(model.hidden(Tokens(window[None, :-1])))[0]
            losses.append(F.cross_entropy(logits, window[1:], reduction="sum"))
    assert events[0]["loss"] == pytest.approx(float(sum(losses)) / (len(ids) - 1), abs=0.02), "five new ids share it"
    assert "before" in (run.path / "card.md").read_text() and "after" in (run.path / "card.md").read_text()
    assert load_file(run.path / "model.safetensors")


def test_eval_says_how_often_the_chosen_one_is_likelier(world: Path) -> None:
    run = run_of(world, "dpo-eval", steps=12)
    found = {r["metric"]: r for r in weft.evaluate(run, split="train", limit=20)}
    lines = [json.loads(line) for line in next((run.path / "predictions").iterdir()).read_text().splitlines()]
    with torch.no_grad():
        hand = [by_hand(Predictor(run).model, run, line["row"]).tolist() for line in lines[:3]]
        start = [by_hand(Predictor(run, run.start()).model, run, line["row"]).tolist() for line in lines[:3]]
    assert np.allclose(hand, [[line["chosen"], line["rejected"]] for line in lines[:3]], atol=1e-3)
    assert np.allclose(start, [line["start"] for line in lines[:3]], atol=1e-3)
    share = np.mean([(line["chosen"] > line["rejected"]) + (line["chosen"] == line["rejected"]) / 2 for line in lines])
    assert found["accuracy"]["value"] == pytest.approx(share) and found["accuracy"]["n"] == len(lines) > 3
    gained = [line["chosen"] - line["start"][0] > line["rejected"] - line["start"][1] for line in lines]
    assert found["reward accuracy"]["value"] == pytest.approx(np.mean(gained))
    assert set(found["accuracy"]["baselines"]) == {"before training", "the shorter one"}
    assert not found["reward accuracy"]["baselines"], "the model before training gained nothing on itself"


def test_equal_answers_are_a_coins_and_long_ones_are_left_out(world: Path) -> None:
    lines = [{"chosen": c, "rejected": r, "start": [0.0, 0.0]} for c, r in ((-1, -1), (-1, -2), (-2, -2), (-3, -2))]
    for found in scores("prefer", lines, "accuracy"):
        assert found.value == pytest.approx(0.5), "one of two that differ, and two halves"
    run = run_of(world, "dpo-long", steps=2)
    whole = weft.evaluate(run, split="train", limit=20)[0]["n"]
    longest = sorted(run.renderer.length(run.table.row(row), 0) for row in np.flatnonzero(run.split == "train")[:200])
    run.recipe = replace(run.recipe, train=replace(run.recipe.train, length=longest[len(longest) // 2]))
    said: list[str] = []
    fewer = weft.evaluate(run, split="train", limit=20, say=said.append)[0]["n"]
    assert 0 < fewer < whole and any("tokens; the context (train.length) is" in line for line in said), said


def test_reward_accuracy_is_compared_from_one_start_only(world: Path) -> None:
    one, two = (run_of(world, f"dpo-side{lr}", f"train.lr={lr}", steps=4) for lr in (0.01, 0.02))
    for run in (one, two):
        weft.evaluate(run, split="train", limit=20)
    found = weft.compare(one, two, split="train")
    assert {line["metric"] for line in found} == {"accuracy", "reward accuracy"} and not found.notes
    path = next((two.path / "predictions").iterdir())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"start": [-1.0, -2.0]}) + "\n" for line in lines))
    found = weft.compare(one, two, split="train")
    assert [line["metric"] for line in found] == ["accuracy"] and "different weights" in str(found)
