"""Longformer's config.json."""

from __future__ import annotations

from typing import Any

from weft.convert.layout import Layout, Raw, activation, activation_name, number, only, plain, whole
from weft.convert.layouts.vit import classes
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.longformer import NAMES

HEADS = {
    "language": "LongformerForMaskedLM",
    "label": "LongformerForSequenceClassification",
    "tag": "LongformerForTokenClassification",
    "span": "LongformerForQuestionAnswering",
    "pooler": "LongformerModel",
    "": "LongformerModel",
}


def window(raw: Raw) -> int:
    """One window for all layers. Raises ConvertError for several, or for an odd one."""
    value = raw.get("attention_window", 512)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    size = whole({"attention_window": value}, "attention_window")
    if size % 2:
        raise ConvertError(f"attention_window of the config.json is {size}; an even number was expected.")
    return size


def read(raw: Raw) -> c.ModelConfig:
    """LongformerConfig -> our tree."""
    only(raw, "position_embedding_type", "absolute")
    name = raw["architectures"][0]
    dim, vocab = whole(raw, "hidden_size", default=768), whole(raw, "vocab_size", default=30522)
    norm, before = c.LayerNorm(number(raw, "layer_norm_eps", default=1e-12)), 1 + int(raw.get("pad_token_id", 1))
    length = whole(raw, "max_position_embeddings", default=512) - before
    side = window(raw) // 2
    heads: dict[str, c.Head] = {
        "LongformerForMaskedLM": {
            "language": c.Language(vocab, bool(raw.get("tie_word_embeddings", True)), bias=True, transform=norm)
        },
        "LongformerForSequenceClassification": {"label": c.Classify(classes(raw), dim)},
        "LongformerForTokenClassification": {"tag": c.Tag(classes(raw))},
        "LongformerForQuestionAnswering": {"span": c.Span()},
    }.get(name, {"pooler": c.Pooler(dim)})
    pattern = c.Window(side, side, globals=1 if "label" in heads else 0)  # as the reference does, unless told
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(vocab, c.Learned(length, before), whole(raw, "type_vocab_size", default=2), norm),
            c.StackConfig(
                dim,
                whole(raw, "num_hidden_layers", default=12),
                c.Attention(whole(raw, "num_attention_heads", default=12), bias=True, pattern=pattern, globals=True),
                c.FeedForward(
                    whole(raw, "intermediate_size", default=3072),
                    activation(raw, "hidden_act", default="gelu"),
                    bias=True,
                ),
                norm,
                order="post",
            ),
        ),
        heads,
        family="longformer",
    )


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> LongformerConfig."""
    tower, name = config.topology, next(iter(config.heads), "")
    if not isinstance(tower, c.TowerConfig) or not isinstance(places := tower.input.positions, c.Learned):
        raise ConvertError("Longformer's layout is that of one tower with learned positions.")
    stack, feedforward, norm = plain(tower.stack, "Longformer", c.LayerNorm)
    if not isinstance(pattern := stack.attention.pattern, c.Window):
        raise ConvertError("Longformer's layout has windows.")
    if name not in HEADS or len(config.heads) > 1:
        raise ConvertError(f"Longformer's layout has one head of {', '.join(filter(None, HEADS))}.")
    head = config.heads.get(name)
    labels = head.classes if isinstance(head, c.Classify | c.Tag) else 0
    told = raw.get("id2label") if isinstance(raw.get("id2label"), dict) and len(raw["id2label"]) == labels else None
    told = told or {str(i): f"LABEL_{i}" for i in range(labels)}
    return {
        "architectures": [HEADS[name]],
        "model_type": "longformer",
        **raw,
        "vocab_size": tower.input.vocab,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": feedforward.hidden,
        "hidden_act": activation_name(feedforward.activation, raw.get("hidden_act")),
        "layer_norm_eps": norm.eps,
        "attention_window": [2 * pattern.left] * stack.depth,
        "max_position_embeddings": places.length + places.offset,
        "pad_token_id": places.offset - 1,
        "type_vocab_size": tower.input.segments,
        "tie_word_embeddings": not isinstance(head, c.Language) or head.tied,
        **({"id2label": told, "label2id": {v: int(k) for k, v in told.items()}} if labels else {}),
    }


LAYOUT = Layout(
    tuple(dict.fromkeys(HEADS.values())), read, write, lambda config: NAMES,
    ignore=("longformer.embeddings.position_ids",),
    family="longformer", prefix="longformer.", bare=("LongformerModel",),
)  # fmt: skip
