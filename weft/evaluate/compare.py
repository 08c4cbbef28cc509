"""Two runs side by side, row by row: the same rows, the same draws of the bootstrap, the difference of each metric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.errors import RunError
from weft.evaluate.intervals import paired
from weft.evaluate.scoring import Parts, scores
from weft.evaluate.show import slug
from weft.run import Run

ROUNDING = 0.01  # nats by which the same weights may differ between two machines


class Comparison(list[dict[str, Any]]):
    """Lines {arrow, split, metric, a, b, difference, low, high, p, n, hash}; printed as a table.

    trained  parameters that each of the runs trained, by its path
    notes    what is left out, and why
    """

    trained: dict[str, int]
    notes: list[str]

    def __init__(self, trained: dict[str, int] | None = None) -> None:
        super().__init__()
        self.trained, self.notes = trained or {}, []

    def __str__(self) -> str:
        titles = ("arrow", "metric", "first", "second", "second - first", "95 % interval", "p", "rows")
        lines = [titles] + [
            (
                line["arrow"], line["metric"], f"{line['a']:.4f}", f"{line['b']:.4f}", f"{line['difference']:+.4f}",
                f"{line['low']:+.4f} .. {line['high']:+.4f}", f"{line['p']:.3f}", f"{line['n']:,}",
            )
            for line in self
        ]  # fmt: skip
        widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
        told = ["  ".join(c.ljust(width) for c, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        if self.trained:
            told.append("trained parameters: " + ", ".join(f"{path} {n:,}" for path, n in self.trained.items()))
        return "\n".join([*told, *self.notes])


def compare(run: Run | str | Path, other: Run | str | Path, *, split: str = "test", seed: int = 0) -> Comparison:
    """`other - run` for every arrow and metric that both were evaluated on, with 95 % intervals.

    p is two-sided: how often a difference of the other sign would be drawn. Raises RunError where a run was not
    evaluated, nothing is common, or scores were not measured alike: it says whether data, prompt, scorer or decoding
    differ.
    """
    a, b = _open(run), _open(other)
    first, second = _results(a, split), _results(b, split)
    common = [arrow for arrow in first if arrow in second]
    if not common:
        raise RunError(
            f"{a.path} and {b.path} have no arrow in common on the split {split!r}: "
            f"{', '.join(first) or 'none'} against {', '.join(second) or 'none'}."
        )
    found = Comparison({str(run.path): n for run in (a, b) if (n := _trained(run))})
    for arrow in common:
        parts = [Parts(**results[arrow][0]["parts"]) for results in (first, second)]
        parts[0].refuse(parts[1], arrow)
        kind, headline = first[arrow][0]["kind"], first[arrow][0]["metric"]
        rows = [lines(one.path, arrow, split) for one in (a, b)]
        if not all(rows):
            continue  # measured without a judge: nothing of it belongs to a row
        if not _one_start(*rows):
            rows = [[{key: value for key, value in line.items() if key != "start"} for line in one] for one in rows]
            found.notes.append(f"'{arrow}': reward accuracy is left out, since the runs started from different weights")
        mine, theirs = (scores(kind, one, headline) for one in rows)
        for x, y in zip(mine, theirs, strict=True):
            if x.missing or y.missing:
                continue
            d = paired(x.stats, y.stats, x.statistic, seed=seed)
            found.append(
                {
                    "arrow": arrow,
                    "split": split,
                    "metric": x.metric,
                    "a": x.value,
                    "b": y.value,
                    "difference": d.value,
                    "low": d.low,
                    "high": d.high,
                    "p": d.p,
                    "n": d.n,
                    "hash": parts[0].hash,
                }
            )
    return found


def _one_start(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what both were before training, where lines say it, gave the answers the same log probabilities."""
    pairs = [(a["start"], b["start"]) for a, b in zip(mine, theirs, strict=True) if "start" in a and "start" in b]
    return all(abs(x - y) < ROUNDING for a, b in pairs for x, y in zip(a, b, strict=True))


def _open(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.open(run)


def _trained(run: Run) -> int:
    """Parameters that a run trained; 0: it does not say."""
    starts = [line for line in run.metrics("event") if line["event"] == "start"]
    return int(starts[-1].get("trained", 0)) if starts else 0


def _results(run: Run, split: str) -> dict[str, list[dict[str, Any]]]:
    """Arrow -> its result lines on a split."""
    path = run.path / "results.json"
    if not path.is_file():
        raise RunError(f"{run.path} was not evaluated yet. Do it with: weft eval {run.path}")
    found: dict[str, list[dict[str, Any]]] = {}
    for line in json.loads(path.read_text(encoding="utf-8")):
        if line["split"] == split:
            found.setdefault(line["arrow"], []).append(line)
    return found


def predictions(folder: Path, arrow: str, split: str) -> Path:
    """Where the lines of an arrow stand."""
    return folder / "predictions" / f"{slug(arrow)}.{split}.jsonl"


def lines(folder: Path, arrow: str, split: str) -> list[dict[str, Any]]:
    """The lines of an arrow. Raises RunError if they are gone."""
    path = predictions(folder, arrow, split)
    if not path.is_file():
        raise RunError(f"{path} is gone; evaluate again: weft eval {folder}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
