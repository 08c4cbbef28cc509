"""The network of a codec and how it learns: cells -> vectors -> codes -> vectors -> cells.

Shape letters:  B items  F numbers of one cell  (h,w) grid of cells  C channels  D numbers per code  N = B h w

    cells (B,h,w,F) ─> each cell alone ─> look around x 2 ─> z (B,h,w,D) ─> nearest code
                       F -> 256 -> C        C, 3x3 or 1x5       │                 │
                                                                └── commitment ───┤
    cells (B,h,w,F) <─ each cell alone <─ look around x 3 <───────────────────────┘

Source: van den Oord et al. 2017 (VQ-VAE). What makes it learn in seconds (measured on 5,600 pictures, 64 codes of 512):
matrices by Muon (Jordan 2024) instead of AdamW halve the error that the same number of steps leaves; a wide layer on
each cell draws edges that a linear one cannot; busy cells weigh more. Finite scalar quantisation (Mentzer et al. 2023)
in place of a codebook was tried: 1.2 times the error with Muon, twice with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.errors import RecipeError
from weft.modalities.quantize import Codebook

Progress = Callable[[int, int, float], None]  # (step, steps, loss), after each step
DETAIL = 20  # how much more a busy cell counts in training (see `_detail`)


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
    slack: float = 0.0  # how much farther a neighbour's code may be and still be kept (see `Codebook.steady`)

    @property
    def kernel(self) -> tuple[int, int]:
        return (3, 3) if self.rows else (1, 5)


@dataclass(frozen=True)
class Training:
    """How a codec is trained: the same for images and sounds."""

    steps: int
    lr: float = 0.02  # Muon's, for matrices
    adam_lr: float = 3e-3  # AdamW's, for the rest
    alone: float = 0.1  # share of the steps without a codebook, so that k-means finds vectors worth the name
    commit: float = 0.25  # weight of staying near one's code


class Linear(nn.Module):
    """(...,in) -> (...,out); with a kernel a convolution, its weight still a matrix (out,in*kh*kw), for Muon."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int] = (1, 1), scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (outside, inside, *kernel)
        fan = inside * kernel[0] * kernel[1]
        self.weight = nn.Parameter(torch.empty(outside, fan).uniform_(-1, 1) * scale * (3 / fan) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.shape[2:]
        if rows == columns == 1:
            return F.linear(x, self.weight, self.bias)
        kernel, padding = self.weight.view(self.shape), (rows // 2, columns // 2)
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, self.bias, padding=padding).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Look at the neighbours, think; added to what was there.  x (B,h,w,C), mask (B,h,w,1) or None."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.look = Linear(channels, channels, kernel)
        self.think = Linear(channels, channels, scale=0.1)  # starts near the identity

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = _rms(x) if mask is None else _rms(x) * mask  # what lies beyond the end looks like the edge
        return x + self.think(F.gelu(self.look(normed)))


def _rms(x: Tensor) -> Tensor:
    """Each place of (B,h,w,C) to size one: blind to padding and to length."""
    return x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt()


class Coder(nn.Module):
    """(B,h,w,in) -> (B,h,w,out): each cell alone, then blocks that look around, then each cell alone."""

    def __init__(self, inside: int, outside: int, depth: int, config: CodecConfig) -> None:
        super().__init__()
        channels, wide = config.channels, config.wide
        self.read = nn.Sequential(Linear(inside, wide), nn.GELU(), Linear(wide, channels))
        self.blocks = nn.ModuleList(Block(channels, config.kernel) for _ in range(depth))
        self.write = nn.Sequential(Linear(channels, wide), nn.GELU(), Linear(wide, outside))

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
        self.slack = config.slack

    def ids(self, cells: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,h,w,F) -> (B,h,w) int64."""
        z = self.encoder(cells, mask)
        if self.slack:
            return self.codebook.steady(z, self.slack)
        return self.codebook.nearest(z.flatten(0, 2)).view(z.shape[:3])

    def cells(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B,h,w) -> (B,h,w,F)."""
        return self.decoder(self.codebook(ids), mask)


def learn(
    config: CodecConfig,
    draw: Callable[[torch.Generator], Tensor],
    plan: Training,
    seed: int,
    progress: Progress | None,
    device: str,
) -> Network:
    """Train on batches (B,h,w,F) from `draw`: first without the codebook, then with it."""
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
            flat = z.flatten(0, 2)  # (N,D)
            code = network.codebook(network.codebook.follow(flat.detach(), generator))
            commit = F.mse_loss(flat, code)
            z = (flat + (code - flat).detach()).view(z.shape)
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
    """(B,h,w,F) -> (B,h,w,1), mean 1: cells with much going on in them count more than plain ones.

    Most cells of a drawing are background, of a recording silence: a short training would leave out the edges.
    """
    spread = (cells.square().mean(-1, keepdim=True) - cells.mean(-1, keepdim=True).square()).clamp_min(0).sqrt()
    weight = 1 + DETAIL * spread
    return weight / weight.mean()


@torch.no_grad()
def _start(network: Network, batches: list[Tensor], generator: torch.Generator) -> None:
    vectors = torch.cat([network.encoder(cells).flatten(0, 2) for cells in batches])
    network.codebook.start(vectors, len(vectors) // len(batches), generator)


def _half_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 products are quicker than float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
