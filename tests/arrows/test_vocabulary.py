"""The vocabulary: blocks lie side by side, each id has one place, and it round-trips through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.arrows.vocabulary import SENTINELS, Layer, Vocabulary
from weft.errors import ArrowError, DataError

name = st.text(min_size=1, max_size=6)
vocabularies = st.builds(
    Vocabulary,
    st.lists(name, max_size=5, unique=True),
    text=st.integers(0, 1000),
    labels=st.dictionaries(name, st.integers(1, 60), max_size=3),
    codes=st.dictionaries(st.sampled_from(["image", "audio"]), st.integers(1, 600)),
)


@given(vocabularies)
def test_every_id_has_one_place(vocabulary: Vocabulary) -> None:
    found = [vocabulary.place(token) for token in range(vocabulary.size)]
    assert len(set(found)) == vocabulary.size
    for block, ids in vocabulary.blocks.items():
        assert [found[i] for i in ids] == [(block, n) for n in range(len(ids))]
    with pytest.raises(DataError, match="outside the vocabulary"):
        vocabulary.place(vocabulary.size)


@given(vocabularies)
def test_json_round_trip(vocabulary: Vocabulary) -> None:
    back = Vocabulary.from_tree(json.loads(json.dumps(vocabulary.to_tree())))
    assert back == vocabulary and back.blocks == vocabulary.blocks and hash(back) == hash(vocabulary)


def test_the_layout_does_not_move() -> None:
    """Saved models depend on these numbers."""
    vocabulary = Vocabulary(["image", "answer"], 300, {"answer": 13}, {"image": 512})
    assert (vocabulary.pad, vocabulary.end, vocabulary.mask) == (0, 1, 2)
    assert [vocabulary.sentinel(i) for i in (0, SENTINELS - 1)] == [3, 34]
    assert (vocabulary.marker("image"), vocabulary.marker("answer")) == (35, 36)
    assert vocabulary.block("text") == range(37, 337)
    assert vocabulary.block("label:answer") == range(337, 350)
    assert vocabulary.block("codes:image") == range(350, 862)
    assert vocabulary.size == 862
    assert vocabulary != Vocabulary(["answer", "image"], 300, {"answer": 13}, {"image": 512})


def test_what_is_not_there() -> None:
    vocabulary = Vocabulary(["image"], 300)
    with pytest.raises(DataError, match=r"no block 'texts'. Did you mean 'text'\?"):
        vocabulary.block("texts")
    with pytest.raises(ArrowError, match=r"no arrow of this run names a column 'imgae'. Did you mean 'image'\?"):
        vocabulary.marker("imgae")
    with pytest.raises(DataError, match="sentinel 32"):
        vocabulary.sentinel(32)
    with pytest.raises(ArrowError, match="stands twice"):
        Vocabulary(["a", "a"])


def test_pretrained_text_keeps_its_ids_and_the_rest_is_appended() -> None:
    source = Vocabulary.pretrained(1000, end=2)
    first = source.grown(Layer(("image", "answer"), 77, {"answer": 4}))
    assert first.block("text") == range(1000), "the same ids as ever"
    assert (first.pad, first.end, first.mask) == (1000, 2, 1002)
    assert first.marker("answer") == 1000 + 35 + 1
    again = first.grown(Layer(("answer", "note"), 0, {"answer": 4}, roles=4))
    assert again.marker("answer") == first.marker("answer") and again.marker("note") == first.size
    assert again.block("label:answer") == first.block("label:answer")
    assert again.place(again.marker("note")) == ("marker", 2)
    assert again.grown(Layer(("note",))) == again, "nothing new, nothing appended"
    other = again.grown(Layer((), 0, {"answer": 9}))
    assert len(other.block("label:answer")) == 9 and other.block("label:answer").start == again.size
    for vocabulary in (source, first, again, other):
        back = Vocabulary.from_tree(json.loads(json.dumps(vocabulary.to_tree())))
        assert back == vocabulary and back.blocks == vocabulary.blocks and back.end == vocabulary.end
