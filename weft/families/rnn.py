"""Recurrent networks: LSTM, GRU and Elman's, as language models (`rnn`) and read both ways (`birnn`).

rnn      ids ── table ── [ h = cell(x, h of the token before) ] x depth ── head
birnn    ids ── table ── [ half of the width forwards ; half backwards ] x depth ── both last states ── label
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import Family, Wanted, published


def rnn(
    want: Wanted, *, cell: str = "lstm", tied: bool = False, stem: str = "linear", dropout: float = 0.0
) -> c.ModelConfig:
    """Zaremba et al. 2014. Against GPT-2: no attention, what came before is one vector, which each token changes; no
    positions, no norms, no residual sums; a head of its own. cell: lstm, gru or tanh.
    """
    return recurrent(want, c.RecurrentConfig(want.dim, want.depth, cell, dropout=dropout), tied, stem, "rnn")


def birnn(
    want: Wanted, *, cell: str = "gru", tied: bool = False, stem: str = "linear", dropout: float = 0.0
) -> c.ModelConfig:
    """Schuster & Paliwal 1997. Against GPT-2: no attention, two states, one carried forwards and one backwards, each of
    half of the width; a label is read from the last of both. cell: lstm, gru or tanh.
    """
    return recurrent(want, c.RecurrentConfig(want.dim, want.depth, cell, True, dropout), tied, stem, "birnn")


def recurrent(want: Wanted, stack: c.RecurrentConfig, tied: bool, stem: str, family: str) -> c.ModelConfig:
    """Ids, a recurrent stack, heads."""
    return c.ModelConfig(
        c.TowerConfig(c.TextInput(want.vocab, stems=want.stem(stem)), stack),
        want.tops(c.Language(want.vocab, tied=tied, bias=True)),
        c.Init(std=0.0, embedding=0.1 if not tied else 0.02),
        family=family,
    )


SIZES = {"small": (128, 1, 1), "base": (256, 2, 1), "large": (512, 2, 1)}
zaremba = published(35, vocab=10_000)
FAMILY = Family(
    "rnn", rnn, "decoder",
    "Zaremba et al. 2014, Recurrent Neural Network Regularization; cells of Hochreiter & Schmidhuber 1997, Cho et al. "
    "2014 and Elman 1990",
    sizes=SIZES,
    published={
        "zaremba-medium": zaremba(650, 2, 1, 19.8e6, 0.02, dropout=0.5),
        "zaremba-large": zaremba(1500, 2, 1, 66e6, 0.02, dropout=0.65),
    },
)  # fmt: skip
BOTH = Family(
    "birnn", birnn, "encoder",
    "Schuster & Paliwal 1997, Bidirectional Recurrent Neural Networks; cells as in rnn",
    sizes=SIZES,
)  # fmt: skip
