"""From planned documents to batches: render, flatten once, keep, and put together.

Rows that cannot be rendered (a picture that does not decode) are noted in `skipped` with their file and reason and bear
no loss; when they are more than the allowed share, DataError.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from weft.arrows.grammar import Arrow
from weft.arrows.sample import Sample
from weft.arrows.vocabulary import SENTINELS
from weft.data import noise, pack
from weft.data.augment import Augment
from weft.data.batch import Batch
from weft.data.condition import Dropout, emptied
from weft.data.pack import Document, Part, Piece, Stream
from weft.data.plan import Doc, Lane, Samples
from weft.data.sources import Table
from weft.errors import DataError, WeftError
from weft.recipe import Recipe

BUDGET = 768 << 20
Rows = Sequence[Sequence[Doc]]
SHARED = 2  # leading spans of a trunk: the marker and the content of the first column


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
                    f"{len(self._broken)} of {self.rows} rows cannot be used, more than the allowed {self.share:.2%}"
                    f" (train.options.skip_share). The last: row {skip.row}, {skip.what}: {skip.reason}"
                )


class Kept(NamedTuple):
    """A sample made flat: the keys of its beginning, and the piece that is left behind what its trunk took."""

    keys: tuple[Hashable, ...]
    piece: Piece


@dataclass
class Store:
    """What is kept between steps.

    held  which media values are counted already: a picture is held once, however many pieces show it
    """

    samples: dict[tuple[int, int, int], Kept] = field(default_factory=dict)
    trunks: dict[tuple[Hashable, ...], Piece] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    bytes: int = 0


class Assembler:
    """Makes batches of one table's rows.

    renderer   turns (record, arrow number) into a Sample, and knows the vocabulary
    arrows     the run's arrows; their weights are the loss weights of their tokens
    budget     bytes of flattened samples and of the media in them that are kept between steps
    """

    def __init__(
        self,
        table: Table,
        renderer: Any,
        *,
        arrows: Sequence[Arrow],
        skips: Skips,
        recipe: Recipe,
        budget: int = BUDGET,
    ) -> None:
        self.table, self.renderer, self.arrows, self.skips = table, renderer, list(arrows), skips
        self.seed, self.taught = recipe.seed, bool(recipe.model.guide.teacher)
        self.weights = [float(arrow.weight) for arrow in arrows]
        self.augment = Augment(recipe)
        self.dropout = Dropout(recipe.train.options.condition_dropout, self.arrows, renderer.columns, recipe.seed)
        self.budget = budget
        self._store = Store()

    # ------------------------------------------------------------------------------------------------ samples

    def render(self, row: int, arrow: int) -> Sample | None:
        """The sample, or None where the row cannot be used, which is then noted."""
        try:
            record = self.table.row(row, self.arrows[arrow].columns)
            return self.renderer.render(record, arrow, row=row)
        except DataError as error:
            self.broken(row, arrow, error)
            return None

    def broken(self, row: int, arrow: int, error: DataError) -> None:
        """Note a row that an arrow cannot use."""
        cells = {name: self.table.column(name)[row] for name in self.arrows[arrow].columns}
        media = {name: cell for name, cell in cells.items() if self.renderer.columns[name].name in ("image", "audio")}
        what = ", ".join(f"{name} {_short(cell)}" for name, cell in (media or cells).items())
        self.skips.note(Skip(row, str(self.arrows[arrow]), what, str(error)))

    def keep(self, row: int, arrow: int, trunk: int) -> Kept | None:
        """The sample without its `trunk` leading spans, made flat; they are kept too."""
        store = self._store
        known = store.samples.get((row, arrow, trunk))
        if known is not None:
            return known
        sample = self.render(row, arrow)
        if sample is None:
            return None
        known = Kept(pack.leading(sample)[:trunk], pack.flatten(sample.spans[trunk:])[0])
        if len(known.keys) < trunk:
            raise WeftError(
                f"'{self.arrows[arrow]}', row {row}: its beginning was to be shared but the renderer keyed none."
            )
        self._remember(store.samples, (row, arrow, trunk), known, known.piece)
        if trunk and known.keys not in store.trunks:
            piece = pack.flatten(sample.spans[:trunk])[0]
            self._remember(store.trunks, known.keys, piece, piece)
        return known

    @property
    def kept(self) -> int:
        """Bytes of samples and of the media in them that are kept now, at most `budget`."""
        return self._store.bytes

    def forget(self) -> None:
        """Render everything anew."""
        self._store = Store()

    def _remember(self, where: dict, key: Hashable, value: Any, piece: Piece) -> None:
        store = self._store
        new = {id(item.values): item.values.nbytes for item in piece.items if id(item.values) not in store.held}
        size = piece.nbytes + sum(new.values())
        if store.bytes + size > self.budget:  # it starts anew: what is in use comes back
            for kept in (store.samples, store.trunks, store.held):
                kept.clear()
            store.bytes = 0
        where[key] = value
        store.held.update(new)
        store.bytes += size

    # ------------------------------------------------------------------------------------------------ documents

    def next(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """One document for next-token prediction: a trunk and branches, a lone sample, or a window of one."""
        trunk = SHARED if len(pairs) > 1 else 0
        found = [(pair, self.keep(*pair, trunk)) for pair in pairs]
        alive = [(row, arrow, kept) for (row, arrow), kept in found if kept is not None]
        if not alive:
            return []
        keys = alive[0][2].keys
        if any(kept.keys != keys for *_, kept in alive):
            raise WeftError(f"Rows {[row for row, _ in pairs]} were to share their beginning, which differs: {keys}.")
        root = self._store.trunks[keys] if trunk else None
        pieces = [kept.piece for *_, kept in alive]
        if doc.stop:
            pieces = [pack.window(piece, doc.start, doc.stop) for piece in pieces]
        parts = pack.tree(root, pieces, [arrow for _, arrow, _ in alive], self.weights)
        rows = iter([row for row, *_ in alive])
        return [part if part.arrow < 0 else part._replace(row=next(rows)) for part in parts]

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
        return [Part(piece, 0.0, 0, arrow, self.weights[arrow], row)]

    def prefer(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """A prompt as the trunk, the chosen answer as its first branch and the rejected one as its second."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return []
        trunk = sample.part("input")
        answers = [
            pack.flatten([span for span in sample.part("output") if span.column == column.name])[0]
            for column in self.arrows[arrow].outputs
        ]
        document = pack.tree(pack.flatten(trunk)[0] if trunk else None, answers, [arrow, arrow], self.weights)
        return [part._replace(row=row) if part.branch else part for part in document]

    def classify(self, pairs: list[tuple[int, int]], doc: Doc) -> Document:
        """The inputs of one row; its label's number at the first token."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return []
        piece = pack.flatten(sample.part("input"))[0]
        whole, loss = pack.flatten(sample.spans)
        labels = self.renderer.vocabulary.block(f"label:{self.arrows[arrow].output}")
        targets = np.full(len(piece), pack.UNTRAINED, np.int32)
        targets[0] = whole.ids[loss][0] - labels.start
        piece = Piece(piece.ids, targets, piece.positions, piece.items, piece.advance)
        return [Part(piece, 0.0, 0, arrow, self.weights[arrow], row)]

    def two(self, pairs: list[tuple[int, int]], doc: Doc, objective: str) -> tuple[Document, Document]:
        """(tokens, source) of one row: the decoder's and the encoder's side, or the two sides of `a <-> b`."""
        (row, arrow) = pairs[0]
        sample = self.render(row, arrow)
        if sample is None:
            return [], []
        weight = self.weights[arrow]
        place = lambda piece: [Part(piece, 0.0, 0, arrow, weight, row)]
        if objective == "contrastive":
            return place(pack.flatten(sample.part("input"))[0]), place(pack.flatten(sample.part("output"))[0])
        places = None
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
            if output.positions is not None:
                places = np.pad(output.positions[:-1] + 1, ((1, 0), (0, 0)))  # one on, behind the token that begins
        given = np.concatenate([[self.renderer.vocabulary.pad], ids[:-1]]).astype(np.int32)  # Raffel et al. 2020
        targets = np.where(loss, ids, pack.UNTRAINED).astype(np.int32)
        return place(Piece(given, targets, places, advance=float(len(given)))), place(source)

    def _rng(self, row: int, arrow: int, doc: Doc) -> np.random.Generator:
        return np.random.default_rng([self.seed, 3, doc.epoch, row, arrow, doc.start])

    # ------------------------------------------------------------------------------------------------ batches

    def batch(
        self, lane: Lane, samples: Samples, rows: Rows, height: int, widths: Sequence[int], augment: bool = False
    ) -> Batch:
        """Planned rows of one lane -> one batch of `height` rows. Its `total` is its own; the caller sums a step's.

        widths   tokens of a row, per stream;  augment: whether media are moved and inputs left out
        """
        first: list[list[Document]] = []
        second: list[list[Document]] = []
        used: list[int] = []
        for row in rows:
            documents, sources = [], []
            for doc in row:
                pairs = [(int(samples.row[i]), int(samples.arrow[i])) for i in doc.samples]
                used += [number for number, _ in pairs]
                if lane.streams == 2:
                    document, source = self.two(pairs, doc, lane.objective)
                else:
                    document, source = getattr(self, lane.objective)(pairs, doc), []
                if augment and self.dropout.drops(document, doc.epoch):
                    document, source = emptied(document), emptied(source)
                if augment and self.augment.kinds:
                    turn = self.seed * 1_000_003 + doc.epoch
                    document, source = (self.augment.document(side, turn) for side in (document, source))
                documents.append(document)
                sources.append(source)
            first.append(documents)
            second.append(sources)
        stream = pack.collate(first, height, widths[0])
        batch = Batch(
            stream.tokens, stream.targets, stream.weights, stream.arrow, stream.row, total=stream.trained,
            real=stream.real, rows=used, objective=lane.objective, head=lane.head,
        )  # fmt: skip
        if lane.streams == 2:
            other = pack.collate(second, height, widths[1])
            batch.source, batch.real = other.tokens, stream.real + other.real
        if lane.objective == "prefer":  # what is counted are pairs
            batch.total = sum(document[-1].weight for documents in first for document in documents if document)
        elif self.taught and batch.targets is not None:
            batch.objective = "distill"
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
    piece, loss = pack.flatten(sample.spans)
    content = piece.ids[loss]
    return piece.ids[~loss], content[:-1] if len(content) and content[-1] == end else content


def plain(ids: np.ndarray) -> Piece:
    """A piece of ids alone."""
    return Piece(ids.astype(np.int32), advance=float(len(ids)))


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str | Path) else type(value).__name__
    return text if len(text) <= 200 else text[:197] + "..."
