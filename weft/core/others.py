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


@dataclass(frozen=True)
class ConvolveConfig:
    """Convolutions over neighbouring tokens, one of each width beside the others, and a ReLU (Kim 2014).

    windows  tokens that each looks at; () passes the tokens on as they are
    The first token of a document then holds the largest of each feature over the document.
    """

    dim: int
    windows: tuple[int, ...] = (3, 4, 5)
    dropout: float = 0.0


@dataclass(frozen=True)
class PictureConfig:
    """A residual network over whole pictures, put together from their patches (He et al. 2016, section 4.2).

    features  of one patch, 3 * p * p;  widths  channels of each stage, all but the first at half of the size
    blocks    of two convolutions, in each stage
    groups    of the norm, at most: group norm keeps the rows of a batch apart (Wu & He 2018), batch norm would not
    token     as in ItemEncoder
    Every place of a picture holds the mean of its last feature map, by a matrix of the main width.
    """

    features: int
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 3
    groups: int = 8
    token: int = -1

    @property
    def stem(self) -> PictureConfig:
        """What tells the features of one place."""
        return self
