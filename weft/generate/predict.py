"""A run and rows in, values out: text, labels, pictures, waveforms.

    records --renderer.prompt--> samples --+-- label: one forward, beginnings shared, read at the end of each prompt
                                           '-- else:  batches of like length, decoded with a cache
                                                                      |
    values  <--renderer.values-- ids  <--------------------------------'

Shape letters:  B rows  T tokens  V vocabulary  C classes  E width of a shared space
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft.adapt.shelf import Shelf
from weft.arrows.sample import Sample
from weft.convert.load import foreign
from weft.data.condition import asked_nothing, guidable
from weft.data.sources import open_table
from weft.errors import ArrowError, DataError, RecipeError, WeftError, nearest
from weft.generate.compose import detour
from weft.generate.decode import Rule, decode, finished, precision, steps
from weft.generate.prompt import begun, identity, lay, shared
from weft.generate.reread import TRIES, drawn_again, reverse
from weft.generate.sample import Draws, Sampling, choose
from weft.generate.teach import teach
from weft.generate.transcribe import sound_of, transcribe
from weft.run import Run

TOKENS = 16_384  # of prompts in one forward; bounds memory
BATCH = 256  # rows decoded at once
SHOWN = 5  # bad rows that are told one by one
GUIDANCE = 2.0  # of what is drawn, where the run learned it


@dataclass(frozen=True, eq=False)
class Produced:
    """One row's answer. ids are as produced; finished is False where the context ended before the answer did."""

    value: Any
    ids: np.ndarray
    finished: bool = True


