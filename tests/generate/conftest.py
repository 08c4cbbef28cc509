"""What the tests of decoding share."""

from __future__ import annotations

import numpy as np
import pytest
from decoding_world import make_predictor

from weft.generate.predict import Predictor


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return make_predictor()


@pytest.fixture(scope="session")
def records() -> list[dict]:
    """Rows of different lengths: pictures of different shape, sounds of different duration, texts of two scripts."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((16, 16, 3), (8, 16, 3), (16, 16, 3))]
    sounds = [(rng.normal(0, 0.3, n).astype(np.float32), 16_000) for n in (4_000, 9_000, 16_000)]
    texts = ["red", "a red circle that is not blue", "它是红色的吗?", "what colour is it?", ""]
    return [
        {
            "image": images[i % 3],
            "speech": sounds[i % 3],
            "question": texts[i % 4] + "?",
            "text": texts[i % 4],
            "answer": "red",
        }
        for i in range(7)
    ]
