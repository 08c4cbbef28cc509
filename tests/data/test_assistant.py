"""The assistant's table, from packages that are only pretended to be there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from weft.data import assistant
from weft.errors import DataError


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty stamps, every fourth read aloud, two drawn in SVG alone; six photographs."""
    stamps, photos = tmp_path / "stamps", tmp_path / "photos"
    random = np.random.default_rng(0)
    for number in range(40):
        folder = stamps / ("animals" if number % 2 else "naturalforces")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"Thing {number}.\nfr.utf8=Chose {number}.\n", encoding="utf-8")
        if number not in (8, 9):
            Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
        if number % 4 == 0:
            soundfile.write(folder / f"{number}_desc.ogg", np.zeros(1600, np.float32), 16_000)
        soundfile.write(folder / f"{number}_desc_fr.ogg", np.zeros(1600, np.float32), 16_000)
    (photos / "images").mkdir(parents=True)
    asked: dict[str, dict[str, str]] = {}
    for number in range(6):
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(
            photos / "images" / f"COCO_train2014_{number:012d}.jpg"
        )
        asked[str(number)] = {"question": "what is it", "answer": "noise", "img_id": str(number)}
    for part, keys in (("train", range(4)), ("test", range(4, 6))):
        told = {str(key): asked[str(key)] for key in keys}
        (photos / f"COCO-QA_QA_{part}.json").write_text(json.dumps(told))
    monkeypatch.setattr(assistant, "INSTALLED", stamps)
    monkeypatch.setattr(assistant, "photos", lambda: photos)
    monkeypatch.setattr(assistant, "speak_all", lambda clips, out, processes: None)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    """The table's lines."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_in_it_and_what_is_held_out(packages: Path) -> None:
    path = assistant.build(packages / "table")
    rows = rows_of(path)
    pictures = [row for row in rows if row["caption"]]
    assert len(pictures) == 38 and {row["answer"] for row in pictures} == {"animals", "natural forces"}
    assert sum(row["question"] == "what is it?" for row in rows) == 6
    people = [row for row in rows if row["speaker"] == "person"]
    assert len(people) == 10 and all(row["audio"].endswith("_desc.ogg") for row in people)
    made = [row for row in rows if row["audio"] and row["speaker"] != "person"]
    assert {row["split"] for row in made} == {"train"}
    held = {row["caption"] or row["text"] for row in rows if row["split"] != "train"}
    assert not held & {row["text"] for row in made}, "no caption of a held-out picture is heard in training"
    sides = {row["caption"]: row["split"] for row in pictures}
    assert all(sides.get(row["text"], row["split"]) == row["split"] for row in people), "a sound goes with its picture"
    assert {row["split"] for row in pictures} == {"train", "validation", "test"}


def test_it_is_made_once_and_the_same_every_time(packages: Path) -> None:
    path = assistant.build(packages / "table")
    before = path.stat().st_mtime_ns
    assert assistant.build(packages / "table").stat().st_mtime_ns == before
    assert assistant.build(packages / "other").read_bytes() == path.read_bytes()
    assert assistant.build(packages / "table", seed=1).stat().st_mtime_ns != before


def test_what_is_absent_is_said_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"apt-get download tuxpaint-stamps-default && dpkg-deb -x"):
        assistant.build(tmp_path / "table")
    assert not (tmp_path / "table").exists()
