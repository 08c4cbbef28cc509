"""DALL-E: where codes stand in their picture, packed and decoded; a few steps on real pictures by the usual command."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import weft
from weft import families
from weft.core import config as c
from weft.core.tower import arrange
from weft.core.view import Tokens
from weft.errors import RecipeError, WeftError
from weft.modalities.image import to_png
from weft.model import Model, build

VOCAB, FIRST, SIDE = 40, 30, 2


def tiny() -> Model:
    config = families.make("dalle", vocab=VOCAB, length=32, dim=16, depth=2, heads=2, codes={"image": (FIRST, 10, 4)})
    model = build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def stream(*parts: list[int]) -> tuple[Tensor, Tensor]:
    """Documents one after the other: ids (1,T), document (1,T)."""
    ids = torch.tensor([[i for part in parts for i in part]])
    return ids, torch.tensor([[n for n, part in enumerate(parts, 1) for _ in part]], dtype=torch.int32)


A, B = [1, 2, 3, 31, 32, 33, 34], [5, 31, 31, 31, 31, 7, 36, 37]


@torch.no_grad()
def test_a_code_is_placed_by_row_and_column() -> None:
    model = tiny()
    table = model.body.input
    ids, _ = stream(B)
    layout = arrange(table.config, Tokens(ids), None)
    assert layout.coded[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 6]
    x = table(Tokens(ids), layout) - table.table(ids)
    for at, (row, column) in {1: (0, 0), 2: (0, 1), 3: (1, 0), 4: (1, 1), 6: (0, 0), 7: (0, 1)}.items():
        assert torch.allclose(x[0, at], table.rows.weight[row] + table.columns.weight[column], atol=1e-6)
    assert torch.allclose(x[0, 5], table.places.weight[5], atol=1e-6), "words stand by their order"


@torch.no_grad()
def test_packed_and_decoded_codes_stand_where_they_stood() -> None:
    model = tiny()
    ids, document = stream(A, B)
    alone = torch.cat([model.hidden(Tokens(stream(part)[0])) for part in (A, B)], 1)
    assert torch.allclose(model.hidden(Tokens(ids, document=document)), alone, atol=1e-5)
    assert not torch.allclose(model.hidden(Tokens(ids)), alone, atol=1e-3), "the control: one document"
    for kind in ("growing", "fixed"):
        cache = model.cache(kind, capacity=20)
        cut = lambda a, b: Tokens(ids[:, a:b], document=document[:, a:b])
        parts = [model.hidden(cut(a, b), cache=cache) for a, b in pairwise([0, 4, 5, 9, 10, 11, 15])]
        assert torch.allclose(torch.cat(parts, 1), alone, atol=1e-5)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(RecipeError, match="no rows and columns"):
        families.make("dalle", vocab=9, length=8, codes={"image": (3, 4, 5)})
    with pytest.raises(WeftError, match="40 tokens in one document"):
        tiny().hidden(Tokens(torch.ones(1, 40, dtype=torch.long)))
    plain = families.make("dalle", vocab=9, length=8)
    assert isinstance(plain.topology.input.positions, c.Learned), "without codes there is no grid"


def pictures(folder: Path, count: int = 60) -> Path:
    """Squares of a colour on white, at the left or at the right, and a caption that says so."""
    colours = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(count):
            name, side = list(colours)[number % 3], ("left", "right")[number // 3 % 2]
            image = np.full((16, 16, 3), 255, np.uint8)
            start = (1 if side == "left" else 9) + number % 2
            image[4 + number % 5 : 10 + number % 5, start : start + 6] = colours[name]
            (folder / f"{number}.png").write_bytes(to_png(image))
            writer.writerow([f"{number}.png", f"{name} {side}"])
    return folder / "metadata.csv"


def test_it_learns_to_draw_from_nothing(tmp_path: Path) -> None:
    run = weft.train(
        str(pictures(tmp_path)), "caption -> image", out=tmp_path / "run", family="dalle", steps=40,
        overrides=(
            "model.dim=32", "model.depth=1", "model.heads=2", "train.tokens=512", "train.length=64",
            "text.vocabulary=280",
            "image.size=16", "image.codes=16", "image.codebook=16", "image.codec_steps=40", "train.options.check=false",
            "train.options.compile=off", "train.options.dtype=float32",
        ),
    )  # fmt: skip
    losses = [line["loss"] for line in run.metrics("step")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.config.topology.input.positions.side == 4
    (drawn,) = weft.predict(run, "caption -> image", caption="red left")
    assert drawn.shape == (16, 16, 3)
