"""Errors offer the nearest name, and every kind is one that the command line catches."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft import errors
from weft.errors import MissingExtra, WeftError, nearest


def test_every_kind_of_error_is_a_weft_error() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) >= 7
    assert all(issubclass(kind, WeftError) for kind in kinds)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("color", ["shape", "colour"], " Did you mean 'colour'?"),
        ("IMAGE", ["image", "audio"], " Did you mean 'image'?"),
        ("image", ["Image", "audio"], " Did you mean 'Image'?"),
        ("xyz", ["image", "audio"], " There is: image, audio."),
        ("xyz", [], ""),
    ],
)
def test_the_nearest_name(name: str, known: list[str], expected: str) -> None:
    assert nearest(name, known) == expected


def test_of_many_names_a_few_are_listed_and_all_are_counted() -> None:
    told = nearest("xyz", [f"column{i}" for i in range(300)])
    assert told == f" There is: {', '.join(f'column{i}' for i in range(12))} and 288 more."


@given(st.text(max_size=8), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20))
def test_it_always_says_something_and_a_known_name_finds_itself(name: str, known: list[str]) -> None:
    assert nearest(name, known).startswith((" Did you mean ", " There is: "))
    found = nearest(known[0], known)
    assert found.startswith(" Did you mean ")
    assert found.removeprefix(" Did you mean ").removesuffix("?").strip()


def test_a_missing_extra_names_the_command() -> None:
    assert "pip install 'weft[metrics]'" in str(MissingExtra("BLEU", "metrics"))
