"""What the reverse arrow does not surely read as asked is made again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.arrows.grammar import parse_all
from weft.data.pack import Part, collate, flatten
from weft.errors import WeftError
from weft.generate import reread
from weft.generate.predict import Predictor
from weft.generate.reread import BEHIND, SIDES, readings, reverse
from weft.generate.sample import Sampling
from weft.modalities.image import shift

ARROWS = parse_all(["image -> caption", "2* caption -> image", "image, question -> answer", "caption -> question"])


def test_the_reverse_arrow_is_the_one_with_the_same_two_columns() -> None:
    assert reverse(ARROWS, 1) == 0, "image -> caption reads what caption -> image draws"
    assert reverse(ARROWS, 0) == 1
    assert reverse(ARROWS, 2) is None, "two inputs have no reverse"
    assert reverse(ARROWS, 3) is None, "nothing leads back from question to caption"


def test_only_pictures_are_drawn_at_a_temperature(predictor) -> None:
    assert predictor.default(predictor.find("text -> image")).tries > 1
    assert predictor.default(predictor.find("image -> text")) == Sampling()
    with pytest.raises(WeftError, match="tries"):
        Sampling(tries=0)


def drawn(predictor: Predictor, records: list[dict], tries: int) -> tuple[list, np.ndarray]:
    found = predictor.produce("text -> image", records, Sampling(temperature=1.0, tries=tries))
    values = [one.value for one in found]
    return values, readings(predictor, predictor.find("text -> image"), records, values)


def test_a_reading_is_what_the_reverse_arrow_gives_the_words_asked_for(predictor, records) -> None:
    records = [record for record in records if record["text"]]
    values, found = drawn(predictor, records, 1)
    back = predictor.find("image -> text")
    for value, record, likely in zip(values, records, found, strict=True):
        piece = flatten(predictor.renderer.render({"image": value, "text": record["text"]}, back).spans)[0]
        stream = collate([[[Part(piece)]]], 1, len(piece))
        with torch.no_grad():
            logits = predictor.model.logits(predictor.model.hidden(stream.tokens))[0]
        kept = stream.targets[0] != -100
        expected = -F.cross_entropy(logits[kept], stream.targets[0][kept], reduction="sum")
        assert likely == pytest.approx(float(expected), abs=1e-3)


def test_of_all_that_was_drawn_the_likeliest_is_kept(predictor, records) -> None:
    records = [record for record in records if record["text"]]
    once, many = (drawn(predictor, records, tries)[1] for tries in (1, 6))
    assert (many >= once - 1e-4).all() and (many > once + 1e-3).any()


def test_turns_drawn_together_are_kept_as_turn_by_turn(predictor, records, monkeypatch) -> None:
    records = [record for record in records if record["text"]] * 2
    sure = np.median(drawn(predictor, records, 3)[1])  # so that some rows are done on the way, and some never
    monkeypatch.setattr(reread, "SURE", float(sure))
    asked: list[int] = []
    whole = predictor._produced
    monkeypatch.setattr(predictor, "_produced", lambda *a: (asked.append(len(a[1])), whole(*a))[1])
    together = drawn(predictor, records, 7)[0]
    calls, asked[:] = len(asked), []
    monkeypatch.setattr(reread, "TOGETHER", 1)
    one_by_one = drawn(predictor, records, 7)[0]
    assert calls == 4 and len(asked) == 7, "turns 1, 2, 3 and 4, 5 to 7"
    assert all(np.array_equal(a, b) for a, b in zip(together, one_by_one, strict=True))
    fewer = drawn(predictor, records, 2)[0]
    assert not all(np.array_equal(a, b) for a, b in zip(together, fewer, strict=True)), "control: later turns matter"


def test_without_a_reverse_arrow_nothing_is_doubted(predictor, records) -> None:
    number = predictor.find("image, question -> answer")
    assert (readings(predictor, number, records[:2], [None, None]) == 0).all()


def test_pictures_moved_in_training_are_read_from_five_sides(predictor, records, monkeypatch) -> None:
    """Above even odds the mean over the moves that training made; below, or without moves, the picture as it is."""
    records = [record for record in records if record["text"]]
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in records]
    number = predictor.find("text -> image")
    plain = readings(predictor, number, records, values)
    monkeypatch.setattr(predictor.renderer, "image", replace(predictor.renderer.image, augment=0.2))
    monkeypatch.setattr(reread, "EVEN", -np.inf)
    sides = [
        plain
        if not any(move)
        else readings_of(predictor, records, [shift(v, 3 * move[0], 3 * move[1]) for v in values])
        for move in SIDES
    ]
    mean = np.mean(sides, 0)
    np.testing.assert_allclose(readings(predictor, number, records, values), mean, atol=1e-4)
    assert not np.allclose(mean, plain, atol=1e-3), "control: moved, it is read otherwise"
    middle = float(np.median(plain))
    monkeypatch.setattr(reread, "EVEN", middle)
    np.testing.assert_allclose(
        readings(predictor, number, records, values), np.where(plain >= middle, mean, plain - BEHIND), atol=1e-4
    )


def readings_of(predictor: Predictor, records: list[dict], values: list) -> np.ndarray:
    image, predictor.renderer.image = predictor.renderer.image, replace(predictor.renderer.image, augment=0.0)
    try:
        return readings(predictor, predictor.find("text -> image"), records, values)
    finally:
        predictor.renderer.image = image
