"""Made again until the model itself reads it as it was asked.

    a red circle ──draw──> picture ──read, by the run's own reverse arrow──> a blue circle?   then it is drawn again
                                                                          └> a red circle     it is kept

Ramesh et al. 2021 (DALL-E, section 2.6) draw many and keep what another model, CLIP, ranks first. A run that learned
both directions needs no other model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weft.arrows.grammar import Arrow
from weft.generate.sample import Sampling

if TYPE_CHECKING:
    from weft.generate.predict import Predictor

TRIES = 16


def default(kind: str, reversible: bool) -> Sampling:
    """How a column of type `kind` is decoded when nothing is said.

    The likeliest picture is an empty one (wherever a shape may begin, background is likelier), so pictures are drawn as
    the model says, and drawn again where it can tell that it failed. Everything else is greedy.
    """
    return Sampling(temperature=1.0, tries=TRIES if reversible else 1) if kind == "image" else Sampling()


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


def misread(
    predictor: Predictor, number: int, records: Sequence[Mapping[str, Any]], values: Sequence[Any]
) -> list[int]:
    """Which of the `values` made for `records` the reverse arrow does not read as what was asked."""
    arrow, back = predictor.renderer.arrows[number], reverse(predictor.renderer.arrows, number)
    if back is None:
        return []
    read = predictor.produce(back, [{arrow.output: value} for value in values], Sampling())
    asked = [str(record[arrow.inputs[0].name]).strip() for record in records]
    return [i for i, (want, got) in enumerate(zip(asked, read, strict=True)) if str(got.value).strip() != want]
