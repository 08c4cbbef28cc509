"""BERT.

ids ── table ─(+)─ positions ─(+)─ segments ── norm ── [ norm(x + attention(x)) ; norm(x + ffn(x)) ] x depth
          hidden places ── dense, GELU, norm ── table^T        first token ── dense, tanh ── label
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published


def bert(
    want: Wanted, *, segments: int = 2, activation: str = "gelu", stem: str = "linear", dropout: float = 0.0
) -> c.ModelConfig:
    """Devlin et al. 2018. Against GPT-2: sees both ways, norm after the residual, segment table, a dense layer before
    the table's product, and a tanh layer before each label.
    """
    norm = c.LayerNorm(1e-12)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, c.Learned(want.length), segments, norm, stems=want.stem(stem)),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, bias=True, pattern=c.Full()),
                c.FeedForward(4 * want.dim, activation, bias=True),
                norm,
                order="post",
                dropout=dropout,
            ),
        ),
        want.tops(c.Language(want.vocab, bias=True, transform=norm), hidden=want.dim),
        family="bert",
    )


row = published(512, vocab=30522)
FAMILY = Family(
    "bert", bert, "encoder",
    "Devlin et al. 2018, BERT: Pre-training of Deep Bidirectional Transformers (counted with the head over words)",
    sizes=SIZES,
    published={
        "bert-base": row(768, 12, 12, 109_514_298),
        "bert-large": row(1024, 24, 16, 335_174_458),
    },
)  # fmt: skip
