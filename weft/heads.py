"""From hidden states to answers.

Shape letters:  D width  V vocabulary  C classes; heads work on any leading shape
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.feedforward import ACTIVATIONS
from weft.core.layers import Linear
from weft.core.norm import make_norm
from weft.core.view import Tokens


class Language(nn.Module):
    """(...,D) -> (...,V): by the input's table when tied; BERT puts a dense layer, an activation and a norm before it.

    rows: where only the last rows of the matrix are trained, they are a parameter of their own; else None.
    """

    rows: nn.Parameter | None

    def __init__(self, config: c.Language, dim: int, table: nn.Embedding) -> None:
        super().__init__()
        self.scale = config.scale
        inner = table.weight.shape[1] if config.tied else dim  # a table may be narrower than the stack (ELECTRA)
        self.dense = Linear(dim, inner) if config.transform else None
        self.norm = make_norm(config.transform, inner) if config.transform else None
        self.activation = ACTIVATIONS[config.activation]
        self.weight = table.weight if config.tied else nn.Parameter(torch.empty(config.vocab, dim))
        self.bias = nn.Parameter(torch.empty(config.vocab)) if config.bias else None
        self.register_parameter("rows", None)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.rows is None:
            return F.linear(self.ready(hidden), self.weight, self.bias)
        ready, old = self.ready(hidden), self.weight[: len(self.weight) - len(self.rows)]
        logits = torch.cat((F.linear(ready, old), F.linear(ready, self.rows)), -1)  # (...,V-n), (...,n) -> (...,V)
        return logits if self.bias is None else logits + self.bias

    def ready(self, hidden: Tensor) -> Tensor:
        """(...,D) -> (...,D): all but the last product."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(self.activation(self.dense(hidden)))
        return hidden if self.scale == 1.0 else hidden * self.scale


class Classify(nn.Module):
    """(...,D) -> (...,C), with a layer between if it has one; of several tokens beside each other, the average."""

    def __init__(self, config: c.Classify | c.Tag, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, config.hidden) if config.hidden else None
        self.activation = ACTIVATIONS[config.activation]
        mean, tokens = (config.mean, config.tokens) if isinstance(config, c.Classify) else (False, 1)
        self.out = Linear(config.hidden or dim * (2 if mean else 1), config.classes)
        self.others = nn.ModuleList(Linear(dim, config.classes) for _ in range(tokens - 1))

    def forward(self, hidden: Tensor) -> Tensor:
        if self.others:
            first, *rest = hidden.chunk(1 + len(self.others), -1)  # (...,tokens*D) -> (...,D) of each
            return (self.out(first) + sum(part(x) for part, x in zip(self.others, rest, strict=True))) / (1 + len(rest))
        return self.out(hidden if self.dense is None else self.activation(self.dense(hidden)))


def beside(config: c.Head, hidden: Tensor, tokens: Tokens) -> Tensor:
    """(B,T,D) -> (B,T,D'): what the head reads at each token.

    The tokens after it, or the mean of its document's others, stand beside it where the head wants them.
    """
    if not isinstance(config, c.Classify) or (config.tokens == 1 and not config.mean):
        return hidden
    if not config.mean:
        return torch.cat([hidden.roll(-i, 1) for i in range(config.tokens)], -1)
    document = torch.ones_like(tokens.ids) if tokens.document is None else tokens.document
    others = (document[:, :, None] == document[:, None, :]).to(hidden.dtype)
    others = others - torch.eye(others.shape[1], dtype=hidden.dtype, device=hidden.device)
    return torch.cat((hidden, others @ hidden / others.sum(-1, keepdim=True).clamp(min=1)), -1)


class Span(nn.Module):
    """(...,D) -> (...,2): the scores of being an answer's first and last token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = Linear(dim, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)


class Pooler(nn.Module):
    """(...,D) -> (...,W)."""

    def __init__(self, config: c.Pooler, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden))


def make_head(config: c.Head, dim: int, table: nn.Embedding) -> nn.Module:
    """The module of a head on hidden states of width `dim`; `table` is the input's embedding."""
    if isinstance(config, c.Told):
        return Told(table)
    if isinstance(config, c.Language):
        return Language(config, dim, table)
    if isinstance(config, c.Span):
        return Span(dim)
    return Pooler(config, dim) if isinstance(config, c.Pooler) else Classify(config, dim)


class Told(nn.Module):
    """(...,W) -> (...,V) as the body tells it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        scores: Callable[[Tensor], Tensor] = body.scores  # type: ignore[assignment]
        self.scores = scores  # a method, so that the body is no part of the head

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scores(hidden)


def outputs(config: c.Head) -> int:
    """How many numbers a head gives."""
    if isinstance(config, c.Language | c.Told):
        return config.vocab
    if isinstance(config, c.Span):
        return 2
    return config.width if isinstance(config, c.Pooler) else config.classes


def loss(config: c.Head, logits: Tensor, labels: Tensor, mask: Tensor | None = None, *, shift: bool = False) -> Tensor:
    """Mean loss of a head's logits, in the ecosystem's conventions: labels of -100 are not trained.

    Language, Tag (B,T,V) with (B,T): cross entropy, each upon the next label with `shift`; Classify (B,C) with (B,).
    One class: each token (of mask 1) is one or not, by binary cross entropy (ELECTRA).
    Span (B,T,2) with (B,2): cross entropy of the first token's place and of the last one's, averaged.
    """
    logits = logits.float()
    if isinstance(config, c.Span):
        return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten())
    if isinstance(config, c.Tag) and config.classes == 1:
        real = labels != -100 if mask is None else (labels != -100) & (mask > 0)
        return F.binary_cross_entropy_with_logits(logits[..., 0][real], labels[real].float())
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
