"""How one arrow is measured, by the kind of what it produces.

label, text     produced values against the row's; guesses of baselines.py; the model with its pictures exchanged
image, audio    what a judge reads or hears; real items, plain and through the codes, as ceilings;
                random codes and the item of the nearest training row beside
-> column       nats of the row's own tokens; an n-gram model
~text           share of hidden tokens found
chosen > other  how often the chosen answer is the likelier one, beside the model before training
a <-> b         rank of the partner
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np

from weft.arrows.grammar import Arrow
from weft.arrows.media import Cache, identify
from weft.arrows.resolve import resolve
from weft.data.sources import content
from weft.errors import DataError
from weft.evaluate import baselines, metrics
from weft.evaluate.baselines import MEDIA, Describer, Rows
from weft.evaluate.judge import Judges, readable, reading, recordings
from weft.evaluate.ngram import NGram
from weft.evaluate.scoring import VERSION, Parts, digest
from weft.evaluate.show import Samples, chosen
from weft.generate.encoded import encoders, vector
from weft.generate.predict import Predictor
from weft.generate.reread import SIDES, SURE
from weft.generate.sample import Sampling
from weft.generate.teach import teach
from weft.run import SKIPPED, read_lines

OPENED = 256 << 20  # bytes of decoded pictures and sounds that are kept
SHUFFLED = 1000  # rows on which the model is run again with media exchanged
CEILING = 300  # real items that are put through the codes
NEIGHBOURS = 4000  # training rows that neighbours are looked for among
TEXTS = 20_000  # training texts of the n-gram model


@dataclass
class Measured:
    """The table's rows that were measured, their lines, lines of each baseline, further scores, notes for people, and
    what it all depends on.

    chance    metric -> {baseline: value}, for baselines that have no lines of their own
    produced  (row number within `rows`, value) to be shown
    """

    kind: str
    parts: Parts
    headline: str
    rows: np.ndarray
    lines: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    extra: list[metrics.Score] = field(default_factory=list)
    chance: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    produced: list[tuple[int, Any]] = field(default_factory=list)


class Bench:
    """A run, a split of its table, and what is shared between the arrows that are measured on it."""

    def __init__(
        self, predictor: Predictor, split: str, *, judge: bool, say: Callable[[str], None],
        before: Predictor | None = None,
    ) -> None:  # fmt: skip
        self.predictor, self.renderer, self.run = predictor, predictor.renderer, predictor.run
        self.table, self.split, self.judge, self.say = self.run.table, split, judge, say
        self.types, self.arrows = self.renderer.columns, self.renderer.arrows
        self.seed = self.run.recipe.seed
        self._opened = Cache(OPENED)
        self.describe = Describer(self.read)
        own = encoders(predictor.model)
        encode = {
            kind: partial(vector, encoder, self.renderer, kind, half=predictor.half) for kind, encoder in own.items()
        }
        self.encoded = Describer(self.read, encode) if encode else None
        self.before = before
        self.judges = Judges(
            self.run.path / "judges", self.table, self._whole(self._of("train")).tolist(), self.read, seed=self.seed
        )

    def _of(self, split: str) -> np.ndarray:
        return np.flatnonzero(np.asarray(self.run.split) == split)

    def _whole(self, rows: np.ndarray) -> np.ndarray:
        """The rows without those that training could not use: they are of no use to judges and baselines either."""
        path = self.run.path / SKIPPED
        bad = [line["row"] for line in read_lines(path)] if path.is_file() else []
        return rows[~np.isin(rows, bad)]

    def read(self, kind: str, cell: Any) -> np.ndarray:
        """A real item: (H,W,3) uint8 or (T,M) log-mel. Judges, baselines and ceilings look at the same ones."""
        from weft.modalities.audio import log_mel, open_audio
        from weft.modalities.image import open_image

        key = (kind, identify(cell)[1])
        if (known := self._opened.get(key)) is None:
            known = open_image(cell) if kind == "image" else log_mel(open_audio(cell), self.renderer.audio.mels)
            self._opened.keep(key, known, known.nbytes)
        return known

    def rows(self, number: int, limit: int | None, split: str = "") -> np.ndarray:
        """Table rows of the split that fill all columns of an arrow; at most `limit`, drawn with the seed."""
        rows = self._of(split or self.split)
        for column in self.arrows[number].columns:
            rows = rows[self.table.filled(column)[rows]]
        rows = self._whole(rows) if split == "train" else rows
        if limit and len(rows) > limit:
            rows = np.sort(np.random.default_rng(self.seed).permutation(rows)[:limit])
        return rows

    def records(self, rows: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [self.table.row(int(i), columns) for i in rows]

    def training(self, number: int) -> Rows:
        """The training rows of an arrow, cells as they stand in the table: media may be relative paths."""
        arrow, rows = self.arrows[number], self.rows(number, None, "train").tolist()
        cells = [[self.table.column(column)[i] for i in rows] for column in arrow.columns]
        return self._rows(arrow, [dict(zip(arrow.columns, one, strict=True)) for one in zip(*cells, strict=True)])

    def neighbourhood(self, number: int) -> Rows:
        """Training rows of an arrow to be looked at: some of them, drawn with the seed."""
        arrow = self.arrows[number]
        return self._rows(arrow, self.records(self.rows(number, NEIGHBOURS, "train"), arrow.columns))

    def _rows(self, arrow: Arrow, records: list[dict[str, Any]]) -> Rows:
        return Rows(records, tuple(column.name for column in arrow.inputs), arrow.output, self.types)

    # ------------------------------------------------------------------------------------------------ one arrow

    def measure(self, number: int, rows: np.ndarray) -> Measured:
        """All of an arrow's numbers on these rows of the table."""
        arrow = self.arrows[number]
        rows, notes = self._sound(number, rows)
        taught = {name: name for name in ("model", "fill", "align", "prefer")}
        kind = taught.get(arrow.kind, self.types[arrow.output].name)
        kind = "model" if kind == "messages" else kind  # its replies, token by token
        headline = resolve(arrow, self.types, self.predictor.model.kind).metric
        measured = Measured(kind, self._parts(arrow, rows, kind), headline, rows, notes=notes)
        {
            "label": self._written, "text": self._written, "image": self._made, "audio": self._made,
            "model": self._modelled, "fill": self._filled, "align": self._aligned, "prefer": self._preferred,
        }[kind](number, rows, measured)  # fmt: skip
        return measured

    def _sound(self, number: int, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The rows that can be rendered, and a note on those that cannot."""
        good, faults = [], []
        for row in rows.tolist():
            fault = self._fault(number, row)
            faults.append(fault) if fault else good.append(row)
        if not good:
            raise DataError(f"None of {len(rows)} rows can be used. The first: {faults[0]}")
        notes = [f"{len(faults)} of {len(rows)} rows cannot be used, the first: {faults[0]}"] if faults else []
        return np.array(good), notes

    def _fault(self, number: int, row: int) -> str:
        """Why a row cannot be measured; "": it can."""
        arrow = self.arrows[number]
        kind = self.types[arrow.output].name
        try:
            record = self.table.row(row, arrow.columns)
            if arrow.kind == "produce":
                self.renderer.prompt(record, number, row=row)
                if kind in MEDIA:
                    self.read(kind, record[arrow.output])
            else:
                self.renderer.render(record, number, row=row)
            if arrow.kind == "prefer" and (long := self.renderer.length(record, number)) > self.predictor.length:
                return f"row {row}: {long} tokens; the context (train.length) is {self.predictor.length}"
        except DataError as error:
            return str(error)
        return ""

    def _parts(self, arrow: Arrow, rows: np.ndarray, kind: str) -> Parts:
        cells = [cell for column in arrow.columns for cell in self.table.identities(column, rows.tolist())]
        prompt = [
            arrow.task,
            *(f"{c} {self.types[c].name} {getattr(self.types[c], 'values', '')}" for c in arrow.columns),
        ]
        decoding = "teacher-forced" if kind in ("model", "fill", "align", "prefer") else told(self._decoding(arrow))
        return Parts(digest(cells), digest(prompt), digest([f"{kind} {VERSION}"]), digest([decoding]))

    def _decoding(self, arrow: Arrow) -> Sampling:
        return self.predictor.default(self.arrows.index(arrow))

    # ------------------------------------------------------------------------------------------------ label, text

    def _written(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        arrow = self.arrows[number]
        here = self._rows(arrow, self.records(rows, arrow.columns))
        expected = [str(value) for value in here.outputs]
        answers = self.predictor.produce(number, here.records, rows=[int(i) for i in rows])
        cut = sum(not answer.finished for answer in answers)
        if cut:
            measured.notes.append(
                f"{cut} of {len(rows)} answers were cut at the context of {self.predictor.length} tokens"
            )
        measured.lines = self._lines(rows, expected, [answer.value for answer in answers])
        measured.produced = [(i, answers[i].value) for i in chosen(len(rows))]
        guesses = baselines.guesses(self.training(number), self.neighbourhood(number), here, self.describe)
        for name, guess in guesses.items():
            measured.baselines[name] = self._lines(rows, expected, [str(value) for value in guess])
        self._pretrained(number, here, measured)
        if self._decoding(arrow).composed:
            values = [answer.value for answer in self.predictor.produce(number, here.records, Sampling())]
            measured.baselines["directly"] = self._lines(rows, expected, values)
        for column in arrow.inputs:
            if len(arrow.inputs) > 1 and self.types[column.name].name in MEDIA:
                some = np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:SHUFFLED])
                mixed = self._exchanged([here.records[i] for i in some], column.name)
                values = [answer.value for answer in self.predictor.produce(number, mixed)]
                lines = self._lines(rows[some], [expected[i] for i in some], values)
                measured.baselines[f"shuffled {column.name}"] = lines

    def _pretrained(self, number: int, here: Rows, measured: Measured) -> None:
        """What its pretrained parts can do without having been trained together."""
        arrow, expected = self.arrows[number], [str(value) for value in here.outputs]
        seen = {self.types[column.name].name for column in arrow.inputs}
        if self.encoded is not None and seen & set(self.encoded.encode):
            fewer = self.neighbourhood(number)
            nearest = baselines.neighbours(fewer, here, self.encoded)
            guess = [str(fewer.records[i][arrow.output]) for i in nearest]
            measured.baselines["nearest neighbour (its encoders)"] = self._lines(measured.rows, expected, guess)
        if self.before is not None:
            answers = [str(one.value) for one in self.before.produce(number, here.records)]
            measured.baselines["before training"] = self._lines(measured.rows, expected, answers)

    def _lines(self, rows: np.ndarray, expected: Sequence[str], produced: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"row": int(row), "expected": want, "produced": got}
            for row, want, got in zip(rows, expected, produced, strict=True)
        ]

    def _exchanged(self, records: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
        """The records with one column's cells moved on in a seeded order, so that none keeps its own place."""
        order = np.random.default_rng(self.seed).permutation(len(records))
        moved = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return [record | {column: records[moved[i]][column]} for i, record in enumerate(records)]

    # ------------------------------------------------------------------------------------------------ image, audio

    def _made(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        arrow, kind = self.arrows[number], measured.kind
        here = self._rows(arrow, self.records(rows, arrow.columns))
        answers = self.predictor.produce(number, here.records, rows=[int(i) for i in rows])
        measured.produced = [(i, answers[i].value) for i in chosen(len(rows))]
        cells = here.outputs
        some = chosen(len(rows), CEILING)
        real = [self.read(kind, cells[i]) for i in some]
        coded = self._through(kind, real)
        same = [self._as_coded(kind, item) for item in real]
        fitted = [c[: len(s)] for s, c in zip(same, coded, strict=True)]  # a sound's last code may reach past its end
        measured.extra.append(metrics.reconstruction(same, fitted, scale=255.0 if kind == "image" else 1.0))
        judging = self._judging(number, measured) if self.judge and readable(arrow, self.types) else None
        if judging is None:
            measured.headline = measured.extra[0].metric
            why = "no judge was asked for" if not self.judge else "no judge can tell what it shows"
            measured.notes.append(f"{why}: only the codec's reconstruction of real items is measured")
            return
        asked, judged = judging
        wanted = [asked(record) for record in here.records]
        field_of = "read" if kind == "image" else "heard"

        def lines(items: Sequence[np.ndarray], which: Sequence[int]) -> list[dict[str, Any]]:
            found = judged(items)
            return [
                {"row": int(rows[i]), "expected": wanted[i], field_of: said}
                for i, said in zip(which, found, strict=True)
            ]

        everything = range(len(rows))
        measured.lines = lines([self._heard(kind, answer.value) for answer in answers], everything)
        measured.baselines[f"real {_plural(kind)}"] = lines([self.read(kind, cell) for cell in cells], everything)
        measured.baselines["real, through the codes"] = lines([self._again(kind, item) for item in coded], some)
        train = self.neighbourhood(number)
        nearest = baselines.neighbours(train, here, self.describe)
        items = [self.read(kind, train.records[i][arrow.output]) for i in nearest]
        measured.baselines["nearest neighbour"] = lines(items, everything)
        if kind == "image":
            measured.baselines["random codes"] = lines(self._random(arrow.output, len(rows)), everything)

    def _judging(self, number: int, measured: Measured) -> tuple[Callable, Callable] | None:
        """(what a record asks for, what a judge finds in items); None where there can be no judge."""
        arrow = self.arrows[number]
        if measured.kind == "image":
            found = self.judges.image(arrow)
            if found is None:
                return None
            judge, key = found
            asked, judged, name = (lambda record: reading(record, arrow)), judge.read, "image"
        else:
            pairs = recordings(self.arrows, self.types)
            if not pairs:
                return None
            judge, key = self.judges.speech(pairs)
            asked, judged, name = (lambda record: str(record[arrow.inputs[0].name])), judge.hear, "speech"
        measured.parts = Parts(
            measured.parts.data, measured.parts.prompt, digest([measured.parts.scorer, key]), measured.parts.decoding
        )
        for trained, seconds in self.judges.seconds.items():
            if trained.startswith(name):
                measured.notes.append(f"the judge was trained on real training rows in {seconds} s")
        return asked, judged

    def _through(self, kind: str, real: Sequence[np.ndarray]) -> list[np.ndarray]:
        codec = self.renderer.codecs[kind]
        return codec.decode(codec.encode(list(real)))

    def _as_coded(self, kind: str, item: np.ndarray) -> np.ndarray:
        """A real item in the shape that the codec gives back."""
        from weft.modalities.image import square

        return square(item, self.renderer.codecs[kind].settings["size"]) if kind == "image" else item

    def _again(self, kind: str, item: np.ndarray) -> np.ndarray:
        """A decoded item as a judge meets produced ones: sound goes through a waveform."""
        from weft.modalities.audio import to_wave

        return item if kind == "image" else self._heard(kind, to_wave(item))

    def _heard(self, kind: str, value: np.ndarray) -> np.ndarray:
        """A produced value as a judge takes it: (H,W,3), or the log-mel of a waveform."""
        from weft.modalities.audio import log_mel

        if kind == "image":
            return value
        mels = self.renderer.audio.mels
        return log_mel(value, mels) if len(value) else np.zeros((0, mels), np.float32)

    def _random(self, column: str, count: int) -> list[np.ndarray]:
        """Pictures of codes drawn uniformly."""
        legal = self.renderer.legal(column)
        ids = np.flatnonzero(legal.mask)
        drawn = np.random.default_rng(self.seed).choice(ids, (count, legal.count or 1))
        return self.renderer.values(column, list(drawn))

    # ------------------------------------------------------------------------------------------------ the others

    def _modelled(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        column = self.arrows[number].output
        values = [record[column] for record in self.records(rows, (column,))]
        written = [len(str(v).encode()) if self.types[column].name == "text" else 0 for v in values]
        found = teach(self.predictor, self.table, rows.tolist(), number)
        measured.lines = _modelled_lines(rows, found[:, 0], found[:, 2], written)
        ids = [
            self._ids(number, row) for row in self.rows(number, TEXTS, "train").tolist() if not self._fault(number, row)
        ]
        counted = NGram(ids, self.renderer.vocabulary.size)
        nats = np.array([counted.nats(self._ids(number, int(row))) for row in rows])
        measured.baselines["3-gram (Kneser-Ney)"] = _modelled_lines(rows, nats, found[:, 2], written)

    def _ids(self, number: int, row: int) -> list[int]:
        """The trained ids of a row."""
        sample = self.renderer.render(self.table.row(row, self.arrows[number].columns), number, row=row)
        return np.concatenate([span.ids for span in sample.spans if span.loss and span.ids is not None]).tolist()

    def _filled(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        found = teach(self.predictor, self.table, rows.tolist(), number)
        pairs = zip(rows, found.tolist(), strict=True)
        measured.lines = [{"row": int(row), "right": right, "hidden": hidden} for row, (_, right, hidden) in pairs]

    def _preferred(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        """Two answers to a prompt, by the model and by what it started from."""
        if self.before is None:
            self.before = Predictor(self.run, self.run.start(str(self.predictor.device)))
        found = teach(self.predictor, self.table, rows.tolist(), number)
        start = -teach(self.before, self.table, rows.tolist(), number)[..., 0]
        measured.lines = _pairs(rows, -found[..., 0], start)
        measured.baselines["before training"] = _pairs(rows, start)
        measured.baselines["the shorter one"] = _pairs(rows, -found[..., 2])

    def _aligned(self, number: int, rows: np.ndarray, measured: Measured) -> None:
        arrow = self.arrows[number]
        records = self.records(rows, arrow.columns)
        left, right = (self.predictor.embed(number, records, side) for side in ("left", "right"))
        rank = metrics.ranks(left, right, [content(record[arrow.output]) for record in records])
        measured.lines = [{"row": int(row), "rank": int(r)} for row, r in zip(rows, rank, strict=True)]
        measured.chance = {"recall@1": {"chance": 1 / len(rows)}, "recall@5": {"chance": min(1.0, 5 / len(rows))}}

    # ------------------------------------------------------------------------------------------------ to be shown

    def show(self, samples: Samples, number: int, measured: Measured) -> None:
        """A few rows for the report."""
        arrow = self.arrows[number]
        kind = lambda column: self.types[column].name
        for place, value in measured.produced:
            record = self.table.row(int(measured.rows[place]), arrow.columns)
            cells = {column.name: (kind(column.name), record[column.name]) for column in arrow.inputs}
            output = kind(arrow.output)
            samples.add(str(arrow), cells, (output, record[arrow.output]), (output, value))


def _modelled_lines(rows: np.ndarray, nats: np.ndarray, tokens: np.ndarray, written: list[int]) -> list[dict[str, Any]]:
    return [
        {"row": int(row), "nats": float(n), "tokens": int(t), "bytes": b}
        for row, n, t, b in zip(rows, nats, tokens, written, strict=True)
    ]


def _pairs(rows: np.ndarray, log_p: np.ndarray, start: np.ndarray | None = None) -> list[dict[str, Any]]:
    """(n,2) log probabilities of the chosen and the rejected answers as lines."""
    lines = [{"row": int(row), "chosen": c, "rejected": r} for row, (c, r) in zip(rows, log_p.tolist(), strict=True)]
    if start is not None:
        lines = [line | {"start": pair} for line, pair in zip(lines, start.tolist(), strict=True)]
    return lines


def _plural(kind: str) -> str:
    return {"image": "pictures", "audio": "recordings"}[kind]


def told(sampling: Sampling) -> str:
    """How it was decoded, for the hash of a score: what is not as usual, so that a new field changes no old hash."""
    said = {f.name: getattr(sampling, f.name) for f in fields(sampling) if getattr(sampling, f.name) != f.default}
    return f"{said} {SIDES} {SURE} counted over all" if sampling.tries > 1 else f"{said}"
