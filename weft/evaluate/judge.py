"""Who judges what a run draws and says: small networks trained on its own real training rows, and kept in the run.

arrow               judge            what counts                                   trained on
caption -> image    ImageJudge       read exactly as the caption asked for         (image, caption) of the training rows
text -> speech      SpeechJudge      word error of what is heard                   every recording with its text

judges/image-<column>.safetensors + .json    with a hash of the rows it was trained on: another hash trains it again
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weft.arrows.grammar import Arrow
from weft.arrows.types import ColumnType, blank
from weft.data.sources import Table
from weft.evaluate.hear import SpeechJudge
from weft.evaluate.see import ImageJudge

VERSION = 3  # of what the judges are; another version trains again
READINGS = 200  # the most different things that an image judge is asked to tell apart
CLIPS = 4000
Progress = Callable[[str, int, int], None]  # what is done, step, of how many


def reading(record: Mapping[str, Any], arrow: Arrow) -> str:
    """What a drawing should show: the arrow's inputs as text."""
    return ", ".join(str(record[column.name]) for column in arrow.inputs)


def readable(arrow: Arrow, types: Mapping[str, ColumnType]) -> bool:
    """Whether all inputs are text or labels, so that there is something to read or to hear."""
    plain = all(types[column.name].name in ("text", "label") for column in arrow.inputs)
    return arrow.kind == "produce" and bool(arrow.inputs) and plain


def recordings(arrows: Sequence[Arrow], types: Mapping[str, ColumnType]) -> list[tuple[str, str]]:
    """(audio column, text column) of every arrow between a recording and what is said in it, whichever way."""
    found = []
    for arrow in arrows:
        if arrow.kind == "produce" and len(arrow.inputs) == 1:
            pair = (arrow.inputs[0].name, arrow.output)
            kinds = tuple(types[name].name for name in pair)
            if kinds == ("text", "audio"):
                pair = pair[::-1]
            if set(kinds) == {"text", "audio"} and pair not in found:
                found.append(pair)
    return found


class Judges:
    """The judges of one run, made when first needed.

    read  (kind, cell) -> the picture (H,W,3) uint8 or the log-mel (T,M) of a real cell
    rows  numbers of the table's training rows
    """

    def __init__(
        self, folder: Path, table: Table, rows: Sequence[int], read: Callable[[str, Any], np.ndarray], *, seed: int = 0,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.table, self.rows, self.read, self.seed = folder, table, list(rows), read, seed
        self.progress = progress
        self.seconds: dict[str, float] = {}  # what training took, by name, in this process

    def image(self, arrow: Arrow) -> tuple[ImageJudge, str] | None:
        """The judge of an arrow `... -> image`, the hash of its training rows; None where readings are too many."""
        rows = [i for i in self.rows if self._covered(i, arrow.columns)]
        records = [self.table.row(i, arrow.columns) for i in rows]
        readings = [reading(record, arrow) for record in records]
        if not 2 <= len(set(readings)) <= READINGS:
            return None
        cells = [record[arrow.output] for record in records]
        key = self._key(self.table.identities(arrow.output, rows), readings)
        name = f"image-{arrow.output}-{_short(arrow.task)}"

        def train() -> ImageJudge:
            images = [self.read("image", cell) for cell in cells]
            return ImageJudge.train(images, readings, seed=self.seed, progress=self._told("image judge"))

        return self._kept(name, key, ImageJudge, train), key

    def speech(self, pairs: Sequence[tuple[str, str]]) -> tuple[SpeechJudge, str]:
        """The judge of speech, and the hash of what it was trained on. pairs: (audio column, text column)."""
        known: dict[bytes, tuple[str, int, str]] = {}  # what a recording holds -> (column, row, text)
        for audio, text in pairs:
            rows = [i for i in self.rows if self._covered(i, (audio, text))]
            for i, held in zip(rows, self.table.identities(audio, rows), strict=True):
                known.setdefault(held, (audio, i, str(self.table.column(text)[i])))
        clips = list(known.items())
        if len(clips) > CLIPS:
            clips = [clips[i] for i in np.sort(np.random.default_rng(self.seed).permutation(len(clips))[:CLIPS])]
        texts = [text for _, (_, _, text) in clips]
        key = self._key([held for held, _ in clips], texts)

        def train() -> SpeechJudge:
            mels = [self.read("audio", self.table.row(i, (audio,))[audio]) for _, (audio, i, _) in clips]
            return SpeechJudge.train(mels, texts, seed=self.seed, progress=self._told("speech judge"))

        return self._kept("speech", key, SpeechJudge, train), key

    def _covered(self, row: int, columns: Sequence[str]) -> bool:
        return not any(blank(self.table.column(column)[row]) for column in columns)

    def _key(self, held: Sequence[bytes], readings: Sequence[str]) -> str:
        """Of what the training rows hold (not of what their files are called) and say."""
        digest = hashlib.sha256(f"{VERSION} {self.seed}".encode())
        for item, said in zip(held, readings, strict=True):
            digest.update(item + b"\0" + said.encode() + b"\0")
        return digest.hexdigest()[:16]

    def _told(self, name: str) -> Callable[[int, int, float], None] | None:
        progress = self.progress
        return None if progress is None else lambda step, steps, loss: progress(name, step, steps)

    def _kept(self, name: str, key: str, kind: Any, train: Callable[[], Any]) -> Any:
        """The judge from the run's folder, or trained and put there."""
        from safetensors.torch import load_file, save_file

        tensors, facts = self.folder / f"{name}.safetensors", self.folder / f"{name}.json"
        if facts.is_file() and tensors.is_file():
            known = json.loads(facts.read_text(encoding="utf-8"))
            if known["key"] == key:
                return kind.restore(load_file(tensors), known["facts"])
        start = time.perf_counter()
        judge = train()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        state, said = judge.state()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in state.items()}, tensors)
        facts.write_text(json.dumps({"key": key, "seconds": self.seconds[name], "facts": said}, ensure_ascii=False))
        return judge


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
