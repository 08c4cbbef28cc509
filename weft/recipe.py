"""A run is described by a recipe: TOML in, a tree of small frozen dataclasses out.

The same tree is what the command line's `key=value` overrides change (`train.lr=0.01`), what is saved, resolved, as
`recipe.toml` in the run directory, and what a resume reads. An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ModelRecipe:
    """Which family, how large. 0 means: decided by the family's defaults and the forecast."""

    family: str = "weft"
    dim: int = 0
    depth: int = 0
    heads: int = 0
    options: dict[str, object] = field(default_factory=dict)  # passed to the family's function; unknown: named error


@dataclass(frozen=True)
class TextRecipe:
    vocabulary: int = 0  # size of the byte-level BPE, bytes included; 0: decided from the amount of text


@dataclass(frozen=True)
class ImageRecipe:
    size: int = 64  # longest side in pixels after resizing; the aspect is kept
    patch: int = 8  # pixels per side of one token
    codes: int = 64  # tokens of one drawn image (a square number)
    codebook: int = 512
    augment: float = 0.0  # random shift of training inputs, as a share of the size


@dataclass(frozen=True)
class AudioRecipe:
    mels: int = 80  # log-mel bands at 16 kHz, one frame every 10 ms
    stack: int = 8  # frames per input token
    hop: int = 4  # frames per output code
    codebook: int = 512
    seconds: float = 30.0  # longest sound; longer ones are listed, not cut


@dataclass(frozen=True)
class SplitRecipe:
    """Used where the table has no `split` column: a seeded hash of the row decides."""

    validation: float = 0.05
    test: float = 0.1
    by: str = ""  # hash this column instead of the whole row, so that e.g. one speaker is never on both sides


@dataclass(frozen=True)
class TrainRecipe:
    minutes: float = 10.0  # turned into steps by the forecast, once, and saved
    steps: int = 0  # 0: from minutes
    tokens: int = 8192  # tokens per optimiser step, padding included
    length: int = 256  # tokens per packed row: the context
    micro: int = 0  # rows per micro-batch; 0: all of the step at once if memory allows
    optimizer: str = "muon"  # muon (matrices by Muon, the rest by AdamW) | adamw
    lr: float = 0.02  # Muon's rate for muon; AdamW's for adamw
    adam_lr: float = 0.003  # the rest's rate under muon
    schedule: str = "wsd"  # wsd (warm-up, stable, decay) | cosine | constant
    options: TrainOptions = field(default_factory=lambda: TrainOptions())


@dataclass(frozen=True)
class TrainOptions:
    """What is seldom changed."""

    warmup: float = 0.02  # share of the steps
    decay: float = 0.4  # share of the steps, for wsd
    weight_decay: float = 0.01
    clip: float = 1.0
    dtype: str = "auto"  # auto | float32 | bfloat16
    compile: str = "auto"  # auto (by the length of the run) | on | off
    save_every: int = 0  # steps; 0: about every two minutes
    keep: int = 2  # checkpoints kept
    evaluate_every: int = 0  # steps; 0: twenty times a run
    check: bool = True  # run `weft check` before training
    skip_share: float = 0.01  # allowed share of undecodable rows


@dataclass(frozen=True)
class Recipe:
    """One run. `data` is a path or the name of a built-in table; `types` says column types outright."""

    data: str = ""
    arrows: tuple[str, ...] = ()
    out: str = ""
    seed: int = 0
    types: dict[str, str] = field(default_factory=dict)  # column -> image | audio | text | label
    mix: dict[str, float] = field(default_factory=dict)  # arrow -> how often its rows are drawn per epoch (0.5: half)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    image: ImageRecipe = field(default_factory=ImageRecipe)
    audio: AudioRecipe = field(default_factory=AudioRecipe)
    split: SplitRecipe = field(default_factory=SplitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read `path` and apply `key=value` overrides. Raises RecipeError for unknown keys and wrong types."""
    raise RuntimeError("to be written")
