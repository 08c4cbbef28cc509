"""Longformer.

ids ── table ─(+)─ positions ─(+)─ segment ── norm ── [ norm(x + attention(x)) ; norm(x + ffn(x)) ] x depth
                                                             │
       . . # # # # # . . . . g      each token sees 256 on both sides, and the global ones (g);
       g # # # # # # # # # # #      a global one sees all, by queries, keys and values of its own
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule


def longformer(
    want: Wanted,
    *,
    window: int = 512,
    globals: int = 1,
    segments: int = 0,
    offset: int = 0,
    hidden: int = 0,
    activation: str = "gelu",
    eps: float = 1e-5,
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Beltagy et al. 2020. Against GPT-2: a BERT whose tokens see window / 2 others on each side, so that its cost is
    linear in the length, and global tokens, which see and are seen by all through matrices of their own.

    globals: how many of the first tokens are global, where a stream does not say itself which ones are.
    """
    norm, side = c.LayerNorm(eps), window // 2
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, c.Learned(want.length, offset), segments, norm, stems=want.stem(stem)),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, bias=True, pattern=c.Window(side, side, globals), globals=True),
                c.FeedForward(hidden or 4 * want.dim, activation, bias=True),
                norm,
                order="post",
                dropout=dropout,
            ),
        ),
        want.tops(c.Language(want.vocab, bias=True, transform=norm), hidden=want.dim),
        family="longformer",
    )


AT, BLOCK = "body.stack.blocks.{i}.", "longformer.encoder.layer.{i}."
PARTS = ("query", "key", "value")
NAMES = (
    Rule("body.input.table.weight", "longformer.embeddings.word_embeddings.weight"),
    Rule("body.input.places.weight", "longformer.embeddings.position_embeddings.weight"),
    Rule("body.input.segments.weight", "longformer.embeddings.token_type_embeddings.weight"),
    Rule("body.input.norm.{p}", "longformer.embeddings.LayerNorm.{p}"),
    Rule(AT + "attn.qkv.{p}", tuple(f"{BLOCK}attention.self.{n}.{{p}}" for n in PARTS)),
    Rule(AT + "attn.global_qkv.{p}", tuple(f"{BLOCK}attention.self.{n}_global.{{p}}" for n in PARTS)),
    Rule(AT + "attn.out.{p}", BLOCK + "attention.output.dense.{p}"),
    Rule(AT + "attn_norm.{p}", BLOCK + "attention.output.LayerNorm.{p}"),
    Rule(AT + "ffn.up.{p}", BLOCK + "intermediate.dense.{p}"),
    Rule(AT + "ffn.down.{p}", BLOCK + "output.dense.{p}"),
    Rule(AT + "ffn_norm.{p}", BLOCK + "output.LayerNorm.{p}"),
    Rule("heads.pooler.dense.{p}", "longformer.pooler.dense.{p}", optional=True),
    Rule("heads.language.dense.{p}", "lm_head.dense.{p}"),
    Rule("heads.language.norm.{p}", "lm_head.layer_norm.{p}"),
    Rule("heads.language.weight", "lm_head.decoder.weight", optional=True),
    Rule("heads.language.bias", "lm_head.bias"),
    Rule("heads.label.dense.{p}", "classifier.dense.{p}"),
    Rule("heads.label.out.{p}", "classifier.out_proj.{p}"),
    Rule("heads.tag.out.{p}", "classifier.{p}"),
    Rule("heads.span.out.{p}", "qa_outputs.{p}"),
)

row = published(4096, vocab=50265, options={"segments": 1, "offset": 2})
FAMILY = Family(
    "longformer", longformer, "encoder",
    "Beltagy et al. 2020, Longformer: The Long-Document Transformer (as released; counted with the head over words)",
    sizes=SIZES,
    published={
        "longformer-base-4096": row(768, 12, 12, 148_711_257),
        "longformer-large-4096": row(1024, 24, 16, 434_653_273),
    },
)  # fmt: skip
