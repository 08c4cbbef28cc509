"""Bring the two sides of a pair close, and those of different pairs apart.

Shape letters:  B rows, one pair each  E width of the shared space
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.core.view import Tokens
from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model
from weft.objectives.report import Report, report


def contrastive(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Radford et al. 2021, figure 3: each side picks its partner among all of the batch, by cosine.

    Pairs that share a side (two images with one caption, two captions of one image) are not told apart: both would be
    right.
    """
    pairs = paired(model, batch)
    scores, twins = pairs.scores, pairs.twins
    partner = torch.arange(len(scores), device=scores.device)
    losses = 0.5 * (
        F.cross_entropy(scores.masked_fill(twins, float("-inf")), partner, reduction="none")
        + F.cross_entropy(scores.T.masked_fill(twins, float("-inf")), partner, reduction="none")
    )
    return pairs.answer(losses, batch)


def sigmoid(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Zhai et al. 2023, equation 1: of each image and each text, whether they are a pair, told by themselves.

    loss of row i = -sum_j log sigmoid(z_ij s_ij), z 1 for the pair and -1 for all others. What is no pair but shares a
    side with one is left out.
    """
    pairs = paired(model, batch)
    sign = 2 * torch.eye(len(pairs.scores), device=pairs.scores.device) - 1
    losses = -F.logsigmoid(sign * pairs.scores).masked_fill(pairs.twins, 0.0).sum(1)
    return pairs.answer(losses, batch)


def align(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """The loss that the model is made for: `sigmoid` where a learned number is added to its scores, else softmax."""
    return (contrastive if model.body.score_bias is None else sigmoid)(model, batch)


@dataclass
class Pairs:
    """scores (n,n) of the batch's pairs, left by right; twins (n,n) bool: no pair, but alike; weights, rows (n,)."""

    scores: Tensor
    twins: Tensor
    weights: Tensor
    rows: Tensor

    def answer(self, losses: Tensor, batch: Batch) -> tuple[Tensor, Report]:
        """(n,) losses -> the weighted sum over the step's total, and the report."""
        arrow = None if batch.arrow is None else batch.arrow[self.rows, 0]
        return (self.weights * losses).sum() / batch.total, report(losses, arrow, batch)


def paired(model: Model, batch: Batch) -> Pairs:
    """All scores of a batch's pairs. Raises WeftError where it has no right side."""
    if batch.source is None:
        raise WeftError("The objective 'contrastive' needs a right side (`source`), but the batch has none.")
    weights = pair_weights(batch)  # (B,)
    rows = weights.nonzero()[:, 0]  # rows that hold a pair; n of them
    left, right = model.embed(batch.tokens, "left")[rows], model.embed(batch.source, "right")[rows]  # (n,E)
    twins = (same(batch.tokens) | same(batch.source))[rows][:, rows].fill_diagonal_(False)
    return Pairs(model.body.scores(left, right), twins, weights[rows], rows)


def pair_weights(batch: Batch) -> Tensor:
    """(B,) the weight of each row's pair; 0 where a row is all padding."""
    if batch.weights is not None:
        return batch.weights if batch.weights.dim() == 1 else batch.weights[:, 0]
    real = torch.ones_like(batch.tokens.ids) if batch.tokens.document is None else batch.tokens.document
    return (real > 0).any(1).float()


def same(tokens: Tokens) -> Tensor:
    """(B,B) bool: rows that hold the same ids and the same media, to the bit."""
    rows, length = tokens.ids.shape
    ids = tokens.ids if tokens.document is None else tokens.ids.masked_fill(tokens.document == 0, -1)
    real = torch.ones_like(ids, dtype=torch.bool)
    for media in tokens.media:
        real.view(-1)[media.at] = False
    ids = ids.masked_fill(~real, -2)  # what id stands at a media place is ignored
    equal = (ids[:, None] == ids[None]).all(-1)
    for media in tokens.media:
        held: list[list[Tensor]] = [[] for _ in range(rows)]
        for row, values in zip((media.at // length).tolist(), media.values, strict=True):
            held[row].append(values)
        told = [tuple(v.contiguous().view(torch.uint8).numpy().tobytes() for v in parts) for parts in held]
        numbers = {content: number for number, content in enumerate(dict.fromkeys(told))}
        content = torch.tensor([numbers[t] for t in told], device=ids.device)
        equal = equal & (content[:, None] == content[None])
    return equal
