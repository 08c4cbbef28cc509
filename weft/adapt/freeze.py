"""What of a model trains, and how fast: parts frozen by pattern, learning rates by pattern.

train.freeze = ["body.input", "blocks.0"]           these stay as they are
train.parts  = {"heads" = 10.0, "stems" = 3.0}      these learn at so many times the rate; the last that fits counts
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from weft.adapt.patterns import matched
from weft.errors import RecipeError


def paths(model: nn.Module) -> dict[str, list[str]]:
    """Name of each parameter -> all its names: a tied head is reached by its own name too."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {found[0]: found for found in names.values()}


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop the training of every parameter that a pattern fits; their names.

    Raises RecipeError for a pattern that fits nothing, or where nothing would be left to train.
    """
    known = paths(model)
    found = matched(patterns, [name for names in known.values() for name in names], "train.freeze")
    frozen = [first for first, names in known.items() if any(name in found for name in names)]
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise RecipeError(f"train.freeze={', '.join(patterns)}: that is all of the model; nothing is left to train.")
    return frozen


def keep_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze every parameter but these."""
    names = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def factors(model: nn.Module, parts: Mapping[str, float]) -> dict[str, float]:
    """Name of each trained parameter -> the factor on its learning rate.

    Raises RecipeError for a pattern that fits nothing, or nothing that is trained.
    """
    known = {name: all_ for name, all_ in paths(model).items() if dict(model.named_parameters())[name].requires_grad}
    found = matched(list(parts), [name for names in known.values() for name in names], "train.parts")
    return {first: next((parts[found[name]] for name in names if name in found), 1.0) for first, names in known.items()}


def share(model: nn.Module) -> tuple[int, int]:
    """(parameters that train, all parameters)."""
    every = list(model.parameters())
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)
