"""The native family: one decoder for text, images and sound.

    [image][▒▒▒▒ patches ▒▒▒▒][question][what colour is it?][answer][blue]
            stem: (N,F) -> (N,D)           token table
    ────────────────────────────────────────────────────────────────────── one causal stream; an image sees itself whole
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import Family, Wanted, stems

PAPER = "Follows Touvron et al. 2023 (Llama), Dehghani et al. 2023 (query/key norm), Wang et al. 2024 (M-RoPE), So et al. 2021 (relu2)."


def weft(
    want: Wanted,
    *,
    kv_heads: int = 0,
    hidden: int = 0,
    activation: str = "relu2",
    gated: bool = False,
    tied: bool = True,
    stem: str = "mlp",
    theta: float = 10_000.0,
    dropout: float = 0.0,
    input_norm: bool = True,
    residual: str = "zero",
) -> c.ModelConfig:
    """Against GPT-2: RMS norm, queries and keys normed, rotary positions over sequence, row and column, images and
    sounds see themselves both ways, squared ReLU, no biases, blocks start as the identity.
    """
    norm = c.RMSNorm()
    attention = c.Attention(
        want.heads,
        kv_heads=kv_heads,
        qk_norm=c.RMSNorm(),
        position=c.Rope(theta, axes=3),
        pattern=c.Prefix(),
    )
    feedforward = c.FeedForward(hidden or 4 * want.dim, activation, gated)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, norm=norm if input_norm else None, stems=stems(want, stem)),
            c.StackConfig(want.dim, want.depth, attention, feedforward, norm, dropout=dropout),
        ),
        heads={"language": c.Language(want.vocab, tied=tied), **want.classifiers()},
        init=c.Init(std=0.0, embedding=0.02, residual=residual),
        family="weft",
    )


FAMILY = Family(
    "weft", weft, "decoder", PAPER,
    sizes={"small": (128, 4, 4), "base": (256, 6, 4), "large": (512, 8, 8)},
)  # fmt: skip
