"""Byte-level BPE by the vocabulary and merges of another library: GPT-2's files, CLIP's, and those inside a GGUF.

    "don't 42"  ->  cut by the family's expression  ->  don|'t| 42  ->  bytes as letters  ->  merges  ->  ids

Families differ only in how they cut before merging; a GGUF names the way (`tokenizer.ggml.pre`), so each has a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from weft.errors import ConvertError, nearest

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Cut:
    """How a text is cut before merges. expression "": GPT-2's; digits: each by itself; composed: to NFC first; whole:
    words that the vocabulary has are not cut."""

    expression: str = ""
    digits: bool = False
    composed: bool = False
    whole: bool = False


# `tokenizer.ggml.pre` of llama.cpp (llama-vocab.cpp) -> the way of cutting
CUTS: dict[str, Cut] = {
    "gpt-2": Cut(),
    "smollm": Cut(digits=True),
    "llama-bpe": Cut(LLAMA3, whole=True),
    "qwen2": Cut(QWEN2, composed=True),
}
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe", "phi-2": "gpt-2", "olmo": "gpt-2",
        "deepseek-r1-qwen": "qwen2"}  # fmt: skip


def cut_of(name: str) -> Cut:
    """The way of cutting that a GGUF names. Raises ConvertError for one that weft does not have."""
    name = SAME.get(name, name)
    if name not in CUTS:
        raise ConvertError(
            f"The tokenizer cuts texts the way of {name!r}, which weft does not have.{nearest(name, CUTS)}"
        )
    return CUTS[name]


def build(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], cut: Cut) -> Tokenizer:
    """A byte-level BPE. Raises ConvertError where the merges do not fit the vocabulary."""
    try:
        model = models.BPE(dict(vocabulary), list(merges), ignore_merges=cut.whole)
    except Exception as error:  # the library raises plain Exception
        raise ConvertError(f"The tokenizer's merges do not fit its vocabulary ({error}).") from error
    tokenizer = Tokenizer(model)
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = before(cut)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def before(cut: Cut) -> pre_tokenizers.PreTokenizer:
    """What cuts a text, and spells its bytes as letters."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    if cut.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if cut.expression:
        steps.append(pre_tokenizers.Split(Regex(cut.expression), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.expression))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def clip(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """CLIP's: lower case, words end with </w> (Radford et al. 2021)."""
    tokenizer = Tokenizer(
        models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CLIP), "removed", invert=True), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return tokenizer


def read_merges(text: str) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, or of a GGUF's list joined by line ends. Raises ConvertError for a line of no pair."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.rstrip("\r").partition(" ")
        if not space or not left or not right or " " in right:
            raise ConvertError(
                f"Line {number} of the merges is {line[:40]!r}; two parts with a space between were expected."
            )
        found.append((left, right))
    return found
