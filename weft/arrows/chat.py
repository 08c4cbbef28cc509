"""Conversations: a list of messages -> ids, of which the assistant's turns are trained.

    without a template     [user] hi end [assistant] «hello end»                        roles are ids of the vocabulary
    with one (pretrained)  <|im_start|>user⏎hi<|im_end|>⏎<|im_start|>assistant⏎«hello<|im_end|>»⏎

A chat template (Jinja, run in a sandbox) is rendered with place holders for the contents. What it writes itself may
hold special tokens; contents are encoded as plain text, whatever they look like. Between two special tokens, text of
the template and of a message are encoded together, so that ids are those of the whole text; a token counts as trained
where it begins inside an assistant's content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from weft.arrows.vocabulary import ROLES, Vocabulary
from weft.errors import DataError, nearest
from weft.modalities.text import TextCodec

NAMES = {  # as data calls the roles -> ours
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip
HOLDER = "\ue000{}\ue001"  # stands for the content of a message while a template is rendered; private-use characters
SPACE = "\t\n\t"  # around a holder, to see whether a template trims
HELD = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Template:
    """A pretrained model's chat template, and the texts of its special tokens by their part ({"eos_token": "</s>"})."""

    text: str
    special: dict[str, str] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def read(value: Any, role: str = "user") -> list[Message]:
    """Messages from a cell, in the forms that data comes in.

    [{"role": ..., "content": ...}], [{"from": ..., "value": ...}], {"messages": [...]}, any of them as JSON text;
    another text is one message of `role`. Raises DataError: what came and what was expected.
    """
    if isinstance(value, str):
        if value.lstrip()[:1] not in ("[", "{"):
            return [Message(role, value)]
        try:
            found = json.loads(value)
        except ValueError:
            return [Message(role, value)]
        return read(found, role) if isinstance(found, list | dict) else [Message(role, value)]
    if isinstance(value, Mapping):
        for key in ("messages", "conversations", "conversation"):
            if key in value:
                return read(value[key], role)
        value = [value]
    if not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise DataError(f"{type(value).__name__} {str(value)[:40]!r} came; a list of messages was expected")
    return [message(one, number) for number, one in enumerate(value)]


def message(one: Any, number: int) -> Message:
    """One message of a list."""
    if isinstance(one, Message):
        return one
    if not isinstance(one, Mapping):
        raise DataError(f'message {number} is {type(one).__name__}; {{"role": ..., "content": ...}} was expected')
    said = one.get("role", one.get("from"))
    content = one.get("content", one.get("value"))
    if said not in NAMES:
        raise DataError(f"message {number} has the role {said!r}.{nearest(str(said), ROLES)}")
    if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise DataError(f"message {number} ({said}) has no text as its content, but {type(content).__name__}")
    return Message(NAMES[said], content)


