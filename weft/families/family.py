"""What a family is: a function that returns a config tree, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from weft.core import config as c
from weft.errors import RecipeError, nearest


@dataclass(frozen=True)
class Wanted:
    """What a family's function is asked for.

    stems   kind -> features of one media token
    labels  head name -> number of classes
    """

    vocab: int
    length: int
    dim: int
    depth: int
    heads: int
    stems: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def classifiers(self, hidden: int = 0) -> dict[str, c.Classify]:
        """A classification head for each of the labels."""
        return {name: c.Classify(classes, hidden) for name, classes in self.labels.items()}


@dataclass(frozen=True)
class Family:
    """kind: decoder | encoder | encoder-decoder | dual. sizes: name -> (dim, depth, heads), the default first.

    published  name -> what makes that model of the paper: arguments of `make`
    """

    name: str
    config: Callable[..., c.ModelConfig]
    kind: str
    paper: str
    sizes: dict[str, tuple[int, int, int]]
    published: dict[str, dict] = field(default_factory=dict)

    @property
    def difference(self) -> str:
        """How it differs from GPT-2, in the words of its function."""
        return (self.config.__doc__ or "").strip()


def stems(want: Wanted, name: str) -> dict[str, c.Stem]:
    """A stem of the named sort for each kind. "conv" is for images; other kinds take the MLP instead."""
    makers = {
        "linear": lambda kind, features: c.LinearStem(features),
        "mlp": lambda kind, features: c.MlpStem(features, 2 * want.dim),
        "conv": lambda kind, features: (
            c.ConvStem(features, want.dim // 4) if kind == "image" else c.MlpStem(features, 2 * want.dim)
        ),
    }
    if name not in makers:
        raise RecipeError(f"A stem is linear, mlp or conv, not {name!r}.{nearest(name, makers)}")
    return {kind: makers[name](kind, features) for kind, features in want.stems.items()}
