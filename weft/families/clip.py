"""CLIP and SigLIP.

CLIP
image ── stem, class token, norm ── [ both ways ] x depth ── first token ── matrix ── unit vector ─┐
                                                                                      cosine * factor
text  ── table, positions ───────── [ causal ]    x depth ── end token ──── matrix ── unit vector ─┘

SigLIP
image ── stem, positions ── [ both ways ] x depth ── a learned query asks all ─────── unit vector ─┐
                                                                                      cosine * factor + bias
text  ── table, positions ─ [ both ways ] x depth ── last token ─────────── matrix ── unit vector ─┘
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule, under


@dataclass(frozen=True)
class Kind:
    """What CLIP and SigLIP differ in, inside of a tower."""

    activation: str
    norm: c.LayerNorm
    text: c.Full | c.Causal


def stack(kind: Kind, size: tuple[int, int, int], hidden: int, pattern: c.Full | c.Causal) -> c.StackConfig:
    """size (dim, depth, heads); hidden 0: four times dim."""
    dim, depth, heads = size
    attention = c.Attention(heads, bias=True, pattern=pattern)
    return c.StackConfig(dim, depth, attention, c.FeedForward(hidden or 4 * dim, kind.activation, bias=True), kind.norm)


def text_tower(kind: Kind, vocab: int, length: int, size: tuple[int, int, int], hidden: int = 0) -> c.TowerConfig:
    """Ids alone."""
    return c.TowerConfig(c.TextInput(vocab, c.Learned(length)), stack(kind, size, hidden, kind.text))


def places(positions: str, length: int, before: int) -> c.Learned | c.Grid:
    """A table by order, or by row and column behind `before` tokens: that of a square picture."""
    if positions not in ("learned", "grid"):
        raise RecipeError(f"Positions are 'learned' or 'grid', not {positions!r}.")
    side = round((length - before) ** 0.5)
    return c.Learned(length) if positions == "learned" else c.Grid(side, side, before)


def sides(want: Wanted, media: str) -> tuple[bool, bool]:
    """Whether the left and the right side have pictures or sounds."""
    if media not in ("left", "right", "both"):
        raise RecipeError(f"The media of a dual encoder are on the left, right or both, not {media!r}.")
    return media != "right" and bool(want.stems), media != "left" and bool(want.stems)


def clip(
    want: Wanted,
    *,
    width: int = 0,
    media: str = "left",
    media_size: tuple[int, int, int] | None = None,
    media_vocab: int = 0,
    media_length: int = 0,
    positions: str = "learned",
    end: int = -1,
    activation: str = "gelu",
    stem: str = "linear",
) -> c.ModelConfig:
    """Radford et al. 2021. Against GPT-2: two towers into one space, no head over words; the tower of images sees both
    ways and is read at its first token, that of text is causal and read at its last, or at the first of the id `end`.

    media: which side of `a <-> b` has images or sounds: left, right or both; media_size:
    (dim, depth, heads) of its tower; positions "grid": by row and column behind the class token.
    """
    kind = Kind(activation, c.LayerNorm(), c.Causal())
    size = media_size or (want.dim, want.depth, want.heads)
    text = text_tower(kind, want.vocab, want.length, (want.dim, want.depth, want.heads))
    seen = c.TowerConfig(
        c.TextInput(
            media_vocab or want.vocab,
            places(positions, media_length or want.length, 1),
            norm=kind.norm,
            stems=want.stem(stem, size[0], bias=False),
        ),
        stack(kind, size, 0, c.Full()),
    )
    has = sides(want, media)
    left, right = (seen if side else text for side in has)
    words: c.Pool = "last" if end < 0 else c.AtToken(end)
    pools: list[c.Pool] = ["first" if side else words for side in has]
    topology = c.DualEncoderConfig(left, right, width or want.dim, pools[0], pools[1])
    return c.ModelConfig(topology, replace(want, language=False).tops(c.Language(want.vocab)), family="clip")


def siglip(
    want: Wanted,
    *,
    media: str = "left",
    media_size: tuple[int, int, int] | None = None,
    media_length: int = 0,
    media_hidden: int = 0,
    hidden: int = 0,
    bare: bool = False,
    positions: str = "learned",
    activation: str = "gelu_tanh",
    stem: str = "linear",
) -> c.ModelConfig:
    """Zhai et al. 2023. Against GPT-2: two towers that see both ways into one space; the tower of images is read by a
    learned query, that of text at its last token; a pair is told by a sigmoid of its own, with a learned bias.

    media, media_size, positions: as in clip; bare: the tower of images has no token ahead of the patches.
    """
    kind = Kind(activation, c.LayerNorm(1e-6), c.Full())
    size = media_size or (want.dim, want.depth, want.heads)
    text = text_tower(kind, want.vocab, want.length, (want.dim, want.depth, want.heads), hidden)
    table = places(positions, media_length or want.length, 0 if bare else 1)
    opening = () if bare else (0,)
    seen = c.TowerConfig(
        c.TextInput(0 if bare else want.vocab, table, stems=want.stem(stem, size[0]), opening=opening),
        stack(kind, size, media_hidden, c.Full()),
    )
    feedforward = c.FeedForward(media_hidden or 4 * size[0], activation, bias=True)
    ask = c.AttentionPool(c.Attention(size[2], bias=True, pattern=c.Full()), feedforward, kind.norm)
    has = sides(want, media)
    width = size[0] if any(has) else want.dim
    left, right = (seen if side else text for side in has)
    pools: list[c.Pool] = [ask if side else "last" for side in has]
    projects = [None if side else c.Project(bias=True) for side in has]
    topology = c.DualEncoderConfig(
        left, right, width, pools[0], pools[1], 0.1, left_project=projects[0], right_project=projects[1], bias=-10.0
    )
    return c.ModelConfig(topology, replace(want, language=False).tops(c.Language(want.vocab)), family="siglip")


BLOCK = (
    Rule("stack.blocks.{i}.attn_norm.{p}", "encoder.layers.{i}.layer_norm1.{p}"),
    Rule("stack.blocks.{i}.attn.qkv.{p}", tuple(f"encoder.layers.{{i}}.self_attn.{n}_proj.{{p}}" for n in "qkv")),
    Rule("stack.blocks.{i}.attn.out.{p}", "encoder.layers.{i}.self_attn.out_proj.{p}"),
    Rule("stack.blocks.{i}.ffn_norm.{p}", "encoder.layers.{i}.layer_norm2.{p}"),
    Rule("stack.blocks.{i}.ffn.up.{p}", "encoder.layers.{i}.mlp.fc1.{p}"),
    Rule("stack.blocks.{i}.ffn.down.{p}", "encoder.layers.{i}.mlp.fc2.{p}"),
)
PICTURE = (
    *BLOCK,
    Rule("input.table.weight", "embeddings.class_embedding", "vector"),
    Rule("input.stems.image.{p}", "embeddings.patch_embedding.{p}", "patches"),
    Rule("input.places.weight", "embeddings.position_embedding.weight"),
    Rule("input.norm.{p}", "pre_layrnorm.{p}"),
    Rule("stack.norm.{p}", "post_layernorm.{p}"),
)
TEXT = (
    *BLOCK,
    Rule("input.table.weight", "embeddings.token_embedding.weight"),
    Rule("input.places.weight", "embeddings.position_embedding.weight"),
    Rule("stack.norm.{p}", "final_layer_norm.{p}"),
)
TOWERS = (*under("body.left.", "vision_model.", PICTURE), *under("body.right.", "text_model.", TEXT))
NAMES = (
    *TOWERS,
    Rule("body.left_project.weight", "visual_projection.weight"),
    Rule("body.right_project.weight", "text_projection.weight"),
    Rule("body.sharpness", "logit_scale"),
)
SIGLIP = (
    *TOWERS,
    Rule("body.left_pool.probe", "vision_model.head.probe", "row"),
    Rule("body.left_pool.attn.qkv.weight", "vision_model.head.attention.in_proj_weight"),
    Rule("body.left_pool.attn.qkv.bias", "vision_model.head.attention.in_proj_bias"),
    Rule("body.left_pool.attn.out.{p}", "vision_model.head.attention.out_proj.{p}"),
    Rule("body.left_pool.norm.{p}", "vision_model.head.layernorm.{p}"),
    Rule("body.left_pool.ffn.up.{p}", "vision_model.head.mlp.fc1.{p}"),
    Rule("body.left_pool.ffn.down.{p}", "vision_model.head.mlp.fc2.{p}"),
    Rule("body.right_project.{p}", "text_model.head.{p}"),
    Rule("body.sharpness", "logit_scale", "scalar"),
    Rule("body.score_bias", "logit_bias", "scalar"),
)

own = {"media_vocab": 1, "activation": "gelu_quick", "positions": "grid", "end": 49407}
openai, finer = (published(77, vocab=49408, stems={"image": 3 * p * p}, options=own) for p in (32, 14))
middle = published(77, vocab=49408, stems={"image": 3 * 16 * 16}, options=own)
FAMILY = Family(
    "clip", clip, "dual",
    "Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision (table 20)",
    sizes=SIZES,
    published={
        "clip-b-32": openai(512, 12, 8, 151_277_313, media_size=(768, 12, 12), media_length=50),
        "clip-b-16": middle(512, 12, 8, 149_620_737, media_size=(768, 12, 12), media_length=197),
        "clip-l-14": finer(768, 12, 12, 427_616_513, media_size=(1024, 24, 16), media_length=257),
        "clip-l-14-336": finer(768, 12, 12, 427_944_193, media_size=(1024, 24, 16), media_length=577),
    },
)  # fmt: skip
alone = {"bare": True, "positions": "grid"}
square, small = (published(64, vocab=32000, stems={"image": 3 * p * p}, options=alone) for p in (16, 14))
wide = {"media_size": (1152, 27, 16), "hidden": 4304, "media_hidden": 4304}
SIGLIP_FAMILY = Family(
    "siglip", siglip, "dual",
    "Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training (models as released; counted in them)",
    sizes=SIZES,
    published={
        "siglip-b-16": square(768, 12, 12, 203_155_970, media_size=(768, 12, 12), media_length=196),
        "siglip-l-16-256": square(1024, 24, 16, 652_150_786, media_size=(1024, 24, 16), media_length=256),
        "siglip-so400m-14-384": small(1152, 27, 16, 877_960_498, media_length=729, **wide),
    },
)  # fmt: skip
