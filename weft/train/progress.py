"""What a person sees while a run goes on: live where there is a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

SMOOTH = 0.95  # of the losses shown: about the last twenty steps
EVERY = 5.0  # seconds between plain lines


class Progress:
    """Told of each step; shows loss per arrow, tokens/s and what is left. Everything goes to stderr."""

    def __init__(self, steps: int, done: int = 0, console: Console | None = None) -> None:
        self.steps, self.done, self.started_at = steps, done, done
        self.console = console or Console(stderr=True)
        self.losses: dict[str, float] = {}
        self.loss = float("nan")
        self.tokens, self.note = 0, ""
        self.began = self.spoke = time.perf_counter()
        self.live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Draw for as long as the block lasts."""
        self.began = self.spoke = time.perf_counter()
        if not self.console.is_terminal:
            yield self
            self.console.print(self.line(), soft_wrap=True, highlight=False)
            return
        with Live(self, console=self.console, refresh_per_second=4, transient=False) as self.live:
            yield self
        self.live = None

    def step(self, step: int, loss: float, arrows: dict[str, float], tokens: int) -> None:
        """Take in a step that was done."""
        self.done, self.tokens = step, self.tokens + tokens
        self.loss = blend(self.loss, loss)
        for name, value in arrows.items():
            self.losses[name] = blend(self.losses.get(name, float("nan")), value)
        if self.live is None and time.perf_counter() - self.spoke > EVERY:
            self.spoke = time.perf_counter()
            self.console.print(self.line(), soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    @property
    def speed(self) -> float:
        """Real tokens per second so far."""
        return self.tokens / max(1e-9, time.perf_counter() - self.began)

    @property
    def left(self) -> float:
        """Seconds still to go, at the pace so far."""
        here = self.done - self.started_at
        return (self.steps - self.done) * (time.perf_counter() - self.began) / here if here else float("nan")

    def line(self) -> str:
        """One line for logs."""
        arrows = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        head = f"step {self.done}/{self.steps}  loss {self.loss:.3f}"
        return f"{head}  {arrows}  {self.speed:,.0f} tokens/s  {clock(self.left)} left"

    def __rich__(self) -> Group:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.steps, completed=self.done, width=30)
        head.add_row(f"{self.done}/{self.steps}", bar, f"{self.speed:,.0f} tokens/s", f"{clock(self.left)} left")
        losses = Table.grid(padding=(0, 2))
        losses.add_row("loss", f"{self.loss:.3f}", style="bold")
        for name, value in self.losses.items():
            losses.add_row(name, f"{value:.3f}")
        return Group(head, losses, *([self.note] if self.note else []))


def blend(old: float, new: float) -> float:
    """A running mean; what is not a number counts for nothing."""
    if new != new:
        return old
    return new if old != old else SMOOTH * old + (1 - SMOOTH) * new


def clock(seconds: float) -> str:
    """1:05, 1:02:03, or -- where it cannot be said yet."""
    if seconds != seconds or seconds == float("inf"):
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speak(text: str) -> None:
    """A line on stderr, where no progress is drawn yet."""
    print(text, file=sys.stderr, flush=True)


def aligned(rows: Sequence[dict[str, str]], keys: Sequence[str]) -> list[str]:
    """Rows of a table as lines, columns under each other."""
    lines = [list(keys), *([str(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keys))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
