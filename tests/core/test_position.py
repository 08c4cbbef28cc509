"""Positions: what they keep, and what they tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core import config as c
from weft.core.position import buckets, frequencies, rotate, rotation, sinusoidal, slopes
from weft.core.view import Layout, Tokens

CPU = torch.device("cpu")


def at(*places: list[float]) -> Layout:
    """A layout of tokens at given places; each place is a number, or (sequence, row, column)."""
    positions = torch.tensor([places], dtype=torch.float32)
    return Layout.of(Tokens(torch.zeros(1, len(places), dtype=torch.long), positions=positions))


def score(config: c.Rope, q: list[float], k: list[float], width: int = 24) -> float:
    """The product of two fixed vectors, one at place q and one at place k."""
    vectors = torch.randn(1, 2, 1, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = rotate(vectors, rotation(config, at(q, k), width, torch.float64))
    return float((turned[0, 0] * turned[0, 1]).sum())


NUMBERS = st.integers(0, 50)
PLACES = st.tuples(NUMBERS, NUMBERS, NUMBERS)


@settings(max_examples=50, deadline=None)
@given(PLACES, PLACES, PLACES, st.sampled_from([2, 3]))
def test_rope_knows_only_differences_on_every_axis(q, k, step, axes) -> None:
    moved = [[a + b for a, b in zip(place, step, strict=True)] for place in (q, k)]
    config = c.Rope(axes=axes)
    assert score(config, list(q), list(k)) == pytest.approx(score(config, *moved), abs=1e-3)


def test_rope_tells_each_axis_apart() -> None:
    scores = [score(c.Rope(axes=3), [0, 0, 0], place) for place in ([5, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 0])]
    assert len({round(s, 4) for s in scores}) == 4
    rows = [score(c.Rope(axes=2), [0, 0, 0], place) for place in ([9, 0, 0], [0, 5, 0], [0, 0, 5])]
    assert rows[0] == pytest.approx(score(c.Rope(axes=2), [0, 0, 0], [0, 0, 0])), (
        "two axes: the sequence is not turned by"
    )
    assert abs(rows[1] - rows[2]) > 1e-3


def test_text_under_three_axes_is_plain_rope() -> None:
    places = [[float(i)] * 3 for i in range(7)]
    three = rotation(c.Rope(axes=3), at(*places), 24, torch.float32)
    one = rotation(c.Rope(), Layout.of(Tokens(torch.zeros(1, 7, dtype=torch.long))), 24, torch.float32)
    assert torch.allclose(three[0], one[0], atol=1e-6) and torch.allclose(three[1], one[1], atol=1e-6)


def test_rope_keeps_lengths_and_leaves_the_rest_of_a_fraction() -> None:
    x = torch.randn(2, 5, 3, 16)
    here = Layout.of(Tokens(torch.zeros(2, 5, dtype=torch.long)))
    turned = rotate(x, rotation(c.Rope(fraction=0.5), here, 16, torch.float32))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert not torch.allclose(turned[:, 1:, :, :8], x[:, 1:, :, :8])
    assert torch.equal(turned[:, 0], x[:, 0]), "nothing turns at place 0"


def test_seconds_may_be_fractions() -> None:
    assert score(c.Rope(axes=3), [0, 0, 0], [0.5] * 3) != pytest.approx(score(c.Rope(axes=3), [0, 0, 0], [1.0] * 3))


def test_stretch_leaves_short_waves_and_stretches_long_ones() -> None:
    plain, scaled = (
        frequencies(c.Rope(500_000.0), 128, CPU),
        frequencies(c.Rope(500_000.0, scaling=c.Stretch()), 128, CPU),
    )
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    assert short.any() and long.any() and (~short & ~long).any()
    assert torch.equal(scaled[short], plain[short])
    assert torch.allclose(scaled[long], plain[long] / 8)
    between = (plain / scaled)[~short & ~long]
    assert ((between > 1) & (between < 8)).all()


def test_t5_buckets_against_the_paper() -> None:
    here = Layout.of(Tokens(torch.zeros(1, 300, dtype=torch.long)))
    config = c.RelativeBias(32, 128)
    both, back = (buckets(config, here, here, both=side)[0] for side in (True, False))
    assert both[9].tolist()[:10] == [8, 8, 7, 6, 5, 4, 3, 2, 1, 0], "behind: exact below 8, then by logarithm"
    assert both[0].tolist()[:4] == [0, 17, 18, 19], "ahead: buckets of their own"
    assert both[299, 0] == 15 and both[0, 299] == 31, "far is far"
    assert back[0].unique().tolist() == [0], "looking back, all that is ahead is one"
    assert back[299].max() == 31 and back[20, 0] == 17
    steps = back[299].flip(0)
    assert (steps[1:] >= steps[:-1]).all(), "farther is never a lower bucket"


@pytest.mark.parametrize(("heads", "wanted"), [(8, [2.0**-i for i in range(1, 9)]), (1, [2.0**-8])])
def test_alibi_slopes_of_powers_of_two(heads: int, wanted: list[float]) -> None:
    assert slopes(heads) == pytest.approx(wanted)


def test_alibi_slopes_between_powers() -> None:
    assert slopes(12) == pytest.approx([2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)])


def test_sinusoidal_waves() -> None:
    waves = sinusoidal(torch.arange(4)[None], 6, 10_000.0)[0]
    assert waves[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert waves[1, 0] == pytest.approx(math.sin(1.0)) and waves[1, 3] == pytest.approx(math.cos(1.0))
    assert waves[1, 2] == pytest.approx(math.sin(1e-4))


def test_sinusoidal_against_the_authors_code() -> None:
    """tensor2tensor, common_attention.get_timing_signal_1d, written out with a loop; odd widths end in a zero."""
    for width in (2, 7, 8, 33):
        half = width // 2
        rates = [math.exp(-i * math.log(10_000.0) / max(half - 1, 1)) for i in range(half)]
        rows = [[*(math.sin(n * r) for r in rates), *(math.cos(n * r) for r in rates)] for n in range(9)]
        expected = torch.tensor([row + [0.0] * (width % 2) for row in rows])
        torch.testing.assert_close(sinusoidal(torch.arange(9)[None], width, 10_000.0)[0], expected)
    printed = [math.sin(3 * 10_000 ** (-2 * i / 8)) for i in range(4)]
    assert sinusoidal(torch.tensor([[3]]), 8, 10_000.0)[0, 0, :4].tolist() != pytest.approx(printed), "not the formula"


def test_places_are_counted_within_documents_and_branches() -> None:
    tokens = Tokens(
        torch.zeros(1, 9, dtype=torch.long),
        document=torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2, 0]]),
        branch=torch.tensor([[0, 0, 1, 1, 2, 2, 0, 0, 0]]),
    )
    assert Layout.of(tokens).order[0].tolist() == [0, 1, 2, 3, 2, 3, 0, 1, 0]
