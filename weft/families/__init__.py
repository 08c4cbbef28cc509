"""Families are data: functions that return a config tree over one core."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weft.core.config import ModelConfig
from weft.errors import RecipeError, nearest
from weft.families import bert, clip, cnn, counted, dalle, gpt, llama, llava, longformer, rnn, smolvlm, t5, vit, whisper
from weft.families import weft as native
from weft.families.family import Family, Wanted

ALL = (
    native.FAMILY,
    gpt.FAMILY,
    llama.FAMILY,
    bert.FAMILY,
    t5.FAMILY,
    vit.FAMILY,
    clip.FAMILY,
    clip.SIGLIP_FAMILY,
    llava.FAMILY,
    smolvlm.FAMILY,
    whisper.FAMILY,
    longformer.FAMILY,
    dalle.FAMILY,
    cnn.FAMILY,
    rnn.FAMILY,
    rnn.BOTH,
    counted.NGRAM,
    counted.MARKOV,
)
FAMILIES: dict[str, Family] = {family.name: family for family in ALL}


def make(
    name: str,
    *,
    vocab: int,
    length: int,
    dim: int = 0,
    depth: int = 0,
    heads: int = 0,
    stems: dict[str, int] | None = None,
    labels: dict[str, int] | None = None,
    language: bool | None = None,
    codes: dict[str, tuple[int, int, int]] | None = None,
    options: dict[str, Any] | None = None,
    frames: int = 8,
) -> ModelConfig:
    """The config of a family. 0: the family's default size.

    stems     kind -> features of one media token ("image": 192)
    labels    name of a classification head -> number of classes
    language  whether there is a head over the vocabulary; None: yes, but not for an encoder that is to classify
    codes     kind of media that is drawn -> (its first id, how many codes there are, how many make an item; 0: any)
    options   the family's own choices, by name
    frames    of sound in one token
    Raises RecipeError for a family, option or size that cannot be, with the nearest name.
    """
    family = FAMILIES[known(name)]
    options = family.typed(options or {})
    default = next(iter(family.sizes.values()))
    dim, depth = dim or default[0], depth or default[1]
    heads = heads or _heads(dim, default)
    if dim % heads and not options.get("head_dim"):
        raise RecipeError(f"A width of {dim} cannot be shared by {heads} heads. Take a multiple of {heads}.")
    if language is None:
        language = not (family.kind == "encoder" and labels)
    want = Wanted(vocab, length, dim, depth, heads, dict(stems or {}), dict(labels or {}), language)
    want = replace(want, codes=dict(codes or {}), frames=frames)
    return family.make(want, options)


def published(name: str) -> ModelConfig:
    """The config of a model of a paper, by name ("gpt2-xl", "llama3-8b", "t5-11b", "vit-b-16")."""
    models = {model: (family, entry) for family, f in FAMILIES.items() for model, entry in f.published.items()}
    if name not in models:
        raise RecipeError(f"No published model is called {name!r}.{nearest(name, models)}")
    family, entry = models[name]
    return make(family, **entry.arguments)


def known(name: str) -> str:
    """`name`, if it is a family's. Raises RecipeError with the nearest one otherwise."""
    if name not in FAMILIES:
        raise RecipeError(f"There is no family {name!r}.{nearest(name, FAMILIES)}")
    return name


def _heads(dim: int, default: tuple[int, int, int]) -> int:
    """Heads for a width, about as wide as the family's own by default."""
    heads = max(1, dim * default[2] // default[0])
    while dim % heads:
        heads -= 1
    return heads
