"""The config.json of ViT, DeiT and DINOv2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weft.convert.layout import Layout, Raw, activation, activation_name, number, only, plain, whole
from weft.core import config as c
from weft.errors import ConvertError
from weft.families import vit as family
from weft.families.family import Wanted
from weft.families.names import Rule


def square(raw: Raw, key: str, default: int) -> int:
    """A size that may be given once or as two equal numbers."""
    value = raw.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return whole({key: value}, key)


def classes(raw: Raw) -> int:
    """How many labels a classifier has: those that are named, or two."""
    return len(raw["id2label"]) if isinstance(raw.get("id2label"), dict) else whole(raw, "num_labels", default=2)


def wanted(raw: Raw, before: int, vocab: int, patch: int = 16, image: int = 224) -> Wanted:
    """Sizes, of a picture tower with so many tokens ahead of the patches."""
    size, side = square(raw, "image_size", image), square(raw, "patch_size", patch)
    if side > size:
        raise ConvertError(f"A patch of {side} pixels is larger than the picture of {size}.")
    return Wanted(
        vocab, before + (size // side) ** 2, whole(raw, "hidden_size", default=768),
        whole(raw, "num_hidden_layers", default=12), whole(raw, "num_attention_heads", default=12),
        {"image": whole(raw, "num_channels", default=3) * side**2}, language=False,
    )  # fmt: skip


def with_head(config: c.ModelConfig, raw: Raw, head: c.Classify) -> c.ModelConfig:
    """The heads that an architecture has: labels, a pooler, or none."""
    name = raw["architectures"][0]
    if "ForImageClassification" in name:
        return replace(config, heads={"label": head})
    if name in ("ViTModel", "DeiTModel"):
        only(raw, "pooler_act", "tanh")
        return replace(config, heads={"pooler": c.Pooler(whole(raw, "pooler_output_size", "hidden_size", default=768))})
    return config


def read(raw: Raw) -> c.ModelConfig:
    """ViTConfig or DeiTConfig -> our tree."""
    before = 2 if raw["architectures"][0].startswith("DeiT") else 1
    want = wanted(raw, before, before)
    config = family.vit(
        want,
        hidden=whole(raw, "intermediate_size", default=3072),
        activation=activation(raw, "hidden_act", default="gelu"),
        bias=bool(raw.get("qkv_bias", True)),
        eps=number(raw, "layer_norm_eps", default=1e-12),
        positions="grid",
        before=before,
    )
    teacher = raw["architectures"][0].endswith("WithTeacher")
    return with_head(config, raw, c.Classify(classes(raw), tokens=2 if teacher else 1))


def read_dinov2(raw: Raw) -> c.ModelConfig:
    """Dinov2Config -> our tree."""
    want = wanted(raw, 1, 2 if raw.get("use_mask_token", True) else 1)
    hidden, gated = int(want.dim * number(raw, "mlp_ratio", default=4)), bool(raw.get("use_swiglu_ffn", False))
    config = family.vit(
        want,
        hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        activation="silu" if gated else activation(raw, "hidden_act", default="gelu"),
        gated=gated,
        bias=bool(raw.get("qkv_bias", True)),
        eps=number(raw, "layer_norm_eps", default=1e-6),
        positions="grid",
        layer_scale=number(raw, "layerscale_value", default=1.0),
    )
    return with_head(config, raw, c.Classify(classes(raw), mean=True))


def shared(config: c.ModelConfig, raw: Raw, kind: str, names: dict[str, str]) -> dict[str, Any]:
    """What the three configs have in common. names: our kind of head ("" for none) -> architecture."""
    tower = config.topology
    if not isinstance(tower, c.TowerConfig) or not isinstance(tower.input.positions, c.Grid):
        raise ConvertError(f"The layout of {kind} is that of one tower with a grid of positions (positions='grid').")
    if set(tower.input.stems) != {"image"}:
        raise ConvertError(f"The layout of {kind} takes pictures alone.")
    stack, _, norm = plain(tower.stack, kind, c.LayerNorm)
    head = next(iter(config.heads), "")
    if head not in names or len(config.heads) > 1:
        raise ConvertError(f"The layout of {kind} has one head of {', '.join(filter(None, names))}, not {head!r}.")
    channels = int(raw.get("num_channels", 3))
    side = round((tower.input.stems["image"].features / channels) ** 0.5)
    labels = config.heads[head].classes if isinstance(config.heads.get(head), c.Classify) else 0  # type: ignore
    told = {str(i): f"LABEL_{i}" for i in range(labels)}
    kept = raw.get("id2label") if isinstance(raw.get("id2label"), dict) and len(raw["id2label"]) == labels else None
    return {
        "architectures": [names[head]],
        "model_type": kind,
        **raw,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "image_size": tower.input.positions.rows * side,
        "patch_size": side,
        "num_channels": channels,
        "qkv_bias": stack.attention.bias,
        "layer_norm_eps": norm.eps,
        **({"id2label": kept or told, "label2id": {v: int(k) for k, v in (kept or told).items()}} if labels else {}),
    }


def feedforward(config: c.ModelConfig) -> c.FeedForward:
    part = config.topology.stack.feedforward  # type: ignore[union-attr]
    if not isinstance(part, c.FeedForward):
        raise ConvertError("These layouts have one feed-forward part for all kinds of tokens.")
    return part


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> ViTConfig or DeiTConfig."""
    deit = config.topology.input.vocab == 2  # type: ignore[union-attr]
    kind, name = ("deit", "DeiT") if deit else ("vit", "ViT")
    head = config.heads.get("label")
    labelled = "ForImageClassification" + ("WithTeacher" if isinstance(head, c.Classify) and head.tokens == 2 else "")
    tree = shared(config, raw, kind, {"label": name + labelled, "pooler": name + "Model", "": name + "Model"})
    part = feedforward(config)
    tree |= {
        "hidden_act": activation_name(part.activation, raw.get("hidden_act")),
        "intermediate_size": part.hidden,
    }
    if isinstance(pooler := config.heads.get("pooler"), c.Pooler):
        tree["pooler_output_size"] = pooler.width
    return tree


