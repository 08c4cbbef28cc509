"""Decoding: many prompts at once, each continued from its own end, one column of tokens per step.

    prompts (B,T) --hidden--> last hidden of each row --head--> logits --legal, sampled--> ids (B,)
                                      ^                                                     |
                                      '------- hidden of one new column, with the cache <---'

Rows that are done leave the batch once they are half of it. A row's result does not depend on the rows beside it.
Guided (Ho and Salimans 2022), each row runs beside itself with nothing asked: logits = nothing + guidance * (asked -
nothing), of log probabilities, and both go on with the same ids.

Shape letters:  B rows  V vocabulary  L tokens produced
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.core.view import Tokens
from weft.errors import WeftError
from weft.generate.prompt import Prompts
from weft.generate.sample import Draws, Sampling, choose
from weft.model import Model

NONE = -1  # stands where a row produced nothing any more


@dataclass(frozen=True, eq=False)
class Rule:
    """What may be produced: legal (V,) bool; exactly `count` tokens, or until an `end` or the `context` is full.

    places  (count,3) where each stands, from where the first one does; None: one after the other
    """

    legal: Tensor
    count: int | None
    end: int | tuple[int, ...] | None
    context: int
    places: Tensor | None = None

    @staticmethod
    def of(renderer: Any, column: str, context: int, longest: int) -> Rule:
        """The rule of a column's type, after prompts of at most `longest` tokens. Raises WeftError without room."""
        legal = renderer.legal(column)
        need = legal.count or 1
        if longest + need > context:
            raise WeftError(
                f"{column} takes {need} tokens or more, and after a prompt of {longest} the context of {context} has "
                f"room for {max(context - longest, 0)}. Give a shorter input, or train with a larger train.length."
            )
        places = None if legal.places is None else torch.from_numpy(legal.places)
        return Rule(torch.from_numpy(np.array(legal.mask, dtype=bool)), legal.count, legal.end, context, places)

    def offset(self, step: int) -> Tensor:
        """(1|3,) how far from the first produced token the one of `step` stands, on every axis."""
        return torch.tensor([float(step)]) if self.places is None else self.places[step]

    def over(self, ids: Tensor, length: Tensor) -> Tensor:
        """(B,) bool: whether these ids (B,), which make rows `length` (B,) tokens long, are the rows' last."""
        full = length >= self.context
        return full | self.ends(ids)

    def ends(self, ids: Tensor) -> Tensor:
        """(...) bool: which of the ids (...) end an answer."""
        ends = (self.end,) if isinstance(self.end, int) else self.end or ()
        return torch.isin(ids, torch.tensor(ends, dtype=ids.dtype, device=ids.device))


