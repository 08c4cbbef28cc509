"""Samples for the report: what went in, what the row says, what the model produced, with pictures and sounds as files.

samples/index.json   [{arrow, inputs: {column: text or file}, expected, produced}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weft.run import replace_text

PER_ARROW = 8


def slug(arrow: str) -> str:
    """An arrow as a file name: 'image, question -> answer' -> 'image-question--answer'."""
    return re.sub(r"[^\w]+", "-", arrow.replace("<->", "_with_").replace("->", "_to_").replace("~", "fill_")).strip("-")


def chosen(count: int, most: int = PER_ARROW) -> list[int]:
    """Row numbers in even steps: in order, and not picked."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count))}) if count else []


class Samples:
    """Writes the samples of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[dict[str, Any]] = []

    def add(
        self, arrow: str, cells: Mapping[str, tuple[str, Any]], expected: tuple[str, Any], produced: tuple[str, Any]
    ) -> None:
        """One row: each value with the type of its column. Media values: a cell, an array or a waveform."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{slug(arrow)}-{len(self.found)}"
        self.found.append(
            {
                "arrow": arrow,
                "inputs": {column: self._file(f"{name}-{column}", *cell) for column, cell in cells.items()},
                "expected": self._file(f"{name}-expected", *expected),
                "produced": self._file(f"{name}-produced", *produced),
            }
        )

    def _file(self, name: str, kind: str, value: Any) -> str:
        if kind == "image":
            from weft.modalities.image import open_image, to_png

            path, content = self.folder / f"{name}.png", to_png(open_image(value))
        elif kind == "audio":
            from weft.modalities.audio import RATE, open_audio, to_wav

            wave = value if isinstance(value, np.ndarray) else open_audio(value)
            wave = (
                wave if len(wave) else np.zeros(RATE // 10, np.float32)
            )  # nothing was said: a file must hold something
            path, content = self.folder / f"{name}.wav", to_wav(wave)
        else:
            return str(value)
        path.write_bytes(content)
        return path.name

    def write(self, arrows: Sequence[str]) -> None:
        """index.json: these arrows' samples anew, those of other arrows as they were."""
        index = self.folder / "index.json"
        before = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
        kept = [sample for sample in before if sample["arrow"] not in arrows]
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(index, json.dumps(kept + self.found, indent=1, ensure_ascii=False))
