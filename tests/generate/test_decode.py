"""Decoding: legal, cached = uncached, alone = in a batch, streamed = whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_world import ARROWS, make_predictor

from weft.errors import ArrowError, DataError, WeftError
from weft.generate.decode import Rule, decode, steps
from weft.generate.predict import Predictor, predict, stream
from weft.generate.prompt import identity, lay
from weft.generate.sample import Draws, Sampling

HOT = Sampling(temperature=2.0, seed=5)
DECODED = [arrow for arrow in ARROWS if "answer" not in arrow]


@pytest.mark.parametrize("arrow", ARROWS)
@pytest.mark.parametrize("sampling", [Sampling(), HOT], ids=["greedy", "hot"])
def test_only_legal_tokens_and_the_right_count(
    predictor: Predictor, records: list, arrow: str, sampling: Sampling
) -> None:
    column = predictor.renderer.arrows[predictor.find(arrow)].output
    legal = predictor.renderer.legal(column)
    seen = set()
    for one in predictor.produce(arrow, records, sampling):
        assert legal.mask[one.ids].all()
        if legal.count:
            assert len(one.ids) == legal.count
        if legal.end is not None and legal.end in one.ids:
            assert list(one.ids).index(legal.end) == len(one.ids) - 1, "nothing stands behind an end"
        assert one.finished == (legal.end is None or one.ids[-1] == legal.end)
        seen.add(tuple(one.ids))
    assert len(seen) > 1, "different inputs must give different answers, or this test shows nothing"


@pytest.mark.parametrize("arrow", ARROWS)
@pytest.mark.parametrize("sampling", [Sampling(), HOT], ids=["greedy", "hot"])
def test_each_row_alone_equals_the_batch(predictor: Predictor, records: list, arrow: str, sampling: Sampling) -> None:
    unlike = records[:3]  # no two ask the same, so no draw depends on who came before
    together = predictor.produce(arrow, unlike, sampling)
    for record, one in zip(unlike, together, strict=True):
        alone = predictor.produce(arrow, [record], sampling)[0]
        assert np.array_equal(alone.ids, one.ids), (alone.ids, one.ids)
    backwards = predictor.produce(arrow, unlike[::-1], sampling, batch=2)[::-1]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(together, backwards, strict=True))


@pytest.mark.parametrize("arrow", DECODED)
def test_cached_equals_uncached(predictor: Predictor, records: list, arrow: str) -> None:
    samples = predictor.prompts(predictor.find(arrow), records)
    column = predictor.renderer.arrows[predictor.find(arrow)].output
    rule = Rule.of(predictor.renderer, column, predictor.length, max(map(len, samples)))
    keys = [identity(sample) for sample in samples]
    results = [
        decode(predictor.model, lay(samples), rule, HOT, Draws(keys, 5), cached=cached) for cached in (True, False)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    other = decode(predictor.model, lay(samples), rule, HOT, Draws(keys, 6))
    assert any(not np.array_equal(a, b) for a, b in zip(results[0], other, strict=True)), "another seed, another answer"


def test_padding_in_the_cache_must_be_hidden(predictor: Predictor, records: list) -> None:
    """The negative control: if padding counted as a document of its own row, short rows would answer differently."""
    samples = predictor.prompts(predictor.find("speech -> text"), records)
    prompts = lay(samples)
    rule = Rule.of(predictor.renderer, "text", predictor.length, max(map(len, samples)))
    right = decode(predictor.model, prompts, rule)
    prompts.tokens.document = torch.ones_like(prompts.tokens.document)
    wrong = decode(predictor.model, prompts, rule)
    assert any(not np.array_equal(a, b) for a, b in zip(right, wrong, strict=True))


def test_labels_read_from_shared_beginnings_equal_single_forwards(predictor: Predictor, records: list) -> None:
    """Twenty questions about one picture stand in one document; each is answered as if it stood alone."""
    image = records[0]["image"]
    rows = [{"image": image, "question": f"is it {word} or {i}?"} for i in range(10) for word in ("red", "blue")]
    together = predictor.produce("image, question -> answer", rows)
    for row, one in zip(rows, together, strict=True):
        sample = predictor.prompts(0, [row])[0]
        prompts = lay([sample])
        with torch.no_grad():
            scores = predictor.model.logits(predictor.model.hidden(prompts.tokens)[0, prompts.last[0]])
        block = predictor.renderer.vocabulary.block("label:answer")
        assert one.ids[0] == block.start + int(scores[block.start : block.stop].argmax())
    assert len({one.value for one in together}) > 1


def test_a_streamed_text_is_the_whole_text(predictor: Predictor, records: list) -> None:
    for record in records[:2]:
        pieces = list(stream(predictor, "image -> text", record, sampling=HOT))
        assert "".join(pieces) == predictor.produce("image -> text", [record], HOT)[0].value.rstrip("\ufffd")


def test_steps_yield_one_column_at_a_time(predictor: Predictor, records: list) -> None:
    samples = predictor.prompts(predictor.find("text -> image"), records)
    rule = Rule.of(predictor.renderer, "image", predictor.length, max(map(len, samples)))
    columns = list(steps(predictor.model, lay(samples), rule))
    assert len(columns) == 4 and all(column.shape == (len(records),) for column in columns)


def test_values_have_the_type_of_the_column(predictor: Predictor, records: list) -> None:
    assert predict(predictor, "image, question -> answer", records)[0] in ("blue", "no", "red", "yes")
    image = predict(predictor, "text -> image", text="a red circle")[0]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    wave = predict(predictor, "text -> speech", text="red")[0]
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert isinstance(predict(predictor, "-> text", {})[0], str)


def test_a_beginning_is_gone_on_from(predictor: Predictor) -> None:
    given = predictor.prompts(predictor.find("-> text"), [{"text": "a red"}])[0]
    ids = [int(i) for span in given.spans for i in span.ids]
    assert ids[0] == predictor.renderer.vocabulary.marker("text")
    assert ids[-1] != predictor.renderer.vocabulary.end and len(ids) > 1


def test_the_same_prompt_many_times_gives_different_draws(predictor: Predictor) -> None:
    drawn = predict(predictor, "text -> image", [{"text": "red"}] * 6, temperature=2.0)
    assert len({image.tobytes() for image in drawn}) > 1
    again = predict(predictor, "text -> image", [{"text": "red"}] * 6, temperature=2.0)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_faults_are_named(predictor: Predictor) -> None:
    with pytest.raises(DataError, match="question"):
        predict(predictor, "image, question -> answer", image=np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ArrowError, match="no arrow"):
        predict(predictor, "question -> answer", question="?")
    with pytest.raises(WeftError, match="context"):
        predict(make_predictor(length=6), "text -> image", text="a red circle that is not blue")


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_other_kinds_of_model(family: str, records: list) -> None:
    """An encoder-decoder reads its source; an encoder reads its first token. Alone = in a batch for both."""
    model = make_predictor(family, labels={"label:answer": 4} if family == "bert" else None)
    arrows = ["image, question -> answer"] + (["text -> image", "image -> text"] if family == "t5" else [])
    for arrow in arrows:
        rows = [records[i % 3] | {"question": f"is it {'red' if i % 2 else 'blue'} or {i}?"} for i in range(9)]
        rows = rows if "answer" in arrow else records[:3]
        together = model.produce(arrow, rows, HOT)
        alone = [model.produce(arrow, [row], HOT)[0] for row in rows[:3]]
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(together, alone, strict=False))
        assert len({tuple(one.ids) for one in together}) > 1, arrow


def test_all_bad_rows_are_told_at_once(predictor: Predictor, records: list) -> None:
    mixed = [{**records[0], "image": f"none-{i}.png"} if i % 2 else records[0] for i in range(16)]
    with pytest.raises(DataError) as told:
        predictor.produce("image, question -> answer", mixed)
    said = str(told.value)
    assert said.startswith("8 of 16 rows cannot be used. row 1, column 'image'")
    assert (
        all(f"none-{i}.png" in said for i in (1, 3, 5, 7, 9)) and "none-11" not in said and said.endswith("And 3 more.")
    )
    with pytest.raises(DataError, match=r"none-1\.png") as one:
        predictor.produce("image, question -> answer", mixed[:2])
    assert "rows cannot be used" not in str(one.value)
