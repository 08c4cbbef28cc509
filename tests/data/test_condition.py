"""Inputs left out for guidance: of whom, how often, and that training and decoding leave out the same."""

from __future__ import annotations

import numpy as np
import pytest
from decoding_world import make_renderer

from weft.data import pack
from weft.data.condition import Dropout, asked_nothing, emptied, guidable
from weft.data.pack import Document, Part

RENDERER = make_renderer()
TEXTS = ("a red circle", "it is red?", "what colour is it?")


def samples(arrow: str) -> list:
    picture, sound = np.full((16, 16, 3), 7, np.uint8), (np.zeros(9000, np.float32), 16_000)
    records = [{"text": text, "image": picture, "speech": sound} for text in TEXTS]
    return [RENDERER.render(record, RENDERER.index(arrow), row=row) for row, record in enumerate(records)]


def alone(sample) -> Document:
    return [Part(pack.flatten(sample.spans)[0], 0.0, 0, sample.arrow, 1.0, sample.row)]


def test_what_draws_or_speaks_from_words_can_be_guided() -> None:
    found = {str(arrow): guidable(arrow, RENDERER.columns) for arrow in RENDERER.arrows}
    assert found == {
        "image, question -> answer": False, "speech -> text": False, "image -> text": False, "text -> image": True,
        "text -> speech": True, "-> text": False,
    }  # fmt: skip


@pytest.mark.parametrize("arrow", ["text -> image", "text -> speech"])
def test_training_leaves_out_what_decoding_leaves_out(arrow: str) -> None:
    first, other, _ = samples(arrow)
    trained, asked = emptied(alone(first)), asked_nothing(RENDERER.prompt({"text": TEXTS[0]}, first.arrow))
    piece, prompt = trained[0].piece, pack.flatten(asked.spans)[0]
    whole = pack.flatten(first.spans)[0]
    assert np.array_equal(piece.ids[: len(prompt)], prompt.ids)
    assert len(set(prompt.ids[:-1].tolist())) == 1 and prompt.ids[-1] == whole.ids[len(prompt) - 1]
    assert np.array_equal(piece.ids[len(prompt) :], whole.ids[len(prompt) :])
    assert np.array_equal(piece.targets, whole.targets) and not np.array_equal(piece.ids, whole.ids)
    assert np.array_equal(whole.ids, pack.flatten(other.spans)[0].ids) is False, "control: samples do differ"


def test_a_shared_beginning_is_left_out_as_a_lone_one_is() -> None:
    sample = samples("text -> image")[0]
    trunk, branch = (pack.flatten(part)[0] for part in (sample.spans[:2], sample.spans[2:]))
    document = pack.tree(trunk, [branch, branch], [sample.arrow] * 2, [1.0] * len(RENDERER.arrows))
    left = emptied(document)
    whole = emptied(alone(sample))[0].piece.ids
    assert all(np.array_equal(np.concatenate([left[0].piece.ids, part.piece.ids]), whole) for part in left[1:])
    assert np.array_equal(document[0].piece.ids, trunk.ids) and len(set(trunk.ids.tolist())) > 1, "pieces stay"


def test_how_often_and_whose() -> None:
    drawn, read = samples("text -> image")[0], samples("image -> text")[0]
    drops = lambda share, sample, seed=0: np.array(
        [Dropout(share, RENDERER.arrows, RENDERER.columns, seed).drops(alone(sample), epoch) for epoch in range(400)]
    )
    some = drops(0.25, drawn)
    assert 0.18 < some.mean() < 0.32 and np.array_equal(some, drops(0.25, drawn))
    assert not np.array_equal(some, drops(0.25, drawn, seed=1))
    assert not drops(0.0, drawn).any() and not drops(0.9, read).any()
    both = alone(drawn) + alone(read)
    assert not Dropout(0.99, RENDERER.arrows, RENDERER.columns, 0).drops(both, 0)
