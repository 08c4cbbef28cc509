"""Heads on pictures' encoders that others trained: a frozen body, media made ready as it knows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weft
from weft.adapt.source import ready
from weft.data.sources import open_table
from weft.errors import RecipeError
from weft.generate.predict import Predictor
from weft.run import Run
from weft.train.session import make_recipe

transformers = pytest.importorskip("transformers")
MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.21)
QUICK = ("image.size=32", "image.patch=8", "train.tokens=256", "train.length=32", "train.options.compile=off",
         "train.options.dtype=float32")  # fmt: skip


def stripes() -> list[dict]:
    """Pictures of 32 x 32 with stripes that lie or stand, in colours that tell nothing."""
    rng, rows = np.random.default_rng(0), []
    for number in range(96):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:: 4 if number % 2 else 1, :: 1 if number % 2 else 4] = rng.integers(60, 255, 3)
        rows.append({"image": picture, "way": "lying" if number % 2 else "standing"})
    return rows


@pytest.fixture(scope="module", params=["dinov2", "vit"])
def eyes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of pictures as transformers saves it, with how pictures are made ready for it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if request.param == "dinov2":
        transformers.Dinov2Model(transformers.Dinov2Config(**size)).save_pretrained(folder)
    else:
        config = transformers.ViTConfig(**size, intermediate_size=64)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    said = {"image_mean": MEAN, "image_std": STD, "image_processor_type": "BitImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def test_a_new_head_learns_on_a_frozen_body(eyes: Path, tmp_path: Path) -> None:
    words = [f'model.source="{eyes}"', 'train.freeze=["body"]', *QUICK]
    assert make_recipe(open_table(stripes()), ["image -> way"], overrides=words)[0].train.lr == 0.01
    run = weft.train(stripes(), "image -> way", out=tmp_path / "run", steps=60, overrides=words)
    before, after = (load_file(run.path / name) for name in ("base.safetensors", "model.safetensors"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"heads.label:way.out.weight", "heads.label:way.out.bias"}
    assert (run.renderer.image.mean, run.renderer.image.std) == (MEAN, STD)
    assert run.recipe.image.mean == MEAN, "as the run's recipe says from now on"
    held = [row for row, split in zip(stripes(), run.split, strict=True) if split != "train"]
    found = [one.value for one in Predictor(run).produce("image -> way", held)]
    assert np.mean([a == row["way"] for a, row in zip(found, held, strict=True)]) > 0.8


def test_a_run_that_starts_from_a_run_keeps_its_way_with_pictures(eyes: Path, tmp_path: Path) -> None:
    quick = [*QUICK, "train.options.check=false"]
    words = [f'model.source="{eyes}"', *quick]
    first = weft.train(stripes(), "image -> way", out=tmp_path / "one", steps=1, overrides=words)
    words = [f'model.source="{first.path}"', *quick]
    second = weft.train(stripes(), "image -> way", out=tmp_path / "two", steps=1, overrides=words)
    assert second.renderer.image.mean == MEAN
    assert Run.open(second.path).renderer.image.std == STD


def test_a_source_says_only_what_it_knows_and_a_recipe_is_told(eyes: Path, tmp_path: Path, capsys) -> None:
    quick = [*QUICK, "train.options.check=false"]
    texts = [{"text": f"{a} and {b}"} for a in "abcde" for b in "fghij"]
    small = ("model.dim=32", "model.depth=1", "model.heads=2", "train.length=32", "train.tokens=128")
    words = weft.train(
        texts, "-> text", out=tmp_path / "words", steps=1, overrides=[*small, "train.options.check=false"]
    )
    said = [f"image.mean={list(MEAN)}", f'model.source="{words.path}"', *quick]
    run = weft.train(stripes(), "image -> way", out=tmp_path / "one", steps=1, overrides=said)
    assert run.renderer.image.mean == MEAN, "a model of texts has no say in pictures"
    capsys.readouterr()
    said = ["image.mean=[0.1, 0.2, 0.3]", f'model.source="{eyes}"', *quick]
    run = weft.train(stripes(), "image -> way", out=tmp_path / "two", steps=1, overrides=said)
    assert run.renderer.image.mean == MEAN and "image.mean is (0.48, 0.46, 0.41), as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_mean": [0.5], "image_std": 0.25}, (0.5,) * 3, (0.25,) * 3),
        ({"image_mean": MEAN, "image_std": STD, "do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
    ],
)
def test_what_a_file_says_of_pictures(said: dict, mean: tuple, std: tuple) -> None:
    assert ready(said) == {"image": {"mean": mean, "std": std}}


@pytest.mark.parametrize("said", [{"image_mean": MEAN}, {"image_mean": None, "image_std": STD},
                                  {"image_mean": [1, 2], "image_std": STD}])  # fmt: skip
def test_what_is_no_mean_is_said(said: dict) -> None:
    with pytest.raises(RecipeError, match="three numbers were expected"):
        ready(said)


def test_a_head_that_is_there_is_not_hurried(eyes: Path, tmp_path: Path) -> None:
    quick = [*QUICK, "train.options.check=false"]
    words = [f'model.source="{eyes}"', 'train.freeze=["body"]']
    first = weft.train(stripes(), "image -> way", out=tmp_path / "one", steps=1, overrides=[*words, *quick])
    again = [f'model.source="{first.path}"', 'train.freeze=["body"]', *quick]
    rate = lambda overrides: make_recipe(open_table(stripes()), ["image -> way"], overrides=overrides)[0].train.lr
    assert (rate([*words, *quick]), rate(again)) == (0.01, 1e-4)
