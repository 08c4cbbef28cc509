"""A label that two ways lead to is answered from both; equal prompts are answered once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoding_world import make_predictor

from weft.arrows.grammar import parse_all
from weft.data.sources import open_table
from weft.errors import ArrowError
from weft.generate.compose import Detour, detour
from weft.generate.predict import Predictor
from weft.generate.sample import Sampling
from weft.generate.teach import teach

ARROWS = ("image, speech -> answer", "speech -> question", "image, question -> answer", "image -> text")


@pytest.fixture(scope="module")
def hearing() -> Predictor:
    return make_predictor(arrows=ARROWS)


def test_a_detour_takes_one_input_s_place() -> None:
    assert detour(parse_all(ARROWS), 0) == Detour(1, 2, "speech", "question")
    assert detour(parse_all(ARROWS), 2) is None, "nothing makes another column of the question"
    assert detour(parse_all(("image, speech -> answer", "speech -> question", "question -> answer")), 0) is None
    assert detour(parse_all(("a -> c", "c -> a", "a -> b")), 0) is None, "an arrow is no detour of itself"


def test_the_two_ways_are_mixed_by_how_sure_the_first_step_is(hearing, records) -> None:
    asked = [{"image": r["image"], "speech": r["speech"]} for r in records]
    told = hearing.produce("speech -> question", asked)
    kept = [i for i, one in enumerate(told) if one.value.strip()]
    assert kept, "in this world something is heard"
    said = [asked[i] | {"question": told[i].value} for i in kept]
    one, two = (
        hearing._choices("answer", hearing.prompts(number, some)).exp()
        for number, some in ((0, [asked[i] for i in kept]), (2, said))
    )
    sure = torch.from_numpy(np.exp(-teach(hearing, open_table(said), range(len(said)), 1)[:, :1])).float()
    expected = sure * two + (1 - sure) * one
    heard, trust, other = hearing._composed(0, asked)
    assert heard == kept and torch.allclose(trust, sure.clamp(1e-6), atol=1e-6)
    assert torch.allclose(other.exp(), two, atol=1e-5)
    labels = hearing.renderer.columns["answer"].values
    assert hearing.default(0).composed
    answers = hearing.produce(0, asked)
    assert [answers[i].value for i in kept] == [labels[n] for n in expected.argmax(1).tolist()]


def test_a_sure_first_step_decides_and_a_doubtful_one_does_not(hearing, records, monkeypatch) -> None:
    asked = [{"image": r["image"], "speech": r["speech"]} for r in records[:3]]
    labels = hearing.renderer.columns["answer"].values
    direct = hearing._choices("answer", hearing.prompts(0, asked)).argmax(1)
    other = torch.full((3, len(labels)), -9.0)
    other[torch.arange(3), (direct + 1) % len(labels)] = 0.0  # the other way is certain of another label
    for sure, wanted in ((1 - 1e-6, (direct + 1) % len(labels)), (1e-6, direct)):
        way = ([0, 1, 2], torch.full((3, 1), sure), other)
        monkeypatch.setattr(hearing, "_composed", lambda *_, way=way: way, raising=False)
        assert [one.value for one in hearing.produce(0, asked)] == [labels[n] for n in wanted.tolist()]


def test_where_no_arrows_lead_there_it_is_said(hearing, records) -> None:
    with pytest.raises(ArrowError, match="No two arrows"):
        hearing.produce(2, records[:1], Sampling(composed=True))


@pytest.mark.parametrize("arrow", ["image -> text", "image, question -> answer"])
def test_equal_prompts_get_the_answer_each_would_get_alone(hearing, records, arrow) -> None:
    many = [records[i] for i in (2, 0, 2, 1, 0, 2)]
    together = [one.value for one in hearing.produce(arrow, many, Sampling())]
    alone = [hearing.produce(arrow, [record], Sampling())[0].value for record in many]
    assert together == alone and len(set(together)) > 1
