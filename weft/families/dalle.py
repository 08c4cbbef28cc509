"""DALL-E.

ids    ── table ─(+)─ positions by order ───┐
codes  ── table ─(+)─ row ─(+)─ column ─────┴─ [ x + attention(norm(x)) ; x + ffn(norm(x)) ] x depth ── norm ── table^T
          32 x 32 of a picture, made by a codec
"""

from __future__ import annotations

import math

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import SIZES, Family, Wanted, published


def dalle(
    want: Wanted, *, hidden: int = 0, activation: str = "gelu", tied: bool = True, stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:  # fmt: skip
    """Ramesh et al. 2021. Against GPT-2: words, then the codes of a picture, in one stream; a code is placed by its row
    and its column in place of its order. Attention is dense here (theirs is by rows and columns in turn), the codec is
    the run's own, and words are not padded to a fixed length.
    """
    positions: c.Learned | c.CodeGrid = c.Learned(want.length)
    if "image" in want.codes:
        first, count, each = want.codes["image"]
        if math.isqrt(each) ** 2 != each:
            raise RecipeError(
                f"A picture of {each} codes has no rows and columns. Take a square number as image.codes."
            )
        positions = c.CodeGrid(want.length, math.isqrt(each), first, count)
    norm = c.LayerNorm()
    attention = c.Attention(want.heads, bias=True)
    feedforward = c.FeedForward(hidden or 4 * want.dim, activation, bias=True)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, positions, stems=want.stem(stem)),
            c.StackConfig(want.dim, want.depth, attention, feedforward, norm, dropout=dropout),
        ),
        want.tops(c.Language(want.vocab, tied=tied)),
        family="dalle",
    )


row = published(256, vocab=16384 + 8192, codes={"image": (16384, 8192, 1024)})
FAMILY = Family(
    "dalle", dalle, "decoder",
    "Ramesh et al. 2021, Zero-Shot Text-to-Image Generation (64 layers of 62 heads of 64; its sparse layers are dense "
    "here)",
    sizes=SIZES,
    published={"dalle-12b": row(3968, 64, 62, 12e9, 0.02)},
)  # fmt: skip
