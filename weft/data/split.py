"""Which rows are for training, which are held out. A row, and everything equal to it, is on one side only.

A column `split` is obeyed. Without one, a seeded hash of each row decides, so a row stays on its side when others come
or go. Rows that share a picture or a sound go together: then that column is hashed (`split_by` says which).
"""

from __future__ import annotations

import hashlib
from collections import Counter

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
    by = split_by(table, recipe)
    # A row that is blank in that column shares nothing there: it is drawn by itself.
    keys = [_row(table, i) if blank(cell) else content(cell) for i, cell in enumerate(table.column(by))] if by else None
    keys = keys or [_row(table, i) for i in range(len(table))]
    draws = {key: _draw(key, seed) for key in set(keys)}
    side = {
        key: "test" if draw < recipe.test else "validation" if draw < recipe.test + recipe.validation else "train"
        for key, draw in draws.items()
    }
    _at_least_one(side, draws, recipe)
    return np.array([side[key] for key in keys], dtype=object)


def split_by(table: Table, recipe: SplitRecipe = DEFAULT) -> str:
    """The column whose hash decides: the recipe's, or the first media column with repeated values; "": all."""
    if recipe.by:
        if recipe.by not in table.columns:
            raise DataError(
                f"split.by names a column {recipe.by!r} that is not in the table.{nearest(recipe.by, table.columns)}"
            )
        return recipe.by
    for kind in ("image", "audio"):
        for name in table.columns:
            cells = table.column(name)
            first = next((cells[i] for i in range(len(table)) if not blank(cells[i])), None)
            if first is not None and kind_of(first) == kind:
                filled = [content(cell) for cell in cells if not blank(cell)]
                if len(set(filled)) < len(filled):
                    return name
    return ""


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
