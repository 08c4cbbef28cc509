"""Sound <-> waveform <-> log-mel frames <-> stacked frames. numpy in, numpy out.

Shape letters:  S samples at 16 kHz  T frames (10 ms)  M mel bands  K frequencies (201)  N stacked frames  B sounds

    file, bytes, (wave, rate) --open_audio--> (S,) --log_mel--> (T,M) --frames--> values (N,stack*M), positions (N,3)
                                                ^--to_wave (Griffin-Lim)--'

The log-mel is Whisper's (Radford et al. 2022, section 2.2: 25 ms Hann window, 10 ms hop, Slaney's mel filters) with two
differences: a fixed affine instead of one that depends on each sound's loudest frame, so that frames mean the same in
every sound and streaming is possible; and as many frames as began, so that no sound is too short.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch

from weft.errors import DataError
from weft.modalities.image import read_file

RATE = 16_000
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FLOOR = 1e-5  # quietest mel power told apart: with the loudest at about 1e3, a range of 80 dB
POSITIONS = 12.5  # positions per second
KINDS = "wav, flac, mp3, ogg, opus or aiff"


class Frames(NamedTuple):
    """values (N,stack*M) float16; positions (N,3) float32, seconds * 12.5 on each axis; advance seconds * 12.5."""

    values: np.ndarray
    positions: np.ndarray
    advance: float


def open_audio(source: str | Path | bytes | tuple[np.ndarray, int], name: str = "") -> np.ndarray:
    """Any sound -> (S,) float32, mono, 16 kHz, about [-1,1].

    Channels are averaged, other rates resampled (soxr, its high quality). A pair (wave, rate) may be (S,) or
    (S,channels), of float in [-1,1] or of integers (scaled by their type). `name` stands for the sound in errors.
    Raises DataError for what is missing, empty, damaged, silent of samples or not finite.
    """
    if isinstance(source, tuple):
        name = name or "the sound"
        wave, rate = _from_pair(source, name)
    else:
        name = name or (str(source) if isinstance(source, (str, Path)) else "a sound given as bytes")
        wave, rate = _read(source, name)
    if not len(wave):
        raise DataError(f"{name}: the sound has no samples (0 seconds); remove the row or replace the file")
    wave = wave.mean(axis=1, dtype=np.float32) if wave.ndim == 2 else wave  # (S,channels) -> (S,)
    if not np.isfinite(wave).all():
        raise DataError(f"{name}: the sound holds samples that are not finite")
    if rate != RATE:
        wave = soxr.resample(wave, rate, RATE, quality="HQ")
        if not len(wave):
            raise DataError(
                f"{name}: the sound is shorter than one sample at {RATE} Hz; remove the row or replace the file"
            )
    return np.ascontiguousarray(wave, dtype=np.float32)


def _read(source: object, name: str) -> tuple[np.ndarray, int]:
    """A file's path or bytes -> (S,channels) float32 and its rate."""
    if isinstance(source, (str, Path)):
        source = read_file(source, "a sound")
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise DataError(f"{name} came as {type(source).__name__}; a path, bytes or (wave, rate) was expected")
    if not len(source):
        raise DataError(f"{name}: the file is empty (0 bytes); a sound was expected ({KINDS})")
    if (missing := _cut_off(bytes(source[:12]), len(source))) > 0:
        raise DataError(
            f"{name}: the file is cut off, {missing} bytes are missing at its end; replace it or drop the row"
        )
    try:
        return soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{name}: not a sound that can be read; expected {KINDS}. Convert it, or remove the row"
        ) from error


def _cut_off(head: bytes, length: int) -> int:
    """How many bytes a WAV file lacks. The decoder would read what is there and not say so; flac says so by itself.

    Programs that write into a pipe cannot know the size and put 0 or about the largest number there.
    """
    told = int.from_bytes(head[4:8], "little")
    missing = told + 8 - length
    return missing if head[:4] == b"RIFF" and told < 0x7FFF0000 and missing > 8 else 0  # some miscount by a few


