"""Column types, and how they are guessed from what is in the columns.

    image   media file names, bytes or arrays that are pictures
    audio   the same for sounds
    messages  lists of {role, content}: conversations
    label   a few short values, each standing often: one token of its own per value
    text    everything else

A guess is printed with its reason (`weft plan`), and overruled by `answer:label` in an arrow or by `types` in the
recipe.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

from weft.arrows.grammar import bad_type
from weft.errors import ArrowError, DataError, nearest

IMAGES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])
SOUNDS = frozenset([".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff"])
MOST_LABELS = 50  # distinct values that are still taken for labels without being told
ROWS_PER_LABEL = 10  # rows per distinct value, on average
LABEL_WORDS = 3
TALK = re.compile(r'\[\{\s*"(role|from|content|value)"\s*:')  # how a conversation as JSON begins


@dataclass(frozen=True)
class Image:
    """Pictures: patches in, codes out."""

    reason: str = field(default="", compare=False)
    name = "image"


@dataclass(frozen=True)
class Audio:
    """Sounds: log-mel frames in, codes out."""

    reason: str = field(default="", compare=False)
    name = "audio"


@dataclass(frozen=True)
class Text:
    """Text: byte-level BPE ids in and out."""

    reason: str = field(default="", compare=False)
    name = "text"


@dataclass(frozen=True)
class Messages:
    """Conversations: the assistant's turns out, all others in."""

    reason: str = field(default="", compare=False)
    name = "messages"


@dataclass(frozen=True)
class Label:
    """One of `values`, in this order: one id each, in and out."""

    values: tuple[str, ...]
    reason: str = field(default="", compare=False)
    name = "label"


ColumnType = Image | Audio | Text | Label | Messages
BY_NAME: dict[str, type] = {"image": Image, "audio": Audio, "text": Text, "label": Label, "messages": Messages}


class Table(Protocol):
    """What is asked of a table here."""

    @property
    def columns(self) -> Sequence[str]: ...

    def column(self, name: str) -> Sequence[Any]: ...


def guess(
    table: Table, types: Mapping[str, str] | None = None, columns: Iterable[str] | None = None
) -> dict[str, ColumnType]:
    """Column -> type with its reason, for `columns` (default: all of the table's).

    `types` says some outright: column -> "image", "audio", "text" or "label".
    Raises ArrowError for an unknown type or a column that is not there, DataError for a column that is empty.
    """
    types = dict(types or {})
    for name, kind in types.items():
        if complaint := bad_type(kind):
            raise ArrowError(f"types: column {name!r}: {complaint}")
        if name not in table.columns:
            raise ArrowError(f"types: the table has no column {name!r}.{nearest(name, table.columns)}")
    return {name: guess_one(name, table.column(name), types.get(name, "")) for name in (columns or table.columns)}


def guess_one(name: str, values: Iterable[Any], said: str = "") -> ColumnType:
    """The type of one column by its values; `said` overrules the guess."""
    filled = [value for value in values if not blank(value)]
    if not filled:
        raise DataError(f"column {name!r} is empty: no row has a value in it")
    if said == "label":
        return Label(distinct(name, filled), "as said")
    if said:
        return BY_NAME[said]("as said")
    kinds = Counter(kind_of(value) for value in filled)
    kind, count = kinds.most_common(1)[0]
    if kind == "messages":
        return Messages(f"{count} conversations")
    if kind in ("image", "audio"):  # cells that are none fail when they are opened, and are listed then
        odd = next((value for value in filled if kind_of(value) != kind), None)
        others = f", {len(filled) - count} cells are none: {_example(odd)}" if odd is not None else ""
        return BY_NAME[kind](f"{count} {'images' if kind == 'image' else 'sounds'}: {_example(filled[0])}{others}")
    if kinds["media"]:
        odd = next(value for value in filled if kind_of(value) == "media")
        raise DataError(f"column {name!r} holds {_example(odd)}, which is no known image or sound; say '{name}:image'?")
    return _text_or_label(name, [as_text(value, name) for value in filled])


