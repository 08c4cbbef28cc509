"""What other programs get of a run that was trained from nothing: its own ids, and the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

import weft
from weft.convert.load import read
from weft.convert.text import open_text
from weft.convert.whole import whole
from weft.core.view import Tokens
from weft.generate.predict import Predictor
from weft.generate.sample import Sampling
from weft.run import Run
from weft.train.session import train

SMALL = (
    "model.family=llama", "model.dim=32", "model.depth=2", "model.heads=2", "train.tokens=128", "train.length=32",
    "train.options.check=false", "train.options.compile=off",
)  # fmt: skip
COLOURS, BEASTS = ("red", "blue", "green"), ("cat", "dog", "bird")
TEXTS = [f"the {a} {b} runs after the {c} one" for a in COLOURS for b in BEASTS for c in COLOURS]


@pytest.fixture(scope="module")
def teller(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Llama that goes on with texts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return train([{"text": text} for text in TEXTS], "-> text", out=out, steps=40, overrides=SMALL)


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A Llama with a label among its ids, and a text that spells a control token."""
    rows = [{"note": f"{text} <|end|>" * 2, "beast": text.split()[2]} for text in TEXTS for _ in range(3)]
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(rows, "note -> beast", out=out, steps=2, overrides=(*SMALL, "types.beast=label"))


def test_transformers_reads_the_ids_and_goes_on_as_weft_does(teller: Run, tmp_path: Path) -> None:
    weft.export(teller, tmp_path / "hf")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    predictor = Predictor(teller)
    for text in ("", "the red", "the blue dog runs"):
        laid = words(text, return_tensors="pt")
        start = teller.renderer.vocabulary.block("text").start
        wanted = [teller.renderer.vocabulary.marker("text"), *(teller.renderer.text.encode(text) + start)]
        assert laid["input_ids"][0].tolist() == wanted
        own = teller.renderer.text.encode(text).tolist()
        assert not text or own != wanted[1:], "control: the run's own file has other ids"
        found = model.generate(**laid, max_new_tokens=20, do_sample=False)[0]
        ours = predictor.produce("-> text", [{"text": text}], Sampling())[0]
        assert found[len(wanted) :].tolist() == ours.ids.tolist() and len(ours.ids) > 1
        assert words.decode(found, skip_special_tokens=True) == text + ours.value


def test_a_gguf_has_the_same_ids_and_logits(teller: Run, tmp_path: Path) -> None:
    path = weft.export(teller, tmp_path / "mine.gguf", to="gguf-f32")
    opened = open_text(path)
    ids = torch.from_numpy(whole(teller).codec.encode("the green bird runs"))[None]
    assert np.array_equal(opened.tokenizer.codec.encode("the green bird runs"), ids[0].numpy())
    vocabulary = teller.renderer.vocabulary
    assert opened.tokenizer.roles == {
        "bos": vocabulary.marker("text"), "eos": vocabulary.end, "pad": vocabulary.pad, "mask": vocabulary.mask,
    }  # fmt: skip
    with torch.no_grad():
        one, two = (model.logits(model.hidden(Tokens(ids))) for model in (opened.model, teller.model()))
    assert torch.allclose(one, two, atol=1e-5) and not torch.allclose(one, two.roll(1, -1), atol=1e-3)
    assert read(path).special["eos"] == [vocabulary.end]


def test_every_id_has_a_name_and_no_text_becomes_one_of_wefts_own(answerer: Run) -> None:
    saved, renderer = whole(answerer), answerer.renderer
    tokens = saved.codec.tokenizer
    assert tokens.get_vocab_size() == renderer.vocabulary.size
    named = [tokens.id_to_token(i) for i in renderer.vocabulary.block("label:beast")]
    assert named == ["<|beast=bird|>", "<|beast=cat|>", "<|beast=dog|>"]
    assert tokens.id_to_token(renderer.vocabulary.marker("note")) == "<|note|>" and not saved.begins
    for text in ("<|end|>", "a <|beast=cat|> b", TEXTS[0]):
        found = saved.codec.encode(text) - renderer.vocabulary.block("text").start
        assert np.array_equal(found, renderer.text.encode(text)), text
        assert saved.codec.decode(saved.codec.encode(text)) == text
    path = answerer.path / "whole.json"
    tokens.save(str(path))
    read_back = Tokenizer.from_file(str(path))
    assert read_back.encode(TEXTS[0]).ids == saved.codec.encode(TEXTS[0]).tolist()
    assert renderer.vocabulary.end in read_back.encode("a <|end|> b").ids, "as the page says of other programs"


def test_a_grown_vocabulary_keeps_the_names_of_what_stood_before(answerer: Run, tmp_path: Path) -> None:
    rows = [{"note": text, "my words: two": text, "beast": text.split()[5]} for text in TEXTS * 2]
    words = [w for w in SMALL if not w.startswith("model.")]
    run = train(
        rows, "note -> beast", '"my words: two" -> note', out=tmp_path / "run", steps=1,
        overrides=(*words, f'model.source="{answerer.path}"'),
    )  # fmt: skip
    tokens, vocabulary = whole(run).codec.tokenizer, run.renderer.vocabulary
    assert tokens.get_vocab_size() == vocabulary.size
    assert [tokens.id_to_token(vocabulary.marker(c)) for c in ("note", "my words: two")] == [
        "<|note|>", "<|my_words_two|>",
    ]  # fmt: skip
    assert weft.export(run, tmp_path / "hf").is_dir()


def test_a_column_with_spaces_can_begin_a_text_and_an_encoder_decoder_begins_with_padding(tmp_path: Path) -> None:
    rows = [{"my text": text, "beast": text.split()[2] + " and so on"} for text in TEXTS]
    run = train(rows, '-> "my text"', out=tmp_path / "one", steps=1, overrides=SMALL)
    words = transformers.AutoTokenizer.from_pretrained(weft.export(run, tmp_path / "hf"))
    assert words("the")["input_ids"][0] == run.renderer.vocabulary.marker("my text")
    two = train(rows, '"my text" -> beast:text', out=tmp_path / "two", steps=1, family="t5",
                overrides=[w for w in SMALL if "family" not in w])  # fmt: skip
    weft.export(two, tmp_path / "t5")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5")
    assert model.generate(torch.tensor([[40, 41]]), max_new_tokens=3)[0, 0] == two.renderer.vocabulary.pad