def _from_pair(pair: tuple[np.ndarray, int], name: str) -> tuple[np.ndarray, int]:
    wave, rate = np.asarray(pair[0]), int(pair[1])
    if wave.ndim not in (1, 2) or rate <= 0:
        raise DataError(
            f"{name} has shape {wave.shape} at {rate} Hz; (S,) or (S,channels) and a rate over 0 was expected"
        )
    if wave.dtype == np.uint8:  # 8-bit sound is unsigned
        return (wave.astype(np.float32) - 128) / 128, rate
    if np.issubdtype(wave.dtype, np.signedinteger):
        return wave.astype(np.float32) / -float(np.iinfo(wave.dtype).min), rate
    if not np.issubdtype(wave.dtype, np.floating):
        raise DataError(f"{name} holds {wave.dtype}; float or integer samples were expected")
    return wave.astype(np.float32), rate


@lru_cache(maxsize=8)
def mel_filters(mels: int) -> torch.Tensor:
    """Slaney's mel filters (M,K): triangles of equal area, linear below 1 kHz and logarithmic above.

    As in Slaney's Auditory Toolbox (1998) and librosa's default, which Whisper uses.
    """
    top = _hertz_to_mel(RATE / 2)
    edges = _mel_to_hertz(np.linspace(0, top, mels + 2))  # (M+2,)
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)  # (K,)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]  # (M,K)
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


