"""Models that are counted: n-grams and hidden Markov models.

ngram    ... the last ids ── tables of what followed them, shorter contexts where the longer say little ── next id
hmm      ids ── p(state) ── move ── p(next state) ── emit ── next id
"""

from __future__ import annotations

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import Family, Wanted


def ngram(want: Wanted, *, order: int = 3) -> c.ModelConfig:
    """Kneser & Ney 1995; Chen & Goodman 1999. Against GPT-2: no gradients and no vectors, the next token is told by how
    often it followed the last order-1 ones, discounted, and interpolated with what followed fewer of them.
    """
    return counted(want, c.NGramConfig(want.vocab, order), "ngram")


def hmm(want: Wanted, *, states: int = 64, smoothing: float = 0.01) -> c.ModelConfig:
    """Baum et al. 1970; Rabiner 1989. Against GPT-2: what came before is a distribution over hidden states, which move
    and emit tokens by two tables, estimated by expectation-maximisation.
    """
    return counted(want, c.MarkovConfig(want.vocab, states, smoothing), "hmm")


def counted(want: Wanted, body: c.NGramConfig | c.MarkovConfig, family: str) -> c.ModelConfig:
    """A counted body and its one head. Raises RecipeError for media."""
    if want.stems:
        raise RecipeError(f"The family {family} counts ids, and {', '.join(want.stems)} is none. Take another family.")
    return c.ModelConfig(body, {"language": c.Told(want.vocab)} if want.language else {}, family=family)


SIZES = {"small": (64, 1, 1), "base": (64, 1, 1), "large": (64, 1, 1)}  # their size is their options' and the text's
NGRAM = Family(
    "ngram", ngram, "decoder",
    "Kneser & Ney 1995, Improved backing-off for m-gram language modeling; Chen & Goodman 1999, An empirical study of "
    "smoothing techniques for language modeling",
    sizes=SIZES, media=False,
)  # fmt: skip
MARKOV = Family(
    "hmm", hmm, "decoder",
    "Baum et al. 1970, A maximization technique; Rabiner 1989, A tutorial on hidden Markov models",
    sizes=SIZES, media=False,
)  # fmt: skip
