"""Text: any Unicode comes back as it went in, and nothing in it is special."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weft.errors import DataError, RecipeError, RunError
from weft.modalities.text import BYTES, TextCodec, suggest

CORPUS = [
    "a red circle",
    "is there a red triangle in the image?",
    "what colour is the circle?",
    "一个红色的圆",
    "红色",
] * 5


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.train(CORPUS, 320)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("红色的圆 🙂‍↔️ é e\u0301")
@example("\x00\x07\x1b[0m\x7f\x85\u200b\ufeff")
@example("  two  spaces\t\r\n\n")
@example("<|end|><pad>[MASK]")
@example("")
@settings(deadline=None)
def test_any_unicode_comes_back(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    assert ids.dtype == np.int64
    assert codec.decode(ids) == text


def test_merges_shorten_text_that_was_seen(codec: TextCodec) -> None:
    seen, unseen = "is there a red triangle in the image?", "zq vk jx wy qz kv xj yw zq vk jx wy q"
    assert len(codec.encode(seen)) < len(seen) / 2
    assert len(codec.encode(unseen)) > 0.9 * len(unseen)


def test_special_looking_text_is_plain(codec: TextCodec) -> None:
    ids = codec.encode("<|endoftext|>")
    assert len(ids) > 3, "a special token would be one id"
    assert ids.max() < codec.size


def test_batches_equal_single_texts(codec: TextCodec) -> None:
    texts = ["a red circle", "", "一个圆"]
    for text, ids in zip(texts, codec.encode_many(texts), strict=True):
        np.testing.assert_array_equal(ids, codec.encode(text))


def test_the_same_texts_give_the_same_ids(codec: TextCodec) -> None:
    again = TextCodec.train(CORPUS, 320)
    assert again.tokenizer.to_str() == codec.tokenizer.to_str()


def test_size_is_what_was_learned() -> None:
    assert TextCodec.train(["ab"] * 9, 5000).size == BYTES + 1, "there is one pair, so one merge"
    assert TextCodec.train([], 300).size == BYTES


def test_size_grows_with_the_text() -> None:
    assert suggest(["short"]) == 512
    assert 512 < suggest(["x" * 1_000_000]) < suggest(["x" * 2_000_000])
    assert suggest(["x" * 50_000_000]) == 16384


def test_cut_characters_are_marked(codec: TextCodec) -> None:
    ids = TextCodec.train([], 256).encode("圆")
    assert len(ids) == 3
    assert "\ufffd" in TextCodec.train([], 256).decode(ids[:2])


def test_save_and_load(codec: TextCodec, tmp_path) -> None:
    codec.save(tmp_path / "new" / "tokenizer.json")
    loaded = TextCodec.load(tmp_path / "new" / "tokenizer.json")
    np.testing.assert_array_equal(loaded.encode("a red 圆"), codec.encode("a red 圆"))
    assert loaded.size == codec.size


def test_errors_say_what_came(codec: TextCodec, tmp_path) -> None:
    with pytest.raises(DataError, match="int '7'"):
        codec.encode(7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"half a surrogate pair at character 2"):
        codec.encode("ab\ud800")
    with pytest.raises(DataError, match="text 1 is NoneType"):
        TextCodec.train(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match=f"id 9999 is no text id; text ids are 0 to {codec.size - 1}"):
        codec.decode([5, 9999])
    with pytest.raises(RecipeError, match="256 or more"):
        TextCodec.train(["a"], 100)
    with pytest.raises(RunError, match="no such file"):
        TextCodec.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"version": ')
    with pytest.raises(RunError, match=r"broken\.json"):
        TextCodec.load(tmp_path / "broken.json")
