"""Beam search: the likeliest whole answers, not the likeliest next token.

    prompt ── the 4 best so far ── x V continuations ── the 8 best of them ──┬── ended: kept if among the best finished
                    ^                                                        │
                    └────────────── the 4 best that go on ───────────────────┘

A finished answer is scored by its log-probability over its length to the power `penalty` (Wu et al. 2016, section 7,
without their constant), so longer ones are not at a disadvantage. Agrees with transformers' `generate(num_beams=...)`.

Shape letters:  B prompts  W beams of each  C candidates of each  V vocabulary  L tokens produced
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.errors import RecipeError
from weft.generate.decode import Rule, column, precision
from weft.generate.prompt import Prompts
from weft.model import Model

NEVER = -1e9  # a score that loses to every real one


@dataclass(frozen=True)
class Beams:
    """width answers are followed at once; answers of them are returned, the best first.

    penalty  power of the length that log-probabilities are divided by: above 0 favours longer answers
    patience  when a prompt is done. "full": as soon as `width` answers have ended. "likely": once no running beam, were
             it to end now, would beat the worst of them. "never": once none could at any length
    """

    width: int = 4
    penalty: float = 1.0
    patience: str = "likely"
    answers: int = 1

    def __post_init__(self) -> None:
        if self.width < 1 or not 1 <= self.answers <= self.width:
            raise RecipeError(f"Beam search with {self.width} beams cannot give {self.answers} answers.")
        if self.patience not in ("full", "likely", "never"):
            raise RecipeError(f"patience is full, likely or never, not {self.patience!r}.")


@dataclass(frozen=True, eq=False)
class Answer:
    """ids (L,) with the end that it came to; score: log-probability over length^penalty."""

    ids: np.ndarray
    score: float


@dataclass
class Running:
    """ids (B,W,L) and log-probabilities (B,W) of what goes on."""

    ids: Tensor
    score: Tensor


@dataclass
class Finished:
    """The best `width` ended answers of each prompt: ids (B,W,most) padded with -1, scores, which are real (B,W)."""

    ids: Tensor
    score: Tensor
    real: Tensor

    @staticmethod
    def none(prompts: int, width: int, most: int, device: torch.device) -> Finished:
        ids = torch.full((prompts, width, most), -1, dtype=torch.int64, device=device)
        score = torch.full((prompts, width), NEVER, device=device)
        return Finished(ids, score, torch.zeros_like(score, dtype=torch.bool))

    def take(self, ids: Tensor, score: Tensor, ended: Tensor) -> None:
        """Let candidates (B,C,L) that `ended` (B,C) be among the best, if they are."""
        padded = ids.new_full((*ids.shape[:2], self.ids.shape[2]), -1)
        padded[:, :, : ids.shape[2]] = ids
        scores = torch.cat((self.score, score + ~ended * NEVER), 1)
        best = scores.topk(self.score.shape[1], 1).indices
        self.ids = rows(torch.cat((self.ids, padded), 1), best)
        self.real = torch.cat((self.real, ended), 1).gather(1, best)
        self.score = scores.gather(1, best)


@torch.no_grad()
def beam(
    model: Model, prompts: Prompts, rule: Rule, beams: Beams | None = None, *, most: int = 0, half: bool = False
) -> list[list[Answer]]:
    """The best answers of each prompt, the best first. most: tokens of an answer (0: as many as the context holds).

    Beams that have not ended by then count as ended. half: products in bfloat16.
    """
    beams = beams or Beams()
    device = next(model.parameters()).device
    prompts, legal = prompts.to(device), rule.legal.to(device)
    count, width = len(prompts.last), beams.width
    room = rule.context - int(prompts.last.max()) - 1
    most = min(rule.count or most or room, room)
    cache = model.cache("growing")
    with precision(device, half):
        source = None if prompts.source is None else model.encode(prompts.source)
        hidden = model.hidden(prompts.tokens, source, cache)
        logits = model.logits(hidden[torch.arange(count, device=device), prompts.last])  # (B,V)
    each = torch.arange(count, device=device).repeat_interleave(width)  # (B*W,) prompt of each beam
    cache.select(each)
    source, logits = None if source is None else source.select(each), logits[each]
    running = Running(each.new_empty(count, width, 0), torch.full((count, width), NEVER, device=device))
    running.score[:, 0] = 0  # all beams are the prompt: only one of them may go on, or they would be the same
    finished, open = Finished.none(count, width, most, device), torch.ones(count, 1, dtype=torch.bool, device=device)
    for step in range(most):
        chosen = advance(logits, running, finished, open, beams, rule, legal, step + 1 == most)
        open &= improvable(running, finished, step + 1, most, beams)
        if step + 1 == most or not open.any() or (beams.patience == "full" and finished.real.all()):
            break
        keep = (chosen + torch.arange(count, device=device)[:, None] * width).flatten()
        if not torch.equal(keep, torch.arange(len(keep), device=device)):
            cache.select(keep)  # the source is the same for all beams of a prompt
        place = prompts.placed(each, rule.offset(step))
        with precision(device, half):
            hidden = model.hidden(column(running.ids[:, :, -1].flatten(), place), source, cache)
            logits = model.logits(hidden[:, -1])
    return answers(finished, beams)


def advance(
    logits: Tensor,
    running: Running,
    finished: Finished,
    open: Tensor,
    beams: Beams,
    rule: Rule,
    legal: Tensor,
    last: bool,
) -> Tensor:
    """One token more: (B*W,V) logits change `running` and `finished`. (B,W): the beam that each goes on from."""
    count, width = running.score.shape
    scores = logits.float().log_softmax(-1).masked_fill(~legal, -torch.inf).view(count, width, -1)
    total = (scores + running.score[:, :, None]).flatten(1)  # (B,W*V)
    ends = 1 if isinstance(rule.end, int) else len(rule.end or ())
    score, at = total.topk(min(max(2, 1 + ends) * width, total.shape[1]), 1)  # (B,C): enough that `width` go on
    origin, ids = at // scores.shape[2], at % scores.shape[2]
    ids = torch.cat((rows(running.ids, origin), ids[:, :, None]), 2)  # (B,C,L+1)
    ended = rule.ends(ids[:, :, -1]) if rule.count is None else torch.zeros_like(at, dtype=torch.bool)
    ended = ended | last
    after = score / ids.shape[2] ** beams.penalty + ~open * NEVER
    if beams.patience == "full":
        after = after + finished.real.all(1, keepdim=True) * NEVER
    first = torch.arange(ids.shape[1], device=ids.device) < width  # an end counts where it is among the best `width`
    finished.take(ids, after, ended & first)
    on, best = (score + ended * NEVER).topk(width, 1)
    running.ids, running.score = rows(ids, best), on
    return origin.gather(1, best)


def improvable(running: Running, finished: Finished, length: int, most: int, beams: Beams) -> Tensor:
    """(B,1) bool: whether a running beam may still beat the worst of the finished answers."""
    reach = most if beams.patience == "never" and beams.penalty > 0 else length
    best = running.score[:, :1] / reach**beams.penalty
    worst = torch.where(finished.real, finished.score.amin(1, keepdim=True), NEVER)
    return (best > worst).any(1, keepdim=True)


def rows(values: Tensor, at: Tensor) -> Tensor:
    """(B,N,L), (B,M) -> (B,M,L)."""
    return values.gather(1, at[:, :, None].expand(-1, -1, values.shape[2]))


def answers(finished: Finished, beams: Beams) -> list[list[Answer]]:
    """What is returned: without the padding."""
    ids, score = finished.ids.cpu().numpy(), finished.score.cpu().tolist()
    return [
        [Answer(row[row >= 0], value) for row, value in zip(some[: beams.answers], values, strict=False)]
        for some, values in zip(ids, score, strict=True)
    ]