@torch.no_grad()
def steps(
    model: Model,
    prompts: Prompts,
    rule: Rule,
    sampling: Sampling | None = None,
    draws: Draws | None = None,
    *,
    cached: bool = True,
    half: bool = False,
) -> Iterator[Tensor]:
    """Yield (B,) int64 ids per step, on the CPU, NONE for rows that are done; ends when all are.

    prompts if guided, 2B rows: all that ask, then the same with nothing asked
    cached  False computes every step from the whole row again: slow, and equal (what `weft check` proves)
    half    products in bfloat16; then rows are independent of their company only up to rounding
    """
    sampling = sampling or Sampling()
    device = next(model.parameters()).device
    prompts, legal = prompts.to(device), rule.legal.to(device)
    cache = model.cache("growing") if cached else None
    guided = sampling.guidance != 1.0
    count = len(prompts.last) // (2 if guided else 1)
    both: Callable[[Tensor, int], Tensor] = lambda rows, by: torch.cat((rows, rows + by)) if guided else rows
    alive = torch.arange(count, device=device)  # row of the batch -> row of the prompts
    done = torch.zeros(len(alive), dtype=torch.bool, device=device)
    with precision(device, half):
        source = None if prompts.source is None else model.encode(prompts.source)
        every = both(alive, count)
        logits = model.logits(model.hidden(prompts.tokens, source, cache)[every, prompts.last])  # (B,T,D) -> (B,V)
    produced = torch.empty(len(alive), 0, dtype=torch.int64, device=device)
    stream = prompts.tokens
    for step in range(rule.count or rule.context):
        uniform = None if sampling.greedy or draws is None else draws.next()[alive.cpu().numpy()]
        if guided:
            logits = led(logits, sampling.guidance, legal)
        ids = choose(logits, sampling, uniform, legal=legal, produced=produced)  # (B,V) -> (B,)
        ids = ids.masked_fill(done, NONE)
        out = torch.full((count,), NONE, dtype=torch.int64)
        out[alive.cpu()] = ids.cpu()
        yield out
        produced = torch.cat((produced, ids[:, None]), 1)
        done |= rule.over(ids, prompts.last[alive] + step + 2)
        if step + 1 == rule.count or bool(done.all()):
            return
        if cache is not None and 2 * int(done.sum()) > len(done):
            keep = (~done).nonzero()[:, 0]
            pairs = both(keep, len(done))
            cache.select(pairs)
            source = None if source is None else source.select(pairs)
            alive, done, ids, produced = alive[keep], done[keep], ids[keep], produced[keep]
        new = column(both(ids.clamp_min(0), 0), prompts.placed(both(alive, count), rule.offset(step)))
        stream = new if cached else _append(stream, new)
        with precision(device, half):
            logits = model.logits(model.hidden(stream, source, cache)[:, -1])


def led(logits: Tensor, guidance: float, legal: Tensor) -> Tensor:
    """(2B,V) logits of what was asked and of nothing -> (B,V) guided ones, among the legal (V,)."""
    asked, nothing = logits.float().masked_fill(~legal, -torch.inf).log_softmax(-1).chunk(2)
    return torch.where(legal, nothing + guidance * (asked - nothing), -torch.inf)


def precision(device: torch.device, half: bool) -> torch.autocast:
    """Weights and sums stay float32; products are of bfloat16 if `half`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def column(ids: Tensor, place: Tensor | None) -> Tokens:
    """One new token per row: ids (B,), positions (B,1|3). None: they are counted on in rows without padding."""
    if place is None:
        return Tokens(ids[:, None])
    return Tokens(
        ids[:, None],
        document=torch.ones(len(ids), 1, dtype=torch.int32, device=ids.device),
        positions=place.float()[:, None].expand(-1, 1, 3),
    )


def _append(tokens: Tokens, column: Tokens) -> Tokens:
    """The stream with one more column; media keep their places, which are counted in the flattened tokens."""
    length = tokens.ids.shape[1]

    def joined(name: str) -> Tensor:
        left, right = getattr(tokens, name), getattr(column, name)
        return torch.cat((left, torch.zeros_like(left[:, :1]) if right is None else right), 1)

    names = [n for n in ("ids", "document", "branch", "span", "positions") if getattr(tokens, n) is not None]
    media = tuple(replace(m, at=m.at + m.at // length) for m in tokens.media)
    return Tokens(**{name: joined(name) for name in names}, media=media)


def decode(
    model: Model,
    prompts: Prompts,
    rule: Rule,
    sampling: Sampling | None = None,
    draws: Draws | None = None,
    *,
    cached: bool = True,
    half: bool = False,
) -> list[np.ndarray]:
    """All steps: the ids of each row, its `end` included if it came. One int64 array per row."""
    columns = list(steps(model, prompts, rule, sampling, draws, cached=cached, half=half))
    table = torch.stack(columns, 1).numpy()  # (B,L)
    return [row[row != NONE] for row in table]


def finished(ids: np.ndarray, rule: Rule) -> bool:
    """Whether a row came to its own end, rather than to the end of the context."""
    return rule.end is None or (len(ids) > 0 and bool(rule.ends(torch.tensor(int(ids[-1])))))
