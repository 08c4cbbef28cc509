"""Chat templates: messages -> the ids that a chat model was trained on.

    messages ── contents guarded ── Jinja, in a sandbox ── text ── tokenizer ── ids, the guards' left out

A template is a small program inside the model's files, so it runs in Jinja's sandbox, without the few of its functions
that make much out of little. What a message says is plain text: where it spells a control token ("<|im_end|>"), or ends
with the beginning of one, a barrier is put into the spelling. So a message cannot close its own turn and open another,
and a message without such a spelling becomes exactly the ids that it had in training.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from weft.convert.tokenizer import SavedTokenizer
from weft.errors import ConvertError, DataError
from weft.modalities.text import BARRIER, unbarred

LONGEST = 1 << 20  # characters of a template, and of a text that it makes by multiplication
PARTS = ("role", "content")
GREEDY_FILTERS = (
    "center",
    "format",
    "indent",
    "batch",
    "slice",
    "wordwrap",
)  # a short text and a number make a long one
GREEDY_METHODS = ("format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs")

Message = Mapping[str, Any]


class ChatTemplate:
    """The template of a model, with its tokenizer. Raises ConvertError for one that is no template."""

    def __init__(self, saved: SavedTokenizer) -> None:
        self.saved = saved
        if not saved.template:
            raise ConvertError(
                "This model has no chat template. A run trained on `messages ->` with roles of weft's own answers by "
                "weft predict RUN 'messages ->' --messages TEXT, others complete texts; or take a model for chat, such "
                "as smollm2."
            )
        if len(saved.template) > LONGEST:
            raise ConvertError(f"The chat template has {len(saved.template):,} characters; {LONGEST:,} at most.")
        self.template = compiled(saved.template)

    def ids(self, messages: Sequence[Message], answer: bool = True) -> np.ndarray:
        """(L,) ids of a conversation. answer: with the beginning of the assistant's turn at its end.

        Raises DataError for messages that are none, or that the template refuses (two of a user in a row, say).
        """
        text = self.text([self.guarded(message) for message in checked(messages)], answer)
        found = [number for number, _ in unbarred(self.parser, text)]
        control = {content: number for number, content in self.saved.codec.control.items()}
        meant = count(text, control)
        if len([n for n in found if n in self.saved.codec.control and n != self.saved.roles.get("unk")]) > meant:
            raise DataError("A message spells a control token in a way that this tokenizer cannot write as text.")
        return np.array(found, dtype=np.int64)

    def text(self, messages: Sequence[Message], answer: bool = True) -> str:
        """What the template writes."""
        import jinja2

        tokens = {f"{role}_token": self.saved.codec.control.get(n, "") for role, n in self.saved.roles.items()}
        said = {"bos_token": "", "eos_token": "", **tokens}
        try:
            return self.template.render(messages=list(messages), add_generation_prompt=answer, tools=None, **said)
        except jinja2.TemplateError as error:
            raise DataError(f"The model's chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, MemoryError) as error:
            raise ConvertError(f"The model's chat template fails: {type(error).__name__}: {error}") from error

    @cached_property
    def parser(self) -> Tokenizer:
        """The tokenizer that knows control tokens when it sees them: for the template's own text."""
        parser = Tokenizer.from_str(self.saved.codec.tokenizer.to_str())
        parser.encode_special_tokens = False
        return parser

    def guarded(self, message: Message) -> dict[str, Any]:
        """The message with a barrier in whatever could be read as a control token."""
        return {**message, **{part: guard(message[part], self.saved.codec.control.values()) for part in PARTS}}


def checked(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages with a role and a text each."""
    if not messages:
        raise DataError("A conversation has one message or more.")
    for number, message in enumerate(messages):
        for part in PARTS:
            if not isinstance(message, Mapping) or not isinstance(message.get(part), str):
                raise DataError(
                    f'Message {number} has no {part} that is text; {{"role": ..., "content": ...}} was expected.'
                )
    return messages


def guard(text: str, control: Iterable[str]) -> str:
    """`text` with a barrier in every control token that it spells, and beside one that it begins or ends."""
    text = text.replace(BARRIER, "")
    tokens = [token for token in control if len(token) > 1]
    while spelled := [token for token in tokens if token in text]:
        for token in spelled:
            text = text.replace(token, token[0] + BARRIER + token[1:])
    core = text.strip()  # a template may strip it
    start, end = text.partition(core)[0] if core else text, text.rpartition(core)[2] if core else ""
    if any(core.endswith(token[:n]) for token in tokens for n in range(1, len(token))):
        core += BARRIER
    if any(core.startswith(token[n:]) for token in tokens for n in range(1, len(token))):
        core = BARRIER + core
    return start + core + end


def count(text: str, control: Mapping[str, int]) -> int:
    """How many control tokens stand in a text, the longest first where they overlap."""
    found = 0
    for token in sorted(control, key=len, reverse=True):
        found += text.count(token)
        text = text.replace(token, BARRIER)
    return found


def compiled(template: str) -> Any:
    """A Jinja template in its sandbox, with what templates of chat models expect to find."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's, without what makes a long text out of a short one and a number."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            fits = operator == "*" and 0 <= len_of(left) * len_of(right) <= LONGEST
            if operator == "**" or not (numbers or fits):
                raise jinja2.exceptions.SecurityError(f"the operator {operator} is not allowed here")
            return super().call_binop(context, operator, left, right)

        def wrap_str_format(self, value: Any) -> None:
            """Jinja's own, safer str.format still pads to any width: it is left to `is_safe_attribute` to refuse it."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in GREEDY_METHODS and super().is_safe_attribute(obj, attr, value)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in GREEDY_FILTERS:
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=min(indent, 8) if isinstance(indent, int) else None
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(str(form)[:100])
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ConvertError(f"The model's chat template cannot be read: {error}") from error
    except RecursionError as error:
        raise ConvertError("The model's chat template is nested too deeply.") from error


def len_of(value: Any) -> int:
    """What a factor of a multiplication does to the length of the other."""
    return value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else -1
