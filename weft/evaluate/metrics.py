"""Metrics by the type of what an arrow produces. Each keeps what every row contributes, so that intervals are cheap.

    label   accuracy, macro F1, precision, recall        text    exact match, token F1, word error, character error,
    model   bits per byte                                        BLEU, chrF
    align   recall@1, recall@5, mean reciprocal rank          judge   share read as asked (images), word error (speech)

Shape letters:  n rows  C classes  k numbers a row contributes
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from weft.evaluate.intervals import DRAWS, Interval, Statistic, bootstrap, ratio


@dataclass(frozen=True, eq=False)
class Score:
    """One metric on n rows. `stats` (n,k) is empty and `missing` says why, where a library is not installed."""

    metric: str
    stats: np.ndarray
    statistic: Statistic = ratio
    higher: bool = True  # whether more is better
    missing: str = ""

    @property
    def value(self) -> float:
        return float(self.statistic(self.stats.sum(0))) if len(self.stats) else float("nan")

    def interval(self, *, draws: int = DRAWS, seed: int = 0) -> Interval:
        return bootstrap(self.stats, self.statistic, draws=draws, seed=seed)


def hits(metric: str, right: Sequence[bool] | np.ndarray) -> Score:
    """A share of rows. right (n,) of bool."""
    right = np.asarray(right, dtype=np.float64)
    return Score(metric, np.stack([right, np.ones_like(right)], -1))


def mean(metric: str, values: Sequence[float] | np.ndarray, *, higher: bool = True) -> Score:
    """A mean over rows. values (n,)."""
    values = np.asarray(values, dtype=np.float64)
    return Score(metric, np.stack([values, np.ones_like(values)], -1), higher=higher)


# ---------------------------------------------------------------- labels


def labels(expected: Sequence[Hashable], produced: Sequence[Hashable]) -> list[Score]:
    """Accuracy first, then macro F1, precision and recall over the classes that occur in `expected`.

    A class never predicted has precision 0 (scikit-learn's `zero_division=0`, labels = those of `expected`).
    """
    classes = {name: i for i, name in enumerate(dict.fromkeys(expected))}
    n, c = len(expected), len(classes)
    table = np.zeros((n, 3, c))  # per row one-hot: hit, predicted, true
    rows = np.arange(n)
    truth = np.array([classes[e] for e in expected], dtype=np.int64)
    guess = np.array([classes.get(p, -1) for p in produced], dtype=np.int64)
    table[rows, 2, truth] = 1
    known = guess >= 0
    table[rows[known], 1, guess[known]] = 1
    table[rows[guess == truth], 0, truth[guess == truth]] = 1
    flat = table.reshape(n, 3 * c)
    return [
        hits("accuracy", guess == truth),
        Score("macro F1", flat, lambda sums: _macro(sums, c, "f1")),
        Score("precision", flat, lambda sums: _macro(sums, c, "precision")),
        Score("recall", flat, lambda sums: _macro(sums, c, "recall")),
    ]


def _macro(sums: np.ndarray, c: int, which: str) -> np.ndarray:
    """(..., 3C) sums of hits, predictions and truths -> (...) mean over the classes that occur in the draw."""
    hit, predicted, true = np.split(sums, 3, axis=-1)
    top, under = {"f1": (2 * hit, predicted + true), "precision": (hit, predicted), "recall": (hit, true)}[which]
    each = np.divide(top, under, out=np.zeros_like(top), where=under > 0)
    present = true > 0
    return (each * present).sum(-1) / np.maximum(present.sum(-1), 1)


# ---------------------------------------------------------------- text


def text(expected: Sequence[str], produced: Sequence[str]) -> list[Score]:
    """Exact match first, then token F1, word error, character error, BLEU and chrF."""
    return [
        hits("exact match", [e.strip() == p.strip() for e, p in zip(expected, produced, strict=True)]),
        mean("token F1", [token_f1(e, p) for e, p in zip(expected, produced, strict=True)]),
        word_error(expected, produced),
        character_error(expected, produced),
        bleu(expected, produced),
        chrf(expected, produced),
    ]


_PUNCTUATION = str.maketrans("", "", string.punctuation + "。，、？！；：“”‘’（）《》")
_HAN = re.compile("([\u3400-\u4dbf\u4e00-\u9fff])")


def words(value: str) -> list[str]:
    """Lower-cased words without punctuation, each Chinese character a word: what word error, token F1 and the speech
    judge compare."""
    return _HAN.sub(r" \1 ", value.lower().translate(_PUNCTUATION)).split()


def token_f1(expected: str, produced: str) -> float:
    """F1 of the bags of words (Rajpurkar et al. 2016, without dropping articles)."""
    want, got = words(expected), words(produced)
    common = sum((Counter(want) & Counter(got)).values())
    if not want or not got:
        return float(want == got)
    return 2 * common / (len(want) + len(got))


def word_error(expected: Sequence[str], produced: Sequence[str], metric: str = "word error") -> Score:
    """Edits over words, on lower-cased words without punctuation; can pass 1."""
    return _errors(metric, [" ".join(words(e)) for e in expected], [" ".join(words(p)) for p in produced], "words")


def character_error(expected: Sequence[str], produced: Sequence[str]) -> Score:
    """Edits over characters, case and punctuation counted."""
    return _errors("character error", [e.strip() for e in expected], [p.strip() for p in produced], "characters")


def _errors(metric: str, expected: Sequence[str], produced: Sequence[str], unit: str) -> Score:
    try:
        import jiwer
    except ModuleNotFoundError:
        return _missing(metric, "jiwer", higher=False)
    process: Callable = jiwer.process_words if unit == "words" else jiwer.process_characters

    def counted(want: str, got: str) -> list[float]:
        size = len(want.split()) if unit == "words" else len(want)
        if not want:  # jiwer refuses an empty reference: everything produced is an insertion
            return [len(got.split()) if unit == "words" else len(got), 0]
        if want == got:
            return [0, size]
        out = process(want, got)
        return [out.substitutions + out.deletions + out.insertions, size]

    return Score(metric, _each(counted, expected, produced), higher=False)


def bleu(expected: Sequence[str], produced: Sequence[str]) -> Score:
    """Corpus BLEU, 0 to 1, as sacrebleu's default (Papineni et al. 2002; Post 2018); Chinese where it prevails."""
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError:
        return _missing("BLEU", "sacrebleu")
    scorer = BLEU(tokenize="zh" if _chinese(expected) else "13a")

    def counted(want: str, got: str) -> list[float]:
        one = scorer.corpus_score([got], [[want]])
        return [one.sys_len, one.ref_len, *one.counts, *one.totals]

    return Score("BLEU", _each(counted, expected, produced), _bleu)


def _each(counted: Callable[[str, str], list[float]], expected: Sequence[str], produced: Sequence[str]) -> np.ndarray:
    """(n,k) what `counted` finds in each pair, asked once for equal pairs: short answers repeat."""
    pairs = list(zip(expected, produced, strict=True))
    if not pairs:
        return np.zeros((0, len(counted("", ""))))
    known = {pair: counted(*pair) for pair in dict.fromkeys(pairs)}
    return np.array([known[pair] for pair in pairs], np.float64)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """(..., 10) lengths, matched and possible n-grams -> (...), zero matches smoothed as sacrebleu's `exp`."""
    length, reference, match, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    zero = (match == 0) & (total > 0)
    smooth = np.where(zero, 0.5 ** np.cumsum(zero, -1), match)
    precision = np.divide(smooth, total, out=np.zeros_like(smooth), where=total > 0)
    with np.errstate(divide="ignore"):
        logs = np.log(precision).mean(-1)
    brevity = np.minimum(0.0, 1 - np.divide(reference, length, out=np.full_like(length, np.inf), where=length > 0))
    return np.where((match.sum(-1) == 0) | (length == 0), 0.0, np.exp(logs + brevity))


CHRF_ORDER, CHRF_BETA = 6, 2  # Popovic 2015, and sacrebleu's defaults


def chrf(expected: Sequence[str], produced: Sequence[str]) -> Score:
    """Character n-gram F2, 0 to 1, spaces left out (Popovic 2015). Equal to sacrebleu's, which a test holds it to."""
    return Score("chrF", _each(_ngrams, expected, produced), _chrf)


def _ngrams(want: str, got: str) -> list[float]:
    """(18,) for each order: n-grams produced, expected, matched."""
    want, got = "".join(want.split()), "".join(got.split())
    found: list[float] = []
    for order in range(CHRF_ORDER):
        a = Counter(want[j : j + order + 1] for j in range(len(want) - order))
        b = Counter(got[j : j + order + 1] for j in range(len(got) - order))
        possible = sum(b.values()) if a else 0  # an order the reference does not have does not count
        found += [possible, sum(a.values()), sum((a & b).values())]
    return found


def _chrf(sums: np.ndarray) -> np.ndarray:
    """(..., 18) produced, expected and matched n-grams by order -> (...)."""
    produced, expected, match = (sums[..., i::3] for i in range(3))
    counts = (produced > 0) & (expected > 0)
    orders = np.maximum(counts.sum(-1), 1)
    precision = np.divide(match, produced, out=np.zeros_like(match), where=counts).sum(-1) / orders
    recall = np.divide(match, expected, out=np.zeros_like(match), where=counts).sum(-1) / orders
    under = CHRF_BETA**2 * precision + recall
    return np.divide((1 + CHRF_BETA**2) * precision * recall, under, out=np.zeros_like(under), where=under > 0)


def _chinese(texts: Sequence[str]) -> bool:
    joined = "".join(texts[:200])
    return sum("\u4e00" <= c <= "\u9fff" for c in joined) > len(joined) / 4


def _missing(metric: str, library: str, higher: bool = True) -> Score:
    why = f"{library} is not installed; install it with: pip install 'weft[metrics]'"
    return Score(metric, np.zeros((0, 2)), higher=higher, missing=why)


# ---------------------------------------------------------------- language modelling, alignment, media


def bits_per_byte(nats: Sequence[float] | np.ndarray, texts: Sequence[str]) -> Score:
    """Nats summed per row (n,), as bits over the UTF-8 bytes of the row's text: comparable across tokenizers."""
    bits = np.asarray(nats, dtype=np.float64) / np.log(2)
    return Score("bits per byte", np.stack([bits, [len(t.encode()) for t in texts]], -1), higher=False)


def ranks(left: np.ndarray, right: np.ndarray, same: Sequence[Hashable]) -> np.ndarray:
    """(n,) place, from 1, at which each left item finds its partner among the n right ones. Ties rank last.

    left, right (n,E) unit vectors; `same` (n,) names the right items: of equal captions any copy counts as found.
    """
    similarity = left @ right.T  # (n,E) x (E,n) -> (n,n)
    names = np.unique(np.array([repr(s) for s in same]), return_inverse=True)[1]
    mine = names[:, None] == names[None, :]
    best = np.where(mine, similarity, -np.inf).max(1)
    return 1 + ((similarity >= best[:, None]) & ~mine).sum(1)


def ranked(rank: np.ndarray) -> list[Score]:
    """Recall@1 first, recall@5, mean reciprocal rank. rank (n,) from 1."""
    return [hits("recall@1", rank <= 1), hits("recall@5", rank <= 5), mean("mean reciprocal rank", 1 / rank)]


def reconstruction(expected: Sequence[np.ndarray], produced: Sequence[np.ndarray], *, scale: float) -> Score:
    """Root mean square error as a share of `scale` (255 for uint8 images), pooled over all values of all rows."""
    stats = [
        (float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum()) / scale**2, a.size)
        for a, b in zip(expected, produced, strict=True)
    ]
    return Score("reconstruction error", np.array(stats).reshape(-1, 2), lambda s: np.sqrt(ratio(s)), higher=False)
