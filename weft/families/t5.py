"""T5.

source ── table ── [ attention both ways + bias of distance ; ffn ] x depth ── memory ═════════╗
target ── table ── [ causal attention + bias of distance ; attention across ; ffn ] x depth ── ╨ ── d^-1/2 table^T
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule


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


def block(side: str, part: int) -> tuple[Rule, ...]:
    """Names of one side's blocks; its feed-forward part is the `part`-th of each."""
    ours, theirs = f"body.{side}.stack.blocks.{{i}}.", f"{side}.block.{{i}}.layer."
    own, across, mlp = theirs + "0.SelfAttention.", theirs + "1.EncDecAttention.", f"{theirs}{part}."
    return (
        Rule(ours + "attn_norm.{p}", theirs + "0.layer_norm.{p}"),
        Rule(ours + "attn.qkv.{p}", (own + "q.{p}", own + "k.{p}", own + "v.{p}")),
        Rule(ours + "attn.out.{p}", own + "o.{p}"),
        Rule(ours + "cross_norm.{p}", theirs + "1.layer_norm.{p}"),
        Rule(ours + "cross.q.{p}", across + "q.{p}"),
        Rule(ours + "cross.kv.{p}", (across + "k.{p}", across + "v.{p}")),
        Rule(ours + "cross.out.{p}", across + "o.{p}"),
        Rule(ours + "ffn_norm.{p}", mlp + "layer_norm.{p}"),
        Rule(ours + "ffn.down.{p}", mlp + "DenseReluDense.wo.{p}"),
        Rule(f"body.{side}.stack.norm.{{p}}", f"{side}.final_layer_norm.{{p}}"),
        Rule(
            f"body.{side}.stack.bias.weight",
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    )


def up(gated: bool) -> tuple[Rule, ...]:
    """Names of the first matrix of both sides' feed-forward parts."""
    names = ("wi_0", "wi_1") if gated else ("wi",)
    return tuple(
        Rule(
            f"body.{side}.stack.blocks.{{i}}.ffn.up.{{p}}",
            tuple(f"{side}.block.{{i}}.layer.{part}.DenseReluDense.{name}.{{p}}" for name in names),
        )
        for side, part in (("encoder", 1), ("decoder", 2))
    )


TABLES = (
    Rule("body.encoder.input.table.weight", "shared.weight"),
    Rule("body.encoder.input.table.weight", "encoder.embed_tokens.weight", optional=True),  # old files hold copies
    Rule("body.decoder.input.table.weight", "decoder.embed_tokens.weight"),
    Rule("heads.language.weight", "lm_head.weight"),
)
# By whether the feed-forward parts are gated (version 1.1, Flan).
NAMES = {gated: (*TABLES, *block("encoder", 1), *block("decoder", 2), *up(gated)) for gated in (False, True)}

row, newer = (
    published(512, vocab=32128),
    published(512, vocab=32128, options={"activation": "gelu_tanh", "gated": True, "tied": False}),
)
FAMILY = Family(
    "t5", t5, "encoder-decoder",
    "Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer; Chung et "
    "al. 2022, Scaling Instruction-Finetuned Language Models (Flan-T5: the sizes of version 1.1)",
    sizes=SIZES,
    published={
        "t5-small": row(512, 6, 8, 60_506_624),
        "t5-base": row(768, 12, 12, 222_903_552),
        "t5-large": row(1024, 24, 16, 737_668_096),
        "t5-3b": row(1024, 24, 32, 2_851_598_336, head_dim=128, hidden=16384),
        "t5-11b": row(1024, 24, 128, 11_307_321_344, head_dim=128, hidden=65536),
        "t5.1.1-small": newer(512, 8, 6, 76_961_152, head_dim=64, hidden=1024),
        "t5.1.1-base": newer(768, 12, 12, 247_577_856, hidden=2048),
        "t5.1.1-large": newer(1024, 24, 16, 783_150_080, hidden=2816),
        "t5.1.1-xl": newer(2048, 24, 32, 2_849_757_184, hidden=5120),
        "t5.1.1-xxl": newer(4096, 24, 64, 11_135_332_352, hidden=10240),
    },
)  # fmt: skip
