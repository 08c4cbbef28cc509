"""Metrics against numbers worked out by hand and against the libraries that define them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.evaluate import metrics
from weft.evaluate.scoring import Parts, digest, scores

WORDS = ["a", "red", "blue", "circle", "is", "there", "no", "the", "image"]


def sentences(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9))) for _ in range(n)]


def by_name(found: list[metrics.Score]) -> dict[str, float]:
    return {score.metric: score.value for score in found}


def test_labels_by_hand() -> None:
    found = by_name(metrics.labels(["a", "a", "a", "b"], ["a", "a", "b", "b"]))
    assert found["accuracy"] == 0.75
    assert found["precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro F1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40))
def test_labels_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    expected, produced = [list(side) for side in zip(*pairs, strict=True)]
    found = by_name(metrics.labels(expected, produced))
    wanted = precision_recall_fscore_support(
        expected, produced, average="macro", labels=sorted(set(expected)), zero_division=0
    )
    assert (found["precision"], found["recall"], found["macro F1"]) == pytest.approx(wanted[:3])


def test_word_and_character_error_by_hand() -> None:
    found = by_name(metrics.text(["the red circle", "no"], ["the blue circle now", "no"]))
    assert found["word error"] == pytest.approx(2 / 4)  # one exchanged, one too many, of four words
    assert found["exact match"] == 0.5
    assert found["token F1"] == pytest.approx((2 * 2 / 7 + 1) / 2)
    assert metrics.character_error(["abc"], ["abd"]).value == pytest.approx(1 / 3)


def test_word_error_pools_words_and_forgives_case_and_punctuation() -> None:
    score = metrics.word_error(["Is it red?", "a b c d"], ["is it red", "a b x d"])
    assert score.value == pytest.approx(1 / 7), "edits over words of all rows, not a mean of rows"
    assert metrics.word_error(["它是红的"], ["它是蓝的。"]).value == pytest.approx(1 / 4), (
        "a Chinese character is a word"
    )
    assert metrics.word_error([""], ["too much"]).stats.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_and_chrf_equal_sacrebleu(seed: int) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    expected, produced = sentences(seed, 25), sentences(seed + 100, 25)
    produced = [p if i % 3 else e for i, (p, e) in enumerate(zip(produced, expected, strict=True))]
    assert metrics.bleu(expected, produced).value == pytest.approx(
        BLEU().corpus_score(produced, [expected]).score / 100
    )
    assert metrics.chrf(expected, produced).value == pytest.approx(
        CHRF().corpus_score(produced, [expected]).score / 100
    )


def test_nothing_produced_scores_zero() -> None:
    found = by_name(metrics.text(["a red circle"], [""]))
    assert found["BLEU"] == found["chrF"] == found["token F1"] == found["exact match"] == 0
    assert found["word error"] == found["character error"] == 1


def test_bits_per_byte_counts_bytes_not_tokens() -> None:
    lines = [{"nats": 8 * np.log(2), "tokens": 3, "bytes": 4}, {"nats": 4 * np.log(2), "tokens": 9, "bytes": 2}]
    found = scores("model", lines)[0]
    assert (found.metric, found.value) == ("bits per byte", pytest.approx(2.0))
    plain = scores("model", [line | {"bytes": 0} for line in lines])[0]
    assert (plain.metric, plain.value) == ("bits per token", pytest.approx(1.0))


def test_ranks_and_what_is_made_of_them() -> None:
    eye = np.eye(4, dtype=np.float32)
    assert metrics.ranks(eye, eye, list("abcd")).tolist() == [1, 1, 1, 1]
    assert metrics.ranks(eye, np.roll(eye, 1, 0), list("abcd")).tolist() == [4, 4, 4, 4], "ties rank last"
    twins = np.stack([eye[0], eye[0], eye[2], eye[3]])
    assert metrics.ranks(twins, twins, list("aacd")).tolist() == [1, 1, 1, 1], "a copy of the partner is the partner"
    found = by_name(metrics.ranked(np.array([1, 2, 10])))
    assert found == {"recall@1": 1 / 3, "recall@5": 2 / 3, "mean reciprocal rank": pytest.approx((1 + 0.5 + 0.1) / 3)}


def test_reconstruction_is_pooled() -> None:
    score = metrics.reconstruction([np.zeros((2, 2))], [np.full((2, 2), 25.5)], scale=255.0)
    assert score.value == pytest.approx(0.1)


def test_the_headline_comes_first() -> None:
    lines = [{"expected": "a b", "produced": "a"}]
    assert scores("text", lines, "word error")[0].metric == "word error"
    assert scores("text", lines, "exact match")[0].metric == "exact match"


def test_parts_say_what_differs() -> None:
    parts = Parts("1", "2", "3", "4")
    parts.refuse(Parts("1", "2", "3", "4"), "a -> b")
    assert parts.hash == Parts("1", "2", "3", "4").hash != Parts("1", "2", "3", "5").hash
    assert digest(["ab", "c"]) != digest(["a", "bc"])


PREFERRED = ("before training", "the shorter one")


def test_the_documentation_calls_metrics_and_baselines_what_they_are_called() -> None:
    from weft.evaluate import baselines, measure, scoring

    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    said = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", re.sub(r"```.*?```", "", page, flags=re.DOTALL)))
    lines = {
        "label": {"expected": "a", "produced": "b"}, "text": {"expected": "a", "produced": "b"},
        "image": {"expected": "a", "read": "b"}, "audio": {"expected": "a", "heard": "b"},
        "model": {"nats": 1.0, "tokens": 2, "bytes": 3}, "fill": {"right": 1, "hidden": 2}, "align": {"rank": 1},
        "prefer": {"chosen": -1.0, "rejected": -2.0, "start": (-2.0, -2.0)},
    }  # fmt: skip
    called = {score.metric for kind, line in lines.items() for score in scoring.scores(kind, [line])}
    called |= {"bits per token", "reconstruction error", "majority", "nearest neighbour", "support vector machine"}
    code = (
        Path(measure.__file__).read_text() + Path(baselines.__file__).read_text() + Path(scoring.__file__).read_text()
    )
    called |= {
        name
        for name in ("random codes", "real, through the codes", "3-gram (Kneser-Ney)", "chance", *PREFERRED)
        if f'"{name}"' in code
    }
    called |= {"real pictures", "real recordings", "blind (no image)", "shuffled image"}
    assert called == said, called ^ said
