"""Model and batch in, (loss, named numbers) out. The training loop knows neither modality nor task."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from weft.data.batch import Batch
from weft.model import Model
from weft.objectives.contrast import align
from weft.objectives.distill import distill
from weft.objectives.predict import classify, masked, next_token, seq2seq, span, tag
from weft.objectives.prefer import prefer
from weft.objectives.report import Report

OBJECTIVES: dict[str, Callable[[Model, Batch], tuple[Tensor, Report]]] = {
    "next": next_token,
    "masked": masked,
    "seq2seq": seq2seq,
    "classify": classify,
    "tag": tag,
    "span": span,
    "contrastive": align,
    "prefer": prefer,
    "distill": distill,
}
