"""The image judge: a small network that reads what a picture shows, trained on real pictures only.

It knows nothing of the model that it judges: its own convolutions, its own training, real training rows. A drawing
counts when the judge reads exactly what was asked for, among everything that the training rows ask for. Its accuracy on
real held-out pictures is printed beside, since no drawing can be judged better than that.

Shape letters:  N pictures  S side in pixels  C channels  K readings it tells apart

    (N,3,S,S) -conv 3x3, halving-> 16 -> 32 -> 48 -> 64 channels -> [largest ; mean] over places (N,128) -> (N,K)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.modalities.image import square
from weft.train.machine import autocast, pick_dtype

WIDTHS = (16, 32, 48, 64)
BATCH, STEPS, RATE = 64, 600, 4e-3
SPARE = 1 << 20  # numbers of noise beyond those of one batch
MOVE = 4  # pixels that training pictures are moved by, of 64
Progress = Callable[[int, int, float], None]


class Net(nn.Module):
    """About 50,000 weights."""

    def __init__(self, readings: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        channels = (3, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if i < 3 else 1, padding=1, bias=False)
            for i, (a, b) in enumerate(pairwise(channels))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.out = nn.Linear(2 * widths[-1], readings)

    def forward(self, x: Tensor) -> Tensor:  # (N,3,S,S) -> (N,K)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.out(torch.cat((x.amax((2, 3)), x.mean((2, 3))), 1))


@dataclass
class ImageJudge:
    """`read` pictures as one of `readings`. side: pixels that it looks at."""

    readings: tuple[str, ...]
    side: int
    net: Net

    @classmethod
    def train(
        cls,
        images: Sequence[np.ndarray],
        readings: Sequence[str],
        *,
        side: int = 64,
        seed: int = 0,
        steps: int = STEPS,
        progress: Progress | None = None,
    ) -> ImageJudge:
        """images: uint8 (H,W,3), real ones; readings: what each shows. The same arguments give the same weights."""
        names = tuple(sorted(set(readings)))
        number = {name: i for i, name in enumerate(names)}
        x = stacked(images, side)  # (N,3,S,S) uint8
        y = torch.tensor([number[reading] for reading in readings])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _net(len(names))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(SPARE + BATCH * 3 * side * side, generator=generator)
        dtype = pick_dtype("auto", torch.device("cpu"))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.15)
        for step in range(steps):
            chosen = torch.randint(len(x), (min(BATCH, max(2, len(x))),), generator=generator)
            batch = disturbed(scaled(x[chosen]), generator, max(1, MOVE * side // 64), noise)
            with autocast(torch.device("cpu"), dtype):
                scores = net(batch)
            loss = F.cross_entropy(scores.float(), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress(step + 1, steps, float(loss.detach()))
        return cls(names, side, net.eval())

    @torch.no_grad()
    def read(self, images: Sequence[np.ndarray]) -> list[str]:
        """What each picture shows. uint8 (H,W,3) -> a reading."""
        found = []
        for start in range(0, len(images), 256):
            batch = scaled(stacked(images[start : start + 256], self.side))
            found += self.net(batch).argmax(1).tolist()
        return [self.readings[i] for i in found]

    def right(self, images: Sequence[np.ndarray], wanted: Sequence[str]) -> np.ndarray:
        """(N,) bool: whether each is read exactly as wanted."""
        return np.array([a == b for a, b in zip(self.read(images), wanted, strict=True)], dtype=bool)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts, to be saved."""
        return dict(self.net.state_dict()), {"readings": list(self.readings), "side": self.side}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> ImageJudge:
        net = _net(len(facts["readings"]))
        net.load_state_dict(tensors)
        return cls(tuple(facts["readings"]), facts["side"], net.eval())


def _net(readings: int) -> Net:
    """Its weights in the order of memory that convolutions on a CPU are quickest in."""
    net = Net(readings)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net


def stacked(images: Sequence[np.ndarray], side: int) -> Tensor:
    """Pictures of any size, letterboxed -> (N,3,S,S) uint8."""
    table = np.stack([square(image, side) for image in images])
    return torch.from_numpy(table).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def disturbed(x: Tensor, generator: torch.Generator, most: int, noise: Tensor) -> Tensor:
    """Moved by up to `most` pixels, half of them blurred a little, all made uneven a little, in patches and in pixels.

    Codes blur and mottle, real pictures do neither, and what a picture shows is in neither. Without patches, a judge
    of pictures with flat backgrounds took the faintest mottle for a grey shape: it read 14 % of coded real pictures.

    noise  normal numbers drawn once: each call takes others of them, from a place by chance (drawing them anew took a
           third of this)
    """
    right, down = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    side = x.shape[-1]
    moved = F.pad(x, (most,) * 4, mode="replicate")[:, :, down : down + side, right : right + side]
    half = len(x) // 2
    soft = F.avg_pool2d(F.pad(moved[:half], (1,) * 4, mode="replicate"), 3, stride=1)
    moved = torch.cat((soft, moved[half:]))
    strength = 0.1 * torch.rand((2, len(x), 1, 1, 1), generator=generator)
    cells = side // int(torch.randint(4, 13, (), generator=generator)) + 1
    mottle = F.interpolate(
        torch.randn((len(x), 3, cells, cells), generator=generator), size=(side, side), mode="nearest"
    )
    start = int(torch.randint(len(noise) - moved.numel() + 1, (), generator=generator))
    pixels = noise[start : start + moved.numel()].view(moved.shape)
    uneven = strength[0] * mottle + 0.5 * strength[1] * pixels
    return (moved + uneven).contiguous(memory_format=torch.channels_last)
