"""The demo's table: what is held out is held out, captions are true, voices differ and are not silent."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from weft.data import demo
from weft.data.built import build, finish
from weft.data.espeak import RATE, Clip, Synthesiser, Voice, speak_all
from weft.errors import DataError, WeftError


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The whole table but for its sounds, which take most of the time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "speak_all", lambda clips, folder, processes: [_touch(folder / clip.path) for clip in clips])
    yield demo.build(tmp_path_factory.mktemp("demo") / "table")
    patch.undo()


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture(scope="module")
def rows(built) -> list[dict]:
    with open(built, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_kinds_of_rows(built, rows):
    filled = Counter(tuple(name for name in demo.COLUMNS if row[name]) for row in rows)
    assert set(filled) == {
        ("image", "question", "answer", "speech", "split"),
        ("image", "caption", "split", "times"),
        ("speech", "text", "split", "times"),
    }
    facts = json.loads((built.parent / "table.json").read_text())["splits"]
    assert (facts["train"]["questions"], facts["validation"]["questions"], facts["test"]["questions"]) == (
        36593,
        1982,
        9673,
    )
    assert sum(f["digits"] for f in facts.values()) == 1797 and facts["test"]["digits"] == 450
    assert [len(facts[split]["voices"]) for split in ("train", "validation", "test")] == [40, 3, 8]
    made = facts["train"]["question_clips"]  # a clip that no row happens to draw is not made
    assert made == len({row["speech"] for row in rows if row["split"] == "train" and row["question"]})
    assert 0.99 * 107 * demo.CLIPS_PER_QUESTION <= made <= 107 * demo.CLIPS_PER_QUESTION
    assert all((built.parent / row[name]).is_file() for row in rows for name in ("image", "speech") if row[name])


@pytest.mark.parametrize("name", ["image", "speech", "text"])
def test_nothing_is_on_two_sides(rows, name):
    sides = defaultdict(set)
    for row in rows:
        if row[name]:
            sides[row[name]].add(row["split"])
    assert max(map(len, sides.values())) == 1, f"a {name} is on one side"


def test_voices_are_held_out():
    by_split = demo.voices()
    variants = {split: {voice.name.partition("+")[2] for voice in found} for split, found in by_split.items()}
    for one, two in combinations(variants, 2):
        assert not variants[one] & variants[two], f"a variant is in {one} and in {two}"
    assert len({voice.name for voice in by_split["train"]}) == 40, "all different"


def test_clips_are_spread_evenly(rows):
    clips = defaultdict(set)
    for row in rows:
        if row["question"] and row["split"] == "train":
            clips[Path(row["speech"]).parent.name].add(row["speech"])
    counts = [len(found) for found in clips.values()]
    assert len(counts) == 40 and max(counts) - min(counts) <= 3, "each voice asks equally many questions"


def spelled(text: str) -> list[str]:
    return text.replace("?", "").replace(",", "").split()


def test_held_out_sentences(rows):
    more = set(demo.practice())
    share = Counter(row["split"] for row in rows if row["text"] and row["text"] not in more)
    assert 0.12 < share["test"] / share.total() < 0.2, share
    assert not more & set(demo.sentences()), "what is held out of the others is not in what is for training only"
    practised = Counter(row["split"] for row in rows if row["text"] in more)
    assert set(practised) == {"train"} and practised["train"] == len(more) > 2000
    words = {word for row in rows if row["text"] and row["split"] == "train" for word in spelled(row["text"])}
    test = {word for row in rows if row["text"] and row["split"] == "test" for word in spelled(row["text"])}
    assert test <= words, "no held-out sentence has a word that was never spoken"


@pytest.mark.parametrize(
    ("told", "caption"),
    [
        ([("what is the blue shape?", "rectangle")], "a blue rectangle"),
        ([("is there not a red shape?", "no"), ("what shape is present?", "circle")], "a red circle"),
        ([("is no circle present?", "no"), ("what color is the shape?", "teal")], "a teal circle"),
        ([("is a circle present?", "no"), ("is there a triangle?", "no"),
          ("is a teal shape present?", "yes")], "a teal rectangle"),
        ([("is there a circle?", "yes"), ("is there a red shape?", "no")], None),
        ([("is there not a circle?", "yes"), ("is there a red shape?", "yes")], None),
        ([], None),
    ],
)  # fmt: skip
def test_captions_follow_from_the_facts(told, caption):
    assert demo.caption_of(told) == caption


def test_captions_are_what_the_pictures_show(built, rows):
    """By their pixels: the shape's colour lies nearest to the colour that the caption names, in nearly all."""
    from PIL import Image

    named = {
        "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (139, 69, 19), "gray": (128, 128, 128),
        "green": (0, 128, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
    }  # fmt: skip
    colours = np.array(list(named.values()), float)
    right = []
    for row in [row for row in rows if row["caption"] and "digits" not in row["image"]][::40]:
        pixels = np.asarray(Image.open(built.parent / row["image"]).convert("RGB"), float).reshape(-1, 3)
        background = pixels[0]
        shape = np.median(pixels[np.abs(pixels - background).max(1) > 30], axis=0)
        right.append(list(named)[int(((colours - shape) ** 2).sum(1).argmin())] == row["caption"].split()[1])
    assert len(right) > 80 and np.mean(right) > 0.9, f"{np.mean(right):.0%} of the captions name the colour seen"


def test_a_complete_table_is_reused_and_a_foreign_folder_is_left_alone(built, tmp_path):
    before = built.stat().st_mtime_ns
    assert demo.build(built.parent) == built and built.stat().st_mtime_ns == before, "not built again"
    assert demo.is_complete(built.parent) and not demo.is_complete(built.parent, seed=1)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not a demo table"):
        demo.build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    assert not [path for path in built.parent.parent.iterdir() if path.name.startswith(".")], "no half-built rest"


def test_a_table_of_another_version_is_kept_beside_the_new_one(tmp_path):
    def written(version):
        return lambda out: finish(out, ("text",), [{"text": f"version {version}"}], {}, version, 0)

    for version in (1, 2, 3):
        path = build(tmp_path / "table", written(version), version, 0)
    assert "version 3" in path.read_text()
    assert "version 2" in (tmp_path / "table-before" / path.name).read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["table", "table-before"]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_questions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.build(tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_speech_is_loud_enough_differs_and_repeats(tmp_path):
    import soundfile

    names = ["en-us+m1", "en-us+f3", "en-us+Annie", "en-gb-scotland+steph"]
    clips = [
        Clip(f"{n}/{k}.flac", text, Voice(name))
        for n, name in enumerate(names)
        for k, text in enumerate(("a red circle", "seven"))
    ]
    speak_all(clips, tmp_path / "one")
    speak_all(clips, tmp_path / "two")
    waves = {}
    for clip in clips:
        wave, rate = soundfile.read(tmp_path / "one" / clip.path)
        assert rate == RATE and wave.ndim == 1 and 0.2 < len(wave) / RATE < 3, "16 kHz mono of a sensible length"
        assert np.sqrt((wave**2).mean()) > 0.01, f"{clip.voice.name} is silent"
        assert (wave == soundfile.read(tmp_path / "two" / clip.path)[0]).all(), "the same clips, the same bits"
        waves[clip.voice.name, clip.text] = wave
    spectra = {name: np.abs(np.fft.rfft(waves[name, "a red circle"], 8000))[:1600] for name in names}
    for one, two in combinations(names, 2):
        assert np.corrcoef(spectra[one], spectra[two])[0, 1] < 0.95, f"{one} and {two} sound alike"


def test_voices_that_are_not_there(tmp_path):
    synthesiser = Synthesiser()
    with pytest.raises(DataError, match=r"no voice variant 'nobody'. There is: .*Annie"):
        synthesiser.speak("a", Voice("en-us+nobody"))
    with pytest.raises(DataError, match="no voice 'xx-yy'"):
        synthesiser.speak("a", Voice("xx-yy"))
    with pytest.raises(DataError, match=r"could not speak|only silence"):
        synthesiser.speak("", Voice("en-us"))
    with pytest.raises(WeftError, match="Speech synthesis failed: eSpeak NG has no voice"):
        speak_all([Clip("a.flac", "a", Voice("xx-yy"))], tmp_path)


def test_a_table_of_before_the_facts_were_renamed_is_taken(built, tmp_path):
    shutil.copytree(built.parent, tmp_path / "old")
    (tmp_path / "old" / "table.json").rename(tmp_path / "old" / "demo.json")
    before = (tmp_path / "old" / "metadata.csv").stat().st_mtime_ns
    assert demo.build(tmp_path / "old").stat().st_mtime_ns == before, "not built again"
    assert (tmp_path / "old" / "table.json").is_file()
