"""ViT.

[class]  ▒▒▒▒ patches ▒▒▒▒
 table       one matrix      ─(+)─ positions ── [ attention both ways ; ffn ] x depth ── norm ── first token ── label
"""

from __future__ import annotations

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import SIZES, Family, Wanted, published


def vit(
    want: Wanted, *, hidden: int = 0, positions: str = "learned", stem: str = "linear", dropout: float = 0.0
) -> c.ModelConfig:
    """Dosovitskiy et al. 2021. Against GPT-2: patches in place of words, sees both ways, reads its answer at the first
    token. positions "rope": turned by row and column, for images of any shape (Heo et al. 2024), in place of the table.
    """
    if positions not in ("learned", "rope"):
        raise RecipeError(f"Positions of vit are 'learned' or 'rope', not {positions!r}.")
    table, rope = (c.Learned(want.length), None) if positions == "learned" else (None, c.Rope(100.0, axes=2))
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, table, stems=want.stem(stem)),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, bias=True, position=rope, pattern=c.Full()),
                c.FeedForward(hidden or 4 * want.dim, "gelu", bias=True),
                c.LayerNorm(1e-6),
                dropout=dropout,
            ),
        ),
        want.tops(c.Language(want.vocab)),
        family="vit",
    )


large, huge = (
    published(197, vocab=1, stems={"image": 3 * 16 * 16}, labels={"label": 1000}),
    published(257, vocab=1, stems={"image": 3 * 14 * 14}, labels={"label": 1000}),
)
FAMILY = Family(
    "vit", vit, "encoder",
    "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words (table 1; 224 pixels, 1000 classes)",
    sizes=SIZES,
    published={
        "vit-b-16": large(768, 12, 12, 86_567_656),
        "vit-l-16": large(1024, 24, 16, 304_326_632),
        "vit-h-14": huge(1280, 32, 16, 632_045_800),
    },
)  # fmt: skip
