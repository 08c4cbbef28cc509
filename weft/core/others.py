"""Stacks that do not attend, as small frozen types; and models that are counted. They stand where a `StackConfig` may.

RecurrentConfig   a state is carried from token to token
NGramConfig       tokens are counted after the last few
MarkovConfig      hidden states, estimated again and again by expectation
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


@dataclass(frozen=True)
class NGramConfig:
    """Counted tokens: interpolated modified Kneser-Ney of `order` (Chen & Goodman 1999).

    contexts, entries  how many contexts of 0, 1, ... order-1 tokens were met, and how many different tokens after them;
                       () before anything is counted
    """

    vocab: int
    order: int = 3
    contexts: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """What is known of the past: the last tokens."""
        return self.order - 1


@dataclass(frozen=True)
class MarkovConfig:
    """A hidden Markov model over tokens (Rabiner 1989).

    states     hidden ones
    smoothing  added to every expected count, so that nothing becomes impossible
    """

    vocab: int
    states: int = 64
    smoothing: float = 0.01

    @property
    def dim(self) -> int:
        """What is known of the past: how likely each state is to come next."""
        return self.states


@dataclass(frozen=True)
class Told:
    """Hidden to vocabulary as the body itself tells it: counted models need no matrix."""

    vocab: int
