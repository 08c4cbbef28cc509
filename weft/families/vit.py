"""ViT, DeiT, DINOv2.

[class]  ▒▒▒▒ patches ▒▒▒▒
 table       one matrix      ─(+)─ positions ── [ attention both ways ; ffn ] x depth ── norm ── first token ── label
                                                          (DINOv2: each times a factor per feature before it is added)

    DeiT     [class][distillation] patches     each of the two has a matrix to the labels; averaged
    DINOv2   [class] patches                   label from [ class ; mean of patches ]
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import config as c
from weft.errors import RecipeError, nearest
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule

ANSWERS = ("first", "mean", "each")


def vit(
    want: Wanted,
    *,
    hidden: int = 0,
    activation: str = "gelu",
    gated: bool = False,
    bias: bool = True,
    eps: float = 1e-6,
    positions: str = "learned",
    before: int = 1,
    layer_scale: float = 0.0,
    answer: str = "first",
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Dosovitskiy et al. 2021. Against GPT-2: patches in place of words, sees both ways, reads its answer at the first
    token. positions "rope": turned by row and column, for images of any shape (Heo et al. 2024), in place of the table;
    "grid": a table by row and column behind `before` others, interpolated to other sizes. DeiT (Touvron et al. 2021):
    before=2, answer="each". DINOv2 (Oquab et al. 2023): layer_scale=1, answer="mean", the largest gated "silu".
    """
    if positions not in ("learned", "grid", "rope"):
        raise RecipeError(f"Positions of vit are 'learned', 'grid' or 'rope', not {positions!r}.")
    if answer not in ANSWERS:
        raise RecipeError(f"vit answers from {', '.join(ANSWERS)}, not {answer!r}.{nearest(answer, ANSWERS)}")
    table: c.Learned | c.Grid | None = c.Learned(want.length) if positions == "learned" else None
    opening = (0,)
    if positions == "grid":
        side = round((want.length - before) ** 0.5)
        if side * side + before != want.length:
            raise RecipeError(f"A square grid behind {before} tokens has {before} + n^2 places, not {want.length}.")
        table, opening = c.Grid(side, side, before), tuple(range(before))
    heads = want.tops(c.Language(want.vocab))
    read = {"first": {}, "mean": {"mean": True}, "each": {"tokens": max(before, 1)}}[answer]
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, table, stems=want.stem(stem), opening=opening),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(
                    want.heads,
                    bias=bias,
                    out_bias=None if bias else True,
                    position=c.Rope(100.0, axes=2) if positions == "rope" else None,
                    pattern=c.Full(),
                ),
                c.FeedForward(hidden or 4 * want.dim, activation, gated, bias=True),
                c.LayerNorm(eps),
                dropout=dropout,
                layer_scale=layer_scale,
            ),
        ),
        {name: replace(head, **read) if isinstance(head, c.Classify) else head for name, head in heads.items()},
        family="vit",
    )


def names(body: str, block: str, feedforward: tuple[Rule, ...], tokens: Rule) -> tuple[Rule, ...]:
    """The rules that the three share. body, block: what stands before their names; their feed-forward, their tokens."""
    at = "body.stack.blocks.{i}."
    return (
        tokens,
        Rule("body.input.places.weight", f"{body}embeddings.position_embeddings", "row"),
        Rule("body.input.stems.image.{p}", f"{body}embeddings.patch_embeddings.projection.{{p}}", "patches"),
        Rule(at + "attn.qkv.{p}", tuple(f"{block}attention.attention.{n}.{{p}}" for n in ("query", "key", "value"))),
        Rule(at + "attn.out.{p}", f"{block}attention.output.dense.{{p}}"),
        *feedforward,
        Rule("body.stack.norm.{p}", f"{body}layernorm.{{p}}"),
        Rule("heads.pooler.dense.{p}", f"{body}pooler.dense.{{p}}", optional=True),
    )


def plain(body: str, tokens: Rule) -> tuple[Rule, ...]:
    """ViT's and DeiT's: norms and feed-forward are called as in BERT."""
    at, block = "body.stack.blocks.{i}.", f"{body}encoder.layer.{{i}}."
    feedforward = (
        Rule(at + "attn_norm.{p}", block + "layernorm_before.{p}"),
        Rule(at + "ffn_norm.{p}", block + "layernorm_after.{p}"),
        Rule(at + "ffn.up.{p}", block + "intermediate.dense.{p}"),
        Rule(at + "ffn.down.{p}", block + "output.dense.{p}"),
    )
    return names(body, block, feedforward, tokens)


