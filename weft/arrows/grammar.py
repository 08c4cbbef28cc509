"""Arrows: the small language in which tasks are written.

    arrow    = [ weight "*" ] task
    task     = "->" column                   model the column itself, next token first        -> text
             | "~" column                    fill in what was hidden                          ~text
             | columns "->" column           produce the last one from the others             image, question -> answer
             | [columns] "->" a ">" b        make a likelier than b                     prompt -> chosen > rejected
             | column "->"                   the assistant's turns of a conversation                 messages ->
             | columns "<->" columns         bring both sides close in one space              caption <-> image
    columns  = column { "," column }
    column   = name [ ":" type ]             a type said outright                             answer:label
    name     = letters, digits and _ . / in any script, with single - inside; any other name in "double quotes"
    weight   = a number over 0, with which the loss of the arrow's tokens is multiplied       2* image -> caption

`parse(str(arrow)) == arrow` for every arrow.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weft.errors import ArrowError, nearest

KINDS = ("produce", "model", "fill", "align", "chat", "prefer")
TYPES = ("image", "audio", "text", "label", "messages")
PLANNED = ("boxes", "spans")  # types of the design that have no renderer yet

_NAME = re.compile(r"[\w./]+(?:-[\w./]+)*")  # `en-zh` is one name, `en->zh` and `en -> zh` are arrows
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?=\s*\*)")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Column:
    """A column of the table, and its type if the arrow says it."""

    name: str
    type: str = ""

    def __str__(self) -> str:
        name = self.name if _NAME.fullmatch(self.name) else json.dumps(self.name, ensure_ascii=False)
        return f"{name}:{self.type}" if self.type else name


@dataclass(frozen=True)
class Arrow:
    """A task: `outputs` from `inputs`. kind is one of KINDS (see the grammar above).

    For "model", "fill" and "chat" there are no inputs; for "prefer" `outputs` are the chosen and the rejected; for
    "align" the two sides are `inputs` (left) and `outputs` (right).
    """

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    kind: str = "produce"
    weight: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all its columns, inputs first."""
        return tuple(column.name for column in (*self.inputs, *self.outputs))

    @property
    def output(self) -> str:
        """The name of the column it produces (of an "align": the first on the right)."""
        return self.outputs[0].name

    @property
    def types(self) -> dict[str, str]:
        """Column name -> type, where the arrow says one."""
        return {column.name: column.type for column in (*self.inputs, *self.outputs) if column.type}

    @property
    def task(self) -> str:
        """The arrow without weight and types: two arrows of one task mean the same columns in the same roles."""
        plain = lambda columns: tuple(Column(column.name) for column in columns)
        return str(Arrow(plain(self.inputs), plain(self.outputs), self.kind))

    def __str__(self) -> str:
        left, right = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        weight = "" if self.weight == 1 else f"{self.weight!r}* ".replace(".0*", "*")
        return (
            weight
            + {
                "produce": f"{left} -> {right}",
                "model": f"-> {right}",
                "fill": f"~{right}",
                "align": f"{left} <-> {right}",
                "chat": f"{right} ->",
                "prefer": f"{left} -> {' > '.join(map(str, self.outputs))}".lstrip(),
            }[self.kind]
        )


def parse(text: str) -> Arrow:
    """Read one arrow.

    Raises ArrowError that shows the arrow with a caret under the place that could not be read, what was expected there,
    and what to write instead.
    """
    if not isinstance(text, str):
        raise ArrowError(
            f"an arrow came as {type(text).__name__} {text!r}; a text such as 'image -> caption' was expected"
        )
    return _Reader(text).arrow()


