"""Images and sounds <-> a few discrete codes: what a language model can write, so what it can draw and say.

Shape letters:  B items  F numbers of one cell  (h,w) grid of cells  D numbers per code  L codes of one item
                S pixels per side  T frames  M mel bands

    image (S,S,3)  cut into h x w square cells ┐                                          ┌ cells -> image
    sound (T,M)    cut into 1 x w cells of     ├─ encoder ─> (h,w,D) ─> ids ─> decoder ───┤
                   `hop` frames                ┘             nearest code                 └ cells -> frames

Both are one small convolutional network at the resolution of the grid (`autoencoder.py`): one code per cell, and each
code means something only together with its neighbours. A codec is trained inside a run on the run's own items, in
seconds, and saved with it.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.errors import DataError, RecipeError, RunError
from weft.modalities.autoencoder import CodecConfig, Network, Progress, Training, learn
from weft.modalities.image import square
from weft.recipe import AudioRecipe, ImageRecipe

LAYOUT = 1  # of what weights and ids mean: a change of the network or of the order of cells or codes is another one
HELD = 200  # at most so many items are kept back to measure the error


@dataclass(frozen=True)
class CodecReport:
    """How well the codec came out.

    used        share of the codebook that the held-out items use
    perplexity  of their codes: as if so many codes were used equally often
    error       mean absolute error of held-out items, coded and decoded (images: of 255; sounds: log-mel, 1.0 is 40 dB)
    baseline    the same error if every item were replaced by the mean image or the mean frame
    seconds     training took
    items       trained on
    held        kept back to measure; 0 where there were fewer than ten, then the training items were measured
    """

    used: float
    perplexity: float
    error: float
    baseline: float
    seconds: float
    items: int
    held: int


@dataclass(frozen=True)
class Lesson:
    """What a codec learns from: its shape, its settings, where batches come from, and what its report compares.

    draw    generator -> cells of a batch (B,h,w,F)
    mean    what the baseline says of every item or frame
    shown   items to measure on;  counts: trained on, kept back
    """

    config: CodecConfig
    settings: dict[str, int]
    draw: Callable[[torch.Generator], Tensor]
    mean: np.ndarray
    shown: list[np.ndarray]
    counts: tuple[int, int]


class Codec(ABC):
    """What the image and the sound codec share: the network, its training, its files."""

    kind: ClassVar[str]
    STEPS: ClassVar[int]

    def __init__(self, config: CodecConfig, settings: dict[str, int], network: Network, device: str = "cpu") -> None:
        self.config, self.settings, self.device = config, settings, torch.device(device)
        self.network = network.to(self.device).eval()

    @property
    def size(self) -> int:
        """How many codes there are: ids are 0 .. size - 1."""
        return self.config.codebook

    @classmethod
    def train(
        cls, items: Sequence[np.ndarray], settings: Any, *, seed: int = 0, steps: int = 0,
        progress: Progress | None = None, device: str = "cpu",
    ) -> tuple[Self, CodecReport]:  # fmt: skip
        """Learn to code pictures (H,W,3) uint8 by an `ImageRecipe`, or log-mels (T,M) float32 by an `AudioRecipe`.

        Items of any sizes: pictures are made `square`, of sounds every `settings.hop` frames become one code.
        Deterministic for a seed and a machine; `steps` 0 takes STEPS. `progress` is called after each step. Raises
        DataError without items or with an empty sound; RecipeError for a hop under 1, and if `codes` is no square
        number or its grid does not divide `size`.
        """
        lesson = cls._lesson(items, settings, seed)
        started = time.perf_counter()
        network = learn(lesson.config, lesson.draw, Training(steps or cls.STEPS), seed, progress, device)
        seconds = time.perf_counter() - started
        codec = cls(lesson.config, lesson.settings, network, device)
        return codec, measure(codec, lesson.shown, lesson.mean, seconds, lesson.counts)

    @classmethod
    @abstractmethod
    def _lesson(cls, items: Sequence[np.ndarray], settings: Any, seed: int) -> Lesson:
        """What to learn from these items. Raises as `train` says."""

    @abstractmethod
    def encode(self, items: Sequence[np.ndarray], /) -> list[np.ndarray]:
        """Items -> the codes of each."""

    @abstractmethod
    def decode(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes -> items."""

    def save(self, folder: str | Path) -> None:
        """Write `codec.json` and `codec.safetensors` into `folder` (made if missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"kind": self.kind, "layout": LAYOUT, "config": asdict(self.config), "settings": self.settings}
        (folder / "codec.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        state = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_file(state, str(folder / "codec.safetensors"))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Codec:
        """Read what `save` wrote. Raises RunError for what is missing, damaged or of another kind."""
        folder = Path(folder)
        try:
            told = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
            if told["kind"] != cls.kind:
                raise RunError(f"{folder}: a codec for {told['kind']} lies there; one for {cls.kind} was expected")
            layout = told.get("layout", 1)  # what was written before layouts had numbers is the first
            if layout != LAYOUT:
                raise RunError(
                    f"{folder}: its codes are of layout {layout}, this weft reads layout {LAYOUT}: they would decode "
                    "to noise. Train the run anew, or open it with the weft that wrote it (`weft` in metrics.jsonl)"
                )
            config = CodecConfig(**told["config"])
            network, state = Network(config), load_file(str(folder / "codec.safetensors"))
            state.setdefault("codebook.error", torch.zeros(()))  # of codecs without slack from before there was any
            network.load_state_dict(state)
        except RunError:
            raise
        except Exception as error:  # a damaged file fails in json, safetensors or torch, each in its own way
            raise RunError(f"{folder}: not a readable codec ({error}); restore the folder or train again") from error
        return cls(config, told["settings"], network, device)

    def _check(self, ids: np.ndarray, name: str) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise DataError(
                f"{name} came as {ids.dtype} of shape {ids.shape}; (L,) whole numbers, at least one, were expected"
            )
        if ids.min() < 0 or ids.max() >= self.size:
            raise DataError(f"{name} holds codes {ids.min()} to {ids.max()}; 0 to {self.size - 1} was expected")
        return ids.astype(np.int64)


class ImageCodec(Codec):
    """Square pictures <-> a grid of codes, row by row.

    Measured on easy-vqa's 4,000 training pictures and 1,797 digits (200 of them held out, 64 codes of 512, 1,000 steps
    of about 0.06 s on one core): error 2.1 of 255 against 43.2 for the mean picture, 95 % of the codebook in use,
    perplexity 280. A small network that reads shape and colour of all of 702 unseen pictures reads 93 % of them after
    the codec; 80 % where that trained for 400 steps.
    """

    kind = "image"
    STEPS: ClassVar[int] = 1000
    DRAWN: ClassVar[int] = 32  # pictures per step
    SLACK: ClassVar[float] = 4.0  # of `CodecConfig`
    BATCH: ClassVar[int] = 256  # coded at once

    @classmethod
    def _lesson(cls, items: Sequence[np.ndarray], settings: ImageRecipe, seed: int) -> Lesson:
        rows = round(settings.codes**0.5)
        if rows * rows != settings.codes or rows < 1 or settings.size % rows:
            raise RecipeError(
                f"image.codes is {settings.codes} at image.size {settings.size}: a square number is needed, whose root "
                f"divides the size, such as {max(1, settings.size // 8) ** 2}"
            )
        if not len(items):
            raise DataError("there are no images to train an image codec on; it needs at least one")
        side = settings.size // rows
        pictures = np.stack([square(item, settings.size) for item in items])  # (n,S,S,3)
        train, held = split(len(pictures), seed)

        def draw(generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(train), (min(cls.DRAWN, max(8, len(train))),), generator=generator)
            return _to_cells(torch.from_numpy(pictures[train[chosen.numpy()]]), side)

        return Lesson(
            CodecConfig(3 * side * side, rows, settings.codebook, slack=cls.SLACK),
            {"size": settings.size, "codes": settings.codes}, draw, pictures[train].mean(0, dtype=np.float32),
            list(pictures[held if len(held) else train]), (len(train), len(held)),
        )  # fmt: skip

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[(H,W,3) uint8] -> [(codes,) int64], row by row. Pictures of another size are made `square` first."""
        size, side = self.settings["size"], self.settings["size"] // self.config.rows
        done: list[np.ndarray] = []
        for start in range(0, len(images), self.BATCH):
            pictures = np.stack([square(image, size) for image in images[start : start + self.BATCH]])
            ids = self.network.ids(_to_cells(torch.from_numpy(pictures), side).to(self.device))
            done += list(ids.flatten(1).cpu().numpy())
        return done

    @torch.inference_mode()
    def decode(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[(codes,)] -> [(S,S,3) uint8]. Raises DataError for another number of codes or ids out of range."""
        rows, done = self.config.rows, []
        checked = [self._check(one, f"image {index}") for index, one in enumerate(ids)]
        for index, one in enumerate(checked):
            if len(one) != rows * rows:
                raise DataError(f"image {index} has {len(one)} codes; {rows * rows} were expected")
        for start in range(0, len(checked), self.BATCH):
            grid = torch.from_numpy(np.stack(checked[start : start + self.BATCH])).view(-1, rows, rows)
            cells = self.network.cells(grid.to(self.device)).cpu()
            done += list(_to_pictures(cells, self.settings["size"] // rows).numpy())
        return done


class AudioCodec(Codec):
    """Log-mel frames <-> one code per `hop` frames (40 ms at the default 4).

    Measured on 186 sentences of one eSpeak NG voice (254 s; 18 sentences held out, codebook of 512, 700 steps, 26 s of
    one core): error 0.037 (1.5 dB) against 0.253 for the mean frame, 57 % of the codebook used by the held-out
    sentences, perplexity 238. As a waveform (Griffin-Lim) and back: 0.041; the way through the waveform alone: 0.018.
    """

    kind = "audio"
    STEPS: ClassVar[int] = 700
    DRAWN: ClassVar[int] = 16  # crops per step
    BATCH: ClassVar[int] = 64
    CROP: ClassVar[int] = 32  # codes per training crop

    @classmethod
    def _lesson(cls, items: Sequence[np.ndarray], settings: AudioRecipe, seed: int) -> Lesson:
        hop, mels = settings.hop, settings.mels
        if hop < 1:
            raise RecipeError(f"audio.hop is {hop}; it counts the frames of one code, so 1 or more was expected")
        if not len(items):
            raise DataError("there are no sounds to train an audio codec on; it needs at least one")
        for index, item in enumerate(items):
            _check_mel(item, mels, f"sound {index}")
        sounds = [np.asarray(item, np.float32) for item in items]
        train, held = split(len(sounds), seed)
        silence = np.full((hop, mels), -1, np.float32)
        parts = [part for index in train for part in (sounds[index], silence)] + [silence] * cls.CROP
        flat = torch.from_numpy(np.concatenate(parts))  # (frames,M): all of them, one after the other

        def draw(generator: torch.Generator) -> Tensor:
            starts = torch.randint(len(flat) - cls.CROP * hop + 1, (cls.DRAWN, 1), generator=generator)
            crops = flat[starts + torch.arange(cls.CROP * hop)]  # (B,frames,M), from any frame on
            return crops.view(cls.DRAWN, 1, cls.CROP, hop * mels)  # (B,1,w,F)

        return Lesson(
            CodecConfig(hop * mels, 0, settings.codebook), {"hop": hop, "mels": mels}, draw,
            np.concatenate([sounds[i] for i in train]).mean(0), [sounds[i] for i in (held if len(held) else train)],
            (len(train), len(held)),
        )  # fmt: skip

    @torch.inference_mode()
    def encode(self, mels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[(T,M) float32] -> [(ceil(T / hop),) int64]; the last cell is filled with silence."""
        hop, bands = self.settings["hop"], self.settings["mels"]
        for index, mel in enumerate(mels):
            _check_mel(mel, bands, f"sound {index}")
        lengths = [-(-len(mel) // hop) for mel in mels]
        done: list[np.ndarray] = [np.empty(0, np.int64)] * len(mels)
        for chosen in _batches(lengths, self.BATCH):
            width = max(lengths[i] for i in chosen)
            padded = np.full((len(chosen), width * hop, bands), -1, np.float32)
            for row, index in enumerate(chosen):
                padded[row, : len(mels[index])] = mels[index]
            cells = torch.from_numpy(padded).view(len(chosen), 1, width, hop * bands)
            mask = _mask([lengths[i] for i in chosen], width).to(self.device)
            ids = self.network.ids(cells.to(self.device), mask)[:, 0].cpu().numpy()  # (B,w)
            for row, index in enumerate(chosen):
                done[index] = ids[row, : lengths[index]]
        return done

    @torch.inference_mode()
    def decode(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[(L,)] -> [(L * hop,M) float32] log-mels, for `audio.to_wave`. Raises DataError for ids out of range."""
        hop, bands = self.settings["hop"], self.settings["mels"]
        checked = [self._check(one, f"sound {index}") for index, one in enumerate(ids)]
        lengths = [len(one) for one in checked]
        done: list[np.ndarray] = [np.empty(0, np.float32)] * len(checked)
        for chosen in _batches(lengths, self.BATCH):
            width = max(lengths[i] for i in chosen)
            padded = np.zeros((len(chosen), 1, width), np.int64)
            for row, index in enumerate(chosen):
                padded[row, 0, : lengths[index]] = checked[index]
            mask = _mask([lengths[i] for i in chosen], width).to(self.device)
            cells = self.network.cells(torch.from_numpy(padded).to(self.device), mask)  # (B,1,w,F)
            frames = cells.view(len(chosen), width * hop, bands).clamp_min(-1).cpu().numpy()
            for row, index in enumerate(chosen):
                done[index] = frames[row, : lengths[index] * hop]
        return done


def measure(
    codec: Codec, shown: list[np.ndarray], mean: np.ndarray, seconds: float, counts: tuple[int, int]
) -> CodecReport:
    """Code `shown` and compare with what comes back; `mean` is what the baseline says of every item or frame."""
    ids = codec.encode(shown)
    back = [one[: len(item)] for one, item in zip(codec.decode(ids), shown, strict=True)]
    error = np.abs(np.concatenate(back) - np.concatenate(shown).astype(np.float32)).mean()
    baseline = np.concatenate([np.abs(item - mean) for item in shown]).mean()
    return CodecReport(*usage(ids, codec.size), float(error), float(baseline), seconds, *counts)


def usage(ids: Sequence[np.ndarray], size: int) -> tuple[float, float]:
    """Share of the codebook used, and the perplexity of the codes."""
    counts = np.bincount(np.concatenate(list(ids)), minlength=size)
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).mean()), float(np.exp(-(share * np.log(share)).sum()))


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the items to train on and of those kept back: a tenth, at most HELD; none of fewer than ten."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(count // 10, HELD)
    return order[held:], order[:held]


def _batches(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Numbers of items in groups of `size`, of like length, so that little is padded."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _mask(lengths: Sequence[int], width: int) -> Tensor:
    """(B,1,w,1): 1 where an item still is, 0 beyond its end."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).float()[:, None, :, None]


def _check_mel(mel: np.ndarray, mels: int, name: str) -> None:
    if getattr(mel, "ndim", 0) != 2 or mel.shape[1] != mels or not len(mel):
        raise DataError(f"{name} has shape {np.shape(mel)}; log-mel frames (T,{mels}), at least one, were expected")


def _to_cells(pictures: Tensor, side: int) -> Tensor:
    """(B,S,S,3) uint8 -> (B,h,w,side*side*3) float in [-1,1]."""
    count, rows = len(pictures), pictures.shape[1] // side
    cells = pictures.view(count, rows, side, rows, side, 3).transpose(2, 3).reshape(count, rows, rows, -1)
    return cells.float() / 127.5 - 1


def _to_pictures(cells: Tensor, side: int) -> Tensor:
    """(B,h,w,side*side*3) -> (B,S,S,3) uint8."""
    count, rows = cells.shape[:2]
    pictures = cells.view(count, rows, rows, side, side, 3).transpose(2, 3).reshape(count, rows * side, rows * side, 3)
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte()
