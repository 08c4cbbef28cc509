"""Convolutional networks.

ids      ── table ── [ 3, 4 and 5 neighbours, matrix, ReLU ] side by side ── largest over the text ── label
picture  ── conv ── [ two convolutions, (+) ] x blocks, in three stages ── mean ── at the picture's places among the ids
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.core import config as c
from weft.families.family import Family, Wanted, published


def cnn(
    want: Wanted,
    *,
    windows: Sequence[int] = (3, 4, 5),
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 3,
    dropout: float = 0.5,
) -> c.ModelConfig:
    """Kim 2014; He et al. 2016. Against GPT-2: no attention and no positions, a text is read by what a few neighbours
    hold, and its label from the largest of each feature; a picture is put together from its patches and read by a
    residual network. Windows are centred and padded with zeros (Kim's are not), norms are of groups (He's of batches).

    windows: neighbours that each part looks at, none for pictures alone; widths, blocks: of the residual network.
    """
    rest = {kind: features for kind, features in want.stems.items() if kind != "image"}
    stack = c.ConvolveConfig(want.dim, tuple(windows), dropout)
    words = c.TextInput(want.vocab, stems={kind: c.MlpStem(features, 2 * want.dim) for kind, features in rest.items()})
    tower = c.TowerConfig(words, stack)
    topology: c.TowerConfig | c.EarlyFusionConfig = tower
    if "image" in want.stems:
        eyes = c.PictureConfig(want.stems["image"], tuple(widths), blocks)
        topology = c.EarlyFusionConfig(tower, {"image": eyes})
    heads = want.tops(c.Language(want.vocab, tied=False, bias=True))
    return c.ModelConfig(topology, heads, c.Init(std=0.0, embedding=0.1), family="cnn")


cifar = published(66, vocab=1, stems={"image": 3 * 4 * 4}, labels={"label": 10})
FAMILY = Family(
    "cnn", cnn, "encoder",
    "Kim 2014, Convolutional Neural Networks for Sentence Classification; He et al. 2016, Deep Residual Learning for "
    "Image Recognition (section 4.2: CIFAR-10)",
    sizes={"small": (128, 1, 1), "base": (300, 1, 1), "large": (600, 1, 1)},
    published={
        f"resnet-{6 * n + 2}": cifar(64, 1, 1, millions * 1e6, 0.02, windows=(), blocks=n)
        for n, millions in ((3, 0.27), (5, 0.46), (7, 0.66), (9, 0.85), (18, 1.7))
    },
)  # fmt: skip
