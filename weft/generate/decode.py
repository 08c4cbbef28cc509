"""Decoding: many prompts at once, each continued from its own end, one column of tokens per step.

    prompts (B,T) --hidden--> last hidden of each row --head--> logits --legal, sampled--> ids (B,)
                                      ^                                                     |
                                      '------- hidden of one new column, with the cache <---'

Rows that are done leave the batch once they are half of it. A row's result does not depend on the rows beside it.

Shape letters:  B rows  V vocabulary  L tokens produced
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """What may be produced: legal (V,) bool; exactly `count` tokens, or until `end` or until prompt and answer fill `context`."""

    legal: Tensor
    count: int | None
    end: int | None
    context: int

    @staticmethod
    def of(renderer: Any, column: str, context: int, longest: int) -> Rule:
        """The rule of a column's type, after prompts of at most `longest` tokens. Raises WeftError if there is no room."""
        legal = renderer.legal(column)
        need = legal.count or 1
        if longest + need > context:
            raise WeftError(
                f"{column} takes {need} tokens or more, and after a prompt of {longest} the context of {context} has room for "
                f"{max(context - longest, 0)}. Give a shorter input, or train with a larger train.length."
            )
        return Rule(torch.from_numpy(np.array(legal.mask, dtype=bool)), legal.count, legal.end, context)

    def over(self, ids: Tensor, length: Tensor) -> Tensor:
        """(B,) bool: whether these ids (B,), which make rows `length` (B,) tokens long, are the rows' last."""
        full = length >= self.context
        return full if self.end is None else full | (ids == self.end)


@torch.no_grad()
def steps(
    model: Model, prompts: Prompts, rule: Rule, sampling: Sampling | None = None, draws: Draws | None = None, *,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Yield (B,) int64 ids per step, on the CPU, NONE for rows that are done; ends when all are.

    cached  False computes every step from the whole row again: slow, and equal (what `weft check` proves)
    """
    sampling = sampling or Sampling()
    device = next(model.parameters()).device
    prompts, legal = prompts.to(device), rule.legal.to(device)
    source = None if prompts.source is None else model.encode(prompts.source)
    cache = model.cache("growing") if cached else None
    alive = torch.arange(len(prompts.last), device=device)  # row of the batch -> row of the prompts
    done = torch.zeros(len(alive), dtype=torch.bool, device=device)
    hidden = model.hidden(prompts.tokens, source, cache)
    hidden = hidden[alive, prompts.last]  # (B,T,D) -> (B,D)
    produced = torch.empty(len(alive), 0, dtype=torch.int64, device=device)
    stream = prompts.tokens
    for step in range(rule.count or rule.context):
        uniform = None if sampling.greedy or draws is None else draws.next()[alive.cpu().numpy()]
        ids = choose(model.logits(hidden), sampling, uniform, legal=legal, produced=produced)  # (B,D) -> (B,)
        ids = ids.masked_fill(done, NONE)
        out = torch.full((len(prompts.last),), NONE, dtype=torch.int64)
        out[alive.cpu()] = ids.cpu()
        yield out
        produced = torch.cat((produced, ids[:, None]), 1)
        done |= rule.over(ids, prompts.last[alive] + step + 2)
        if step + 1 == rule.count or bool(done.all()):
            return
        if cached and 2 * int(done.sum()) > len(done):
            keep = (~done).nonzero()[:, 0]
            cache.select(keep)
            source = None if source is None else source.select(keep)
            alive, done, ids, produced = alive[keep], done[keep], ids[keep], produced[keep]
        column = _column(ids.clamp_min(0), prompts.place[alive] + step)
        if cached:
            hidden = model.hidden(column, source, cache)[:, -1]
        else:
            stream = _append(stream, column)
            hidden = model.hidden(stream, source)[:, -1]


def _column(ids: Tensor, place: Tensor) -> Tokens:
    """One new token per row: ids (B,), position (B,) on every axis."""
    return Tokens(
        ids[:, None], document=torch.ones(len(ids), 1, dtype=torch.int32, device=ids.device),
        positions=place.float()[:, None, None].expand(-1, 1, 3),
    )  # fmt: skip


def _append(tokens: Tokens, column: Tokens) -> Tokens:
    """The stream with one more column; media keep their places, which are counted in the flattened tokens."""
    rows, length = tokens.ids.shape
    zeros = torch.zeros_like(column.document)
    plain = lambda t: torch.zeros(rows, length, dtype=torch.int32, device=tokens.ids.device) if t is None else t
    media = tuple(type(m)(m.kind, m.values, m.at + m.at // length) for m in tokens.media)
    return Tokens(
        torch.cat((tokens.ids, column.ids), 1), torch.cat((tokens.document, column.document), 1),
        torch.cat((plain(tokens.branch), zeros), 1), torch.cat((plain(tokens.span), zeros), 1),
        torch.cat((tokens.positions, column.positions), 1), media,
    )  # fmt: skip


def decode(
    model: Model, prompts: Prompts, rule: Rule, sampling: Sampling | None = None, draws: Draws | None = None, *,
    cached: bool = True,
) -> list[np.ndarray]:
    """All steps: the ids of each row, its `end` included if it came. One int64 array per row."""
    columns = list(steps(model, prompts, rule, sampling, draws, cached=cached))
    table = torch.stack(columns, 1).numpy()  # (B,L)
    return [row[row != NONE] for row in table]


def finished(ids: np.ndarray, rule: Rule) -> bool:
    """Whether a row came to its own end, rather than to the end of the context."""
    return rule.end is None or (len(ids) > 0 and int(ids[-1]) == rule.end)
