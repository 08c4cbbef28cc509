"""A GGUF file, read strictly: nothing in it is believed before it is checked against the size of the file.

    "GGUF" | version | tensors | entries      24 bytes
    entries     key, type, value              numbers, texts, arrays
    tensors     name, shape, type, offset     where each lies in the data
    padding to the alignment
    data                                      memory-mapped: a page is read when a tensor on it is asked for

A count or a length that could not fit into the rest of the file ends the reading before anything is allocated for it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.convert.gguf.types import KINDS, NAMED, OTHERS, Kind, dequantise
from weft.errors import ConvertError

MAGIC = b"GGUF"
HEADER = 24
ALIGNMENT = 32  # unless the file says otherwise
LONGEST_NAME, LONGEST_KEY, MOST_AXES = 64, 65535, 4

# number of a metadata type -> (struct letter, bytes)
SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4),
    6: ("f", 4), 7: ("?", 1), 10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
TEXT, ARRAY = 8, 9
LEAST_ENTRY = 8 + 1 + 4 + 1  # bytes: the key's length, a key, a type, a value
LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class Info:
    """Where a tensor lies: `shape` slowest axis first (as torch has it), `start` and `bytes` in the file."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int
    bytes: int


@dataclass(eq=False)
class Gguf:
    """An opened file. `metadata`: key -> number, text, bool, list of texts, or a numpy array of numbers."""

    path: Path
    version: int
    metadata: dict[str, Any]
    infos: dict[str, Info]
    data: np.ndarray = field(repr=False)  # the whole file, mapped

    def tensor(self, name: str) -> Tensor:
        """A tensor as float32, in memory of its own. Raises ConvertError for a name that is not there."""
        if name not in self.infos:
            raise ConvertError(f"{self.path} holds no tensor {name!r}.")
        info = self.infos[name]
        raw = self.data[info.start : info.start + info.bytes]
        return torch.from_numpy(dequantise(raw, info.kind)).view(info.shape)

    @property
    def kinds(self) -> dict[str, int]:
        """Name of a number format -> how many tensors are in it."""
        names = [info.kind.name for info in self.infos.values()]
        return {name: names.count(name) for name in dict.fromkeys(names)}


class Cursor:
    """A place in the file that moves forward and never past the end."""

    def __init__(self, data: np.ndarray, path: Path) -> None:
        self.data, self.path, self.at = memoryview(data), path, 0  # pyright: ignore[reportArgumentType]

    def need(self, count: int, what: str) -> None:
        left = len(self.data) - self.at
        if count > left:
            raise ConvertError(
                f"{self.path}: {what} would take {count:,} bytes or more at byte {self.at:,}, but only {left:,} are "
                "left. The file is cut off or damaged: fetch it again."
            )

    def number(self, kind: int, what: str) -> Any:
        letter, size = SCALARS[kind]
        self.need(size, what)
        (value,) = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += size
        return value

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.number(10, what)
        if longest is not None and length > longest:
            raise ConvertError(f"{self.path}: {what} is {length:,} bytes long; {longest:,} at most were expected.")
        self.need(length, what)
        raw = bytes(self.data[self.at : self.at + length])
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConvertError(f"{self.path}: {what} at byte {self.at - length:,} is not UTF-8 ({error}).") from error

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.number(kind, what)
        if kind == TEXT:
            return self.text(what)
        if kind != ARRAY:
            raise ConvertError(f"{self.path}: {what} is of type {kind}; the types are numbered 0 to 12.")
        return self.array(what)

    def array(self, what: str) -> Any:
        kind, count = self.number(4, what), self.number(10, what)
        if kind == TEXT:
            self.need(8 * count, what)  # each has a length, at least
            return [self.text(what) for _ in range(count)]
        if kind not in SCALARS:
            raise ConvertError(f"{self.path}: {what} is an array of type {kind}; arrays hold numbers or texts here.")
        letter, size = SCALARS[kind]
        self.need(size * count, what)
        values = np.frombuffer(self.data, np.dtype("<" + letter), count, self.at)
        self.at += size * count
        return values


