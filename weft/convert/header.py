"""The header of a safetensors file, read and checked before anything is allocated.

8 bytes: length of the header    JSON {name: {dtype, shape, data_offsets}}    the tensors' bytes
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import ConvertError

LONGEST = 100_000_000  # bytes of a header; the format's own bound
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4,
    "U64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: dtype by the format's name, shape, first and last byte within the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header(path: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file says it holds.

    Raises ConvertError unless they fill the file exactly: lengths that fit dtype and shape, no gap, no overlap,
    nothing behind the end.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LONGEST, size - 8):
                raise ConvertError(
                    f"{path}: its header claims {length:,} bytes, the file has {size:,}. It is damaged or cut off."
                )
            tree = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ConvertError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: its header is no JSON ({error}). Is it a safetensors file?") from error
    if not isinstance(tree, dict):
        raise ConvertError(f"{path}: its header is no table of tensors.")
    tree.pop("__metadata__", None)
    entries = {name: entry(path, name, fields) for name, fields in tree.items()}
    end = 0
    for name, e in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if e.start != end:
            raise ConvertError(f"{path}: {name} starts at byte {e.start:,}, but the one before ends at {end:,}.")
        end = e.stop
    if end != size - 8 - length:
        raise ConvertError(f"{path}: its tensors take {end:,} bytes, but {size - 8 - length:,} are there.")
    return entries


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that names nothing twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def entry(path: Path, name: str, fields: Any) -> Entry:
    """One tensor of the header. Raises ConvertError if its numbers do not agree."""
    natural = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
    try:
        dtype, shape, (start, stop) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        if not all(map(natural, (*shape, start, stop))) or not isinstance(dtype, str):
            raise ValueError("a number that is none")
    except (KeyError, TypeError, ValueError) as error:
        raise ConvertError(
            f"{path}: {name} is described by {str(fields)[:80]}; dtype, shape and data_offsets were expected."
        ) from error
    if dtype not in BYTES:
        raise ConvertError(f"{path}: {name} is of dtype {dtype}; known are {', '.join(BYTES)}.")
    if stop - start != math.prod(shape) * BYTES[dtype]:
        raise ConvertError(
            f"{path}: {name} {dtype} {shape} takes {math.prod(shape) * BYTES[dtype]:,} bytes, "
            f"but its offsets give it {stop - start:,}."
        )
    return Entry(dtype, shape, start, stop)
