"""A small world for tests: a renderer with every type of column, stand-in codecs, a model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch

from weft.arrows import types
from weft.arrows.grammar import parse
from weft.arrows.render import Renderer
from weft.arrows.vocabulary import Vocabulary
from weft.families import make
from weft.generate.predict import Predictor
from weft.modalities.text import TextCodec
from weft.model import build
from weft.recipe import AudioRecipe, ImageRecipe, Recipe, TrainRecipe

ARROWS = (
    "image, question -> answer", "speech -> text", "image -> text", "text -> image", "text -> speech", "-> text",
)  # fmt: skip


class Codes:
    """A stand-in codec: what matters here are the ids."""

    def __init__(self, size: int, image: bool) -> None:
        self.size, self.image, self.settings = size, image, {"size": 8}

    def encode(self, items: list) -> list[np.ndarray]:
        return [
            np.arange(4) % self.size if self.image else np.arange(len(item) // 4 or 1) % self.size for item in items
        ]

    def decode(self, many: list) -> list[np.ndarray]:
        shape = lambda ids: (8, 8, 3) if self.image else (4 * len(ids), 16)
        fill = lambda ids: (
            np.zeros(shape(ids), np.uint8 if self.image else np.float32) + np.asarray(ids).mean().astype(np.uint8)
        )
        return [fill(ids) for ids in many]


def make_renderer(arrows: Sequence[str] = ARROWS) -> Renderer:
    recipe = Recipe(image=ImageRecipe(size=16, patch=8, codes=4, codebook=11), audio=AudioRecipe(mels=16, codebook=13))
    answers, questions = ("blue", "no", "red", "yes"), "is it red? what colour is it? 它是红色的吗? a red circle"
    columns = {
        "image": types.Image(), "speech": types.Audio(), "question": types.Text(), "text": types.Text(),
        "answer": types.Label(answers),
    }  # fmt: skip
    text = TextCodec.train([questions] * 20, 300)
    vocabulary = Vocabulary(tuple(columns), text.size, {"answer": len(answers)}, {"image": 11, "audio": 13})
    codecs = {"image": Codes(11, True), "audio": Codes(13, False)}
    return Renderer(recipe, columns, [parse(arrow) for arrow in arrows], vocabulary, text, codecs)


def randomise(model: torch.nn.Module, seed: int = 2) -> torch.nn.Module:
    """Weights with which different inputs get clearly different answers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1
            spread = 1.5 / parameter.shape[-1] ** 0.5 if matrix else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (0 if matrix else 1))
    return model.eval()


def make_model(
    renderer: Renderer, family: str = "weft", *, length: int = 44, labels: dict | None = None, seed: int = 2
) -> torch.nn.Module:
    stems = {"image": 3 * 64, "audio": 8 * 16}
    size = {"vocab": renderer.vocabulary.size, "length": length, "dim": 32, "depth": 2, "heads": 2}
    return randomise(build(make(family, **size, stems=stems, labels=labels), seed=0), seed)


def make_predictor(
    family: str = "weft", length: int = 44, labels: dict | None = None, seed: int = 2, arrows: Sequence[str] = ARROWS
) -> Predictor:
    renderer = make_renderer(arrows)
    run = SimpleNamespace(renderer=renderer, recipe=Recipe(train=TrainRecipe(length=length)))
    predictor = Predictor.__new__(Predictor)
    predictor.run, predictor.renderer, predictor.length, predictor.half = run, renderer, length, False
    predictor.model = make_model(renderer, family, length=length, labels=labels, seed=seed)
    return predictor
