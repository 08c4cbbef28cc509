"""Lengths known from headers are the lengths that decoding gives, for every format, orientation and rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from arrows_world import picture, sound
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from weft.arrows.media import Cache, Reader, fitted, identify, picture_size, sound_length
from weft.errors import DataError
from weft.modalities import audio, image
from weft.recipe import AudioRecipe, ImageRecipe


def reader(size: int = 64, patch: int = 8, budget: int = 1 << 24, **sounds: float) -> Reader:
    return Reader(ImageRecipe(size=size, patch=patch), replace(AudioRecipe(), **sounds), budget)  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 9), st.integers(0, 40))
@settings(max_examples=60)
def test_the_sides_after_fit(height: int, width: int, patch: int, more: int) -> None:
    expected = image.fit(np.zeros((height, width, 3), np.uint8), patch + more, patch).shape[:2]
    assert fitted(height, width, patch + more, patch) == expected


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_the_size_of_every_format(tmp_path: Path, ending: str) -> None:
    path = str(picture(tmp_path / f"a.{ending}", 20, 50))
    assert picture_size(path) == (20, 50) == image.open_image(path).shape[:2]
    assert picture_size(Path(path).read_bytes()) == (20, 50)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_lie_on_their_side(tmp_path: Path, orientation: int) -> None:
    exif = Picture.Exif()
    exif[0x0112] = orientation
    path = str(picture(tmp_path / "a.jpg", 20, 50, exif=exif))
    assert picture_size(path) == image.open_image(path).shape[:2]
    assert picture_size(path) == ((20, 50) if orientation < 5 else (50, 20))


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg", "opus", "aiff"])
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_length_of_every_format(tmp_path: Path, ending: str, rate: int) -> None:
    if ending == "opus":
        path = tmp_path / "a.opus"
        soundfile.write(path, np.zeros(12345), rate, format="OGG", subtype="OPUS")
    else:
        path = sound(tmp_path / f"a.{ending}", 12345, rate, channels=2)
    read, count = reader(), reader()
    source, key = identify(path)
    assert sound_length(source) == len(audio.open_audio(source)) == sound_length(path.read_bytes())
    assert count.count("audio", source, key) == len(read.read("audio", source, key).values)
    assert len(count.kept) == 0, "nothing was decoded"


@given(st.integers(1, 3000), st.sampled_from([8000, 11025, 22050, 44100, 48000, 16000, 15999, 32000]))
@settings(max_examples=60, deadline=None)
def test_resampled_lengths(samples: int, rate: int) -> None:
    pair = (np.zeros(samples, np.float32), rate)
    try:
        expected = len(audio.open_audio(pair))
    except DataError:
        return  # shorter than one sample
    assert sound_length(pair) == expected


def test_the_key_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = picture(tmp_path / "a.png", 8, 8)
    keys = {identify(v)[1] for v in (path, str(path), "a.png", Path("a.png"), {"path": "a.png", "bytes": None})}
    assert keys == {str(path)}
    content = path.read_bytes()
    assert identify(content)[1] == identify({"bytes": content, "path": "a.png"})[1] != identify(content + b"x")[1]
    zeros = np.zeros((4, 6, 3), np.uint8)
    different = [
        zeros, zeros + 1, zeros.reshape(6, 4, 3), zeros.astype(bool), (zeros[:, 0, 0], 16000), (zeros[:, 0, 0], 8000),
        Picture.fromarray(zeros), Picture.fromarray(zeros + 1),
    ]  # fmt: skip
    assert len({identify(v)[1] for v in different}) == len(different)
    assert identify(zeros)[1] == identify(zeros.copy())[1]
    with pytest.raises(DataError, match="a cell of type int came"):
        identify(3)


def test_every_way_to_give_a_picture_counts_the_same(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 33, 90)
    with Picture.open(path) as opened:
        opened.load()
        expected = reader().read("image", str(path), str(path)).values
        for value in (path, path.read_bytes(), np.array(opened), opened):
            source, key = identify(value)
            assert reader().count("image", source, key) == 24 == len(expected)
        for value in (path.read_bytes(), opened):
            assert (reader().read("image", *identify(value)).values == expected).all()


def test_what_was_read_is_kept_until_the_budget_is_full(tmp_path: Path) -> None:
    paths = [str(picture(tmp_path / f"{i}.png", 8, 8, seed=i)) for i in range(4)]
    small = reader(size=8, budget=2 * (3 * 64 * 2 + 500))
    first = [small.read("image", path, path) for path in paths]
    again = [small.read("image", path, path) for path in paths]
    assert [a.values is b.values for a, b in zip(first, again, strict=True)] == [True, True, False, False]
    assert all((a.values == b.values).all() for a, b in zip(first, again, strict=True))
    assert first[0].positions is first[3].positions, "positions are shared by all items of a shape"
    assert small.kept.bytes <= small.kept.budget


def test_the_cache_counts_each_key_once() -> None:
    cache = Cache(10)
    assert cache.keep("a", 1, 6) == 1 and cache.keep("a", 2, 6) == 2 and cache.keep("b", 3, 6) == 3
    assert dict(cache) == {"a": 1} and cache.bytes == 6
    cache.clear()
    assert not cache and cache.bytes == 0


def test_sounds_that_are_too_long_or_cut_off(tmp_path: Path) -> None:
    path = str(sound(tmp_path / "a.wav", 32001))
    with pytest.raises(DataError, match=r"a\.wav: the sound lasts 2.00 s, longer than audio.seconds=2"):
        reader(seconds=2.0).count("audio", path, path)
    with pytest.raises(DataError, match=r"longer than audio\.seconds=2"):
        reader(seconds=2.0).read("audio", path, path)
    assert reader(seconds=2.0001).count("audio", path, path) == 26
    found = reader()
    found.frames(path, path)
    sound(Path(path), 16000)  # shorter than it was when it was measured
    with pytest.raises(DataError, match=r"header promises 2.01 s of sound, and 1.00 s can be decoded"):
        found.read("audio", path, path)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, kind: str) -> None:
    empty, noise, missing = tmp_path / "empty", tmp_path / "noise", tmp_path / "missing"
    empty.write_bytes(b"")
    noise.write_bytes(b"neither picture nor sound" * 9)
    for path in (empty, noise, missing, tmp_path):
        for ask in (reader().count, reader().read):
            with pytest.raises(DataError) as caught:
                ask(kind, str(path), str(path))
            assert str(path) in str(caught.value)