def read(path: str | Path) -> Gguf:
    """Open a file. Raises ConvertError for one that is not GGUF, damaged, or of a number format unknown."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size < HEADER:
            raise ConvertError(f"{path} has {size} bytes; a GGUF file has {HEADER} or more. Fetch it again.")
        data = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise ConvertError(f"{path} cannot be read: {error.strerror}.") from error
    cursor = Cursor(data, path)
    version, tensors, entries = start(cursor)
    metadata = read_metadata(cursor, entries)
    found = [read_info(cursor) for _ in range(tensors)]
    align = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(align, int) or align < 8 or align & (align - 1):
        raise ConvertError(f"{path}: general.alignment is {align!r}; a power of two from 8 on was expected.")
    begin = -(-cursor.at // align) * align
    infos = {info.name: place(info, begin, align, size, path) for info in found}
    if len(infos) < len(found):
        names = [info.name for info in found]
        raise ConvertError(f"{path} names the tensor {next(n for n in names if names.count(n) > 1)!r} twice.")
    apart(infos, path)
    return Gguf(path, version, metadata, infos, data)


def start(cursor: Cursor) -> tuple[int, int, int]:
    """The version, and how many tensors and entries the header promises: no more than could fit."""
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        raise ConvertError(f"{cursor.path} is not a GGUF file: it begins with {magic!r} in place of {MAGIC!r}.")
    cursor.at = 4
    version = cursor.number(4, "the version")
    if version in (2 << 24, 3 << 24):
        raise ConvertError(f"{cursor.path} is big-endian; weft reads little-endian GGUF. Convert it again.")
    if version not in (2, 3):
        raise ConvertError(f"{cursor.path} is GGUF version {version}; weft reads versions 2 and 3. Convert it again.")
    tensors, entries = cursor.number(10, "the header"), cursor.number(10, "the header")
    cursor.need(entries * LEAST_ENTRY + tensors * LEAST_TENSOR, f"{entries:,} entries and {tensors:,} tensors")
    return version, tensors, entries


def read_metadata(cursor: Cursor, entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text("the key of an entry", LONGEST_KEY)
        if key in metadata:
            raise ConvertError(f"{cursor.path} has the entry {key!r} twice.")
        metadata[key] = cursor.value(cursor.number(4, f"the type of {key!r}"), f"the entry {key!r}")
    return metadata


def read_info(cursor: Cursor) -> Info:
    """A tensor's entry; `start` is still counted from the beginning of the data."""
    name = cursor.text("the name of a tensor", LONGEST_NAME)
    axes = cursor.number(4, f"the shape of {name!r}")
    if not 1 <= axes <= MOST_AXES:
        raise ConvertError(f"{cursor.path}: the tensor {name!r} has {axes} axes; 1 to {MOST_AXES} were expected.")
    shape = tuple(cursor.number(10, f"the shape of {name!r}") for _ in range(axes))[::-1]
    number = cursor.number(4, f"the type of {name!r}")
    if number not in KINDS:
        known = OTHERS.get(number, f"number {number}")
        raise ConvertError(
            f"{cursor.path}: the tensor {name!r} is of type {known}, which weft does not read. It reads "
            f"{', '.join(NAMED)}: take a file in one of those (Q8_0, or Q4_K_M of llama.cpp's quantize)."
        )
    kind, numbers = KINDS[number], math.prod(shape)
    if numbers == 0 or shape[-1] % kind.size:
        raise ConvertError(
            f"{cursor.path}: the tensor {name!r} has the shape {shape}; rows of {kind.name} are of {kind.size} "
            "numbers or a multiple."
        )
    return Info(name, shape, kind, cursor.number(10, f"the offset of {name!r}"), numbers // kind.size * kind.bytes)


def place(info: Info, begin: int, align: int, size: int, path: Path) -> Info:
    """The tensor counted from the beginning of the file, if it lies in it."""
    if info.start % align:
        raise ConvertError(f"{path}: the tensor {info.name!r} begins at {info.start:,}, off the alignment of {align}.")
    here = begin + info.start
    if here + info.bytes > size:
        raise ConvertError(
            f"{path}: the tensor {info.name!r} ends at byte {here + info.bytes:,}, past the file's {size:,}. "
            "The file is cut off or damaged: fetch it again."
        )
    return Info(info.name, info.shape, info.kind, here, info.bytes)


def apart(infos: dict[str, Info], path: Path) -> None:
    """Raise ConvertError where two tensors share bytes."""
    ordered = sorted(infos.values(), key=lambda info: info.start)
    for one, other in itertools.pairwise(ordered):
        if one.start + one.bytes > other.start:
            raise ConvertError(f"{path}: the tensors {one.name!r} and {other.name!r} overlap.")
