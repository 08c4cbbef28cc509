"""File formats, each into a dict of columns: csv, tsv, jsonl, json, parquet, txt and webdataset tar.

Text formats keep every cell as the text it is (a label "007" stays "007"); blank cells become None. Errors name the
file and the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from weft.arrows.types import IMAGES, SOUNDS
from weft.errors import DataError

Columns = dict[str, Sequence[Any]]
LONG = 100_000  # characters; a text file of more is cut at blank lines into blocks, not into paragraphs
BLOCK = 10_000  # characters of a block, about


class Member(str):
    """A media file inside a tar: its name, and where its bytes are. A str, so that its type is told by its ending."""

    archive: str
    offset: int
    size: int

    @classmethod
    def of(cls, archive: Path, info: tarfile.TarInfo) -> Member:
        member = cls(f"{archive.name}/{info.name}")
        member.archive, member.offset, member.size = str(archive), info.offset_data, info.size
        return member

    def read(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise DataError(
                f"{self}: {self.size} bytes were expected, the tar holds {len(data)}; it has changed or is cut off."
            )
        return data


def read(path: Path) -> Columns:
    """The columns of a file, by its name's ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    suffix = suffixes[-2] if len(suffixes) == 2 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    reader = READERS.get(suffix)
    if reader is None:
        raise DataError(
            f"{path}: files of the kind {suffix or 'without ending'!r} are not tables. Known: {' '.join(READERS)}."
        )
    return reader(path)


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def text_of(path: Path) -> str:
    """A whole text file, UTF-8; line ends become \\n."""
    try:
        with _open(path) as file:
            return file.read().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}. Convert it: iconv -f LATIN1 -t UTF-8.") from error


def _csv(path: Path, delimiter: str = "") -> Columns:
    text = text_of(path)
    first = text.split("\n", 1)[0]
    if not delimiter:  # a file of one column has none of these, and a comma then does no harm
        delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(
        max(len(text), 1)
    )  # a cell may be as long as the file; the library's own limit is 128 KiB
    try:
        names = next(rows, [])
        if not names:
            raise DataError(f"{path} is empty. Expected a first line with column names.")
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise DataError(f"{path}: the column {doubled.pop()!r} stands twice in the first line.")
        cells: list[list[str | None]] = [[] for _ in names]
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} cells; {len(names)} were expected ({', '.join(names)})."
                )
            for column, cell in zip(cells, row, strict=True):
                column.append(cell or None)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    return dict(zip(names, cells, strict=True))


def _tsv(path: Path) -> Columns:
    return _csv(path, "\t")


def _jsonl(path: Path) -> Columns:
    records = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from error
    return from_records(records, str(path))


def _json(path: Path) -> Columns:
    try:
        tree = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    if not isinstance(tree, list):
        raise DataError(f"{path}: a JSON list of objects was expected, not {type(tree).__name__}.")
    return from_records(tree, str(path))


def from_records(records: Iterable[Mapping[str, Any]], name: str) -> Columns:
    """Dicts -> columns; what a dict does not have is None. Raises DataError for anything that is not a dict."""
    rows = list(records)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}: row {number} is {type(row).__name__} {str(row)[:40]!r}, not an object of named cells."
            )
    columns = dict.fromkeys(key for row in rows for key in row)
    return {str(column): [row.get(column) for row in rows] for column in columns}


class _Lazy(Sequence):
    """A column of an arrow table; cells become Python objects when they are asked for."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        return self._array[index].as_py() if isinstance(index, int) else self._array[index].to_pylist()


def from_arrow(table: Any) -> Columns:
    """A pyarrow Table -> columns; bytes and structs stay where they are until a row is read."""
    import pyarrow as pa

    heavy = lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind)
    return {
        name: _Lazy(table.column(name)) if heavy(table.schema.field(name).type) else table.column(name).to_pylist()
        for name in table.column_names
    }


def _parquet(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return from_arrow(pq.read_table(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}).") from error


def _txt(path: Path) -> Columns:
    """A document per paragraph; per line if no line is blank; per block of about 10,000 characters if it is long."""
    text = text_of(path)
    if len(text) > LONG:
        return {"text": blocks(text)}
    parts = text.split("\n\n") if "\n\n" in text.strip("\n") else text.split("\n")
    return {"text": [part.strip("\n") for part in parts if part.strip()]}


def blocks(text: str, size: int = BLOCK) -> list[str]:
    """Cut a long text behind a blank line (else behind a line, else anywhere); joined they are the text again,
    but for white space at its very end.
    """
    found, start = [], 0
    while len(text) - start > size:
        end = next(
            (at + len(mark) for mark in ("\n\n", "\n") if (at := text.rfind(mark, start, start + size)) > start),
            start + size,
        )
        found.append(text[start:end])
        start = end
    return [*found, text[start:]] if text[start:].strip() else found


def _tar(path: Path) -> Columns:
    """webdataset: files of one name with different endings are one row; media stays in the tar until it is read."""
    rows: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isfile() or Path(info.name).name.startswith("."):
                    continue
                stem, _, ending = Path(info.name).name.partition(".")
                row = rows.setdefault(str(Path(info.name).parent / stem), {})
                _put(row, f".{ending.lower()}", path, archive, info)
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a readable tar file ({error}).") from error
    return from_records(rows.values(), str(path))


def _put(row: dict[str, Any], ending: str, path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    last = f".{ending.rsplit('.', 1)[-1]}"
    prefix = ending[1 : -len(last)]  # "mask" of "0001.mask.png"
    if last in IMAGES or last in SOUNDS:
        name, cell = prefix or ("image" if last in IMAGES else "audio"), Member.of(path, info)
    else:
        data = archive.extractfile(info).read()  # type: ignore[union-attr]
        try:
            text = data.decode("utf-8")
            if last == ".json":
                row.update(json.loads(text))
                return
        except ValueError as error:
            raise DataError(f"{path}, {info.name}: not readable as {last[1:]} ({error}).") from error
        name, cell = {".cls": "label", ".txt": "text"}.get(ending, ending[1:]), text.strip("\n")
    if name in row:
        raise DataError(f"{path}, {info.name}: its row has a {name!r} already; one file per column was expected.")
    row[name] = cell


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".parquet": _parquet,
    ".txt": _txt, ".tar": _tar,
}  # fmt: skip
