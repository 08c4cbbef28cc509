"""SmolVLM and Idefics3.

picture ── tiles and the whole, each ── patches, positions ── [ both ways ] x depth ── norm ── r x r, matrix ─┐
ids     ── table ── what the tiles have taken the places of ──────────────────────────────────────── Llama ───┘
"""

from __future__ import annotations

import math

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.llava import EYES, Size, fused, sighted, worded
from weft.families.names import Rule


def smolvlm(
    want: Wanted,
    *,
    eyes: Size | None = None,
    eyes_hidden: int = 0,
    picture: int = 16,
    factor: int = 2,
    kv_heads: int = 0,
    hidden: int = 0,
    tied: bool = False,
    theta: float = 10_000.0,
    token: int = -1,
) -> c.ModelConfig:
    """Laurençon et al. 2024; Marafioti et al. 2025. Against GPT-2: a picture is cut into tiles, each goes through a
    SigLIP tower of its own, factor x factor patches become one token by a matrix, and stand among the words of a Llama.

    eyes: (dim, depth, heads) of the pictures' tower, eyes_hidden its feed-forward width; picture: patches a side of a
    tile; factor: how many of them, each way, one token holds; token: id that keeps their places where ids come alone.
    """
    dim, depth, heads = eyes or (want.dim, want.depth, want.heads)
    norm = c.LayerNorm(1e-6)
    attention = c.Attention(heads, bias=True, pattern=c.Full())
    feedforward = c.FeedForward(eyes_hidden or 4 * dim, "gelu_tanh", bias=True)
    encoders = {}
    if "image" in want.stems:
        side = math.isqrt(want.stems["image"] // 3)
        if side % factor:
            raise RecipeError(
                f"A token of {side} x {side} pixels does not divide into {factor} x {factor} patches: take an "
                f"image.patch that is a multiple of {factor}, or another model.options.factor."
            )
        seen = c.TextInput(
            0, c.Grid(picture, picture, before=0), stems={"image": c.LinearStem(3 * (side // factor) ** 2)}, opening=()
        )
        tower = c.TowerConfig(seen, c.StackConfig(dim, depth, attention, feedforward, norm))
        encoders["image"] = c.ItemEncoder(tower, c.ShuffleBridge(factor), token=token)
    return fused(want, encoders, "smolvlm", kv_heads=kv_heads, hidden=hidden, tied=tied, theta=theta)  # type: ignore[arg-type]


NAMES = (
    *sighted(EYES, "model.vision_model."),
    Rule("body.encoders.image.bridge.out.weight", "model.connector.modality_projection.proj.weight"),
    *worded("model.text_model.", "lm_head."),
)

base = {"eyes": (768, 12, 12), "picture": 32, "factor": 4, "theta": 100_000.0, "token": 49190}
small = published(8192, vocab=49280, stems={"image": 3 * 64 * 64}, options=base)
FAMILY = Family(
    "smolvlm", smolvlm, "decoder",
    "Laurençon et al. 2024, Building and better understanding vision-language models (Idefics3); Marafioti et al. "
    "2025, SmolVLM: Redefining small and efficient multimodal models",
    sizes=SIZES,
    published={
        "smolvlm-256m": small(576, 30, 9, 256_484_928, kv_heads=3, hidden=1536),
        "smolvlm-500m": small(960, 32, 15, 507_482_304, kv_heads=5, hidden=2560),
    },
)  # fmt: skip
