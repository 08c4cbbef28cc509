"""A small run to render with: media files on disk, a text codec, codecs that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image as Picture

from weft.arrows.grammar import parse
from weft.arrows.render import Renderer
from weft.arrows.types import Audio, ColumnType, Image, Label, Text
from weft.arrows.vocabulary import Vocabulary
from weft.modalities.text import TextCodec
from weft.recipe import Recipe

ARROWS = (
    "image, question -> answer", "speech -> question", "caption -> image", "question -> speech", "-> question",
    "~question", "image <-> caption", "2* answer -> caption", "-> answer", "image, speech -> number",
)  # fmt: skip
TYPES: dict[str, ColumnType] = {
    "image": Image(), "speech": Audio(), "question": Text(), "caption": Text(),
    "answer": Label(("blue", "no", "yes")), "number": Label(("1", "2", "10")),
}  # fmt: skip
WORDS = ["what colour is it?", "is there a blue square?", "a red circle", "一个蓝色的正方形", "naïve 🙂 \u202etext"] * 4


class StandIn:
    """A codec whose codes are brightnesses: enough to see which item was coded, and in what order."""

    def __init__(self, size: int, count: int = 0, hop: int = 4) -> None:
        self.size, self.count, self.hop, self.calls = size, count, hop, 0

    def encode(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        mean = lambda item: int(np.abs(item.astype(np.float64)).sum()) % self.size
        return [np.full(self.count or -(-len(item) // self.hop), mean(item), np.int64) for item in items]

    def decode(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.count:
            return [np.full((8, 8, 3), row[0], np.uint8) for row in ids]
        return [np.full((len(row) * self.hop, 80), -0.5, np.float32) for row in ids]


def renderer(recipe: Recipe | None = None, arrows: Sequence[str] = ARROWS, **options: Any) -> Renderer:
    """A renderer over all column types."""
    recipe = recipe or Recipe()
    parsed = [parse(text) for text in arrows]
    text = TextCodec.train(WORDS, 300)
    codecs = {"image": StandIn(97, recipe.image.codes), "audio": StandIn(89, hop=recipe.audio.hop)}
    labels = {name: len(kind.values) for name, kind in TYPES.items() if isinstance(kind, Label)}
    vocabulary = Vocabulary(list(TYPES), text.size, labels, {kind: codec.size for kind, codec in codecs.items()})
    return Renderer(recipe, TYPES, parsed, vocabulary, text, codecs, **options)


def picture(path: Path, height: int, width: int, seed: int = 0, **options: Any) -> Path:
    """Noise as an image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Picture.fromarray(pixels).save(path, **options)
    return path


def sound(path: Path, samples: int, rate: int = 16000, channels: int = 1, seed: int = 0) -> Path:
    """Soft noise as a sound file."""
    wave = np.random.default_rng(seed).uniform(-0.2, 0.2, (samples, channels))
    soundfile.write(path, wave, rate)
    return path


def record(folder: Path) -> dict[str, Any]:
    """One row with a value in every column."""
    return {
        "image": picture(folder / "cat.png", 48, 64), "speech": sound(folder / "say.wav", 12345),
        "question": "what colour is it?", "caption": "a red circle", "answer": "blue", "number": 10,
    }  # fmt: skip
