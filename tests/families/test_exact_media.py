"""Families that see and hear, through directories of the hub's form, against transformers: both ways, all heads.

Tiny models with random weights, loud enough that a wrong mask, position or scale shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import weft
from weft.convert.hf import load_hf, save_hf
from weft.errors import ConvertError

transformers = pytest.importorskip("transformers")
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PICTURE = {"image_size": 8, "patch_size": 2}
CLOSE = 1e-4


def loud(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough to tell right from wrong; what is no parameter of training stays."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def through(theirs: torch.nn.Module, folder: Path) -> weft.model.Model:
    """Their model by way of a directory, and back: what comes back must hold the same tensors."""
    theirs.save_pretrained(folder / "theirs")
    imported = load_hf(folder / "theirs")
    ours = imported.model()
    save_hf(ours, folder / "ours", imported.raw)
    again = type(theirs).from_pretrained(folder / "ours").eval()
    wanted, got = theirs.state_dict(), again.state_dict()
    assert wanted.keys() == got.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, got[name]), name
    return ours


def pixels(rows: int = 2, size: int = 8) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------------------------------------------- vit

VIT = {
    "ViT with a head": ("ViTForImageClassification", "ViTConfig", {"num_labels": 5}),
    "ViT, odd": (
        "ViTForImageClassification",
        "ViTConfig",
        {"num_labels": 2, "qkv_bias": False, "hidden_act": "relu", "num_channels": 1, "num_attention_heads": 2},
    ),
    "ViT": ("ViTModel", "ViTConfig", {}),
    "DeiT, two heads": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {"num_labels": 5}),
    "DeiT, one head": ("DeiTForImageClassification", "DeiTConfig", {"num_labels": 5}),
    "DeiT": ("DeiTModel", "DeiTConfig", {}),
    "DINOv2 with a head": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 5, "mlp_ratio": 2}),
    "DINOv2, gated": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True, "mlp_ratio": 3}),
    "DINOv2, no mask token": ("Dinov2Model", "Dinov2Config", {"use_mask_token": False, "qkv_bias": False}),
}


def picture_model(case: str) -> torch.nn.Module:
    model, config, more = VIT[case]
    settings = getattr(transformers, config)(**{**SIZE, **PICTURE, **more})
    return loud(getattr(transformers, model)(settings))


@torch.no_grad()
@pytest.mark.parametrize("case", VIT)
def test_pictures(case: str, tmp_path: Path) -> None:
    theirs = picture_model(case)
    ours = through(theirs, tmp_path)
    values = pixels()[:, : theirs.config.num_channels]
    wanted, got = theirs(pixel_values=values), ours(pixel_values=values)
    if hasattr(wanted, "logits"):
        assert difference(got.logits, wanted.logits) < CLOSE
    else:
        assert difference(got.hidden, wanted.last_hidden_state) < CLOSE
        if "pooler" in ours.config.heads:
            assert difference(got.pooled, wanted.pooler_output) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("case", ["ViT with a head", "DINOv2 with a head"])
@pytest.mark.parametrize("shape", [(6, 6), (10, 4)])
def test_positions_are_interpolated_to_other_sizes(case: str, shape: tuple[int, int], tmp_path: Path) -> None:
    theirs = picture_model(case)
    ours = through(theirs, tmp_path)
    values = torch.randn(2, 3, *shape)
    more = {"interpolate_pos_encoding": True} if case.startswith("ViT") else {}
    assert difference(ours(pixel_values=values).logits, theirs(pixel_values=values, **more).logits) < CLOSE


@torch.no_grad()
def test_controls_of_pictures(tmp_path: Path) -> None:
    theirs = picture_model("DINOv2 with a head")
    ours = through(theirs, tmp_path)
    wanted = theirs(pixel_values=pixels()).logits
    for name, change in (
        ("body.stack.blocks.0.attn_scale.weight", lambda t: torch.ones_like(t)),
        ("body.input.places.weight", lambda t: t.roll(1, 0)),
        ("body.input.table.weight", lambda t: t.flip(0)),
    ):
        parameter = ours.get_parameter(name)
        kept = parameter.clone()
        parameter.copy_(change(kept))
        assert difference(ours(pixel_values=pixels()).logits, wanted) > 10 * CLOSE, name
        parameter.copy_(kept)
