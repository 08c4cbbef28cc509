"""What the reverse arrow does not read as asked is made again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from weft.arrows.grammar import parse_all
from weft.errors import WeftError
from weft.generate.reread import default, misread, reverse
from weft.generate.sample import Sampling

ARROWS = parse_all(["image -> caption", "2* caption -> image", "image, question -> answer", "caption -> question"])


def test_the_reverse_arrow_is_the_one_with_the_same_two_columns() -> None:
    assert reverse(ARROWS, 1) == 0, "image -> caption reads what caption -> image draws"
    assert reverse(ARROWS, 0) == 1
    assert reverse(ARROWS, 2) is None, "two inputs have no reverse"
    assert reverse(ARROWS, 3) is None, "nothing leads back from question to caption"


def test_only_pictures_are_drawn_at_a_temperature() -> None:
    assert default("image", True).tries > 1
    assert default("image", False).tries == 1, "without a reader there is nothing to try again for"
    assert default("text", True) == Sampling()
    with pytest.raises(WeftError, match="tries"):
        Sampling(tries=0)


def test_misread_values_are_found_by_place() -> None:
    def produce(back, records, sampling):
        assert back == 0 and sampling == Sampling(), "the reader is the reverse arrow, read greedily"
        return [SimpleNamespace(value=record["image"]) for record in records]

    predictor = SimpleNamespace(renderer=SimpleNamespace(arrows=ARROWS), produce=produce)
    asked = [{"caption": text} for text in ("a", "b", "c")]
    assert misread(predictor, 1, asked, ["a", "x", " c "]) == [1]
    assert misread(predictor, 2, asked, ["a", "x", "c"]) == [], "no reverse arrow: nothing can be called misread"
