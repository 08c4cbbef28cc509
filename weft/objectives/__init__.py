"""Model and batch in, (loss, named numbers) out. The training loop knows neither modality nor task.

Shape letters:  B rows  T tokens  n trained tokens  D width  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.data.batch import Batch
from weft.model import Model

Report = dict[str, float | Tensor]


def predict(model: Model, batch: Batch, head: str = "language") -> tuple[Tensor, Report]:
    """sum(weight * cross entropy) / total, over the trained places only: gathered first, then the head."""
    hidden = model.hidden(batch.tokens, batch.source)
    places = (batch.targets.flatten() != -100).nonzero()[:, 0]  # (n,)
    logits = model.logits(hidden.flatten(0, 1).index_select(0, places), head)  # (B*T,D) -> (n,D) -> (n,V)
    losses = F.cross_entropy(logits.float(), batch.targets.flatten()[places], reduction="none")  # (n,)
    weights = torch.ones_like(losses) if batch.weights is None else batch.weights.flatten()[places]
    arrow = torch.zeros_like(places) if batch.arrow is None else batch.arrow.flatten()[places]
    return (weights * losses).sum() / batch.total, report(losses.detach(), arrow, batch)


def report(losses: Tensor, arrow: Tensor, batch: Batch) -> Report:
    """Unweighted sums and counts per arrow number, for a loss per arrow."""
    size = 1 if batch.arrow is None else max(int(batch.arrow.max()) + 1, 1)
    sums, counts = torch.zeros(size, device=losses.device), torch.zeros(size, device=losses.device)
    known = arrow.clamp(min=0)
    return {
        "loss": losses.mean() if len(losses) else losses.sum(),
        "sums": sums.index_add(0, known, losses),
        "counts": counts.index_add(0, known, torch.ones_like(losses)),
    }


def next_token(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """The token after this one (targets are already shifted)."""
    return predict(model, batch)


OBJECTIVES: dict[str, Callable[[Model, Batch], tuple[Tensor, Report]]] = {"next": next_token}
