"""Tables from whatever the user has: `open_table(source)`.

    file        .csv .tsv .jsonl .json .parquet .txt .tar (webdataset shards), .gz of the text formats
    folder      with metadata.csv or metadata.jsonl: that table, media paths relative to the folder
                class folders (cats/1.png dogs/2.png): columns image|audio|text and label
                loose media or text files: one column; tar or parquet shards: all of them, one after the other
                train/ validation/ test/ on top of any of the last three: a column `split`
    objects     a list (any iterable) of dicts, a dict of lists, a pyarrow Table, a data frame
    name        a built-in table: "demo", "assistant"

A table holds its cells as they came; `row(i)` turns the names of media files into absolute paths, members of tar files
into bytes, and blank cells (nothing, or white space only) into None. Media is only ever read row by row.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from weft.arrows.types import IMAGES, SOUNDS, blank, kind_of
from weft.data import readers
from weft.data.readers import Member
from weft.errors import DataError, nearest

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
BUILT_IN = ("demo", "assistant")  # each a module beside this one that builds it
EDGE = 64 << 10  # bytes at each end of a large file that its digest is of
THREADS = 4  # threads that read files to be told apart
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")


class Found(type(Path())):
    """Where the file of a cell is; `written` is the cell itself, for columns that are said to be text after all."""

    written: str


class Table:
    """Named columns of equal length.

    data    column -> its cells, as they came
    folder  what relative media paths are relative to; None: the working directory
    name    what errors and reports call it
    """

    def __init__(self, data: Mapping[str, Sequence[Any]], folder: Path | None = None, name: str = "the table") -> None:
        lengths = {column: len(cells) for column, cells in data.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{name}: the columns have different lengths: {lengths}")
        if not lengths or not next(iter(lengths.values())):
            raise DataError(f"{name} has no rows. A table with at least one row was expected.")
        self._data = {str(column): cells for column, cells in data.items()}
        self.folder = folder
        self.name = name
        self._digests: dict[tuple[str, int, int], bytes] = {}
        self._files: dict[str, Found] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._data)

    def __len__(self) -> int:
        return len(next(iter(self._data.values())))

    def __repr__(self) -> str:
        return f"Table({self.name}: {len(self)} rows of {', '.join(self.columns)})"

    def column(self, name: str) -> Sequence[Any]:
        """All cells of a column, as they came. Raises DataError, offering the nearest name."""
        if name not in self._data:
            raise DataError(f"{self.name} has no column {name!r}.{nearest(name, self.columns)}")
        return self._data[name]

    def row(self, index: int, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """One row (or some columns of it): media as absolute Path, bytes or array; blank cells None."""
        return {name: self._cell(name, self.column(name)[index]) for name in (columns or self._data)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.row(index) for index in range(len(self)))

    def _cell(self, name: str, value: Any) -> Any:
        if isinstance(value, Member):
            return value.read()
        if blank(value):
            return None
        if isinstance(value, str) and name in self._paths:
            known = self._files.get(value)
            if known is None:  # many rows share a file, and a Path takes longer to make than a row to read
                known = self._files[value] = Found(os.path.join(self._base, value))
                known.written = value
            return known
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):  # as the `datasets` library stores media
            return value["bytes"] if value.get("bytes") is not None else self._cell(name, value.get("path"))
        return value

    @cached_property
    def _base(self) -> str:
        return os.path.abspath(self.folder or "")

    @cached_property
    def _paths(self) -> frozenset[str]:
        """Columns of media file names: most filled cells (of the first 200) end like one."""
        named = []
        for name, cells in self._data.items():
            first = list(islice((cell for cell in cells if not blank(cell)), 200))
            texts = [cell for cell in first if isinstance(cell, str) and not isinstance(cell, Member)]
            media = sum(kind_of(cell) in ("image", "audio") for cell in texts)
            if (texts and 2 * media > len(texts)) or any(isinstance(c, Mapping) for c in first):
                named.append(name)
        return frozenset(named)

    def filled(self, name: str) -> np.ndarray:
        """(rows,) bool: where the column is not blank."""
        return np.fromiter((not blank(cell) for cell in self.column(name)), bool, len(self))

    def identities(self, name: str, rows: Iterable[int] | None = None) -> list[bytes]:
        """Cells (of some rows) as bytes that are equal where the content is, whatever the media files are called.

        Blank cells are b"". A file is read once (see `file_digest`); one that is not there stands for its name.
        """
        cells = self.column(name)
        chosen = [cells[i] for i in (range(len(self)) if rows is None else rows)]
        places = [self._place(name, cell) for cell in chosen]
        new = list({place for place in places if place is not None and place not in self._digests})
        parts = [new[start : start + 256] for start in range(0, len(new), 256)]
        with ThreadPoolExecutor(THREADS) as pool:  # reading lets the other threads go on
            for part, found in zip(
                parts, pool.map(lambda part: [file_digest(*one) for one in part], parts), strict=True
            ):
                self._digests.update(zip(part, found, strict=True))
        return [
            _held(cell) if place is None else self._digests[place] or content(cell)
            for cell, place in zip(chosen, places, strict=True)
        ]

    def identity(self, name: str, row: int) -> bytes:
        """One of `identities`."""
        return self.identities(name, (row,))[0]

    def _place(self, name: str, cell: Any) -> tuple[str, int, int] | None:
        """Where a cell's bytes lie: (file, offset, size), size -1 for the whole file; None: in the table itself."""
        if isinstance(cell, Member):
            return cell.archive, cell.offset, cell.size
        if isinstance(cell, Mapping) and {"bytes", "path"} & set(cell):
            return None if cell.get("bytes") is not None else self._place(name, cell.get("path"))
        if blank(cell) or not (isinstance(cell, Path) or (isinstance(cell, str) and name in self._paths)):
            return None
        return os.path.join(self._base, cell), 0, -1

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the content: all cells, and what the media files that they name hold (`file_digest`)."""
        digest = hashlib.sha256()
        for name, cells in self._data.items():
            digest.update(f"\0column {name}\0".encode())
            for cell, held in zip(cells, self.identities(name), strict=True):
                digest.update(content(cell) + held + b"\0")
        return digest.hexdigest()[:16]


def _held(cell: Any) -> bytes:
    """Content of a cell that holds it itself."""
    if isinstance(cell, Mapping) and cell.get("bytes") is not None:
        return content(cell["bytes"])
    return b"" if blank(cell) else content(cell)


def file_digest(path: str, offset: int = 0, size: int = -1) -> bytes:
    """SHA-256 of a file, or of `size` bytes of it; of more than 128 KiB, of the size and the first and last 64 KiB.

    Equal files always have equal digests. b"" for one that cannot be read. (50,000 files of 3 kB: about a second.)
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size if size < 0 else size
            file.seek(offset)
            if size <= 2 * EDGE:
                return hashlib.sha256(file.read(size)).digest()
            digest = hashlib.sha256(b"%d\0" % size + file.read(EDGE))
            file.seek(offset + size - EDGE)
            digest.update(file.read(EDGE))
            return digest.digest()
    except OSError:  # who opens it says why; here it only has to be told from the others
        return b""


