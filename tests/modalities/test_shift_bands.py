"""A sound moved along its bands."""

from __future__ import annotations

import numpy as np

from weft.modalities.audio import shift_bands


def test_every_frame_of_a_stack_moves_by_the_same_bands_and_edges_repeat() -> None:
    values = np.arange(2 * 3 * 5, dtype=np.float16).reshape(2, 15)  # 2 tokens of 3 frames of 5 bands
    up = shift_bands(values, 2, 5).reshape(2, 3, 5)
    still = values.reshape(2, 3, 5)
    assert (up[..., 2:] == still[..., :3]).all(), "bands move up by two in every frame"
    assert (up[..., :2] == still[..., :1]).all(), "the lowest band is repeated below"
    assert (shift_bands(values, 0, 5) == values).all(), "no shift changes nothing"
    assert (shift_bands(values, -1, 5).reshape(2, 3, 5)[..., :4] == still[..., 1:]).all(), "and down by one"
