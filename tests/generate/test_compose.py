"""A label that two ways lead to is answered from both; equal prompts are answered once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_world import make_predictor

from weft.arrows.grammar import parse_all
from weft.errors import ArrowError
from weft.generate.compose import Detour, detour
from weft.generate.predict import Predictor
from weft.generate.sample import Sampling

ARROWS = ("image, speech -> answer", "speech -> question", "image, question -> answer", "image -> text")


@pytest.fixture(scope="module")
def hearing() -> Predictor:
    return make_predictor(arrows=ARROWS)


def test_a_detour_takes_one_input_s_place() -> None:
    assert detour(parse_all(ARROWS), 0) == Detour(1, 2, "speech", "question")
    assert detour(parse_all(ARROWS), 2) is None, "nothing makes another column of the question"
    assert detour(parse_all(("image, speech -> answer", "speech -> question", "question -> answer")), 0) is None
    assert detour(parse_all(("a -> c", "c -> a", "a -> b")), 0) is None, "an arrow is no detour of itself"


def test_the_two_ways_are_averaged(hearing, records) -> None:
    asked = [{"image": r["image"], "speech": r["speech"]} for r in records]
    told = hearing.produce("speech -> question", asked)
    kept = [i for i, one in enumerate(told) if one.value.strip()]
    assert kept, "in this world something is heard"
    one, two = (
        hearing._choices("answer", hearing.prompts(number, some)).exp()
        for number, some in (
            (0, [asked[i] for i in kept]), (2, [asked[i] | {"question": told[i].value} for i in kept]),
        )
    )  # fmt: skip
    expected = torch.log((one + two) / 2)
    heard, other = hearing._composed(0, asked)
    assert heard == kept
    mixed = torch.logaddexp(one.log(), other) - np.log(2)
    assert torch.allclose(mixed, expected, atol=1e-4) and not torch.allclose(mixed, one.log(), atol=1e-2)
    labels = hearing.renderer.columns["answer"].values
    answers = hearing.produce(0, asked)
    assert hearing.default(0).composed
    assert [answers[i].value for i in kept] == [labels[n] for n in expected.argmax(1).tolist()]


def test_where_no_arrows_lead_there_it_is_said(hearing, records) -> None:
    with pytest.raises(ArrowError, match="No two arrows"):
        hearing.produce(2, records[:1], Sampling(composed=True))


@pytest.mark.parametrize("arrow", ["image -> text", "image, question -> answer"])
def test_equal_prompts_get_the_answer_each_would_get_alone(hearing, records, arrow) -> None:
    many = [records[i] for i in (2, 0, 2, 1, 0, 2)]
    together = [one.value for one in hearing.produce(arrow, many, Sampling())]
    alone = [hearing.produce(arrow, [record], Sampling())[0].value for record in many]
    assert together == alone and len(set(together)) > 1
