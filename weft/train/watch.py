"""Watchers: called after each step, each knows when its time is.

Log        a line in metrics.jsonl, and what the person at the terminal sees
Evaluate   loss on held-out rows, per arrow
Blind      does the model use its inputs? Each is swapped between rows: the loss must rise
Save       a checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.data.batch import Batch
from weft.objectives import OBJECTIVES
from weft.train.loop import Report, Session, per_arrow, save
from weft.train.machine import autocast, eager
from weft.train.progress import Progress

if TYPE_CHECKING:
    from weft.data.sources import Table

Batches = Sequence[Batch]


@dataclass
class Log:
    """metrics.jsonl and the screen. A step that was not finite is an event of its own."""

    progress: Progress

    def __call__(self, session: Session, report: Report) -> None:
        state = session.state
        if report.finite:
            session.run.record(
                step=state.step, time=state.seconds, loss=report.loss, arrows=report.arrows, norm=report.norm,
                lr=report.lr, tokens_per_second=report.tokens / report.seconds, waited=report.waited,
            )  # fmt: skip
        else:
            session.run.record(event="nonfinite", step=state.step, loss=str(report.loss), norm=str(report.norm))
            self.progress.say(
                f"step {state.step} was not finite (loss {report.loss}, gradient {report.norm}): it changes nothing"
            )
        self.progress.step(state.step, report.loss, report.arrows, report.tokens)


@dataclass
class Evaluate:
    """Loss per token on held-out batches, every `evaluate_every` steps and at the end."""

    batches: Batches

    def __call__(self, session: Session, report: Report) -> None:
        if not due(session, session.recipe.options.evaluate_every):
            return
        found = losses(session, self.batches)
        held: dict[str, dict] = {"arrows": {}, "intervals": {}}
        for number, name in enumerate(session.names):
            mine = found.of(number)
            if len(mine):
                value, error = spread(mine)
                wide = quantile(len(mine)) * error if len(mine) > 1 else None  # one row says nothing of its spread
                held["arrows"][name] = value
                held["intervals"][name] = [*((None, None) if wide is None else (value - wide, value + wide)), len(mine)]
        loss = float(found.sums.sum() / max(1.0, found.counts.sum()))
        session.run.record(step=session.state.step, validation={"loss": loss, **held})


@dataclass
class Save:
    """A checkpoint every `save_every` steps. The last one is saved by who runs the loop, however it ends."""

    def __call__(self, session: Session, report: Report) -> None:
        if session.state.step % session.recipe.options.save_every == 0 and session.state.step < session.recipe.steps:
            save(session)


@dataclass
class Blind:
    """The blind-modality alarm, in the middle and at the end of a run.

    plain     held-out batches
    shuffled  input column -> makes the same batches with that column's cells swapped between rows
    users     input column -> the arrows that read it
    """

    plain: Batches
    shuffled: dict[str, Callable[[], Batches]]
    users: dict[str, list[str]]
    say: Callable[[str], None]
    cached: dict[str, Batches] = field(default_factory=dict)

    def __call__(self, session: Session, report: Report) -> None:
        step, steps = session.state.step, session.recipe.steps
        if not self.plain or not self.shuffled or step not in (steps // 2, steps):
            return
        before = losses(session, self.plain)
        for column, make in self.shuffled.items():
            if column not in self.cached:
                self.cached[column] = make()
            after = losses(session, self.cached[column])
            for name in self.users[column]:
                found = rise(before, after, session.names.index(name))
                if found is None:
                    continue
                session.run.record(event="blind", step=step, arrow=name, column=column, **asdict(found))
                if found.ignored and step == steps:
                    self.say(
                        f"'{name}' does not use {column}: with another row's {column} the loss goes from "
                        f"{found.loss:.3f} to {found.shuffled:.3f} (a rise of {found.low:+.3f} to {found.high:+.3f}). "
                        f"Train longer, or see whether {column} says anything about the output."
                    )


@dataclass(frozen=True)
class Rise:
    """What exchanging an input did to an arrow's loss per token, over the same `rows` rows before and after.

    low, high  95 % interval of the rise
    ignored    none is seen, and none that matters could have been missed: with few rows the interval is wide, and
               says neither that an input is used nor that it is not
    """

    loss: float
    shuffled: float
    low: float
    high: float
    rows: int
    ignored: bool


def due(session: Session, every: int) -> bool:
    """Whether this step is one of every `every`, or the last."""
    return session.state.step % every == 0 or session.state.step == session.recipe.steps


@dataclass(frozen=True)
class Losses:
    """Of n samples: the table's row and the arrow of each, its loss summed over its tokens, and their number."""

    row: np.ndarray
    arrow: np.ndarray
    sums: np.ndarray
    counts: np.ndarray

    def of(self, arrow: int) -> np.ndarray:
        """(n,2) sums and counts of an arrow's rows, in the order of the rows."""
        mine = self.arrow == arrow
        return np.stack([self.sums[mine], self.counts[mine]], 1)

    def rows(self, arrow: int) -> np.ndarray:
        """(n,) numbers of those rows, each once."""
        return self.row[self.arrow == arrow]


