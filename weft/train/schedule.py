"""The learning rate over a run, as a factor between 0 and 1 of the recipe's rate.

1 |   ________________           wsd       warm-up, stable, linear decay to 0 (Hu et al. 2024, MiniCPM)
  |  /                 \\         cosine    warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017)
0 | /                   \\        constant  warm-up only
"""

from __future__ import annotations

import math

from weft.errors import RecipeError, nearest
from weft.recipe import TrainRecipe

SCHEDULES = ("wsd", "cosine", "constant")


def factor(step: int, recipe: TrainRecipe) -> float:
    """What the rate of `step` (from 1 to `recipe.steps`) is multiplied with. Raises RecipeError for an unknown name."""
    steps, options = recipe.steps, recipe.options
    if recipe.schedule not in SCHEDULES:
        raise RecipeError(f"train.schedule is {recipe.schedule!r}.{nearest(recipe.schedule, SCHEDULES)}")
    warmup = round(options.warmup * steps)
    if step <= warmup:
        return step / (warmup + 1)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / max(1, steps - warmup)))
    if recipe.schedule == "wsd":
        decay = max(1, round(options.decay * steps))
        return min(1.0, (steps - step + 1) / (decay + 1))
    return 1.0
