"""Speech from text by the eSpeak NG synthesiser, for tables that need spoken columns and have nobody to read them out.

The engine is the shared library of the package `espeakng-loader` (the extra `demo`), called through ctypes. It is a C
library with global state: one voice at a time, one caller at a time, so `Synthesiser` is for one thread of one process.
To use two cores, `speak_all` runs this module as a script in worker processes; each reads its share of the clips as
JSON from standard input and writes one 16 kHz mono FLAC file per clip. What the engine says depends a little on what
it said before (the phase of its generators), so shares and order are fixed: the same clips give the same bits.

    voice   language, then optionally + and a variant: "en-us", "en-gb-scotland+f3", "en-029+Annie"
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from weft.errors import DataError, MissingExtra, WeftError

RATE = 16_000  # Hz of what is handed out; the engine itself speaks at 22,050
SILENCE = 1e-3  # an amplitude below this, at either end of a clip, is cut off as silence
_SYNCHRONOUS, _UTF8, _DO_NOT_EXIT, _CHARACTERS = 2, 1, 0x8000, 1  # constants of speak_lib.h
_PARAMETERS = {"speed": 1, "pitch": 3, "range": 4}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """Who speaks. `speed` in words per minute, `pitch` and `range` from 0 to 99 (the engine's own default is 50)."""

    name: str = "en-us"
    speed: int = 175
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class Clip:
    """One sound to be made: `text` spoken by `voice` into the file `path`."""

    path: str
    text: str
    voice: Voice


class Synthesiser:
    """The engine, ready to speak. Raises MissingExtra without its package, DataError for a voice it does not have."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
            import soxr
        except ImportError as error:
            raise MissingExtra(f"Speech synthesis (package {error.name})", "demo") from error
        self._resample = soxr.resample
        self._data = Path(espeakng_loader.get_data_path())
        self._engine = ctypes.CDLL(espeakng_loader.get_library_path())
        self._own_rate = self._engine.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data.parent).encode(), _DO_NOT_EXIT)
        if self._own_rate <= 0:
            raise WeftError(
                f"eSpeak NG did not start with its data in {self._data}. "
                "Reinstall it: pip install --force-reinstall espeakng-loader"
            )
        self._engine.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breathy voices are noise, seeded by the clock otherwise
        self._pieces: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)  # kept: the engine holds a bare pointer to it
        self._engine.espeak_SetSynthCallback(self._callback)
        self._voice: Voice | None = None
        self._variants = frozenset(self.variants())

    def _receive(
        self, samples: ctypes._Pointer, count: int, events: int
    ) -> int:  # called by the engine, piece by piece
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    def variants(self) -> list[str]:
        """The names that may follow the + of a voice."""
        return sorted(path.name for path in (self._data / "voices" / "!v").iterdir())

    def _use(self, voice: Voice) -> None:
        if voice == self._voice:
            return
        _, _, variant = voice.name.partition("+")
        if variant and variant not in self._variants:  # the engine itself falls back to the plain voice without a word
            raise DataError(f"eSpeak NG has no voice variant {variant!r}. There is: {', '.join(self.variants())}.")
        if self._engine.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise DataError(
                f"eSpeak NG has no voice {voice.name!r}. Expected a language such as 'en-us', with '+f3' or the like."
            )
        for parameter, number in _PARAMETERS.items():
            self._engine.espeak_SetParameter(number, getattr(voice, parameter), 0)
        self._voice = voice

    def speak(self, text: str, voice: Voice = Voice()) -> np.ndarray:
        """`text` -> (samples,) float32 in [-1, 1] at 16 kHz, silence at both ends removed."""
        self._use(voice)
        self._pieces = []
        data = text.encode()
        failed = self._engine.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _CHARACTERS, 0, _UTF8, None, None)
        if failed or self._engine.espeak_Synchronize() != 0 or not self._pieces:
            raise DataError(f"eSpeak NG could not speak {text!r} with the voice {voice.name!r}.")
        wave = np.concatenate(self._pieces).astype(np.float32) / 32768
        wave = self._resample(wave, self._own_rate, RATE)
        loud = np.flatnonzero(np.abs(wave) > SILENCE)
        if not len(loud):
            raise DataError(f"eSpeak NG made only silence of {text!r} with the voice {voice.name!r}.")
        margin = RATE // 50  # 20 ms stay on both sides
        return np.clip(wave[max(0, loud[0] - margin) : loud[-1] + margin], -1, 1)


def speak_all(clips: Sequence[Clip], folder: Path, processes: int = 2) -> None:
    """Write every clip as FLAC below `folder`, in worker processes. Raises WeftError with a worker's own words."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise MissingExtra("Speech synthesis (package espeakng-loader)", "demo")
    clips = sorted(clips, key=lambda clip: (clip.voice.name, clip.path))  # one order, whatever the order of the rows
    processes = max(1, min(processes, len(clips)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "weft.data.espeak", str(folder)]
    workers: list[subprocess.Popen[str]] = []
    try:
        for part in range(processes):
            share = clips[part * len(clips) // processes : (part + 1) * len(clips) // processes]
            with tempfile.TemporaryFile("w+", encoding="utf-8") as work:
                json.dump([asdict(clip) for clip in share], work)
                work.seek(0)
                workers.append(
                    subprocess.Popen(command, stdin=work, stderr=subprocess.PIPE, env=environment, encoding="utf-8")
                )
        for worker in workers:
            words = worker.communicate()[1].strip().splitlines()
            if worker.returncode != 0:
                said = words[-1] if words else f"a worker ended with {worker.returncode}"
                raise WeftError(f"Speech synthesis failed: {said}")
    finally:
        for worker in workers:  # after an error or an interruption nobody keeps writing
            if worker.poll() is None:
                worker.kill()
                worker.communicate()


def main() -> None:
    """A worker: clips as JSON on standard input, FLAC files below the folder given as argument."""
    import soundfile

    folder, synthesiser = Path(sys.argv[1]), Synthesiser()
    for item in json.load(sys.stdin):
        wave = synthesiser.speak(item["text"], Voice(**item["voice"]))
        target = folder / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, wave, RATE, subtype="PCM_16", format="FLAC")


if __name__ == "__main__":
    try:
        main()
    except WeftError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
