"""Llama-like models in a GGUF <-> the ecosystem's config.json and names of tensors, and so <-> ours.

    llama.embedding_length   <->  hidden_size                  blk.0.attn_q.weight  <->  model.layers.0.self_attn.q_proj
    llama.block_count        <->  num_hidden_layers            token_embd.weight    <->  model.embed_tokens
    ...                                                        ...

llama.cpp turns the neighbours (2i, 2i+1) of a head where the ecosystem turns (i, i + E/2), so the rows of q and k of
the llama architecture lie in another order there (`turned`, `straight`); qwen2 and qwen3 keep theirs.

Shape letters:  H heads  E features of a head  D width
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.convert.gguf.read import Gguf, read
from weft.convert.hf import Imported
from weft.convert.layouts import find
from weft.convert.tokenizer import SavedTokenizer, of_gguf
from weft.convert.weights import to_ours
from weft.errors import ConvertError, nearest
from weft.model import build

# architecture there -> ours, and whether its q and k are turned
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", True),
    "qwen2": ("Qwen2ForCausalLM", False),
    "qwen3": ("Qwen3ForCausalLM", False),
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
FACTORS = "rope_freqs.weight"  # Llama 3.1's stretching, as a factor for each frequency
LLAMA31 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def load_gguf(path: str | Path) -> Imported:
    """A .gguf file, in ours. Raises ConvertError: a damaged file, an architecture or number format not known."""
    file = read(path)
    raw = config_of(file)
    layout = find(raw)
    config = layout.read(raw)
    model = build(config, device="meta")
    try:
        state = to_ours(layout.rules(config), tensors_of(file, raw), model, layout.ignore)
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error
    saved = of_gguf(file) if "tokenizer.ggml.model" in file.metadata else None
    if saved is None:
        return Imported(config, state, raw)
    if saved.codec.size > raw["vocab_size"]:
        raise ConvertError(f"{path}: the tokenizer has {saved.codec.size} ids, the model {raw['vocab_size']}.")
    return Imported(
        config, state, raw, tokenizer=saved.codec.tokenizer, chat_template=saved.template, special=parts(saved)
    )


def parts(saved: SavedTokenizer) -> dict[str, list[int]]:
    """Special tokens by their part, as `Imported` has them."""
    named = {role: [number] for role, number in saved.roles.items()}
    return named | ({"eos": list(saved.ends)} if saved.ends else {})


def config_of(file: Gguf) -> dict[str, Any]:
    """The config.json that says the same as the file's metadata. Raises ConvertError for what weft does not have."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ConvertError(f"{file.path}: the architecture {name!r} is not known.{nearest(str(name), ARCHITECTURES)}")
    if "token_embd.weight" not in file.infos:
        raise ConvertError(f"{file.path} holds no tensor 'token_embd.weight'.")
    said = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    if said.get("expert_count"):
        raise ConvertError(f"{file.path} is a mixture of {said['expert_count']} experts, which weft does not have.")

    def number(key: str, default: int | None = None) -> int:
        value = said.get(key, default)
        if isinstance(value, np.ndarray):  # one for each layer
            value = int(value[0]) if len(value) and (value == value[0]).all() else None
        if not isinstance(value, int) or value <= 0:
            raise ConvertError(f"{file.path}: {name}.{key} is {said.get(key)!r}; a positive whole number was expected.")
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", number("rope.dimension_count", width // heads))
    tree = {
        "architectures": [ARCHITECTURES[name][0]],
        "model_type": name,
        "vocab_size": file.infos["token_embd.weight"].shape[0],
        "hidden_size": width,
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": number("feed_forward_length"),
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length", 2048),
        "rms_norm_eps": rounded(said.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": rounded(said.get("rope.freq_base", 10_000.0)),
        "tie_word_embeddings": "output.weight" not in file.infos,
        "attention_bias": name == "llama" and "blk.0.attn_q.bias" in file.infos,
    }
    if scaling := rope_scaling(file, said, tree):
        tree["rope_scaling"] = scaling
    for key, role in (("bos_token_id", "bos"), ("eos_token_id", "eos")):
        tree[key] = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return tree


def rope_scaling(file: Gguf, said: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """How the rotation is made longer; empty if it is not."""
    kind = said.get("rope.scaling.type", "none")
    factor = rounded(said.get("rope.scaling.factor", 1.0))
    if FACTORS in file.infos:
        factors = file.tensor(FACTORS)
        found = {"rope_type": "llama3", "factor": rounded(float(factors.max())), **LLAMA31}
        if not torch.allclose(stretching(found, tree), factors, rtol=1e-4):
            raise ConvertError(f"{file.path}: the factors of the rotation are not those of Llama 3.1.")
        return found
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        length = said.get("rope.scaling.original_context_length", tree["max_position_embeddings"])
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    if kind not in ("none", "linear"):
        raise ConvertError(f"{file.path}: the rotation is scaled by {kind!r}; weft has linear, yarn and llama3.")
    return {}


def stretching(scaling: Mapping[str, Any], tree: Mapping[str, Any]) -> Tensor:
    """(E/2,) by what each frequency is divided (Llama 3.1)."""
    speed = tree["rope_theta"] ** -(torch.arange(0, tree["head_dim"], 2, dtype=torch.float64) / tree["head_dim"])
    turns = scaling["original_max_position_embeddings"] * speed / (2 * torch.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (keep + (1 - keep) / scaling["factor"])).float()


def rounded(value: Any) -> float:
    """A float32 of a file as the decimal number that was meant: 9.99999974e-06 is 1e-05."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConvertError(f"{value!r} stands in the metadata where a number was expected.")
    return float(str(np.float32(value)))


def tensors_of(file: Gguf, raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors as float32 under the ecosystem's names. Names without a rule stay as they are."""
    swapped = ARCHITECTURES[file.metadata["general.architecture"]][1]
    out = {}
    for name in file.infos:
        if name == FACTORS:
            continue
        tensor, target = file.tensor(name), renamed(name, NAMES)
        heads = heads_of(target, raw)
        if swapped and heads and tensor.shape[0] % (2 * heads) == 0:  # another shape is told by name later on
            tensor = straight(tensor, heads)
        out[target] = tensor
    return out


def heads_of(name: str, raw: Mapping[str, Any]) -> int:
    """How many heads a q or k projection has; 0 for other tensors."""
    part = re.search(r"self_attn\.([qk])_proj\.", name)
    if part is None:
        return 0
    return raw["num_attention_heads"] if part[1] == "q" else raw["num_key_value_heads"]


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A tensor's name by a table of stems with a layer number; as it is where the table has none."""
    stem, _, kind = name.rpartition(".")
    found = re.search(r"\.(\d+)\.", stem)
    number = found[1] if found else ""
    pattern = stem.replace(f".{number}.", ".{i}.", 1) if found else stem
    return f"{table[pattern].replace('{i}', number)}.{kind}" if pattern in table else name


def straight(tensor: Tensor, heads: int) -> Tensor:
    """(H*E,...) rows of neighbours (2i, 2i+1) -> rows of halves (i, i + E/2)."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def turned(tensor: Tensor, heads: int) -> Tensor:
    """The way back of `straight`."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()
