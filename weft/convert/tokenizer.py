"""Tokenizers of other libraries, from whatever a model directory or a GGUF holds.

    tokenizer.json                            as it is
    vocab.txt                                 WordPiece (BERT)
    vocab.json + merges.txt                   byte-level BPE (GPT-2, RoBERTa, Whisper), or CLIP's
    *.model                                   SentencePiece: unigram (T5, XLM-R) and BPE (Llama)
    model.gguf                                the one inside: gpt2-like BPE, or Llama's

Each becomes one `TextCodec`, and with it come the roles of its control tokens and the chat template. Text never becomes
a control token: `encode` treats all of it as text. What a model itself puts around a text ([CLS] and [SEP]) is added by
`around`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from weft.convert import bytepair, pieces
from weft.convert.gguf.read import Gguf
from weft.errors import ConvertError
from weft.modalities.text import TextCodec

LARGEST = 1 << 28  # bytes of one file
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NAMES = ("tokenizer.json", *SENTENCEPIECE, "vocab.txt", "vocab.json and merges.txt")
PROBE = "a"  # a text that shows what stands before and after one
ROLES = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


@dataclass(frozen=True, eq=False)
class SavedTokenizer:
    """A tokenizer and what is said about it.

    roles     "bos", "eos", "pad", "unk", "cls", "sep", "mask" -> id, those that there are
    ends      ids that end an answer: eos, and what generation_config.json adds
    template  the chat template (Jinja), "" if there is none
    begins    whether a prompt starts with bos
    """

    codec: TextCodec
    roles: dict[str, int] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    template: str = ""
    begins: bool = False

    def around(self, text: str) -> np.ndarray:
        """`text` -> (L,) int64 with what its model puts around one text ([CLS] ... [SEP]; <s> ... </s>)."""
        before, after = self.frame
        return np.concatenate([before, self.codec.encode(text), after]).astype(np.int64)

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the model puts before a text, and after it."""
        framed = self.codec.tokenizer.encode(PROBE, add_special_tokens=True).ids
        plain = self.codec.tokenizer.encode(PROBE, add_special_tokens=False).ids
        before = framed.index(plain[0])
        return framed[:before], framed[before + len(plain) :]

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values, without the tokenizer itself (that is `codec.save`)."""
        return {"roles": self.roles, "ends": list(self.ends), "template": self.template, "begins": self.begins}

    @classmethod
    def from_tree(cls, codec: TextCodec, tree: Mapping[str, Any]) -> SavedTokenizer:
        """The way back of `to_tree`."""
        return cls(codec, dict(tree["roles"]), tuple(tree["ends"]), tree["template"], tree["begins"])


def holds_tokenizer(folder: Path) -> bool:
    """Whether a model directory holds one."""
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", *SENTENCEPIECE))


def of_folder(folder: str | Path) -> SavedTokenizer:
    """The tokenizer of a model directory. Raises ConvertError if there is none, or it cannot be read."""
    folder = Path(folder)
    config = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_file(folder / "tokenizer.json")
    elif path := next((folder / name for name in SENTENCEPIECE if (folder / name).is_file()), None):
        tokenizer, config = of_pieces(path, config)
    elif (folder / "vocab.txt").is_file():
        tokenizer = wordpiece(folder / "vocab.txt", config)
        config = {f"{role}_token": name for role, name in BERT.items()} | config
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = byte_pairs(folder, config)
    else:
        raise ConvertError(f"{folder} holds no tokenizer: none of {', '.join(NAMES)}.")
    add_tokens(tokenizer, folder, config)
    roles = roles_of(tokenizer, {**read_json(folder / "special_tokens_map.json"), **config})
    said = read_json(folder / "generation_config.json").get("eos_token_id")
    ends = [roles["eos"]] if "eos" in roles else []
    ends += said if isinstance(said, list) else [said]
    ends = [i for i in ends if isinstance(i, int)]
    template = chat_template(folder, config)
    return SavedTokenizer(
        TextCodec(tokenizer), roles, tuple(dict.fromkeys(ends)), template, begins_with_bos(tokenizer, roles, config)
    )


def of_gguf(file: Gguf) -> SavedTokenizer:
    """The tokenizer inside a GGUF. Raises ConvertError if there is none, or it is of a kind that weft does not have."""
    m = file.metadata
    kind, tokens = m.get("tokenizer.ggml.model"), m.get("tokenizer.ggml.tokens")
    if kind is None or not isinstance(tokens, list) or not tokens:
        raise ConvertError(f"{file.path} holds no tokenizer.")
    types = numbers(file, "tokenizer.ggml.token_type", len(tokens)) or [pieces.NORMAL] * len(tokens)
    scores = numbers(file, "tokenizer.ggml.scores", len(tokens)) or [0.0] * len(tokens)
    count = max((i + 1 for i, kind in enumerate(types) if kind != pieces.UNUSED), default=0)
    tokens, types, scores = tokens[:count], types[:count], scores[:count]  # the rest pads the table
    try:
        if kind == "gpt2":
            tokenizer = gguf_bytes(m, tokens, types)
        elif kind == "llama":
            found = [pieces.Piece(t, float(s), int(k)) for t, s, k in zip(tokens, scores, types, strict=True)]
            prefix = bool(m.get("tokenizer.ggml.add_space_prefix", True))
            squeeze = bool(m.get("tokenizer.ggml.remove_extra_whitespaces", False))
            tokenizer = pieces.build(pieces.Spec(found, pieces.BPE, prefix=prefix, squeeze=squeeze))
        else:
            raise ConvertError(f"The tokenizer is of kind {kind!r}; weft reads gpt2 and llama.")
    except ConvertError as error:
        raise ConvertError(f"{file.path}: {error}") from error
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
    roles = {r: m[f"tokenizer.ggml.{n}_token_id"] for r, n in named.items() if f"tokenizer.ggml.{n}_token_id" in m}
    for role, number in roles.items():
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            raise ConvertError(f"{file.path}: the id of {role} is {number!r}; ids are 0 to {len(tokens) - 1}.")
    ends = [roles[r] for r in ("eos",) if r in roles]
    ends += [m[k] for k in ("tokenizer.ggml.eot_token_id",) if isinstance(m.get(k), int)]
    begins = bool(m.get("tokenizer.ggml.add_bos_token", kind == "llama")) and "bos" in roles
    template = m.get("tokenizer.chat_template", "")
    return SavedTokenizer(
        TextCodec(tokenizer), roles, tuple(dict.fromkeys(ends)), template if isinstance(template, str) else "", begins
    )


# ------------------------------------------------------------------------------------------------ kinds


def numbers(file: Gguf, key: str, count: int) -> list[Any]:
    """A list of `count` numbers of a GGUF's metadata; empty if it is absent."""
    value = file.metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, np.ndarray) or len(value) != count:
        raise ConvertError(f"{file.path}: {key} does not have one number for each of the {count} tokens.")
    return value.tolist()


