"""GPT-2's config.json."""

from __future__ import annotations

from typing import Any

from weft.convert.layout import Layout, Raw, activation, activation_name, number, only, plain, shared, whole
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.gpt import NAMES


def read(raw: Raw) -> c.ModelConfig:
    """GPT2Config -> our tree."""
    only(raw, "scale_attn_weights", True)
    only(raw, "scale_attn_by_inverse_layer_idx", False)
    dim, heads = (
        whole(raw, "n_embd", "hidden_size", default=768),
        whole(raw, "n_head", "num_attention_heads", default=12),
    )
    shared(dim, heads, "heads")
    norm = c.LayerNorm(number(raw, "layer_norm_epsilon", default=1e-5))
    vocab = whole(raw, "vocab_size", default=50257)
    language = c.Language(vocab, tied=bool(raw.get("tie_word_embeddings", True)))
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(vocab, positions=c.Learned(whole(raw, "n_positions", "n_ctx", default=1024))),
            c.StackConfig(
                dim,
                whole(raw, "n_layer", "num_hidden_layers", default=12),
                c.Attention(heads, bias=True),
                c.FeedForward(
                    whole(raw, "n_inner", default=4 * dim),
                    activation(raw, "activation_function", default="gelu_new"),
                    bias=True,
                ),
                norm,
            ),
        ),
        {} if raw["architectures"][0] == "GPT2Model" else {"language": language},
        family="gpt",
    )


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> GPT2Config."""
    tower, head = config.topology, config.heads.get("language")
    if not isinstance(tower, c.TowerConfig) or not isinstance(tower.input.positions, c.Learned):
        raise ConvertError("GPT-2's layout is that of one tower with learned positions.")
    stack, feedforward, norm = plain(tower.stack, "GPT-2", c.LayerNorm)
    return {
        "architectures": ["GPT2LMHeadModel" if isinstance(head, c.Language) else "GPT2Model"],
        "model_type": "gpt2",
        "bos_token_id": min(50256, tower.input.vocab - 1),
        "eos_token_id": min(50256, tower.input.vocab - 1),
        **raw,
        "vocab_size": tower.input.vocab,
        "n_positions": tower.input.positions.length,
        "n_embd": stack.dim,
        "n_layer": stack.depth,
        "n_head": stack.attention.heads,
        "n_inner": None if feedforward.hidden == 4 * stack.dim else feedforward.hidden,
        "activation_function": activation_name(feedforward.activation, raw.get("activation_function")),
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": not isinstance(head, c.Language) or head.tied,
    }


LAYOUT = Layout(
    ("GPT2LMHeadModel", "GPT2Model"),
    read,
    write,
    lambda config: NAMES,
    # The causal mask, which old files carry.
    ignore=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
    family="gpt",
    prefix="transformer.",
    bare=("GPT2Model",),
)
