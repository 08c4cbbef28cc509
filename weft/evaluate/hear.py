"""The speech judge: a small recogniser trained on real recordings only, that writes down what it hears.

It shares nothing with the model that it judges. Its training recordings are moved in pitch and speed, masked and made
noisy, so that it hears voices it does not know and sound that was made from codes. Its word error on real held-out
recordings is printed beside: speech cannot be judged better than that.

Shape letters:  B clips  T mel frames (10 ms)  M mel bands  N tokens of 40 ms  D width  K characters and the blank

    (B,T,M) -4 frames side by side-> (B,N,4M) -> D -> 4 x [depthwise convolution, feed-forward] -> 2 readings: (B,2N,K)

It sees about half a second to each side, so that it spells what it hears rather than reciting a sentence it knows (with
tokens of 80 ms and wide kernels, sentences that it had not met were three times as often misheard).

Connectionist temporal classification: Graves et al. 2006. Separable convolutions: Kriman et al. 2019 (QuartzNet).
Masking: Park et al. 2019 (SpecAugment).
"""

from __future__ import annotations

from collections import Counter
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

STACK, READINGS = 4, 2  # frames of a token, and characters it may become: 20 ms each
WIDTH, KERNELS = 160, (5, 5, 7, 7)
BATCH, STEPS = 32, 600
RATE, REST = 0.008, 0.004  # Muon's for matrices (AdamW alone had 5 times the word error after as many steps), AdamW's
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
    """About 480,000 weights for 80 bands and 26 characters."""

    def __init__(self, mels: int, characters: int) -> None:
        super().__init__()
        self.classes = characters + 1
        self.into, self.first = nn.Linear(STACK * mels, WIDTH), nn.LayerNorm(WIDTH)
        self.body = nn.Sequential(*[Block(WIDTH, kernel) for kernel in KERNELS])
        self.last, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, READINGS * self.classes)

    def forward(self, mel: Tensor) -> Tensor:  # (B,T,M), T a multiple of 4 -> (B,T/2,K)
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
        places = [_places(one) for one in wanted]
        usable = [i for i, mel in enumerate(clips) if 0 < places[i] <= len(mel) // STACK * READINGS]
        if not usable:
            raise DataError("No recording is long enough for the text beside it; a speech judge cannot be trained.")
        order = np.array(sorted(usable, key=lambda i: len(clips[i])))
        often = Counter(plain)
        weights = np.array([often[plain[i]] ** -0.5 for i in order])  # what many say is not all that is to be learnt
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Net(clips[0].shape[1], len(characters))
        rng, dtype = np.random.default_rng(seed), pick_dtype("auto", torch.device("cpu"))
        optimizers, schedules = _optimizers(net, steps)
        for step in range(steps):
            chosen = order[_alike(weights, rng)]
            mel, lengths = padded([warped(clips[i], rng) for i in chosen])
            with autocast(torch.device("cpu"), dtype):
                scores = net(disturbed(mel, rng))
            loss = _loss(scores, lengths, [wanted[i] for i in chosen])
            net.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for part in (*optimizers, *schedules):
                part.step()
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


def _loss(scores: Tensor, lengths: Tensor, wanted: Sequence[Tensor]) -> Tensor:
    """Minus the log probability of the texts, over all ways to spread them over the places. scores (B,P,K)"""
    said = torch.tensor([len(one) for one in wanted])
    likely = scores.float().log_softmax(-1).transpose(0, 1)  # (B,P,K) -> (P,B,K)
    return F.ctc_loss(likely, torch.cat(list(wanted)), lengths, said, blank=BLANK, zero_infinity=True)


def _optimizers(net: Net, steps: int) -> tuple[list[torch.optim.Optimizer], list[Any]]:
    """Muon for the matrices and AdamW for the rest; both warm up for a tenth and come down over the last 60 %."""
    matrices = [p for p in net.parameters() if p.dim() == 2]
    rest = [p for p in net.parameters() if p.dim() != 2]
    optimizers = [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=REST, weight_decay=0.01),
    ]
    rate = lambda step: min(1.0, 10 * (step + 1) / steps) * min(1.0, max(0.01, (steps - step) / (0.6 * steps)))
    return optimizers, [torch.optim.lr_scheduler.LambdaLR(one, rate) for one in optimizers]


def _alike(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places of a batch of clips of like length, so that little is padding. weights (n,): in the order of lengths."""
    count = len(weights)
    window = min(count, 4 * BATCH)
    middle = int(rng.choice(count, p=weights / weights.sum()))
    start = min(max(middle - window // 2, 0), count - window)
    near = weights[start : start + window]
    return start + rng.choice(window, min(BATCH, window), replace=False, p=near / near.sum())


def padded(mels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """-> (B,T,M) float32 filled with silence, T a multiple of 4, and (B,) readings that each clip has."""
    longest = -(-max(len(mel) for mel in mels) // STACK) * STACK
    table = np.full((len(mels), longest, mels[0].shape[1]), SILENCE, np.float32)
    for row, mel in zip(table, mels, strict=True):
        row[: len(mel)] = mel
    return torch.from_numpy(table), torch.tensor([-(-len(mel) // STACK) * READINGS for mel in mels])


def warped(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another speed and another throat, by nearest neighbours: by about 10 % in time and bands; begun a bit later."""
    speed, throat = rng.uniform(0.9, 1.12), rng.uniform(0.9, 1.1)
    frames = np.minimum(np.arange(int(len(mel) * speed)) / speed, len(mel) - 1).astype(np.int64)
    bands = np.minimum(np.arange(mel.shape[1]) * throat, mel.shape[1] - 1).astype(np.int64)
    late = np.full((int(rng.integers(0, STACK)), mel.shape[1]), SILENCE, mel.dtype)
    return np.concatenate((late, mel[frames][:, bands]))


def disturbed(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Louder or softer, over a floor of noise, with two stripes of time and of bands left out. (B,T,M) -> (B,T,M)"""
    b, t, m = mel.shape
    x = mel.numpy() + rng.normal(0, 0.15, (b, 1, 1)).astype(np.float32)
    floor = rng.uniform(-1.4, -0.75, (b, 1, 1)).astype(np.float32)
    x = np.maximum(x, floor + 0.1 * rng.standard_normal(x.shape, dtype=np.float32))
    for size, axis, most in ((t, 1, 10), (m, 2, 8)):
        for _ in range(2):
            start, width = rng.integers(0, size, b), rng.integers(0, most, b)
            at = np.arange(size)
            hidden = (at >= start[:, None]) & (at < (start + width)[:, None])  # (B,size)
            x = np.where(hidden[:, :, None] if axis == 1 else hidden[:, None, :], np.float32(SILENCE), x)
    return torch.from_numpy(np.clip(x, -1.0, 1.5))