def gguf_bytes(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """GPT-2-like BPE."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ConvertError("The tokenizer has no merges.")
    cut = bytepair.cut_of(str(metadata.get("tokenizer.ggml.pre", "default")))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ConvertError("The tokenizer has a token twice.")
    tokenizer = bytepair.build(vocabulary, bytepair.read_merges("\n".join(merges)), cut)
    pieces.mark(tokenizer, list(zip(tokens, types, strict=True)))
    return tokenizer


def load_file(path: Path) -> Tokenizer:
    """tokenizer.json, by the library that wrote it."""
    bounded(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ConvertError(f"{path} is not a readable tokenizer.json ({error}).") from error


def of_pieces(path: Path, config: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """A SentencePiece model, and the config with the roles that the model names."""
    spec = pieces.read(path)
    roles = {f"{role}_token": spec.pieces[number].text for role, number in spec.roles.items()}
    tokenizer = pieces.build(spec)
    model_type = config.get("tokenizer_class", "")
    end = roles.get("eos_token")
    if isinstance(model_type, str) and model_type.startswith("T5") and end:
        tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", None, [(end, spec.roles["eos"])])
    return tokenizer, {**roles, **{key: value for key, value in config.items() if value is not None}}


def wordpiece(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """BERT's, from its list of words (Devlin et al. 2018)."""
    words = read_text(path).splitlines()
    vocabulary = {word: i for i, word in enumerate(words)}
    unknown = text_of(config.get("unk_token")) or "[UNK]"
    if unknown not in vocabulary or len(vocabulary) < len(words):
        raise ConvertError(f"{path} is no WordPiece vocabulary: {unknown} is not in it, or a word stands there twice.")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##")
    special = [text_of(config.get(f"{role}_token")) or name for role, name in BERT.items()]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special if t in vocabulary])
    first, last = special[2], special[3]
    if first in vocabulary and last in vocabulary:
        tokenizer.post_processor = processors.BertProcessing((last, vocabulary[last]), (first, vocabulary[first]))
    return tokenizer


