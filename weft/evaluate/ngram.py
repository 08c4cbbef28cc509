"""The language model that a language model must beat: counted tokens, interpolated modified Kneser-Ney of order 3.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling". Tokens are the run's own, so
that its bits per byte stand beside the model's.

Shape letters:  L tokens of a text  V vocabulary
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

START = -1  # stands before a text


class NGram:
    """Interpolated Kneser-Ney over token ids; `nats` scores a text.

    tables[k]  context of k tokens -> Counter of the tokens that follow: real counts at the highest order, and at lower
               ones of how many different tokens a continuation was seen after
    """

    def __init__(self, texts: Iterable[Sequence[int]], vocabulary: int, order: int = 3) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.tables: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
        for text in texts:
            ids = [START] * (order - 1) + [int(i) for i in text]
            for end in range(order - 1, len(ids)):
                self.tables[-1][tuple(ids[end - order + 1 : end])][ids[end]] += 1
        for k in range(order - 2, -1, -1):
            seen = {(context[1:], token, context[0]) for context, row in self.tables[k + 1].items() for token in row}
            for context, token, _ in seen:
                self.tables[k][context][token] += 1
        self.discounts = [_discounts(table.values()) for table in self.tables]

    def probability(self, context: Sequence[int], token: int) -> float:
        """Of `token` after `context` (its last order-1 tokens count)."""
        p = 1 / self.vocabulary
        for k in range(self.order):
            row = self.tables[k].get(tuple(context[len(context) - k :]))
            if row is None:
                break  # an unseen context: longer ones are unseen too
            total = row.total()
            discount = self.discounts[k]
            many = Counter(min(count, 3) for count in row.values())
            left = sum(discount[n] * many[n] for n in (1, 2, 3)) / total
            count = row.get(token, 0)
            p = max(count - discount[min(count, 3)], 0) / total + left * p
        return p

    def nats(self, text: Sequence[int]) -> float:
        """Negative log probability of a whole text, in nats."""
        ids = [START] * (self.order - 1) + [int(i) for i in text]
        width = self.order - 1
        return -sum(math.log(self.probability(ids[end - width : end], ids[end])) for end in range(width, len(ids)))


def _discounts(rows: Iterable[Counter[int]]) -> tuple[float, float, float, float]:
    """What is taken from counts of 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 17), within bounds."""
    many = Counter(min(count, 4) for row in rows for count in row.values())
    if not many[1] or not many[2]:
        return (0.0, 0.5, 0.75, 0.75)
    y = many[1] / (many[1] + 2 * many[2])
    raw = [n - (n + 1) * y * many[n + 1] / many[n] if many[n] else n * 0.75 for n in (1, 2, 3)]
    one, two, three = (min(max(value, 0.05), n - 0.05) for n, value in zip((1, 2, 3), raw, strict=True))
    return (0.0, one, two, three)
