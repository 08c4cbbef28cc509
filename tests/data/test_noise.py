"""What `~text` hides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weft.data import noise
from weft.data.pack import Piece

BLOCK = range(100, 400)


def hide(count: int, seed: int) -> tuple[Piece, Piece]:
    piece = Piece(np.arange(100, 100 + count, dtype=np.int32), advance=float(count))
    loss = np.ones(count, bool)
    loss[0] = count == 1
    return piece, noise.masked(piece, loss, np.random.default_rng(seed), 2, BLOCK)


@given(st.integers(1, 300), st.integers(0, 20))
def test_targets_stand_where_tokens_were_hidden(count, seed):
    piece, hidden = hide(count, seed)
    places = hidden.targets != -100
    assert places.sum() == max(1, round(0.15 * max(1, count - 1))), "15 % of the trainable tokens, at least one"
    assert (hidden.targets[places] == piece.ids[places]).all(), "the target is what stood there"
    assert (hidden.ids[~places] == piece.ids[~places]).all(), "nothing else changed"
    assert (piece.ids == np.arange(100, 100 + count)).all(), "the original is left alone"
    again = hide(count, seed)[1]
    assert (again.ids == hidden.ids).all() and (again.targets == hidden.targets).all(), "a function of the seed"


def test_eighty_ten_ten():
    piece = Piece(np.full(40_000, 150, np.int32))
    hidden = noise.masked(piece, np.ones(40_000, bool), np.random.default_rng(0), 2, BLOCK)
    places = hidden.targets != -100
    masks, kept = (hidden.ids[places] == 2).mean(), (hidden.ids[places] == 150).mean()
    assert abs(masks - 0.8) < 0.02 and abs(kept - 0.1) < 0.02, (masks, kept)
    others = hidden.ids[places & (hidden.ids != 2) & (hidden.ids != 150)]
    assert set(others.tolist()) <= set(BLOCK) and len(set(others.tolist())) > 200, "the rest is any id of the block"


@given(st.integers(1, 2000), st.integers(0, 20))
def test_spans_and_rest_make_the_text_again(count, seed):
    ids = np.arange(1000, 1000 + count)
    sentinels, end = range(3, 35), 1
    source, target = noise.corrupted(ids, np.random.default_rng(seed), sentinels, end)
    hidden, spans = noise.counts(count, 32)
    assert len(source) == count - hidden + spans and len(target) == hidden + spans + 1, (
        "lengths follow from the text's length"
    )
    assert target[-1] == end
    behind: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token in sentinels:
            behind[token] = []
        else:
            behind[[*behind][-1]].append(token)
    assert all(behind.values()), "every sentinel of the target is followed by what it stands for"
    rebuilt = [x for token in source.tolist() for x in (behind[token] if token in sentinels else [token])]
    assert rebuilt == ids.tolist(), "source and target together are the text"
    if 40 < count < 600:
        assert 0.13 < hidden / count < 0.17 and 2.5 < hidden / spans < 3.6, "15 % in spans of three"