@torch.no_grad()
def losses(session: Session, batches: Iterable[Batch]) -> Losses:
    """The loss of every sample in some batches. Training is not touched."""
    model, device = session.model, session.device
    model.eval()
    names, keys, found = len(session.names), [], []
    with eager(model):
        for batch in batches:
            if batch.row is None or batch.arrow is None or not (batch.arrow >= 0).any():
                continue
            key = torch.where(batch.arrow >= 0, batch.row * names + batch.arrow, -1)
            here, number = key.unique(return_inverse=True)  # an objective sums by number: here one per sample
            with autocast(device, session.recipe.options.dtype):
                _, report = OBJECTIVES[batch.objective](model, replace(batch, arrow=number).to(device))
            sums, counts = per_arrow(report)
            keys.append(here[: len(sums)].numpy())
            found.append(torch.stack([sums, counts], 1).double().cpu().numpy())
    model.train()
    if not found:
        return Losses(*np.zeros((2, 0), np.int64), *np.zeros((2, 0)))
    key, number = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.zeros((len(key), 2))
    np.add.at(total, number, np.concatenate(found))  # a text that was cut into windows stands in several documents
    there = (total[:, 1] > 0) & (key >= 0)
    return Losses(key[there] // names, key[there] % names, *total[there].T)


MATTERS = 0.05  # nats per token, or this share of the loss: a smaller rise is not worth a word
FEW = 5  # rows; from fewer, nothing is said


def rise(before: Losses, after: Losses, arrow: int) -> Rise | None:
    """How the loss of an arrow rose, row by row: what makes one row harder than another is the same on both sides.

    None: fewer than FEW rows are on both sides.
    """
    _, here, there = np.intersect1d(before.rows(arrow), after.rows(arrow), return_indices=True)
    if len(here) < FEW:
        return None
    one, two = before.of(arrow)[here], after.of(arrow)[there]
    loss, shuffled = one[:, 0].sum() / one[:, 1].sum(), two[:, 0].sum() / two[:, 1].sum()
    mean, error = spread(np.stack([two[:, 0] / two[:, 1] * one[:, 1] - one[:, 0], one[:, 1]], 1))
    wide = quantile(len(here)) * error
    ignored = mean - wide <= 0 and mean + wide < max(MATTERS, MATTERS * loss)
    return Rise(float(loss), float(shuffled), mean - wide, mean + wide, len(here), bool(ignored))


def spread(rows: np.ndarray) -> tuple[float, float]:
    """Loss per token, and its standard error, from (n,2) sums and counts: how much the rows differ."""
    sums, counts = rows[rows[:, 1] > 0].T
    mean = sums.sum() / counts.sum()
    shares, apart = counts / counts.sum(), sums / counts - mean
    few = len(counts) / max(1, len(counts) - 1)
    return float(mean), math.sqrt(few * float((shares**2 * apart**2).sum()))


def quantile(rows: int, level: float = 0.95) -> float:
    """Of Student's t, for the two-sided interval of a mean of so many rows (Abramowitz & Stegun 1964, 26.7.5)."""
    z, degrees = NormalDist().inv_cdf(0.5 + level / 2), max(1, rows - 1)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def swapped(table: Table, column: str, rows: np.ndarray, seed: int) -> Table | None:
    """The table with `column` moved on by one among the filled ones of `rows`, in a seeded order.

    None: there are too few different cells for it to mean anything.
    """
    from weft.data.sources import Table, content

    rows = rows[table.filled(column)[rows]]
    cells = list(table.column(column))
    if len({content(cells[i]) for i in rows}) < 2:
        return None
    order = np.random.default_rng(seed).permutation(rows)
    moved = dict(zip(order.tolist(), [cells[i] for i in np.roll(order, 1)], strict=True))
    changed = [moved.get(i, cell) for i, cell in enumerate(cells)]
    return Table(
        {name: changed if name == column else table.column(name) for name in table.columns}, table.folder, table.name
    )