def _text_or_label(name: str, texts: list[str]) -> Label | Text:
    values = set(texts)
    words = max(len(value.split()) for value in values)
    share = len(texts) / len(values)
    counted = f"{len(values)} distinct values, {share:.4g} rows each, up to {words} word{'s' * (words != 1)}"
    if len(values) < 2:
        return Text(f"one value only: {texts[0][:40]!r}")
    if len(values) > MOST_LABELS or share < ROWS_PER_LABEL or words > LABEL_WORDS:
        return Text(f"{counted}; labels have at most {MOST_LABELS}, {ROWS_PER_LABEL} rows each, {LABEL_WORDS} words")
    return Label(tuple(sorted(values)), counted)


def distinct(name: str, values: Iterable[Any]) -> tuple[str, ...]:
    """The sorted distinct values of a label column, as text."""
    return tuple(sorted({as_text(value, name) for value in values}))


def blank(value: Any) -> bool:
    """A cell with nothing in it: None, NaN, no bytes, or white space only. Rows with a blank cell sit an arrow out."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return value != value
    return isinstance(value, bytes) and not value


def as_text(value: Any, column: str) -> str:
    """A cell of a text or label column as text: numbers and truth values as Python writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | np.generic | PurePath):
        return getattr(value, "written", str(value))  # a file's name as the table has it, not where it lies here
    raise DataError(f"column {column!r} holds {type(value).__name__} {_example(value)}; text or a number was expected")


def kind_of(value: Any) -> str:
    """What one cell holds: "image", "audio", "media" (bytes or arrays of neither), "messages", or "text"."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return "messages" if {"role", "from"} & set(value[0]) else "text"
    if isinstance(value, str) and value.startswith("[{") and TALK.match(value):
        return "messages"
    if isinstance(value, str | PurePath):
        return _by_extension(value)
    if isinstance(value, Mapping) and ({"bytes", "path"} & set(value)):  # as the `datasets` library stores media
        inner = value.get("bytes") or value.get("path")
        return kind_of(inner) if inner is not None else "media"
    if isinstance(value, bytes | bytearray | memoryview):
        return _by_magic(bytes(value[:16]))
    if isinstance(value, tuple) and len(value) == 2:
        return "audio"
    if isinstance(value, np.ndarray):
        return "image" if value.ndim in (2, 3) else "media"
    return "image" if type(value).__module__.startswith("PIL.") else "text"


def _by_extension(value: str | PurePath) -> str:
    text = str(value)
    dot = text.rfind(".")
    if dot < 0 or len(text) - dot > 6 or "\n" in text:
        return "text"
    extension = text[dot:].lower()
    return "image" if extension in IMAGES else "audio" if extension in SOUNDS else "text"


def _by_magic(head: bytes) -> str:
    """A file's kind by its first bytes."""
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")):
        return "image"
    if head[:4] == b"RIFF":
        return "image" if head[8:12] == b"WEBP" else "audio"
    if head.startswith((b"fLaC", b"OggS", b"ID3", b"FORM")) or (
        head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0
    ):
        return "audio"
    return "media"


def _example(value: Any) -> str:
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if shape := getattr(value, "shape", ()):
        return f"an array of {' x '.join(map(str, shape))}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def to_tree(column: ColumnType) -> dict[str, Any]:
    """As plain JSON values."""
    tree: dict[str, Any] = {"type": column.name, "reason": column.reason}
    return {**tree, "values": list(column.values)} if isinstance(column, Label) else tree


def from_tree(tree: Mapping[str, Any]) -> ColumnType:
    """The way back of `to_tree`."""
    if tree["type"] == "label":
        return Label(tuple(tree["values"]), tree.get("reason", ""))
    return BY_NAME[tree["type"]](tree.get("reason", ""))
