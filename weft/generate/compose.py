"""Arrows compose: what one produces, another takes.

    image, speech ─────────────────────────────────> answer        directly
           speech ──> question                                     by way of it: the run's own
    image, ─────────> question ────────────────────> answer        recognition, then its own reading

A model that answers both ways errs in different places. With h what was heard, s the sound and v the rest,

    p(answer | v, s) = p(h | s) p(answer | v, h) + (1 - p(h | s)) p(answer | v, s, directly)

which is the law of total probability with everything else that could have been said left to the direct way. (Speech
translation calls the two ways end-to-end and cascade: Bentivogli et al. 2021.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from weft.arrows.grammar import Arrow


class Detour(NamedTuple):
    """first: number of the arrow that makes `column` from `given`; second: the arrow that takes it in its place."""

    first: int
    second: int
    given: str
    column: str


def detour(arrows: Sequence[Arrow], number: int) -> Detour | None:
    """Two of the run's arrows that lead where arrow `number` leads, from the same columns. None: there are none."""
    arrow = arrows[number]
    if arrow.kind != "produce":
        return None
    inputs = [column.name for column in arrow.inputs]
    for first, candidate in enumerate(arrows):
        given = [column.name for column in candidate.inputs]
        if candidate.kind != "produce" or len(given) != 1 or given[0] not in inputs or candidate.output in inputs:
            continue
        wanted = {candidate.output if name == given[0] else name for name in inputs}
        for second, other in enumerate(arrows):
            same = {column.name for column in other.inputs} == wanted and other.output == arrow.output
            if other.kind == "produce" and same and candidate.output != arrow.output:
                return Detour(first, second, given[0], candidate.output)
    return None
