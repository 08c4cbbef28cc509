"""The config.json of Llama, Mistral, Qwen2 and Qwen3: one tower in four dialects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from weft.convert.layout import (
    Layout,
    Raw,
    activation,
    activation_name,
    natural,
    number,
    only,
    plain,
    positive,
    shared,
    short,
    whole,
)
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.llama import NAMES

Scaling = c.Interpolate | c.Stretch | c.Yarn | None
SCALINGS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Dialect:
    """What one of them says by its name.

    name       model_type; its architectures are Name + ForCausalLM, Name + Model
    title      as the architectures begin
    biases     "said" in attention_bias, upon all four matrices; "qkv" (Qwen2); "none" (Mistral)
    qk_norm    whether queries and keys are normed
    window     whether sliding_window alone gives every layer a window (Mistral), or use_sliding_window has to say so
    eps, head_dim   defaults of the config
    """

    name: str
    title: str
    biases: str = "said"
    qk_norm: bool = False
    window: str = ""
    kv_heads: int = 0
    head_dim: int = 0


LLAMA = Dialect("llama", "Llama")
MISTRAL = Dialect("mistral", "Mistral", biases="none", window="always", kv_heads=8)
QWEN2 = Dialect("qwen2", "Qwen2", biases="qkv", window="asked")
QWEN3 = Dialect("qwen3", "Qwen3", qk_norm=True, window="asked", head_dim=128)
DIALECTS = (LLAMA, MISTRAL, QWEN2, QWEN3)


def read(dialect: Dialect, raw: Raw) -> c.ModelConfig:
    """config.json -> our tree."""
    only(raw, "pretraining_tp", 1, None, *range(2, 9))  # how training was spread: the same numbers
    dim, heads = whole(raw, "hidden_size", default=4096), whole(raw, "num_attention_heads", default=32)
    depth, vocab = whole(raw, "num_hidden_layers", default=32), whole(raw, "vocab_size", default=32000)
    norm = c.RMSNorm(number(raw, "rms_norm_eps", default=1e-6))
    kv_heads, said = (
        whole(raw, "num_key_value_heads", default=dialect.kv_heads or heads),
        bool(raw.get("attention_bias")),
    )
    shared(heads, kv_heads, "key and value heads")
    wide = raw.get("head_dim") is not None or dialect.head_dim
    head_dim = whole(raw, "head_dim", default=dialect.head_dim) if wide else shared(dim, heads, "heads")
    attention = c.Attention(
        heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        bias={"said": said, "qkv": True, "none": False}[dialect.biases],
        qk_norm=norm if dialect.qk_norm else None,
        position=rope(raw),
        pattern=pattern(dialect, raw, depth),
        out_bias=False if dialect.biases == "qkv" else None,
    )
    feedforward = c.FeedForward(
        whole(raw, "intermediate_size", default=11008),
        activation(raw, "hidden_act", default="silu"),
        gated=True,
        bias=bool(raw.get("mlp_bias")) and dialect is LLAMA,
    )
    language = c.Language(vocab, tied=bool(raw.get("tie_word_embeddings", False)))
    return c.ModelConfig(
        c.TowerConfig(c.TextInput(vocab), c.StackConfig(dim, depth, attention, feedforward, norm)),
        {} if raw["architectures"][0].endswith("Model") else {"language": language},
        family="llama",
    )


def rope(raw: Raw) -> c.Rope:
    """The rotation, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    said = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        raise ConvertError(f"rope_parameters of the config.json is {short(said)}; a table was expected.")
    theta = positive(said, "rope_theta", default=positive(raw, "rope_theta", default=10_000.0))
    fraction = positive(said, "partial_rotary_factor", default=positive(raw, "partial_rotary_factor", default=1.0))
    if fraction > 1:
        raise ConvertError(f"partial_rotary_factor of the config.json is {fraction:g}; it is a share, 1 at most.")
    return c.Rope(theta, fraction=fraction, scaling=scaling(said, raw))


