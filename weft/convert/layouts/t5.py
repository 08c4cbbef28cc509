"""T5's config.json, of version 1.0 and of 1.1 (Flan)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weft.convert.layout import ACTIVATIONS, Layout, Raw, activation_name, number, plain, whole
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.names import Rule
from weft.families.t5 import NAMES


def read(raw: Raw) -> c.ModelConfig:
    """T5Config -> our tree."""
    dim, heads = whole(raw, "d_model", default=512), whole(raw, "num_heads", default=8)
    depth, vocab = whole(raw, "num_layers", default=6), whole(raw, "vocab_size", default=32128)
    norm = c.RMSNorm(number(raw, "layer_norm_epsilon", default=1e-6))
    bias = c.RelativeBias(
        whole(raw, "relative_attention_num_buckets", default=32),
        whole(raw, "relative_attention_max_distance", default=128),
    )

    def attention(pattern: c.Full | c.Causal, position: c.RelativeBias | None = None) -> c.Attention:
        width = whole(raw, "d_kv", default=64)
        return c.Attention(heads, head_dim=width, position=position, pattern=pattern, scale=1.0)

    across = attention(c.Full())
    encoder = c.StackConfig(dim, depth, attention(c.Full(), bias), feedforward(raw), norm)
    decoder = replace(
        encoder,
        depth=whole(raw, "num_decoder_layers", default=depth),
        attention=attention(c.Causal(), bias),
        cross=across,
    )
    return c.ModelConfig(
        c.EncoderDecoderConfig(
            c.TowerConfig(c.TextInput(vocab), encoder),
            c.TowerConfig(c.TextInput(vocab), decoder),
        ),
        {"language": language(raw, vocab, dim)},
        family="t5",
    )


def language(raw: Raw, vocab: int, dim: int) -> c.Language:
    """Version 1.0 ties its head and scales what goes in; 1.1 does neither. Newer files say the scale by itself."""
    tied = bool(raw.get("tie_word_embeddings", True))
    scaled = bool(raw.get("scale_decoder_outputs", tied))
    return c.Language(vocab, tied=tied, scale=dim**-0.5 if scaled else 1.0)


def feedforward(raw: Raw) -> c.FeedForward:
    """`feed_forward_proj`: an activation, after "gated-" if it is; there, "gelu" is the tanh form."""
    said = str(raw.get("feed_forward_proj", "relu"))
    gated, name = said.startswith("gated-"), said.removeprefix("gated-")
    name = "gelu_new" if said == "gated-gelu" else name
    if name not in ACTIVATIONS:
        raise ConvertError(f"feed_forward_proj of the config.json is {said!r}; weft has {', '.join(ACTIVATIONS)}.")
    return c.FeedForward(whole(raw, "d_ff", default=2048), ACTIVATIONS[name], gated)


def settle(config: c.ModelConfig, theirs: Mapping[str, Tensor]) -> c.ModelConfig:
    """A head of its own numbers is untied, whatever config.json says; one that is not there is tied."""
    head, table = theirs.get("lm_head.weight"), theirs.get("shared.weight")
    language = config.heads["language"]
    if not isinstance(language, c.Language) or table is None:
        return config
    tied = head is None or (head.shape == table.shape and torch.equal(head, table) and language.tied)
    return replace(config, heads={"language": replace(language, tied=tied)})


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> T5Config."""
    both, head = config.topology, config.heads.get("language")
    if not isinstance(both, c.EncoderDecoderConfig) or not isinstance(head, c.Language) or not both.shared:
        raise ConvertError("T5's layout is an encoder and a decoder with one table, and a head over words.")
    encoder, part, norm = plain(both.encoder.stack, "T5", c.RMSNorm)
    position = encoder.attention.position
    if not isinstance(position, c.RelativeBias):
        raise ConvertError("T5's layout has learned biases by distance.")
    was = str(raw.get("feed_forward_proj", "")).removeprefix("gated-")
    act = "gelu" if part.gated and part.activation == "gelu_tanh" else activation_name(part.activation, was)
    tree = {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        **raw,
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": both.encoder.input.vocab,
        "d_model": encoder.dim,
        "d_kv": encoder.attention.head_dim or encoder.dim // encoder.attention.heads,
        "d_ff": part.hidden,
        "num_layers": encoder.depth,
        "num_decoder_layers": plain(both.decoder.stack, "T5", c.RMSNorm)[0].depth,
        "num_heads": encoder.attention.heads,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.distance,
        "layer_norm_epsilon": norm.eps,
        "feed_forward_proj": ("gated-" if part.gated else "") + act,
        "tie_word_embeddings": head.tied,
        "scale_decoder_outputs": head.scale != 1.0,
    }
    for key in ("is_gated_act", "dense_act_fn"):  # follow from feed_forward_proj
        tree.pop(key, None)
    return tree


def rules(config: c.ModelConfig) -> tuple[Rule, ...]:
    """The table of names, by whether the feed-forward parts are gated."""
    both = config.topology
    return NAMES[isinstance(both, c.EncoderDecoderConfig) and plain(both.encoder.stack, "T5", c.RMSNorm)[1].gated]


LAYOUT = Layout(
    ("T5ForConditionalGeneration",),
    read,
    write,
    rules,
    # A table that the first code made for the cross attention and never used.
    ignore=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    family="t5",
    settle=settle,
)
