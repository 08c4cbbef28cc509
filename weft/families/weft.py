"""The native family: one decoder for text, images and sound.

[image][▒▒▒▒ patches ▒▒▒▒][question][what colour is it?][answer][blue]
        stem: (N,F) -> (N,D)           token table
────────────────────────────────────────────────────────────────────── one causal stream; an image sees itself whole
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.core import config as c
from weft.families.family import SIZES, Family, Wanted


@dataclass(frozen=True)
class Choices:
    """The family's options.

    kv_heads      heads of keys and values; 0: as many as of queries
    hidden        width of the feed-forward part; 0: four times the model's;  activation, gated: what it computes
    tied          the table serves as the head, too
    stem          linear, mlp, conv or pyramid: what patches and frames go through;  audio_stem: frames, if not that
    theta         of the rotary positions
    input_norm    whether the stream is normed before the first block
    per_modality  a feed-forward part of its own for each kind of media
    """

    kv_heads: int = 0
    hidden: int = 0
    activation: str = "relu2"
    gated: bool = False
    tied: bool = False
    stem: str = "mlp"
    audio_stem: str = ""
    theta: float = 10_000.0
    input_norm: bool = True
    per_modality: bool = False
    dropout: float = 0.0


DEFAULT = Choices()


def weft(want: Wanted, *, choices: Choices = DEFAULT) -> c.ModelConfig:
    """Against GPT-2: RMS norm, also of queries and keys; rotary positions over sequence, row and column; images and
    sounds see themselves both ways; squared ReLU; no biases; a head of its own; blocks start near the identity.
    """
    norm = c.RMSNorm()
    attention = c.Attention(
        want.heads, kv_heads=choices.kv_heads, qk_norm=norm, position=c.Rope(choices.theta, axes=3), pattern=c.Prefix()
    )
    stems = want.stem(choices.stem)
    if choices.audio_stem and "audio" in stems:
        stems["audio"] = want.stem(choices.audio_stem)["audio"]
    feedforward: c.FeedForward | c.PerModality = c.FeedForward(
        choices.hidden or 4 * want.dim, choices.activation, choices.gated
    )
    if choices.per_modality and want.stems:
        feedforward = c.PerModality(tuple(want.stems), feedforward)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, norm=norm if choices.input_norm else None, stems=stems),
            c.StackConfig(want.dim, want.depth, attention, feedforward, norm, dropout=choices.dropout),
        ),
        want.tops(c.Language(want.vocab, tied=choices.tied)),
        # A tied table so small that a token does not predict itself; an own head so small that all are equally likely.
        c.Init(std=0.0, embedding=1 / want.dim if choices.tied else 0.02, head=0.001, residual=0.01),
        family="weft",
    )


FAMILY = Family(
    "weft", weft, "decoder",
    "Follows Touvron et al. 2023 (Llama), Henry et al. 2020 (query and key norm), Wang et al. 2024 (positions by "
    "modality), So et al. 2021 (squared ReLU), Bachlechner et al. 2021 (blocks that start as the identity)",
    sizes=SIZES,
)  # fmt: skip
