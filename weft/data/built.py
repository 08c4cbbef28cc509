"""Tables that weft makes itself: written beside their place, renamed when they are whole, reused while they are.

out/
├── metadata.csv    the table
└── table.json      facts about it for the report; version, seed and SHA-256 of the table
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.errors import DataError

TABLE, FACTS = "metadata.csv", "table.json"


def build(out: Path, write: Callable[[Path], None], version: int, seed: int) -> Path:
    """The path of a table of this version and seed below `out`; `write` fills a new folder with it if it is not there.

    One of another version is kept beside it, as `<out>-before`. An interrupted build leaves nothing half done. Raises DataError when `out` holds something that is no such table.
    """
    if is_complete(out, version, seed):
        return out / TABLE
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FACTS).is_file())):
        raise DataError(f"{out} exists and is not a demo table. Name an empty or a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(work)
        if (out / FACTS).is_file():  # runs may have been trained on it
            shutil.rmtree(beside := out.with_name(f"{out.name}-before"), ignore_errors=True)
            os.replace(out, beside)
        elif out.exists():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # nothing is there after the rename
    return out / TABLE


def is_complete(out: Path, version: int, seed: int) -> bool:
    """Whether `out` holds the whole table of this version and seed."""
    if not (out / FACTS).is_file() or not (out / TABLE).is_file():
        return False
    facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    table = hashlib.sha256((out / TABLE).read_bytes()).hexdigest()
    return (facts.get("version"), facts.get("seed"), facts.get("sha256")) == (version, seed, table)


def finish(
    out: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], version: int,
    seed: int,
) -> None:  # fmt: skip
    """Write the table and what is told of it."""
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    digest = hashlib.sha256((out / TABLE).read_bytes()).hexdigest()
    whole = {**facts, "version": version, "seed": seed, "sha256": digest}
    (out / FACTS).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def draw(text: str, seed: int, purpose: str) -> int:
    """A number that depends on nothing but its arguments, on any machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{text}".encode()).digest()[:8], "big")


def share(text: str, seed: int, purpose: str) -> float:
    """The same as a share from 0 to 1."""
    return draw(text, seed, purpose) / 2**64
