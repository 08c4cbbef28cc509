"""What a score must beat: guesses made from the training rows without any model, on the same rows.

    majority            the most frequent training output
    blind (no image)    the most frequent training output among training rows whose other inputs are the same
    nearest neighbour   the output of the training row whose inputs look most alike
    nearest neighbour (its encoders)   the same by what the model's own pretrained encoders make of the inputs
    before training     the model itself at its first step: pretrained parts, new bridges (asked for: `before`)
    support vector machine   pictures to few values, where scikit-learn is installed
    shuffled image      the model itself, with the pictures of the rows exchanged (made in run.py)

A model that does not beat `blind` does not use what was hidden.

Shape letters:  n rows to guess  m training rows  F numbers that describe a row
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft.arrows.types import ColumnType
from weft.evaluate.metrics import words

MEDIA = ("image", "audio")
PIXELS, BAGS, THIRDS = 16, 512, 3
TIE = 1e-5  # squared distances closer than this are equal
CLASSES = 100  # the most that a support vector machine is asked to tell apart


@dataclass
class Rows:
    """Records of one arrow: column -> value, media as cells; `inputs` and `output` name its columns."""

    records: Sequence[Mapping[str, Any]]
    inputs: tuple[str, ...]
    output: str
    types: Mapping[str, ColumnType]

    def __len__(self) -> int:
        return len(self.records)

    def kind(self, column: str) -> str:
        return self.types[column].name

    @property
    def outputs(self) -> list[Any]:
        return [record[self.output] for record in self.records]


@dataclass
class Describer:
    """Turns cells into numbers, each distinct cell once. `read(kind, cell)` opens media: (H,W,3) or (T,M) log-mel.

    encode  kind -> what describes its cells better than a thumbnail or a spectrum: a model's own encoder
    """

    read: Callable[[str, Any], np.ndarray]
    encode: Mapping[str, Callable[[Any], np.ndarray]] = field(default_factory=dict)
    known: dict[Hashable, np.ndarray] = field(default_factory=dict)

    def rows(self, rows: Rows, columns: Sequence[str]) -> np.ndarray:
        """(n,F) float32: the columns' descriptions side by side, each of length about one."""
        return np.stack([np.concatenate([self.cell(rows.kind(c), r[c]) for c in columns]) for r in rows.records])

    def cell(self, kind: str, cell: Any) -> np.ndarray:
        key = (kind, cell if isinstance(cell, Hashable) else id(cell))
        if key not in self.known:
            self.known[key] = self._describe(kind, cell)
        return self.known[key]

    def _describe(self, kind: str, cell: Any) -> np.ndarray:
        if kind in self.encode:
            return self.encode[kind](cell)
        if kind == "image":
            return thumbnail(self.read(kind, cell))
        if kind == "audio":
            return spectrum(self.read(kind, cell))
        return bag(str(cell))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 -> (16*16*3,) float32 in [0,1], scaled by the square root of its length."""
    from weft.modalities.image import resize

    small = resize(image, PIXELS, PIXELS).astype(np.float32) / 255
    return small.ravel() / np.sqrt(small.size)


def spectrum(mel: np.ndarray) -> np.ndarray:
    """(T,M) log-mel -> (3*M,) the mean spectra of its thirds."""
    parts = np.array_split(mel, THIRDS) if len(mel) >= THIRDS else [mel] * THIRDS
    means = np.concatenate([part.mean(0) for part in parts]).astype(np.float32)
    return means / np.sqrt(len(means))


def bag(text: str) -> np.ndarray:
    """A bag of words, each hashed to three places, so that no two words look the same: (512,) float32 of length one."""
    counts = np.zeros(BAGS, np.float32)
    for word in words(text) or [text]:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=6).digest()
        for place in np.frombuffer(digest, np.uint16):
            counts[place % BAGS] += 1
    return counts / max(float(np.linalg.norm(counts)), 1e-9)


def majority(train: Rows, rows: Rows) -> list[Any]:
    """The most frequent training output (the first in order where several are), for every row."""
    best = most_frequent(train.outputs)
    return [best] * len(rows)


def most_frequent(values: Sequence[Any]) -> Any:
    counts = Counter(values)
    most = max(counts.values())
    return min((value for value, count in counts.items() if count == most), key=str)


def blind(train: Rows, rows: Rows, shown: Sequence[str]) -> list[Any]:
    """The most frequent output of the training rows that share the columns `shown`; the majority where none does."""
    seen: dict[tuple, list[Any]] = defaultdict(list)
    for record in train.records:
        seen[tuple(record[c] for c in shown)].append(record[train.output])
    best = {key: most_frequent(values) for key, values in seen.items()}
    otherwise = most_frequent(train.outputs)
    return [best.get(tuple(record[c] for c in shown), otherwise) for record in rows.records]


def blinds(rows: Rows) -> dict[str, tuple[str, ...]]:
    """Name of each blind guess -> the columns it is shown. Media are hidden together; without, each input in turn."""
    media = [c for c in rows.inputs if rows.kind(c) in MEDIA]
    plain = tuple(c for c in rows.inputs if rows.kind(c) not in MEDIA)
    if media and plain:
        return {f"blind (no {', '.join(media)})": plain}
    if not media and len(plain) > 1:
        return {f"blind (no {hidden})": tuple(c for c in plain if c != hidden) for hidden in plain}
    return {}


def neighbours(train: Rows, rows: Rows, describe: Describer, seed: int = 0) -> np.ndarray:
    """(n,) the number of the nearest training row of each row, by squared distance of all inputs' descriptions.

    Of several equally near ones (a caption that many pictures have) any one is drawn.
    """
    a = describe.rows(rows, rows.inputs)
    b = describe.rows(train, train.inputs)
    size, rng = (b**2).sum(1), np.random.default_rng(seed)
    found = []
    for part in np.array_split(a, max(1, len(a) // 512)):
        distance = size - 2 * part @ b.T  # (n,F) x (F,m) -> (n,m)
        distance += rng.random(distance.shape, dtype=np.float32) * TIE
        found.append(distance.argmin(1))
    return np.concatenate(found)


def support_vectors(train: Rows, rows: Rows, describe: Describer) -> list[Any] | None:
    """Pictures to few values by a support vector machine with a Gaussian kernel; None where it does not apply, or
    scikit-learn is not installed."""
    if len(rows.inputs) != 1 or rows.kind(rows.inputs[0]) != "image":
        return None
    classes = len(set(train.outputs))
    if not 2 <= classes <= CLASSES or len(train) < 5 * classes:
        return None
    try:
        from sklearn.svm import SVC
    except ModuleNotFoundError:
        return None
    machine = SVC(C=10.0, gamma="scale").fit(describe.rows(train, train.inputs), train.outputs)
    return list(machine.predict(describe.rows(rows, rows.inputs)))


def guesses(train: Rows, fewer: Rows, rows: Rows, describe: Describer) -> dict[str, list[Any]]:
    """All guesses that apply to an arrow with a label or text output: name -> one output per row.

    train  all training rows, whose media need not be openable;  fewer  those whose inputs are looked at
    """
    if not len(train):
        return {}
    found = {"majority": majority(train, rows)}
    for name, shown in blinds(rows).items():
        found[name] = blind(train, rows, shown)
    nearest = neighbours(fewer, rows, describe)
    found["nearest neighbour"] = [fewer.records[i][fewer.output] for i in nearest]
    machine = support_vectors(fewer, rows, describe)
    if machine is not None:
        found["support vector machine"] = machine
    return found
