"""What a layout is: how another library writes a model's config and names its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from weft.core import config as c
from weft.core.config import ModelConfig
from weft.errors import ConvertError
from weft.families.names import Rule

Raw = Mapping[str, Any]
N = TypeVar("N", c.LayerNorm, c.RMSNorm)
MOST = 2**31  # no size of a model is more
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Layout:
    """architectures  names in a config.json that this layout reads, the one it writes unless told otherwise first
    read           config.json as a dict -> our tree
    write          our tree, and the dict that it came from ({}: none) -> config.json
    rules          the names of a config's tensors
    ignore         patterns of tensors that may be there and carry nothing
    family         the family that is written like this
    prefix         what stands before the names of the body; files without it are read as well
    bare           architectures whose own files lack the prefix
    settle         what the tensors say better than config.json: our tree, all of theirs -> our tree
    older          endings of names in old files -> endings now
    renamed        (beginning of a name in files of other versions, what it is in the rules), tried in order
    fixed          tensors of theirs that follow from config.json alone and that weft computes (Whisper's sinusoids):
                   checked when they are read, written again
    """

    architectures: tuple[str, ...]
    read: Callable[[Raw], ModelConfig]
    write: Callable[[ModelConfig, Raw], dict[str, Any]]
    rules: Callable[[ModelConfig], tuple[Rule, ...]]
    ignore: tuple[str, ...] = ()
    family: str = ""
    prefix: str = ""
    bare: tuple[str, ...] = ()
    settle: Callable[[ModelConfig, Mapping[str, Tensor]], ModelConfig] = lambda config, theirs: config
    older: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    fixed: Callable[[Raw], dict[str, Tensor]] | None = None


def architecture(raw: Raw) -> str:
    """The architecture that a config.json names. Raises ConvertError if it names none."""
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConvertError('The config.json names no architecture; expected "architectures": ["LlamaForCausalLM"].')
    return names[0]


def whole(raw: Raw, *keys: str, default: int | None = None) -> int:
    """A positive whole number under the first key that is there; null counts as absent.

    Raises ConvertError if it is something else, or absent without a default.
    """
    value = natural(raw, *keys, default=default)
    if not value:
        raise ConvertError(f"{keys[0]} of the config.json is {value!r}; expected a positive whole number.")
    return value


def natural(raw: Raw, *keys: str, default: int | None = None) -> int:
    """A whole number from 0 on, as `whole`."""
    value = first(raw, keys, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
        raise ConvertError(f"{keys[0]} of the config.json is {short(value)}; expected a positive whole number.")
    return value


def number(raw: Raw, *keys: str, default: float | None = None) -> float:
    """A finite number, positive or 0, under the first key that is there. Raises ConvertError as `whole` does."""
    value = first(raw, keys, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConvertError(f"{keys[0]} of the config.json is {short(value)}; expected a positive number.")
    return float(value)


def positive(raw: Raw, *keys: str, default: float | None = None) -> float:
    """As `number`, but not 0."""
    value = number(raw, *keys, default=default)
    if not value:
        raise ConvertError(f"{keys[0]} of the config.json is 0; expected a positive number.")
    return value


def shared(dim: int, heads: int, what: str) -> int:
    """`dim` / `heads`. Raises ConvertError where it is no whole number."""
    if dim % heads:
        raise ConvertError(f"The config.json has {heads} {what}, and {dim} cannot be shared among them.")
    return dim // heads


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def first(raw: Raw, keys: Iterable[str], default: Any) -> Any:
    """The value of the first key that is there and not null."""
    return next((raw[key] for key in keys if raw.get(key) is not None), default)


def only(raw: Raw, key: str, *values: Any) -> None:
    """Raise ConvertError if a choice of the config is none that weft has; absent counts as the first."""
    value = raw.get(key, values[0])
    if value not in values:
        raise ConvertError(f"{key} of the config.json is {short(value)}; weft has {', '.join(map(repr, values))}.")


def plain(stack: c.AnyStack, title: str, norm: type[N]) -> tuple[c.StackConfig, c.FeedForward, N]:
    """A stack with attention, its one feed-forward part and its kind of norm, as other libraries have them.

    Raises ConvertError for any other: a layout of `title` cannot say it.
    """
    if not isinstance(stack, c.StackConfig):
        raise ConvertError(f"The layout of {title} has attention; this model is a {type(stack).__name__}.")
    if not isinstance(stack.feedforward, c.FeedForward) or not isinstance(stack.norm, norm):
        raise ConvertError(
            f"The layout of {title} has one feed-forward part for all kinds of tokens, and {norm.__name__}."
        )
    return stack, stack.feedforward, stack.norm


# Names of activations there -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


def activation(raw: Raw, *keys: str, default: str) -> str:
    """Our name of the activation. Raises ConvertError for one that weft does not have."""
    name = first(raw, keys, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConvertError(f"{keys[0]} of the config.json is {short(name)}; weft has {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def activation_name(ours: str, was: Any = None) -> str:
    """Their name of ours: the one that `was` there, if it means the same."""
    if ACTIVATIONS.get(was) == ours:
        return was
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)
