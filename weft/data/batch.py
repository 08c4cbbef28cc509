"""What the loader hands to an objective."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weft.core.view import Tokens


@dataclass
class Batch:
    """One micro-batch: a stream (or two), what to predict, and the share of each token.

    tokens   the model's stream: all of a decoder's, the decoder's side of an encoder-decoder, the left of `a <-> b`
    source   the encoder's side, or the right side of `a <-> b`; None for one-stream models
    targets  (B,T) int64, the id to be predicted *at* this token (already shifted for next-token objectives), else -100.
             For `classify` the number of the label, at the first token of each document. None for `a <-> b`, where
             document d of `tokens` and document d of `source`, in the same row, are a pair.
    weights  (B,T) float32 loss weight of each trained token (the arrow's weight); 0 where untrained.
             For `a <-> b` the pair's weight, at the first token of each document.
    arrow    (B,T) int64 number of the arrow a token was rendered for (to log a loss per arrow); -1: none
    row      (B,T) int64 the table's row that a token's loss belongs to; -1: none. Stays where it was made.
    objective  name of the objective this batch is for ("next", "masked", "seq2seq", "classify", "contrastive")
    head     name of the head that predicts ("language", or of a classification)
    total    sum of the weights over the WHOLE step, all its micro-batches: the loss is sum(weight * loss) / total
    real     tokens that are not padding (source included), for tokens/s
    rows     the table's row numbers in it
    """

    tokens: Tokens
    targets: Tensor | None = None
    weights: Tensor | None = None
    arrow: Tensor | None = None
    row: Tensor | None = None
    source: Tokens | None = None
    total: float = 1.0
    real: int = 0
    rows: list[int] = field(default_factory=list)
    objective: str = "next"
    head: str = "language"

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            name: value.to(device)
            for name in ("tokens", "source", "targets", "weights", "arrow")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)