def content(cell: Any) -> bytes:
    """A cell as bytes that are equal for equal cells, whatever the machine."""
    if cell is None:
        return b""
    if isinstance(cell, str | Path):
        return str(cell).encode("utf-8", "surrogatepass")
    if isinstance(cell, bytes | bytearray | memoryview):
        return hashlib.sha256(cell).digest()
    if isinstance(cell, np.ndarray):
        return hashlib.sha256(f"{cell.dtype}{cell.shape}".encode() + np.ascontiguousarray(cell).tobytes()).digest()
    if hasattr(cell, "tobytes") and hasattr(cell, "mode"):  # an image of Pillow
        return hashlib.sha256(f"{cell.mode}{cell.size}".encode() + cell.tobytes()).digest()
    if isinstance(cell, Mapping):
        return b"{" + b",".join(content(key) + b":" + content(cell[key]) for key in sorted(cell, key=str)) + b"}"
    if isinstance(cell, tuple | list):
        return b"[" + b",".join(map(content, cell)) + b"]"
    return repr(cell).encode()


def open_table(source: Any) -> Table:
    """A table from a file, folder, pattern, built-in name or object (see the head of this file). Raises DataError."""
    if isinstance(source, Table):
        return source
    if isinstance(source, str | Path):
        return _from_name(source)
    if isinstance(source, Mapping):
        return Table({name: list(cells) for name, cells in source.items()})
    if hasattr(source, "column_names") and hasattr(source, "to_pylist"):  # a pyarrow Table
        return Table(readers.from_arrow(source))
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a data frame
        return Table({str(name): list(source[name]) for name in source.columns})
    if not isinstance(source, Iterable):
        raise DataError(f"A table came as {type(source).__name__}. Expected a path, a name, or an iterable of dicts.")
    items = list(source)
    if items and all(isinstance(item, str | Path) for item in items):
        return _shards([Path(item) for item in items], "the given files")
    return Table(readers.from_records(items, "the given rows"), None, "the given rows")