def byte_pairs(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """vocab.json and merges.txt: GPT-2's, RoBERTa's, Whisper's; CLIP's where words end with </w>."""
    vocabulary = read_json(folder / "vocab.json")
    if not vocabulary or not all(isinstance(i, int) for i in vocabulary.values()):
        raise ConvertError(f"{folder / 'vocab.json'} is no vocabulary: text -> number was expected.")
    merges = bytepair.read_merges(read_text(folder / "merges.txt"))
    if any(right.endswith("</w>") for _, right in merges[:100]):
        tokenizer = bytepair.clip(vocabulary, merges)
        first, last = "<|startoftext|>", "<|endoftext|>"
    else:
        tokenizer = bytepair.build(vocabulary, merges, bytepair.Cut())
        first, last = "<s>", "</s>"
    special = [t for t in vocabulary if t.startswith("<") and t.endswith(">") and t.strip("<|>/").isalpha()]
    known = {text_of(config.get(f"{role}_token")) for role in ROLES} | {"<|endoftext|>", "<|startoftext|>"}
    roberta = {"<s>", "</s>", "<pad>", "<unk>", "<mask>"} if "<s>" in vocabulary and "</s>" in vocabulary else set()
    special = [t for t in special if t in known | roberta]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    if first in vocabulary and last in vocabulary:
        ends = (last, vocabulary[last]), (first, vocabulary[first])
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def add_tokens(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Tokens that other files add: added_tokens_decoder of the config, added_tokens.json."""
    decoder = config.get("added_tokens_decoder")
    listed: dict[int, AddedToken] = {}
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and str(number).isdigit():
            flags = {k: bool(entry.get(k, False)) for k in ("special", "normalized", "lstrip", "rstrip", "single_word")}
            listed[int(number)] = AddedToken(entry["content"], **flags)
    for text, number in read_json(folder / "added_tokens.json").items():
        if isinstance(number, int):
            listed.setdefault(number, AddedToken(text, normalized=False, special=text.startswith("<")))
    for number, token in sorted(listed.items()):
        if tokenizer.token_to_id(token.content) is None and number != tokenizer.get_vocab_size():
            raise ConvertError(
                f"{folder}: the token {token.content!r} should have the id {number}, but the next free one is "
                f"{tokenizer.get_vocab_size()}."
            )
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


# ------------------------------------------------------------------------------------------------ what is said about it


def roles_of(tokenizer: Tokenizer, said: Mapping[str, Any]) -> dict[str, int]:
    """Role -> id, for the roles that `said` ({"eos_token": "</s>"}) gives to texts that the tokenizer has."""
    texts = {role: text_of(said.get(f"{role}_token")) for role in ROLES}
    found = {role: tokenizer.token_to_id(text) for role, text in texts.items() if text}
    return {role: number for role, number in found.items() if number is not None}


def begins_with_bos(tokenizer: Tokenizer, roles: Mapping[str, int], config: Mapping[str, Any]) -> bool:
    """Whether a prompt starts with bos: as the config says, else as the tokenizer itself does."""
    said = config.get("add_bos_token")
    if isinstance(said, bool):
        return said and "bos" in roles
    framed = tokenizer.encode("", add_special_tokens=True).ids
    return bool(framed) and framed[0] == roles.get("bos", -1)


def chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template, wherever it stands; of several the default one."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    said = read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(said, list):
        named = {entry.get("name"): entry.get("template") for entry in said if isinstance(entry, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else ""


def text_of(token: Any) -> str:
    """A token as files write it: a text, or {"content": text}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


# ------------------------------------------------------------------------------------------------ files


def bounded(path: Path) -> None:
    if path.stat().st_size > LARGEST:
        raise ConvertError(f"{path} has {path.stat().st_size:,} bytes; a tokenizer's file has {LARGEST:,} at most.")


def read_text(path: Path) -> str:
    bounded(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConvertError(f"{path} cannot be read ({error}).") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path} is no JSON ({error}).") from error
    if not isinstance(tree, dict):
        raise ConvertError(f"{path} is a {type(tree).__name__}; a JSON object was expected.")
    return tree
