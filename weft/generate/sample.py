"""From scores to the next token: greedy, or drawn at a temperature from the likely ones.

A draw is the inverse of the distribution's cumulative sum at one uniform number. Those numbers come from a generator of
the row's own (`Draws`), keyed by the seed and by what the row asks, so a row gets the same answer alone, in any batch,
and in any order.

    logits -> repetition penalty -> legal only -> temperature -> top-k -> min-p -> top-p -> u in [0,1) -> id

Shape letters:  B rows  V vocabulary
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.errors import RecipeError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy.

    temperature  0: the most likely; 1: as the model says; more: flatter
    top_k        only the k most likely (0: all)
    top_p        only the smallest set whose probability reaches p (Holtzman et al. 2020)
    min_p        only those at least this share of the most likely's probability (Nguyen et al. 2024)
    repetition   divide positive logits of tokens already produced by this, multiply negative ones (Keskar et al. 2019)
    seed         draws repeat with the same seed
    tries        draw at most so often until the run's reverse arrow surely reads what was asked; keep the likeliest
    guidance     1: as the model says; more: what the inputs change is made so much of (Ho and Salimans 2022), in a run
                 that trained with `condition_dropout`
    composed     mix a label's probabilities with those that two other arrows of the run give (generate/compose.py)
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    seed: int = 0
    tries: int = 1
    guidance: float = 1.0
    composed: bool = False

    def __post_init__(self) -> None:
        checks = [
            (self.temperature >= 0, "temperature", "0 or more"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1"),
            (self.repetition > 0, "repetition", "above 0"),
            (self.tries >= 1, "tries", "1 or more"),
            (self.guidance >= 0, "guidance", "0 or more"),
        ]
        for fine, name, expected in checks:
            if not fine:
                raise RecipeError(f"{name}={getattr(self, name)} cannot be used: it must be {expected}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Draws:
    """Uniform numbers for each row, independent of the batch it is in.

    `prompts` are bytes that identify what each row asks. Equal prompts are counted, so asking the same thing five times
    gives five different draws.
    """

    def __init__(self, prompts: Sequence[bytes], seed: int) -> None:
        seen: Counter[bytes] = Counter()
        self.rows: list[np.random.Generator] = []
        for prompt in prompts:
            key = hashlib.blake2b(prompt, digest_size=16, key=str(seed).encode()[:64])
            key.update(seen[prompt].to_bytes(8, "little"))
            seen[prompt] += 1
            self.rows.append(np.random.Generator(np.random.Philox(key=int.from_bytes(key.digest(), "little"))))

    def only(self, which: Sequence[int] | np.ndarray) -> Draws:
        """The streams of some rows, in this order."""
        chosen = Draws([], 0)
        chosen.rows = [self.rows[i] for i in which]
        return chosen

    @staticmethod
    def beside(streams: Sequence[Draws]) -> Draws:
        """The streams of several, one after the other."""
        chosen = Draws([], 0)
        chosen.rows = [row for one in streams for row in one.rows]
        return chosen

    def next(self) -> np.ndarray:
        """(B,) float64 in [0,1): one number of each row's own stream."""
        return np.array([row.random() for row in self.rows])


def choose(
    logits: Tensor,
    sampling: Sampling,
    uniform: np.ndarray | None = None,
    *,
    legal: Tensor | None = None,
    produced: Tensor | None = None,
) -> Tensor:
    """The next id of each row.

    logits (B,V); legal (V,) or (B,V) bool, True may be produced; produced (B,L) ids so far, for the repetition penalty
    (-1: none); uniform (B,) from `Draws.next`, needed unless greedy. Returns (B,) int64.
    """
    logits = logits.float()
    if sampling.repetition != 1.0 and produced is not None and produced.numel():
        logits = penalise(logits, produced, sampling.repetition)
    if legal is not None:
        logits = logits.masked_fill(~legal, -torch.inf)
    if sampling.greedy:
        return logits.argmax(-1)
    if uniform is None:
        raise ValueError("sampling at a temperature needs a uniform number for each row")
    probability, order = likely(logits, sampling)
    cumulative = probability.double().cumsum(-1)  # (B,V)
    u = torch.as_tensor(uniform, dtype=torch.float64, device=logits.device)[:, None]
    at = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    places = torch.arange(probability.shape[-1], device=logits.device)
    last = ((probability > 0) * places).amax(-1, keepdim=True)  # rounding must never step past the last allowed token
    return order.gather(-1, at.minimum(last)).squeeze(-1)


def likely(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities (B,V), zero where cut off, and the ids (B,V) they belong to: in descending order if any is cut."""
    scaled = logits / sampling.temperature
    if not sampling.top_k and not sampling.min_p and sampling.top_p == 1:  # nothing is cut off: any order will do
        return scaled.softmax(-1), torch.arange(scaled.shape[-1], device=scaled.device).expand_as(scaled)
    scaled, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    if sampling.top_k:
        scaled[:, sampling.top_k :] = -torch.inf
    probability = scaled.softmax(-1)
    keep = torch.ones_like(probability, dtype=torch.bool)
    if sampling.min_p > 0:
        keep &= probability >= sampling.min_p * probability[:, :1]
    if sampling.top_p < 1:
        before = probability.cumsum(-1) - probability  # what is more likely than this one already holds
        keep &= before < sampling.top_p
    keep[:, 0] = True
    return probability * keep, order


def penalise(logits: Tensor, produced: Tensor, by: float) -> Tensor:
    """Make ids that stand in `produced` (B,L) less likely; -1 stands for none."""
    seen = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, torch.where(produced < 0, logits.shape[1], produced), True)
    seen = seen[:, :-1]
    return torch.where(seen, torch.where(logits > 0, logits / by, logits * by), logits)
