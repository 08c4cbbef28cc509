"""Which rows are for training, which are held out. A row, and everything equal to it, is on one side only.

A column `split` is obeyed. Without one, a seeded hash of each row decides, so a row stays on its side when others come
or go. Rows that share a picture or a sound go together, whatever their files are called: then that content is hashed.

    row   image   speech
    1     a.png   x.wav   ┐ one picture                  image and speech both repeat: rows that hang together by
    2     a.png   y.wav   ┘ ┐ one recording              either are one group, on one side
    3     b.png   y.wav     ┘
    4     c.png   z.wav     another group
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from weft.arrows.types import blank, kind_of
from weft.data.sources import SPLITS, Table, content
from weft.errors import DataError, nearest
from weft.recipe import SplitRecipe

NAMES = ("train", "validation", "test")
DEFAULT = SplitRecipe()


def assign(table: Table, recipe: SplitRecipe = DEFAULT, seed: int = 0) -> np.ndarray:
    """(rows,) of "train", "validation" or "test". Raises DataError for shares or a column that make no sense."""
    if "split" in table.columns and not recipe.by:
        return _as_said(table)
    if not (recipe.validation >= 0 and recipe.test >= 0 and recipe.validation + recipe.test < 1):
        raise DataError(
            f"split.validation={recipe.validation} and split.test={recipe.test} leave nothing to train on. "
            "Expected shares whose sum is below 1."
        )
    keys = groups(table, recipe).keys
    draws = {key: _draw(key, seed) for key in set(keys)}
    side = {
        key: "test" if draw < recipe.test else "validation" if draw < recipe.test + recipe.validation else "train"
        for key, draw in draws.items()
    }
    _at_least_one(side, draws, recipe)
    return np.array([side[key] for key in keys], dtype=object)


class Groups(NamedTuple):
    """What goes together.

    keys   per row: equal ones are on one side
    by     the columns that say so; (): every row by itself
    loose  columns whose content repeats too, and may be met on both sides: by them all would hang together
    """

    keys: list[bytes]
    by: tuple[str, ...]
    loose: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"rows of one {' or one '.join(self.by)} stay on one side"] if self.by else []
        if self.loose:
            said.append(f"the same {' or '.join(self.loose)} may be on both (by it, most rows would be one group)")
        return "; ".join(said)


def groups(table: Table, recipe: SplitRecipe = DEFAULT) -> Groups:
    """By the recipe's column, or by the media columns in which something is met twice.

    Where pictures and sounds are crossed with one another, grouping by both would leave one group that cannot be
    parted: then columns are left out, the last first, until no group has more than half of the rows.
    """
    rows = [_row(table, i) for i in range(len(table))]
    if recipe.by:
        if recipe.by not in table.columns:
            raise DataError(
                f"split.by names a column {recipe.by!r} that is not in the table.{nearest(recipe.by, table.columns)}"
            )
        by = {recipe.by: table.identities(recipe.by)}
    else:
        by = {name: cells for name in _media(table) if _repeats(cells := table.identities(name))}
    loose: list[str] = []
    while by:
        keys = _joined(rows, list(by.values()))
        if len(by) == 1 or 2 * Counter(keys).most_common(1)[0][1] <= len(rows):
            return Groups(keys, tuple(by), tuple(loose))
        loose.insert(0, by.popitem()[0])
    return Groups(rows, ())


def kept_together(table: Table, recipe: SplitRecipe = DEFAULT) -> str:
    """What is kept together, for people; "" where every row goes by itself or the table says its sides."""
    return "" if "split" in table.columns and not recipe.by else str(groups(table, recipe))


def _media(table: Table) -> list[str]:
    """Columns of pictures, then those of sounds."""
    kinds = {}
    for name in table.columns:
        cells = table.column(name)
        first = next((cells[i] for i in range(len(table)) if not blank(cells[i])), None)
        kinds[name] = "" if first is None else kind_of(first)
    return [name for kind in ("image", "audio") for name in kinds if kinds[name] == kind]


def _repeats(cells: list[bytes]) -> bool:
    filled = [cell for cell in cells if cell]
    return len(set(filled)) < len(filled)


def _joined(rows: list[bytes], columns: list[list[bytes]]) -> list[bytes]:
    """Per row the least content in its group; a row that is blank in all of the columns goes by itself."""
    if len(columns) == 1:
        return [cell or row for cell, row in zip(columns[0], rows, strict=True)]
    over: dict[tuple[int, bytes], tuple[int, bytes]] = {}  # a forest: content -> what stands for it

    def top(one: tuple[int, bytes]) -> tuple[int, bytes]:
        while over.setdefault(one, one) != one:
            over[one] = one = over[over[one]]
        return one

    named = [[(number, cell) for number, cell in enumerate(cells) if cell] for cells in zip(*columns, strict=True)]
    for contents in named:
        for other in contents[1:]:
            a, b = sorted((top(contents[0]), top(other)))
            over[b] = a
    return [top(contents[0])[1] if contents else row for contents, row in zip(named, rows, strict=True)]


def _as_said(table: Table) -> np.ndarray:
    said = [str(cell).strip().lower() if not blank(cell) else "" for cell in table.column("split")]
    wrong = Counter(name for name in said if name not in SPLITS)
    if wrong:
        name, count = wrong.most_common(1)[0]
        what = f"{count} blank cells" if not name else f"{name!r} in {count} rows"
        raise DataError(f"{table.name}: the column `split` has {what}. Expected train, validation or test.")
    return np.array([SPLITS[name] for name in said], dtype=object)


def _row(table: Table, index: int) -> bytes:
    return b"\0".join(content(table.column(name)[index]) for name in table.columns)


def _draw(key: bytes, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(b"%d|" % seed + key).digest()[:8], "big") / 2**64


def _at_least_one(side: dict[bytes, str], draws: dict[bytes, float], recipe: SplitRecipe) -> None:
    """A small table may draw nothing for a side that was asked for: then the nearest training key goes there."""
    for name, share in (("test", recipe.test), ("validation", recipe.validation)):
        training = sorted((draws[key], key) for key in side if side[key] == "train")
        if share > 0 and name not in side.values() and len(training) > 1:
            side[training[0][1]] = name
