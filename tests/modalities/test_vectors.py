"""Word vectors: files read, tokens matched, tables filled."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft import families
from weft.arrows.vocabulary import Vocabulary
from weft.convert.pretrained import installed
from weft.errors import DataError, RecipeError
from weft.modalities.text import TextCodec
from weft.modalities.vectors import match, read_vectors
from weft.model import build
from weft.train.vectors import fitted, give

WORDS = {"red": [1.0, 0, 0], "blue": [0, 1.0, 0], "bird": [0, 0, 1.0], ",": [5.0, 5, 5]}


def written(path: Path, words: dict[str, list[float]] = WORDS, head: str = "") -> Path:
    text = head + "".join(f"{word} {' '.join(map(str, row))}\n" for word, row in words.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def codec() -> TextCodec:
    return TextCodec.train(["red red red blue", "red blue, blue", "Red bird b"] * 20, 280)


@pytest.mark.parametrize("name", ["glove.txt", "fast.vec", "glove.txt.gz"])
def test_every_form_of_the_file_is_read(tmp_path: Path, name: str) -> None:
    found = read_vectors(written(tmp_path / name, head="4 3\n" if name == "fast.vec" else ""))
    assert found.words == list(WORDS) and found.values.tolist() == list(WORDS.values())


def test_words_take_their_vectors_and_pieces_the_mean_of_their_words(tmp_path: Path) -> None:
    text = codec()
    found = match(read_vectors(written(tmp_path / "v.txt")), text)
    of = lambda word: int(text.encode(word)[-1])
    for said in ("red", " red", " blue", ","):
        assert len(text.encode(said)) == 1 and found.whole[of(said)]
        assert found.values[of(said)].tolist() == WORDS[said.strip()]
    pieces = [i for word in ("bird", " bird") for i in text.encode(word)]
    for piece in set(pieces) - set(np.flatnonzero(found.whole)):
        inside = [w for w in WORDS for before in ("", " ") if piece in text.encode(before + w)]
        wanted = np.mean([WORDS[word] for word in inside], 0)
        assert found.part[piece] and np.allclose(found.values[piece], wanted)
    assert not found.covered[of("Z")] and not found.values[of("Z")].any(), "a byte of no word has none"
    assert "tokens have a vector of 3 features" in str(found)


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("family", ["gpt", "rnn", "cnn", "t5", "bert"])
def test_a_table_starts_with_them(tmp_path: Path, family: str, dim: int) -> None:
    if family in ("gpt", "t5", "bert") and dim % 2:
        dim += 1
    text = codec()
    words = Vocabulary(["a"], text=text.size)
    renderer = SimpleNamespace(vocabulary=words, text=text)
    model = build(
        families.make(family, vocab=words.size, length=8, dim=max(dim, 3 if family == "cnn" else 1), depth=1, heads=1),
        0,
    )
    before = {name: t.clone() for name, t in model.state_dict().items()}
    told = give(model, renderer, str(written(tmp_path / "v.txt")))
    assert "embeddings from" in told and "%" in told
    table = (model.body.encoder if family == "t5" else model.body).input.table.weight
    start = words.block("text").start
    red, also, blue = (table[start + int(text.encode(w)[0])] for w in ("red", " red", " blue"))
    width = min(3, table.shape[1])
    assert torch.equal(red[:width], also[:width]) and not torch.equal(red[:width], blue[:width])
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all("table" in n or "language.weight" in n for n in changed), "nothing else moves"


def test_what_does_not_fit_the_width_is_projected() -> None:
    vectors = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 6)
    narrow, told = fitted(vectors, 2)
    assert narrow.shape == (50, 2) and "100% of their variance" in told
    apart = lambda x: torch.cdist(x, x)
    assert torch.allclose(apart(narrow), apart(vectors), atol=1e-2), "the two directions hold all that there is"
    assert "the other 4 of 10" in fitted(vectors, 10)[1]


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    for text, said in (
        ("red 1 2\nblue 1\n", r"line 2: 1 numbers came for 'blue'"),
        ("red 1 x\n", "line 1: 'red' is not followed by numbers"),
        ("red 1 nan\n", "finite"),
        ("red 1 2\nblue\n", "line 2: a word and its numbers"),
        ("", "holds no word vectors"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_vectors(path)
    with pytest.raises(DataError, match="no such file"):
        read_vectors(tmp_path / "none.txt")
    (tmp_path / "v.txt.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "v.txt.gz")


def test_what_has_no_words_is_told(tmp_path: Path) -> None:
    path, text = str(written(tmp_path / "v.txt")), codec()
    words = Vocabulary(["a"], text=text.size)
    model = build(families.make("gpt", vocab=words.size, length=8, dim=4, depth=1, heads=1), 0)
    with pytest.raises(RecipeError, match="has no table of words"):
        give(
            build(families.make("hmm", vocab=words.size, length=8), 0),
            SimpleNamespace(vocabulary=words, text=text),
            path,
        )
    with pytest.raises(RecipeError, match="No column is text"):
        give(model, SimpleNamespace(vocabulary=words, text=None), path)
    with pytest.raises(RecipeError, match="come with smollm2 already"):
        give(model, SimpleNamespace(vocabulary=words, text=text), path, "smollm2")


@pytest.mark.skipif(installed("glove") is None, reason="the package of GloVe is not installed")
def test_glove_itself() -> None:
    from weft.convert.pretrained import find

    found = read_vectors(find("glove"))
    assert found.values.shape == (400_000, 50) and found.words[:2] == ["the", ","]
    row = {word: found.values[i] / np.linalg.norm(found.values[i]) for i, word in enumerate(found.words[:20_000])}
    assert row["king"] @ row["queen"] > 0.75 > row["king"] @ row["banana"]
