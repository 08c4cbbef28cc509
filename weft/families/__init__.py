"""Families are data: functions that return a config tree over one core."""

from __future__ import annotations

import inspect

from weft.core.config import ModelConfig
from weft.errors import RecipeError, nearest
from weft.families import weft
from weft.families.family import Family, Wanted

FAMILIES: dict[str, Family] = {f.name: f for f in (weft.FAMILY,)}


def make(
    name: str,
    *,
    vocab: int,
    length: int,
    dim: int = 0,
    depth: int = 0,
    heads: int = 0,
    stems: dict[str, int] | None = None,
    labels: dict[str, int] | None = None,
    options: dict | None = None,
) -> ModelConfig:
    """The config of a family. 0: the family's default size.

    stems    kind -> features of one media token ("image": 192)
    labels   name of a classification head -> number of classes
    options  the family's own choices, by name
    Raises RecipeError for a family, option or size that cannot be, with the nearest name.
    """
    if name not in FAMILIES:
        raise RecipeError(f"There is no family {name!r}.{nearest(name, FAMILIES)}")
    family = FAMILIES[name]
    known = [p.name for p in inspect.signature(family.config).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options or {}:
        if option not in known:
            raise RecipeError(f"The family {name} has no option {option!r}.{nearest(option, known)}")
    default = next(iter(family.sizes.values()))
    dim, depth, heads = dim or default[0], depth or default[1], heads or _heads(dim or default[0], default)
    if dim % heads:
        raise RecipeError(f"A width of {dim} cannot be shared by {heads} heads. Take a multiple of {heads}.")
    want = Wanted(vocab, length, dim, depth, heads, dict(stems or {}), dict(labels or {}))
    return family.config(want, **(options or {}))


def _heads(dim: int, default: tuple[int, int, int]) -> int:
    """Heads for a width, as wide as the family's own by default."""
    heads = max(1, dim * default[2] // default[0])
    while dim % heads:
        heads -= 1
    return heads
