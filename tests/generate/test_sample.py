"""Choosing the next token: against definitions, and independent of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import RecipeError
from weft.generate.sample import Draws, Sampling, choose, likely, penalise


def logits(rows: int = 1, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_takes_the_likeliest_legal_one() -> None:
    scores = torch.tensor([[5.0, 1.0, 3.0]])
    legal = torch.tensor([False, True, True])
    assert choose(scores, Sampling()).item() == 0
    assert choose(scores, Sampling(), legal=legal).item() == 2


def test_a_draw_follows_the_distribution() -> None:
    scores = logits()
    uniform = (np.arange(20_000) + 0.5) / 20_000  # every quantile once: the shares must then be the probabilities
    ids = choose(scores.expand(20_000, -1), Sampling(temperature=0.7), uniform)
    shares = torch.bincount(ids, minlength=12) / 20_000
    wanted = (scores[0] / 0.7).softmax(-1)
    assert torch.allclose(shares, wanted, atol=2e-4)
    assert not torch.allclose(shares, scores[0].softmax(-1), atol=2e-2), "the temperature must matter"


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=2), {0, 1}),
        (Sampling(1.0, top_p=0.5), {0}),
        (Sampling(1.0, top_p=0.51), {0, 1}),
        (Sampling(1.0, top_p=0.81), {0, 1, 2}),
        (Sampling(1.0, min_p=0.5), {0, 1}),
        (Sampling(1.0, min_p=0.3), {0, 1, 2}),
        (Sampling(1.0), {0, 1, 2, 3}),
    ],
)
def test_the_cuts_keep_what_they_say(sampling: Sampling, kept: set[int]) -> None:
    probability, order = likely(torch.tensor([[0.5, 0.3, 0.16, 0.04]]).log(), sampling)
    assert {int(i) for i in order[0][probability[0] > 0]} == kept


def test_repetition_makes_less_likely_whatever_the_sign() -> None:
    out = penalise(torch.tensor([[2.0, -2.0, 1.0, -1.0]]), torch.tensor([[0, 1, -1]]), 2.0)
    assert out.tolist() == [[1.0, -4.0, 1.0, -1.0]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), temperature=st.floats(0.1, 5), top_k=st.integers(0, 15), top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1), u=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_never_an_illegal_id(seed: int, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> None:
    legal = torch.zeros(12, dtype=torch.bool)
    legal[[2, 7, 8]] = True
    for uniform in (u, 0.0, np.nextafter(1, 0)):
        chosen = choose(logits(seed=seed), Sampling(temperature, top_k, top_p, min_p), np.array([uniform]), legal=legal)
        assert chosen.item() in (2, 7, 8)


def test_a_row_draws_the_same_alone_and_in_any_company() -> None:
    prompts = [b"a", b"b", b"c", b"a"]
    together = Draws(prompts, seed=3)
    drawn = np.stack([together.next() for _ in range(5)], 1)
    alone = Draws([b"c"], seed=3)
    assert np.array_equal(drawn[2], [alone.next()[0] for _ in range(5)])
    assert not np.array_equal(drawn[0], drawn[3]), "the same prompt twice gets two draws"
    assert not np.array_equal(drawn[2], [Draws([b"c"], seed=4).next()[0] for _ in range(5)]), "the seed must matter"


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}, {"top_k": -1}, {"repetition": 0}]
)
def test_wrong_numbers_are_named(wrong: dict) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Sampling(**wrong)
