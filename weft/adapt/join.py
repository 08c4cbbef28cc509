"""One model from pretrained parts: a language model, and for each kind of media the encoder of another model.

    picture ── eyes (frozen) ── bridge ──┐
    sound ── ears (frozen) ── bridge ────┤ early: in their places   concat: in front   cross: looked across to
    ids ── table ────────────────────────┴── the language model, with adapters ── head

Bridges start anew and are what is trained first; how media are made ready (mean and standard deviation of pixels, the
scale of the log-mel) is the encoder's own, and stands in the run's recipe and renderer from then on.

Shape letters:  D main width  D' width of an encoder  k states a token brings
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from weft.adapt.source import Source, open_source, suited
from weft.core import config as c
from weft.errors import RecipeError
from weft.model import build
from weft.recipe import Recipe

FEW = 8  # the least width of a bridge
HALF = 0.5  # of the bridges' parameters, about, goes into what looks across (fusion "cross")
WIDER = 2  # a bridge's hidden width, in those of the language model


@dataclass(frozen=True)
class Part:
    """An encoder taken out of a source: its tower, what its weights are called before `input` and `stack`."""

    kind: str
    source: Source
    tower: c.TowerConfig
    prefix: str

    @property
    def features(self) -> int:
        """Of one token that it takes."""
        return self.tower.input.stems[self.kind].features


def joined(recipe: Recipe) -> tuple[Recipe, Source]:
    """The recipe with what its parts say of media, and one source of all parts: its new bridges are among its `fresh`.

    Raises RecipeError for a part that encodes nothing of its kind, or tokens that do not divide into the part's own.
    """
    if not recipe.model.source:
        raise RecipeError(
            "model.parts are joined to a language model: name it in model.source (--from), such as smollm2."
        )
    words = open_source(recipe.model.source)
    if not isinstance(words.config.topology, c.TowerConfig) or words.kind != "decoder" or words.text is None:
        raise RecipeError(f"model.source has to be a decoder that writes text; {words.name} is none.")
    parts = [part_of(kind, name) for kind, name in recipe.model.parts.items()]
    for part in parts:
        recipe = suited(recipe, part.source, [part.kind])
    config = replace(words.config, topology=fused(words.config.topology, parts, recipe), family="joined")
    names = {name for name, _ in build(config, device="meta").named_parameters()}

    def weights() -> dict[str, Any]:
        found = {name.replace("body.", "body.tower.", 1): tensor for name, tensor in words.state.items()}
        for part in parts:
            at = f"body.encoders.{part.kind}.tower."
            mine = (
                (name.removeprefix(part.prefix), t)
                for name, t in part.source.state.items()
                if name.startswith(part.prefix)
            )
            found |= {at + name: t for name, t in mine if name.startswith(("input.", "stack."))}
        return found

    fresh = tuple(sorted(name for name in names if ".bridge." in name or ".across." in name))
    told = {key: value for key, value in words.told.items() if key not in ("config", "architecture")}
    return recipe, replace(
        words, name=" + ".join([words.name, *recipe.model.parts.values()]), config=config, weights=weights, fresh=fresh,
        told=told,
    )  # fmt: skip


def part_of(kind: str, name: str) -> Part:
    """The tower of a source that takes this kind of media in. Raises RecipeError where it has none."""
    source = open_source(name)
    for prefix, tower in towers(source.config.topology):
        if kind in tower.input.stems:
            return Part(kind, source, tower, prefix)
    kinds = sorted({stem for _, tower in towers(source.config.topology) for stem in tower.input.stems})
    raise RecipeError(f"model.parts.{kind}: {name} encodes no {kind}; it takes {', '.join(kinds) or 'ids alone'}.")


def towers(topology: Any) -> list[tuple[str, c.TowerConfig]]:
    """Every tower of a topology with what its parameters' names begin with."""
    if isinstance(topology, c.TowerConfig):
        return [("body.", topology)]
    names = ("encoder", "left", "right", "tower")
    return [(f"body.{n}.", one) for n in names if isinstance(one := getattr(topology, n, None), c.TowerConfig)]


