"""How often the samples of an arrow are drawn in an epoch: by a number, or row by row by a column of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weft.arrows.grammar import Arrow
from weft.arrows.types import blank
from weft.data.sources import Table
from weft.errors import DataError, RecipeError, nearest
from weft.recipe import Recipe

OFTEN = 1000  # a row is drawn less often than this in an epoch


def mix_of(recipe: Recipe, arrows: Sequence[Arrow], table: Table) -> dict[int, float | np.ndarray]:
    """Number of an arrow -> how often its samples are drawn, or (rows,) how often each row of the table is.

    Raises RecipeError for an arrow or a column that is not there, DataError for a cell that is no such number.
    """
    numbers = {arrow.task: number for number, arrow in enumerate(arrows)}
    numbers |= {str(arrow): number for number, arrow in enumerate(arrows)}
    numbers |= dict(zip(recipe.arrows, range(len(arrows)), strict=False))
    mix: dict[int, float | np.ndarray] = {}
    for name, times in recipe.mix.items():
        if name not in numbers:
            raise RecipeError(f"mix names an arrow {name!r} that is not in this run.{nearest(name, numbers)}")
        if isinstance(times, str):
            mix[numbers[name]] = often(table, times, f"mix of '{name}'")
        elif not 0 <= times < OFTEN:
            raise RecipeError(
                f"mix of '{name}' is {times}. Expected how often its rows are drawn, less than {OFTEN}, such as 0.5 "
                "or 2."
            )
        else:
            mix[numbers[name]] = float(times)
    return mix


def some(mix: Mapping[int, float | np.ndarray], arrow: int, rows: np.ndarray) -> bool:
    """Whether any of these rows (n,) is ever drawn for an arrow."""
    times = mix.get(arrow, 1.0)
    return bool(len(rows)) and bool(np.any(times[rows] if isinstance(times, np.ndarray) else times))


def often(table: Table, column: str, why: str) -> np.ndarray:
    """(rows,) how often each row is to be drawn in an epoch, by a column of numbers; a blank cell is once."""
    if column not in table.columns:
        raise RecipeError(f"{why} names a column {column!r} that is not in the table.{nearest(column, table.columns)}")
    found = np.ones(len(table))
    for row, cell in enumerate(table.column(column)):
        if blank(cell):
            continue
        try:
            found[row] = float(cell)
        except (TypeError, ValueError):
            found[row] = np.nan
        if not 0 <= found[row] < OFTEN:
            raise DataError(
                f"{why}: row {row} of the column {column!r} has {cell!r}. Expected how often the row is drawn, less "
                f"than {OFTEN}, such as 0.5 or 2; a blank cell is once."
            )
    return found