def scaling(said: Mapping[str, Any], raw: Raw) -> Scaling:
    """How the rotation is made longer."""
    kind = said.get("rope_type", said.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ConvertError(f"rope_type of the config.json is {short(kind)}; weft has {', '.join(SCALINGS)}.")
    if kind == "default":
        return None
    if kind == "linear":
        return c.Interpolate(positive(said, "factor"))
    length = whole(said, "original_max_position_embeddings", default=raw.get("max_position_embeddings"))
    if kind == "llama3":
        low, high = number(said, "low_freq_factor"), number(said, "high_freq_factor")
        if low >= high:
            raise ConvertError(
                f"low_freq_factor {low:g} of the config.json is not less than high_freq_factor {high:g}."
            )
        return c.Stretch(positive(said, "factor"), low, high, length)
    factor = positive(said, "factor", default=whole(raw, "max_position_embeddings", default=length) / length)
    sharper = number(said, "attention_factor", default=0.0)
    if not sharper and said.get("mscale") and said.get("mscale_all_dim"):
        over, under = (mscale(factor, number(said, key)) for key in ("mscale", "mscale_all_dim"))
        sharper = over / under
    fast, slow = positive(said, "beta_fast", default=32.0), positive(said, "beta_slow", default=1.0)
    return c.Yarn(factor, length, fast, slow, sharper, bool(said.get("truncate", True)))


def mscale(factor: float, by: float) -> float:
    """Peng et al. 2023, equation 22, with a weight of its own (DeepSeek)."""
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0


def pattern(dialect: Dialect, raw: Raw, depth: int) -> c.Causal | c.Window:
    """Causal, or a window for every layer. Raises ConvertError where only some layers have one."""
    left = raw.get("sliding_window")
    if not dialect.window or left is None or (dialect.window == "asked" and not raw.get("use_sliding_window")):
        return c.Causal()
    width = whole(raw, "sliding_window")
    if dialect.window == "always":
        return c.Window(width - 1)
    first = natural(raw, "max_window_layers", default=28)
    kinds = raw.get("layer_types")
    if not isinstance(kinds, list) or not kinds:
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in (0, depth - 1)]
    if any(kind != kinds[0] for kind in kinds):
        raise ConvertError("Only some layers of this model have a sliding window; weft's stacks have equal layers.")
    return c.Window(width - 1) if kinds[0] == "sliding_attention" else c.Causal()


def write(dialect: Dialect, config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> config.json."""
    tower, head = config.topology, config.heads.get("language")
    if not isinstance(tower, c.TowerConfig):
        raise ConvertError(f"{dialect.title}'s layout is that of one tower.")
    stack, feedforward, norm = plain(tower.stack, dialect.title, c.RMSNorm)
    attention = stack.attention
    window = attention.pattern.left + 1 if isinstance(attention.pattern, c.Window) else None
    tree = {
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": 4096,
        **raw,
        "architectures": [dialect.title + ("ForCausalLM" if head else "Model")],
        "model_type": dialect.name,
        "vocab_size": tower.input.vocab,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or stack.dim // attention.heads,
        "intermediate_size": feedforward.hidden,
        "hidden_act": activation_name(feedforward.activation, raw.get("hidden_act")),
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": isinstance(head, c.Language) and head.tied,
        "attention_bias": attention.bias,
        "mlp_bias": feedforward.bias,
        **rope_written(attention.position, raw),
    }
    if dialect.window == "always":
        tree["sliding_window"] = window
    elif dialect.window and window is not None:
        tree |= {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 0}
        tree["layer_types"] = ["sliding_attention"] * stack.depth
    return tree


def rope_written(position: Any, raw: Raw) -> dict[str, Any]:
    """`rope_parameters`, as it was if it says the same."""
    if not isinstance(position, c.Rope):
        raise ConvertError("These layouts have rotary positions.")
    if raw and (raw.get("rope_parameters") or raw.get("rope_theta")) and rope(raw) == position:
        return {}
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": position.theta}
    if position.fraction != 1.0:
        said["partial_rotary_factor"] = position.fraction
    s = position.scaling
    if isinstance(s, c.Interpolate):
        said |= {"rope_type": "linear", "factor": s.factor}
    elif isinstance(s, c.Stretch):
        said |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low, "high_freq_factor": s.high}
        said["original_max_position_embeddings"] = s.length
    elif isinstance(s, c.Yarn):
        said |= {"rope_type": "yarn", "factor": s.factor, "beta_fast": s.fast, "beta_slow": s.slow}
        said |= {"original_max_position_embeddings": s.length, "truncate": s.whole}
        said |= {"attention_factor": s.attention} if s.attention else {}
    return {"rope_parameters": said, "rope_theta": None, "rope_scaling": None}


def layout(dialect: Dialect) -> Layout:
    """The layout of a dialect."""
    return Layout(
        (dialect.title + "ForCausalLM", dialect.title + "Model"),
        partial(read, dialect),
        partial(write, dialect),
        lambda config: NAMES,
        ignore=("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),  # derived; old files
        family="llama",
        prefix="model.",
        bare=(dialect.title + "Model",),
    )


LAYOUTS = tuple(map(layout, DIALECTS))
