"""Tables from files, folders and objects: what a user would expect of each, and errors that name file and line."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import weft
from weft.data import readers
from weft.data.sources import Table, open_table
from weft.errors import DataError


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def png(shade: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("L", (4, 4), shade).save(data, "PNG")
    return data.getvalue()


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))
    return path


def test_csv_keeps_text_as_it_is(tmp_path):
    path = put(tmp_path / "t.csv", '﻿id,text\r\n007,"two\nlines, ""quoted"""\r\n8,\r\n9, 空 \r\n')
    table = open_table(path)
    assert table.columns == ("id", "text") and len(table) == 3
    assert table.row(0) == {"id": "007", "text": 'two\nlines, "quoted"'}, "007 stays text, a cell may hold lines"
    assert table.row(1)["text"] is None, "blank is None"
    assert table.row(2)["text"] == " 空 "


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_csv_finds_its_delimiter(tmp_path, name, mark):
    table = open_table(put(tmp_path / name, f"a{mark}b\n1{mark}2\n"))
    assert table.row(0) == {"a": "1", "b": "2"}


def test_a_cell_longer_than_the_csv_module_allows(tmp_path):
    import csv

    limit = csv.field_size_limit()
    table = open_table(put(tmp_path / "t.csv", "text\n" + "x" * 200_000 + "\n"))
    assert len(table.row(0)["text"]) == 200_000 and csv.field_size_limit() == limit, "and the limit is put back"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3\n", r"t.csv, line 3: 3 cells; 2 were expected \(a, b\)"),
        ("t.csv", 'a\n"open\n', r"t.csv, line \d: unexpected end of data"),
        ("t.csv", "a,a\n1,2\n", "'a' stands twice"),
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "t.jsonl, line 2: not JSON"),
        ("t.jsonl", '{"a": 1}\n[1]\n', "row 1 is list"),
        ("t.json", '{"a": 1}', "a JSON list of objects was expected"),
        ("t.parquet", "no parquet", "not a readable parquet file"),
        ("t.tar", "no tar", "not a readable tar file"),
        ("t.docx", "x", "files of the kind '.docx' are not tables"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        open_table(put(tmp_path / name, text))


def test_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes("a\nä\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 at byte 2"):
        open_table(tmp_path / "t.csv")


def test_a_missing_file_offers_the_nearest(tmp_path):
    put(tmp_path / "metadata.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"no file or folder .*Did you mean 'metadata.csv'"):
        open_table(tmp_path / "metadta.csv")
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_table(tmp_path / "nowhere" / "t.csv")


def test_a_wrong_column_offers_the_nearest():
    with pytest.raises(DataError, match=r"no column 'captoin'\. Did you mean 'caption'"):
        Table({"caption": ["x"]}).column("captoin")


def test_jsonl_and_gz(tmp_path):
    rows = [{"a": 1, "b": "x"}, {"b": "y", "c": None}]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for path in (put(tmp_path / "t.jsonl", text), tmp_path / "t.jsonl.gz"):
        assert list(open_table(path)) == [{"a": 1, "b": "x", "c": None}, {"a": None, "b": "y", "c": None}]


def test_parquet_with_bytes_and_structs(tmp_path):
    data = {
        "image": [{"bytes": png(3), "path": None}, {"bytes": None, "path": "a.png"}],
        "n": [1, 2],
        "raw": [png(1), png(2)],
    }
    pq.write_table(pa.table(data), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert table.row(0)["image"] == png(3), "the bytes of a struct"
    assert table.row(1)["image"] == tmp_path / "a.png", "its path, where it has no bytes"
    assert table.row(1)["raw"] == png(2) and table.row(0)["n"] == 1


def test_class_folders(tmp_path):
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        picture(tmp_path / name)
    picture(tmp_path / "cats" / ".hidden.png")
    table = open_table(tmp_path)
    assert [row["label"] for row in table] == ["cats", "cats", "dogs"]
    assert table.row(2)["image"] == tmp_path / "dogs" / "1.png"


def test_split_folders(tmp_path):
    picture(tmp_path / "train" / "cats" / "1.png")
    picture(tmp_path / "train" / "dogs" / "1.png")
    picture(tmp_path / "val" / "dogs" / "2.png")
    table = open_table(tmp_path)
    assert [(row["label"], row["split"]) for row in table] == [
        ("cats", "train"),
        ("dogs", "train"),
        ("dogs", "validation"),
    ]
    assert table.row(2)["image"] == tmp_path / "val" / "dogs" / "2.png" and table.row(2)["image"].is_file()


def test_files_and_metadata(tmp_path):
    picture(tmp_path / "deep" / "1.png")
    put(tmp_path / "metadata.csv", "file_name,caption\ndeep/1.png,a cat\n")
    table = open_table(tmp_path)
    assert table.row(0) == {"image": tmp_path / "deep" / "1.png", "caption": "a cat"}, "file_name becomes image"
    put(tmp_path / "metadata.csv", "photo,caption\ndeep/1.png,a cat\n")
    assert open_table(tmp_path / "metadata.csv").row(0)["photo"].is_file(), "any column of media names is resolved"


def test_prose_about_a_file_is_not_a_path():
    table = Table({"text": ["I like cat.png", "no files here", "nor here", "look"]})
    assert table.row(0)["text"] == "I like cat.png"


def test_folders_that_cannot_be_understood(tmp_path):
    with pytest.raises(DataError, match="holds no table and no known media"):
        open_table(tmp_path)
    picture(tmp_path / "a.png")
    put(tmp_path / "a.xyz", "?")
    with pytest.raises(DataError, match=r"1 files of no known kind among the image files, such as a.xyz"):
        open_table(tmp_path)
    (tmp_path / "a.xyz").rename(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"mixes 1 image files, 1 text files. Add a metadata.csv"):
        open_table(tmp_path)


def test_text_folders(tmp_path):
    put(tmp_path / "pos" / "1.txt", "good\r\nfilm")
    put(tmp_path / "neg" / "1.txt", "bad")
    assert list(open_table(tmp_path)) == [{"text": "bad", "label": "neg"}, {"text": "good\nfilm", "label": "pos"}]


def test_txt_paragraphs_lines_and_blocks(tmp_path):
    assert open_table(put(tmp_path / "p.txt", "one\nstill one\n\ntwo\n\n\n\nthree\n")).column("text") == [
        "one\nstill one",
        "two",
        "three",
    ]
    assert open_table(put(tmp_path / "l.txt", "one\ntwo\n")).column("text") == ["one", "two"]
    long = "\n\n".join(f"speech {n}: " + "word " * 30 for n in range(1500))
    parts = open_table(put(tmp_path / "b.txt", long)).column("text")
    assert "".join(parts) == long and max(map(len, parts)) <= readers.BLOCK, "a long text is cut, nothing lost"
    assert all(part.endswith("\n\n") for part in parts[:-1]), "behind blank lines"


@given(st.text(alphabet="ab \n", max_size=400), st.integers(1, 50))
def test_blocks_are_the_text(text, size):
    parts = readers.blocks(text, size)
    assert all(len(part) <= size for part in parts[:-1])
    joined = "".join(parts)
    assert text.startswith(joined) and not text[len(joined) :].strip(), "only closing white space may be left"


def test_webdataset(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as archive:
            for key in range(2):
                parts = {
                    "png": png(shard * 2 + key),
                    "txt": f"caption {shard}{key}".encode(),
                    "cls": b"3",
                    "json": b'{"w": 5}',
                }
                for ending, data in parts.items():
                    info = tarfile.TarInfo(f"000{key}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    for source in (tmp_path, str(tmp_path / "s-*.tar"), [tmp_path / "s-0.tar", tmp_path / "s-1.tar"]):
        table = open_table(source)
        assert len(table) == 4 and set(table.columns) == {"image", "text", "label", "w"}
        assert table.row(3) == {"image": png(3), "text": "caption 11", "label": "3", "w": 5}
    assert table.column("image")[0] == "s-0.tar/0000.png", "a member is named until it is read"
    (tmp_path / "s-0.tar").write_bytes((tmp_path / "s-0.tar").read_bytes()[:540])
    with pytest.raises(DataError, match=r"s-0.tar/0000.png: \d+ bytes were expected"):
        table.row(0)
    with pytest.raises(DataError, match="No file matches"):
        open_table(str(tmp_path / "x-*.tar"))


def test_objects():
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    for source in (rows, iter(rows), {"a": [1, 2], "b": ["x", "y"]}, pa.table({"a": [1, 2], "b": ["x", "y"]})):
        assert list(open_table(source)) == rows
    table = open_table(rows)
    assert open_table(table) is table
    array = np.zeros((2, 2), np.uint8)
    assert open_table([{"image": array}]).row(0)["image"] is array, "arrays pass through"
    for wrong, message in (
        ([], "no rows"),
        ([1, 2], "row 0 is int '1'"),
        (5, "came as int"),
        ({"a": [1], "b": []}, "different lengths"),
    ):
        with pytest.raises(DataError, match=message):
            open_table(wrong)


def test_the_fingerprint_is_of_the_content(tmp_path):
    picture(tmp_path / "1.png")
    path = put(tmp_path / "metadata.csv", "image,a\n1.png,x\n")
    first = open_table(path).fingerprint
    assert open_table(tmp_path).fingerprint == first, "however it was named"
    (tmp_path / "1.png").write_bytes(png() + b"more")
    assert open_table(path).fingerprint != first, "a media file changed its size"
    (tmp_path / "1.png").write_bytes(png()[:-9] + bytes(9))
    assert open_table(path).fingerprint != first, "a media file of the same size changed its content"
    (tmp_path / "1.png").write_bytes(png())
    assert open_table(path).fingerprint == first, "when it was written does not matter"
    rows = lambda **cells: open_table([cells]).fingerprint
    assert rows(a="x", b="y") != rows(a="xy", b="") != rows(b="y", a="x")
    assert rows(a=np.zeros(3)) != rows(a=np.ones(3))


def test_cells_are_told_apart_by_their_content(tmp_path):
    for name, data in (("a.png", b"one"), ("b.png", b"one"), ("c.png", b"two")):
        (tmp_path / name).write_bytes(data)
    table = Table({"image": ["a.png", "b.png", "c.png", "absent.png", None], "n": list("xxyz ")}, tmp_path)
    a, b, c, absent, nothing = table.identities("image")
    assert a == b != c and absent == b"absent.png" and nothing == b""
    assert table.identity("image", 2) == c and table.identities("n") == [b"x", b"x", b"y", b"z", b""]
    (tmp_path / "shard.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "1.png"), archive.add(tmp_path / "b.png", "2.png")
        archive.add(tmp_path / "c.png", "3.png")
    assert open_table(tmp_path / "shard.tar").identities("image") == [a, a, c]
    assert Table({"image": [{"bytes": b"one", "path": "x.png"}]}).identities("image") == [a]


def test_large_files_are_told_apart_by_their_ends(tmp_path):
    whole = bytes(300_000)
    for number, data in enumerate((whole, whole, whole + b"1", b"1" + whole[1:], whole[:-1] + b"1")):
        (tmp_path / f"{number}.wav").write_bytes(data)
    found = Table({"audio": [f"{n}.wav" for n in range(5)]}, tmp_path).identities("audio")
    assert found[0] == found[1] and len(set(found)) == 4


def test_the_demo_is_a_table_by_name(tmp_path, monkeypatch):
    from weft.data import demo

    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "build", lambda out: put(out / "metadata.csv", "text,split\na,train\n"))
    assert open_table("demo").folder == tmp_path / "cache" / "demo"
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "demo" / "metadata.csv", "other\nb\n")
    assert open_table("demo").columns == ("other",), "a folder of that name comes first"


def test_a_file_name_that_is_said_to_be_text_stays_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{i}.png,picture {i}\n" for i in range(20)))
    found = weft.plan(str(tmp_path / "t.csv"), "image:text -> caption:text")
    shown = "\n".join(found.samples)
    assert ".png" in shown and str(tmp_path) not in shown, shown
    cell = open_table(tmp_path / "t.csv").row(3)["image"]
    assert cell == tmp_path / "3.png" and cell.written == "3.png", "a picture is found from anywhere"
