"""Whisper.

frames ── conv, GELU ── conv by two, GELU ─(+)─ sinusoids ── [ both ways ; ffn ] x depth ── norm ══╗
ids ── table ─(+)─ positions ── [ causal ; attention across ; ffn ] x depth ── norm ────────────── ╨ ── table^T
"""

from __future__ import annotations

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule, under


def whisper(
    want: Wanted,
    *,
    decoder_depth: int = 0,
    hidden: int = 0,
    activation: str = "gelu",
    heard: bool = False,
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Radford et al. 2022. Against GPT-2: an encoder of sound beside the decoder, which looks across to it; sound comes
    through two convolutions over time, half as many tokens as frames, with sinusoids for positions; keys have no bias.

    heard: the encoder takes sound alone (as released), no ids beside it.
    """
    norm, feedforward = c.LayerNorm(), c.FeedForward(hidden or 4 * want.dim, activation, bias=True)
    stems = want.stem(stem) | {kind: c.FrameStem(n) for kind, n in want.stems.items() if kind == "audio"}

    def attention(pattern: c.Full | c.Causal) -> c.Attention:
        return c.Attention(want.heads, bias=True, key_bias=False, pattern=pattern)

    def stack(pattern: c.Full | c.Causal, depth: int, cross: c.Attention | None = None) -> c.StackConfig:
        return c.StackConfig(want.dim, depth, attention(pattern), feedforward, norm, cross=cross, dropout=dropout)

    vocab, opening = (0, ()) if heard else (want.vocab, (0,))
    return c.ModelConfig(
        c.EncoderDecoderConfig(
            encoder=c.TowerConfig(
                c.TextInput(vocab, c.Sinusoidal(), stems=stems, opening=opening), stack(c.Full(), want.depth)
            ),
            decoder=c.TowerConfig(
                c.TextInput(want.vocab, c.Learned(want.length)),
                stack(c.Causal(), decoder_depth or want.depth, attention(c.Full())),
            ),
            shared=not heard,
        ),
        want.tops(c.Language(want.vocab)),
        family="whisper",
    )


BLOCK = (
    Rule("attn_norm.{p}", "self_attn_layer_norm.{p}"),
    Rule("attn.qkv.weight", tuple(f"self_attn.{n}_proj.weight" for n in "qkv")),
    Rule("attn.q_bias", "self_attn.q_proj.bias"),
    Rule("attn.v_bias", "self_attn.v_proj.bias"),
    Rule("attn.out.{p}", "self_attn.out_proj.{p}"),
    Rule("cross_norm.{p}", "encoder_attn_layer_norm.{p}"),
    Rule("cross.q.{p}", "encoder_attn.q_proj.{p}"),
    Rule("cross.kv.weight", ("encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight")),
    Rule("cross.v_bias", "encoder_attn.v_proj.bias"),
    Rule("cross.out.{p}", "encoder_attn.out_proj.{p}"),
    Rule("ffn_norm.{p}", "final_layer_norm.{p}"),
    Rule("ffn.up.{p}", "fc1.{p}"),
    Rule("ffn.down.{p}", "fc2.{p}"),
)
NAMES = (
    Rule("body.encoder.input.stems.audio.first.{p}", "model.encoder.conv1.{p}"),
    Rule("body.encoder.input.stems.audio.second.{p}", "model.encoder.conv2.{p}"),
    *under("body.encoder.stack.blocks.{i}.", "model.encoder.layers.{i}.", BLOCK),
    Rule("body.encoder.stack.norm.{p}", "model.encoder.layer_norm.{p}"),
    Rule("body.decoder.input.table.weight", "model.decoder.embed_tokens.weight"),
    Rule("heads.language.weight", "proj_out.weight", optional=True),
    Rule("body.decoder.input.places.weight", "model.decoder.embed_positions.weight"),
    *under("body.decoder.stack.blocks.{i}.", "model.decoder.layers.{i}.", BLOCK),
    Rule("body.decoder.stack.norm.{p}", "model.decoder.layer_norm.{p}"),
)
# Parts of names in OpenAI's own files -> those above.
ORIGINAL = {
    "blocks": "layers",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp_ln": "final_layer_norm",
    "attn": "self_attn",
    "cross_attn": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
}

english, many, newer = (
    published(448, vocab=vocab, stems={"audio": 2 * mels}, options={"heard": True})
    for vocab, mels in ((51864, 80), (51865, 80), (51866, 128))
)
FAMILY = Family(
    "whisper", whisper, "encoder-decoder",
    "Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision (table 1; counted in the released "
    "files without the encoder's 1500 sinusoids, which are computed)",
    sizes=SIZES,
    published={
        "whisper-tiny.en": english(384, 4, 6, 37_184_256),
        "whisper-tiny": many(384, 4, 6, 37_184_640),
        "whisper-base": many(512, 6, 8, 71_825_920),
        "whisper-small": many(768, 12, 12, 240_582_912),
        "whisper-medium": many(1024, 24, 16, 762_321_920),
        "whisper-large-v2": many(1280, 32, 20, 1_541_384_960),
        "whisper-large-v3": newer(1280, 32, 20, 1_541_570_560),
        "whisper-large-v3-turbo": newer(1280, 32, 20, 806_958_080, decoder_depth=4),
    },
)  # fmt: skip
