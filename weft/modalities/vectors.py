"""Word vectors, GloVe's and fastText's, for the tokens of a text codec.

Shape letters:  n words  d features of a vector  V tokens of the codec

    the                 a word that is one token           its vector
    token + iz + ation  a piece of words                   the mean of the words that it is a piece of
    ,                   a word of the table as well        its vector
    (bytes)             in no word                         nothing: the model's own start stays
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.errors import DataError
from weft.modalities.text import TextCodec

MOST = 400_000  # words read: these files begin with the frequent ones
WIDEST = 4096  # features of a vector
LONGEST = 1 << 20  # bytes of a line


@dataclass(frozen=True, eq=False)
class Vectors:
    """words, the frequent ones first, and values (n,d) float32."""

    words: list[str]
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Matched:
    """values (V,d) float32 for the tokens of a codec; whole, part (V,) bool: which are words, which pieces of words."""

    values: np.ndarray
    whole: np.ndarray
    part: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(V,) bool."""
        return self.whole | self.part

    def __str__(self) -> str:
        share = lambda which: f"{which.mean():.0%}"
        return (
            f"{share(self.covered)} of {len(self.whole)} tokens have a vector of {self.values.shape[1]} features "
            f"({share(self.whole)} are words, {share(self.part)} pieces of words, {share(~self.covered)} in none)"
        )


def read_vectors(path: str | Path) -> Vectors:
    """A text file (.txt, .vec, also .gz) of a word and its numbers a line, or a folder of one .npy and one .parquet.

    Raises DataError, naming file and line.
    """
    path = Path(path)
    if path.is_dir():
        return from_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of word vectors. Give a .txt or .vec file, or the name glove.")
    words: dict[str, int] = {}
    rows: list[np.ndarray] = []
    width = 0
    for number, word, numbers in lines(path):
        if word in words:
            continue
        try:
            row = np.array(numbers.split(" "), dtype=np.float32)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {word!r} is not followed by numbers ({error}).") from error
        width = width or len(row)
        if len(row) != width or not 0 < width <= WIDEST or not np.isfinite(row).all():
            raise DataError(
                f"{path}, line {number}: {len(row)} numbers came for {word!r}; {width} finite ones were expected."
            )
        words[word] = len(rows)
        rows.append(row)
        if len(rows) == MOST:
            break
    if not rows:
        raise DataError(f"{path} holds no word vectors. Each line is a word and its numbers, with blanks between.")
    return Vectors(list(words), np.stack(rows))


def lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, word, its numbers); fastText's first line, two whole numbers, is passed over."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            number = 0
            while line := file.readline(LONGEST):
                number += 1
                text = line.decode("utf-8", errors="replace").rstrip()
                word, _, numbers = text.partition(" ")
                if not numbers or (number == 1 and numbers.isdigit() and word.isdigit()):
                    if number == 1 and numbers.isdigit():
                        continue
                    raise DataError(f"{path}, line {number}: a word and its numbers were expected, not {text[:60]!r}.")
                yield number, word, numbers.strip()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error


def from_folder(folder: Path) -> Vectors:
    """One matrix (.npy) and one table of words (.parquet) in the order of its rows, as GloVe's package holds them."""
    import pyarrow.parquet as parquet

    arrays, tables = sorted(folder.glob("*.npy")), sorted(folder.glob("*.parquet"))
    if len(arrays) != 1 or len(tables) != 1:
        raise DataError(
            f"{folder}: one .npy and one .parquet were expected, there are {len(arrays)} and {len(tables)}."
        )
    try:
        values = np.load(arrays[0], mmap_mode="r", allow_pickle=False)
        columns = parquet.read_table(tables[0]).to_pydict()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its files cannot be read ({error}).") from error
    names = [name for name, cells in columns.items() if cells and isinstance(cells[0], str)]
    if values.ndim != 2 or not names or len(columns[names[0]]) != len(values):
        raise DataError(
            f"{folder}: words and vectors do not belong together ({values.shape}, columns {list(columns)})."
        )
    words, numbers = columns[names[0]], next((c for n, c in columns.items() if n not in names), None)
    rows = np.arange(len(words)) if numbers is None else np.array(numbers)
    if rows.min() < 0 or rows.max() >= len(values):
        raise DataError(f"{folder}: a word's row is outside of the {len(values)} vectors.")
    order = np.argsort(rows, kind="stable")[:MOST]
    return Vectors([words[i] for i in order], np.asarray(values[rows[order]], dtype=np.float32))


def match(vectors: Vectors, codec: TextCodec) -> Matched:
    """A vector for every token that can have one. Words are looked up as they are, then in lower case."""
    index = {word: row for row, word in enumerate(vectors.words)}
    size, width = codec.size, vectors.values.shape[1]
    values, counts = np.zeros((size, width), np.float64), np.zeros(size, np.int64)
    whole = np.zeros(size, bool)
    for token in range(size):
        word = codec.decode([token]).strip()
        row = index.get(word, index.get(word.lower())) if word else None
        if row is not None:
            values[token], whole[token] = vectors.values[row], True
    for before in ("", " "):  # a word inside of a text comes with its blank
        for row, ids in enumerate(codec.encode_many([before + word for word in vectors.words])):
            pieces = np.unique(ids)
            pieces = pieces[~whole[pieces]]
            values[pieces] += vectors.values[row]
            counts[pieces] += 1
    part = counts > 0
    values[part] /= counts[part, None]
    return Matched(values.astype(np.float32), whole, part)
