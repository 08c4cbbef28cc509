"""The loader: step number in, batches out, whatever was asked before.

    table rows --plan.py--> documents, rows, steps --assemble.py--> batches --thread--> the training loop
    once, from lengths      per round, from (seed, epoch)           on demand           a few steps ahead

`step(n)` is a pure function of the recipe's seed and n, so a resumed run sees the bits that it would have seen.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from weft.arrows.grammar import Arrow
from weft.arrows.media import identify
from weft.arrows.types import as_text
from weft.arrows.vocabulary import SENTINELS
from weft.data import noise
from weft.data.assemble import Assembler, Skip, Skips
from weft.data.batch import Batch
from weft.data.mix import mix_of, some
from weft.data.plan import ROUND, Doc, Lane, Planner, Round, Samples
from weft.data.sources import Table, content
from weft.data.split import assign
from weft.errors import DataError, RecipeError
from weft.recipe import Recipe

AHEAD = 4  # steps made before they are asked for


@dataclass(frozen=True)
class Counts:
    """What planning found, per arrow: for the printout. All in samples."""

    samples: int  # rows of the split whose columns are filled
    repeated: int  # of them equal to another one, kept once an epoch
    long: int  # longer than the context, listed in skipped.jsonl
    broken: int  # could not be rendered, listed too
    tokens: int  # of all that are left, beginnings that are shared counted each time


class Loader:
    """Batches of a table's rows for a run's arrows.

    renderer     renders (record, arrow number) as a Sample
    arrows       the run's arrows, parsed
    resolutions  per arrow: its objective and head
    split        (rows,) names as `split.assign` gives them; None: assigned by the recipe
    part         the rows that `step` draws from
    skips        where rows that cannot be used are listed and counted; None: a list of its own

    `ends` (the first step after each round that was planned) may be set to what another loader of the same recipe
    found: the rounds before a step then need not be planned again to find the step.

    Raises DataError when nothing is left to train on, or more rows than allowed cannot be used.
    """

    def __init__(
        self,
        table: Table,
        renderer: Any,
        *,
        arrows: Sequence[Arrow],
        resolutions: Sequence[Any],
        recipe: Recipe,
        split: np.ndarray | None = None,
        part: str = "train",
        skips: Skips | None = None,
    ) -> None:
        self.table, self.renderer, self.recipe = table, renderer, recipe
        self.arrows, self.part = list(arrows), part
        self.split = assign(table, recipe.split, recipe.seed) if split is None else split
        lanes: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, resolution in enumerate(resolutions):
            lanes[resolution.objective, resolution.head or "language"].append(number)
        self.lanes = [Lane(objective, head, tuple(numbers)) for (objective, head), numbers in lanes.items()]
        self.length = recipe.train.length
        self.skips = Skips(len(table), recipe.train.options.skip_share) if skips is None else skips
        self.assembler = Assembler(table, renderer, arrows=self.arrows, skips=self.skips, recipe=recipe)
        self._given: dict[tuple[str, bytes], int] = {}
        self._lock = threading.RLock()  # `batch` and `evaluation` may be asked while the thread makes steps
        self.counts: dict[str, list[Counts]] = {}
        self._planners: dict[str, Planner] = {}
        self._rounds: dict[int, Round] = {}
        self.ends: list[int] = []
        self.encode: Callable[[Batch], Batch] | None = None  # what frozen encoders make of a batch (train/once.py)

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def skipped(self) -> list[Skip]:
        """The rows left out so far, in the table's order."""
        return [self.skips.found[key] for key in sorted(self.skips.found)]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, padding included."""
        plan = self.round(0)
        return plan.places // plan.steps

    @property
    def padding(self) -> float:
        """Share of a step that holds no token, over the first round."""
        return self.round(0).padding

    # ------------------------------------------------------------------------------------------------ plans

    def planner(self, part: str) -> Planner:
        """What plans the rounds of one split. Made when first asked for: this is where lengths are measured."""
        if part not in self._planners:
            samples = self.measure(part)
            height = max(1, self.recipe.train.tokens // self.length)
            if len(self.lanes) == 1 and self.lanes[0].paired:
                pair = int(samples[0].lengths.max(0).sum()) if len(samples[0]) else 1
                height = max(2, self.recipe.train.tokens // pair)
            mix = mix_of(self.recipe, self.arrows, self.table) if part == self.part else {}
            drawn = ((a, one.row[one.arrow == a]) for one in samples for a in range(len(self.arrows)))
            if not any(some(mix, arrow, rows) for arrow, rows in drawn):
                raise RecipeError(f"mix draws no row of the split {part!r}: give some arrow or row more than 0.")
            self._planners[part] = Planner(self.lanes, samples, self.length, height, self.recipe.seed, mix)
        return self._planners[part]

    def measure(self, part: str, limit: int = 0) -> list[Samples]:
        """Per lane the samples of a split, equal ones once; counts are kept in `counts`.

        limit  at most so many samples per arrow, taken by a seeded choice; 0: all
        """
        rows = np.flatnonzero(self.split == part)
        counts: list[Counts] = [Counts(0, 0, 0, 0, 0)] * len(self.arrows)
        lanes = []
        for lane in self.lanes:
            found: list[tuple] = []
            for number in lane.arrows:
                mine, counts[number] = self._measured(lane, number, rows, limit)
                found += mine
            lanes.append(_samples(found, lane))
        self.counts[part] = counts
        if not any(map(len, lanes)):
            have = ", ".join(f"{count} {name}" for name, count in Counter(self.split.tolist()).items())
            raise DataError(
                f"{self.table.name}: no row of the split {part!r} can be used by any arrow ({have} rows; "
                f"{sum(c.long for c in counts)} are longer than train.length={self.length} tokens)."
            )
        return lanes

    def _measured(self, lane: Lane, number: int, rows: np.ndarray, limit: int) -> tuple[list[tuple], Counts]:
        """(row, arrow, lengths, trunk, group, text) of an arrow's samples."""
        arrow = self.arrows[number]
        filled = np.all([self.table.filled(name)[rows] for name in arrow.columns], axis=0)
        mine = rows[filled]
        cells = [self.table.column(name) for name in arrow.columns]
        unique: dict[tuple[bytes, ...], int] = {}
        for row in mine.tolist():
            unique.setdefault(tuple(content(column[row]) for column in cells), row)
        chosen = np.fromiter(unique.values(), np.int64, len(unique))
        if limit and len(chosen) > limit:
            # By a rank of all rows: with another table's cells in one column, nearly the same rows are taken.
            rank = np.random.default_rng([self.recipe.seed, 4, number]).permutation(len(self.table))
            chosen = np.sort(chosen[np.argsort(rank[chosen])[:limit]])
        if lane.objective in ("next", "seq2seq"):
            self._precode(arrow, chosen)
        found, long, broken = [], 0, 0
        for row in chosen.tolist():
            size = self._size(lane, row, number)
            if size is None:
                broken += 1
                continue
            lengths, _, _, text = size
            if max(lengths) > self.length and not text:
                long += 1
                words = f"{max(lengths)} tokens; the context (train.length) is {self.length}"
                self.skips.note(Skip(row, str(arrow), f"row {row}", words), broken=False)
                continue
            found.append((row, number, *size))
        tokens = sum(sum(one[2]) for one in found)
        return found, Counts(len(mine), len(mine) - len(unique), long, broken, tokens)

    def _precode(self, arrow: Arrow, rows: np.ndarray) -> None:
        """Have the codec encode what the arrow is to produce, many at once; what fails is met again when rendering."""
        name = arrow.output
        if self.renderer.columns[name].name in self.renderer.codecs:
            self.renderer.precode(name, (self.table.row(row, (name,))[name] for row in rows.tolist()))

    def _size(self, lane: Lane, row: int, number: int) -> tuple[tuple[int, ...], int, Hashable, int] | None:
        """(tokens per stream, tokens of the beginning it may share, that beginning's key, tokens that may be cut).

        From sizes and durations in the headers of media; nothing is decoded.
        """
        arrow = self.arrows[number]
        try:
            record = self.table.row(row, arrow.columns)
            total = self.renderer.length(record, number, row=row)
            if self.renderer.talks(number):
                return (total,), 0, None, 0
            parts = [self._tokens(column.name, record[column.name], row) for column in arrow.inputs]
        except DataError as error:
            self.assembler.broken(row, number, error)
            return None
        given = sum(parts)
        if lane.objective == "classify":
            return (given,), 0, None, 0
        if lane.objective == "seq2seq" and arrow.kind == "fill":
            text = total - 2  # without the marker before and the end behind it
            hidden, spans = noise.counts(text, SENTINELS)
            return (1 + text - hidden + spans, hidden + spans + 1), 0, None, text
        if lane.streams == 2:
            return (given, total - given), 0, None, 0
        cut = arrow.kind in ("model", "fill") and self.renderer.columns[arrow.output].name == "text"
        first = arrow.inputs[0].name if parts else ""
        alone = number in self.assembler.dropout.arrows  # whose inputs are left out: never with those of another arrow
        key = (first, content(self.table.column(first)[row]), alone) if parts else None
        return (total,), parts[0] if parts else 0, key, total if cut else 0

    def _tokens(self, column: str, value: Any, row: int) -> int:
        """Tokens of an input column with its marker, each distinct value measured once."""
        kind = self.renderer.columns[column].name
        if kind == "label":
            return 2
        if kind == "messages":
            return 1 + len(self.renderer.said(column, "input", value))
        if kind in ("image", "audio"):
            return 1 + self.renderer.reader.count(kind, *identify(value))  # which remembers them itself
        key = (column, content(self.table.column(column)[row]))
        if key not in self._given:
            self._given[key] = 1 + len(self.renderer.text.encode(as_text(value, column)))
        return self._given[key]

    # ------------------------------------------------------------------------------------------------ steps

    @cached_property
    def epochs(self) -> int:
        """Epochs of a round: enough for its last, less filled step not to matter."""
        plan = self.planner(self.part).round(0, 1)
        if plan.steps >= ROUND:
            self._rounds[0] = plan
        return max(1, -(-ROUND // plan.steps))

    def round(self, number: int) -> Round:
        """A round's plan; the last two are kept."""
        epochs = self.epochs  # known first: finding it out may have planned the first round
        if number not in self._rounds:
            last = max(self._rounds, default=number)
            self._rounds = {kept: plan for kept, plan in self._rounds.items() if kept == last}
            self._rounds[number] = self.planner(self.part).round(number, epochs)
        return self._rounds[number]

    def plan(self, epoch: int) -> Round:
        """The round in which an epoch lies."""
        return self.round(epoch // self.epochs)

    def locate(self, step: int) -> tuple[int, int]:
        """(round, step within it) of a step of the run, counted from 0."""
        while not self.ends or self.ends[-1] <= step:
            self.ends.append((self.ends[-1] if self.ends else 0) + self.round(len(self.ends)).steps)
        number = int(np.searchsorted(self.ends, step, side="right"))
        return number, step - (self.ends[number - 1] if number else 0)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number`, counted from 0. A function of the recipe's seed and `number` alone."""
        with self._lock:
            plan, inside = self.locate(number)
            return self._batches(self.planner(self.part), self.round(plan), inside, self.part == "train")

    def _batches(self, planner: Planner, plan: Round, inside: int, augment: bool) -> list[Batch]:
        micro = self.recipe.train.micro
        batches = []
        for index, rows in enumerate(plan.step(inside)):
            height = plan.heights[index]
            size = min(micro or height, height)
            for start in range(0, height, max(size, 1)):
                part = rows[start : start + size]
                if part or (start == 0 and len(self.lanes) == 1):
                    lane = self.lanes[index]
                    tall = len(part) if lane.paired else size  # an empty row would be a pair of nothing
                    widths, samples = planner.widths(index), planner.samples[index]
                    batch = self.assembler.batch(lane, samples, part, tall, widths, augment)
                    batches.append(batch if self.encode is None else self.encode(batch))
        total = sum(batch.total for batch in batches) or 1.0
        for batch in batches:
            batch.total = total
        return batches

    def batch(self, lane: int, rows: Sequence[Sequence[Doc]], height: int, part: str = "train") -> Batch:
        """Rows of documents of one lane, as a plan holds them or changed by hand, as a batch of `height` rows."""
        planner = self.planner(part)
        with self._lock:
            return self.assembler.batch(self.lanes[lane], planner.samples[lane], rows, height, planner.widths(lane))

    def evaluation(self, part: str = "validation", limit: int = 0) -> Iterator[list[Batch]]:
        """Every sample of a split once, in steps; what `~text` hides is the same each time.

        limit  at most so many samples per arrow; 0: all
        """
        key = f"{part}:{limit}"
        if key not in self._planners:
            height = max(1, self.recipe.train.tokens // self.length)
            samples = self.measure(part, limit)
            self._planners[key] = Planner(self.lanes, samples, self.length, height, self.recipe.seed, {})
        planner = self._planners[key]
        plan = planner.round(0, 1)
        for inside in range(plan.steps):
            with self._lock:
                batches = self._batches(planner, plan, inside, False)
            yield batches

    def iterate(self, start: int = 0) -> Generator[list[Batch], None, None]:
        """Steps from `start` on, without end, made a few ahead by a thread.

        An error of the thread is raised here. `close()` (or leaving a `for`) ends the thread.
        """
        made: queue.Queue[Any] = queue.Queue(AHEAD)
        over = threading.Event()

        def offer(item: Any) -> None:
            while not over.is_set():
                try:
                    return made.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            number = start
            try:
                while not over.is_set():
                    offer(self.step(number))
                    number += 1
            except BaseException as error:  # handed over and raised where the batches are used
                offer(error)

        thread = threading.Thread(target=work, name="weft-loader", daemon=True)
        thread.start()
        try:
            while True:
                item = made.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over.set()
            thread.join()


def _samples(found: list[tuple], lane: Lane) -> Samples:
    """Tuples of `_measured` as arrays; groups numbered."""
    groups: dict[Hashable, int] = {}
    group = [
        groups.setdefault(one[4] if one[4] is not None else ("alone", i), len(groups)) for i, one in enumerate(found)
    ]
    return Samples(
        row=np.array([one[0] for one in found], np.int64),
        arrow=np.array([one[1] for one in found], np.int64),
        lengths=np.array([one[2] for one in found], np.int64).reshape(-1, lane.streams),
        trunk=np.array([one[3] for one in found], np.int64),
        group=np.array(group, np.int64),
        text=np.array([one[5] for one in found], np.int64),
    )