def _hertz_to_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) * 27 / np.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def log_mel(wave: np.ndarray, mels: int = 80) -> np.ndarray:
    """(S,) at 16 kHz -> (T,M) float32 in about [-1,1], T = ceil(S / 160); frame t is centred on sample 160 t.

    (log10(max(mel power, 1e-5)) + 1) / 4: silence is -1, a full-scale tone about 0.9. Raises DataError for no samples.
    """
    if wave.ndim != 1 or not len(wave):
        raise DataError(f"a sound of shape {wave.shape} came; (S,) with at least one sample was expected")
    count = -(-len(wave) // HOP)
    samples = torch.nn.functional.pad(torch.from_numpy(wave.astype(np.float32)), (0, count * HOP - len(wave)))
    spectrum = _stft(samples[None])[0, :, :count]  # (K,T)
    power = mel_filters(mels) @ spectrum.abs().square()  # (M,T)
    return ((power.clamp_min(FLOOR).log10() + 1) / 4).T.contiguous().numpy()


def frames(mel: np.ndarray, stack: int = 8, silence: float = -1.0) -> Frames:
    """(T,M) log-mel -> (N,stack*M) float16: `stack` frames side by side are one token; `silence` fills up the last."""
    count = -(-len(mel) // stack)
    values = np.full((count * stack, mel.shape[1]), silence, np.float16)
    values[: len(mel)] = mel
    step = stack * HOP / RATE * POSITIONS
    positions = np.repeat(np.arange(count, dtype=np.float32)[:, None] * np.float32(step), 3, axis=1)
    return Frames(values.reshape(count, -1), positions, float(count * step))


def shift_bands(values: np.ndarray, up: int, mels: int) -> np.ndarray:
    """(N,stack*M) -> the same sound by another throat: every band `up` places higher, the edge is repeated.

    A shift of the mel axis is nearly a change of vocal tract length (Jaitly & Hinton 2013).
    """
    bands = values.reshape(len(values), -1, mels)
    moved = np.empty_like(bands)
    if up >= 0:
        up = min(up, mels - 1)
        moved[..., up:], moved[..., :up] = bands[..., : mels - up], bands[..., :1]
    else:
        down = min(-up, mels - 1)
        moved[..., : mels - down], moved[..., mels - down :] = bands[..., down:], bands[..., -1:]
    return moved.reshape(values.shape)


def blank_runs(values: np.ndarray, mels: int, bands: Sequence[tuple[int, int]], frames: tuple[int, int]) -> np.ndarray:
    """(N,stack*M) -> the same with runs of bands and one of frames, each (start, stop), at the sound's mean.

    SpecAugment (Park et al. 2019) without its time warp.
    """
    blanked = values.reshape(-1, mels).copy()  # (N*stack,M)
    mean = blanked.mean(dtype=np.float32).astype(values.dtype)
    for start, stop in bands:
        blanked[:, start:stop] = mean
    blanked[frames[0] : frames[1]] = mean
    return blanked.reshape(values.shape)


def to_wave(mel: np.ndarray, iterations: int = 32, momentum: float = 0.99) -> np.ndarray:
    """(T,M) log-mel -> (S,) float32 with S = 160 T; the same bits on every call.

    Fast Griffin-Lim (Perraudin et al. 2013): the phase that fits a magnitude is found by going back and forth between
    spectrum and waveform, with momentum. One sound at a time: many side by side leave a CPU's caches, which takes
    2.7 times as long (168 sounds of 2 s).
    """
    magnitude = _linear(torch.from_numpy(mel.astype(np.float32))[None]).sqrt()  # (1,T,M) -> (1,K,T)
    noise = np.random.default_rng(0).uniform(-np.pi, np.pi, magnitude.shape[1:]).astype(np.float32)
    phase = torch.polar(torch.ones(noise.shape), torch.from_numpy(noise)).expand(magnitude.shape)
    before = torch.zeros_like(phase)
    for _ in range(iterations):
        rebuilt = _stft(_istft(magnitude * phase))[..., : phase.shape[-1]]
        ahead = rebuilt + momentum * (rebuilt - before)
        phase, before = ahead / ahead.abs().clamp_min(1e-8), rebuilt
    return _istft(magnitude * phase)[0].numpy()


def _linear(mel: torch.Tensor) -> torch.Tensor:
    """Log-mel (B,T,M) -> the power spectrum (B,K,T) that explains it: least squares, kept positive."""
    filters = mel_filters(mel.shape[-1])
    power = 10 ** (mel * 4 - 1) - FLOOR
    return (power.clamp_min(0) @ torch.linalg.pinv(filters).T).clamp_min(0).transpose(1, 2)


def _stft(wave: torch.Tensor) -> torch.Tensor:
    """(B,S) -> (B,K,1+S/160) complex, silence around the ends."""
    window = torch.hann_window(WINDOW, device=wave.device)
    return torch.stft(wave, WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True)


def _istft(spectrum: torch.Tensor) -> torch.Tensor:
    """(B,K,T) complex -> (B,160 T)."""
    window = torch.hann_window(WINDOW, device=spectrum.device)
    length = spectrum.shape[-1] * HOP
    spectrum = torch.nn.functional.pad(spectrum, (0, 1))  # the frame centred behind the last sample
    return torch.istft(spectrum, WINDOW, HOP, window=window, center=True, length=length)


def to_wav(wave: np.ndarray, rate: int = RATE) -> bytes:
    """(S,) float in [-1,1] -> the bytes of a 16-bit WAV file; louder samples are clipped."""
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def whisper_mel(wave: np.ndarray, mels: int = 80, pad: int = 0) -> np.ndarray:
    """(S,) at 16 kHz -> (T,M) float32, T = (S + pad) // 160, just as Whisper was trained (Radford et al. 2022, 2.2).

    Unlike `log_mel` it is scaled by the loudest frame: nothing is more than 8 (80 dB) under it. The sound is mirrored
    at its ends. pad: samples of silence behind it. Raises DataError for no samples, or fewer than half a window.
    """
    if wave.ndim != 1 or len(wave) + pad <= WINDOW // 2:
        raise DataError(f"a sound of shape {wave.shape} came; (S,) with more than {WINDOW // 2} samples was expected")
    samples = torch.nn.functional.pad(torch.from_numpy(wave.astype(np.float32)), (0, pad))
    window = torch.hann_window(WINDOW)
    power = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)[:, :-1].abs().square()  # (K,T)
    log = (mel_filters(mels) @ power).clamp_min(1e-10).log10()  # (M,T)
    return ((torch.maximum(log, log.max() - 8) + 4) / 4).T.contiguous().numpy()
