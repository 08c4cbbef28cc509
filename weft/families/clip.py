"""CLIP.

image ── stem, class token, norm ── [ both ways ] x depth ── first token ── matrix ── unit vector ─┐
                                                                                             cosine / temperature
text  ── table, positions ───────── [ causal ]    x depth ── last token ─── matrix ── unit vector ─┘
"""

from __future__ import annotations

from dataclasses import replace

from weft.core import config as c
from weft.errors import RecipeError
from weft.families.family import SIZES, Family, Wanted, published


def clip(
    want: Wanted,
    *,
    width: int = 0,
    media: str = "left",
    media_size: tuple[int, int, int] | None = None,
    media_vocab: int = 0,
    media_length: int = 0,
    activation: str = "gelu",
    stem: str = "linear",
) -> c.ModelConfig:
    """Radford et al. 2021. Against GPT-2: two towers into one space, no head over words; the tower of images sees both
    ways and is read at its first token, that of text is causal and read at its last.

    media: which side of `a <-> b` has images or sounds: left, right or both; media_size:
    (dim, depth, heads) of its tower.
    """
    if media not in ("left", "right", "both"):
        raise RecipeError(f"The media of clip are on the left, right or both, not {media!r}.")
    dim, depth, heads = media_size or (want.dim, want.depth, want.heads)
    norm = c.LayerNorm()

    def stack(dim: int, depth: int, heads: int, pattern: c.Full | c.Causal) -> c.StackConfig:
        attention = c.Attention(heads, bias=True, pattern=pattern)
        return c.StackConfig(dim, depth, attention, c.FeedForward(4 * dim, activation, bias=True), norm)

    text = c.TowerConfig(
        c.TextInput(want.vocab, c.Learned(want.length)), stack(want.dim, want.depth, want.heads, c.Causal())
    )
    seen = c.TowerConfig(
        c.TextInput(
            media_vocab or want.vocab,
            c.Learned(media_length or want.length),
            norm=norm,
            stems=want.stem(stem, dim, bias=False),
        ),
        stack(dim, depth, heads, c.Full()),
    )
    sides = {"left": media != "right" and bool(want.stems), "right": media != "left" and bool(want.stems)}
    left, right = (seen if sides[side] else text for side in ("left", "right"))
    pool = {side: "first" if has else "last" for side, has in sides.items()}
    topology = c.DualEncoderConfig(left, right, width or want.dim, pool["left"], pool["right"])
    return c.ModelConfig(topology, replace(want, language=False).tops(c.Language(want.vocab)), family="clip")


openai = published(
    77, vocab=49408, stems={"image": 3 * 32 * 32}, options={"media_vocab": 1, "activation": "gelu_quick"}
)
finer = published(77, vocab=49408, stems={"image": 3 * 14 * 14}, options={"media_vocab": 1, "activation": "gelu_quick"})
FAMILY = Family(
    "clip", clip, "dual",
    "Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision (table 20)",
    sizes=SIZES,
    published={
        "clip-b-32": openai(512, 12, 8, 151_277_313, media_size=(768, 12, 12), media_length=50),
        "clip-l-14": finer(768, 12, 12, 427_616_513, media_size=(1024, 24, 16), media_length=257),
    },
)  # fmt: skip