class Chat:
    """Renders conversations for one vocabulary. template: of a pretrained source; None: weft's own roles."""

    def __init__(self, vocabulary: Vocabulary, codec: TextCodec, template: Template | None = None) -> None:
        self.vocabulary, self.codec, self.template = vocabulary, codec, template
        self.first = vocabulary.block("text").start

    @cached_property
    def end(self) -> int:
        """The id that ends a turn of the assistant."""
        if self.template is None:
            return self.vocabulary.end
        turns = self.turns([Message("user", "a"), Message("assistant", "b")])
        last = [int(ids[-1]) for ids, trained in turns if trained]
        return last[0] if last and last[0] - self.first in self.codec.control else self.vocabulary.end

    def turns(self, messages: Sequence[Message], *, reply: bool = False) -> list[tuple[np.ndarray, bool]]:
        """Runs of ids, and whether they are trained. reply: as far as an answer of the assistant is to be written.

        Raises DataError for messages that the template refuses.
        """
        runs = self._own(messages, reply) if self.template is None else self._templated(messages, reply)
        joined: list[tuple[list[int], bool]] = []
        for ids, trained in runs:
            if joined and joined[-1][1] == trained:
                joined[-1][0].extend(ids)
            elif ids:
                joined.append((list(ids), trained))
        return [(np.array(ids, np.int64), trained) for ids, trained in joined]

    def _own(self, messages: Sequence[Message], reply: bool) -> list[tuple[list[int], bool]]:
        roles = self.vocabulary.block("role")
        runs: list[tuple[list[int], bool]] = []
        for one in messages:
            ids = [int(i) + self.first for i in self.codec.encode(one.content)]
            runs.append(([roles[ROLES.index(one.role)]], False))
            runs.append(([*ids, self.vocabulary.end], one.role == "assistant"))
        return [*runs, ([roles[ROLES.index("assistant")]], False)] if reply else runs

    # ------------------------------------------------------------------------------------------------ templates

    def _templated(self, messages: Sequence[Message], reply: bool) -> list[tuple[list[int], bool]]:
        contents = [self._as_written(messages, reply, number) for number in range(len(messages))]
        held = [{"role": m.role, "content": HOLDER.format(i)} for i, m in enumerate(messages)]
        pieces = HELD.split(self._written(held, reply))  # text, number, text, number, ..., text
        runs: list[tuple[list[int], bool]] = []
        pending: list[tuple[str, bool]] = []  # plain text since the last special token, and whether it is trained
        awaited = False  # an assistant's content has come, and what ends it has not
        for place, piece in enumerate(pieces):
            if place % 2:
                number = int(piece)
                awaited = messages[number].role == "assistant"
                pending.append((contents[number], awaited))
                continue
            for part in self._special.split(piece) if self._special else [piece]:
                if part in self._ids:
                    runs += self._encoded(pending)
                    pending = []
                    runs.append(([self._ids[part] + self.first], awaited))
                    awaited = False
                elif part:
                    pending.append((part, awaited and part.isspace()))  # the space before what ends a turn
                    awaited = awaited and part.isspace()
        return runs + self._encoded(pending)

    def _encoded(self, pieces: Sequence[tuple[str, bool]]) -> list[tuple[list[int], bool]]:
        """Plain texts in a row as ids of the whole of them, each with the mark of the text it begins in."""
        whole = "".join(text for text, _ in pieces)
        if not whole:
            return []
        ids = self.codec.encode(whole)
        offsets = self.codec.tokenizer.encode(whole, add_special_tokens=False)
        if offsets.ids != ids.tolist():  # a text that spells a special token: piece by piece, so that it stays text
            return [([int(i) + self.first for i in self.codec.encode(text)], mark) for text, mark in pieces if text]
        marks = np.repeat([mark for _, mark in pieces], [len(text) for text, _ in pieces])
        return [
            ([int(i) + self.first], bool(marks[min(start, len(marks) - 1)]))
            for i, (start, _) in zip(ids, offsets.offsets, strict=True)
        ]

    def _as_written(self, messages: Sequence[Message], reply: bool, number: int) -> str:
        """A message's content as the template writes it: as it is, or without the white space around it."""
        content = messages[number].content
        if content == content.strip():
            return content
        holder = HOLDER.format(number)
        held = [
            {"role": m.role, "content": SPACE + holder + SPACE if i == number else HOLDER.format(i)}
            for i, m in enumerate(messages)
        ]
        written = self._written(held, reply)
        content = content if SPACE + holder in written else content.lstrip()
        return content if holder + SPACE in written else content.rstrip()

    def _written(self, messages: Sequence[Mapping[str, str]], reply: bool) -> str:
        from jinja2 import TemplateError

        special = self.template.special if self.template else {}
        try:
            written = self._compiled.render(messages=messages, add_generation_prompt=reply, **special)
        except (TemplateError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise DataError(f"the chat template refuses these messages: {error}") from error
        missing = [m["role"] for i, m in enumerate(messages) if HOLDER.format(i) not in written]
        if missing:
            raise DataError(f"the chat template leaves out a message of the {missing[0]}: it cannot say such messages")
        return written

    @cached_property
    def _compiled(self) -> Any:
        """The template, with what the ecosystem's templates expect; nothing of Python can be reached from it."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(text: str) -> None:
            raise TemplateError(text)

        loop = ["jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loop)
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        try:
            return environment.from_string(self.template.text if self.template else "")
        except TemplateError as error:
            raise DataError(f"the source's chat template cannot be read: {error}") from error

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Special token's text -> its number in the text block."""
        return {text: number for number, text in self.codec.control.items() if text}

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """Splits at special tokens, longest first, and keeps them."""
        texts = sorted(self._ids, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None
