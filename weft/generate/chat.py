"""`weft chat`: a conversation with a text model, in the terminal or from a program.

> What is the capital of France?          a line is a message; the answer is written as it comes
The capital of France is Paris.           /system TEXT  /reset  /help  /exit; Ctrl-C stops an answer
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from weft.convert.text import TextModel, open_text
from weft.errors import DataError, RecipeError, WeftError, nearest
from weft.generate.sample import Sampling
from weft.generate.template import ChatTemplate, Message
from weft.generate.text import Limits, Written, lay_ids, stream

COMMANDS = {
    "/system": "/system TEXT   what the assistant is to be; begins anew",
    "/reset": "/reset         forget what was said",
    "/help": "/help          this list",
    "/exit": "/exit          leave (or Ctrl-D)",
}
LEAST = 16  # tokens that an answer must have room for


@dataclass(eq=False)
class Conversation:
    """A text model and what was said. `ask` adds a message and streams the answer, which is remembered too."""

    source: TextModel
    limits: Limits
    sampling: Sampling
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    dropped: int = 0  # messages that the last prompt had no room for
    last: Written | None = None

    def __post_init__(self) -> None:
        self.template = ChatTemplate(self.source.tokenizer)

    def ask(self, text: str) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece. Raises WeftError where the context cannot hold it.

        However far the answer was read, that far it is remembered.
        """
        answer = {"role": "assistant", "content": ""}
        self.last, how, before = None, self.source, len(self.messages)
        try:
            self.messages.append({"role": "user", "content": text})
            prompt = lay_ids([self.prompt()])
            self.messages.append(answer)
            for _, piece, written in stream(how.model, how.tokenizer.codec, prompt, self.limits, self.sampling):
                answer["content"] += piece
                if written is not None:
                    self.last = Written(answer["content"], written.ids, written.reason)
                if piece:
                    yield piece
        finally:
            if self.last is None and not answer["content"]:
                del self.messages[before:]  # nothing came of it

    def prompt(self) -> Any:
        """Ids of the conversation; its oldest turns are left out where the context has no room for them."""
        room = self.limits.context - min(self.limits.tokens, LEAST)
        kept: Sequence[Message] = self.messages
        while True:
            ids = self.template.ids([*self.opening(), *kept])
            self.dropped = len(self.messages) - len(kept)
            if len(ids) <= room:
                return ids
            if len(kept) <= 2:
                raise DataError(f"The message has {len(ids):,} tokens with its frame; there is room for {room:,}.")
            kept = kept[2:]  # a question and its answer

    def opening(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def reset(self) -> None:
        """Forget what was said."""
        self.messages.clear()


def converse(
    source: str | Path | TextModel,
    system: str = "",
    *,
    tokens: int = 512,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> Conversation:
    """Open a conversation: `for piece in converse("smollm2").ask("Hello"): ...`."""
    opened = source if isinstance(source, TextModel) else open_text(source)
    limits = Limits(tokens, opened.tokenizer.ends, tuple(stop), opened.context)
    return Conversation(opened, limits, sampling or Sampling(), system)


def chat(
    source: str | Path | TextModel,
    message: str | Sequence[Message] | None = None,
    *,
    system: str = "",
    tokens: int = 512,
    stop: Sequence[str] = (),
    sampling: Sampling | Mapping[str, Any] | None = None,
    json: bool = False,
) -> str | None:
    """Talk with a model: `weft.chat("smollm2", "What is a loom?")` gives its answer.

    source   smollm2, a run, a model directory or a .gguf, or one that `open_text` has opened
    message  a text, or messages ({"role": "user", "content": ...}), the last of the user; None: a conversation in the
             terminal, or with the lines of standard input
    system   what the assistant is to be; "": as the model's template has it
    sampling a Sampling or its fields ({"temperature": 0.7}); None: greedy
    json     in a conversation: a JSON line for each answer
    Raises WeftError for a source without a chat template, and for messages that are none.
    """
    how = sampling if isinstance(sampling, Sampling) else Sampling(**(sampling or {}))
    conversation = converse(source, system, tokens=tokens, stop=stop, sampling=how)
    if message is None:
        Terminal(conversation, sys.stdin, sys.stdout, json).run()
        return None
    if isinstance(message, str):
        return "".join(conversation.ask(message))
    before = [dict(m) for m in message]
    if not before or before[-1].get("role") != "user":
        raise DataError("The last message is one of the user: that is what is answered.")
    if before[0].get("role") == "system":
        conversation.system = str(before.pop(0).get("content", ""))
    conversation.messages = before[:-1]
    return "".join(conversation.ask(str(before[-1].get("content", ""))))


@dataclass(eq=False)
class Terminal:
    """Lines in, answers out."""

    conversation: Conversation
    lines: IO[str]
    out: IO[str]
    json: bool = False

    @property
    def live(self) -> bool:
        """Whether a person sits there."""
        return self.lines.isatty() and self.out.isatty() and not self.json

    def run(self) -> None:
        if self.live:
            self.note("/help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves.")
        while (line := self.read()) is not None:
            text = line.strip()
            if text == "/exit":
                return
            if text.startswith("/"):
                self.command(text)
            elif text:
                self.answer(text)

    def read(self) -> str | None:
        """The next line; None at the end."""
        try:
            if self.live:
                return input("> ")
            return self.lines.readline() or None
        except (EOFError, KeyboardInterrupt):
            self.write("\n")
            return None

    def command(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word == "/system":
            self.conversation.system = rest.strip()
            self.conversation.reset()
        elif word == "/reset":
            self.conversation.reset()
        elif word == "/help":
            self.note("\n".join(COMMANDS.values()))
        elif not self.live:
            raise RecipeError(f"There is no command {word!r}.{nearest(word, COMMANDS)}")
        else:
            self.note(f"There is no command {word!r}.{nearest(word, COMMANDS)}")

    def answer(self, text: str) -> None:
        """Ask, and write what comes. Ctrl-C stops the answer; what was written stands."""
        started, talk = time.perf_counter(), self.conversation
        pieces: list[str] = []
        try:
            for piece in talk.ask(text):
                pieces.append(piece)
                if not self.json:
                    self.write(piece)
        except KeyboardInterrupt:
            if not self.live:
                raise
            self.note(" [stopped]")
        except WeftError as error:
            if not self.live:
                raise
            self.note(str(error))
        if talk.dropped:
            self.note(f"[the first {talk.dropped} messages no longer fit and were left out]")
        if self.json:
            seconds = time.perf_counter() - started
            told = {"message": text, "answer": "".join(pieces), "seconds": round(seconds, 3)}
            if talk.last is not None:
                told |= {"tokens": len(talk.last.ids), "reason": talk.last.reason}
            self.write(json_module.dumps(told, ensure_ascii=False))
        self.write("\n")

    def write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def note(self, text: str) -> None:
        """To the person, not into the answers."""
        print(text, file=sys.stderr, flush=True)
