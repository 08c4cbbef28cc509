"""Sound: the log-mel against a slow computation, files of every kind, and the way back to a waveform."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from weft.errors import DataError
from weft.modalities import audio
from weft.modalities.audio import (
    FLOOR,
    RATE,
    frames,
    log_mel,
    mel_filters,
    open_audio,
    to_wav,
    to_wave,
)


def tone(hertz: float = 440, seconds: float = 0.5, rate: int = RATE, size: float = 0.5) -> np.ndarray:
    return (size * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def voice(seconds: float = 1.0) -> np.ndarray:
    """Something like speech: a gliding pitch with overtones that fade in and out."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.5 * time)) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 25))
    return (0.1 * sound * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def slow_log_mel(wave: np.ndarray, mels: int) -> np.ndarray:
    """By the book: window each frame, discrete Fourier transform by its matrix, triangles one by one."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    padded = np.concatenate([np.zeros(200), wave, np.zeros(600)])
    mel_of = lambda f: 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)
    hertz_of = lambda m: 200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)
    edges = [hertz_of(m) for m in np.linspace(0, mel_of(8000), mels + 2)]
    out = []
    for start in range(0, len(wave), 160):
        power = np.abs(fourier @ (padded[start : start + 400] * window)) ** 2
        row = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k in range(201):
                f = 40 * k
                slope = min((f - low) / (middle - low), (high - f) / (high - middle))
                total += max(0.0, slope) * 2 / (high - low) * power[k]
            row.append((np.log10(max(total, 1e-5)) + 1) / 4)
        out.append(row)
    return np.array(out)


@pytest.mark.parametrize(("samples", "mels"), [(1, 80), (159, 80), (161, 80), (1600, 80), (1000, 40)])
def test_log_mel_against_a_slow_computation(samples: int, mels: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    expected = slow_log_mel(wave.astype(np.float64), mels)
    np.testing.assert_allclose(log_mel(wave, mels), expected, atol=2e-4)
    assert np.abs(np.roll(expected, 1, axis=1) - expected).max() > 0.01, (
        "control: bands differ, so an exchange would show"
    )


def test_mel_filters_have_whispers_properties() -> None:
    filters = mel_filters(80).numpy()
    assert filters.shape == (80, 201)
    assert (filters >= 0).all() and (filters.sum(1) > 0).all(), "no band is empty"
    peaks = filters.argmax(1)
    assert (np.diff(peaks) >= 0).all()
    # two well-known entries of Whisper's mel_filters.npz (80 bands): the first triangle's peak and one near 1 kHz
    assert filters[0].max() == pytest.approx(0.02486259, abs=1e-6)
    assert filters[:, 25].argmax() in (26, 27)


def test_range_is_about_one() -> None:
    assert log_mel(np.zeros(8000, np.float32)).max() == -1
    loudest = log_mel(tone(1000, size=1.0)).max()
    assert 0.7 < loudest < 1
    assert FLOOR == 1e-5


def test_the_same_sound_means_the_same_beside_a_loud_one() -> None:
    quiet = tone(300, size=0.01)
    alone = log_mel(quiet)
    beside = log_mel(np.concatenate([quiet, tone(300, size=1.0)]))
    np.testing.assert_allclose(beside[:40], alone[:40], atol=1e-5)


def written(wave: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=kind, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_formats_and_rates(kind: str, subtype: str | None, rate: int, tmp_path) -> None:
    if subtype == "OPUS" and rate == 44100:
        pytest.skip("opus knows 8, 12, 16, 24 and 48 kHz")
    stereo = np.stack([tone(440, 1.0, rate), np.zeros(rate, np.float32)], 1)
    path = tmp_path / "sound"
    path.write_bytes(written(stereo, rate, kind, subtype))
    wave = open_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert len(wave) / RATE == pytest.approx(1.0, abs=0.1)
    middle = wave[4000:12000]
    assert np.abs(middle).max() == pytest.approx(0.25, abs=0.05), "the mean of 0.5 and silence"
    assert np.abs(np.fft.rfft(middle)).argmax() * 2 == pytest.approx(440, abs=4)


def test_pairs_of_samples_and_rate() -> None:
    wave = tone()
    np.testing.assert_array_equal(open_audio((wave, RATE)), wave)
    np.testing.assert_allclose(open_audio(((wave * 32768).astype(np.int16), RATE)), wave, atol=1e-4)
    np.testing.assert_allclose(open_audio(((wave * 127 + 128).round().astype(np.uint8), RATE)), wave, atol=0.01)
    np.testing.assert_allclose(open_audio((np.stack([wave, -wave], 1), RATE)), 0, atol=1e-7)
    assert len(open_audio((tone(rate=48000), 48000))) == 8000


def test_wrong_sounds_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"absent\.wav: there is no such file; a sound was expected"):
        open_audio(tmp_path / "absent.wav")
    whole = written(tone(), RATE, "WAV")
    flac = written(voice(), RATE, "FLAC")
    for name, content, said in [
        ("empty.wav", b"", "empty"),
        ("text.wav", b"these are words, not sound" * 9, "not a sound"),
        ("head.wav", whole[:20], "cut off"),
        ("head.flac", flac[:30], "not a sound"),
        ("none.wav", written(np.zeros(0), RATE, "WAV"), "no samples"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.*{said}"):
            open_audio(tmp_path / name)


@pytest.mark.parametrize(("kind", "said"), [("WAV", "48000 bytes are missing"), ("FLAC", "not a sound")])
def test_cut_off_sounds_are_refused_not_shortened(kind: str, said: str, tmp_path) -> None:
    data = written(np.tile(voice(), 3), RATE, kind)
    path = tmp_path / "cut.sound"
    path.write_bytes(data[: len(data) - 48000] if kind == "WAV" else data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"cut\.sound.*{said}"):
        open_audio(path)


def test_a_wav_of_unknown_length_is_read_whole() -> None:
    data = bytearray(written(voice(), RATE, "WAV"))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg writes into a pipe
    assert len(open_audio(bytes(data))) == RATE


def test_bad_samples_are_refused() -> None:
    for pair, said in [
        ((np.zeros(0, np.float32), RATE), "no samples"),
        ((np.array([0.0, np.nan]), RATE), "not finite"),
        ((np.zeros((2, 2, 2)), RATE), "shape"),
        ((np.zeros(9), 0), "rate over 0"),
        ((np.array(["a"]), RATE), "samples were expected"),
    ]:
        with pytest.raises(DataError, match=said):
            open_audio(pair, name="take 7")
    with pytest.raises(DataError, match="take 7"):
        open_audio((np.zeros(0), RATE), name="take 7")
    with pytest.raises(DataError, match="came as int"):
        open_audio(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shape"):
        log_mel(np.zeros(0, np.float32))


def test_frames_stack_and_carry_seconds() -> None:
    mel = np.random.default_rng(0).uniform(-1, 1, (20, 80)).astype(np.float32)
    values, positions, advance = frames(mel, 8)
    assert values.shape == (3, 640) and values.dtype == np.float16
    np.testing.assert_allclose(values[1].reshape(8, 80), mel[8:16], atol=1e-3)
    assert (values[2].reshape(8, 80)[4:] == -1).all(), "the rest of the last token is silence"
    assert positions.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]] and advance == 3
    halves = frames(mel, 4)
    assert halves.positions[:, 0].tolist() == [0, 0.5, 1, 1.5, 2] and halves.advance == 2.5, "positions follow seconds"


def test_the_way_back_is_close_and_repeats() -> None:
    mel = log_mel(voice())
    wave = to_wave(mel)
    assert len(wave) == len(mel) * 160
    error = np.abs(log_mel(wave) - mel).mean()
    noise = np.random.default_rng(0).normal(0, np.std(wave), len(wave)).astype(np.float32)
    assert error < 0.035
    assert np.abs(log_mel(noise) - mel).mean() > 5 * error, "control: noise of the same loudness is far off"
    np.testing.assert_array_equal(wave, to_wave(mel))
    assert np.abs(log_mel(to_wave(mel, iterations=0)) - mel).mean() > error, (
        "control: the phase is what iterating finds"
    )


def test_short_sounds_come_back_and_silence_stays_silent() -> None:
    for mel in (log_mel(voice(0.5)), log_mel(tone(300, 0.3))):
        wave = to_wave(mel)
        assert wave.shape == (160 * len(mel),) and np.abs(log_mel(wave) - mel).mean() < 0.06
    silent = to_wave(np.full((1, 80), -1, np.float32))
    assert silent.shape == (160,) and np.abs(silent).max() < 1e-2


def test_wav_comes_back_and_clips() -> None:
    wave = tone()
    np.testing.assert_allclose(open_audio(to_wav(wave)), wave, atol=1e-4)
    assert open_audio(to_wav(wave * 10)).max() == pytest.approx(1, abs=1e-3)


def test_filters_are_shared_not_rebuilt() -> None:
    assert audio.mel_filters(80) is audio.mel_filters(80)
