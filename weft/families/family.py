"""What a family is: a function that returns a config tree, and what is known about it."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from weft.core import config as c
from weft.errors import RecipeError, nearest


@dataclass(frozen=True)
class Wanted:
    """What a family's function is asked for, besides its own options.

    stems     kind -> features of one media token
    labels    name of a classification head -> number of classes
    language  whether there is a head over the vocabulary
    codes     kind of media that is drawn -> (its first id, how many codes there are, how many make an item; 0: any)
    frames    of sound in one token
    """

    vocab: int
    length: int
    dim: int
    depth: int
    heads: int
    stems: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    language: bool = True
    codes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    frames: int = 8

    def tops(self, language: c.Language, hidden: int = 0) -> dict[str, c.Head]:
        """The heads: `language` if it is wanted, and a classification for each of the labels."""
        found: dict[str, c.Head] = {"language": language} if self.language else {}
        return found | {name: c.Classify(classes, hidden) for name, classes in self.labels.items()}

    def stem(self, name: str, dim: int = 0, *, bias: bool = True) -> dict[str, c.Stem]:
        """A stem for each kind: linear, mlp, conv (for images; other kinds take the MLP instead) or pyramid."""
        dim = dim or self.dim
        mlp = lambda features: c.MlpStem(features, 2 * dim)
        makers: dict[str, Callable[[str, int], c.Stem]] = {
            "linear": lambda kind, features: c.LinearStem(features, bias),
            "mlp": lambda kind, features: mlp(features),
            "conv": lambda kind, features: c.ConvStem(features, dim // 4) if kind == "image" else mlp(features),
            "pyramid": lambda kind, features: pyramid(kind, features, self.frames, dim),
        }
        if name not in makers:
            raise RecipeError(f"A stem is linear, mlp, conv or pyramid, not {name!r}.{nearest(name, makers)}")
        return {kind: makers[name](kind, features) for kind, features in self.stems.items()}


def pyramid(kind: str, features: int, frames: int, dim: int) -> c.PyramidStem:
    """Convolutions that halve a patch or `frames` frames until one token is left, wider as it gets smaller."""
    side = frames if kind == "audio" else math.isqrt(features // 3)
    halvings = side.bit_length() - 1
    if side < 2 or side != 2**halvings:
        what = "frames (audio.stack)" if kind == "audio" else "pixels (image.patch)"
        raise RecipeError(f"A pyramid halves its {what} until one is left: 2, 4, 8 ... of them, not {side}.")
    if kind == "audio":
        return c.PyramidStem((features // side, 1, side), (dim,) * (halvings - 1))
    return c.PyramidStem((3, side, side), tuple(dim // 2 ** (halvings - i) for i in range(1, halvings)))


@dataclass(frozen=True)
class Published:
    """A model of a paper: the arguments of `make` that give it, and how many parameters it has.

    share  how far our count may be from that number: 0 where it is exact, more where the paper rounds
    """

    arguments: dict[str, Any]
    parameters: int
    share: float = 0.0


@dataclass(frozen=True)
class Family:
    """kind: decoder | encoder | encoder-decoder | dual. sizes: name -> (dim, depth, heads), the default first.

    media  whether it can take pictures and sounds; a family that counts ids cannot
    """

    name: str
    config: Callable[..., c.ModelConfig]
    kind: str
    paper: str
    sizes: dict[str, tuple[int, int, int]]
    published: dict[str, Published] = field(default_factory=dict)
    media: bool = True

    @property
    def choices(self) -> type | None:
        """The dataclass that holds its options, where its function takes one as `choices`."""
        taken = inspect.signature(self.config).parameters.get("choices")
        return None if taken is None else type(taken.default)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options: the keyword arguments of its function, or the fields of its `choices`."""
        if self.choices is not None:
            return tuple(field.name for field in fields(self.choices))
        taken = inspect.signature(self.config).parameters.values()
        return tuple(p.name for p in taken if p.kind is p.KEYWORD_ONLY)

    def typed(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as their annotations want them. Raises RecipeError for a name or a type that is not known."""
        allowed, found = self.options, {}
        hints = typing.get_type_hints(self.choices or self.config)
        for name, value in options.items():
            if name not in allowed:
                raise RecipeError(f"The family {self.name} has no option {name!r}.{nearest(name, allowed)}")
            found[name] = fitting(hints[name], value)
            if found[name] is UNFIT:
                raise RecipeError(
                    f"The option {name} of the family {self.name} is {value!r} ({type(value).__name__}); "
                    f"expected {spelled(hints[name])}."
                )
        return found

    def make(self, want: Wanted, options: dict[str, Any]) -> c.ModelConfig:
        """Its config tree for what is wanted and some options by name, `typed`."""
        if self.choices is not None:
            return self.config(want, choices=self.choices(**options))
        return self.config(want, **options)

    @property
    def difference(self) -> str:
        """How it differs from GPT-2, in the words of its function."""
        return " ".join((self.config.__doc__ or "").split())


UNFIT = object()  # no value of an option


def fitting(hint: Any, value: Any) -> Any:
    """`value` as an annotation wants it: 1 is 1.0 to a float, a list a tuple; UNFIT where it is of another type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((found for one in inner if (found := fitting(one, value)) is not UNFIT), UNFIT)
    if origin in (tuple, Sequence):
        kinds = inner[:1] * len(value) if isinstance(value, list | tuple) and origin is Sequence else inner
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            return UNFIT
        found = tuple(fitting(kind, item) for kind, item in zip(kinds, value, strict=True))
        return UNFIT if UNFIT in found else found
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else UNFIT


def spelled(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(hint), [one for one in typing.get_args(hint) if one is not type(None)]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(spelled, inner))
    if origin is Sequence:
        return f"a list, each {spelled(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(map(spelled, inner))}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint]


def published(length: int, **shared: Any) -> Callable[..., Published]:
    """A maker of `Published` rows that share some arguments: (dim, depth, heads, parameters, share=0, **options)."""

    def row(dim: int, depth: int, heads: int, parameters: float, share: float = 0.0, **options: Any) -> Published:
        arguments = {"length": length, "dim": dim, "depth": depth, "heads": heads, **shared}
        arguments["options"] = {**shared.get("options", {}), **options}
        return Published(arguments, int(parameters), share)

    return row


# What a laptop trains, by name: (dim, depth, heads). Heads of 64 features: of 32, attention takes 1.7 times as long.
SIZES = {"small": (128, 4, 2), "base": (256, 6, 4), "large": (512, 8, 8)}
