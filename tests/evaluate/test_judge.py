"""Judges: they read what is there, are at chance where nothing is, repeat to the bit, and are kept in the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from weft.arrows import types
from weft.arrows.grammar import parse
from weft.data.sources import Table
from weft.errors import DataError
from weft.evaluate.hear import SpeechJudge, padded, warped
from weft.evaluate.judge import Judges, readable, reading, recordings
from weft.evaluate.metrics import word_error
from weft.evaluate.see import ImageJudge
from weft.modalities.image import open_image, to_png

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (40, 40, 200)}
SHAPES = ("bar", "box")


def picture(what: str, rng: np.random.Generator) -> np.ndarray:
    """A coloured upright bar or a box somewhere on a light ground."""
    colour, shape = what.split()
    image = np.full((32, 32, 3), 235, np.uint8)
    height, width = (18, 5) if shape == "bar" else (10, 10)
    top, left = rng.integers(0, 32 - height), rng.integers(0, 32 - width)
    image[top : top + height, left : left + width] = COLOURS[colour]
    return image


def pictures(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    names = [f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}" for _ in range(count)]
    return [picture(name, rng) for name in names], names


def utterance(text: str, rng: np.random.Generator) -> np.ndarray:
    """A made-up voice: each letter a band of its own for 60 ms, a pause between words."""
    mel = np.full((6 * len(text), 20), -1.0, np.float32)
    for i, letter in enumerate(text):
        if letter != " ":
            band = "abcde".index(letter) * 4
            mel[6 * i : 6 * i + 5, band : band + 3] = 0.3
    return mel + rng.normal(0, 0.05, mel.shape).astype(np.float32)


def utterances(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    word = lambda: "".join(rng.choice(list("abcde"), rng.integers(1, 4)))
    texts = [" ".join(word() for _ in range(rng.integers(1, 4))) for _ in range(count)]
    return [utterance(text, rng) for text in texts], texts


@pytest.fixture(scope="module")
def seeing() -> ImageJudge:
    return ImageJudge.train(*pictures(240, 0), side=32, steps=80)


@pytest.fixture(scope="module")
def hearing() -> SpeechJudge:
    return SpeechJudge.train(*utterances(300, 0), steps=100)


def test_real_pictures_are_read_and_noise_is_not(seeing: ImageJudge) -> None:
    images, names = pictures(120, 1)
    assert seeing.right(images, names).mean() >= 0.97
    rng = np.random.default_rng(2)
    noise = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in names]
    assert seeing.right(noise, names).mean() < 0.45, "random pictures cannot show what was asked for"
    assert seeing.right(images, names[::-1]).mean() < 0.45, "and real pictures do not show something else"


def test_real_speech_is_heard_and_noise_is_not(hearing: SpeechJudge) -> None:
    mels, texts = utterances(60, 1)
    assert word_error(texts, hearing.hear(mels)).value < 0.1
    rng = np.random.default_rng(2)
    noise = [rng.uniform(-1, 0.5, mel.shape).astype(np.float32) for mel in mels]
    assert word_error(texts, hearing.hear(noise)).value > 0.8, "noise must not be heard as what was to be said"
    assert word_error(texts[::-1], hearing.hear(mels)).value > 0.6
    assert hearing.hear([np.zeros((0, 20), np.float32), mels[0]])[0] == "", "nothing was said, nothing is heard"


def test_a_clip_is_heard_the_same_in_any_company(hearing: SpeechJudge) -> None:
    mels, _ = utterances(12, 3)
    assert hearing.hear(mels) == [hearing.hear([mel])[0] for mel in mels]


def test_training_repeats_to_the_bit() -> None:
    first, second = (ImageJudge.train(*pictures(40, 0), side=32, steps=5) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True)
    )
    other = ImageJudge.train(*pictures(40, 0), side=32, steps=5, seed=1)
    assert not torch.equal(first.net.out.weight, other.net.out.weight)
    one, two = (SpeechJudge.train(*utterances(40, 0), steps=4) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.net.state_dict().values(), two.net.state_dict().values(), strict=True)
    )


def test_augmentation_keeps_the_shape_of_things() -> None:
    rng = np.random.default_rng(0)
    mel = utterance("abcde", rng)
    lengths = {len(warped(mel, rng)) for _ in range(30)}
    assert len(lengths) > 5
    assert all(0.85 * len(mel) <= length <= 1.15 * len(mel) + 8 for length in lengths)
    table, readings = padded([mel, mel[:7]])
    assert table.shape[1] % 4 == 0
    assert (table[1, 7:] == -1).all()
    assert readings.tolist() == [16, 4]


def test_a_speech_judge_needs_recordings_long_enough() -> None:
    with pytest.raises(DataError, match="long enough"):
        SpeechJudge.train([np.zeros((8, 20), np.float32)], ["far too much for so short a sound"], steps=1)


def test_judges_are_kept_with_the_rows_they_were_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ImageJudge.train.__func__.__kwdefaults__, "steps", 4)  # what it learns does not matter here
    images, names = pictures(40, 0)
    table = Table({"caption": names, "image": images})
    opened: list[int] = []

    def read(kind: str, cell: np.ndarray) -> np.ndarray:
        opened.append(1)
        return cell

    arrow = parse("caption -> image")
    first = Judges(tmp_path, table, range(30), read).image(arrow)
    assert first is not None
    assert len(opened) == 30, "training rows, and no other"
    again = Judges(tmp_path, table, range(30), read).image(arrow)
    assert again is not None
    assert len(opened) == 30, "the second time it comes from the run's folder"
    assert again[1] == first[1]
    assert again[0].read(images) == first[0].read(images)
    more = Judges(tmp_path, table, range(31), read).image(arrow)
    assert more is not None
    assert more[1] != first[1], "other rows, another judge"
    assert len(opened) == 61
    assert Judges(tmp_path, table, range(1), read).image(arrow) is None, "one reading is nothing to tell apart"


def test_a_judge_is_known_by_what_its_rows_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other names are the same training rows; a file of the same name with another picture is not."""
    monkeypatch.setitem(ImageJudge.train.__func__.__kwdefaults__, "steps", 2)
    images, names = pictures(12, 0)
    for number, image in enumerate(images):
        for prefix in "ab":
            (tmp_path / f"{prefix}{number}.png").write_bytes(to_png(image))
    read = lambda kind, cell: open_image(cell)

    def key(prefix: str) -> str:
        table = Table({"caption": names, "image": [f"{prefix}{n}.png" for n in range(12)]}, tmp_path)
        found = Judges(tmp_path / "judges", table, range(12), read).image(parse("caption -> image"))
        assert found is not None
        return found[1]

    first = key("a")
    assert key("b") == first
    (tmp_path / "b3.png").write_bytes(to_png(255 - images[3]))
    assert key("b") != first


def test_who_is_judged_by_what() -> None:
    columns = {
        "caption": types.Text(),
        "image": types.Image(),
        "speech": types.Audio(),
        "answer": types.Label(("a", "b")),
    }
    assert readable(parse("caption, answer -> image"), columns)
    assert not readable(parse("speech -> image"), columns)
    assert not readable(parse("-> image"), columns)
    assert reading({"caption": "red", "answer": "b"}, parse("caption, answer -> image")) == "red, b"
    arrows = [
        parse(a) for a in ("caption -> speech", "speech -> caption", "image, speech -> answer", "speech -> answer")
    ]
    assert recordings(arrows, columns) == [("speech", "caption")], (
        "each pair of columns once, labels are not transcripts"
    )
