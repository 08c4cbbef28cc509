"""The frozen models that a training is held against: DPO's reference, distillation's teacher.

They hang on the model as `guide`, which is no part of its weights: not saved, not trained, not moved with it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from weft.errors import RecipeError, WeftError
from weft.model import Model, outlet
from weft.recipe import GuideRecipe


@dataclass
class Guide:
    """reference: a frozen copy of the start, None where taking the adapter off gives it; `bare` does, for a block."""

    recipe: GuideRecipe
    reference: Model | None = None
    teacher: Model | None = None
    bare: Callable[[Model], contextlib.AbstractContextManager[None]] | None = None


def refer(model: Model) -> Model | None:
    """The model as it is now, frozen; what is frozen already is shared. None where only adapters train."""
    named = dict(model.named_parameters())
    if all(".adapters." in name for name, p in named.items() if p.requires_grad):
        return None
    memo = {id(p): p for p in named.values() if not p.requires_grad}
    guide, model.guide = model.guide, None
    try:
        return copy.deepcopy(model, memo).requires_grad_(False).eval()  # dropout off: a reference has one opinion
    finally:
        model.guide = guide


@contextlib.contextmanager
def reference(model: Model) -> Iterator[Model]:
    """The model that training started from: the copy, or the model itself with its adapter off."""
    guide = of(model)
    if guide.reference is not None:
        yield guide.reference
        return
    if guide.bare is None:
        raise WeftError("There is neither a frozen copy of the start nor a way to take the adapter off.")
    training = model.training
    model.eval()
    try:
        with guide.bare(model):
            yield model
    finally:
        model.train(training)


def of(model: Model) -> Guide:
    """The guide of a model. Raises WeftError if it has none."""
    if not isinstance(model.guide, Guide):
        raise WeftError("This objective is held against a frozen model, and none was given.")
    return model.guide


def teach(model: Model, teacher: Model, recipe: GuideRecipe) -> Model:
    """The teacher, frozen. Raises RecipeError if its hidden states are to be met and are of another width."""
    if recipe.hidden and width(teacher) != width(model):
        raise RecipeError(
            f"The teacher's hidden states are {width(teacher)} wide and the model's {width(model)}: they cannot be "
            "compared. Set model.guide.hidden=0, or give the model the teacher's width."
        )
    return teacher.requires_grad_(False).eval()


def width(model: Model) -> int:
    """D of what the heads read."""
    return outlet(model.body)[0].config.dim
