"""The speech judge: a small recogniser trained on real recordings only, that writes down what it hears.

It shares nothing with the model that it judges. Its training recordings are moved in pitch and speed, masked and made
noisy, so that it hears voices it does not know and sound that was made from codes. Its word error on real held-out
recordings is printed beside: speech cannot be judged better than that.

Shape letters:  B clips  T mel frames (10 ms)  M mel bands  N tokens of 80 ms  D width  K characters and the blank

    (B,T,M) -8 frames side by side-> (B,N,8M) -> D -> 6 x [depthwise convolution, feed-forward] -> 4 readings a token (B,4N,K)

Connectionist temporal classification: Graves et al. 2006. Separable convolutions: Kriman et al. 2019 (QuartzNet). Masking:
Park et al. 2019 (SpecAugment).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import DataError
from weft.evaluate.metrics import words
from weft.train.machine import autocast, pick_dtype

STACK, READINGS = 8, 4  # frames of a token, and characters it may become: 20 ms each
WIDTH, KERNELS = 160, (7, 7, 9, 9, 11, 11)
BATCH, STEPS, RATE = 32, 1400, 4e-3
SILENCE = -1.0
BLANK = 0
Progress = Callable[[int, int, float], None]


class Block(nn.Module):
    """Look at the neighbours, then think."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.near = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B,N,D) -> (B,N,D)
        y = self.near(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(y)))


