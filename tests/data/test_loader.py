"""The loader: every sample as often as the mix says, steps by number, nothing dropped without a word."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.data import batch as batches
from weft.data.loader import Loader
from weft.data.plan import Planner
from weft.data.sources import Table
from weft.errors import DataError, RecipeError
from weft.recipe import Recipe, TrainOptions, TrainRecipe

ASK, HEAR = "image, question -> answer", "caption -> image"


def table(rows: int = 60, broken: int = 0) -> Table:
    """Three questions about each image."""
    return Table(
        {
            "image": [f"{'broken' if n // 3 < broken else 'img'}{n // 3}.png" for n in range(rows)],
            "question": [f"what is {n % 3} here" for n in range(rows)],
            "answer": ["yes" if n % 2 else "no" for n in range(rows)],
            "text": [f"the quick brown fox number {n} jumps" for n in range(rows)],
            "split": ["validation" if n >= rows - 6 else "train" for n in range(rows)],
        }
    )


@pytest.fixture
def load(renderer, resolved):
    """(arrows) -> a loader over `table`, with the objectives given by name."""

    def make(*arrows: str, objectives: tuple[str, ...] = (), data: Table | None = None, mix=None, **train) -> Loader:
        parsed, words = renderer(*arrows, answer=("no", "yes"))
        options = {name: train.pop(name) for name in list(train) if name == "skip_share"}
        recipe = Recipe(arrows=arrows, mix=mix or {}, train=TrainRecipe(**{"tokens": 128, "length": 32} | train))
        recipe = replace(recipe, train=replace(recipe.train, options=TrainOptions(**options)))
        found = [resolved(name) for name in objectives or ("next",) * len(arrows)]
        return Loader(data or table(), words, arrows=parsed, resolutions=found, recipe=recipe)

    return make


def same(one: list[batches.Batch], two: list[batches.Batch]) -> bool:
    """Bit for bit."""

    def fields(b: batches.Batch) -> list[torch.Tensor]:
        tokens = [b.tokens.ids, b.tokens.document, b.tokens.branch, b.tokens.positions, b.weights, b.arrow]
        more = [b.targets, None if b.source is None else b.source.ids]
        media = [value for m in b.tokens.media for value in (m.values, m.at)]
        return tokens + [one for one in more if one is not None] + media

    return len(one) == len(two) and all(
        len(fields(a)) == len(fields(b))
        and all(map(torch.equal, fields(a), fields(b)))
        and (a.total, a.rows) == (b.total, b.rows)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(
    ("arrow", "objective"),
    [(ASK, "next"), ("-> text", "next"), ("~text", "masked"), ("~text", "seq2seq"), ("question -> text", "seq2seq"),
     ("image, question -> answer", "classify"), ("image <-> question", "contrastive")],
)  # fmt: skip
def test_a_step_is_a_function_of_its_number(load, arrow, objective):
    """Reached by iteration, after a resume, or asked for directly; the seed changes it."""
    loader = load(arrow, objectives=(objective,))
    stream = loader.iterate(0)
    walked = [next(stream) for _ in range(7)]
    stream.close()
    resumed = load(arrow, objectives=(objective,)).iterate(5)
    direct = load(arrow, objectives=(objective,)).step(6)
    assert same(walked[5], next(resumed)), "a resume sees what it would have seen"
    assert same(walked[6], direct), "asked for directly"
    assert not same(walked[5], walked[6]), "steps differ"
    resumed.close()
    other = load(arrow, objectives=(objective,))
    other.assembler.seed = other.recipe.seed + 1
    other.recipe = replace(other.recipe, seed=1)
    assert not same(walked[6], other.step(6)), "another seed, other bits"


def drawn(loader: Loader) -> Counter:
    """(row, arrow) -> how often it bears loss in a round."""
    plan, samples = loader.round(0), loader.planner("train").samples
    found: Counter = Counter()
    for lane, rows in enumerate(plan.rows):
        for row in rows:
            for doc in row:
                for number in doc.samples:
                    found[int(samples[lane].row[number]), int(samples[lane].arrow[number])] += 1
    return found


def test_an_epoch_holds_every_sample_once(load):
    loader = load(ASK, "-> text")
    found = drawn(loader)
    epochs = loader.round(0).epochs
    assert epochs > 1, "a small table takes several epochs to a round"
    assert set(found) == {(row, arrow) for row in range(54) for arrow in (0, 1)}, "all training rows, no other"
    assert set(found.values()) == {epochs}, "each once an epoch"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 40), length=st.integers(24, 64), seed=st.integers(0, 3))
def test_steps_hold_the_round_exactly(renderer, resolved, rows, length, seed):
    arrows, words_of = renderer(ASK, "-> text")
    recipe = Recipe(seed=seed, arrows=(ASK, "-> text"), train=TrainRecipe(tokens=128, length=length))
    loader = Loader(
        table(3 * rows), words_of, arrows=arrows, resolutions=[resolved("next")] * 2, recipe=recipe,
        split=np.array(["train"] * 3 * rows, dtype=object),
    )  # fmt: skip
    plan = loader.round(0)
    trained = sum(int((b.targets >= 0).sum()) for step in range(plan.steps) for b in loader.step(step))
    words = [
        len(str(loader.table.column(name)[row]).split()) + 1 for row in range(3 * rows) for name in ("answer", "text")
    ]
    assert trained == sum(words) * plan.epochs, "every output token is trained, once an epoch"
    assert all(b.tokens.ids.shape == (128 // length, length) for step in range(3) for b in loader.step(step)), (
        "one shape"
    )


def test_one_image_is_encoded_once_for_its_questions(load):
    loader = load(ASK, tokens=640, length=64)
    (step,) = loader.step(0)
    images = len(step.tokens.media[0].at) // 4
    answers = int((step.tokens.ids == loader.renderer.vocabulary.marker("answer")).sum())
    assert answers == 3 * images, f"{answers} answers share {images} images"


def test_equal_samples_are_kept_once_and_counted(load):
    data = Table(
        {"question": ["a b", "a b", "a c", "a b"], "answer": ["yes", "yes", "no", "no"], "split": ["train"] * 4}
    )
    loader = load("question -> answer", data=data)
    loader.planner("train")
    (count,) = loader.counts["train"]
    assert (count.samples, count.repeated) == (4, 1), "the second 'a b -> yes' repeats; 'a b -> no' does not"


def test_mix_draws_by_weight(load):
    data = table(90)
    loader = load(ASK, "-> text", data=data, mix={ASK: 0.5, "-> text": 2.0})
    found, epochs = drawn(loader), loader.round(0).epochs
    count = Counter(arrow for (_, arrow), times in found.items() for _ in range(times))
    assert count == {0: 42 * epochs, 1: 2 * 84 * epochs}, "half of one, twice the other"
    assert len([1 for _, arrow in found if arrow == 0]) == 84, "the halves go around: no row is left out for good"
    with pytest.raises(RecipeError, match="Did you mean '-> text'"):
        load(ASK, "-> text", mix={"-> txt": 1.0}).round(0)


def test_a_column_says_how_often_each_row_is_drawn(load):
    often = [["3", 2, 0, "0.5", None][i % 5] for i in range(90)]
    plain = {name: table(90).column(name) for name in table().columns}
    data = Table({**plain, "often": often})
    loader = load("-> text", data=data, mix={"-> text": "often"}, tokens=64)
    epochs, found = 4 * loader.round(0).epochs, Counter()
    for number in range(4):
        for step in range(loader.round(number).steps):
            for rows in loader.round(number).step(step):
                found.update(int(loader.planner("train").samples[0].row[doc.samples[0]]) for row in rows for doc in row)
    for row in np.flatnonzero(loader.split == "train").tolist():
        wanted = epochs * float(often[row] if often[row] is not None else 1)
        assert abs(found[row] - wanted) < 1, (row, often[row])
    assert any(found[row] != found[row - 1] for row in range(1, 80)), "control: not all alike"
    with pytest.raises(RecipeError, match="Did you mean 'often'"):
        load("-> text", data=data, mix={"-> text": "oftn"}).round(0)
    with pytest.raises(RecipeError, match="mix draws no row of the split 'train'"):
        load("-> text", data=Table({**plain, "often": [0] * 90}), mix={"-> text": "often"}).round(0)
    for bad in ("many", -1, 1e9, "nan"):
        data = Table({**plain, "often": [1] * 7 + [bad] * 83})
        with pytest.raises(DataError, match="row 7 of the column 'often'"):
            load("-> text", data=data, mix={"-> text": "often"}).round(0)


def test_blank_cells_sit_out(load):
    data = table()
    data._data["question"] = ["" if n % 2 else q for n, q in enumerate(data.column("question"))]
    assert {row % 2 for row, _ in drawn(load(ASK, data=data))} == {0}, "rows without a question take no part"


def test_weights_are_the_arrows(load):
    (step,) = load(f"2* {ASK}", "-> text").step(0)
    trained = step.targets >= 0
    assert set(step.weights[trained & (step.arrow == 0)].tolist()) == {2.0}
    assert set(step.weights[trained & (step.arrow == 1)].tolist()) == {1.0}
    assert step.total == pytest.approx(float(step.weights.sum())), "the loss is divided by all weights of the step"


def test_micro_batches_are_the_step_in_pieces(load):
    whole, parts = load(ASK, "-> text").step(3), load(ASK, "-> text", micro=1).step(3)
    assert len(whole) == 1 and len(parts) == 4
    assert torch.equal(torch.cat([p.tokens.ids for p in parts]), whole[0].tokens.ids)
    assert {p.total for p in parts} == {whole[0].total}, "each knows the step's total"


def test_undecodable_rows_are_named_and_counted(load):
    loader = load(ASK, data=table(60, broken=1), skip_share=0.1)
    assert {row for row, _ in drawn(loader)} == set(range(3, 54)), "the others are trained"
    (first, *rest) = loader.skipped
    assert (first.row, first.arrow, len(rest)) == (0, ASK, 2), "the three questions about the broken image"
    assert "broken0.png" in first.what and "not a readable image" in first.reason
    assert [skip.row for skip in loader.skipped] == [0, 1, 2], "in the order of the rows"
    with pytest.raises(DataError, match=r"4 of 60 rows cannot be used.*5.00%.*broken1.png"):
        load(ASK, data=table(60, broken=2), skip_share=0.05).round(0)


def test_a_file_that_goes_bad_later_bears_no_loss(load):
    loader = load(ASK, skip_share=0.2)
    loader.round(0)
    before = sum(b.total for step in range(loader.round(0).steps) for b in loader.step(step))
    loader = load(ASK, skip_share=0.2)
    loader.round(0)
    loader.renderer.media.clear()
    loader.table._data["image"] = [name.replace("img5.", "broken5.") for name in loader.table.column("image")]
    after = sum(b.total for step in range(loader.round(0).steps) for b in loader.step(step))
    assert before - after == 3 * loader.round(0).epochs, "the answers of three rows, each epoch"
    assert {skip.row for skip in loader.skipped} == {15, 16, 17}


def test_rows_longer_than_the_context_are_listed_never_cut(load):
    data = table()
    data._data["question"] = ["very " * 40 + "long" if n == 7 else q for n, q in enumerate(data.column("question"))]
    loader = load(ASK, data=data)
    loader.round(0)
    (skip,) = loader.skipped
    assert (skip.row, skip.reason) == (7, "49 tokens; the context (train.length) is 32")
    assert loader.counts["train"][0].long == 1


def test_nothing_to_train_on(load):
    with pytest.raises(DataError, match=r"no row of the split 'train'.*60 are longer than train.length=4"):
        load(
            "-> text", data=Table(dict(table(60)._data, split=["train"] * 60)), length=4, objectives=("contrastive",)
        ).round(0)


@pytest.mark.parametrize(("arrow", "objective"), [("-> text", "next"), ("~text", "masked"), ("~text", "seq2seq")])
def test_a_long_text_is_cut_into_windows(load, arrow, objective):
    data = Table({"text": [" ".join(f"w{n}" for n in range(500))], "split": ["train"]})
    loader = load(arrow, data=data, objectives=(objective,))
    plan = loader.round(0)
    assert plan.windows >= 500 // 32 * plan.epochs and not loader.skipped, "windows, and said how many"
    steps = [loader.step(n) for n in range(plan.steps)]
    if objective == "next":
        count = Counter(t for (b,) in steps for t in b.targets[b.targets >= 0].tolist())
        expected = Counter([*loader.renderer.words(data.column("text")[0]).tolist(), loader.renderer.vocabulary.end])
        assert count == {word: n * plan.epochs for word, n in expected.items()}, (
            "every token is predicted once an epoch"
        )
    assert all(b.real <= b.tokens.ids.numel() * (2 if b.source is not None else 1) for (b,) in steps)


def test_windows_of_hidden_spans_are_planned_as_long_as_they_are(load):
    """Also the last one, which may be a single token: sentinel, token and end are asked for."""
    loader = load("~text", data=Table({"text": [" ".join(["w"] * 500)], "split": ["train"]}), objectives=("seq2seq",))
    planner, ends = loader.planner("train"), set()
    for epoch in range(60):
        docs, lengths = planner.documents(loader.lanes[0], planner.samples[0], epoch, np.random.default_rng(epoch))
        for doc, planned in zip(docs, lengths.tolist(), strict=True):
            sides = loader.assembler.two([(0, 0)], doc, "seq2seq")
            real = [sum(len(part.piece) for part in side) for side in sides]
            assert all(r <= p for r, p in zip(real, planned, strict=True)), f"{real} tokens, planned as {planned}"
            ends.add(doc.stop - doc.start)
    assert 1 in ends, "a window of one token was among them"


def test_encoder_decoder_streams(load):
    (step,) = load("question -> text", objectives=("seq2seq",)).step(0)
    words = load("question -> text").renderer.vocabulary
    first = step.tokens.document == 1
    assert step.tokens.ids[0, 0] == words.pad, "the decoder starts with pad (T5)"
    assert step.targets[0][first[0]][-1] == words.end, "and is to say end last"
    shifted = step.tokens.ids[0][first[0]][1:]
    assert torch.equal(step.targets[0][first[0]][:-1][1:], shifted[1:]), "what it predicts is what it reads next"
    assert (step.source.document.amax(1) == step.tokens.document.amax(1)).all(), (
        "documents are numbered alike on both sides"
    )


def test_classify_puts_the_label_at_the_first_token(load):
    (step,) = load("image, question -> answer", objectives=("classify",)).step(0)
    starts = [
        (r, int((step.tokens.document[r] == d).nonzero()[0]))
        for r in range(4)
        for d in range(1, int(step.tokens.document[r].max()) + 1)
    ]
    assert [step.targets[place].item() for place in starts] == [row % 2 for row in step.rows], "no: 0, yes: 1"
    assert int((step.targets >= 0).sum()) == len(starts), "one per document"
    assert (step.tokens.ids < load(ASK).renderer.vocabulary.block("label:answer").start).all(), (
        "the label itself is not shown"
    )


def test_pairs_stand_one_to_a_row(load):
    (step,) = load("image <-> question", objectives=("contrastive",)).step(0)
    assert step.targets is None and step.total == len(step.rows) == len(step.tokens.ids) == len(step.source.ids)
    assert int(step.tokens.document.max()) == int(step.source.document.max()) == 1


def test_objectives_of_an_encoder_keep_apart(load):
    loader = load("~text", "question -> answer", objectives=("masked", "classify"))
    steps = [loader.step(number) for number in range(loader.round(0).steps)]
    assert {b.objective for step in steps for b in step} == {"masked", "classify"}
    assert max(map(len, steps)) == 2, "both in one step"
    for step in steps:
        assert len({b.total for b in step}) == 1, "one total over the step"
        for b in step:
            assert set(b.arrow[b.arrow >= 0].tolist()) == {0 if b.objective == "masked" else 1}, "one batch each"


def test_evaluation_sees_each_row_of_the_split_once(load):
    loader = load(ASK, "-> text", mix={ASK: 3.0})
    rows = Counter(row for step in loader.evaluation("validation") for b in step for row in b.rows)
    assert rows == dict.fromkeys(range(54, 60), 2), "once for each arrow, whatever the mix"
    limited = Counter(row for step in loader.evaluation("validation", limit=2) for b in step for row in b.rows)
    assert sum(limited.values()) == 4, "two rows for each arrow"


def test_an_error_in_the_thread_reaches_the_user(load):
    loader = load(ASK)
    loader.round(0)
    loader.renderer.render = lambda *_, **__: (_ for _ in ()).throw(ValueError("a bug"))
    stream = loader.iterate()
    with pytest.raises(ValueError, match="a bug"):
        next(stream)
    assert not any(t.name == "weft-loader" for t in threading.enumerate()), "the thread has ended"


def test_the_thread_ends_with_its_reader(load):
    stream = load(ASK).iterate()
    next(stream)
    assert any(t.name == "weft-loader" for t in threading.enumerate())
    stream.close()
    assert not any(t.name == "weft-loader" for t in threading.enumerate()), "closing ends the thread"


def test_little_is_padding(load):
    data = table(600)
    loader = load(ASK, "-> text", data=data, length=64, tokens=512)
    assert loader.padding < 0.04, f"{loader.padding:.1%} of the places are padding"
    assert loader.tokens_per_step == 512


def test_a_late_step_is_found_without_planning_what_came_before(load, monkeypatch):
    far = load(ASK, "-> text")
    number = 4 * far.round(0).steps + 3
    expected = far.step(number)
    assert len(far.ends) == 5
    planned: list[int] = []
    plain = Planner.round
    monkeypatch.setattr(Planner, "round", lambda self, n, epochs: planned.append(n) or plain(self, n, epochs))
    told = load(ASK, "-> text")
    told.ends = list(far.ends)
    assert same(told.step(number), expected)
    assert planned == [0, 4], "how many epochs a round has, and the round itself"
    planned.clear()
    assert same(load(ASK, "-> text").step(number), expected)
    assert planned == [0, 0, 1, 2, 3, 4], "control: untold, it plans them all"


def test_loaders_may_list_what_they_leave_out_together(load):
    loader = load(ASK, data=table(60, broken=1), skip_share=0.1)
    loader.split[:3] = "validation"
    other = Loader(
        loader.table, loader.renderer, arrows=loader.arrows, resolutions=[SimpleNamespace(objective="next", head="")],
        recipe=loader.recipe, split=loader.split, skips=loader.skips,
    )  # fmt: skip
    list(other.evaluation())
    assert {skip.row for skip in loader.skipped} == {0, 1, 2}


def test_rounds_may_be_asked_for_in_any_order(load):
    """The forecast runs ahead of the first step: with few rows that is rounds further on."""
    forward, back = load("image, question -> answer"), load("image, question -> answer")
    want = [forward.round(number) for number in range(4)]
    for number in (0, 1, 2, 3, 0, 2, 1):
        found = back.round(number)
        assert [found.step(i) for i in range(found.steps)] == [want[number].step(i) for i in range(found.steps)]
        assert len(back._rounds) <= 2, "two are kept"