def dinov2(body: str) -> tuple[Rule, ...]:
    """DINOv2's; its mask token, of use in its own training only, is the table's second row."""
    at, block = "body.stack.blocks.{i}.", f"{body}encoder.layer.{{i}}."
    tokens = (f"{body}embeddings.cls_token", f"{body}embeddings.mask_token")
    feedforward = (
        Rule(at + "attn_norm.{p}", block + "norm1.{p}"),
        Rule(at + "ffn_norm.{p}", block + "norm2.{p}"),
        Rule(at + "attn_scale.weight", block + "layer_scale1.lambda1"),
        Rule(at + "ffn_scale.weight", block + "layer_scale2.lambda1"),
    )
    return names(body, block, feedforward, Rule("body.input.table.weight", tokens, "row|same"))


def inside(fused: bool) -> tuple[Rule, ...]:
    """The feed-forward part of a DINOv2: one matrix holds both halves where it is gated."""
    at, block = "body.stack.blocks.{i}.ffn.", "dinov2.encoder.layer.{i}.mlp."
    up, down = ("weights_in", "weights_out") if fused else ("fc1", "fc2")
    return (Rule(at + "up.{p}", block + up + ".{p}"), Rule(at + "down.{p}", block + down + ".{p}"))


CLASS = "embeddings.cls_token"
NAMES = (
    *plain("vit.", Rule("body.input.table.weight", "vit." + CLASS, "row")),
    Rule("heads.label.out.{p}", "classifier.{p}"),
)
DEIT = (
    *plain("deit.", Rule("body.input.table.weight", ("deit." + CLASS, "deit.embeddings.distillation_token"), "row")),
    Rule("heads.label.out.{p}", "classifier.{p}"),
)
TEACHER = (
    *DEIT[:-1],
    Rule("heads.label.out.{p}", "cls_classifier.{p}"),
    Rule("heads.label.others.0.{p}", "distillation_classifier.{p}"),
)
DINOV2 = (*dinov2("dinov2."), Rule("heads.label.out.{p}", "classifier.{p}"))

GRID = {"positions": "grid"}
DISTILLED = {**GRID, "before": 2, "answer": "each"}
SELF = {**GRID, "layer_scale": 1.0, "answer": "mean"}
coarse, large, huge = (
    published(1 + side * side, vocab=1, stems={"image": 3 * p * p}, labels={"label": 1000}, options=GRID)
    for side, p in ((7, 32), (14, 16), (16, 14))
)
deit = published(198, vocab=2, stems={"image": 3 * 16 * 16}, labels={"label": 1000}, options=DISTILLED)
dino = published(1 + 37 * 37, vocab=2, stems={"image": 3 * 14 * 14}, language=False, options=SELF)
FAMILY = Family(
    "vit", vit, "encoder",
    "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words (table 1; 224 pixels, 1000 classes); Touvron et al. 2021, "
    "Training data-efficient image transformers (table 1; with distillation); Oquab et al. 2023, DINOv2 (518 pixels, "
    "without a head)",
    sizes=SIZES,
    published={
        "vit-b-32": coarse(768, 12, 12, 88_224_232),
        "vit-b-16": large(768, 12, 12, 86_567_656),
        "vit-l-16": large(1024, 24, 16, 304_326_632),
        "vit-l-32": coarse(1024, 24, 16, 306_535_400),
        "vit-h-14": huge(1280, 32, 16, 632_045_800),
        "deit-ti": large(192, 12, 3, 5_717_416),
        "deit-s": large(384, 12, 6, 22_050_664),
        "deit-ti-distilled": deit(192, 12, 3, 5_910_800),
        "deit-s-distilled": deit(384, 12, 6, 22_436_432),
        "deit-b-distilled": deit(768, 12, 12, 87_338_192),
        "dinov2-s-14": dino(384, 12, 6, 22_056_576),
        "dinov2-b-14": dino(768, 12, 12, 86_580_480),
        "dinov2-l-14": dino(1024, 24, 16, 304_368_640),
        "dinov2-g-14": dino(1536, 40, 24, 1_136_480_768, gated=True, activation="silu", hidden=4096),
    },
)  # fmt: skip
