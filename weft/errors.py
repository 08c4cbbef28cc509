"""Errors that a user can act on: what came, what was expected, what to do.

`WeftError` and its kinds are the only exceptions the command line turns into exit code 2. Anything else that escapes is
our own fault and ends with exit code 1 and a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeftError(Exception):
    """The user's input is at fault. The message is complete: it names the thing, the expectation and the next step."""


class ArrowError(WeftError):
    """An arrow that cannot be read or cannot be resolved."""


class DataError(WeftError):
    """A table, row or media file that cannot be used."""


class RecipeError(WeftError):
    """A recipe key or value that means nothing."""


class RunError(WeftError):
    """A run directory that is missing, busy or damaged."""


class ConvertError(WeftError):
    """Weights, a tokenizer or a config of another layout that do not fit."""


class CheckError(WeftError):
    """`weft check` found an invariant broken on the user's own rows."""


class MissingExtra(WeftError):
    """An optional dependency is needed; the message names the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed. Install it with: pip install 'weft[{extra}]'")


SHOWN = 12  # names listed in a message; a table may have hundreds of columns


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'colour'?"` for the closest known name, else the list of names; never empty when `known` is not.

    Upper and lower case count as equal. Of many names the first twelve are listed, and how many there are.
    """
    names = [str(k) for k in known]
    folded = {k.casefold(): k for k in reversed(names)}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {folded[close[0]]!r}?"
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" There is: {', '.join(names[:SHOWN])}{more}."
