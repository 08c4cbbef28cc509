"""The wire format of protocol buffers, read strictly: just enough for ONNX files, and nothing is copied.

message = (key, value)*        key = field number << 3 | wire type
wire types   0 varint   1 eight bytes   2 length and bytes   5 four bytes
"""

from __future__ import annotations

from collections.abc import Iterator

from weft.errors import ConvertError

Value = int | memoryview
DEEPEST = 10  # bytes of a varint


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises ConvertError where the data ends inside of it."""
    value = 0
    for number in range(DEEPEST):
        if at >= len(data):
            break
        byte = data[at]
        value |= (byte & 0x7F) << (7 * number)
        at += 1
        if byte < 0x80:
            return value, at
    raise ConvertError("The file is cut off or damaged: a number in it does not end.")


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a message: numbers, or views of bytes. Raises ConvertError for damaged data."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ConvertError(f"The file is damaged: there is no field of the kind {kind}.")
        if size > len(data) - at:
            raise ConvertError(f"The file is cut off: {size:,} bytes are said, {len(data) - at:,} are there.")
        yield key >> 3, data[at : at + size]
        at += size


def text(value: Value) -> str:
    """A name. Raises ConvertError for what is none."""
    if isinstance(value, int) or len(value) > 1 << 16:
        raise ConvertError("The file is damaged: a name was expected.")
    return bytes(value).decode("utf-8", "replace")


def view(value: Value) -> memoryview:
    """A message inside of a message. Raises ConvertError for a number."""
    if isinstance(value, int):
        raise ConvertError("The file is damaged: a message was expected, a number came.")
    return value
