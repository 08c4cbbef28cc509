"""How sure a score is: bootstrap intervals over rows, and the paired comparison of two runs.

Every metric here is a function of *sums over rows* (accuracy: right and all; word error: edits and words; macro F1: the
counts of a confusion table; BLEU: matched and possible n-grams). So one draw of the bootstrap is one weighted sum:

    counts (draws, n)  @  stats (n, k)  ->  sums (draws, k)  ->  statistic  ->  (draws,)
    how often each         what one row
    row was drawn          contributes

Shape letters:  n rows  k numbers a row contributes  R draws

Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 (percentile intervals) and 16 (paired tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # (..., k) sums -> (...) value

DRAWS = 1000
LEVEL = 0.95
CELLS = 4_000_000  # counts held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its interval at `level`; `n` rows it was computed on."""

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL


@dataclass(frozen=True)
class Difference:
    """`b - a` on the same rows: interval, and twice the share of draws on the less likely side of zero."""

    value: float
    low: float
    high: float
    p: float
    n: int


def ratio(sums: np.ndarray) -> np.ndarray:
    """The plainest statistic: first sum over the second, (..., 2) -> (...); 0/0 is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)


def drawn(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Counts of each row in each draw with replacement, in chunks of (r,n) float64 that sum to `draws` rows."""
    rng = np.random.default_rng(seed)
    chunk = max(1, min(draws, CELLS // max(n, 1)))
    for start in range(0, draws, chunk):
        r = min(chunk, draws - start)
        flat = rng.integers(0, n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(flat.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def bootstrap(
    stats: np.ndarray,
    statistic: Statistic = ratio,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The statistic of all rows with its percentile interval.

    stats (n,k) what each row contributes. Where no row failed at all (or none succeeded) there is no spread to
    resample, and a percentile interval would claim certainty; there the exact binomial bound over rows (Clopper &
    Pearson 1934) is given instead: 450 of 450 right is [0.992, 1], not [1, 1]. Likewise without an edit in 168
    sentences the word error is [0, 0.022]: so many rows might still hold an error, and one that does is counted as
    wrong throughout.
    """
    stats = np.asarray(stats, dtype=np.float64)
    n = len(stats)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0, level)
    value = float(statistic(stats.sum(0)))
    tail = (1 - level) / 2
    if statistic is ratio and _without_spread(stats):
        bound = tail ** (1 / n)
        return Interval(value, bound, 1.0, n, level) if value > 0.5 else Interval(value, 0.0, 1 - bound, n, level)
    values = np.concatenate([statistic(counts @ stats) for counts in drawn(n, draws, seed)])
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(value, float(min(low, value)), float(max(high, value)), n, level)


def paired(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic = ratio,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """The difference `b - a` of two runs on the same rows, both resampled with the same draws. a, b (n,k)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired comparison needs the same rows on both sides, got {a.shape} and {b.shape}")
    n = len(a)
    if n == 0:
        nothing = float("nan")
        return Difference(nothing, nothing, nothing, nothing, 0)
    value = float(statistic(b.sum(0)) - statistic(a.sum(0)))
    values = np.concatenate([statistic(c @ b) - statistic(c @ a) for c in drawn(n, draws, seed)])
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    p = min(1.0, 2 * min((values <= 0).mean(), (values >= 0).mean()))
    return Difference(value, float(min(low, value)), float(max(high, value)), float(max(p, 1 / draws)), n)


def _without_spread(stats: np.ndarray) -> bool:
    """Nothing of what was counted in any row, or all of it in each."""
    hits, total = stats[:, 0], stats[:, 1]
    counted = bool((total == np.rint(total)).all())
    return counted and (not hits.any() or bool((hits == total).all()))