class Predictor:
    """A run's model and renderer, loaded once, ready for any of its arrows.

    device   "" picks a GPU where there is one
    adapter  see `use`
    """

    def __init__(self, run: Run | str | Path, model: Any = None, device: str = "", adapter: str = "") -> None:
        self.run = run if isinstance(run, Run) else Run.open(run)
        self.renderer = self.run.renderer
        self.model = model if model is not None else self.run.model(device or best_device())
        self.length = self.run.recipe.train.length
        self.half = self.run.recipe.train.options.dtype == "bfloat16"  # as it was trained
        self._shelf: Shelf | None = None
        if adapter:
            self.use(adapter)

    def use(self, adapter: str) -> None:
        """Answer with an adapter from now on: by name in RUN/adapters, by path, "none": the base, "": as saved.

        Raises RunError for one that is not there, ConvertError for one made for another base.
        """
        self._shelf = self._shelf or Shelf(self.run, self.model)
        self._shelf.use(adapter)

    def find(self, arrow: str | int) -> int:
        """The number of an arrow. Raises ArrowError for one that the run does not have."""
        return arrow if isinstance(arrow, int) else self.renderer.index(arrow)

    def prompts(
        self, arrow: int, records: Sequence[Mapping[str, Any]], rows: Sequence[int] | None = None
    ) -> list[Sample]:
        """Rendered up to where the model takes over. Raises DataError naming each bad record and its column."""
        parsed = self.renderer.arrows[arrow]
        self._check(arrow, records)
        goes_on = parsed.kind == "model"  # a text that is given is gone on from; none: from the very beginning
        samples, bad = [], []
        for record, row in zip(records, range(len(records)) if rows is None else rows, strict=True):
            try:
                if goes_on and record.get(parsed.output):
                    whole = self.renderer.render(record, arrow, row=row)
                    samples.append(begun(whole, self.renderer.vocabulary.end))
                else:
                    samples.append(self.renderer.prompt(record, arrow, row=row))
            except DataError as error:
                bad.append(error)
        if len(bad) > 1:
            more = f" And {len(bad) - SHOWN} more." if len(bad) > SHOWN else ""
            told = " ".join(f"{str(error).rstrip('.')}." for error in bad[:SHOWN])
            raise DataError(f"{len(bad)} of {len(records)} rows cannot be used. {told}{more}") from bad[0]
        if bad:
            raise bad[0]
        return samples

    def _check(self, arrow: int, records: Sequence[Mapping[str, Any]]) -> None:
        parsed = self.renderer.arrows[arrow]
        if parsed.kind in ("fill", "align"):
            how = "`embed` gives its vectors" if parsed.kind == "align" else "`evaluate` measures it"
            raise ArrowError(f"'{parsed}' produces no column, so it cannot be predicted; {how}.")
        for number, record in enumerate(records):
            missing = [column.name for column in parsed.inputs if column.name not in record]
            if missing:
                said = f"record {number}: " if len(records) > 1 else ""
                raise DataError(
                    f"{said}'{parsed}' needs {', '.join(missing)}.{nearest(missing[0], record) if record else ''}"
                )

    def produce(
        self,
        arrow: str | int,
        records: Sequence[Mapping[str, Any]],
        sampling: Sampling | None = None,
        *,
        batch: int = 0,
        rows: Sequence[int] | None = None,
    ) -> list[Produced]:
        """Answers in the order of the records. sampling None: `default`. rows: numbers for messages."""
        arrow = self.find(arrow)
        sampling = sampling or self.default(arrow)
        self._guidable(arrow, sampling)
        found = self._produced(arrow, records, sampling, batch, rows)
        if sampling.greedy or sampling.tries == 1:
            return found

        def more(which: Sequence[int], draws: Draws) -> list[Produced]:
            numbers = None if rows is None else [rows[i] for i in which]
            return self._produced(arrow, [records[i] for i in which], sampling, batch, numbers, draws)

        names = lambda: [identity(sample) for sample in self.prompts(arrow, records, rows)]
        return drawn_again(self, arrow, records, found, names, sampling, more)

    def default(self, arrow: int) -> Sampling:
        """How an arrow is decoded when nothing is said.

        The likeliest picture is an empty one (wherever a shape may begin, background is likelier), so pictures are
        drawn as the model says, and drawn again where its reverse arrow can tell that it failed. Everything else is
        greedy; a label that can also be had by way of another column is answered from both.
        """
        arrows = self.renderer.arrows
        kind = self.renderer.columns[arrows[arrow].output].name
        if kind == "image":
            tries = TRIES if reverse(arrows, arrow) is not None else 1
            return Sampling(temperature=1.0, tries=tries, guidance=GUIDANCE if self._learned(arrow) else 1.0)
        return Sampling(composed=kind == "label" and detour(arrows, arrow) is not None)

    def _learned(self, arrow: int) -> bool:
        """Whether an arrow also learned to answer nothing, so that it can be guided."""
        dropped = self.run.recipe.train.options.condition_dropout > 0
        return dropped and guidable(self.renderer.arrows[arrow], self.renderer.columns)

    def _guidable(self, arrow: int, sampling: Sampling) -> None:
        """Raises RecipeError for guidance where nothing learned it."""
        if sampling.guidance != 1.0 and not self._learned(arrow):
            raise RecipeError(
                f"guidance={sampling.guidance:g} needs an arrow from words to a picture or a sound, in a run that also "
                f"trained without its words (train.options.condition_dropout, such as 0.1); "
                f"'{self.renderer.arrows[arrow]}' of {self.run.path} is not one."
            )

    def _produced(
        self,
        arrow: int,
        records: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        batch: int,
        rows: Sequence[int] | None,
        draws: Draws | None = None,
    ) -> list[Produced]:
        column = self.renderer.arrows[arrow].output
        samples = self.prompts(arrow, records, rows)
        names = [identity(sample) for sample in samples]
        if sampling.greedy:  # equal prompts have equal answers
            first = {name: i for i, name in reversed(list(enumerate(names)))}
            distinct = sorted(first.values())
            place = {names[i]: n for n, i in enumerate(distinct)}
            back = [place[name] for name in names]
            samples, records, draws = [samples[i] for i in distinct], [records[i] for i in distinct], None
        else:
            back, draws = list(range(len(samples))), draws or Draws(names, sampling.seed)
        if self.renderer.columns[column].name == "label":
            ids = self._labels(arrow, samples, records, sampling, draws)
            ended = [True] * len(ids)
        else:
            ids, ended = self._decoded(column, samples, sampling, draws, batch or BATCH)
        values = self.renderer.values(column, ids) if ids else []
        found = [Produced(*one) for one in zip(values, ids, ended, strict=True)]
        return [found[i] for i in back]

    # ------------------------------------------------------------------------------------------------ labels

    def _labels(
        self,
        arrow: int,
        samples: list[Sample],
        records: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        draws: Draws | None,
    ) -> list[np.ndarray]:
        """One id per sample, without decoding: the label is read where the prompt ends."""
        column = self.renderer.arrows[arrow].output
        if self.model.kind == "encoder-decoder":
            rule = Rule.of(self.renderer, column, 3, 2)
            return self._batched(samples, rule, sampling, draws, BATCH)
        likely = self._choices(column, samples)
        if sampling.composed:
            heard, trust, other = self._composed(arrow, records)
            likely[heard] = torch.logaddexp(likely[heard] + torch.log1p(-trust), other + trust.log())
        chosen = choose(likely, sampling, None if draws is None else draws.next())
        return list((chosen + self.renderer.vocabulary.block(f"label:{column}").start).numpy()[:, None])

    @torch.no_grad()
    def _choices(self, column: str, samples: list[Sample]) -> torch.Tensor:
        """(n,C) log probabilities of the labels, on the CPU."""
        head, block = f"label:{column}", self.renderer.vocabulary.block(f"label:{column}")
        likely = torch.empty(len(samples), len(block))
        for which, hidden in self._read(samples, head):
            if self.model.kind == "encoder":
                logits = self.model.logits(hidden, head)
            else:
                logits = self.model.logits(hidden)[:, block.start : block.stop]  # (m,V) -> (m,C)
            likely[torch.from_numpy(which)] = logits.float().log_softmax(-1).cpu()
        return likely

    def _composed(
        self, arrow: int, records: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        """By way of another column: numbers of the m records that something was heard for, how likely that is what they
        say (m,1), and the log probabilities of the labels if it is (m,C). Raises ArrowError where no arrows lead there.
        """
        way = detour(self.renderer.arrows, arrow)
        if way is None:
            raise ArrowError(f"No two arrows of this run lead where '{self.renderer.arrows[arrow]}' does.")
        given = [{way.given: r[way.given]} for r in records]
        told = self._produced(way.first, given, Sampling(), 0, None)
        heard = [i for i, one in enumerate(told) if str(one.value).strip()]
        others = [{**records[i], way.column: told[i].value} for i in heard]
        names = [identity(sample) for sample in self.prompts(way.first, [given[i] for i in heard])]
        distinct = {
            name: {way.given: one[way.given], way.column: one[way.column]}
            for name, one in zip(names, others, strict=True)
        }
        place = {name: n for n, name in enumerate(distinct)}  # many records may ask by the same sound
        nats = np.zeros(0)
        if distinct:
            nats = teach(self, open_table(list(distinct.values())), range(len(distinct)), way.first)[:, 0]
        sure = torch.from_numpy(np.exp(-nats[[place[name] for name in names]])).float()
        trust = sure.clamp(1e-6, 1 - 1e-6)[:, None]
        return heard, trust, self._choices(self.renderer.arrows[arrow].output, self.prompts(way.second, others))

    def _read(self, samples: list[Sample], head: str) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Numbers of samples, and the hidden state (m,D) each is answered from."""
        if self.model.kind == "encoder":
            inputs = [Sample(s.row, s.arrow, s.part("input")) for s in samples]
            for which in _alike([len(s) for s in inputs], TOKENS):
                prompts = lay([inputs[i] for i in which]).to(self.device)
                with precision(self.device, self.half):
                    hidden = self.model.beside(self.model.hidden(prompts.tokens), prompts.tokens, head)
                yield which, hidden[:, 0].float()  # pooled at the first token, as trained
            return
        for part in shared(samples, self.length, TOKENS):
            with precision(self.device, self.half):
                hidden = self.model.hidden(part.tokens.to(self.device))
            yield part.which, hidden.flatten(0, 1)[part.at.to(self.device)].float()  # (B,T,D) -> (B*T,D) -> (m,D)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # ------------------------------------------------------------------------------------------------ decoded

    def _decoded(
        self, column: str, samples: list[Sample], sampling: Sampling, draws: Draws | None, batch: int
    ) -> tuple[list[np.ndarray], list[bool]]:
        if not samples:
            return [], []
        two = self.model.kind == "encoder-decoder"
        longest = max(2 if two else len(sample) for sample in samples)
        rule = Rule.of(self.renderer, column, self.length, longest)
        ids = self._batched(samples, rule, sampling, draws, batch)
        return ids, [finished(one, rule) for one in ids]

    def _batched(
        self, samples: list[Sample], rule: Rule, sampling: Sampling, draws: Draws | None, batch: int
    ) -> list[np.ndarray]:
        ids: list[np.ndarray] = [np.zeros(0, np.int64)] * len(samples)
        beside = 1 if sampling.guidance == 1.0 else 2  # rows of the model for each answer
        for which in _alike([len(sample) for sample in samples], TOKENS // beside, max(1, batch // beside)):
            mine = None if draws is None else draws.only(which)
            asked = [samples[i] for i in which]
            prompts = self._lay(asked if beside == 1 else asked + [asked_nothing(one) for one in asked])
            rows = decode(self.model, prompts, rule, sampling, mine, half=self.half)
            for number, row in zip(which, rows, strict=True):
                ids[number] = row
        return ids

    def _lay(self, samples: list[Sample]):
        two = self.model.kind == "encoder-decoder"
        return lay(samples, pad=self.renderer.vocabulary.pad, two=two)

    def stream(self, arrow: str | int, record: Mapping[str, Any], sampling: Sampling | None = None) -> Iterator[str]:
        """The answer to one record piece by piece, as whole characters. For arrows that produce text."""
        arrow, sampling = self.find(arrow), sampling or Sampling()
        column = self.renderer.arrows[arrow].output
        if self.renderer.columns[column].name not in ("text", "messages"):
            raise ArrowError(f"{column} is {self.renderer.columns[column].name}; only text can be streamed.")
        self._guidable(arrow, sampling)
        samples = self.prompts(arrow, [record])
        draws = None if sampling.greedy else Draws([identity(samples[0])], sampling.seed)
        head = 2 if self.model.kind == "encoder-decoder" else len(samples[0])
        rule = Rule.of(self.renderer, column, self.length, head)
        ids: list[int] = []
        said = ""
        for column_ids in steps(self.model, self._lay(samples), rule, sampling, draws, half=self.half):
            ids.append(int(column_ids[0]))
            text = self.renderer.value(column, ids)
            whole = text.rstrip("\ufffd") if ids[-1] != rule.end else text  # a character may need more than one id
            if len(whole) > len(said):
                yield whole[len(said) :]
                said = whole

    @torch.no_grad()
    def embed(self, arrow: str | int, records: Sequence[Mapping[str, Any]], side: str = "left") -> np.ndarray:
        """(n,E) float32 unit vectors of one side ("left" or "right") of an arrow `a <-> b`."""
        arrow = self.find(arrow)
        parsed = self.renderer.arrows[arrow]
        if parsed.kind != "align":
            raise ArrowError(f"'{parsed}' has no shared space; an arrow like 'a <-> b' has.")
        role = {"left": "input", "right": "output"}.get(side)
        if role is None:
            raise WeftError(f"side={side!r} is neither 'left' nor 'right'.")
        samples = [Sample(i, arrow, self.renderer.render(r, arrow).part(role)) for i, r in enumerate(records)]
        vectors: list[Any] = [None] * len(samples)
        for which in _alike([len(sample) for sample in samples], TOKENS):
            prompts = lay([samples[i] for i in which]).to(self.device)
            with precision(self.device, self.half):
                found = self.model.embed(prompts.tokens, side)
            for number, vector in zip(which, found.float().cpu().numpy(), strict=True):
                vectors[number] = vector
        return np.stack(vectors)


def _alike(lengths: Sequence[int], tokens: int, most: int = 1 << 30) -> list[np.ndarray]:
    """Numbers of rows in batches of like length: at most `most` rows and about `tokens` tokens each."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or stop - start == most or (stop - start + 1) * lengths[order[stop]] > tokens
        if full:
            batches.append(order[start:stop])
            start = stop
    return batches


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def as_records(rows: Any, columns: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """What a caller may give -> a list of records, and whether it was a single one."""
    if rows is not None and columns:
        raise DataError(f"rows and columns ({', '.join(columns)}) were both given; give one of them.")
    if rows is None:
        return [dict(columns)], True
    if isinstance(rows, Mapping):
        return [dict(rows)], True
    if hasattr(rows, "row"):  # a table
        return [rows.row(i) for i in range(len(rows))], False
    return [dict(row) for row in rows], False


def predict(
    run: Run | Predictor | str | Path,
    arrow: str,
    rows: Any = None,
    *,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    guidance: float | None = None,
    seed: int = 0,
    batch: int = 0,
    adapter: str = "",
    **columns: Any,
) -> list[Any]:
    """What the run's model produces for each row: str for text and labels, (S,S,3) uint8, or (S,) float32 at 16 kHz.

    rows     a list of records {column: value}, one record, or a table; or give one record's columns by name:
             `predict(run, "caption -> image", caption="a red circle")`
    sampling see `Sampling`. temperature None: 0, but 1 for pictures, drawn again while the run's reverse arrow
             does not read them as asked. guidance None: 1, but 2 for pictures of a run that learned to be guided.
             A draw depends on the seed and on what is asked, not on the batch.
    batch    rows decoded at once; 0: as many as are quick
    adapter  by name in RUN/adapters or by path; "none": the base alone

    A pretrained Whisper (a name, a file, a directory) takes one arrow, from a sound to a text: "audio -> text".

    Always returns a list, of one value for one record. Raises ArrowError for an arrow the run does not have, DataError
    for a missing input or media that cannot be decoded.
    """
    records, _ = as_records(rows, columns)
    if not records:
        return []
    if isinstance(run, str | Path) and foreign(run):
        return [heard.text for heard in transcribe(run, [sound_of(arrow, record) for record in records], times=False)]
    predictor = run if isinstance(run, Predictor) else Predictor(run, adapter=adapter)
    usual = predictor.default(predictor.find(arrow))
    led = usual.guidance if guidance is None else guidance
    usual = usual if temperature is None else Sampling(temperature)
    sampling = replace(usual, top_k=top_k, top_p=top_p, min_p=min_p, repetition=repetition, guidance=led, seed=seed)
    return [one.value for one in predictor.produce(arrow, records, sampling, batch=batch)]


def stream(run: Run | Predictor | str | Path, arrow: str, record: Mapping[str, Any] | None = None, *,
           sampling: Sampling | None = None, **columns: Any) -> Iterator[str]:  # fmt: skip
    """One record's text, piece by piece as it is produced. Arguments as for `predict`."""
    records, _ = as_records(record, columns)
    predictor = run if isinstance(run, Predictor) else Predictor(run)
    return predictor.stream(arrow, records[0], sampling)
