"""The config tree as JSON, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from weft.core import config as c
from weft.core import meet, others
from weft.errors import RecipeError


def test_every_type_is_frozen_small_and_known() -> None:
    for name, kind in c.TYPES.items():
        assert kind.__dataclass_params__.frozen, name
        assert len(dataclasses.fields(kind)) <= 12, name
        assert kind.__mro__[1] is object, f"{name} inherits nothing"
    here = (c.__name__, meet.__name__, others.__name__)
    declared = {n for n, kind in vars(c).items() if dataclasses.is_dataclass(kind) and kind.__module__ in here}
    assert declared == set(c.TYPES), "a type that JSON does not know"


def test_tuples_and_nested_types_come_back() -> None:
    part = c.PerModality(("image", "audio"), c.FeedForward(8, "silu", gated=True))
    attention = c.Attention(2, qk_norm=c.RMSNorm(), position=c.Rope(scaling=c.Stretch()), pattern=c.Window(3, 0, 1))
    stack = c.StackConfig(8, 1, attention, part, c.RMSNorm(), cross=c.Attention(1), dropout=0.1)
    assert c.from_tree(c.to_tree(stack)) == stack


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'Ropee' is not known. Did you mean 'Rope'"):
        c.from_tree({"type": "Ropee"})
    with pytest.raises(RecipeError, match=r"Rope has no field 'teta'. Did you mean 'theta'"):
        c.from_tree({"type": "Rope", "teta": 1.0})
