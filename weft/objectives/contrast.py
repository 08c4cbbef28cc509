"""Bring the two sides of a pair close, and those of different pairs apart.

Shape letters:  B rows, one pair each  E width of the shared space
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.view import Tokens
from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model
from weft.objectives.report import Report, report

SHARPEST = 100.0  # Radford et al. 2021, section 2.5


def contrastive(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Radford et al. 2021, figure 3: each side picks its partner among all of the batch, by cosine.

    Pairs that share a side to the letter (two images with one caption) are not told apart: both would be right.
    """
    if batch.source is None:
        raise WeftError("The objective 'contrastive' needs a right side (`source`), but the batch has none.")
    weights = pair_weights(batch)  # (B,)
    rows = weights.nonzero()[:, 0]  # rows that hold a pair; n of them
    left, right = model.embed(batch.tokens, "left")[rows], model.embed(batch.source, "right")[rows]  # (n,E)
    scores = left @ right.T * model.body.sharpness.exp().clamp(max=SHARPEST)  # (n,n)
    twins = (same(batch.tokens) | same(batch.source))[rows][:, rows].fill_diagonal_(False)
    partner = torch.arange(len(rows), device=rows.device)
    losses = 0.5 * (
        F.cross_entropy(scores.masked_fill(twins, float("-inf")), partner, reduction="none")
        + F.cross_entropy(scores.T.masked_fill(twins, float("-inf")), partner, reduction="none")
    )
    arrow = None if batch.arrow is None else batch.arrow[rows, 0]
    return (weights[rows] * losses).sum() / batch.total, report(losses, arrow, batch)


def pair_weights(batch: Batch) -> Tensor:
    """(B,) the weight of each row's pair; 0 where a row is all padding."""
    if batch.weights is not None:
        return batch.weights if batch.weights.dim() == 1 else batch.weights[:, 0]
    real = torch.ones_like(batch.tokens.ids) if batch.tokens.document is None else batch.tokens.document
    return (real > 0).any(1).float()


def same(tokens: Tokens) -> Tensor:
    """(B,B) bool: rows of the same text. Rows with media are only the same as themselves."""
    ids = tokens.ids if tokens.document is None else tokens.ids.masked_fill(tokens.document == 0, -1)
    equal = (ids[:, None] == ids[None]).all(-1)
    for media in tokens.media:
        held = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        held[media.at // ids.shape[1]] = True
        equal = equal & ~held[:, None] & ~held[None]
    return equal
