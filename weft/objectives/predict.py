"""Predict an id, or a label's number, at each place that has a target.

    next      the next token                    masked    the hidden token
    seq2seq   the next token, a source given    classify  the label, at the first token of each document
    tag       a label at each token             span      where in its document the answer begins and ends

All but the last differ in what the batch holds, not in the loss.

Shape letters:  B rows  T tokens  n trained tokens  D width  V vocabulary or classes  G documents
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model
from weft.objectives.report import Report, report

LOGITS = 2**23  # so many numbers at once, 32 MB in float32


def predict(model: Model, batch: Batch, head: str) -> tuple[Tensor, Report]:
    """sum(weight * cross entropy) / total, over trained places only, gathered before they meet the head."""
    if batch.targets is None:
        raise WeftError(f"The objective {batch.objective!r} needs targets, but the batch has none.")
    hidden = model.beside(model.hidden(batch.tokens, batch.source), batch.tokens, head)
    targets = batch.targets.flatten()
    places = (targets != -100).nonzero()[:, 0]  # (n,)
    chosen = hidden.flatten(0, 1).index_select(0, places)  # (B*T,D) -> (n,D)
    losses = cross_entropy(model, chosen, targets[places], head)  # (n,)
    weights = 1.0 if batch.weights is None else batch.weights.flatten()[places]
    arrow = None if batch.arrow is None else batch.arrow.flatten()[places]
    return (weights * losses).sum() / batch.total, report(losses, arrow, batch)


def cross_entropy(model: Model, hidden: Tensor, targets: Tensor, head: str) -> Tensor:
    """(n,D), (n,) -> (n,) losses, a chunk of places at a time where all logits at once would be large.

    The chunks' logits are made again for their backward: at 4,096 places and 16,000 words that took 0.9 to 1.1 s
    against 1.2 s (one core: the smaller tensors stay in its cache) and a third of the memory.
    """

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden, head).float(), targets, reduction="none")

    rows = max(1, LOGITS // model.classes(head))
    if len(targets) <= rows:
        return losses(hidden, targets)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def next_token(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Radford et al. 2018: the token after this one; targets are already shifted."""
    return predict(model, batch, "language")


def masked(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Devlin et al. 2018: the token that was hidden here."""
    return predict(model, batch, "language")


def seq2seq(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Sutskever et al. 2014: the next token of the target, the source given."""
    if batch.source is None:
        raise WeftError("The objective 'seq2seq' needs a source, but the batch has none.")
    return predict(model, batch, "language")


def classify(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """The label's number at the first token of each document, by the head that the batch names."""
    return predict(model, batch, batch.head)


def tag(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """A label at every token that has one, by the head that the batch names."""
    return predict(model, batch, batch.head)


def span(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """Devlin et al. 2018, section 4.2: the answer's first and last token, each by a softmax over its document's tokens.

    targets (B,T): 1 the first token, 2 the last, 3 both in one, 0 or -100 elsewhere. The loss is half of either's cross
    entropy; a document's weight is that of its answer's tokens.
    """
    if batch.targets is None:
        raise WeftError("The objective 'span' needs targets, but the batch has none.")
    logits = model.logits(model.hidden(batch.tokens), batch.head).float().flatten(0, 1)  # (B,T,2) -> (B*T,2)
    document = torch.ones_like(batch.tokens.ids) if batch.tokens.document is None else batch.tokens.document.long()
    row = torch.arange(len(document), device=document.device)[:, None]
    _, group = (row * (int(document.max()) + 1) + document).flatten().unique(return_inverse=True)  # (B*T,) 0..G-1
    top = logits.detach().amax(0)
    sums = logits.new_zeros(int(group.max()) + 1, 2).index_add(0, group, (logits - top).exp())  # (G,2)
    losses = top + sums.log()[group] - logits  # (B*T,2)
    targets = batch.targets.flatten().clamp(min=0)
    place, end = torch.stack((targets & 1, targets >> 1 & 1), 1).nonzero(as_tuple=True)  # (n,) token, first or last
    chosen = losses[place, end]
    weights = 1.0 if batch.weights is None else batch.weights.flatten()[place]
    arrow = None if batch.arrow is None else batch.arrow.flatten()[place]
    return (weights * chosen).sum() / 2 / batch.total, report(chosen, arrow, batch)
