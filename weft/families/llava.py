"""LLaVA 1.5.

picture ── patches, class token, positions, norm ── [ both ways ] x depth-1 ── patches alone ── MLP ─┐
ids     ── table ── what the picture has taken the places of ──────────────────────────────────────(put)── Llama ── head
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.llama import NAMES as LLAMA
from weft.families.llama import llama
from weft.families.names import Rule

Size = tuple[int, int, int]


def llava(
    want: Wanted,
    *,
    eyes: Size | None = None,
    picture: int = 8,
    layer: int = -1,
    activation: str = "gelu",
    kv_heads: int = 0,
    hidden: int = 0,
    tied: bool = False,
    token: int = -1,
) -> c.ModelConfig:
    """Liu et al. 2023. Against GPT-2: a picture goes through a CLIP tower of its own, the class token is left out, and
    an MLP takes each patch to the width of a Llama, where it stands among the words.

    eyes: (dim, depth, heads) of the pictures' tower, that of the words by default; picture: patches a side that its
    table of positions is for (others are interpolated); layer: -2 takes the patches before the last block, as the paper
    does with a CLIP that was trained before; token: id that keeps a picture's places where ids come alone.
    """
    dim, depth, heads = eyes or (want.dim, want.depth, want.heads)
    norm = c.LayerNorm()
    attention = c.Attention(heads, bias=True, pattern=c.Full())
    encoders = {
        kind: c.ItemEncoder(
            c.TowerConfig(
                c.TextInput(1, c.Grid(picture, picture), norm=norm, stems={kind: c.LinearStem(features, bias=False)}),
                c.StackConfig(dim, depth, attention, c.FeedForward(4 * dim, activation, bias=True), norm),
            ),
            c.MlpBridge(want.dim),
            layer=layer,
            token=token,
        )
        for kind, features in want.stems.items()
        if kind == "image"
    }
    return fused(want, encoders, "llava", kv_heads=kv_heads, hidden=hidden, tied=tied)


def fused(want: Wanted, encoders: dict[str, c.ItemEncoder], family: str, **text: int | bool) -> c.ModelConfig:
    """A Llama with encoders of items beside it; other kinds of media go through a stem."""
    rest = {kind: features for kind, features in want.stems.items() if kind not in encoders}
    words = llama(replace(want, stems=rest), **text)  # type: ignore[arg-type]
    return replace(words, topology=c.EarlyFusionConfig(words.topology, encoders), family=family)  # type: ignore[arg-type]


def sighted(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The names that the towers of pictures share, CLIP's and SigLIP's."""
    at, block = ours + "stack.blocks.{i}.", theirs + "encoder.layers.{i}."
    attention = tuple(f"{block}self_attn.{name}_proj.{{p}}" for name in "qkv")
    return (
        Rule(ours + "input.stems.image.{p}", theirs + "embeddings.patch_embedding.{p}", "patches"),
        Rule(ours + "input.places.weight", theirs + "embeddings.position_embedding.weight"),
        Rule(at + "attn_norm.{p}", block + "layer_norm1.{p}"),
        Rule(at + "attn.qkv.{p}", attention),
        Rule(at + "attn.out.{p}", block + "self_attn.out_proj.{p}"),
        Rule(at + "ffn_norm.{p}", block + "layer_norm2.{p}"),
        Rule(at + "ffn.up.{p}", block + "mlp.fc1.{p}"),
        Rule(at + "ffn.down.{p}", block + "mlp.fc2.{p}"),
        Rule(ours + "stack.norm.{p}", theirs + "post_layernorm.{p}"),
    )


def worded(body: str, head: str) -> tuple[Rule, ...]:
    """A Llama's names within a larger model. body, head: what stands there for `model.` and `lm_head.`"""
    return tuple(
        replace(
            rule,
            ours=rule.ours.replace("body.", "body.tower.", 1),
            theirs=tuple(
                head + name.removeprefix("lm_head.") if name.startswith("lm_head.") else body + name[len("model.") :]
                for name in rule.pieces
            ),
        )
        for rule in LLAMA
    )


EYES = "body.encoders.image.tower."
NAMES = (
    Rule(EYES + "input.table.weight", "vision_tower.embeddings.class_embedding", "vector"),
    Rule(EYES + "input.norm.{p}", "vision_tower.pre_layrnorm.{p}"),
    *sighted(EYES, "vision_tower."),
    Rule("body.encoders.image.bridge.up.{p}", "multi_modal_projector.linear_1.{p}"),
    Rule("body.encoders.image.bridge.out.{p}", "multi_modal_projector.linear_2.{p}"),
    *worded("language_model.model.", "language_model.lm_head."),
)

vicuna = published(
    4096, vocab=32064, stems={"image": 3 * 14 * 14},
    options={"eyes": (1024, 24, 16), "picture": 24, "layer": -2, "activation": "gelu_quick", "token": 32000},
)  # fmt: skip
FAMILY = Family(
    "llava", llava, "decoder",
    "Liu et al. 2023, Improved Baselines with Visual Instruction Tuning (LLaVA 1.5, with CLIP-L/14 at 336 pixels)",
    sizes=SIZES,
    published={
        "llava-1.5-7b": vicuna(4096, 32, 32, 7_063_427_072, hidden=11008),
        "llava-1.5-13b": vicuna(5120, 40, 40, 13_351_494_656, hidden=13824),
    },
)  # fmt: skip
