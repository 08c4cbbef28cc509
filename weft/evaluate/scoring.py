"""From lines (one per row, as they stand in predictions/*.jsonl) to scores, and what makes two scores comparable.

kind    a line's fields beside `row`
label   expected, produced
text    expected, produced
image   expected, read        what was asked for, what the judge reads
audio   expected, heard       what should be said, what the judge hears
model   nats, tokens, bytes   of a column modelled from its beginning; bytes 0: not text
fill    right, hidden         hidden tokens
align   rank                  of the right partner among all rows
prefer  chosen, rejected      log probabilities of the two answers; `start`: the pair by the model before training
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from weft.errors import RunError
from weft.evaluate import metrics
from weft.evaluate.metrics import Score

VERSION = 1  # of the metrics' definitions: part of every hash
Lines = Sequence[Mapping[str, Any]]


def scores(kind: str, lines: Lines, headline: str = "") -> list[Score]:
    """All metrics of a kind of output, the headline first."""
    pick = lambda name: [line[name] for line in lines]
    if kind == "label":
        found = metrics.labels(pick("expected"), pick("produced"))
    elif kind == "text":
        found = metrics.text(pick("expected"), pick("produced"))
    elif kind == "image":
        right = [a == b for a, b in zip(pick("expected"), pick("read"), strict=True)]
        found = [metrics.hits("judge accuracy", right)]
    elif kind == "audio":
        found = [metrics.word_error(pick("expected"), pick("heard"), "judge word error")]
    elif kind == "model":
        found = [_bits(lines)]
    elif kind == "prefer":
        found = _preferences(lines)
    elif kind == "fill":
        found = [Score("accuracy", np.stack([pick("right"), pick("hidden")], -1).astype(float))]
    else:
        found = metrics.ranked(np.array(pick("rank"), dtype=np.int64))
    return sorted(found, key=lambda score: score.metric != headline)  # stable: the rest keep their order


def _preferences(lines: Lines) -> list[Score]:
    """How often the chosen answer is the likelier one, and how often it gained more on the start than the rejected one:
    the accuracy of DPO's implicit reward (Rafailov et al. 2023, section 4).
    """
    own = np.array([(line["chosen"], line["rejected"]) for line in lines])
    found = [metrics.mean("accuracy", _better(own))]
    if all("start" in line for line in lines):
        gain = own - np.array([line["start"] for line in lines])
        found.append(metrics.mean("reward accuracy", _better(gain)))
    return found


def _better(pairs: np.ndarray) -> np.ndarray:
    """(n,2) -> (n,): 1 where the first is larger, and half where neither is: a coin would decide."""
    return (pairs[:, 0] > pairs[:, 1]) + 0.5 * (pairs[:, 0] == pairs[:, 1])


def _bits(lines: Lines) -> Score:
    bits = np.array([line["nats"] for line in lines]) / np.log(2)
    written = np.array([line["bytes"] for line in lines])
    if len(written) and written.all():
        return Score("bits per byte", np.stack([bits, written], -1), higher=False)
    return Score("bits per token", np.stack([bits, [line["tokens"] for line in lines]], -1), higher=False)


# ---------------------------------------------------------------- what a score depends on


@dataclass(frozen=True)
class Parts:
    """Hashes of what a score was measured on and with. Two scores compare only where all are equal.

    data      the rows: their cells in the arrow's columns
    prompt    the arrow and its columns' types: what the model is shown and asked
    scorer    the metrics' version, and the judge's training rows
    decoding  how the answer was chosen
    """

    data: str
    prompt: str
    scorer: str
    decoding: str

    @property
    def hash(self) -> str:
        return digest(asdict(self).values())

    def refuse(self, other: Parts, arrow: str) -> None:
        """Raises RunError saying which parts differ."""
        said = {
            "data": "they were measured on different rows",
            "prompt": "the arrow or the types of its columns differ",
            "scorer": "they were scored differently (another version, or a judge trained on other rows)",
            "decoding": "the answers were decoded differently",
        }
        differ = [name for name in said if getattr(self, name) != getattr(other, name)]
        if differ:
            why = "; ".join(f"{name}: {said[name]}" for name in differ)
            raise RunError(
                f"The scores of '{arrow}' cannot be compared. {why}. Evaluate both runs alike, with `weft eval`."
            )


def digest(parts: Iterable[str | bytes]) -> str:
    """Eight hex digits of some texts in order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        whole.update(b"\0")
    return whole.hexdigest()[:8]
