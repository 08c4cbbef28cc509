"""A tokenizer as the entries of a GGUF: the way back of `tokenizer.of_gguf`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from weft.convert import bytepair, pieces
from weft.convert.tokenizer import SavedTokenizer
from weft.errors import ConvertError

NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}


def entries(saved: SavedTokenizer, vocab: int) -> dict[str, Any]:
    """`tokenizer.*` of a model with `vocab` ids. Raises ConvertError for a tokenizer that a GGUF has no form for."""
    tree = json.loads(saved.codec.tokenizer.to_str())
    model = tree["model"]
    if model["type"] != "BPE":
        raise ConvertError(f"A GGUF of this architecture has no form for a {model['type']} tokenizer.")
    added = {token["id"]: token for token in tree["added_tokens"]}
    tokens, types = listed(model["vocab"], added, vocab)
    out: dict[str, Any] = {}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model["byte_fallback"]:
        normal = json.dumps(tree["normalizer"])
        if "Precompiled" in normal:
            raise ConvertError("A GGUF of this architecture has no form for this tokenizer's table of normalisation.")
        ranks = {pair.replace(" ", "", 1): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
        out["tokenizer.ggml.model"] = "llama"
        out["tokenizer.ggml.scores"] = np.array([ranks.get(token, 0.0) for token in tokens], np.float32)
        out["tokenizer.ggml.add_space_prefix"] = "Prepend" in normal or (
            '"prepend_scheme": "' in json.dumps(tree["pre_tokenizer"])
            and '"prepend_scheme": "never"' not in json.dumps(tree["pre_tokenizer"])
        )
        out["tokenizer.ggml.remove_extra_whitespaces"] = " {2,}" in normal
        types = [pieces.BYTE if is_byte(t) and k == pieces.NORMAL else k for t, k in zip(tokens, types, strict=True)]
        if model["unk_token"] in model["vocab"]:
            types[model["vocab"][model["unk_token"]]] = pieces.UNKNOWN
    else:
        out["tokenizer.ggml.model"] = "gpt2"
        out["tokenizer.ggml.pre"] = way(tree)
        out["tokenizer.ggml.merges"] = merges
    out["tokenizer.ggml.tokens"] = tokens
    out["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    out |= {f"tokenizer.ggml.{NAMES[role]}_token_id": n for role, n in saved.roles.items() if role in NAMES}
    if saved.ends:
        out["tokenizer.ggml.eos_token_id"] = saved.ends[0]
    if len(saved.ends) > 1:
        out["tokenizer.ggml.eot_token_id"] = saved.ends[1]
    out["tokenizer.ggml.add_bos_token"] = saved.begins
    if saved.template:
        out["tokenizer.chat_template"] = saved.template
    return out


def listed(vocabulary: Mapping[str, int], added: Mapping[int, Any], vocab: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; ids that the tokenizer lacks are unused."""
    texts = {number: text for text, number in vocabulary.items()} | {n: t["content"] for n, t in added.items()}
    if max(texts, default=-1) >= vocab:
        raise ConvertError(f"The tokenizer has ids up to {max(texts)}, the model {vocab} of them.")
    kinds = {n: pieces.CONTROL if token["special"] else pieces.USER for n, token in added.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(vocab)]
    return tokens, [kinds.get(n, pieces.NORMAL if n in texts else pieces.UNUSED) for n in range(vocab)]


def is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def way(tree: Mapping[str, Any]) -> str:
    """The name for how the tokenizer cuts texts. Raises ConvertError for a way without a name."""
    mine = steps(tree["pre_tokenizer"])
    for name, cut in bytepair.CUTS.items():
        other = json.loads(bytepair.build({}, [], cut).to_str())
        if mine == steps(other["pre_tokenizer"]) and bool(tree["normalizer"]) == cut.composed:
            return name
    raise ConvertError(f"A GGUF has no name that weft knows for how this tokenizer cuts texts ({mine}).")


def steps(tree: Any) -> list[Any]:
    """The steps of a pre-tokenizer, without what changes no id."""
    parts = tree.get("pretokenizers", [tree]) if isinstance(tree, dict) else []
    plain = [{k: v for k, v in part.items() if k != "trim_offsets"} for part in parts]
    return [{**part, "invert": False} if part.get("type") == "Split" else part for part in plain]
