"""The language model that a language model must beat: counted tokens, interpolated modified Kneser-Ney of order 3.

Tokens are the run's own, so that its bits per byte stand beside the model's. The model is the family ngram's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weft.core.config import NGramConfig
from weft.core.counted import count


class NGram:
    """Counted over token ids; `nats` scores a text."""

    def __init__(self, texts: Iterable[Sequence[int]], vocabulary: int, order: int = 3) -> None:
        self.order, self.vocabulary = order, vocabulary
        pairs = [self.pairs(text) for text in texts] or [self.pairs([])]
        contexts, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        self.model = count(NGramConfig(vocabulary, order), contexts, targets)

    def pairs(self, text: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(L,order-1) the tokens before each, the newest first, and (L,) the tokens themselves."""
        width = self.order - 1
        ids = torch.tensor([self.vocabulary] * width + [int(i) for i in text])
        return ids.unfold(0, self.order, 1)[:, :width].flip(1) if len(text) else ids.new_zeros(0, width), ids[width:]

    def nats(self, text: Sequence[int]) -> float:
        """Negative log probability of a whole text, in nats."""
        contexts, targets = self.pairs(text)
        return float(-self.model.probability(contexts.float(), targets).log().sum())