class _Reader:
    """One pass over the text; `at` is the place reached."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.seen: dict[str, Column] = {}

    def fail(self, message: str, at: int | None = None) -> ArrowError:
        """The error to raise: message, the arrow, and a caret under position `at` (default: the place reached)."""
        at = self.at if at is None else at
        line = "".join(" " if not c.isprintable() else c for c in self.text)  # the caret needs one line
        return ArrowError(f"{message}\n  {line}\n  {' ' * _width(line[:at])}^")

    def space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def take(self, *signs: str) -> str:
        """The first of `signs` that stands here, taken; "" if none does."""
        self.space()
        for sign in signs:
            if self.text.startswith(sign, self.at):
                self.at += len(sign)
                return sign
        return ""

    def arrow(self) -> Arrow:
        weight = self.weight()
        if self.take("->", "→"):
            arrow = self.produced((), self.column("after ->"), "model", weight)
        elif self.take("~"):
            arrow = Arrow((), (self.column("after ~"),), "fill", weight)
        else:
            left = self.side("before the arrow")
            start = self.at
            sign = self.take("<->", "↔", "->", "→")
            if not sign:
                raise self.fail(self.no_sign())
            if sign in ("<->", "↔"):
                arrow = Arrow(left, self.side("after <->"), "align", weight)
            elif len(left) == 1 and not self.text[self.at :].strip():
                arrow = Arrow((), left, "chat", weight)
            else:
                arrow = self.produced(left, self.column("after ->", start), "produce", weight)
        self.space()
        if self.at < len(self.text):
            raise self.fail(self.rest(arrow))
        return arrow

    def produced(self, left: tuple[Column, ...], column: Column, kind: str, weight: float) -> Arrow:
        """An arrow that produces `column`, or prefers it over what stands behind a >."""
        if self.take(">"):
            return Arrow(left, (column, self.column("after >")), "prefer", weight)
        return Arrow(left, (column,), kind, weight)

    def weight(self) -> float:
        self.space()
        start = self.at
        found = _NUMBER.match(self.text, self.at)
        if not found:
            if self.text.startswith("*", self.at):
                raise self.fail("a weight stands before the *, as in '2* image -> caption'")
            return 1.0
        self.at = found.end()
        self.take("*")
        value = float(found[0])
        if not (0 < value < math.inf):
            raise self.fail(
                f"the weight is {found[0]}; a number over 0 was expected (to leave an arrow out, do not give it)", start
            )
        return value

    def side(self, where: str) -> tuple[Column, ...]:
        columns = [self.column(where)]
        while self.take(","):
            columns.append(self.column("after the comma"))
        return tuple(columns)

    def column(self, where: str, sign: int | None = None) -> Column:
        self.space()
        start = self.at
        name = self.name(where, sign)
        kind = ""
        if self.take(":"):
            self.space()
            place, found = self.at, _NAME.match(self.text, self.at)
            if not found:
                raise self.fail(f"a type was expected after ':': {', '.join(TYPES)}")
            kind, self.at = found[0], found.end()
            if complaint := bad_type(kind):
                raise self.fail(complaint, place)
        if name in self.seen:
            raise self.fail(f"column {name!r} stands twice in one arrow; each column has one role", start)
        self.seen[name] = Column(name, kind)
        return self.seen[name]

    def name(self, where: str, sign: int | None) -> str:
        if self.text.startswith('"', self.at):
            found = _QUOTED.match(self.text, self.at)
            if not found:
                raise self.fail('the quoted column name has no closing "')
            try:
                name = json.loads(found[0], strict=False)
            except json.JSONDecodeError as error:
                raise self.fail(f"the quoted column name cannot be read ({error.msg})", self.at + error.pos) from error
            if not name:
                raise self.fail('a column name was expected, and "" is empty')
            self.at = found.end()
            return name
        found = _NAME.match(self.text, self.at)
        if found:
            self.at = found.end()
            return found[0]
        if self.at == len(self.text):
            raise self.fail(f"a column name was expected {where}, and the arrow ends")
        raise self.fail(f"a column name was expected {where}, not {self.text[self.at]!r}; {QUOTE}")

    def no_sign(self) -> str:
        """What to say where `->` or `<->` is missing."""
        rest = self.text[self.at :]
        if not rest:
            return (
                "an arrow needs '->' (produce), '<->' (bring close) or a '~' in front (fill in); this one ends without"
            )
        if rest.startswith(("=>", "-", ">", "<-", "—", "–", "<")):
            return "the arrow is written '->' (or '<->' for both ways)"
        if _NAME.match(rest):
            return f"a comma, '->' or '<->' was expected; {QUOTE}"
        return f"a comma, '->' or '<->' was expected, not {rest[0]!r}; {QUOTE}"

    def rest(self, arrow: Arrow) -> str:
        """What to say where the arrow is complete and more text follows."""
        here = self.text[self.at]
        if here == "," and arrow.kind == "produce":
            inputs = ", ".join(map(str, arrow.inputs))
            both = f"'{inputs} -> {arrow.outputs[0]}' and '{inputs} -> ...'"
            return f"an arrow produces one column; write one arrow for each: {both}"
        if here == ",":
            return "this arrow takes one column; write one arrow for each"
        if self.text.startswith(("->", "<->", "→", "↔"), self.at):
            return "one arrow holds one '->'; write two arrows"
        return f"the arrow was complete before this; {QUOTE}"


QUOTE = "a name with spaces or signs stands in double quotes"


def _width(text: str) -> int:
    """Columns of a terminal that `text` takes: East Asian wide characters take two."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def bad_type(kind: str) -> str:
    """Why `kind` is no column type, or ""."""
    if kind in TYPES:
        return ""
    if kind in PLANNED:
        return f"the column type {kind!r} is not there yet; there is: {', '.join(TYPES)}"
    return f"{kind!r} is no column type.{nearest(kind, TYPES)}"


def parse_all(texts: Iterable[str]) -> list[Arrow]:
    """Several arrows for one model.

    Raises ArrowError if there is none, if a task stands twice, or if two arrows give one column different types.
    """
    arrows = [parse(text) for text in texts]
    if not arrows:
        raise ArrowError("there is no arrow; give at least one, such as 'image, question -> answer' or '-> text'")
    tasks: set[str] = set()
    for arrow in arrows:
        if arrow.task in tasks:
            raise ArrowError(f"the arrow '{arrow.task}' stands twice; to count it double, weight it: '2* {arrow.task}'")
        tasks.add(arrow.task)
    said_types(arrows)
    return arrows


def said_types(arrows: Sequence[Arrow]) -> dict[str, str]:
    """Column -> the type that the arrows say. Raises ArrowError where two arrows disagree."""
    said: dict[str, tuple[str, Arrow]] = {}
    for arrow in arrows:
        for name, kind in arrow.types.items():
            before, first = said.setdefault(name, (kind, arrow))
            if before != kind:
                raise ArrowError(
                    f"column {name!r} is {before} in '{first}' and {kind} in '{arrow}'; a column has one type"
                )
    return {name: kind for name, (kind, _) in said.items()}


def check_columns(arrows: Sequence[Arrow], columns: Iterable[str]) -> None:
    """Raises ArrowError for the first column that the table does not have, and offers the nearest name."""
    columns = list(columns)
    for arrow in arrows:
        for name in arrow.columns:
            if name not in columns:
                raise ArrowError(
                    f"the arrow '{arrow}' names a column {name!r} that the table does not have.{nearest(name, columns)}"
                )
