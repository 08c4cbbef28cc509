"""Watchers: called after each step, each knows when its time is.

Log        a line in metrics.jsonl, and what the person at the terminal sees
Evaluate   loss on held-out rows, per arrow
Blind      does the model use its inputs? Each is swapped between rows: the loss must rise
Save       a checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
        found = losses(session, self.batches)  # (batches,arrows,2)
        sums, counts = found.sum(0).T  # (arrows,) each
        intervals = {}
        for number, name in enumerate(session.names):
            if counts[number]:
                mean, error = spread(found[:, number])
                intervals[name] = [mean - 1.96 * error, mean + 1.96 * error, int(counts[number])]
        held = {
            "loss": float(sums.sum() / max(1.0, counts.sum())),
            "arrows": {n: s / c for n, s, c in zip(session.names, sums.tolist(), counts.tolist(), strict=True) if c},
            "intervals": intervals,
        }
        session.run.record(step=session.state.step, validation=held)


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
                number = session.names.index(name)
                found = rise(before[:, number], after[:, number])
                if found is None:
                    continue
                loss, swapped, noise = found
                ignored = swapped - loss < noise
                session.run.record(
                    event="blind",
                    step=step,
                    arrow=name,
                    column=column,
                    loss=loss,
                    shuffled=swapped,
                    noise=noise,
                    ignored=ignored,
                )
                if ignored and step == steps:
                    self.say(
                        f"'{name}' does not use {column}: with another row's {column} the loss goes from {loss:.3f} to "
                        f"{swapped:.3f}, which is noise. Train longer, or see whether {column} says anything about "
                        "the output."
                    )


def due(session: Session, every: int) -> bool:
    """Whether this step is one of every `every`, or the last."""
    return session.state.step % every == 0 or session.state.step == session.recipe.steps


@torch.no_grad()
def losses(session: Session, batches: Iterable[Batch]) -> np.ndarray:
    """(batches,arrows,2): the loss summed over the tokens of each arrow, and their number. Training is not touched."""
    model, device = session.model, session.device
    model.eval()
    found = []
    with eager(model):
        for batch in batches:
            with autocast(device, session.recipe.options.dtype):
                _, report = OBJECTIVES[batch.objective](model, batch.to(device))
            here = np.zeros((len(session.names), 2))
            sums, counts = per_arrow(report)
            here[: len(sums), 0] = sums.float().cpu().numpy()
            here[: len(counts), 1] = counts.float().cpu().numpy()
            found.append(here)
    model.train()
    return np.array(found).reshape(-1, len(session.names), 2)


def rise(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float] | None:
    """Loss before, loss after, and the rise that chance would make (two standard errors), from (batches,2) sums and
    counts.

    None: too few batches hold the arrow to tell.
    """
    if min((before[:, 1] > 0).sum(), (after[:, 1] > 0).sum()) < 2:
        return None
    (loss, error), (shuffled, other) = spread(before), spread(after)
    return loss, shuffled, 2 * math.hypot(error, other)


def spread(batches: np.ndarray) -> tuple[float, float]:
    """Loss per token, and its standard error, from (batches,2) sums and counts: how much the batches differ."""
    sums, counts = batches[batches[:, 1] > 0].T
    mean = sums.sum() / counts.sum()
    shares, apart = counts / counts.sum(), sums / counts - mean
    few = len(counts) / max(1, len(counts) - 1)
    return float(mean), math.sqrt(few * float((shares**2 * apart**2).sum()))


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
