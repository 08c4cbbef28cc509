"""Baselines: each finds what it should, and not what was hidden from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.arrows import types
from weft.evaluate import baselines
from weft.evaluate.baselines import Describer, Rows
from weft.evaluate.ngram import NGram

KINDS = {
    "image": types.Image(),
    "speech": types.Audio(),
    "question": types.Text(),
    "answer": types.Label(("no", "yes", "red", "blue")),
}
SHADES = {"dark": 20, "light": 230, "grey": 120}
PICTURES = {name: np.full((20, 30, 3), shade, np.uint8) for name, shade in SHADES.items()}


def rows(*cells: tuple[str, str, str]) -> Rows:
    records = [{"image": image, "question": question, "answer": answer} for image, question, answer in cells]
    return Rows(records, ("image", "question"), "answer", KINDS)


def describer() -> Describer:
    return Describer(lambda kind, cell: PICTURES[cell])


TRAIN = rows(
    ("dark", "colour?", "blue"), ("dark", "is it red?", "no"), ("light", "colour?", "red"),
    ("light", "is it red?", "yes"), ("grey", "is it red?", "no"), ("grey", "colour?", "blue"),
)  # fmt: skip


def test_majority_and_blind() -> None:
    test = rows(("light", "colour?", "red"), ("light", "is it red?", "yes"), ("light", "how many?", "no"))
    assert baselines.majority(TRAIN, test) == ["blue"] * 3
    assert baselines.blinds(test) == {"blind (no image)": ("question",)}
    assert baselines.blind(TRAIN, test, ("question",)) == ["blue", "no", "blue"], (
        "an unknown question gets the majority"
    )


def test_without_media_each_input_is_hidden_in_turn() -> None:
    plain = Rows([{"a": "x", "b": "y", "c": "z"}], ("a", "b"), "c", dict.fromkeys("abc", types.Text()))
    assert baselines.blinds(plain) == {"blind (no a)": ("b",), "blind (no b)": ("a",)}
    assert baselines.blinds(Rows([{"a": "x", "c": "z"}], ("a",), "c", dict.fromkeys("ac", types.Text()))) == {}


def test_the_nearest_neighbour_looks_at_all_inputs() -> None:
    test = rows(("light", "is it red?", "yes"), ("dark", "colour?", "blue"))
    found = [TRAIN.records[i]["answer"] for i in baselines.neighbours(TRAIN, test, describer())]
    assert found == ["yes", "blue"]


def test_different_words_look_different() -> None:
    names = [f"word{i}" for i in range(300)]
    bags = np.stack([baselines.bag(name) for name in names])
    near = bags @ bags.T - np.eye(300)
    assert near.max() < 0.99
    assert np.array_equal(baselines.bag("a red circle"), baselines.bag("Circle, red a"))


def test_sounds_are_described_by_their_thirds() -> None:
    low, high = np.zeros((30, 4), np.float32), np.zeros((30, 4), np.float32)
    low[:10, 0], high[20:, 0] = 1, 1
    assert np.linalg.norm(baselines.spectrum(low) - baselines.spectrum(high)) > 0.1, "early and late differ"
    assert baselines.spectrum(low[:1]).shape == (12,), "a sound of one frame can be described"


def test_a_support_vector_machine_learns_pictures() -> None:
    rng = np.random.default_rng(0)
    noisy = lambda value: np.clip(rng.normal(value, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
    pictures = {f"{i}": noisy(60 if i % 2 else 190) for i in range(60)}
    records = [{"image": name, "answer": "no" if int(name) % 2 else "yes"} for name in pictures]
    train, test = (Rows(part, ("image",), "answer", KINDS) for part in (records[:40], records[40:]))
    describe = Describer(lambda kind, cell: pictures[cell])
    assert baselines.support_vectors(train, test, describe) == test.outputs
    assert baselines.support_vectors(TRAIN, TRAIN, describer()) is None, "two inputs are not its job"


def test_an_n_gram_model_is_a_distribution() -> None:
    model = NGram([[1, 2, 3, 1, 2, 4], [1, 2, 3, 3], [2, 2, 1]], 8)
    for text in ([], [1, 2], [2, 3], [7, 7], [3, 7]):
        after = {token: math.exp(model.nats(text) - model.nats([*text, token])) for token in range(8)}
        assert sum(after.values()) == pytest.approx(1.0)
        if text == [1, 2]:
            assert min(after[3], after[4]) > after[7] > 0


def test_an_n_gram_model_learns_what_repeats() -> None:
    text = [1, 2, 3, 4] * 30
    assert NGram([text], 50).nats(text) / len(text) < 0.2
    assert NGram([text], 50).nats([4, 3, 2, 1] * 30) > 5 * NGram([text], 50).nats(text)
    assert NGram([], 50).nats([3]) == pytest.approx(math.log(50)), "knowing nothing, all are equally likely"
