"""Speech to text by a pretrained Whisper: windows of 30 seconds, time tokens, subtitles.

    sound ── log-mel ── window of 3000 frames ── encoder ══╗
                            ^                              ╨── <|0.00|> He was not ...<|2.40|><|2.40|> ... ── segments
                            └── moves on to the last time that the text gives ──────────────────────────────────┘

Radford et al. 2022, section 3.8 (the decoding rules) and 4.5 (long sounds, and retries at higher temperatures of what
loops or is unsure), without the text before as a prompt. Draws are seeded: the same sound always gives the same text.

Shape letters:  B rows  T tokens  V vocabulary  S samples
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.arrows.grammar import parse
from weft.core import config as c
from weft.core.cache import Cache
from weft.core.stream import stream
from weft.core.topology import Encoded
from weft.core.view import Tokens
from weft.errors import ArrowError, DataError, WeftError, nearest
from weft.modalities.audio import HOP, RATE, open_audio, whisper_mel
from weft.modalities.text import TextCodec
from weft.model import Model

SECONDS = 30
FRAMES = SECONDS * RATE // HOP  # of a window
STEP = 0.02  # seconds of a time token, two frames
FIRST = 50  # a window's first time is at most so many steps (1 second) in
SIGNS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }}"
NOTES = "♩♪♫♬♭♮♯"
SYMBOLS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』', *SIGNS.split(), *NOTES, "♪♪", "♪♪♪"]
BEAMS = 5  # as the original's command has it
SILENT, UNSURE = 0.6, -1.0  # a window is silence if it says so, unless the text is likelier than that on average
LOOPED = 2.4  # a text that zlib makes shorter than by this factor repeats itself
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of a window's tries, until one is neither unsure nor looped
DRAWN = 5  # texts that a try at a temperature draws, the likeliest of which is taken


@dataclass(frozen=True)
class Segment:
    """A stretch of speech: seconds from the start of the sound, and what is said."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What a sound says. language: its code, "en" for a model that knows only English."""

    segments: tuple[Segment, ...]
    language: str = "en"

    @property
    def text(self) -> str:
        """All of it, in one line."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    def srt(self) -> str:
        """SubRip subtitles."""
        lines = (
            f"{number}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{s.text}\n"
            for number, s in enumerate(self.segments, 1)
        )
        return "\n".join(lines)

    def vtt(self) -> str:
        """WebVTT subtitles."""
        return "WEBVTT\n\n" + "\n".join(f"{clock(s.start)} --> {clock(s.end)}\n{s.text}\n" for s in self.segments)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        segments = [{"start": round(s.start, 2), "end": round(s.end, 2), "text": s.text} for s in self.segments]
        return {"text": self.text, "language": self.language, "segments": segments}


def repetition(text: str) -> float:
    """How much shorter zlib makes a text: its bytes over those of the compressed one. 0 of none."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


def clock(seconds: float, point: str = ".") -> str:
    """61.5 -> 00:01:01.500"""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


@dataclass(frozen=True)
class Control:
    """The ids of Whisper's control tokens, by what they are for. languages: code -> id, empty for English alone."""

    end: int
    start: int
    silence: int
    plain: int
    times: int
    transcribe: int = -1
    languages: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(codec: TextCodec) -> Control:
        """As a tokenizer has them. Raises WeftError for one that is none of Whisper's."""
        ids = {text: number for number, text in codec.control.items()}
        wanted = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>")
        if missing := [text for text in wanted if text not in ids]:
            raise WeftError(f"The tokenizer is none of Whisper's: it has no {', '.join(missing)}.")
        silence = ids.get("<|nospeech|>", ids.get("<|nocaptions|>", -1))
        many = ids["<|endoftext|>"] != 50256  # of the English vocabulary, whose language tokens mean nothing
        inside = range(ids["<|startoftranscript|>"] + 1, ids.get("<|translate|>", 0))
        languages = {codec.control[i].strip("<|>"): i for i in inside if i in codec.control} if many else {}
        return Control(
            ids[wanted[0]], ids[wanted[1]], silence, ids[wanted[2]], ids[wanted[3]],
            ids.get("<|transcribe|>", -1), languages,
        )  # fmt: skip


