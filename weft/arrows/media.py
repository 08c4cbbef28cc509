"""Media cells: what identifies one, how many tokens it takes (from its header alone), its features for the model.

Shape letters:  H, W pixels of the file  h, w after `fit`  N media tokens  F features of one  T mel frames (10 ms)

    cell (path, bytes, array, ...) --identify--> (source, key) --measure--> N        header only, nothing decoded
                                                              --read----> Features   (N,F), kept up to a budget of bytes
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from weft.errors import DataError
from weft.modalities import audio, image
from weft.recipe import AudioRecipe, ImageRecipe

COUNTS = 64 << 20  # bytes of lengths that are remembered
ENTRY = 200  # bytes of one entry, about
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lie on their side


class Features(NamedTuple):
    """One item for the model: values (N,F) float16, positions (N,3) float32, and how far the position moves past it."""

    values: np.ndarray
    positions: np.ndarray
    advance: float


class Cache(dict):
    """A dict that takes no more entries once `budget` bytes are in it.

    Nothing is thrown out: an epoch goes through the same items in another order each time, and under that pattern a
    least-recently-used cache of too small a size would hold next to nothing of what is asked for.
    """

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget, self.bytes = budget, 0

    def keep(self, key: Any, value: Any, size: int) -> Any:
        """`value`, remembered under `key` if its `size` bytes still fit."""
        if self.bytes + size <= self.budget and key not in self:
            self[key] = value
            self.bytes += size
        return value

    def clear(self) -> None:
        super().clear()
        self.bytes = 0


def identify(value: Any) -> tuple[Any, str]:
    """A cell -> (what the modality opens, a key that equal content shares: absolute path, or a hash of the content)."""
    if isinstance(value, Mapping):  # as the `datasets` library stores media
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str | PurePath):
        path = os.fspath(value)
        path = path if os.path.isabs(path) else os.path.abspath(path)
        return path, path
    if isinstance(value, bytes | bytearray | memoryview):
        return value, _digest(b"bytes", value)
    if isinstance(value, np.ndarray):
        return value, _digest(f"{value.shape}{value.dtype}".encode(), np.ascontiguousarray(value).data)
    if isinstance(value, tuple) and len(value) == 2:
        wave = np.asarray(value[0])
        return (wave, value[1]), _digest(
            f"{wave.shape}{wave.dtype}{value[1]}".encode(), np.ascontiguousarray(wave).data
        )
    if isinstance(value, Image.Image):
        return value, _digest(f"{value.mode}{value.size}".encode(), value.tobytes())
    raise DataError(
        f"a cell of type {type(value).__name__} came; a path, bytes, an image, an array or (wave, rate) was expected"
    )


def _digest(head: bytes, content: Any) -> str:
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(content)
    return "content:" + digest.hexdigest()


def fitted(height: int, width: int, size: int, patch: int) -> tuple[int, int]:
    """The sides that `image.fit` gives a picture of height x width, without touching a pixel."""
    longest = size // patch * patch
    scale = longest / max(height, width)
    tall, wide = (min(longest, max(1, round(side * scale / patch)) * patch) for side in (height, width))
    return tall, wide


def picture_size(source: Any) -> tuple[int, int]:
    """(H,W) of a picture as it will stand upright, from the header alone. Raises DataError."""
    if isinstance(source, np.ndarray):
        if source.ndim < 2 or 0 in source.shape:
            image.open_image(source)  # says what is wrong with it
        return source.shape[0], source.shape[1]
    if isinstance(source, Image.Image):
        return _upright(source)
    if isinstance(source, str):
        stream: Any = source
        if not os.path.isfile(source) or not os.path.getsize(source):
            image.open_image(source)
    else:
        stream = io.BytesIO(source)
    try:
        with Image.open(stream, formats=image.FORMATS) as opened:
            return _upright(opened)
    except Exception:  # a hostile header can raise nearly anything; opening says it in words
        pixels = image.open_image(source)
        return pixels.shape[0], pixels.shape[1]


def _upright(opened: Image.Image) -> tuple[int, int]:
    sideways = opened.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (opened.width, opened.height) if sideways else (opened.height, opened.width)


def sound_length(source: Any) -> int:
    """Samples at 16 kHz of a sound, from the header alone. Raises DataError."""
    if isinstance(source, tuple):
        count, rate = len(source[0]), int(source[1])
    else:
        if isinstance(source, str) and not os.path.isfile(source):
            audio.open_audio(source)  # says why not
        try:
            info = soundfile.info(source if isinstance(source, str) else io.BytesIO(source))
        except (soundfile.SoundFileError, RuntimeError, OSError):
            return len(audio.open_audio(source))
        count, rate = info.frames, info.samplerate
    if count <= 0 or rate <= 0:
        return len(audio.open_audio(source))
    return count if rate == audio.RATE else int(count * audio.RATE / rate + 0.5)  # as soxr rounds


class Reader:
    """Opens and measures the media of a run, and keeps what it read (float16) up to `budget` bytes."""

    def __init__(self, pictures: ImageRecipe, sounds: AudioRecipe, budget: int) -> None:
        self.pictures, self.sounds = pictures, sounds
        self.kept = Cache(budget)  # (kind, key) -> Features
        self.counts = Cache(COUNTS)  # (kind, key) -> media tokens; ("frames", key) -> mel frames
        self._grids: dict[tuple, np.ndarray] = {}

    # ------------------------------------------------------------------------------------------------ lengths

    def count(self, kind: str, source: Any, key: str) -> int:
        """Media tokens N of an item given as input."""
        known = self.counts.get((kind, key))
        if known is None:
            if kind == "image":
                tall, wide = fitted(*picture_size(source), self.pictures.size, self.pictures.patch)
                known = (tall // self.pictures.patch) * (wide // self.pictures.patch)
            else:
                known = -(-self.frames(source, key) // self.sounds.stack)
            self.counts.keep((kind, key), known, ENTRY)
        return known

    def frames(self, source: Any, key: str) -> int:
        """Mel frames T of a sound. Raises DataError if it is longer than `audio.seconds`."""
        known = self.counts.get(("frames", key))
        if known is None:
            samples = sound_length(source)
            if samples / audio.RATE > self.sounds.seconds:
                raise DataError(
                    f"{key}: the sound lasts {samples / audio.RATE:.2f} s, longer than "
                    f"audio.seconds={self.sounds.seconds:g}; cut it, or raise audio.seconds"
                )
            known = self.counts.keep(("frames", key), -(-samples // audio.HOP), ENTRY)
        return known

    # ------------------------------------------------------------------------------------------------ contents

    def read(self, kind: str, source: Any, key: str) -> Features:
        """The features of an item given as input."""
        known = self.kept.get((kind, key))
        if known is None:
            known = self._patches(self._pixels(source)) if kind == "image" else self._frames(source, key)
            self.kept.keep((kind, key), known, known.values.nbytes + 500)
        return known

    def pixels(self, source: Any) -> np.ndarray:
        """(H,W,3) uint8, for the image codec."""
        return image.open_image(source)

    def mel(self, source: Any, key: str) -> np.ndarray:
        """(T,M) float32, for the audio codec."""
        return self._mel(source, key, "fixed")

    def _mel(self, source: Any, key: str, scale: str) -> np.ndarray:
        """(T,M) float32 by a scale of the recipe's."""
        promised = self.frames(source, key)
        wave = audio.open_audio(source)
        if scale == "whisper":
            found = audio.whisper_mel(wave, self.sounds.mels, pad=max(-len(wave) % audio.HOP, audio.WINDOW - len(wave)))
            found = found[: -(-len(wave) // audio.HOP)]
        else:
            found = audio.log_mel(wave, self.sounds.mels)
        if len(found) != promised:
            raise DataError(
                f"{key}: its header promises {promised * audio.HOP / audio.RATE:.2f} s of sound, and "
                f"{len(found) * audio.HOP / audio.RATE:.2f} s can be decoded; the file is damaged or cut off"
            )
        return found

    def _pixels(self, source: Any) -> np.ndarray:
        """(h,w,3) uint8 of whole patches."""
        return image.fit(image.open_image(source), self.pictures.size, self.pictures.patch)

    def _patches(self, pixels: np.ndarray) -> Features:
        found = image.patches(pixels, self.pictures.patch, self.pictures.mean, self.pictures.std)
        return Features(found.values, self._grid(("image", *pixels.shape[:2]), found.positions), float(found.advance))

    def _frames(self, source: Any, key: str) -> Features:
        mel = self._mel(source, key, self.sounds.scale)
        silence = -1.0 if self.sounds.scale == "fixed" else float(mel.min())
        found = audio.frames(mel, self.sounds.stack, silence)
        return Features(
            found.values, self._grid(("audio", len(found.values)), found.positions), float(math.ceil(found.advance))
        )

    def _grid(self, shape: tuple, positions: np.ndarray) -> np.ndarray:
        """One array of positions for all items of a shape."""
        return self._grids.setdefault(shape, positions)
