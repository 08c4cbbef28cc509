"""Images and sounds <-> a few discrete codes: what a language model can write, so what it can draw and say.

Shape letters:  B items  F numbers of one cell  (h,w) grid of cells  C channels  D numbers per code  L codes of one item

    image (S,S,3)  cut into h x w square cells ┐                                          ┌ cells -> image
    sound (T,M)    cut into 1 x w cells of     ├─ encoder ─> (D,h,w) ─> ids ─> decoder ───┤
                   `hop` frames                ┘             nearest code                 └ cells -> frames

Both are one small convolutional network at the resolution of the grid: one code per cell, and each code means something
only together with its neighbours, as in VQ-VAE (van den Oord et al. 2017). A codec is trained inside a run on the run's own
items, in seconds, and saved with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weft.errors import DataError, RecipeError, RunError
from weft.modalities.image import square
from weft.modalities.quantize import Codebook
from weft.recipe import AudioRecipe, ImageRecipe

Progress = Callable[[int, int, float], None]  # (step, steps, loss), after each step
DETAIL = 20  # how much more a busy cell counts in training (see `_detail`)
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
class CodecConfig:
    """The network. `cell` numbers per cell; `rows` 0: a sound, whose grid is 1 x any width."""

    cell: int
    rows: int
    codebook: int
    channels: int = 48
    wide: int = 256  # inside the networks on single cells
    latent: int = 16
    encoder: int = 2  # blocks
    decoder: int = 3

    @property
    def kernel(self) -> tuple[int, int]:
        return (3, 3) if self.rows else (1, 5)


@dataclass(frozen=True)
class Training:
    """How a codec is trained: the same for images and sounds but for the batch."""

    steps: int
    batch: int
    lr: float = 0.02  # Muon's, for matrices
    adam_lr: float = 3e-3  # AdamW's, for the rest
    alone: float = 0.1  # share of the steps without a codebook, so that k-means finds vectors worth the name
    commit: float = 0.25  # weight of staying near one's code


class Conv(nn.Module):
    """A convolution whose weight is kept as a matrix (out, in*kh*kw), which is the shape Muon orthogonalises."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int] = (1, 1), scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (outside, inside, *kernel)
        fan = inside * kernel[0] * kernel[1]
        self.weight = nn.Parameter(torch.empty(outside, fan).uniform_(-1, 1) * scale * (3 / fan) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor) -> Tensor:
        """(B,in,h,w) -> (B,out,h,w)."""
        padding = (self.shape[2] // 2, self.shape[3] // 2)
        return F.conv2d(x, self.weight.view(self.shape), self.bias, padding=padding)


class Block(nn.Module):
    """Look at the neighbours and at the whole, think; added to what was there.  x (B,C,h,w), mask (B,1,h,w) or None."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.look = Conv(channels, channels, kernel)
        self.think = Conv(channels, channels, scale=0.1)  # starts near the identity

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = _rms(x) if mask is None else _rms(x) * mask  # what lies beyond the end looks like the edge
        return x + self.think(F.gelu(self.look(normed)))


def _rms(x: Tensor) -> Tensor:
    """Each place of (B,C,h,w) to size one: blind to padding and to length."""
    return x * x.square().mean(1, keepdim=True).add(1e-5).rsqrt()


class Coder(nn.Module):
    """(B,in,h,w) -> (B,out,h,w): a small network on each cell, blocks that look around, a small network on each cell."""

    def __init__(self, inside: int, outside: int, depth: int, config: CodecConfig) -> None:
        super().__init__()
        channels, wide = config.channels, config.wide
        self.read = nn.Sequential(Conv(inside, wide), nn.GELU(), Conv(wide, channels))
        self.blocks = nn.ModuleList(Block(channels, config.kernel) for _ in range(depth))
        self.write = nn.Sequential(Conv(channels, wide), nn.GELU(), Conv(wide, outside))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.write(_rms(x))


class Network(nn.Module):
    """Cells -> vectors -> ids -> vectors -> cells."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.encoder = Coder(config.cell, config.latent, config.encoder, config)
        self.decoder = Coder(config.latent, config.cell, config.decoder, config)
        self.codebook = Codebook(config.codebook, config.latent)

    def ids(self, cells: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,F,h,w) -> (B,h,w) int64."""
        z = self.encoder(cells, mask)
        return self.codebook.nearest(_flat(z)).view(z.shape[0], *z.shape[2:])

    def cells(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,h,w) -> (B,F,h,w)."""
        return self.decoder(self.codebook(ids).permute(0, 3, 1, 2), mask)


def _flat(z: Tensor) -> Tensor:
    """(B,D,h,w) -> (B*h*w,D)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


class Codec:
    """What the image and the sound codec share: the network, its training, its files."""

    kind: ClassVar[str]

    def __init__(self, config: CodecConfig, settings: dict[str, int], network: Network, device: str = "cpu") -> None:
        self.config, self.settings, self.device = config, settings, torch.device(device)
        self.network = network.to(self.device).eval()

    @property
    def size(self) -> int:
        """How many codes there are: ids are 0 .. size - 1."""
        return self.config.codebook

    def save(self, folder: str | Path) -> None:
        """Write `codec.json` and `codec.safetensors` into `folder` (made if missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {"kind": self.kind, "config": asdict(self.config), "settings": self.settings}
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
            config = CodecConfig(**told["config"])
            network = Network(config)
            network.load_state_dict(load_file(str(folder / "codec.safetensors")))
        except RunError:
            raise
        except Exception as error:  # a damaged file fails in json, safetensors or torch, each in its own way
            raise RunError(f"{folder}: not a readable codec ({error}); restore the folder or train again") from error
        return cls(config, told["settings"], network, device)

    def _check(self, ids: np.ndarray, name: str) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise DataError(f"{name} came as {ids.dtype} of shape {ids.shape}; (L,) whole numbers, at least one, were expected")
        if ids.min() < 0 or ids.max() >= self.size:
            raise DataError(f"{name} holds codes {ids.min()} to {ids.max()}; 0 to {self.size - 1} was expected")
        return ids.astype(np.int64)


class ImageCodec(Codec):
    """Square pictures <-> a grid of codes, row by row."""

    kind = "image"
    BATCH: ClassVar[int] = 256  # coded at once

    @classmethod
    def train(
        cls, items: Sequence[np.ndarray], settings: ImageRecipe, *, seed: int = 0, steps: int = 0,
        progress: Progress | None = None, device: str = "cpu",
    ) -> tuple[ImageCodec, CodecReport]:
        """Learn to code (H,W,3) uint8 pictures (any sizes: they are made `square`) in `settings.codes` codes each.

        Deterministic for a seed and a machine; `steps` 0 takes the default. Raises DataError without pictures, RecipeError
        if `codes` is no square number or its grid does not divide `size`.
        """
        rows = round(settings.codes**0.5)
        if rows * rows != settings.codes or rows < 1 or settings.size % rows:
            raise RecipeError(
                f"image.codes is {settings.codes} at image.size {settings.size}: codes must be a square number whose root "
                f"divides the size, such as {(settings.size // 8) ** 2}"
            )
        if not len(items):
            raise DataError("there are no images to train an image codec on; it needs at least one")
        side = settings.size // rows
        pictures = torch.from_numpy(np.stack([square(item, settings.size) for item in items]))  # (n,S,S,3) uint8
        train, held = _split(len(pictures), seed)
        batch = min(32, max(8, len(train)))

        def draw(generator: torch.Generator) -> Tensor:
            chosen = torch.randint(len(train), (batch,), generator=generator)
            return _to_cells(pictures[train[chosen]], side)

        config = CodecConfig(3 * side * side, rows, settings.codebook)
        started = time.perf_counter()
        network = _learn(config, draw, Training(steps or 1000, batch), seed, progress, device)
        seconds = time.perf_counter() - started
        codec = cls(config, {"size": settings.size, "codes": settings.codes}, network, device)
        shown = pictures[held if len(held) else train].numpy()
        ids = codec.encode(list(shown))
        error = float(np.abs(np.stack(codec.decode(ids)).astype(np.float32) - shown).mean())
        mean = pictures[train].float().mean(0).numpy()
        used, perplexity = usage(ids, codec.size)
        trivial = float(np.abs(shown - mean).mean())
        return codec, CodecReport(used, perplexity, error, trivial, seconds, len(train), len(held))

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
    """Log-mel frames <-> one code per `hop` frames (40 ms at the default 4)."""

    kind = "audio"
    BATCH: ClassVar[int] = 64
    CROP: ClassVar[int] = 32  # codes per training crop

    @classmethod
    def train(
        cls, items: Sequence[np.ndarray], settings: AudioRecipe, *, seed: int = 0, steps: int = 0,
        progress: Progress | None = None, device: str = "cpu",
    ) -> tuple[AudioCodec, CodecReport]:
        """Learn to code log-mels (T,M) float32 (`audio.log_mel`), any lengths, one code per `settings.hop` frames.

        Deterministic for a seed and a machine; `steps` 0 takes the default. Raises DataError without sounds or with an
        empty one, RecipeError for a hop under 1.
        """
        hop, mels = settings.hop, settings.mels
        if hop < 1:
            raise RecipeError(f"audio.hop is {hop}; it counts the frames of one code, so 1 or more was expected")
        if not len(items):
            raise DataError("there are no sounds to train an audio codec on; it needs at least one")
        for index, item in enumerate(items):
            _check_mel(item, mels, f"sound {index}")
        train, held = _split(len(items), seed)
        silence = torch.full((hop, mels), -1.0)
        pieces = [piece for index in train for piece in (torch.from_numpy(np.asarray(items[index], np.float32)), silence)]
        flat = torch.cat([*pieces, silence.repeat(cls.CROP, 1)])  # (frames,M), one after the other
        crop = cls.CROP * hop

        def draw(generator: torch.Generator) -> Tensor:
            starts = torch.randint(len(flat) - crop + 1, (16,), generator=generator)
            crops = flat[starts[:, None] + torch.arange(crop)]  # (B,crop,M)
            return crops.view(len(starts), cls.CROP, hop * mels).transpose(1, 2)[:, :, None]  # (B,F,1,w)

        config = CodecConfig(hop * mels, 0, settings.codebook)
        started = time.perf_counter()
        network = _learn(config, draw, Training(steps or 700, 16), seed, progress, device)
        seconds = time.perf_counter() - started
        codec = cls(config, {"hop": hop, "mels": mels}, network, device)
        shown = [np.asarray(items[i], np.float32) for i in (held if len(held) else train)]
        ids = codec.encode(shown)
        back = codec.decode(ids)
        whole = np.concatenate(shown)
        error = float(np.abs(np.concatenate([b[: len(s)] for b, s in zip(back, shown, strict=True)]) - whole).mean())
        mean = np.concatenate([items[i] for i in train]).mean(0)
        used, perplexity = usage(ids, codec.size)
        trivial = float(np.abs(whole - mean).mean())
        return codec, CodecReport(used, perplexity, error, trivial, seconds, len(train), len(held))

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
            cells = torch.from_numpy(padded).view(len(chosen), width, hop * bands).transpose(1, 2)[:, :, None]
            mask = _mask([lengths[i] for i in chosen], width).to(self.device)
            ids = self.network.ids(cells.to(self.device), mask)[:, 0].cpu().numpy()  # (B,w)
            for row, index in enumerate(chosen):
                done[index] = ids[row, : lengths[index]]
        return done

    @torch.inference_mode()
    def decode(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """[(L,)] -> [(L * hop,M) float32] log-mels, for `audio.to_waves`. Raises DataError for ids out of range."""
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
            cells = self.network.cells(torch.from_numpy(padded).to(self.device), mask)[:, :, 0]  # (B,F,w)
            frames = cells.transpose(1, 2).reshape(len(chosen), width * hop, bands).clamp_min(-1).cpu().numpy()
            for row, index in enumerate(chosen):
                done[index] = frames[row, : lengths[index] * hop]
        return done


def usage(ids: Sequence[np.ndarray], size: int) -> tuple[float, float]:
    """Share of the codebook used, and the perplexity of the codes."""
    counts = np.bincount(np.concatenate(list(ids)), minlength=size)
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).mean()), float(np.exp(-(share * np.log(share)).sum()))


def _learn(
    config: CodecConfig, draw: Callable[[torch.Generator], Tensor], plan: Training, seed: int,
    progress: Progress | None, device: str,
) -> Network:
    """Train on batches (B,F,h,w) from `draw`: first without the codebook, then with it."""
    if config.codebook < 2:
        raise RecipeError(f"a codebook of {config.codebook} codes tells nothing apart; give 2 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    kind, fast = torch.device(device).type, _half_is_fast(torch.device(device))
    optimizers = _optimizers(network, plan)
    alone = int(plan.steps * plan.alone)
    for step in range(plan.steps):
        cells = draw(generator).to(device)
        if step == alone:
            _start(network, [cells] + [draw(generator).to(device) for _ in range(7)], generator)
        with torch.autocast(kind, torch.bfloat16, enabled=fast):
            z = network.encoder(cells)
        z, commit = z.float(), torch.zeros((), device=device)
        if step >= alone:
            flat = _flat(z)
            code = network.codebook(network.codebook.follow(flat.detach(), generator))
            commit = F.mse_loss(flat, code)
            passed = flat + (code - flat).detach()
            z = passed.view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        with torch.autocast(kind, torch.bfloat16, enabled=fast):
            back = network.decoder(z)
        weight = _detail(cells)
        loss = ((back.float() - cells).abs() * weight).mean() + plan.commit * commit
        network.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20, max(0.02, 2 * (1 - step / plan.steps)))
            optimizer.step()
        if progress:
            progress(step + 1, plan.steps, float(loss.detach()))
    return network.eval()


def _optimizers(network: Network, plan: Training) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices, AdamW for the rest, each with its highest rate."""
    matrices = [value for value in network.parameters() if value.ndim == 2]
    rest = [value for value in network.parameters() if value.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=plan.lr, weight_decay=0.01, momentum=0.95)
    return [(muon, plan.lr), (torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.99)), plan.adam_lr)]


def _detail(cells: Tensor) -> Tensor:
    """(B,F,h,w) -> (B,1,h,w), mean 1: cells with much going on in them count more than plain ones.

    Most cells of a drawing are background, of a recording silence; without this, edges are what a short training leaves out.
    """
    spread = (cells.square().mean(1, keepdim=True) - cells.mean(1, keepdim=True).square()).clamp_min(0).sqrt()
    weight = 1 + DETAIL * spread
    return weight / weight.mean()


@torch.no_grad()
def _start(network: Network, batches: list[Tensor], generator: torch.Generator) -> None:
    vectors = torch.cat([_flat(network.encoder(cells)) for cells in batches])
    network.codebook.start(vectors, len(vectors) // len(batches), generator)


def _half_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 products are quicker than float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the items to train on and of those kept back: a tenth, at most HELD; none of fewer than ten."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = min(count // 10, HELD)
    return order[held:], order[:held]


def _batches(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Numbers of items in groups of `size`, of like length, so that little is padded."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _mask(lengths: Sequence[int], width: int) -> Tensor:
    """(B,1,1,w): 1 where an item still is, 0 beyond its end."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).float()[:, None, None]


def _check_mel(mel: np.ndarray, mels: int, name: str) -> None:
    if getattr(mel, "ndim", 0) != 2 or mel.shape[1] != mels or not len(mel):
        raise DataError(f"{name} has shape {np.shape(mel)}; log-mel frames (T,{mels}), at least one, were expected")


def _to_cells(pictures: Tensor, side: int) -> Tensor:
    """(B,S,S,3) uint8 -> (B,3*side*side,h,w) float in [-1,1]."""
    cells = F.pixel_unshuffle(pictures.permute(0, 3, 1, 2).float(), side)
    return cells / 127.5 - 1


def _to_pictures(cells: Tensor, side: int) -> Tensor:
    """(B,3*side*side,h,w) -> (B,S,S,3) uint8."""
    pictures = (F.pixel_shuffle(cells, side) + 1) * 127.5
    return pictures.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
