"""The renderer: a record and an arrow -> a Sample, and a model's ids -> a value. The only place that knows both sides.

Shape letters:  L ids of one span  N media tokens  V the vocabulary

    image, question -> answer      [image] ▒▒▒▒▒▒▒▒ [question] what colour is it? [answer] blue end
                                    input markers and contents, no loss            output   trained

    column type   as input                         as output (trained)
    text          its ids                          its ids, end
    label         the one id of its value          the one id of its value
    image         patches (N,F)                    codes, always the same number of them
    audio         stacked mel frames (N,F)         codes, end

It is saved inside the run (`renderer.json`, `tokenizer.json`, `codecs/`), so that training, evaluation and serving
cannot differ. What it makes is kept up to a budget of bytes: from the second epoch on, rendering is putting spans in a
row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weft.arrows import types
from weft.arrows.chat import Chat, Message, Template
from weft.arrows.chat import read as read_messages
from weft.arrows.grammar import Arrow, parse
from weft.arrows.media import Cache, Reader, identify
from weft.arrows.sample import Sample, Span
from weft.arrows.types import ColumnType, Label, as_text, blank
from weft.arrows.vocabulary import ROLES, Vocabulary
from weft.errors import ArrowError, DataError, RunError, nearest
from weft.modalities.text import TextCodec
from weft.recipe import AudioRecipe, ImageRecipe, Recipe

BUDGET = 512 << 20  # bytes of media features that are kept
TEXTS = 96 << 20  # bytes of text spans that are kept
CHUNK = 256  # items that a codec encodes at once
APART = 3.0  # positions from a drawn code to the next, along its row and its column: quick waves tell them apart
LAYOUT = 2  # of samples; what an older run was trained on, it is asked with

Make = Callable[[Any], Span]


class Legal(NamedTuple):
    """What may be generated for a column: mask (V,) bool, exact number of ids or None, the id that ends it or None.

    places  (count,3) float32 where each of them stands, from where the first one does; None: one after the other
    """

    mask: np.ndarray
    count: int | None
    end: int | None
    places: np.ndarray | None = None


class Part(NamedTuple):
    """One column of an arrow: its marker, what makes its content span, what measures that, whether it is produced."""

    column: str
    marker: Span
    make: Make
    measure: Callable[[Any], int]
    produced: bool


class Renderer:
    """Renders records under the run's arrows.

    recipe      its `image` and `audio` say how media become tokens
    columns     column -> type, for every column that an arrow names
    codecs      "image" and "audio" -> a codec, for the kinds that some arrow produces
    budget      bytes of media features to keep in memory
    template    the chat template of a pretrained source
    layout      of what it makes: 1, of runs from before that, has the codes of a picture in a line, not in its rows
    """

    def __init__(
        self, recipe: Recipe, columns: Mapping[str, ColumnType], arrows: Sequence[Arrow], vocabulary: Vocabulary,
        text: TextCodec | None = None, codecs: Mapping[str, Any] | None = None, *, budget: int = BUDGET,
        template: Template | None = None, layout: int = LAYOUT,
    ) -> None:  # fmt: skip
        self.image, self.audio = recipe.image, recipe.audio
        self.columns, self.arrows, self.vocabulary = dict(columns), list(arrows), vocabulary
        self.text, self.codecs = text, dict(codecs or {})
        self.template, self.layout = template, layout
        talks = any(kind.name == "messages" for kind in self.columns.values())
        self.chat = Chat(vocabulary, text, template) if talks and text is not None else None
        self.reader = Reader(self.image, self.audio, budget)
        self._codes = Cache(budget)
        self._texts = Cache(TEXTS)
        self._labels = {
            name: {value: index for index, value in enumerate(kind.values)}
            for name, kind in self.columns.items() if isinstance(kind, Label)
        }  # fmt: skip
        self._check()
        self._parts = [self._plan(arrow) for arrow in self.arrows]

    def _check(self) -> None:
        """That the pieces belong together."""
        for arrow in self.arrows:
            for name in arrow.columns:
                if name not in self.columns:
                    raise ArrowError(
                        f"the arrow '{arrow}' names a column {name!r} without a type.{nearest(name, self.columns)}"
                    )
        sizes = {"text": self.text.size if self.text else 0}
        sizes |= {f"label:{name}": len(values) for name, values in self._labels.items()}
        sizes |= {f"codes:{kind}": codec.size for kind, codec in self.codecs.items()}
        written = any(kind.name in ("text", "messages") for kind in self.columns.values())
        # pretrained tables may have idle rows, and those of pictures have a class token where others have text
        padded = len(self.vocabulary.blocks.get("text", ())) > sizes["text"] and (sizes["text"] > 0 or not written)
        for name, size in sizes.items():
            if size != len(self.vocabulary.blocks.get(name, ())) and not (name == "text" and padded):
                have = len(self.vocabulary.blocks.get(name, ()))
                raise DataError(
                    f"the vocabulary has {have} ids for {name}, and there are {size}: they are not of one run"
                )

    # ------------------------------------------------------------------------------------------------ arrows -> parts

    def _plan(self, arrow: Arrow) -> tuple[Part, ...]:
        produced = arrow.kind != "align"
        parts = [self._given(column.name, "input") for column in arrow.inputs]
        first = arrow.output if arrow.kind == "prefer" else ""  # both answers follow the marker of the chosen one
        parts += [self._produced(c.name, first) if produced else self._given(c.name, "output") for c in arrow.outputs]
        return tuple(parts)

    def _marker(self, column: str, role: str) -> Span:
        ids = np.array([self.vocabulary.marker(column)], np.int64)
        return Span(
            "ids", ids, advance=1.0, role=role, column=column, key=("marker", column) if role == "input" else None
        )

    def _given(self, column: str, role: str) -> Part:
        """A column that the model is shown."""
        kind = self.columns[column].name
        if kind in ("image", "audio"):
            make: Make = lambda value: self._media(column, kind, role, value)
            measure = lambda value: self.reader.count(kind, *identify(value))
        elif kind == "messages":
            make = lambda value: self.said(column, role, value)
            measure = lambda value: len(self.said(column, role, value))
        else:
            make = lambda value: self._words(column, role, False, value)
            measure = lambda value: len(self._words(column, role, False, value))
        return Part(column, self._marker(column, role), make, measure, False)

    def _produced(self, column: str, named: str = "") -> Part:
        """A column that the model is to write. named: the column whose marker announces it; "": its own."""
        kind = self.columns[column].name
        if kind in ("image", "audio"):
            make: Make = lambda value: self._coded(column, kind, value)
            measure = lambda value: self._code_count(kind, value)
        else:
            make = lambda value: self._words(column, "output", True, value)
            measure = lambda value: len(self._words(column, "output", True, value))
        marker = replace(self._marker(named or column, "output"), column=column)
        return Part(column, marker, make, measure, True)

    # ------------------------------------------------------------------------------------------------ rendering

    def render(self, record: Mapping[str, Any], arrow_index: int, *, row: int = -1, output: bool = True) -> Sample:
        """One record under one arrow.

        row     number of the table's row, for errors and for the sample
        output  False: stop behind the marker of the produced column (what a model is asked to go on from)
        Raises DataError, naming row, column and file: a missing value, media that cannot be decoded, an unknown label.
        """
        spans = []
        kind = self.arrows[arrow_index].kind
        if self.talks(arrow_index):
            return Sample(row, arrow_index, self._conversation(record, arrow_index, row, output))
        for column, marker, make, _, produced in self._parts[arrow_index]:
            spans.append(marker)
            if produced and not output and kind != "fill":
                break
            value = record.get(column)
            try:
                spans.append(make(value))
            except DataError as error:
                raise self._located(error, row, column, value) from error
        return Sample(row, arrow_index, tuple(spans))

    def prompt(self, record: Mapping[str, Any], arrow_index: int, *, row: int = -1) -> Sample:
        """What a model goes on from: everything but the content of the produced column."""
        return self.render(record, arrow_index, row=row, output=False)

    def length(self, record: Mapping[str, Any], arrow_index: int, *, row: int = -1) -> int:
        """`len(render(record, arrow_index))`, without decoding media: from sizes and durations in their headers."""
        total = 0
        if self.talks(arrow_index):
            talk = sum(map(len, self._talk(record, arrow_index, row, True)))
            shown = [part for part in self._parts[arrow_index] if self.columns[part.column].name != "messages"]
            return talk + sum(1 + part.measure(record.get(part.column)) for part in shown)
        for column, _, _, measure, _ in self._parts[arrow_index]:
            value = record.get(column)
            try:
                if blank(value):
                    raise DataError("there is no value")
                total += 1 + measure(value)
            except DataError as error:
                raise self._located(error, row, column, value) from error
        return total

    def index(self, arrow: Arrow | str) -> int:
        """The number of an arrow of this run, by its task. Raises ArrowError for another one."""
        task = (parse(arrow) if isinstance(arrow, str) else arrow).task
        tasks = [known.task for known in self.arrows]
        if task not in tasks:
            raise ArrowError(f"this run has no arrow '{task}'. It has: {'; '.join(tasks)}.")
        return tasks.index(task)

    def _located(self, error: DataError, row: int, column: str, value: Any) -> DataError:
        where = f"row {row}, column {column!r}" if row >= 0 else f"column {column!r}"
        name = value if isinstance(value, str | Path) and self.columns[column].name in ("image", "audio") else None
        file = f", {name}" if name is not None and str(name) not in str(error) else ""
        return DataError(f"{where}{file}: {error}")

    # ------------------------------------------------------------------------------------------------ conversations

    def talks(self, arrow_index: int) -> bool:
        """Whether an arrow produces the turns of a conversation."""
        return self.columns[self.arrows[arrow_index].output].name == "messages"

    def _conversation(self, record: Mapping[str, Any], arrow_index: int, row: int, output: bool) -> tuple[Span, ...]:
        """What else is shown, then all messages in one conversation, without markers of columns."""
        spans: list[Span] = []
        for column, marker, make, _, _ in self._parts[arrow_index]:
            if self.columns[column].name != "messages":
                try:
                    spans += [marker, make(record.get(column))]
                except DataError as error:
                    raise self._located(error, row, column, record.get(column)) from error
        return (*spans, *self._talk(record, arrow_index, row, output))

    def _talk(self, record: Mapping[str, Any], arrow_index: int, row: int, output: bool) -> list[Span]:
        """The conversation as spans. output False: as far as the assistant is to answer."""
        arrow = self.arrows[arrow_index]
        column = arrow.output
        try:
            if arrow.kind == "prefer" and output:
                return self._preferred(record, arrow)
            messages: list[Message] = []
            for name in [c.name for c in arrow.inputs if self.columns[c.name].name == "messages"]:
                messages += read_messages(self._filled(record, name), "user")
            if output or arrow.kind == "chat":
                messages += read_messages(self._filled(record, column), "user" if arrow.kind == "chat" else "assistant")
            if not output and messages and messages[-1].role == "assistant":
                messages.pop()
            turns = self._chat().turns(messages, reply=not output)
            if output and not any(trained for _, trained in turns):
                raise DataError("no message is the assistant's, so nothing could be trained")
        except DataError as error:
            raise self._located(error, row, column, None) from error
        make = lambda ids, trained: Span("ids", ids, None, None, float(len(ids)), "output", trained and output, column)
        return [make(ids, trained) for ids, trained in turns]

    def _preferred(self, record: Mapping[str, Any], arrow: Arrow) -> list[Span]:
        """A prompt and two answers, each the whole rest of its conversation behind what both have in common."""
        prompt: list[Message] = []
        for name in [c.name for c in arrow.inputs if self.columns[c.name].name == "messages"]:
            prompt += read_messages(self._filled(record, name), "user")
        talks = [prompt + read_messages(self._filled(record, c.name), "assistant") for c in arrow.outputs]
        same = common_start(*talks)
        ids, loss = [], []
        for talk in talks:
            if len(talk) == same or talk[-1].role != "assistant":
                raise DataError("the chosen and the rejected conversation have to end with different answers")
            turns = self._chat().turns(talk)
            before = sum(m.role == "assistant" for m in talk[:same])  # what both have said is not what is compared
            trained = np.concatenate([np.full(len(one), mark) for one, mark in turns])
            runs = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(int)])) == 1)  # where answers begin
            trained[: runs[before]] = False
            ids.append(np.concatenate([one for one, _ in turns]))
            loss.append(trained)
        cut = min(common_start(*(one.tolist() for one in ids)), *(int(np.argmax(one)) - 1 for one in loss))
        make = lambda ids, trained, column, role: Span(
            "ids", ids, advance=float(len(ids)), role=role, loss=trained, column=column
        )
        spans = [make(ids[0][:cut], False, arrow.output, "input")] if cut > 0 else []
        for column, one, trained in zip(arrow.outputs, ids, loss, strict=True):
            edges = [max(cut, 0), *(np.flatnonzero(np.diff(trained.astype(int))) + 1).tolist(), len(one)]
            edges = [edge for edge in dict.fromkeys(edges) if edge >= max(cut, 0)]
            for start, stop in pairwise(edges):
                spans.append(make(one[start:stop], bool(trained[start]), column.name, "output"))
        return spans

    def _filled(self, record: Mapping[str, Any], column: str) -> Any:
        if blank(record.get(column)):
            raise DataError("there is no value")
        return record[column]

    def _chat(self) -> Chat:
        if self.chat is None:
            raise DataError("this run has no text codec, since none of its columns was text")
        return self.chat

    def said(self, column: str, role: str, value: Any) -> Span:
        """A conversation that is shown, to produce something else from."""
        if blank(value):
            raise DataError("there is no value")
        ids = np.concatenate([ids for ids, _ in self._chat().turns(read_messages(value))])
        key = ("messages", ids.tobytes()) if role == "input" else None
        return Span("ids", ids, advance=float(len(ids)), role=role, column=column, key=key)

    # ------------------------------------------------------------------------------------------------ spans

    def _words(self, column: str, role: str, trained: bool, value: Any) -> Span:
        """A text or a label as ids; produced texts end with `end`."""
        known = self._texts.get((column, role, trained, value)) if type(value) is str else None
        if known is not None:
            return known
        if blank(value):
            raise DataError("there is no value")
        words = as_text(value, column)
        if (known := self._texts.get((column, role, trained, words))) is not None:
            return known
        if column in self._labels:
            ids = np.array([self._label(column, words)], np.int64)
        else:
            ids = self._encode(words)
            ids = np.append(ids, self.vocabulary.end) if trained else ids
        span = Span(
            "ids", ids, advance=float(len(ids)), role=role, loss=trained, column=column,
            key=("text", words) if role == "input" else None,
        )  # fmt: skip
        return self._texts.keep((column, role, trained, words), span, ids.nbytes + 2 * len(words) + 400)

    def _encode(self, words: str) -> np.ndarray:
        """Plain text -> ids of the text block, whatever the text looks like."""
        if self.text is None:
            raise DataError("this run has no text codec, since none of its columns was text")
        return self.text.encode(words) + self.vocabulary.block("text").start

    def _label(self, column: str, value: str) -> int:
        known = self._labels[column]
        if value not in known:
            raise DataError(f"{value!r} is no known label.{nearest(value, known)}")
        return self.vocabulary.block(f"label:{column}")[known[value]]

    def _media(self, column: str, kind: str, role: str, value: Any) -> Span:
        """An image or a sound as the model is shown it."""
        if blank(value):
            raise DataError("there is no value")
        source, key = identify(value)
        features = self.reader.read(kind, source, key)
        return Span(kind, None, *features, role, False, column, key, (kind, key) if role == "input" else None)

    def _coded(self, column: str, kind: str, value: Any) -> Span:
        """An image or a sound as the codes that the model is to write."""
        if blank(value):
            raise DataError("there is no value")
        source, key = identify(value)
        span = self._codes.get((column, key))
        if span is None:
            codes = self._codec(kind).encode([self._raw(kind, source, key)])[0]
            span = self._keep_codes(column, kind, key, codes)
        return span

    def _keep_codes(self, column: str, kind: str, key: str, codes: np.ndarray) -> Span:
        ids = codes + self.vocabulary.block(f"codes:{kind}").start
        ids = np.append(ids, self.vocabulary.end) if kind == "audio" else ids
        span = Span(
            "ids", ids.astype(np.int64), None, self._places(kind), float(len(ids)), "output", loss=True, column=column
        )
        return self._codes.keep((column, key), span, ids.nbytes + 500)

    def _places(self, kind: str) -> np.ndarray | None:
        """(codes,3) float32 sequence, row and column of a drawn picture's codes; None: one after the other."""
        if kind != "image" or self.layout < 2:
            return None
        step, side = np.arange(self.image.codes, dtype=np.float32), math.isqrt(self.image.codes)
        return np.stack((step, APART * (step // side), APART * (step % side)), 1)

    def _raw(self, kind: str, source: Any, key: str) -> np.ndarray:
        return self.reader.pixels(source) if kind == "image" else self.reader.mel(source, key)

    def _codec(self, kind: str) -> Any:
        if kind not in self.codecs:
            raise DataError(f"this run has no {kind} codec, since none of its arrows produced {kind}")
        return self.codecs[kind]

    def _code_count(self, kind: str, value: Any) -> int:
        if kind == "image":
            return self.image.codes
        return -(-self.reader.frames(*identify(value)) // self.audio.hop) + 1

    def precode(self, column: str, values: Iterable[Any]) -> list[tuple[Any, DataError]]:
        """Encode the media of a produced column ahead, many at once: far quicker than one by one while rendering.

        Returns the cells that could not be decoded, with the reason; rendering their rows raises it again.
        """
        kind = self.columns[column].name
        codec, failed = self._codec(kind), []
        todo: dict[str, Any] = {}
        for value in values:
            if not blank(value):
                source, key = identify(value)
                if (column, key) not in self._codes:
                    todo.setdefault(key, source)
        keys = list(todo)
        for start in range(0, len(keys), CHUNK):
            raw: dict[str, np.ndarray] = {}
            for key in keys[start : start + CHUNK]:
                try:
                    raw[key] = self._raw(kind, todo[key], key)
                except DataError as error:
                    failed.append((todo[key], error))
            for key, codes in zip(raw, codec.encode(list(raw.values())) if raw else [], strict=True):
                self._keep_codes(column, kind, key, codes)
        return failed

    # ------------------------------------------------------------------------------------------------ ids -> values

    def legal(self, column: str) -> Legal:
        """Which ids may be generated for a column, how many, and what ends them."""
        name, kind = self._block(column), self.columns[column].name
        mask = np.zeros(self.vocabulary.size, bool)
        ids = self.vocabulary.block(name)
        mask[ids.start : ids.stop] = True
        if kind in ("text", "messages") and self.text is not None:
            mask[ids.start + self.text.size : ids.stop] = False  # idle rows of a pretrained table
            mask[[ids.start + control for control in self.text.control]] = False
        if kind == "label":
            return Legal(mask, 1, None)
        if kind == "image":
            return Legal(mask, self.image.codes, None, self._places(kind))
        mask[self._end(column)] = True
        return Legal(mask, None, self._end(column))

    def _end(self, column: str) -> int:
        """The id that ends what is produced for a column."""
        return self._chat().end if self.columns[column].name == "messages" else self.vocabulary.end

    def _block(self, column: str) -> str:
        if column not in self.columns:
            raise ArrowError(f"this run has no column {column!r}.{nearest(column, self.columns)}")
        kind = self.columns[column].name
        return {"text": "text", "messages": "text", "label": f"label:{column}"}.get(kind, f"codes:{kind}")

    def value(self, column: str, ids: Sequence[int] | np.ndarray) -> Any:
        """Generated ids -> str (text, label), (S,S,3) uint8 (image) or (S,) float32 at 16 kHz (audio). See `values`."""
        return self.values(column, [ids])[0]

    def values(self, column: str, many: Sequence[Sequence[int] | np.ndarray]) -> list[Any]:
        """As `value` for many at once. What stands behind an `end` is left out.

        Raises DataError for an id that is not legal for the column, or a wrong number of image codes.
        """
        block = self.vocabulary.block(self._block(column))
        rows = [self._inside(column, block, np.asarray(ids, np.int64)) for ids in many]
        kind = self.columns[column]
        if isinstance(kind, Label):
            for row in rows:
                if len(row) != 1:
                    raise DataError(f"column {column!r}: {len(row)} ids came; a label is one")
            return [kind.values[row[0]] for row in rows]
        if kind.name in ("text", "messages"):
            return [self.text.decode(row) for row in rows]  # type: ignore[union-attr]
        if kind.name == "image":
            return self._codec("image").decode(rows)
        from weft.modalities.audio import to_wave

        spoken = [index for index, row in enumerate(rows) if len(row)]
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        for index, mel in zip(spoken, self._codec("audio").decode([rows[i] for i in spoken]), strict=True):
            waves[index] = to_wave(mel)
        return waves

    def named(self) -> Iterator[tuple[int, str]]:
        """Every id that is no text, with what it stands for."""
        for name, ids in self.vocabulary.blocks.items():
            kind, _, column = name.partition(":")
            for index, number in enumerate(ids):
                if name == "special":
                    yield number, ("pad", "end", "mask")[index] if index < 3 else f"hidden {index - 3}"
                elif name.startswith("marker"):
                    yield number, self.vocabulary.columns[self.vocabulary.place(number)[1]]
                elif name == "role":
                    yield number, f"role {ROLES[index]}"
                elif kind == "label" and column in self._labels:
                    yield number, f"{column}={self.columns[column].values[index]}"  # type: ignore[union-attr]
                elif name != "text":
                    yield number, f"{kind} {column} {index}"

    def _inside(self, column: str, block: range, ids: np.ndarray) -> np.ndarray:
        """(L,) ids -> numbers within the block, up to the first `end`."""
        ends = np.flatnonzero(ids == self._end(column))
        ids = ids[: ends[0]] if len(ends) else ids
        strange = ids[(ids < block.start) | (ids >= block.stop)]
        if len(strange):
            raise DataError(
                f"column {column!r}: id {strange[0]} is not one of its own, {block.start} to {block.stop - 1}"
            )
        return ids - block.start

    # ------------------------------------------------------------------------------------------------ files

    def to_tree(self) -> dict[str, Any]:
        """Everything but tokenizer and codecs, as plain JSON values."""
        plain = lambda settings: {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
        return {
            "image": plain(self.image),
            "audio": plain(self.audio),
            "columns": {name: types.to_tree(kind) for name, kind in self.columns.items()},
            "arrows": [str(arrow) for arrow in self.arrows],
            "vocabulary": self.vocabulary.to_tree(),
            "layout": self.layout,
            "text": self.text is not None,
            "codecs": sorted(self.codecs),
            **({"template": self.template.tree()} if self.template else {}),
        }

    def save(self, folder: str | Path) -> None:
        """Write `renderer.json`, `tokenizer.json` and `codecs/` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.text is not None:
            self.text.save(folder / "tokenizer.json")
        for kind, codec in self.codecs.items():
            codec.save(folder / "codecs" / kind)
        told = json.dumps(self.to_tree(), indent=1, ensure_ascii=False)
        (folder / "renderer.json").write_text(told + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, budget: int = BUDGET) -> Renderer:
        """Read what `save` wrote. Raises RunError for what is missing or damaged."""
        folder = Path(folder)
        path = folder / "renderer.json"
        if not path.is_file():
            raise RunError(f"{path}: there is no such file; a run directory has one once it is prepared")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            listed: Callable[[Any], dict[str, Any]] = lambda known: {
                k: tuple(v) if isinstance(v, list) else v for k, v in known.items()
            }
            pictures, sounds = ImageRecipe(**listed(tree["image"])), AudioRecipe(**listed(tree["audio"]))
            recipe = replace(Recipe(), image=pictures, audio=sounds)
            columns = {name: types.from_tree(kind) for name, kind in tree["columns"].items()}
            arrows = [parse(text) for text in tree["arrows"]]
            vocabulary, has_text, kinds = Vocabulary.from_tree(tree["vocabulary"]), tree["text"], tree["codecs"]
            template, layout = Template(**tree["template"]) if "template" in tree else None, int(tree.get("layout", 1))
        except (ValueError, KeyError, TypeError, AttributeError, ArrowError) as error:
            raise RunError(f"{path}: not a readable renderer ({error!r}); restore the file or train again") from error
        text = TextCodec.load(folder / "tokenizer.json") if has_text else None
        codecs = _load_codecs(folder / "codecs", kinds)
        return cls(recipe, columns, arrows, vocabulary, text, codecs, budget=budget, template=template, layout=layout)


def common_start(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _load_codecs(folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    if not kinds:
        return {}
    from weft.modalities.codes import AudioCodec, ImageCodec

    makers = {"image": ImageCodec, "audio": AudioCodec}
    return {kind: makers[kind].load(folder / kind) for kind in kinds}
