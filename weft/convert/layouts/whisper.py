"""Whisper's config.json."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weft.convert.layout import Layout, Raw, activation, activation_name, only, plain, whole
from weft.core import config as c
from weft.core.position import sinusoidal
from weft.errors import ConvertError
from weft.families.whisper import NAMES

PLACES = "model.encoder.embed_positions.weight"


def read(raw: Raw) -> c.ModelConfig:
    """WhisperConfig -> our tree."""
    only(raw, "scale_embedding", False)
    dim, vocab = whole(raw, "d_model", default=384), whole(raw, "vocab_size", default=51865)
    norm, name = c.LayerNorm(), activation(raw, "activation_function", default="gelu")

    def stack(side: str, pattern: c.Full | c.Causal, cross: c.Attention | None = None) -> c.StackConfig:
        attention = c.Attention(heads(side), bias=True, key_bias=False, pattern=pattern)
        feedforward = c.FeedForward(whole(raw, f"{side}_ffn_dim", default=1536), name, bias=True)
        return c.StackConfig(dim, whole(raw, f"{side}_layers", default=4), attention, feedforward, norm, cross=cross)

    def heads(side: str) -> int:
        return whole(raw, f"{side}_attention_heads", default=6)

    stem = c.FrameStem(2 * whole(raw, "num_mel_bins", default=80))
    encoder = c.TextInput(0, c.Sinusoidal(), stems={"audio": stem}, opening=())
    decoder = c.TextInput(vocab, c.Learned(whole(raw, "max_target_positions", default=448)))
    across = c.Attention(heads("decoder"), bias=True, key_bias=False, pattern=c.Full())
    language = c.Language(vocab, tied=bool(raw.get("tie_word_embeddings", True)))
    return c.ModelConfig(
        c.EncoderDecoderConfig(
            c.TowerConfig(encoder, stack("encoder", c.Full())),
            c.TowerConfig(decoder, stack("decoder", c.Causal(), across)),
            shared=False,
        ),
        {} if raw["architectures"][0] == "WhisperModel" else {"language": language},
        family="whisper",
    )


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> WhisperConfig."""
    both, head = config.topology, config.heads.get("language")
    if not isinstance(both, c.EncoderDecoderConfig) or set(both.encoder.input.stems) != {"audio"}:
        raise ConvertError("Whisper's layout is an encoder of sound beside a decoder.")
    places = both.decoder.input.positions
    if not isinstance(places, c.Learned) or both.encoder.input.vocab:
        raise ConvertError("Whisper's layout takes sound alone (heard=true), and has learned positions in its decoder.")
    tree: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration" if isinstance(head, c.Language) else "WhisperModel"],
        "model_type": "whisper",
        "max_source_positions": 1500,
        **raw,
        "d_model": both.decoder.stack.dim,
        "vocab_size": both.decoder.input.vocab,
        "num_mel_bins": both.encoder.input.stems["audio"].features // 2,
        "max_target_positions": places.length,
        "tie_word_embeddings": not isinstance(head, c.Language) or head.tied,
    }
    for side, part in (("encoder", both.encoder.stack), ("decoder", both.decoder.stack)):
        stack, feedforward, _ = plain(part, "Whisper", c.LayerNorm)
        tree |= {
            f"{side}_layers": stack.depth,
            f"{side}_attention_heads": stack.attention.heads,
            f"{side}_ffn_dim": feedforward.hidden,
        }
        tree["activation_function"] = activation_name(feedforward.activation, raw.get("activation_function"))
    return tree


def fixed(raw: Raw) -> dict[str, Tensor]:
    """The encoder's sinusoids, which files carry."""
    count, dim = whole(raw, "max_source_positions", default=1500), whole(raw, "d_model", default=384)
    return {PLACES: sinusoidal(torch.arange(count)[None], dim, c.Sinusoidal().theta)[0]}


LAYOUT = Layout(
    ("WhisperForConditionalGeneration", "WhisperModel"), read, write, lambda config: NAMES,
    family="whisper", prefix="model.", bare=("WhisperModel",), fixed=fixed,
)  # fmt: skip
