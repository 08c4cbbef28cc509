"""The config.json of SmolVLM and of Idefics3: a SigLIP tower, pixel shuffle, and a Llama."""

from __future__ import annotations

from functools import partial
from typing import Any

from weft.convert.layout import Layout, Raw, number, only, whole
from weft.convert.layouts.llava import looking, part, pieces, seen, words_of, words_written
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.smolvlm import NAMES


def read(raw: Raw) -> c.ModelConfig:
    """SmolVLMConfig or Idefics3Config -> our tree."""
    words, eyes = words_of(raw), part(raw, "vision_config", "smolvlm_vision", "idefics3_vision", "idefics3")
    patch, size = whole(eyes, "patch_size", default=32), whole(eyes, "image_size", default=224)
    dim = whole(eyes, "hidden_size", default=1152)
    norm = c.LayerNorm(number(eyes, "layer_norm_eps", default=1e-6))
    only(eyes, "num_channels", 3)
    factor = whole(raw, "scale_factor", default=2)
    if size // patch % factor:
        raise ConvertError(f"{size // patch} patches a side do not divide by scale_factor {factor}.")
    stack = looking(eyes, (dim, whole(eyes, "num_hidden_layers", default=12), 16), "gelu_pytorch_tanh", norm)
    grid = c.Grid(size // patch, size // patch, before=0)
    tower = c.TowerConfig(c.TextInput(0, grid, stems={"image": c.LinearStem(3 * patch**2)}, opening=()), stack)
    token = whole(raw, "image_token_id", default=128257)
    encoder = c.ItemEncoder(tower, c.ShuffleBridge(factor), token=token)
    return c.ModelConfig(c.EarlyFusionConfig(words.topology, {"image": encoder}), words.heads, family="smolvlm")


def write(title: str, name: str, config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> SmolVLMConfig or Idefics3Config."""
    fusion, encoder = pieces(config, c.ShuffleBridge, title)
    stack, positions = encoder.tower.stack, encoder.tower.input.positions
    if not isinstance(positions, c.Grid) or not isinstance(stack.norm, c.LayerNorm):
        raise ConvertError(f"{title}'s layout has a table of positions, and layer norm in its tower of pictures.")
    (stem,) = encoder.tower.input.stems.values()
    words = words_written(config, fusion, raw)
    return {
        **raw,
        "architectures": [title + "ForConditionalGeneration"],
        "model_type": name,
        "image_token_id": encoder.token,
        "scale_factor": encoder.bridge.factor,
        "tie_word_embeddings": words["tie_word_embeddings"],
        "text_config": words,
        "vision_config": {
            "model_type": name + "_vision",
            **seen(stack, positions, stem.features, dict(raw.get("vision_config", {}))),
        },
    }


def layout(title: str, name: str) -> Layout:
    """The layout of one of them."""
    return Layout(
        (title + "ForConditionalGeneration",),
        read,
        partial(write, title, name),
        lambda config: NAMES,
        ignore=("model.vision_model.embeddings.position_ids", "*.rotary_emb.inv_freq"),  # derived; old files
        family="smolvlm",
    )


LAYOUTS = (layout("SmolVLM", "smolvlm"), layout("Idefics3", "idefics3"))
