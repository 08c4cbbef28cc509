"""What an epoch consists of: which samples are drawn, which of them share a document, which documents share a row.

Made from lengths alone, which are measured once. Everything is a function of (seed, epoch); nothing depends on what was
asked before.

    samples       every (row, arrow) whose columns are filled; equal ones of an arrow are kept once an epoch
    drawn         an arrow's `mix` m: m times all of them; the part after the point goes around the rows by epochs.
                  A column may say it row by row
    documents     samples that begin with the same picture, sound or text share it (pack.py)
    rows          documents packed into rows of T tokens; the rows are spread evenly over the steps of a round
    round         as many epochs as it takes for the last step of it to weigh little
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from weft.data import pack

SHARE = (
    0.25  # a beginning is shared when it is at least this part of an average rest; below, single documents pack better
)
ROUND = 50  # steps that a round has at least
PLAN = 2  # of what stands with what: a change that has a resumed run meet its rows in another order is another one


@dataclass(frozen=True)
class Lane:
    """Samples that are packed together: one objective, one head, and the arrows that use them."""

    objective: str
    head: str
    arrows: tuple[int, ...]

    @property
    def streams(self) -> int:
        return 2 if self.objective in ("seq2seq", "contrastive") else 1

    @property
    def paired(self) -> bool:
        """One document per row: the pooled pairs of `a <-> b`."""
        return self.objective == "contrastive"


@dataclass
class Samples:
    """A lane's samples, all arrays of n.

    row, arrow  what is rendered
    lengths     (n, streams) tokens
    trunk       tokens of the beginning that it shares with the others of its `group`
    text        tokens that may be cut into windows, where the whole is longer than a row; 0: none, it is never cut
    """

    row: np.ndarray
    arrow: np.ndarray
    lengths: np.ndarray
    trunk: np.ndarray
    group: np.ndarray
    text: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


class Doc(NamedTuple):
    """A document of the plan: samples by number in their lane, and for a window of a long text its place in it."""

    samples: tuple[int, ...]
    epoch: int
    start: int = 0
    stop: int = 0


@dataclass
class Round:
    """`epochs` epochs from number `first`: per lane its rows of documents, spread over `steps` steps.

    heights   per lane, rows of every step; those that are missing are padding
    tokens    real tokens, per stream and lane summed;  places: tokens and padding together
    """

    first: int
    epochs: int
    steps: int
    rows: list[list[list[Doc]]]
    heights: list[int]
    tokens: int = 0
    places: int = 0
    drawn: dict[int, int] = field(default_factory=dict)  # arrow -> samples in this round
    windows: int = 0

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        return 1 - self.tokens / max(self.places, 1)

    def step(self, number: int) -> list[list[list[Doc]]]:
        """Per lane the rows of a step of this round."""
        return [rows[number * len(rows) // self.steps : (number + 1) * len(rows) // self.steps] for rows in self.rows]


@dataclass(frozen=True)
class Planner:
    """Plans rounds.

    length  tokens of a row;  height: rows of a step
    mix     arrow number -> how often it is drawn; (rows,) of each row of the table
    """

    lanes: Sequence[Lane]
    samples: Sequence[Samples]
    length: int
    height: int
    seed: int
    mix: Mapping[int, float | np.ndarray]

    def round(self, number: int, epochs: int) -> Round:
        """The round that covers epochs number * epochs and so on."""
        rows: list[list[list[Doc]]] = []
        drawn: dict[int, int] = defaultdict(int)
        tokens = windows = 0
        for index, (lane, samples) in enumerate(zip(self.lanes, self.samples, strict=True)):
            mine: list[list[Doc]] = []
            for epoch in range(number * epochs, (number + 1) * epochs):
                rng = np.random.default_rng([self.seed, 1, index, epoch])
                docs, lengths = self.documents(lane, samples, epoch, rng)
                packed = (
                    [[i] for i in rng.permutation(len(docs))] if lane.paired else pack.pack(lengths, self.length, rng)
                )
                mine += [[docs[i] for i in row] for row in packed]
                tokens += int(lengths.sum())
                windows += sum(doc.stop > 0 for doc in docs)
                for doc in docs:
                    for sample in doc.samples:
                        drawn[int(samples.arrow[sample])] += doc.start == 0
            rows.append(mine)
        total = sum(map(len, rows))
        steps = max(1, -(-total // self.height))
        heights = [-(-len(mine) // steps) for mine in rows]
        if len(rows) == 1:
            heights = [self.height]  # the same in every round: a compiled step sees one shape
        places = sum(h * steps * sum(self.widths(i)) for i, h in enumerate(heights))
        return Round(number * epochs, epochs, steps, rows, heights, tokens, places, dict(drawn), windows)

    def widths(self, lane: int) -> list[int]:
        """Tokens of a row, per stream."""
        if not self.lanes[lane].paired:
            return [self.length] * self.lanes[lane].streams
        longest = self.samples[lane].lengths.max(0) if len(self.samples[lane]) else np.array([1, 1])
        return [int(n) for n in longest]

    def documents(
        self, lane: Lane, samples: Samples, epoch: int, rng: np.random.Generator
    ) -> tuple[list[Doc], np.ndarray]:
        """An epoch's documents of one lane, and their lengths (documents, streams)."""
        chosen = self.draw(lane, samples, epoch)
        docs: list[Doc] = []
        lengths: list[Sequence[int]] = []
        long = (samples.text[chosen] > 0) & (samples.lengths[chosen].max(1) > self.length)
        for number in chosen[long].tolist():
            for start, stop in cuts(int(samples.text[number]), self.length - 2 * (lane.streams - 1), rng):
                docs.append(Doc((number,), epoch, start, stop))
                # of a single token both its sentinel and itself are asked for, and `end`: three (noise.counts)
                size = max(stop - start, 2) + 1 if lane.streams > 1 else stop - start
                lengths.append([size] * lane.streams)
        for members in _groups(samples, chosen[~long], lane):
            for doc, length in self._share(samples, members, epoch):
                docs.append(doc)
                lengths.append(length)
        return docs, np.array(lengths, np.int64).reshape(-1, lane.streams)

    def draw(self, lane: Lane, samples: Samples, epoch: int) -> np.ndarray:
        """The samples of an epoch, by number; one that is drawn twice stands there twice."""
        chosen = []
        for arrow in lane.arrows:
            mine = np.flatnonzero(samples.arrow == arrow)
            rng = np.random.default_rng([self.seed, 2, arrow])  # the same in every epoch, so that all get around
            times = self.mix.get(arrow, 1.0)
            if isinstance(times, np.ndarray):
                chosen.append(np.repeat(mine, _turns(times[samples.row[mine]], epoch, rng)))
                continue
            whole, share = divmod(times, 1.0)
            count = round(share * len(mine))
            order = rng.permutation(mine)
            start = epoch * count
            chosen += [mine] * int(whole)
            if count:
                chosen.append(order[np.arange(start, start + count) % len(mine)])
        return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)

    def _share(self, samples: Samples, members: list[int], epoch: int) -> list[tuple[Doc, Sequence[int]]]:
        lengths = samples.lengths[members]
        if len(members) == 1:
            return [(Doc((members[0],), epoch), lengths[0])]
        trunk = int(samples.trunk[members[0]])
        rest = (lengths[:, 0] - trunk).tolist()
        found = []
        for part in pack.fill(rest, self.length - trunk, members):
            size = trunk + sum(rest[i] for i in part)
            found.append((Doc(tuple(members[i] for i in part), epoch), [size]))
        return found


def _turns(times: np.ndarray, epoch: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) how often each is drawn in this epoch, so that after any number of epochs e it was e * times, within one."""
    first = rng.random(len(times))
    return (np.floor(first + (epoch + 1) * times) - np.floor(first + epoch * times)).astype(np.int64)


def _groups(samples: Samples, chosen: np.ndarray, lane: Lane) -> list[list[int]]:
    """Samples that share a beginning worth sharing, together."""
    if lane.objective != "next":
        return [[number] for number in chosen.tolist()]
    groups: dict[int, list[int]] = defaultdict(list)
    for number, group in zip(chosen.tolist(), samples.group[chosen].tolist(), strict=True):
        groups[group].append(number)
    found: list[list[int]] = []
    for members in groups.values():
        trunk = samples.trunk[members[0]]
        rest = samples.lengths[members, 0].mean() - trunk
        found += [members] if trunk >= SHARE * rest else [[number] for number in members]
    return found


def cuts(total: int, length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Windows over a text of `total` tokens, the first of a length by chance, so that each epoch cuts elsewhere."""
    edges = [0, *range(int(rng.integers(1, length + 1)), total, length), total]
    return list(pairwise(edges))
