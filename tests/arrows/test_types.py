"""Types are guessed from the cells, with a reason that a person can check."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from weft.arrows import types
from weft.arrows.types import Audio, Image, Label, Text, as_text, blank, guess, guess_one, kind_of
from weft.errors import ArrowError, DataError


class Table(dict):
    """The least that `guess` asks of a table."""

    @property
    def columns(self) -> list[str]:
        return list(self)

    def column(self, name: str) -> list:
        return self[name]


YES = ["yes", "no"] * 50


def test_a_table_of_every_type() -> None:
    table = Table(
        image=["1.png", "sub/2.JPG"] * 50, speech=[Path("/a/1.wav"), b"fLaC....."] * 50, answer=YES,
        digit=list(range(10)) * 10, note=[f"note {i}" for i in range(100)], many=[str(i % 51) for i in range(100)],
    )  # fmt: skip
    found = guess(table)
    assert found == {
        "image": Image(), "speech": Audio(), "answer": Label(("no", "yes")),
        "digit": Label(tuple("0123456789")), "note": Text(), "many": Text(),
    }  # fmt: skip
    assert found["image"].reason == "100 images: '1.png'"
    assert found["answer"].reason == "2 distinct values, 50 rows each, up to 1 word"
    assert "labels have at most 50" in found["many"].reason
    assert list(guess(table, columns=["note", "image"])) == ["note", "image"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"v{i % 50:02}" for i in range(500)], "label"),
        ([f"v{i % 51:02}" for i in range(510)], "text"),  # too many values
        ([f"v{i % 10}" for i in range(100)], "label"),
        ([f"v{i % 10}" for i in range(99)], "text"),  # less than ten rows each
        (["a b c", "d"] * 20, "label"),
        (["a b c d", "d"] * 20, "text"),  # four words
        (["same"] * 100, "text"),
        ([True, False] * 20, "label"),
        (["yes", "no", "", None, math.nan] * 10, "label"),
        (["see cat.png", "a sentence", "and another"] * 1, "text"),
        (["cat.png", "a sentence", "and another"] * 1, "text"),
        (["cat.png", "dog.png", "n/a"] * 3, "image"),
        ([np.zeros((4, 4, 3), np.uint8)] * 3, "image"),
        ([(np.zeros(16), 16000)] * 3, "audio"),
        ([{"bytes": b"\x89PNG....", "path": None}] * 3, "image"),
        ([{"bytes": None, "path": "a.ogg"}] * 3, "audio"),
        ([Picture.new("RGB", (2, 2))] * 3, "image"),
    ],
)
def test_guesses(values: list, expected: str) -> None:
    assert guess_one("c", values).name == expected


def test_blank_cells_do_not_count_as_rows() -> None:
    values = ["a", "b"] * 10
    assert guess_one("c", values).name == "label"
    assert guess_one("c", [*values, *[None] * 1000]) == guess_one("c", values)
    assert guess_one("c", ["a", "b"] * 9 + [None] * 1000).name == "text", "nine rows each"


def test_a_type_that_is_said_overrules() -> None:
    table = Table(answer=[f"v{i}" for i in range(90)], image=["a", "b"])
    found = guess(table, {"answer": "label", "image": "image"})
    assert len(found["answer"].values) == 90 and found["image"] == Image()
    with pytest.raises(ArrowError, match=r"types: column 'answer': 'lable' is no column type. Did you mean 'label'\?"):
        guess(table, {"answer": "lable"})
    with pytest.raises(ArrowError, match="'boxes' is not there yet"):
        guess(table, {"answer": "boxes"})
    with pytest.raises(ArrowError, match=r"no column 'anser'. Did you mean 'answer'\?"):
        guess(table, {"anser": "label"})


def test_columns_that_cannot_be_typed() -> None:
    with pytest.raises(DataError, match="column 'a' is empty: no row has a value"):
        guess(Table(a=[None, "", "  "]))
    with pytest.raises(DataError, match="no known image or sound"):
        guess(Table(a=[b"\0\1\2\3", "text"]))
    with pytest.raises(DataError, match="column 'a' holds list"):
        guess(Table(a=[[1], [2]]))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image"), (b"\xff\xd8\xff\xe0", "image"), (b"GIF89a", "image"),
        (b"RIFF....WEBP", "image"),
        (b"RIFF....WAVE", "audio"), (b"fLaC", "audio"), (b"OggS", "audio"),
        (b"ID3", "audio"), (b"\xff\xfb\x90", "audio"),
        (b"hello", "media"), (b"\xff", "media"),
    ],
)  # fmt: skip
def test_files_are_told_by_their_first_bytes(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


def test_real_files_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    import soundfile

    for ending in ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm"):
        Picture.new("RGB", (4, 4)).save(tmp_path / f"a.{ending}")
        assert kind_of((tmp_path / f"a.{ending}").read_bytes()) == "image", ending
    for ending in ("wav", "flac", "mp3", "ogg", "aiff"):
        soundfile.write(tmp_path / f"a.{ending}", np.zeros(4000), 16000)
        assert kind_of((tmp_path / f"a.{ending}").read_bytes()) == "audio", ending


@pytest.mark.parametrize("value", [None, "", " \n\t", math.nan, b""])
def test_blank(value: object) -> None:
    assert blank(value)


@pytest.mark.parametrize("value", [0, False, 0.0, "0", b"0", Path("."), np.zeros(3)])
def test_not_blank(value: object) -> None:
    assert not blank(value)


def test_numbers_are_text_as_python_writes_them() -> None:
    assert [as_text(v, "c") for v in (7, 2.5, True, np.int64(3), "x")] == ["7", "2.5", "True", "3", "x"]
    with pytest.raises(DataError, match="column 'c' holds dict"):
        as_text({}, "c")


def test_json_round_trip() -> None:
    for kind in (Image("a"), Audio("b"), Text("c"), Label(("x", "é"), "d")):
        back = types.from_tree(json.loads(json.dumps(types.to_tree(kind))))
        assert back == kind and back.reason == kind.reason
