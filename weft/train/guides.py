"""Hang the frozen models on a model that its objectives are held against."""

from __future__ import annotations

import torch

from weft.adapt import lora
from weft.arrows.vocabulary import Vocabulary
from weft.errors import RecipeError
from weft.model import Model
from weft.objectives.guide import Guide, refer, teach
from weft.recipe import Recipe
from weft.run import Run
from weft.train.prepare import Prepared


def guided(model: Model, recipe: Recipe, prepared: Prepared, device: torch.device) -> Model:
    """The model at its first step, with its reference where some arrow prefers, and its teacher where there is one.

    Raises RecipeError: preferences without weights to start from, a teacher of another vocabulary, kind or width.
    """
    prefers = [str(arrow) for arrow in prepared.arrows if arrow.kind == "prefer"]
    if not prefers and not recipe.model.guide.teacher:
        return model
    if prefers and prepared.base is None:
        raise RecipeError(f"'{prefers[0]}' moves a model that can answer already: name it with --from (model.source).")
    guide = Guide(recipe.model.guide, bare=lambda one: lora.using(one, ""))
    if recipe.model.guide.teacher:
        teacher = teacher_of(recipe.model.guide.teacher, prepared.renderer.vocabulary, model)
        guide.teacher = teach(model, teacher, recipe.model.guide).to(device)
    if prefers:
        guide.reference = refer(model)
    model.guide = guide
    return model


def teacher_of(name: str, vocabulary: Vocabulary, model: Model) -> Model:
    """The teacher's model. Raises RecipeError unless it reads and writes the same ids with the same heads."""
    run = Run.open(name)
    theirs = run.renderer.vocabulary
    if theirs.blocks != vocabulary.blocks:
        raise RecipeError(
            f"The teacher {name} has a vocabulary of {theirs.size:,} ids ({theirs!r}), the model one of "
            f"{vocabulary.size:,} ({vocabulary!r}): their answers cannot be compared. Train with the teacher's "
            "columns, and leave out --from, so that its vocabulary is taken."
        )
    teacher = run.model()
    missing = [head for head in model.config.heads if head not in teacher.config.heads]
    if teacher.kind != model.kind or missing:
        raise RecipeError(
            f"The teacher is {teacher.kind} and the model {model.kind}"
            + (f", and it has no head {missing[0]!r}" if missing else "")
            + "; they have to be of one kind, with the same heads."
        )
    return teacher
