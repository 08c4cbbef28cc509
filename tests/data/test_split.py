"""Splits: obeyed where said, and never is one thing on both sides."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.data.sources import Table
from weft.data.split import assign, groups
from weft.errors import DataError
from weft.recipe import SplitRecipe

cells = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5)), min_size=2, max_size=60)


@given(cells, st.integers(0, 3))
def test_equal_rows_are_on_one_side(rows, seed):
    table = Table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    sides = defaultdict(set)
    for row, side in zip(rows, assign(table, SplitRecipe(0.2, 0.3), seed), strict=True):
        sides[row].add(side)
    assert max(map(len, sides.values())) == 1, "a repeated row is on one side"


@given(cells, st.integers(0, 3))
def test_by_a_column_keeps_its_values_together(rows, seed):
    table = Table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    sides = defaultdict(set)
    for (speaker, _), side in zip(rows, assign(table, SplitRecipe(0.2, 0.3, by="a"), seed), strict=True):
        sides[speaker].add(side)
    assert max(map(len, sides.values())) == 1, "one speaker is on one side"


@given(cells, st.integers(0, 3), st.randoms())
def test_a_row_stays_when_others_come_and_go(rows, seed, random):
    """Above the size at which a side is filled by force, the order and the other rows do not matter."""
    rows = [*rows, *[(f"filler {n}", n) for n in range(200)]]
    sides = lambda some: dict(
        zip(some, assign(Table({"a": [a for a, _ in some], "b": [b for _, b in some]}), seed=seed), strict=True)
    )
    fewer = rows[: len(rows) // 2] + rows[-100:]
    random.shuffle(fewer)
    before, after = sides(rows), sides(fewer)
    assert all(before[row] == after[row] for row in fewer)


def test_shares_and_seed():
    table = Table({"text": [f"row {n}" for n in range(5000)]})
    sides = assign(table, SplitRecipe(0.05, 0.1), 0)
    assert abs((sides == "test").mean() - 0.1) < 0.015 and abs((sides == "validation").mean() - 0.05) < 0.01
    assert (sides == assign(table, SplitRecipe(0.05, 0.1), 0)).all() and (
        sides != assign(table, SplitRecipe(0.05, 0.1), 1)
    ).any()


def test_a_small_table_has_something_held_out():
    sides = assign(Table({"text": ["a", "b", "c", "d"]})).tolist()
    assert sides.count("test") == sides.count("validation") == 1 and sides.count("train") == 2
    assert assign(Table({"text": ["a", "a"]})).tolist() == ["train", "train"], "one value cannot be parted"


def test_rows_of_one_picture_go_together():
    table = Table({"n": list(range(90)), "image": [f"{n % 30}.png" for n in range(90)]})
    assert groups(table).by == ("image",)
    sides = assign(table, SplitRecipe(0.2, 0.2)).tolist()
    assert sides[:30] == sides[30:60] == sides[60:] and len(set(sides)) == 3
    assert groups(Table({"image": [f"{n}.png" for n in range(9)]})).by == (), "each picture once: the whole row"


def test_a_split_column_is_obeyed():
    table = Table({"a": list(range(5)), "split": ["train", "Val", "test", "dev", "training"]})
    assert assign(table).tolist() == ["train", "validation", "test", "validation", "train"]


@pytest.mark.parametrize(
    ("data", "recipe", "message"),
    [
        ({"split": ["train", "trian", "trian"]}, SplitRecipe(), "'trian' in 2 rows"),
        ({"split": ["train", None]}, SplitRecipe(), "1 blank cells"),
        ({"a": [1]}, SplitRecipe(0.5, 0.5), "leave nothing to train on"),
        ({"a": [1]}, SplitRecipe(-0.1, 0.5), "leave nothing to train on"),
        ({"speaker": [1]}, SplitRecipe(by="speker"), "Did you mean 'speaker'"),
    ],
)
def test_what_makes_no_sense_is_said(data, recipe, message):
    with pytest.raises(DataError, match=message):
        assign(Table(data), recipe)


def test_names_are_strings_of_an_array():
    sides = assign(Table({"a": list(range(50))}))
    assert isinstance(sides, np.ndarray) and sides.shape == (50,) and set(sides) <= {"train", "validation", "test"}


def test_rows_of_one_picture_go_together_beside_rows_without_one():
    """A table may carry several tasks, whose rows leave each other's cells blank."""
    pictures = [f"{n % 30}.png" for n in range(90)]
    table = Table({"n": list(range(180)), "image": [*pictures, *[None] * 90]})
    assert groups(table).by == ("image",)
    sides = assign(table, SplitRecipe(0.2, 0.2)).tolist()
    assert sides[:30] == sides[30:60] == sides[60:90] and len(set(sides[:90])) == 3
    assert len(set(sides[90:])) == 3, "the rows without a picture are drawn one by one"


def test_one_picture_under_two_names_is_on_one_side(tmp_path):
    """Copies of a file (or bytes of a tar's members) are the same picture, whatever they are called."""
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(b"picture %d" % (n % 30))
    table = Table({"image": [f"{n}.png" for n in range(60)]}, tmp_path)
    assert groups(table).by == ("image",)
    sides = assign(table, SplitRecipe(0.2, 0.2)).tolist()
    assert sides[:30] == sides[30:] and len(set(sides)) == 3
    (tmp_path / "0.png").write_bytes(b"another picture")
    other = Table({"image": [f"{n}.png" for n in range(30)]}, tmp_path)
    assert groups(other).by == (), "control: nothing is met twice among the first thirty"


def test_rows_hang_together_by_every_media_column():
    pictures, sounds = (
        [f"{n // 2}.png" for n in range(120)],
        [f"{(n + 1) // 2 % 3 + n // 6 * 3}.wav" for n in range(120)],
    )
    table = Table({"n": list(range(120)), "image": pictures, "speech": sounds})
    found = groups(table)
    assert found.by == ("image", "speech") and not found.loose
    sides = assign(table, SplitRecipe(0.2, 0.2))
    for cells in (pictures, sounds):
        together = defaultdict(set)
        for cell, side in zip(cells, sides, strict=True):
            together[cell].add(side)
        assert max(map(len, together.values())) == 1
    assert len(set(sides)) == 3 and len(set(found.keys)) == 20


def test_crossed_media_are_parted_by_the_first_and_it_is_said():
    """Every picture with every recording: by both, all rows would be one group."""
    pairs = [(f"{a}.png", f"{b}.wav") for a in range(12) for b in range(5)]
    table = Table({"image": [a for a, _ in pairs], "speech": [b for _, b in pairs]})
    found = groups(table)
    assert found.by == ("image",) and found.loose == ("speech",)
    assert str(found) == (
        "rows of one image stay on one side; the same speech may be on both (by it, most rows would be one group)"
    )
    assert len(set(assign(table, SplitRecipe(0.2, 0.2)))) == 3
