"""A codebook that learns: vector quantisation by moving averages.

Shape letters:  N vectors  D numbers per vector  K codes

    z (N,D) --nearest--> ids (N,) --lookup--> (N,D)        forward: the code takes the vector's place
                                                           backward: the gradient passes as if nothing had happened

Source: van den Oord et al. 2017 (VQ-VAE), appendix A.1: codes follow the mean of their vectors by exponential moving
averages. Started by k-means on the vectors of an encoder that has already learned, and codes nobody uses are put on
random vectors (Dhariwal et al. 2020, Jukebox): without the two, a short training leaves most of the codebook unused.

    433 433 181 433                433 433 433 433       `steady`: a code that a neighbour has already costs less to
    367 433 433 181   ── steady ─> 433 433 433 433       say, so it is kept unless another one is clearly nearer. A
    433 181 433 367                433 433 433 433       quiet area is then one code, not a dither of three like it

That is entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989), distance + slack * rate, with the simplest
rate: nothing for a neighbour's code, one for any other. Nobody need then learn to predict a dither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.97  # of the moving averages, per step: about 30 steps are remembered
DEAD = 0.2  # a code with fewer vectors per step than this is restarted
ROUNDS = 12  # of k-means


class Codebook(nn.Module):
    """K codes of D numbers. All state is buffers: nothing here is trained by gradients."""

    codes: Tensor
    uses: Tensor
    sums: Tensor
    error: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(size, width))
        self.register_buffer("uses", torch.zeros(size), persistent=False)  # moving average of vectors per step
        self.register_buffer("sums", torch.zeros(size, width), persistent=False)  # and of their sums
        self.register_buffer("error", torch.zeros(()))  # moving average of the squared distance to the nearest code

    @property
    def size(self) -> int:
        return len(self.codes)

    def nearest(self, z: Tensor) -> Tensor:
        """(N,D) -> (N,) int64: |z - c|^2 = |z|^2 - 2 z c + |c|^2, of which |z|^2 decides nothing."""
        return (self.codes.square().sum(1) - 2 * z @ self.codes.T).argmin(1)

    def steady(self, z: Tensor, slack: float) -> Tensor:
        """(B,h,w,D) -> (B,h,w) int64, row by row: the nearest code, or the left or upper neighbour's if its squared
        distance is larger by less than `slack` times the mean one."""
        rows, columns = z.shape[1:3]
        far = self.codes.square().sum(1) - 2 * z @ self.codes.T  # (B,h,w,K)
        cheaper = slack * self.error
        ids = torch.empty(z.shape[:3], dtype=torch.int64, device=z.device)
        for row in range(rows):
            for column in range(columns):
                cost = far[:, row, column]  # (B,K)
                near = [ids[:, row, column - 1 : column]] if column else []
                near += [ids[:, row - 1, column : column + 1]] if row else []
                for kept in near:  # (B,1); set, not added: both neighbours may have the same code
                    cost = cost.scatter(1, kept, far[:, row, column].gather(1, kept) - cheaper)
                ids[:, row, column] = cost.argmin(1)
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (...,D)."""
        return self.codes[ids]

    @torch.no_grad()
    def start(self, z: Tensor, per_step: int, draw: torch.Generator) -> None:
        """k-means on the vectors `z` (N,D); `per_step` is how many vectors each later `follow` will see."""
        size, count = self.size, len(z)
        first = torch.randperm(count, generator=draw)[:size]
        if count < size:  # fewer vectors than codes: doubles, moved apart a little by a restart later
            first = torch.cat([first, torch.randint(count, (size - count,), generator=draw)])
        self.codes.copy_(z[first.to(z.device)])
        uses = torch.zeros(size, device=z.device)
        for _ in range(ROUNDS):
            _, uses, sums = self._gather(z)
            elsewhere = z[torch.randint(count, (size,), generator=draw).to(z.device)]
            self.codes.copy_(torch.where(uses[:, None] > 0, sums / uses.clamp_min(1)[:, None], elsewhere))
        self.uses.copy_(uses * (per_step / count))
        self.sums.copy_(self.codes * self.uses[:, None])

    @torch.no_grad()
    def follow(self, z: Tensor, draw: torch.Generator) -> Tensor:
        """One step: move each code towards its vectors of this step; put dead codes on random vectors.

        Returns the ids (N,) the vectors had before the move.
        """
        ids, uses, sums = self._gather(z)
        self.error.lerp_((z - self.codes[ids]).square().sum(1).mean(), 1 - DECAY)
        self.uses.mul_(DECAY).add_(uses, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        moved = self.sums / self.uses.clamp_min(1e-3)[:, None]
        elsewhere = z[torch.randint(len(z), (self.size,), generator=draw).to(z.device)]
        dead = self.uses < DEAD
        self.codes.copy_(torch.where(dead[:, None], elsewhere, moved))
        self.sums.copy_(torch.where(dead[:, None], elsewhere, self.sums))
        self.uses.masked_fill_(dead, 1.0)  # as if one vector per step
        return ids

    def _gather(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids (N,); per code how many vectors are nearest to it (K,), and their sum (K,D).

        The sum is a product with one-hot rows, not a scatter, so that a GPU repeats its bits.
        """
        ids = self.nearest(z)
        chosen = torch.nn.functional.one_hot(ids, self.size).to(z.dtype)  # (N,K)
        return ids, chosen.sum(0), chosen.T @ z
