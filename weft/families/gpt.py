"""GPT-2 and GPT-3.

ids ── table ─(+)─ learned positions ── [ x + attention(norm(x)) ; x + ffn(norm(x)) ] x depth ── norm ── table^T
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule


def gpt(want: Wanted, *, activation: str = "gelu_tanh", stem: str = "linear", dropout: float = 0.0) -> c.ModelConfig:
    """Radford et al. 2019: what the other families are told against. A decoder with learned positions, layer norm
    before each part, biases, GELU, and one table for both ends.
    """
    norm = c.LayerNorm()
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, positions=c.Learned(want.length), stems=want.stem(stem)),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, bias=True),
                c.FeedForward(4 * want.dim, activation, bias=True),
                norm,
                dropout=dropout,
            ),
        ),
        want.tops(c.Language(want.vocab)),
        family="gpt",
    )


NAMES = (
    Rule("body.input.table.weight", "transformer.wte.weight"),
    Rule("body.input.places.weight", "transformer.wpe.weight"),
    Rule("body.stack.blocks.{i}.attn_norm.{p}", "transformer.h.{i}.ln_1.{p}"),
    Rule("body.stack.blocks.{i}.attn.qkv.{p}", "transformer.h.{i}.attn.c_attn.{p}", "transposed"),
    Rule("body.stack.blocks.{i}.attn.out.{p}", "transformer.h.{i}.attn.c_proj.{p}", "transposed"),
    Rule("body.stack.blocks.{i}.ffn_norm.{p}", "transformer.h.{i}.ln_2.{p}"),
    Rule("body.stack.blocks.{i}.ffn.up.{p}", "transformer.h.{i}.mlp.c_fc.{p}", "transposed"),
    Rule("body.stack.blocks.{i}.ffn.down.{p}", "transformer.h.{i}.mlp.c_proj.{p}", "transposed"),
    Rule("body.stack.norm.{p}", "transformer.ln_f.{p}"),
    Rule("heads.language.weight", "lm_head.weight"),
)

two, three = published(1024, vocab=50257), published(2048, vocab=50257)
FAMILY = Family(
    "gpt", gpt, "decoder",
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners; Brown et al. 2020, Language Models are "
    "Few-Shot Learners (table 2.1; its sparse layers are dense here, and 1.3B and 13B take the heads and width that "
    "give that size: 24 heads of 128 do not, and 5140 is no multiple of 40)",
    sizes=SIZES,
    published={
        "gpt2": two(768, 12, 12, 124_439_808),
        "gpt2-medium": two(1024, 24, 16, 354_823_168),
        "gpt2-large": two(1280, 36, 20, 774_030_080),
        "gpt2-xl": two(1600, 48, 25, 1_557_611_200),
        "gpt3-small": three(768, 12, 12, 125e6, 0.02),
        "gpt3-medium": three(1024, 24, 16, 350e6, 0.02),
        "gpt3-large": three(1536, 24, 16, 760e6, 0.02),
        "gpt3-xl": three(2048, 24, 16, 1.3e9, 0.02),
        "gpt3-2.7b": three(2560, 32, 32, 2.7e9, 0.02),
        "gpt3-6.7b": three(4096, 32, 32, 6.7e9, 0.02),
        "gpt3-13b": three(5120, 40, 40, 13e9, 0.02),
        "gpt3-175b": three(12288, 96, 96, 175e9, 0.02),
    },
)  # fmt: skip
