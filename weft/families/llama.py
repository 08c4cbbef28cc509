"""Llama 1 to 3.

ids ── table ── [ x + attention(n), q and k turned ; x + down(silu(gate(n)) * up(n)) ] x depth ── norm ── head
                       n = rms(x)
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published


def llama(
    want: Wanted,
    *,
    kv_heads: int = 0,
    hidden: int = 0,
    tied: bool = False,
    theta: float = 10_000.0,
    stretch: float = 0.0,
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Touvron et al. 2023. Against GPT-2: rotary positions, RMS norm, gated SiLU, no biases, fewer key and value heads
    than queries (from 2 on), a head of its own. stretch: factor on the long waves (3.1 and 3.2).
    """
    scaling = c.Stretch(stretch) if stretch else None
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, stems=want.stem(stem)),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, kv_heads=kv_heads, position=c.Rope(theta, scaling=scaling)),
                c.FeedForward(hidden or -(-want.dim * 8 // 3 // 64) * 64, "silu", gated=True),
                c.RMSNorm(1e-5),
                dropout=dropout,
            ),
        ),
        want.tops(c.Language(want.vocab, tied=tied)),
        family="llama",
    )


one, two, three = (
    published(2048, vocab=32000),
    published(4096, vocab=32000),
    published(8192, vocab=128256, options={"theta": 500_000.0, "kv_heads": 8}),
)
FAMILY = Family(
    "llama", llama, "decoder",
    "Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models (table 2); Touvron et al. 2023, Llama 2:"
    " Open Foundation and Fine-Tuned Chat Models; Grattafiori et al. 2024, The Llama 3 Herd of Models (table 3)",
    sizes=SIZES,
    published={
        "llama-7b": one(4096, 32, 32, 6_738_415_616, hidden=11008),
        "llama-13b": one(5120, 40, 40, 13_015_864_320, hidden=13824),
        "llama-33b": one(6656, 60, 52, 32_528_943_616, hidden=17920),
        "llama-65b": one(8192, 80, 64, 65_285_660_672, hidden=22016),
        "llama2-70b": two(8192, 80, 64, 68_976_648_192, hidden=28672, kv_heads=8),
        "llama3-8b": three(4096, 32, 32, 8_030_261_248, hidden=14336),
        "llama3-70b": three(8192, 80, 64, 70_553_706_496, hidden=28672),
        "llama3.2-1b": three(2048, 16, 32, 1_235_814_400, hidden=8192, tied=True, stretch=32.0),
    },
)  # fmt: skip