class Net(nn.Module):
    """About 750,000 weights for 80 bands and 26 characters."""

    def __init__(self, mels: int, characters: int) -> None:
        super().__init__()
        self.classes = characters + 1
        self.into, self.first = nn.Linear(STACK * mels, WIDTH), nn.LayerNorm(WIDTH)
        self.body = nn.Sequential(*[Block(WIDTH, kernel) for kernel in KERNELS])
        self.last, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, READINGS * self.classes)

    def forward(self, mel: Tensor) -> Tensor:  # (B,T,M), T a multiple of 8 -> (B,T/2,K)
        b, t, m = mel.shape
        x = self.first(self.into(mel.reshape(b, t // STACK, STACK * m)))
        return self.out(self.last(self.body(x))).reshape(b, t // STACK * READINGS, self.classes)


@dataclass
class SpeechJudge:
    """`hear` log-mels as text. characters: the alphabet, lower case, without punctuation."""

    characters: str
    mels: int
    net: Net

    @classmethod
    def train(
        cls, mels: Sequence[np.ndarray], texts: Sequence[str], *, seed: int = 0, steps: int = STEPS,
        progress: Progress | None = None,
    ) -> SpeechJudge:  # fmt: skip
        """mels: log-mels (T,M) of real recordings; texts: what is said. The same arguments give the same weights.

        Raises DataError where no recording is long enough for its text.
        """
        plain = [normal(text) for text in texts]
        characters = "".join(sorted(set("".join(plain))))
        number = {character: i for i, character in enumerate(characters, 1)}
        clips = [mel.astype(np.float16) for mel in mels]
        wanted = [torch.tensor([number[c] for c in text]) for text in plain]
        usable = [i for i in range(len(clips)) if 0 < _places(wanted[i]) <= len(clips[i]) // STACK * READINGS]
        if not usable:
            raise DataError("No recording is long enough for the text beside it; a speech judge cannot be trained.")
        order = np.array(sorted(usable, key=lambda i: len(clips[i])))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Net(clips[0].shape[1], len(characters))
        rng, dtype = np.random.default_rng(seed), pick_dtype("auto", torch.device("cpu"))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.2)
        for step in range(steps):
            chosen = _alike(order, rng)
            mel, lengths = padded([warped(clips[i], rng) for i in chosen])
            with autocast(torch.device("cpu"), dtype):
                scores = net(disturbed(mel, rng))
            said = [wanted[i] for i in chosen]
            loss = F.ctc_loss(
                scores.float().log_softmax(-1).transpose(0, 1), torch.cat(said), lengths,
                torch.tensor([len(one) for one in said]), blank=BLANK, zero_infinity=True,
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress:
                progress(step + 1, steps, float(loss.detach()))
        return cls(characters, clips[0].shape[1], net.eval())

    @torch.no_grad()
    def hear(self, mels: Sequence[np.ndarray]) -> list[str]:
        """What is said in each log-mel (T,M), by the likeliest character at each place."""
        heard = [""] * len(mels)
        order = sorted(range(len(mels)), key=lambda i: len(mels[i]))
        for start in range(0, len(order), 64):
            chosen = [i for i in order[start : start + 64] if len(mels[i])]
            if not chosen:
                continue
            mel, lengths = padded([mels[i] for i in chosen])
            best = self.net(mel).argmax(-1)  # (B,T/2)
            for i, row, length in zip(chosen, best, lengths.tolist(), strict=True):
                ids = torch.unique_consecutive(row[:length]).tolist()
                heard[i] = " ".join("".join(self.characters[k - 1] for k in ids if k != BLANK).split())
        return heard

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts, to be saved."""
        return dict(self.net.state_dict()), {"characters": self.characters, "mels": self.mels}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any]) -> SpeechJudge:
        net = Net(facts["mels"], len(facts["characters"]))
        net.load_state_dict(tensors)
        return cls(facts["characters"], facts["mels"], net.eval())


def normal(text: str) -> str:
    """What is compared: lower-cased words without punctuation."""
    return " ".join(words(text))


def _places(ids: Tensor) -> int:
    """Places that a text takes: a blank must stand between equal neighbours."""
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def _alike(order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A batch of clips of like length: little padding, and still a new mixture each time. order: numbers by length."""
    window = min(len(order), 4 * BATCH)
    start = int(rng.integers(0, len(order) - window + 1))
    return order[start + rng.permutation(window)[:BATCH]]


def padded(mels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """-> (B,T,M) float32 filled with silence, T a multiple of 8, and (B,) readings that each clip has."""
    longest = -(-max(len(mel) for mel in mels) // STACK) * STACK
    table = np.full((len(mels), longest, mels[0].shape[1]), SILENCE, np.float32)
    for row, mel in zip(table, mels, strict=True):
        row[: len(mel)] = mel
    return torch.from_numpy(table), torch.tensor([-(-len(mel) // STACK) * READINGS for mel in mels])


def warped(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another speed and another throat, by nearest neighbours: up to 12 % in time and 10 % in mel bands; begun a little later."""
    speed, throat = rng.uniform(0.94, 1.12), rng.uniform(0.9, 1.1)
    frames = np.minimum(np.arange(int(len(mel) * speed)) / speed, len(mel) - 1).astype(np.int64)
    bands = np.minimum(np.arange(mel.shape[1]) * throat, mel.shape[1] - 1).astype(np.int64)
    late = np.full((int(rng.integers(0, STACK)), mel.shape[1]), SILENCE, mel.dtype)
    return np.concatenate((late, mel[frames][:, bands]))


def disturbed(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Louder or softer, over a floor of noise, with two stripes of time and of bands left out. (B,T,M) -> (B,T,M)"""
    b, t, m = mel.shape
    x = mel.numpy() + rng.normal(0, 0.15, (b, 1, 1)).astype(np.float32)
    floor = rng.uniform(-1.3, -0.4, (b, 1, 1)).astype(np.float32)
    x = np.maximum(x, floor + 0.1 * rng.standard_normal(x.shape, dtype=np.float32))
    for size, axis, most in ((t, 1, 12), (m, 2, 10)):
        for _ in range(2):
            start, width = rng.integers(0, size, b), rng.integers(0, most, b)
            at = np.arange(size)
            hidden = (at >= start[:, None]) & (at < (start + width)[:, None])  # (B,size)
            x = np.where(hidden[:, :, None] if axis == 1 else hidden[:, None, :], np.float32(SILENCE), x)
    return torch.from_numpy(np.clip(x, -1.0, 1.5))
