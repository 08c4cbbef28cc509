"""T5.

source ── table ── [ attention both ways + bias of distance ; ffn ] x depth ── memory ═════════╗
target ── table ── [ causal attention + bias of distance ; attention across ; ffn ] x depth ── ╨ ── d^-1/2 table^T
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published


def t5(
    want: Wanted,
    *,
    head_dim: int = 0,
    hidden: int = 0,
    activation: str = "relu",
    gated: bool = False,
    tied: bool = True,
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Raffel et al. 2020. Against GPT-2: an encoder beside the decoder, learned biases by distance in place of
    positions, RMS norm, no biases, scores not scaled. Version 1.1: gated gelu_tanh, head of its own.
    """
    norm, feedforward = c.RMSNorm(), c.FeedForward(hidden or 4 * want.dim, activation, gated)

    def attention(pattern: c.Full | c.Causal, position: c.RelativeBias | None = None) -> c.Attention:
        return c.Attention(want.heads, head_dim=head_dim, position=position, pattern=pattern, scale=1.0)

    def stack(pattern: c.Full | c.Causal, cross: c.Attention | None = None) -> c.StackConfig:
        own = attention(pattern, c.RelativeBias())
        return c.StackConfig(want.dim, want.depth, own, feedforward, norm, cross=cross, dropout=dropout)

    return c.ModelConfig(
        c.EncoderDecoderConfig(
            encoder=c.TowerConfig(c.TextInput(want.vocab, stems=want.stem(stem)), stack(c.Full())),
            decoder=c.TowerConfig(c.TextInput(want.vocab), stack(c.Causal(), attention(c.Full()))),
        ),
        want.tops(c.Language(want.vocab, tied=tied, scale=want.dim**-0.5 if tied else 1.0)),
        c.Init(std=0.0, embedding=0.1, residual=1.0),  # a tenth of the paper's table: starts at the loss of chance
        family="t5",
    )


row, newer = (
    published(512, vocab=32128),
    published(512, vocab=32128, options={"activation": "gelu_tanh", "gated": True, "tied": False}),
)
FAMILY = Family(
    "t5", t5, "encoder-decoder",
    "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    sizes=SIZES,
    published={
        "t5-small": row(512, 6, 8, 60_506_624),
        "t5-base": row(768, 12, 12, 222_903_552),
        "t5-large": row(1024, 24, 16, 737_668_096),
        "t5-3b": row(1024, 24, 32, 2_851_598_336, head_dim=128, hidden=16384),
        "t5-11b": row(1024, 24, 128, 11_307_321_344, head_dim=128, hidden=65536),
        "t5.1.1-small": newer(512, 8, 6, 76_961_152, head_dim=64, hidden=1024),
        "t5.1.1-base": newer(768, 12, 12, 247_577_856, hidden=2048),
    },
)  # fmt: skip