def write_dinov2(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> Dinov2Config."""
    names = {"label": "Dinov2ForImageClassification", "": "Dinov2Model"}
    tree, part = shared(config, raw, "dinov2", names), feedforward(config)
    dim = config.topology.stack.dim  # type: ignore[union-attr]
    ratio = tree.get("mlp_ratio", 4)
    if not part.gated or (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8 != part.hidden:
        ratio = part.hidden * 1.5 / dim if part.gated else part.hidden / dim
    return tree | {
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "use_swiglu_ffn": part.gated,
        "hidden_act": "gelu" if part.gated else activation_name(part.activation, raw.get("hidden_act")),
        "layerscale_value": config.topology.stack.layer_scale,  # type: ignore[union-attr]
        "use_mask_token": config.topology.input.vocab == 2,  # type: ignore[union-attr]
    }


def rules(config: c.ModelConfig) -> tuple[Rule, ...]:
    """DeiT's names, with one head or two."""
    head = config.heads.get("label")
    return family.TEACHER if isinstance(head, c.Classify) and head.tokens == 2 else family.DEIT


def rules_dinov2(config: c.ModelConfig) -> tuple[Rule, ...]:
    """DINOv2's names: its tokens as there are, its feed-forward gated or not."""
    found = (*family.DINOV2, *family.inside(feedforward(config).gated))
    if config.topology.input.vocab == 2:  # type: ignore[union-attr]
        return found
    return (Rule("body.input.table.weight", "dinov2." + family.CLASS, "row"), *found[1:])


VIT = Layout(
    ("ViTForImageClassification", "ViTModel"), read, write, lambda config: family.NAMES,
    family="vit", prefix="vit.", bare=("ViTModel",),
)  # fmt: skip
DEIT = Layout(
    ("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification", "DeiTModel"), read, write, rules,
    family="vit", prefix="deit.", bare=("DeiTModel",),
)  # fmt: skip
DINOV2 = Layout(
    ("Dinov2ForImageClassification", "Dinov2Model"), read_dinov2, write_dinov2, rules_dinov2,
    family="vit", prefix="dinov2.", bare=("Dinov2Model",),
)  # fmt: skip
LAYOUTS = (VIT, DEIT, DINOV2)
