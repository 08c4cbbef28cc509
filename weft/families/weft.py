"""The native family: one decoder for text, images and sound.

[image][▒▒▒▒ patches ▒▒▒▒][question][what colour is it?][answer][blue]
        stem: (N,F) -> (N,D)           token table
────────────────────────────────────────────────────────────────────── one causal stream; an image sees itself whole
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted


def weft(
    want: Wanted,
    *,
    kv_heads: int = 0,
    hidden: int = 0,
    activation: str = "relu2",
    gated: bool = False,
    tied: bool = False,
    stem: str = "mlp",
    theta: float = 10_000.0,
    input_norm: bool = True,
    per_modality: bool = False,
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Against GPT-2: RMS norm, also of queries and keys; rotary positions over sequence, row and column; images and
    sounds see themselves both ways; squared ReLU; no biases; a head of its own; blocks start near the identity.

    per_modality: a feed-forward part of its own for each kind of media.
    """
    norm = c.RMSNorm()
    attention = c.Attention(
        want.heads, kv_heads=kv_heads, qk_norm=norm, position=c.Rope(theta, axes=3), pattern=c.Prefix()
    )
    feedforward: c.FeedForward | c.PerModality = c.FeedForward(hidden or 4 * want.dim, activation, gated)
    if per_modality and want.stems:
        feedforward = c.PerModality(tuple(want.stems), feedforward)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, norm=norm if input_norm else None, stems=want.stem(stem)),
            c.StackConfig(want.dim, want.depth, attention, feedforward, norm, dropout=dropout),
        ),
        want.tops(c.Language(want.vocab, tied=tied)),
        # A tied table so small that a token does not predict itself; an own head so small that all are equally likely.
        c.Init(std=0.0, embedding=1 / want.dim if tied else 0.02, head=0.001, residual=0.01),
        family="weft",
    )


FAMILY = Family(
    "weft", weft, "decoder",
    "Follows Touvron et al. 2023 (Llama), Henry et al. 2020 (query and key norm), Wang et al. 2024 (positions by "
    "modality), So et al. 2021 (squared ReLU), Bachlechner et al. 2021 (blocks that start as the identity)",
    sizes=SIZES,
)  # fmt: skip
