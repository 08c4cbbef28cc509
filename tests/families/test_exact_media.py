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
        computed = name.endswith("encoder.embed_positions.weight")  # sinusoids: the same to the last digit but one
        assert torch.allclose(tensor, got[name], rtol=0, atol=1e-6 if computed else 0), name
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


# ---------------------------------------------------------------------------------------------------- clip, siglip

CLIP = {"projection_dim": 24}
TEXT = {"vocab_size": 60, "max_position_embeddings": 16}
TWO = {
    "CLIP": ("CLIPModel", "CLIPConfig", TEXT | {"eos_token_id": 58}, {}, CLIP),
    "CLIP, old end, other widths": (
        "CLIPModel",
        "CLIPConfig",
        TEXT | {"eos_token_id": 2, "hidden_size": 24, "num_attention_heads": 3, "hidden_act": "gelu"},
        {"num_hidden_layers": 3, "intermediate_size": 40, "patch_size": 4},
        CLIP,
    ),
    "SigLIP": ("SiglipModel", "SiglipConfig", TEXT, {}, {}),
    "SigLIP, other widths": (
        "SiglipModel",
        "SiglipConfig",
        TEXT | {"hidden_size": 24, "projection_size": 32, "num_attention_heads": 2},
        {"num_hidden_layers": 1, "patch_size": 4},
        {},
    ),
}


def pair_model(case: str) -> torch.nn.Module:
    model, config, text, seen, more = TWO[case]
    settings = getattr(transformers, config)(
        text_config={**SIZE, **text}, vision_config={**SIZE, **PICTURE, **seen}, **more
    )
    return loud(getattr(transformers, model)(settings))


def texts(rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Ids whose end (58, 59) stands first at different places, and their padding."""
    ids = torch.randint(3, 57, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, length - 1 - row :] = 59
        ids[row, length - 1 - row] = 58
        mask[row, length - row :] = 0
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("case", TWO)
def test_two_towers(case: str, tmp_path: Path) -> None:
    theirs = pair_model(case)
    ours = through(theirs, tmp_path)
    ids, mask = texts()
    if "old end" in case:
        ids = ids.masked_fill(ids == 58, 59)
    if case.startswith("SigLIP"):
        mask = None  # trained, and used, without one: it reads the text at its very last place
    wanted = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels(4))
    got = ours(ids, mask, pixel_values=pixels(4))
    assert difference(got.logits, wanted.logits_per_image) < CLOSE * wanted.logits_per_image.abs().max()
    assert difference(ours(ids, mask).hidden, wanted.text_embeds) < CLOSE
    assert difference(ours(pixel_values=pixels(4)).hidden, wanted.image_embeds) < CLOSE


@torch.no_grad()
def test_controls_of_two_towers(tmp_path: Path) -> None:
    ids, mask = texts()
    for case, name in (
        ("CLIP", "body.left.input.norm.weight"),
        ("CLIP", "body.sharpness"),
        ("SigLIP", "body.left_pool.probe"),
        ("SigLIP", "body.score_bias"),
    ):
        theirs = pair_model(case)
        ours = through(theirs, tmp_path / case / name)
        given = mask if case == "CLIP" else None
        wanted = theirs(input_ids=ids, attention_mask=given, pixel_values=pixels()).logits_per_image
        ours.get_parameter(name).add_(0.1)
        assert difference(ours(ids, given, pixel_values=pixels()).logits, wanted) > 10 * CLOSE, name
    assert difference(ours(ids[:, :-2], pixel_values=pixels()).logits, wanted) > 10 * CLOSE, "read where the text ends"


@torch.no_grad()
def test_the_factor_stays_at_a_hundred(tmp_path: Path) -> None:
    theirs = pair_model("CLIP")
    ours = through(theirs, tmp_path)
    ours.get_parameter("body.sharpness").fill_(9.0)
    theirs.logit_scale.fill_(torch.tensor(100.0).log())
    ids, mask = texts()
    wanted = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels()).logits_per_image
    assert difference(ours(ids, mask, pixel_values=pixels()).logits, wanted) < 100 * CLOSE


@pytest.mark.parametrize("case", ["CLIP", "SigLIP"])
def test_losses_and_gradients_of_two_towers(case: str, tmp_path: Path) -> None:
    """The objective's loss on a batch is the reference's, and so is every gradient."""
    from weft.core.stream import stream
    from weft.data.batch import Batch
    from weft.objectives import OBJECTIVES

    theirs = pair_model(case)
    ours = through(theirs, tmp_path)
    ids, mask = texts()
    given = mask if case == "CLIP" else None
    wanted = theirs(input_ids=ids, attention_mask=given, pixel_values=pixels(3), return_loss=True).loss
    left, right = stream(ours.body, pixels=pixels(3))[0], stream(ours.body, ids, given)[0]
    batch = Batch(left, source=right, objective="contrastive", total=3.0)
    loss, _ = OBJECTIVES["contrastive"](ours, batch)
    assert abs((loss - wanted).item()) < CLOSE * max(1.0, wanted.item())
    wanted.backward()
    loss.backward()
    same_gradients(ours, theirs)


def same_gradients(ours: weft.model.Model, theirs: torch.nn.Module) -> None:
    """Every gradient of theirs, under our names, is ours; those that mean nothing (a key's bias) may be missing."""
    from weft.convert.layouts import find
    from weft.convert.weights import to_theirs

    layout = find({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in ours.named_parameters()}
    translated = to_theirs(layout.rules(ours.config), ours, found)
    compared = 0
    for name, parameter in theirs.named_parameters():
        if name in translated and parameter.grad is not None:
            scale = max(1.0, float(parameter.grad.abs().max()))
            assert difference(translated[name], parameter.grad) < CLOSE * scale, name
            compared += 1
    assert compared > 20
