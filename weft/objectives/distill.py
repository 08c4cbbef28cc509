"""Learn from a teacher's answers as well as from the rows.

    loss of a token = (1 - share) cross entropy + share T² KL(teacher_T || model_T) + hidden |h - h_teacher|² / D

with both sides' logits divided by the temperature T (Hinton et al. 2015, section 2: T² keeps the gradients' size), and
h the last hidden states (Romero et al. 2015's hint; here of equal width). What is reported is the cross entropy alone,
so that it can be compared with that of other runs.

Shape letters:  n trained tokens  D width  V vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model
from weft.objectives.guide import of
from weft.objectives.predict import LOGITS
from weft.objectives.report import Report, report


def distill(model: Model, batch: Batch) -> tuple[Tensor, Report]:
    """The objective of any batch that predicts ids or labels, held against the teacher's on the same batch."""
    guide = of(model)
    if guide.teacher is None or batch.targets is None:
        raise WeftError("The objective 'distill' needs a teacher, and targets.")
    targets = batch.targets.flatten()
    places = (targets != -100).nonzero()[:, 0]  # (n,)

    def chosen(one: Model) -> Tensor:  # (n,D)
        hidden = one.beside(one.hidden(batch.tokens, batch.source), batch.tokens, batch.head)
        return hidden.flatten(0, 1).index_select(0, places)

    own = chosen(model)
    with torch.no_grad():
        theirs = chosen(guide.teacher)
    recipe = guide.recipe
    plain, soft = losses(model, guide.teacher, own, theirs, targets[places], batch.head, recipe.temperature)
    total = (1 - recipe.share) * plain + recipe.share * soft
    if recipe.hidden:
        total = total + recipe.hidden * (own.float() - theirs.float()).square().mean(-1)
    weights = 1.0 if batch.weights is None else batch.weights.flatten()[places]
    arrow = None if batch.arrow is None else batch.arrow.flatten()[places]
    return (weights * total).sum() / batch.total, report(plain, arrow, batch)


def losses(
    model: Model, teacher: Model, own: Tensor, theirs: Tensor, targets: Tensor, head: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """(n,D) twice, (n,) -> (n,) cross entropies and (n,) divergences, a chunk of places at a time."""

    def some(own: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:  # -> (2,n)
        logits = model.logits(own, head).float()
        with torch.no_grad():
            wanted = teacher.logits(theirs, head).float()
        return torch.stack((F.cross_entropy(logits, targets, reduction="none"), softened(logits, wanted, temperature)))

    rows = max(1, LOGITS // (2 * model.classes(head)))
    if len(targets) <= rows:
        return tuple(some(own, theirs, targets))  # type: ignore[return-value]
    parts = zip(own.split(rows), theirs.split(rows), targets.split(rows), strict=True)
    found = [checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return tuple(torch.cat(found, 1))  # type: ignore[return-value]


def softened(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """(n,V), (n,V) -> (n,): T² KL(wanted / T || logits / T)."""
    own, theirs = F.log_softmax(logits / temperature, -1), F.log_softmax(wanted / temperature, -1)
    return temperature**2 * F.kl_div(own, theirs, log_target=True, reduction="none").sum(-1)
