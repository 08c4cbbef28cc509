"""The named numbers of an objective."""

from __future__ import annotations

import torch
from torch import Tensor

from weft.data.batch import Batch

Report = dict[str, float | Tensor]


def report(losses: Tensor, arrow: Tensor | None, batch: Batch) -> Report:
    """Of (n,) unweighted losses and the arrow of each: the mean, and sums and counts per arrow number.

    {"loss": (), "sums": (A,), "counts": (A,)}, A the largest arrow number of the batch + 1.
    """
    losses = losses.detach()
    size = 1 if batch.arrow is None else max(int(batch.arrow.max()) + 1, 1)
    sums, counts = torch.zeros(size, device=losses.device), torch.zeros(size, device=losses.device)
    of = torch.zeros(len(losses), dtype=torch.long, device=losses.device) if arrow is None else arrow.clamp(min=0)
    return {
        "loss": losses.mean() if len(losses) else losses.sum(),
        "sums": sums.index_add(0, of, losses),
        "counts": counts.index_add(0, of, torch.ones_like(losses)),
    }
