"""The config.json of CLIP and SigLIP: one object for each tower."""

from __future__ import annotations

from typing import Any

from weft.convert.layout import Layout, Raw, activation, activation_name, number, only, plain, whole
from weft.convert.layouts.vit import square
from weft.core import config as c
from weft.errors import ConvertError
from weft.families import clip as family

OLD_END = 2  # a config.json that says so means the largest id of the text: CLIP's end of text


def part(raw: Raw, key: str) -> dict[str, Any]:
    """A tower's own object; absent: all defaults."""
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ConvertError(f"{key} of the config.json is {value!r}; an object was expected.")
    return value


def stack(raw: Raw, kind: family.Kind, pattern: c.Full | c.Causal, dim: int, heads: int) -> c.StackConfig:
    """A tower's blocks."""
    size = (
        whole(raw, "hidden_size", default=dim), whole(raw, "num_hidden_layers", default=12),
        whole(raw, "num_attention_heads", default=heads),
    )  # fmt: skip
    return family.stack(kind, size, whole(raw, "intermediate_size", default=4 * dim), pattern)


def picture(raw: Raw, before: int, patch: int) -> tuple[c.Grid, dict[str, c.Stem]]:
    """Positions and stem; a class token goes with a stem without bias (CLIP)."""
    size, side = square(raw, "image_size", 224), square(raw, "patch_size", patch)
    if side > size:
        raise ConvertError(f"A patch of {side} pixels is larger than the picture of {size}.")
    features = whole(raw, "num_channels", default=3) * side**2
    return c.Grid(size // side, size // side, before), {"image": c.LinearStem(features, bias=not before)}


def norm(raw: Raw, eps: float) -> c.LayerNorm:
    return c.LayerNorm(number(raw, "layer_norm_eps", default=eps))


def kind_of(raw: Raw, name: str, eps: float, text: c.Full | c.Causal) -> family.Kind:
    return family.Kind(activation(raw, "hidden_act", default=name), norm(raw, eps), text)


def read(raw: Raw) -> c.ModelConfig:
    """CLIPConfig -> our tree."""
    seen, text = part(raw, "vision_config"), part(raw, "text_config")
    kind = kind_of(seen, "quick_gelu", 1e-5, c.Causal())
    grid, stems = picture(seen, 1, 32)
    left = c.TowerConfig(
        c.TextInput(1, grid, norm=kind.norm, stems=stems), stack(seen, kind, c.Full(), dim=768, heads=12)
    )
    vocab = whole(text, "vocab_size", default=49408)
    end = whole(text, "eos_token_id", default=49407)
    own = kind_of(text, "quick_gelu", 1e-5, c.Causal())
    right = c.TowerConfig(
        c.TextInput(vocab, c.Learned(whole(text, "max_position_embeddings", default=77))),
        stack(text, own, c.Causal(), dim=512, heads=8),
    )
    pool = c.AtToken(vocab - 1 if end == OLD_END else end)
    width = whole(raw, "projection_dim", default=512)
    return c.ModelConfig(c.DualEncoderConfig(left, right, width, "first", pool), family="clip")


def read_siglip(raw: Raw) -> c.ModelConfig:
    """SiglipConfig -> our tree."""
    seen, text = part(raw, "vision_config"), part(raw, "text_config")
    only(seen, "vision_use_head", True)
    kind = kind_of(seen, "gelu_pytorch_tanh", 1e-6, c.Full())
    grid, stems = picture(seen, 0, 16)
    blocks = stack(seen, kind, c.Full(), dim=768, heads=12)
    left = c.TowerConfig(c.TextInput(0, grid, stems=stems, opening=()), blocks)
    own = kind_of(text, "gelu_pytorch_tanh", 1e-6, c.Full())
    right = c.TowerConfig(
        c.TextInput(
            whole(text, "vocab_size", default=32000),
            c.Learned(whole(text, "max_position_embeddings", default=64)),
        ),
        stack(text, own, c.Full(), dim=768, heads=12),
    )
    if whole(text, "projection_size", "hidden_size", default=768) != blocks.dim:
        raise ConvertError("A SigLIP whose text is not projected to the width of its pictures cannot compare them.")
    ask = c.AttentionPool(
        c.Attention(blocks.attention.heads, bias=True, pattern=c.Full()),
        plain(blocks, "SigLIP", c.LayerNorm)[1],
        kind.norm,
    )
    topology = c.DualEncoderConfig(left, right, blocks.dim, ask, "last", 0.1, None, c.Project(bias=True), bias=-10.0)
    return c.ModelConfig(topology, family="siglip")


def tower(config: c.TowerConfig, raw: Raw) -> dict[str, Any]:
    """What a tower's object says of its blocks."""
    blocks, feedforward, norm = plain(config.stack, "A dual encoder", c.LayerNorm)
    return {
        **raw,
        "hidden_size": blocks.dim,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.attention.heads,
        "intermediate_size": feedforward.hidden,
        "hidden_act": activation_name(feedforward.activation, raw.get("hidden_act")),
        "layer_norm_eps": norm.eps,
    }


def towers(config: c.ModelConfig, raw: Raw, name: str, kind: str) -> tuple[c.DualEncoderConfig, dict[str, Any]]:
    """Both towers' objects, and what stands around them."""
    both = config.topology
    if not isinstance(both, c.DualEncoderConfig) or not isinstance(both.left.input.positions, c.Grid):
        raise ConvertError(f"{name}'s layout has pictures on the left, with a grid of positions (positions='grid').")
    if not isinstance(both.right.input.positions, c.Learned) or set(both.left.input.stems) != {"image"}:
        raise ConvertError(f"{name}'s layout has texts on the right, with learned positions.")
    seen, text = part(raw, "vision_config"), part(raw, "text_config")
    channels = int(seen.get("num_channels", 3))
    side = round((both.left.input.stems["image"].features / channels) ** 0.5)
    return both, {
        "architectures": [f"{name}Model"],
        "model_type": kind,
        **raw,
        "vision_config": {
            **tower(both.left, seen),
            "image_size": both.left.input.positions.rows * side,
            "patch_size": side,
            "num_channels": channels,
        },
        "text_config": {
            **tower(both.right, text),
            "vocab_size": both.right.input.vocab,
            "max_position_embeddings": both.right.input.positions.length,
        },
    }


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> CLIPConfig."""
    both, tree = towers(config, raw, "CLIP", "clip")
    pool, text = both.right_pool, tree["text_config"]
    if not isinstance(pool, c.AtToken):
        raise ConvertError("CLIP's layout reads the text at a token of its own (end=ID).")
    if text.get("eos_token_id") != OLD_END or pool.token != both.right.input.vocab - 1:
        text["eos_token_id"] = pool.token
    tree["vision_config"]["projection_dim"] = text["projection_dim"] = tree["projection_dim"] = both.width
    return tree


def write_siglip(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> SiglipConfig."""
    both, tree = towers(config, raw, "Siglip", "siglip")
    tree["text_config"]["projection_size"] = both.width
    return tree


LAYOUTS = (
    Layout(
        ("CLIPModel",), read, write, lambda config: family.NAMES,
        ignore=("*.embeddings.position_ids",), family="clip",
    ),
    Layout(
        ("SiglipModel",), read_siglip, write_siglip, lambda config: family.SIGLIP,
        ignore=("*.embeddings.position_ids",), family="siglip",
    ),
)  # fmt: skip