def _from_name(source: str | Path) -> Table:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return _file(path)
    if str(source) in BUILT_IN:
        builder = importlib.import_module(f"weft.data.{source}")
        return _file(builder.build(cache() / str(source)))
    if glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"No file matches {source}.")
        return _shards([Path(name) for name in found], str(source))
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    place = (
        f"{path.parent} does not exist."
        if not path.parent.is_dir()
        else nearest(path.name, [*beside, *BUILT_IN]).strip()
    )
    raise DataError(f"There is no file or folder {source}. {place[:500]}".rstrip())


def cache() -> Path:
    """Where built-in tables are kept: $WEFT_CACHE, else the user's cache folder."""
    base = os.environ.get("WEFT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "weft")
    return Path(base).expanduser()


def _file(path: Path) -> Table:
    data = readers.read(path)
    if path.name in METADATA and "file_name" in data:  # the name that the `datasets` library gives to this column
        kinds = {kind_of(cell) for cell in data["file_name"] if not blank(cell)}
        if len(kinds) == 1 and kinds <= {"image", "audio"} and (kind := kinds.pop()) not in data:
            data = {kind if name == "file_name" else name: cells for name, cells in data.items()}
    return Table(data, path.parent.resolve(), str(path))


def _shards(paths: Sequence[Path], name: str) -> Table:
    """Files of equal columns, one after the other."""
    tables = [_file(path) for path in paths]
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    folders = {table.folder for table in tables}
    if len(folders) > 1 and any(table._paths for table in tables):
        raise DataError(
            f"{name} lie in different folders and name media files relative to them. Give one folder at a time."
        )
    joined = {
        column: [cell for table in tables for cell in (table._data.get(column) or [None] * len(table))]
        for column in columns
    }
    return Table(joined, tables[0].folder, name)


def _folder(folder: Path) -> Table:
    for name in METADATA:
        if (folder / name).is_file():
            return _file(folder / name)
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    splits = {entry: SPLITS[entry.name.lower()] for entry in entries if entry.is_dir() and entry.name.lower() in SPLITS}
    if splits and len(splits) == sum(entry.is_dir() for entry in entries):
        return _split_folders(folder, splits)
    shards = [entry for entry in entries if entry.suffix.lower() in (".tar", ".parquet")]
    if shards:
        return _shards(shards, str(folder))
    return _files(folder)


def _split_folders(folder: Path, splits: Mapping[Path, str]) -> Table:
    """train/, validation/, test/ on top: one table with a column `split`."""
    data: dict[str, list[Any]] = {}
    rows = 0
    for entry, split in splits.items():
        table = _folder(entry)
        for name in {**dict.fromkeys(data), **dict.fromkeys(table.columns)}:
            cells = list(table._data.get(name) or [None] * len(table))
            if name in table._paths:
                inside = os.path.relpath(table.folder or "", folder)
                cells = [cell if blank(cell) else _below(inside, cell) for cell in cells]
            data.setdefault(name, [None] * rows).extend(cells)
        data.setdefault("split", [None] * rows)
        data["split"][rows:] = [split] * len(table)
        rows += len(table)
    return Table(data, folder.resolve(), str(folder))


def _below(folder: str, cell: Any) -> Any:
    """A cell of a media column whose relative path, if it has one, is now counted from further up."""
    if isinstance(cell, str) and not isinstance(cell, Member):
        return os.path.join(folder, cell)
    if isinstance(cell, Mapping) and cell.get("bytes") is None and cell.get("path"):
        return {**cell, "path": os.path.join(folder, cell["path"])}
    return cell


def _files(folder: Path) -> Table:
    """Loose files, or one folder per class: every known file below is a row."""
    found: dict[str, list[tuple[str, str]]] = {"image": [], "audio": [], "text": []}
    other: list[str] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        suffix = path.suffix.lower()
        kind = "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else "text" if suffix == ".txt" else ""
        label = inside.parts[0] if len(inside.parts) > 1 else ""
        found[kind].append((str(inside), label)) if kind else other.append(str(inside))
    kinds = [kind for kind, files in found.items() if files]
    if not kinds:
        raise DataError(
            f"{folder} holds no table and no known media. Expected metadata.csv, class folders, media or shards."
        )
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found[kind])} {kind} files" for kind in kinds)
        raise DataError(f"{folder} mixes {counts}. Add a metadata.csv that says which belong together, one row each.")
    if other:
        raise DataError(
            f"{folder} holds {len(other)} files of no known kind among the {kinds[0]} files, such as {other[0]}."
            " Remove them."
        )
    files = found[kinds[0]]
    cells = [name for name, _ in files]
    if kinds[0] == "text":
        cells = [readers.text_of(folder / name) for name in cells]
    data: dict[str, list[Any]] = {kinds[0]: cells}
    if any(label for _, label in files):
        data["label"] = [label or None for _, label in files]
    return Table(data, folder.resolve(), str(folder))
