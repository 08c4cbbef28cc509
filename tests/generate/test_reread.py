"""What the reverse arrow does not surely read as asked is made again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.arrows.grammar import parse_all
from weft.data.pack import Part, collate, flatten
from weft.errors import WeftError
from weft.generate.predict import Predictor
from weft.generate.reread import readings, reverse
from weft.generate.sample import Sampling

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


def test_without_a_reverse_arrow_nothing_is_doubted(predictor, records) -> None:
    number = predictor.find("image, question -> answer")
    assert (readings(predictor, number, records[:2], [None, None]) == 0).all()
