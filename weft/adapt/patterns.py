"""Which parts a pattern means: `attn.qkv`, `stack.*.ffn.*`, `heads`, by dotted paths.

body.stack.blocks.3.attn.qkv.weight
                    ▔▔▔▔▔▔▔▔          attn.qkv        any whole pieces of the path, and all below them
     ▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔                stack.*.attn    * stands for anything, dots too
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from weft.errors import RecipeError, nearest


def fits(pattern: str, path: str) -> bool:
    """Whether `pattern` is the path, whole pieces of it, or a part above it."""
    return any(fnmatchcase(path, head + pattern + tail) for head in ("", "*.") for tail in ("", ".*"))


def matched(patterns: Sequence[str], paths: Iterable[str], key: str) -> dict[str, str]:
    """Path -> the last of the patterns that fits it; paths that none fits are left out.

    key  what the patterns were given as, for the message ("train.freeze")
    Raises RecipeError for a pattern that fits nothing, with the paths that are near.
    """
    paths = list(paths)
    found: dict[str, str] = {}
    for pattern in patterns:
        mine = [path for path in paths if fits(pattern, path)]
        if not mine:
            raise RecipeError(f"{key}: {pattern!r} fits no part of the model.{near(pattern, paths)}")
        found |= dict.fromkeys(mine, pattern)
    return found


def near(pattern: str, paths: Iterable[str]) -> str:
    """The nearest patterns that would fit: pieces of paths, layer numbers as *."""
    ends: dict[str, None] = {}
    for path in paths:
        pieces = re.sub(r"\.\d+(?=\.|$)", ".*", path).split(".")
        for start in range(len(pieces)):
            for stop in range(start + 1, len(pieces) + 1):
                if pieces[start] != "*":
                    ends.setdefault(".".join(pieces[start:stop]))
    return nearest(pattern, sorted(ends, key=lambda name: (name.count("."), name)))
