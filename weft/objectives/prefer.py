"""Of two answers to one prompt, make the chosen one likelier and the rejected one less so, not far from the start.

    prompt ──┬── chosen    log p(chosen)   - log p_ref(chosen)    = its margin  ┐
             └── rejected  log p(rejected) - log p_ref(rejected)  = its margin  ┴ -log sigmoid(beta * difference)

The two answers are branches of one document: the prompt is read once.

Shape letters:  B rows  T tokens  n trained tokens  P pairs
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model
from weft.objectives.guide import of, reference
from weft.objectives.predict import cross_entropy
from weft.objectives.report import Report, report

CHOSEN, REJECTED = 1, 2  # branches


@dataclass
class Pairs:
    """log_p (P,2) of the chosen and the rejected answer, summed over their tokens; weights, arrow (P,)."""

    log_p: Tensor
    weights: Tensor
    arrow: Tensor | None


def pairs(model: Model, batch: Batch) -> Pairs:
    """The log probabilities of a batch's pairs. Raises WeftError for a batch without branches."""
    if batch.targets is None or batch.tokens.document is None or batch.tokens.branch is None:
        raise WeftError("The objective 'prefer' needs documents of two branches, but the batch has none.")
    hidden = model.hidden(batch.tokens).flatten(0, 1)  # (B,T,D) -> (B*T,D)
    targets, branch = batch.targets.flatten(), batch.tokens.branch.flatten()
    places = ((targets != -100) & (branch > 0)).nonzero()[:, 0]  # (n,)
    log_p = -cross_entropy(model, hidden.index_select(0, places), targets[places], "language")  # (n,)
    length = batch.tokens.ids.shape[1]
    key = (places // length) * (length + 1) + batch.tokens.document.flatten()[places].long()
    keys, number = key.unique(return_inverse=True)  # (P,), (n,)
    which = number * 2 + (branch[places].long() - CHOSEN)
    sums = log_p.new_zeros(2 * len(keys)).index_add(0, which, log_p).unflatten(0, (len(keys), 2))
    first = torch.full_like(keys, len(places)).scatter_reduce(0, number, torch.arange(len(places)).to(number), "amin")
    at = places[first]
    weights = sums.new_ones(len(keys)) if batch.weights is None else batch.weights.flatten()[at]
    return Pairs(sums, weights, None if batch.arrow is None else batch.arrow.flatten()[at])


def prefer(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Rafailov et al. 2023, equation 7, the reference being the model before its first step."""
    own = pairs(model, batch)
    with torch.no_grad(), reference(model) as frozen:
        theirs = pairs(frozen, batch).log_p
    losses = dpo(own.log_p, theirs, of(model).recipe.beta)
    return (own.weights * losses).sum() / batch.total, report(losses, own.arrow, batch)


def dpo(log_p: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(P,2), (P,2) -> (P,)."""
    margin = log_p - reference
    return -F.logsigmoid(beta * (margin[:, 0] - margin[:, 1]))
