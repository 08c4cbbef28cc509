"""The config.json of LLaVA 1.5: a CLIP tower, an MLP, and a Llama or one of its dialects."""

from __future__ import annotations

from typing import Any

from weft.convert.layout import Layout, Raw, activation, activation_name, number, only, whole
from weft.convert.layouts import llama
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.llava import NAMES

NAME = "LlavaForConditionalGeneration"


def read(raw: Raw) -> c.ModelConfig:
    """LlavaConfig -> our tree."""
    only(raw, "vision_feature_select_strategy", "default")  # "full" would pass the class token on
    layer = raw.get("vision_feature_layer", -2)
    words, eyes = words_of(raw), part(raw, "vision_config", "clip_vision_model")
    depth = whole(eyes, "num_hidden_layers", default=12)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < 0:
        raise ConvertError(f"vision_feature_layer of the config.json is {layer!r}; one of -1 to -{depth} was expected.")
    patch, size = whole(eyes, "patch_size", default=32), whole(eyes, "image_size", default=224)
    dim = whole(eyes, "hidden_size", default=768)
    norm = c.LayerNorm(number(eyes, "layer_norm_eps", default=1e-5))
    features = whole(eyes, "num_channels", default=3) * patch**2
    seen = c.TextInput(
        1, c.Grid(size // patch, size // patch), norm=norm, stems={"image": c.LinearStem(features, bias=False)}
    )
    stack = looking(eyes, (dim, depth, 12), "quick_gelu", norm)
    bridge = c.MlpBridge(
        words.topology.stack.dim,
        activation(raw, "projector_hidden_act", default="gelu"),
        bool(raw.get("multimodal_projector_bias", True)),
    )
    token = whole(raw, "image_token_index", "image_token_id", default=32000)
    encoder = c.ItemEncoder(c.TowerConfig(seen, stack), bridge, layer=layer, normed=False, token=token)
    return c.ModelConfig(c.EarlyFusionConfig(words.topology, {"image": encoder}), words.heads, family="llava")


def looking(eyes: Raw, size: tuple[int, int, int], act: str, norm: c.LayerNorm) -> c.StackConfig:
    """The stack of a vision_config. size: width, depth, heads by default; act: the activation by default."""
    dim, depth, heads = size
    attention = c.Attention(whole(eyes, "num_attention_heads", default=heads), bias=True, pattern=c.Full())
    inner = whole(eyes, "intermediate_size", default=3072)
    return c.StackConfig(
        dim, depth, attention, c.FeedForward(inner, activation(eyes, "hidden_act", default=act), bias=True), norm
    )


def write(config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> LlavaConfig."""
    fusion, encoder = pieces(config, c.MlpBridge, "LLaVA")
    stack, stem, positions = encoder.tower.stack, encoder.stem, encoder.tower.input.positions
    if not isinstance(positions, c.Grid) or not isinstance(stack.norm, c.LayerNorm):
        raise ConvertError("LLaVA's layout has a table of positions, and layer norm in its tower of pictures.")
    eyes = seen(stack, positions, stem.features, dict(raw.get("vision_config", {})))
    bridge = encoder.bridge
    tree = {
        "image_seq_length": positions.rows * positions.columns,
        **raw,
        "architectures": [NAME],
        "model_type": "llava",
        "image_token_index": encoder.token,
        "vision_feature_layer": encoder.layer,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": activation_name(bridge.activation, raw.get("projector_hidden_act")),
        "multimodal_projector_bias": bridge.bias,
        "text_config": words_written(config, fusion, raw),
        "vision_config": {**eyes, "model_type": "clip_vision_model"},
    }
    return tree | {"tie_word_embeddings": tree["text_config"]["tie_word_embeddings"]}


def part(raw: Raw, key: str, *kinds: str) -> dict[str, Any]:
    """A config within the config. Raises ConvertError for one that is missing, or of another kind than `kinds`."""
    found = raw.get(key)
    if not isinstance(found, dict):
        raise ConvertError(f"{key} of the config.json is {found!r}; a table was expected.")
    only(found, "model_type", *kinds)
    return found


def words_of(raw: Raw) -> Any:
    """The language model's tree, as a model of its own."""
    dialects = {dialect.name: dialect for dialect in llama.DIALECTS}
    text = part(raw, "text_config", *dialects)
    dialect = dialects[text.get("model_type", "llama")]
    tied = text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    return llama.read(dialect, {**text, "tie_word_embeddings": tied, "architectures": [dialect.title + "ForCausalLM"]})


def words_written(config: c.ModelConfig, fusion: c.EarlyFusionConfig, raw: Raw) -> dict[str, Any]:
    """text_config."""
    before = dict(raw.get("text_config", {}))
    dialect = next(d for d in llama.DIALECTS if d.name == before.get("model_type", "llama"))
    return llama.write(dialect, c.ModelConfig(fusion.tower, config.heads, family="llama"), before)


def pieces(config: c.ModelConfig, bridge: type, title: str) -> tuple[c.EarlyFusionConfig, Any]:
    """The fusion and its encoder of pictures. Raises ConvertError for a config that is no such model."""
    fusion = config.topology
    encoder = fusion.encoders.get("image") if isinstance(fusion, c.EarlyFusionConfig) else None
    if encoder is None or len(fusion.encoders) != 1 or not isinstance(encoder.bridge, bridge):  # type: ignore[union-attr]
        raise ConvertError(f"{title}'s layout is that of a language model with one encoder, of pictures.")
    return fusion, encoder  # type: ignore[return-value]


def seen(stack: c.StackConfig, positions: c.Grid, features: int, before: dict[str, Any]) -> dict[str, Any]:
    """vision_config, of CLIP's kind."""
    patch = round((features / 3) ** 0.5)
    return {
        **before,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.attention.heads,
        "intermediate_size": stack.feedforward.hidden,  # type: ignore[union-attr]
        "hidden_act": activation_name(stack.feedforward.activation, before.get("hidden_act")),  # type: ignore[union-attr]
        "layer_norm_eps": stack.norm.eps,  # type: ignore[union-attr]
        "num_channels": 3,
        "patch_size": patch,
        "image_size": positions.rows * patch,
    }


LAYOUT = Layout(
    (NAME,),
    read,
    write,
    lambda config: NAMES,
    ignore=("vision_tower.embeddings.position_ids", "*.rotary_emb.inv_freq"),  # derived; old files
    family="llava",
    renamed=(
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("vision_tower.vision_model.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
)
