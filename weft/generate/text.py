"""Text from a model by itself: prompts of ids in, text out as it is written. What chat and pretrained models use.

    ids ── steps (greedy, drawn) or beams ──> ids ── Writer ──> pieces of text, cut at a stop string

(What a run's own arrows produce goes through predict.py, which knows columns and media.)

Shape letters:  B prompts  T tokens of a prompt  L tokens produced
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from weft.core import config as c
from weft.core.view import Tokens
from weft.errors import RecipeError, WeftError
from weft.generate.beam import Beams, beam
from weft.generate.decode import NONE, Rule, steps
from weft.generate.prompt import Prompts
from weft.generate.sample import Draws, Sampling
from weft.modalities.text import TextCodec
from weft.model import Model

UNFINISHED = "\ufffd"  # what the first bytes of a character decode to
HELD = 8  # tokens that may wait for the rest of a character; after that they are no character


@dataclass(frozen=True)
class Limits:
    """When an answer is over.

    tokens   at most so many
    ends     ids that end it; they are not part of the text
    stop     strings that end it; neither are they
    context  tokens that the model can look at, prompt included
    """

    tokens: int = 256
    ends: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    context: int = 1 << 20

    def __post_init__(self) -> None:
        if self.tokens < 1 or any(not text for text in self.stop):
            raise RecipeError("An answer has 1 token or more, and a stop string 1 character or more.")


@dataclass(frozen=True, eq=False)
class Written:
    """An answer. reason: "end" (by itself), "stop" (a stop string) or "length" (tokens or context ran out)."""

    text: str
    ids: np.ndarray
    reason: str
    score: float | None = None


@dataclass
class Writer:
    """Ids -> text, piece by piece. What may change is held back: bytes of a character, the start of a stop string."""

    codec: TextCodec
    stop: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    _done: int = 0  # ids whose text is out
    _context: int = 0  # ids before those that are decoded along: some tokenizers drop the first space
    _held: str = ""

    def add(self, number: int) -> str:
        """The text that is certain now."""
        if number in self.codec.control:
            return ""
        self.ids.append(number)
        before = self.codec.decode(self.ids[self._context : self._done])
        now = self.codec.decode(self.ids[self._context :])
        if now.endswith(UNFINISHED) and len(self.ids) - self._done < HELD:
            return ""
        self._context, self._done = self._done, len(self.ids)
        return self._certain(self._held + now[len(before) :])

    def close(self) -> str:
        """The rest, when no more ids come."""
        if self.reason == "stop":
            return ""
        before = self.codec.decode(self.ids[self._context : self._done])
        text = self._held + self.codec.decode(self.ids[self._context :])[len(before) :]
        self._held = ""
        return text

    def _certain(self, text: str) -> str:
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.reason, self._held = "stop", ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def lay_ids(prompts: Sequence[np.ndarray], pad: int = 0) -> Prompts:
    """Prompts of ids, padded on the right. Raises WeftError for an empty one."""
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise WeftError("A prompt has one token or more.")
    ids = torch.full((len(prompts), max(lengths)), pad, dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
    length = torch.tensor(lengths)
    if min(lengths) == max(lengths):
        return Prompts(Tokens(ids), length - 1, length.float())
    document = (torch.arange(max(lengths))[None] < length[:, None]).int()
    return Prompts(Tokens(ids, document=document), length - 1, length.float())


def lay_sources(sources: Sequence[np.ndarray], start: int, pad: int = 0) -> Prompts:
    """Sources of ids for an encoder-decoder, whose answers begin after `start` (T5: the padding's id)."""
    prompts = lay_ids([np.array([start])] * len(sources))
    prompts.source = lay_ids(sources, pad).tokens
    return prompts


def stream(
    model: Model,
    codec: TextCodec,
    prompts: Prompts,
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    *,
    half: bool = False,
) -> Iterator[tuple[int, str, Written | None]]:
    """(number of the prompt, piece of text, the whole answer with the last piece) as tokens come.

    half: products in bfloat16. Raises WeftError for a prompt that the context does not hold.
    """
    limits = limits or Limits()
    count, longest = len(prompts.last), int(prompts.last.max()) + 1
    context = context_of(model, limits.context)
    if longest >= context:
        raise WeftError(f"The prompt has {longest:,} tokens; the model's context is {context:,}. Give a shorter one.")
    rule = Rule(allowed(model, codec), None, limits.ends or None, context)
    draws = None
    if sampling is not None and not sampling.greedy:
        rows = [ids[: last + 1] for ids, last in zip(prompts.tokens.ids, prompts.last.tolist(), strict=True)]
        draws = Draws([hashlib.blake2b(ids.numpy().tobytes()).digest() for ids in rows], sampling.seed)
    writers = [Writer(codec, limits.stop) for _ in range(count)]
    made: list[list[int]] = [[] for _ in range(count)]
    open = set(range(count))
    for number, ids in enumerate(steps(model, prompts, rule, sampling, draws, half=half), 1):
        for row, token in enumerate(ids.tolist()):
            if row not in open or token == NONE:
                continue
            made[row].append(token)
            piece, reason = "", "end" if token in limits.ends else ""
            if not reason:
                piece = writers[row].add(token)
                full = int(prompts.last[row]) + 1 + number >= context
                reason = writers[row].reason or ("length" if number == limits.tokens or full else "")
            if reason:
                open.discard(row)
                piece += writers[row].close()
                yield row, piece, Written("", np.array(made[row]), reason)
            elif piece:
                yield row, piece, None
        if not open:
            return


def write(
    model: Model,
    codec: TextCodec,
    prompts: Prompts,
    limits: Limits | None = None,
    how: Sampling | Beams | None = None,
    *,
    half: bool = False,
) -> list[Written]:
    """The whole answers, one for each prompt. how: a Sampling (greedy unless said), or Beams for beam search."""
    limits = limits or Limits()
    if isinstance(how, Beams):
        rule = Rule(allowed(model, codec), None, limits.ends or None, context_of(model, limits.context))
        found = beam(model, prompts, rule, how, most=limits.tokens, half=half)
        return [spelled(codec, some[0].ids, limits, some[0].score) for some in found]
    texts = [""] * len(prompts.last)
    out: dict[int, Written] = {}
    for row, piece, written in stream(model, codec, prompts, limits, how, half=half):
        texts[row] += piece
        if written is not None:
            out[row] = Written(texts[row], written.ids, written.reason)
    return [out[row] for row in range(len(texts))]


def spelled(codec: TextCodec, ids: np.ndarray, limits: Limits, score: float) -> Written:
    """Ids that are all there as an answer."""
    writer = Writer(codec, limits.stop)
    ended = len(ids) > 0 and int(ids[-1]) in limits.ends
    text = ""
    for token in ids[: len(ids) - ended].tolist():
        text += writer.add(token)
        if writer.reason:
            break
    text += writer.close()
    return Written(text, ids, writer.reason or ("end" if ended else "length"), score)


def allowed(model: Model, codec: TextCodec) -> torch.Tensor:
    """(V,) bool: the ids that the tokenizer has; a table padded to a round number has more."""
    legal = torch.zeros(model.classes(), dtype=torch.bool)
    legal[: codec.size] = True
    return legal


def context_of(model: Model, said: int) -> int:
    """The tokens that a model can look at: what is said, and no more than its table of positions."""
    tables = [t.positions.length for t in inputs(model.config.topology) if isinstance(t.positions, c.Learned)]
    return min([said, *tables])


def inputs(topology: c.Topology) -> list[c.TextInput]:
    """The inputs of a topology that the answer goes through."""
    if isinstance(topology, c.EncoderDecoderConfig):
        return [topology.decoder.input]
    if isinstance(topology, c.Fusion):
        return [topology.tower.input]
    if isinstance(topology, c.TowerConfig):
        return [topology.input]
    return [topology.target] if isinstance(topology, c.ConcatConfig) else []
