"""From planned documents to batches: render, flatten once, keep, and put together.

Rows that cannot be rendered (a picture that does not decode) are noted in `skipped` with their file and reason and bear no
loss; when they are more than the allowed share, DataError.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from weft.arrows.sample import Sample
from weft.arrows.vocabulary import SENTINELS
from weft.data import noise, pack
from weft.data.batch import Batch
from weft.data.pack import Document, Part, Piece, Stream
from weft.data.plan import Doc, Lane, Samples
from weft.data.sources import Table
from weft.errors import DataError


@dataclass(frozen=True)
class Skip:
    """A row that an arrow could not use: `what` names the cell, `reason` says why."""

    row: int
    arrow: str
    what: str
    reason: str


class Skips:
    """The rows left out so far, each once. Raises DataError when the undecodable ones pass `share` of `rows`."""

    def __init__(self, rows: int, share: float) -> None:
        self.found: dict[tuple[int, str], Skip] = {}
        self.rows, self.share = rows, share
        self._broken: set[int] = set()

    def note(self, skip: Skip, broken: bool = True) -> None:
        """Record one. `broken`: it counts towards the share (a row that is merely too long does not)."""
        if (skip.row, skip.arrow) in self.found:
            return
        self.found[skip.row, skip.arrow] = skip
        if broken:
            self._broken.add(skip.row)
            if len(self._broken) > self.share * self.rows:
                raise DataError(
                    f"{len(self._broken)} of {self.rows} rows cannot be used, more than the allowed share of {self.share:.2%}"
                    f" (train.options.skip_share). The last: row {skip.row}, {skip.what}: {skip.reason}"
                )

    def write(self, path: str | Path) -> None:
        """One JSON line each, in the order of the rows."""
        lines = [json.dumps(asdict(self.found[key]), ensure_ascii=False) for key in sorted(self.found)]
        Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


class Entry(NamedTuple):
    """What is kept of a sample: the keys of its leading spans, and its pieces by how many spans the trunk took."""

    keys: tuple[Hashable, ...]
    pieces: dict[int, Piece]


class Assembler:
    """Makes batches of one table's rows.

    renderer   turns (record, arrow number) into a Sample, and knows the vocabulary
    arrows     the run's arrows; their weights are the loss weights of their tokens
    budget     bytes of flattened samples and of the media in them that are kept between steps
    """

    def __init__(
        self, table: Table, renderer: Any, *, arrows: Sequence[Any], skips: Skips, seed: int, budget: int = 768 << 20
    ) -> None:
        self.table, self.renderer, self.arrows, self.skips, self.seed = table, renderer, list(arrows), skips, seed
        self.weights = [float(arrow.weight) for arrow in arrows]
        self._entries: dict[tuple[int, int], Entry] = {}
        self._trunks: dict[tuple[Hashable, ...], Piece] = {}
        self._bytes, self._budget = 0, budget
        self._held: set[int] = set()

    # ------------------------------------------------------------------------------------------------ samples

    def render(self, row: int, arrow: int) -> Sample | None:
        """The sample, or None where the row cannot be used, which is then noted."""
        record = self.table.row(row)
        try:
            return self.renderer.render(record, arrow, row=row)
        except DataError as error:
            names = self.arrows[arrow].columns
            media = [name for name in names if not isinstance(record.get(name), str)]
            what = ", ".join(f"{name} {_short(self.table.column(name)[row])}" for name in media or names)
            self.skips.note(Skip(row, str(self.arrows[arrow]), what, str(error)))
            return None

    def entry(self, row: int, arrow: int, trunk: int = 0) -> Entry | None:
        """The kept sample, with the piece that is left when `trunk` leading spans are taken off."""
        known = self._entries.get((row, arrow))
        if known is not None and (trunk in known.pieces or trunk < 0):
            return known
        sample = self.render(row, arrow)
        if sample is None:
            return None
        if known is None:
            known = Entry(pack.leading(sample), {})
        if trunk >= 0:
            known.pieces[trunk] = pack.flatten(sample.spans[trunk:])[0]
            if trunk and known.keys[:trunk] not in self._trunks:
                self._trunks[known.keys[:trunk]] = piece = pack.flatten(sample.spans[:trunk])[0]
                self._count(piece)
            self._count(known.pieces[trunk])
        if self._bytes < self._budget:
            self._entries[row, arrow] = known
        return known

    def _count(self, piece: Piece) -> None:
        self._bytes += piece.nbytes
        for item in piece.items:  # a picture is held once, however many pieces show it
            if id(item.values) not in self._held:
                self._held.add(id(item.values))
                self._bytes += item.values.nbytes
        if self._bytes > self._budget:  # start anew: what is in use comes back by itself
            self._entries, self._trunks, self._held, self._bytes = {}, {}, set(), 0

    # ------------------------------------------------------------------------------------------------ documents

    def next(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """One document for next-token prediction: a trunk and branches, a lone sample, or a window of one."""
        entries = [self.entry(row, arrow, 0 if len(pairs) == 1 else -1) for row, arrow in pairs]
        alive = [(pair, entry) for pair, entry in zip(pairs, entries, strict=True) if entry is not None]
        if not alive:
            return []
        trunk = pack.common([entry.keys for _, entry in alive]) if len(alive) > 1 else 0
        pieces = [(self.entry(row, arrow, trunk).pieces[trunk], arrow) for (row, arrow), _ in alive]
        if doc.stop:
            pieces = [(pack.window(piece, doc.start, doc.stop), arrow) for piece, arrow in pieces]
        root = self._trunk(alive[0], trunk) if trunk else None
        return pack.tree(root, [piece for piece, _ in pieces], [arrow for _, arrow in pieces], self.weights)

    def _trunk(self, first: tuple[tuple[int, int], Entry], spans: int) -> Piece:
        (row, arrow), entry = first
        known = self._trunks.get(entry.keys[:spans])
        if known is None:
            sample = self.render(row, arrow)
            known = pack.flatten(sample.spans[:spans])[0]
            if spans:
                self._trunks[entry.keys[:spans]] = known
                self._count(known)
        return known

    def masked(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """One document with hidden tokens."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return []
        piece, loss = pack.flatten(sample.spans)
        words = self.renderer.vocabulary
        loss &= piece.ids != words.end
        if doc.stop:
            piece, loss = pack.window(piece, doc.start, doc.stop), loss[doc.start : doc.stop]
        piece = noise.masked(piece, loss, self._rng(row, arrow, doc), words.mask, words.block("text"))
        return [Part(piece, 0.0, 0, arrow, self.weights[arrow])]

    def classify(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """The inputs of one row; its label's number at the first token."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return []
        piece = pack.flatten(sample.part("input"))[0]
        label = next(span for span in sample.spans if span.loss)
        targets = np.full(len(piece), pack.UNTRAINED, np.int32)
        targets[0] = int(label.ids[0]) - self.renderer.vocabulary.block(f"label:{label.column}").start
        piece = Piece(piece.ids, targets, piece.positions, piece.items, piece.advance)
        return [Part(piece, 0.0, 0, arrow, self.weights[arrow])]

    def two(self, pairs: list[tuple[int, int]], doc: Doc, lane: Lane) -> tuple[Document, Document]:
        """(tokens, source) of one row: the decoder's and the encoder's side, or the two sides of `a <-> b`."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return [], []
        weight = self.weights[arrow]
        place = lambda piece: [Part(piece, 0.0, 0, arrow, weight)]
        if lane.objective == "contrastive":
            return place(pack.flatten(sample.part("input"))[0]), place(pack.flatten(sample.part("output"))[0])
        if self.arrows[arrow].kind == "fill":
            marker, content = content_of(sample, self.renderer.vocabulary.end)
            if doc.stop:
                content = content[doc.start : doc.stop]
            words = self.renderer.vocabulary
            sentinels = range(words.sentinel(0), words.sentinel(0) + SENTINELS)
            hidden, shown = noise.corrupted(content, self._rng(row, arrow, doc), sentinels, words.end)
            source, ids, loss = plain(np.concatenate([marker, hidden])), shown, np.ones(len(shown), bool)
        else:
            source = pack.flatten(sample.part("input"))[0]
            output, loss = pack.flatten(sample.part("output"))
            ids = output.ids
        given = np.concatenate([[self.renderer.vocabulary.pad], ids[:-1]]).astype(np.int32)  # Raffel et al. 2020
        targets = np.where(loss, ids, pack.UNTRAINED).astype(np.int32)
        return place(Piece(given, targets, advance=float(len(given)))), place(source)

    def _rng(self, row: int, arrow: int, doc: Doc) -> np.random.Generator:
        return np.random.default_rng([self.seed, 3, doc.epoch, row, arrow, doc.start])

    # ------------------------------------------------------------------------------------------------ batches

    def batch(
        self, lane: Lane, samples: Samples, rows: Sequence[Sequence[Doc]], height: int, widths: list[int]
    ) -> Batch:
        """Planned rows of one lane -> one batch of `height` rows. Its `total` is its own; the caller sums over a step."""
        first: list[list[Document]] = []
        second: list[list[Document]] = []
        used: list[int] = []
        for row in rows:
            documents, sources = [], []
            for doc in row:
                pairs = [(int(samples.row[i]), int(samples.arrow[i])) for i in doc.samples]
                used += [number for number, _ in pairs]
                if lane.streams == 2:
                    document, source = self.two(pairs, doc, lane)
                    sources.append(source)
                else:
                    document = getattr(self, lane.objective)(pairs, doc)
                documents.append(document)
            first.append(documents)
            second.append(sources)
        stream = pack.collate(first, height, widths[0])
        batch = Batch(
            stream.tokens, stream.targets, stream.weights, stream.arrow, total=stream.trained, real=stream.real, rows=used,
            objective=lane.objective, head=lane.head,
        )  # fmt: skip
        if lane.streams == 2:
            other = pack.collate(second, height, widths[1])
            batch.source, batch.real = other.tokens, stream.real + other.real
        if lane.paired:
            _pairs(batch, stream, first)
        return batch


def _pairs(batch: Batch, stream: Stream, rows: list[list[Document]]) -> None:
    """For `a <-> b` nothing is predicted, and each pair's weight stands at its first token."""
    batch.targets = None
    batch.weights = torch.zeros_like(stream.weights)
    for number, row in enumerate(rows):
        if row and row[0]:
            batch.weights[number, 0] = row[0][0].weight
    batch.total = float(batch.weights.sum())


def content_of(sample: Sample, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a `~text` sample: the untrained ids before the text, and the text's ids without a closing `end`."""
    before = [span.ids for span in sample.spans if not span.loss]
    content = np.concatenate([span.ids for span in sample.spans if span.loss])
    return np.concatenate([*before, []]).astype(np.int64), content[:-1] if len(content) and content[
        -1
    ] == end else content


def plain(ids: np.ndarray) -> Piece:
    """A piece of ids alone."""
    return Piece(ids.astype(np.int32), advance=float(len(ids)))


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str | Path) else type(value).__name__
    return text if len(text) <= 200 else text[:197] + "..."
