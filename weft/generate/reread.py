"""Made again until the model itself reads it as it was asked.

    a red circle ──draw──> picture ──how likely, by the run's own reverse arrow, is "a red circle"?──> 0.3: drawn again
                                                                                                  └──> 0.97: kept

Of all that were drawn, the likeliest is kept. Ramesh et al. 2021 (DALL-E, section 2.6) draw many and keep what another
model, CLIP, ranks first. A run that learned both directions needs no other model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.arrows.grammar import Arrow
from weft.data.sources import open_table
from weft.generate.teach import teach

if TYPE_CHECKING:
    from weft.generate.predict import Predictor

TRIES = 16
SURE = math.log(0.98)  # a reading this likely is not doubted


def reverse(arrows: Sequence[Arrow], number: int) -> int | None:
    """The arrow that reads what arrow `number` makes: `image -> caption` for `caption -> image`. None: no such one."""
    arrow = arrows[number]
    if arrow.kind != "produce" or len(arrow.inputs) != 1:
        return None
    for other, candidate in enumerate(arrows):
        inputs = [column.name for column in candidate.inputs]
        if candidate.kind == "produce" and inputs == [arrow.output] and candidate.output == arrow.inputs[0].name:
            return other
    return None


def readings(
    predictor: Predictor, number: int, records: Sequence[Mapping[str, Any]], values: Sequence[Any]
) -> np.ndarray:
    """(n,) log probability that the reverse arrow reads each of the `values`, made for `records`, as what was asked.

    0, which is certain, where there is no such arrow: nothing can be doubted then.
    """
    arrow, back = predictor.renderer.arrows[number], reverse(predictor.renderer.arrows, number)
    if back is None or not len(values):
        return np.zeros(len(values))
    asked = arrow.inputs[0].name
    table = open_table(
        [{arrow.output: value, asked: record[asked]} for record, value in zip(records, values, strict=True)]
    )
    return -teach(predictor, table, range(len(values)), back)[:, 0]