@dataclass(frozen=True)
class Way:
    """Tokens of a window so far, and their log-probability."""

    ids: list[int]
    score: float


@dataclass
class Heard:
    """A window's tokens, behind the ones it was begun with; their log-probability on average; how silent it is."""

    ids: list[int]
    likely: float
    silence: float

    @property
    def silent(self) -> bool:
        """Whether nobody speaks."""
        return self.silence > SILENT and self.likely < UNSURE


class Transcriber:
    """A Whisper and its tokenizer, ready for sounds. Raises WeftError for another model."""

    def __init__(self, model: Model, codec: TextCodec, beams: int = BEAMS) -> None:
        if beams < 1:
            raise WeftError(f"A search has one beam or more, not {beams}.")
        topology = model.config.topology
        stem = topology.encoder.input.stems.get("audio") if isinstance(topology, c.EncoderDecoderConfig) else None
        if not isinstance(stem, c.FrameStem) or not isinstance(topology, c.EncoderDecoderConfig):
            raise WeftError(f"A model of the family {model.config.family!r} cannot write down speech; a Whisper can.")
        places = topology.decoder.input.positions
        self.model, self.codec, self.mels = model.eval(), codec, stem.features // 2
        self.control, self.beams = Control.of(codec), beams
        self.length = places.length if isinstance(places, c.Learned) else 448
        self.never = self._never()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _never(self) -> Tensor:
        """(V,) bool: what is never written: control tokens, and signs that are no speech."""
        mask = torch.zeros(self.model.classes(), dtype=torch.bool)
        mask[[i for i in self.codec.control if i < self.control.times and i != self.control.end]] = True
        mask[[self.codec.encode(" -")[0], self.codec.encode(" '")[0]]] = True
        for symbol in SYMBOLS:
            for text in (symbol, " " + symbol):
                ids = self.codec.encode(text)
                if len(ids) == 1 or symbol in NOTES:
                    mask[ids[0]] = True
        return mask

    def __call__(
        self, source: Any, language: str = "", times: bool = True, say: Callable[[float], None] = lambda share: None
    ) -> Transcript:
        """Of a sound (path, bytes, (wave, rate)). language: a code; unless said, the model tells it by the start.

        times: False, and a sound of one window is written down without times, which is a little more exact: one segment
        from its start to its end; say: told the share that is done. Raises DataError for what is no sound, WeftError
        for a language it lacks.
        """
        wave = open_audio(source)
        mel = torch.from_numpy(whisper_mel(wave, self.mels, pad=SECONDS * RATE))  # (T,M)
        total = max(1, -(-len(wave) // HOP))
        begin, language = self._begin(mel[:FRAMES], language)
        segments: list[Segment] = []
        at = 0
        if not times and total <= FRAMES:
            heard = self._window(mel[:FRAMES], [*begin, self.control.plain])
            segments = [] if heard.silent else [Segment(0.0, len(wave) / RATE, self._text(heard.ids))]
            at = total
        while at < total:
            window = min(FRAMES, total - at)
            heard = self._window(mel[at : at + FRAMES], begin)
            if heard.silent:
                at += window
                continue
            found, moved = self._segments(heard.ids, at, window)
            segments += found
            at += max(moved, 2)  # a step, at least
            say(min(1.0, at / total))
        return Transcript(tuple(s for s in segments if s.text), language)

    def _begin(self, mel: Tensor, language: str) -> tuple[list[int], str]:
        """The tokens a window is begun with, and the language."""
        known = self.control.languages
        if not known:
            if language not in ("", "en"):
                raise WeftError(f"This model knows English alone, not {language!r}.")
            return [self.control.start], "en"
        if language and language not in known:
            raise WeftError(f"The model knows no language {language!r}.{nearest(language, known)}")
        if not language:
            with torch.no_grad():
                logits = self._first(self._source(mel), [self.control.start], self.model.cache())[-1]
            ids = torch.tensor(list(known.values()), device=logits.device)
            language = list(known)[int(logits[ids].argmax())]
        return [self.control.start, known[language], self.control.transcribe], language

    def _source(self, mel: Tensor) -> Encoded:
        """(T,M) frames, filled up to a window and encoded."""
        frames = torch.nn.functional.pad(mel, (0, 0, 0, FRAMES - len(mel)))[None].to(self.device)  # (1,3000,M)
        return self.model.encode(stream(self.model.body, sounds=frames)[0])

    def _first(self, source: Encoded, begin: list[int], cache: Cache) -> Tensor:
        """(n,V) logits behind each of the tokens that a window is begun with."""
        tokens = Tokens(torch.tensor([begin], device=self.device))
        return self.model.logits(self.model.hidden(tokens, source, cache)[0]).float()

    @torch.no_grad()
    def _window(self, mel: Tensor, begin: list[int]) -> Heard:
        """What is heard in a window: tried again, hotter, while the text repeats itself or is unlikely. mel (T,M)."""
        source = self._source(mel)
        for temperature in TEMPERATURES:
            heard = self._try(source, begin, temperature)
            if heard.silent or (heard.likely >= UNSURE and repetition(self._text(heard.ids)) <= LOOPED):
                break
        return heard

    def _try(self, source: Encoded, begin: list[int], temperature: float) -> Heard:
        """The likeliest tokens under the rules: by beam search at temperature 0, else of DRAWN texts."""
        cache, wanted = self.model.cache(), DRAWN if temperature else self.beams
        draw = torch.Generator().manual_seed(round(1000 * temperature))
        logits = self._first(source, begin, cache)
        silence = float(logits[0].softmax(-1)[self.control.silence]) if self.control.silence >= 0 else 0.0
        beams, ended = [Way([], 0.0)], []
        logits = logits[-1:]
        for number in range(self.length // 2):
            for row, way in zip(logits, beams, strict=True):
                row[self.never.to(row.device)] = -torch.inf
                if begin[-1] == self.control.plain:
                    row[self.control.times :] = -torch.inf
                else:
                    self._rule(row, way.ids)
            scores = logits.log_softmax(-1)
            if temperature:
                beams, kept, done = self._draw(scores, beams, temperature, draw, DRAWN if number == 0 else 1)
            else:
                beams, kept, done = self._choose(scores, beams)
            ended += done
            if not beams or len(ended) >= wanted or number + 1 == self.length // 2:
                break
            cache.select(torch.tensor(kept, device=self.device))
            source = source.select(torch.tensor(kept, device=self.device))
            new = torch.tensor([way.ids[-1:] for way in beams], device=self.device)
            logits = self.model.logits(self.model.hidden(Tokens(new), source, cache)[:, -1]).float()  # (W,V)
        best = max(ended + beams if temperature else ended or beams, key=lambda way: way.score / max(1, len(way.ids)))
        return Heard(best.ids, best.score / (len(best.ids) + 1), silence)

    def _draw(
        self, scores: Tensor, beams: list[Way], temperature: float, draw: torch.Generator, times: int
    ) -> tuple[list[Way], list[int], list[Way]]:
        """As `_choose`, but each way goes on by `times` draws of its own."""
        going: list[Way] = []
        rows: list[int] = []
        done: list[Way] = []
        drawn = torch.multinomial((scores / temperature).softmax(-1).cpu(), times, replacement=True, generator=draw)
        for row, (way, tokens) in enumerate(zip(beams, drawn.tolist(), strict=True)):
            for token in tokens:
                score = way.score + float(scores[row, token])
                if token == self.control.end:
                    done.append(Way(way.ids, score))
                else:
                    going.append(Way([*way.ids, token], score))
                    rows.append(row)
        return going, rows, done

    def _choose(self, scores: Tensor, beams: list[Way]) -> tuple[list[Way], list[int], list[Way]]:
        """(W,V) log-probabilities: the best that go on, the rows they go on from, and the better ones that end."""
        found: list[tuple[float, int, int]] = []
        for row, way in enumerate(beams):
            best = scores[row].topk(self.beams + 1)
            found += [(way.score + s, row, i) for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        going: list[Way] = []
        rows: list[int] = []
        done: list[Way] = []
        for score, row, token in sorted(found, key=lambda item: -item[0]):
            if score == -torch.inf or len(going) == self.beams:
                break
            if token == self.control.end:
                done.append(Way(beams[row].ids, score))
            else:
                going.append(Way([*beams[row].ids, token], score))
                rows.append(row)
        return going, rows, done

    def _rule(self, logits: Tensor, new: Sequence[int]) -> None:
        """What may not come next gets -inf. Times come in pairs, never fall, and come where likelier than text."""
        times, end = self.control.times, self.control.end
        if not new:
            logits[:times] = -torch.inf
            logits[times + FIRST + 1 :] = -torch.inf
            return
        last, before = new[-1] >= times, len(new) < 2 or new[-2] >= times
        if last and before:
            logits[times:] = -torch.inf
        elif last:
            logits[:end] = -torch.inf
        told = [i for i in new if i >= times]
        if told:
            logits[times : told[-1] + (0 if last and not before else 1)] = -torch.inf
        if logits[times:].logsumexp(-1) > logits[:times].max():
            logits[:times] = -torch.inf

    def _segments(self, ids: list[int], at: int, window: int) -> tuple[list[Segment], int]:
        """A window's tokens as segments, and how many frames were dealt with."""
        times = self.control.times
        told = [i >= times for i in ids]
        cuts = [i for i in range(1, len(ids)) if told[i - 1] and told[i]]
        offset, seconds = at * HOP / RATE, window * HOP / RATE
        alone = told[-2:] == [False, True]
        if not cuts:
            last = next((i - times for i in reversed(ids) if i > times), None)
            span = seconds if last is None else min(last * STEP, SECONDS)
            return [Segment(offset, offset + span, self._text(ids))], window
        found, start = [], 0
        for cut in [*cuts, len(ids)] if alone else cuts:
            piece = ids[start:cut]
            first, last = ((i - times) * STEP for i in (piece[0], piece[-1]))
            found.append(Segment(offset + first, offset + last, self._text(piece)))
            start = cut
        return found, window if alone else round((ids[start - 1] - times) * STEP * RATE / HOP)

    def _text(self, ids: Sequence[int]) -> str:
        return self.codec.decode(np.array([i for i in ids if i < self.control.end], dtype=np.int64)).strip()


def open_transcriber(source: str | Path, device: str = "cpu") -> Transcriber:
    """From a pretrained name, an original file, a directory of the hub's form, or an imported run.

    Raises ConvertError or RunError for what is none of them, WeftError for a model that is no Whisper.
    """
    from weft.convert.load import named, read
    from weft.convert.text import open_text
    from weft.convert.whisper import vocabulary

    path = named(source)
    if path.suffix != ".pt":
        held = open_text(source)
        return Transcriber(held.model.to(device), held.tokenizer.codec)
    imported = read(path)
    model = imported.model().to(device)
    return Transcriber(model, TextCodec(imported.tokenizer or vocabulary(model.classes())))


def transcribe(
    source: str | Path | Transcriber,
    files: Sequence[Any],
    language: str = "",
    times: bool = True,
    device: str = "cpu",
) -> list[Transcript]:
    """What each of `files` says: `transcribe("whisper-tiny.en", ["a.wav"])[0].text`.

    Raises DataError for a file that is no sound, and what `open_transcriber` raises.
    """
    hear = source if isinstance(source, Transcriber) else open_transcriber(source, device)
    if not files:
        raise DataError("No sound was given. Name one file or more.")
    return [hear(file, language, times) for file in files]


def sound_of(arrow: str, record: Mapping[str, Any]) -> Any:
    """A record's sound, under an arrow from one column to one other. Raises ArrowError for another arrow."""
    column = sound_column(arrow)
    if column not in record:
        raise DataError(f"'{arrow}' needs {column}.{nearest(column, record)}")
    return record[column]


def sound_column(arrow: str) -> str:
    """The column of an arrow that holds the sound. Raises ArrowError for an arrow that no Whisper takes."""
    parsed = parse(arrow)
    if parsed.kind != "produce" or len(parsed.inputs) != 1 or len(parsed.outputs) != 1:
        raise ArrowError(f"A pretrained model of speech takes one arrow, from a sound to a text, not '{arrow}'.")
    return parsed.inputs[0].name
