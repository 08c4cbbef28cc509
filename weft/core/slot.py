"""What may stand in a stack's place: a `Stack` of attention, or one of core/others.py. Told by the config's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from weft.core import config as c
from weft.core.convolve import Convolve, surround
from weft.core.mask import View, looks_ahead
from weft.core.recurrent import Recurrent, follow
from weft.core.stack import Stack

STACKS: dict[type, Callable[[Any], nn.Module]] = {
    c.StackConfig: Stack,
    c.RecurrentConfig: Recurrent,
    c.ConvolveConfig: Convolve,
}
VIEWS: dict[type, Callable[..., View]] = {
    c.RecurrentConfig: follow,
    c.ConvolveConfig: surround,
}  # of what does not attend
Slot = Stack | Recurrent | Convolve


def make_stack(config: c.AnyStack) -> Any:
    """The module of a stack."""
    return STACKS[type(config)](config)


def reads_ahead(config: c.AnyStack) -> str:
    """What looks at later tokens, in words; "": nothing, so that it can be decoded with a cache."""
    if isinstance(config, c.StackConfig):
        pattern = config.attention.pattern
        return f"{type(pattern).__name__} attention" if looks_ahead(pattern) else ""
    if isinstance(config, c.RecurrentConfig):
        return "A recurrent stack that reads both ways" if config.both else ""
    return "A convolution" if isinstance(config, c.ConvolveConfig) else ""
