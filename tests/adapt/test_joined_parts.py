"""A language model, eyes and ears of tiny random parts, joined: what is frozen stays, what is new learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

import weft
from weft import families
from weft.core.config import ModelConfig, to_tree
from weft.modalities.text import TextCodec
from weft.model import build
from weft.recipe import ModelRecipe, Recipe
from weft.run import Run

WORDS = ["a red square", "a blue square", "a green square", "one", "two", "what colour is it?"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def part(folder: Path, config: ModelConfig, told: dict, codec: TextCodec | None = None) -> str:
    """A run directory as `weft import` leaves one."""
    run = Run.create(folder, Recipe(out=str(folder), model=ModelRecipe(family=config.family, source="x")))
    (folder / "config.json").write_text(json.dumps(to_tree(config)))
    (folder / "source.json").write_text(json.dumps(told))
    save_file(
        {n: p.detach().contiguous() for n, p in build(config, seed=1).named_parameters()}, folder / "model.safetensors"
    )
    if codec is not None:
        codec.save(folder / "tokenizer.json")
    return str(run.path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and a table of pictures and sounds."""
    root = tmp_path_factory.mktemp("joined")
    codec = TextCodec.train(WORDS * 3, size=280)
    part(root / "words", families.make("llama", vocab=codec.size, length=64, dim=32, depth=2, heads=2), {}, codec)
    size = {"dim": 16, "depth": 2, "heads": 2}
    grid = {"positions": "grid"}
    eyes = families.make("vit", vocab=2, length=17, **size, stems={"image": 3 * 4 * 4}, language=False, options=grid)
    part(root / "eyes", eyes, {"preprocessing": {"image_mean": MEAN, "image_std": STD}})
    ears = families.make("whisper", vocab=40, length=16, **size, stems={"audio": 2 * 20}, options={"heard": True})
    part(root / "ears", ears, {"preprocessing": {"feature_extractor_type": "WhisperFeatureExtractor"}})
    table(root)
    return root


def table(root: Path) -> None:
    random, lines = np.random.default_rng(0), ["image,caption,question,colour,audio,text,split"]
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
    for i in range(30):
        name = list(colours)[i % 3]
        pixels = np.clip(np.array(colours[name]) + random.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        tone = np.sin(np.arange(3200) * (0.1 if i % 2 else 0.4)).astype(np.float32) * 0.3
        soundfile.write(root / f"{i}.wav", tone, 16_000)
        split = "test" if i >= 24 else "validation" if i >= 20 else "train"
        said = "two" if i % 2 else "one"
        lines.append(f"{i}.png,a {name} square,what colour is it?,a {name} one,{i}.wav,{said},{split}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


ARROWS = ("image -> caption:text", "image, question -> colour:text", "audio -> text:text")


def words_of(world: Path, fusion: str = "early", bridge: str = "mlp", **more: object) -> list[str]:
    said = {
        "model.source": str(world / "words"), "model.parts.image": str(world / "eyes"),
        "model.parts.audio": str(world / "ears"), "model.fusion": fusion, "model.bridge": bridge,
        "model.lora.rank": 4, "image.size": 16, "image.patch": 8,
        "audio.mels": 20, "audio.stack": 4, "audio.seconds": 1, "train.length": 64, "train.tokens": 512,
        "train.options.check": False, "train.options.compile": "off",
        "train.options.dtype": "float32", **more,
    }  # fmt: skip
    return [f"{key}={json.dumps(value)}" for key, value in said.items()]


@pytest.mark.parametrize("bridge", ["mlp", "resample"])
@pytest.mark.parametrize("fusion", ["early", "concat", "cross"])
def test_it_trains_goes_on_and_answers(world: Path, tmp_path: Path, fusion: str, bridge: str) -> None:
    run = weft.train(
        world / "metadata.csv", *ARROWS, out=tmp_path / "run", steps=3, overrides=words_of(world, fusion, bridge)
    )
    model = run.model()
    answers = weft.predict(run.path, "image -> caption", image=str(world / "0.png"))
    assert len(answers) == 1
    assert torch.isfinite(next(p for n, p in model.named_parameters() if ".bridge." in n)).all()
