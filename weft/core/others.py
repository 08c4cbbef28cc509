"""Stacks that do not attend, as small frozen types; and models that are counted. They stand where a `StackConfig` may.

RecurrentConfig   a state is carried from token to token          LSTM, GRU, Elman's network
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecurrentConfig:
    """`depth` recurrent layers of width `dim`, each upon the states of the one below, as in torch.nn.LSTM.

    cell  lstm (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), gru (Cho et al. 2014, with the
          reset gate behind the product, as cuDNN has it) or tanh (Elman 1990)
    both  half of the width reads forwards, half backwards (Schuster & Paliwal 1997); the first token of a document
          then holds the last state of both
    """

    dim: int
    depth: int
    cell: str = "lstm"
    both: bool = False
    dropout: float = 0.0
