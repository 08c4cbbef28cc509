"""Intervals: they cover as often as they say, agree with scipy, and admit what few rows cannot tell."""

from __future__ import annotations

import numpy as np
import pytest

from weft.evaluate.intervals import bootstrap, drawn, paired, ratio
from weft.evaluate.metrics import hits, labels, word_error


def test_a_95_percent_interval_covers_about_95_percent() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        interval = hits("accuracy", rng.random(200) < 0.8).interval(draws=400, seed=trial)
        covered += interval.low <= 0.8 <= interval.high
    assert 0.91 <= covered / 300 <= 0.985, covered / 300


def test_a_ratio_of_sums_covers_too() -> None:
    """Word error: rows with many words weigh more, so rows are resampled with their edits and words together."""
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        words = rng.integers(1, 20, 150)
        edits = rng.binomial(words, 0.1)
        interval = bootstrap(np.stack([edits, words], -1), draws=300, seed=trial)
        covered += interval.low <= 0.1 <= interval.high
    assert 0.89 <= covered / 200 <= 0.985, covered / 200


def test_equals_scipy() -> None:
    from scipy.stats import bootstrap as scipy_bootstrap

    values = np.random.default_rng(2).exponential(size=300)
    wanted = scipy_bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3).confidence_interval
    found = bootstrap(np.stack([values, np.ones(300)], -1), draws=4000, seed=5)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_no_failure_is_not_certainty() -> None:
    interval = hits("accuracy", np.ones(450)).interval()
    assert interval.value == interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 450))
    nothing = hits("accuracy", np.zeros(20)).interval()
    assert (nothing.value, nothing.low) == (0, 0)
    assert 0.1 < nothing.high < 0.2


def test_no_edit_is_not_certainty_either() -> None:
    """Word error of 40 sentences, all right: the bound is that of rows (words of one sentence go wrong together)."""
    sentences = ["is it a red circle"] * 40
    interval = word_error(sentences, sentences).interval()
    assert (interval.value, interval.low) == (0, 0)
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 40)), (
        "Clopper and Pearson: 3.7 in 40, near the rule of three"
    )
    wrong = word_error(sentences, ["is it a red square", *sentences[1:]]).interval()
    assert 0 <= wrong.low < wrong.value < wrong.high
    all_wrong = word_error(["a b"] * 40, ["c d"] * 40).interval()
    assert all_wrong.value == all_wrong.high == 1 and all_wrong.low == pytest.approx(0.025 ** (1 / 40))


def test_seeded_and_narrower_with_more_rows() -> None:
    right = np.arange(1000) % 5 > 0
    assert hits("x", right).interval(seed=1) == hits("x", right).interval(seed=1)
    few, many = hits("x", right[:50]).interval(), hits("x", right).interval()
    assert few.high - few.low > 2 * (many.high - many.low)


def test_draws_are_with_replacement_and_complete() -> None:
    counts = np.concatenate(list(drawn(50, 120, 0)))
    assert counts.shape == (120, 50)
    assert (counts.sum(1) == 50).all()
    assert (counts.max(1) > 1).all()


def test_macro_f1_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    expected = [str(i) for i in rng.integers(0, 4, 400)]
    produced = [e if rng.random() < 0.7 else "0" for e in expected]
    for score in labels(expected, produced):
        interval = score.interval(draws=300)
        assert interval.low < interval.value < interval.high, score.metric


def test_a_paired_comparison_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(600) < 0.8
    b = a | (rng.random(600) < 0.12)  # right wherever a is, and now and then more
    first, second = hits("x", a), hits("x", b)
    assert first.interval().high > second.interval().low, "unpaired, they overlap"
    difference = paired(first.stats, second.stats)
    assert difference.low > 0
    assert difference.p < 0.01
    assert difference.value == pytest.approx(b.mean() - a.mean())
    backwards = paired(second.stats, first.stats)
    assert (backwards.low, backwards.high) == pytest.approx((-difference.high, -difference.low))


def test_no_difference_is_not_found() -> None:
    rng = np.random.default_rng(3)
    found = [
        paired(hits("x", rng.random(200) < 0.7).stats, hits("x", rng.random(200) < 0.7).stats, draws=300).p < 0.05
        for _ in range(60)
    ]
    assert np.mean(found) < 0.15


def test_nothing_to_measure() -> None:
    assert np.isnan(bootstrap(np.zeros((0, 2))).value)
    assert ratio(np.array([0.0, 0.0])) == 0
    with pytest.raises(ValueError, match="same rows"):
        paired(np.ones((3, 2)), np.ones((4, 2)))
    assert word_error(["a"], ["a"]).interval().value == 0
