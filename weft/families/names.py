"""Names of weights, ours and another layout's: one table per family, read in both directions.

    Rule("body.stack.blocks.{i}.attn.qkv.{p}", ("h.{i}.q.{p}", "h.{i}.k.{p}", "h.{i}.v.{p}"))
          ours                                  theirs, one under the other

`{i}` is a layer's number, `{p}` is weight or bias. Both stand for whatever the model at hand has, so one rule names a
matrix with and without its bias, and a rule for a part that the model lacks names nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

HOLES = {"{i}": r"(?P<i>\d+)", "{p}": r"(?P<p>weight|bias)"}


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and what it is in another layout.

    ours      a full name, with `{i}` and `{p}` where they apply
    theirs    a name, or several that are stacked along the first axis (q, k, v -> qkv; gate, up -> up). An empty name
              is a piece that they do not have: zeros on the way in, left out on the way out (Whisper's key bias, which
              moves all scores of a query alike)
    how       "same", or how the numbers are laid out there: a name in `weft.convert.weights.HOW`
    optional  theirs may be absent; ours then starts as `build` starts it
    """

    ours: str
    theirs: str | tuple[str, ...]
    how: str = "same"
    optional: bool = False

    @property
    def pieces(self) -> tuple[str, ...]:
        """Their names as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Match:
    """A rule met in a model: our tensor's name and their names, without holes."""

    ours: str
    theirs: tuple[str, ...]
    rule: Rule


def matches(rules: Iterable[Rule], names: Iterable[str]) -> Iterator[Match]:
    """Every rule upon every one of our `names` that it fits."""
    names = list(names)
    for rule in rules:
        pattern = re.escape(rule.ours)
        for hole, found in HOLES.items():
            pattern = pattern.replace(re.escape(hole), found, 1)
        compiled = re.compile(pattern)
        for name in names:
            if at := compiled.fullmatch(name):
                yield Match(name, tuple(put(piece, at.groupdict()) for piece in rule.pieces), rule)


def put(name: str, values: dict[str, str]) -> str:
    """`name` with its holes filled."""
    for key, value in values.items():
        name = name.replace("{" + key + "}", value)
    return name


def under(ours: str, theirs: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules below two prefixes: a tower inside of a larger model."""
    return tuple(
        Rule(ours + r.ours, tuple(theirs + piece if piece else "" for piece in r.pieces), r.how, r.optional)
        for r in rules
    )
