"""`weft eval`: every arrow of a run on held-out rows, with intervals, beside baselines on the same rows.

rows of the split --Predictor--> values --+-- lines --scores--> value, interval      results.json
                                          |     '-- predictions/<arrow>.<split>.jsonl
training rows --baselines, judges---------'
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft.errors import DataError, RunError
from weft.evaluate.compare import predictions
from weft.evaluate.measure import Bench, Measured
from weft.evaluate.scoring import scores
from weft.evaluate.show import Samples
from weft.generate.predict import Predictor
from weft.run import Run, replace_text

SPLITS = ("train", "validation", "test")


def evaluate(
    run: Run | str | Path, split: str = "test", arrows: Sequence[str] | None = None, limit: int | None = None,
    judge: bool = True, *, before: bool = False, model: Any = None, say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure a run's arrows on one split. Writes results.json, predictions/ and samples/ into the run.

    arrows  only these; None: all
    limit   at most so many rows per arrow, drawn with the run's seed; None: all
    judge   train the judges of pictures and speech where the run has none yet; False: measure those arrows by their
            codecs only
    before  measure the model as it was before its first step beside it, on the same rows; for runs that started from
            pretrained weights
    model   instead of the run's saved weights
    say     told what is found as it is found; None: printed to stderr

    Returns one dict per metric, each arrow's headline metric first: {arrow, split, metric, value, low, high, n, hash,
    baselines, kind, parts, note}. `baselines` are {name: value} by the same metric on the same rows.

    Raises ArrowError for an arrow that the run does not have, RunError for a run without weights, DataError where the
    split has no row for any arrow.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    if split not in SPLITS:
        raise RunError(f"There is no split {split!r}. There is: {', '.join(SPLITS)}.")
    predictor = Predictor(run, model)
    chosen = [predictor.find(arrow) for arrow in arrows] if arrows else list(range(len(predictor.renderer.arrows)))
    if run.changed:
        say(f"{run.table.name} has changed since the run was trained: rows held out now may have been trained on")
    first = Predictor(run, run.start(str(predictor.device))) if before else None
    bench = Bench(predictor, split, judge=judge, say=say, before=first)
    samples = Samples(run.path / "samples")
    results: list[dict[str, Any]] = []
    for number in dict.fromkeys(chosen):
        arrow, start = predictor.renderer.arrows[number], time.perf_counter()
        rows = bench.rows(number, limit)
        if not len(rows):
            say(f"{arrow}: no row of the split {split!r} has all of its columns; left out")
            continue
        measured = bench.measure(number, rows)
        keep(run.path, str(arrow), split, measured)
        found = lines_of(str(arrow), split, measured)
        results += found
        bench.show(samples, number, measured)
        say(told(found[0], time.perf_counter() - start))
    if not results:
        raise DataError(
            f"No row of the split {split!r} has all the columns of {'; '.join(map(str, predictor.renderer.arrows))}."
        )
    samples.write([result["arrow"] for result in results])
    store(run.path, split, results)
    return results


def lines_of(arrow: str, split: str, measured: Measured) -> list[dict[str, Any]]:
    """The result lines of an arrow."""
    found, notes = [], list(measured.notes)
    others = {
        name: {score.metric: score for score in scores(measured.kind, lines, measured.headline)}
        for name, lines in measured.baselines.items()
    }
    own = scores(measured.kind, measured.lines, measured.headline) if measured.lines else []
    for score in own + measured.extra:
        if score.missing:
            notes.append(f"{score.metric} was not computed: {score.missing}")
            continue
        interval = score.interval()
        baselines = {name: known[score.metric].value for name, known in others.items() if score.metric in known}
        found.append(
            {
                "arrow": arrow,
                "split": split,
                "metric": score.metric,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "hash": measured.parts.hash,
                "baselines": baselines | measured.chance.get(score.metric, {}),
                "kind": measured.kind,
                "parts": asdict(measured.parts),
            }
        )
    if not found:
        raise RunError(f"'{arrow}' could not be measured. {'; '.join(notes)}")
    if notes:
        found[0]["note"] = "; ".join(dict.fromkeys(notes))
    return found


def told(result: dict[str, Any], seconds: float) -> str:
    """One line for people."""
    beside = ", ".join(f"{name} {value:.3f}" for name, value in result["baselines"].items())
    text = (
        f"{result['arrow']}: {result['metric']} {result['value']:.3f} [{result['low']:.3f}, {result['high']:.3f}] on "
        f"{result['n']:,} rows ({seconds:.1f} s)"
    )
    return text + (f"; {beside}" if beside else "") + (f"\n    {result['note']}" if result.get("note") else "")


def keep(folder: Path, arrow: str, split: str, measured: Measured) -> None:
    """predictions/<arrow>.<split>.jsonl"""
    path = predictions(folder, arrow, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in measured.lines))


def store(folder: Path, split: str, results: list[dict[str, Any]]) -> None:
    """results.json: these arrows' lines on this split anew, the others as they were."""
    path = folder / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    fresh = {result["arrow"] for result in results}
    kept = [line for line in before if line["split"] != split or line["arrow"] not in fresh]
    replace_text(path, json.dumps(kept + results, indent=1, ensure_ascii=False))