# ------------------------------------------------------------------------------------------------ how they meet


def fused(words: c.TowerConfig, parts: list[Part], recipe: Recipe) -> c.Fusion:
    """The topology of `model.fusion`; of "cross" with bridges as much narrower as what looks across takes."""
    stack, dim = words.stack, words.stack.dim
    bridges = {part.kind: bridge(part, recipe, dim) for part in parts}
    encoders = {part.kind: c.ItemEncoder(part.tower, bridges[part.kind], line=line(part.kind)) for part in parts}
    if recipe.model.fusion == "early":
        return c.EarlyFusionConfig(words, encoders)  # type: ignore[arg-type]
    if not isinstance(stack, c.StackConfig):
        raise RecipeError(f'model.fusion="{recipe.model.fusion}" needs a source that attends.')
    if recipe.model.fusion == "concat":
        pattern = c.Prefix() if isinstance(stack.attention.pattern, c.Causal) else stack.attention.pattern
        stack = replace(stack, attention=replace(stack.attention, pattern=pattern))
        return c.ConcatFusionConfig(replace(words, stack=stack), encoders)
    attention = replace(stack.attention, position=None, pattern=c.Full(), qk_norm=None)
    cross = c.GatedCross(attention, max(FEW, dim // 2))
    each = crossing(replace(stack, cross=cross))
    budget = sum(cost(one, dim) for one in encoders.values())
    count = max(1, min(stack.depth, int(HALF * budget / each)))
    every = math.ceil(stack.depth / count)
    taken = each * math.ceil(stack.depth / every)
    slim = {kind: narrower(one, taken / len(encoders), dim) for kind, one in encoders.items()}
    return c.CrossFusionConfig(replace(words, stack=replace(stack, cross=cross, cross_every=every)), slim)


def line(kind: str) -> bool:
    """Whether items of a kind have one dimension."""
    return kind == "audio"


def bridge(part: Part, recipe: Recipe, dim: int) -> c.Bridge:
    """The bridge of `model.bridge` from a part to the language model's width."""
    inner = part.tower.stack.dim
    if part.kind == "image":
        own, side = round((part.features / 3) ** 0.5), recipe.image.patch
        factor, rest, tokens = side // own, side % own, (recipe.image.size // side) ** 2
        hint = f"image.patch is {side}: take a multiple of its patch, {own}, such as {2 * own}"
    else:
        made = recipe.audio.stack * recipe.audio.mels
        factor, rest = made // part.features, made % part.features
        tokens = math.ceil(recipe.audio.seconds * 100 / recipe.audio.stack)
        hint = f"audio.stack x audio.mels is {made}: take a multiple of {part.features}"
    if not factor or rest:
        raise RecipeError(f"{part.source.name} takes {part.kind} tokens of {part.features} features. {hint}.")
    if recipe.model.bridge == "mlp":
        return c.MlpBridge(WIDER * dim, factor=factor)
    return c.ResampleBridge(tokens, depth=2, heads=max(1, inner // 64), hidden=4 * inner, factor=factor)


def cost(encoder: c.ItemEncoder, dim: int) -> int:
    """Parameters of a bridge."""
    from weft.core.bridge import make_bridge

    return sized(lambda: make_bridge(encoder.bridge, encoder.tower.stack.dim, dim, encoder.each))


def crossing(stack: c.StackConfig) -> int:
    """Parameters of one gated block."""
    from weft.core.stack import GatedCross

    return sized(lambda: GatedCross(stack, stack.cross, 0))  # type: ignore[arg-type]


def sized(make: Any) -> int:
    """Parameters of a module, made without memory."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def narrower(encoder: c.ItemEncoder, by: float, dim: int) -> c.ItemEncoder:
    """The encoder with a bridge of so many parameters less, as near as its hidden width allows."""
    if isinstance(encoder.bridge, c.ShuffleBridge):
        return encoder
    width = lambda hidden: replace(encoder, bridge=replace(encoder.bridge, hidden=hidden))
    step = cost(width(FEW + 1), dim) - cost(width(FEW), dim)
    return width(max(FEW, encoder.bridge.hidden - round(by / step)))
