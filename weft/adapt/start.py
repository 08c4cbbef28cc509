"""Where training starts when it does not start from nothing: the source's weights in a model that may know more.

    source's table (V,D)            target's table (V+n,D)
    ┌──────────────┐                ┌──────────────┐
    │ text         │  ── as is ──>  │ text         │    stems and heads that the source lacks start
    └──────────────┘                ├──────────────┤    as `build` starts them
                      the mean ──>  │ n new rows   │
                                    └──────────────┘

The mean of the old rows (Hewitt 2021): a new id is then no likelier than an average one, and disturbs nothing.
In a table without text (ViT's), the new rows start as its class token: a column's marker takes its place.

Shape letters:  V rows of the source's table  n new rows  D width
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from weft.adapt import freeze, lora
from weft.convert.weights import assign
from weft.core import config as c
from weft.core.layers import Embedding
from weft.errors import RecipeError, RunError
from weft.heads import Language
from weft.model import Model, build
from weft.recipe import Recipe

START, BASE = "start.json", "base.safetensors"  # in a run: what a Start says, and the weights at step 0


@dataclass(frozen=True)
class Start:
    """source: as it was named; digest: of its weights; rows: of its table; new: parameters that it did not have."""

    source: str
    digest: str
    rows: int
    new: tuple[str, ...] = ()


def load_start(folder: Path) -> tuple[dict[str, Tensor] | None, Start | None]:
    """(weights at step 0, what is said of them) of a run that did not start from nothing; else None twice."""
    if not (folder / START).is_file():
        return None, None
    try:
        said = json.loads((folder / START).read_text(encoding="utf-8"))
        start = Start(said["source"], said["digest"], int(said["rows"]), tuple(said["new"]))
        return load_file(folder / BASE), start
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{folder}: its start ({START}, {BASE}) cannot be read ({error!r}). Train it anew.") from error


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: names, shapes and numbers, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------ the config, grown


def rows(config: c.ModelConfig) -> int:
    """Rows of the source's table of words: the largest there is."""
    return max((one.vocab for one in inputs(config)), default=0)


def inputs(tree: Any) -> list[c.TextInput]:
    """Every TextInput of a config."""
    if isinstance(tree, c.TextInput):
        return [tree]
    if dataclasses.is_dataclass(tree):
        return [found for f in dataclasses.fields(tree) for found in inputs(getattr(tree, f.name))]
    return [found for item in tree.values() for found in inputs(item)] if isinstance(tree, dict) else []


def grow_config(
    config: c.ModelConfig, vocab: int, stems: Mapping[str, c.Stem], heads: Mapping[str, c.Language | c.Classify]
) -> c.ModelConfig:
    """The source's config with `vocab` rows in its table of words, more stems, and just these heads."""
    old = rows(config)

    def grown(tree: Any) -> Any:
        if isinstance(tree, c.TextInput):
            return replace(tree, vocab=vocab if tree.vocab == old else tree.vocab)
        if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
            return replace(tree, **{f.name: grown(getattr(tree, f.name)) for f in dataclasses.fields(tree)})
        return {key: grown(item) for key, item in tree.items()} if isinstance(tree, dict) else tree

    return replace(config, topology=with_stems(grown(config.topology), stems), heads=dict(heads))


def with_stems(topology: c.Topology, stems: Mapping[str, c.Stem]) -> c.Topology:
    """Stems of more kinds, where what is given comes in."""
    if not stems:
        return topology
    if isinstance(topology, c.TowerConfig):
        return replace(topology, input=replace(topology.input, stems={**topology.input.stems, **stems}))
    if isinstance(topology, c.EncoderDecoderConfig):
        return replace(topology, encoder=with_stems(topology.encoder, stems))  # type: ignore[arg-type]
    if isinstance(topology, c.Fusion):
        return replace(topology, tower=with_stems(topology.tower, stems))  # type: ignore[arg-type]
    if isinstance(topology, c.ConcatConfig):
        return replace(topology, source=replace(topology.source, stems={**topology.source.stems, **stems}))
    raise RecipeError(f"A source of two towers takes no stem for {', '.join(stems)}: its towers are what they are.")


def known_stems(tree: Any) -> dict[str, Any]:
    """The stems of a config, of its inputs and of its encoders of items."""
    if isinstance(tree, c.TextInput):
        return {kind: one.stem if isinstance(one, c.PictureConfig) else one for kind, one in tree.stems.items()}
    found: dict[str, Any] = {}
    if isinstance(tree, c.Fusion):
        found |= {kind: encoder.stem for kind, encoder in tree.encoders.items()}
    if dataclasses.is_dataclass(tree):
        for f in dataclasses.fields(tree):
            found |= known_stems(getattr(tree, f.name))
    return found


def width(config: c.ModelConfig) -> int:
    """D of the stream that media come into."""
    topology = config.topology
    if isinstance(topology, c.Fusion):
        topology = topology.tower
    if isinstance(topology, c.EncoderDecoderConfig):
        topology = topology.encoder
    if isinstance(topology, c.DualEncoderConfig):
        topology = topology.left
    if not hasattr(topology, "stack"):
        raise RecipeError(f"{config.family} counts, and has no weights that training could start from.")
    return topology.stack.dim  # type: ignore[union-attr]


def longest(config: c.ModelConfig) -> int:
    """Tokens that the learned positions reach; 0: there are none, and no end."""
    return min((one.positions.length for one in inputs(config) if isinstance(one.positions, c.Learned)), default=0)


# ------------------------------------------------------------------------------------------------ the weights, grown


@torch.no_grad()
def grow(
    state: Mapping[str, Tensor],
    source: c.ModelConfig,
    target: c.ModelConfig,
    *,
    seed: int,
    words: bool = True,
    fresh: Collection[str] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The source's weights for the target's config: (all of the target's, names of those that the source lacks).

    words  the source's table is of text
    fresh  parameters that the source is known to lack
    Raises RecipeError for a part of the body that does not fit.
    """
    model = build(target, seed)
    old, vocab = rows(source), rows(target)
    out: dict[str, Tensor] = {}
    new = []
    for name, parameter in model.named_parameters():
        there = state.get(name)
        if there is None:
            if not (name.startswith("heads.") or ".stems." in name or name in fresh):
                raise RecipeError(f"The source has no {name}, which its config asks for. Is it damaged?")
            new.append(name)
            out[name] = parameter.detach()
        elif there.shape == parameter.shape:
            out[name] = there.to(parameter.dtype)
        elif there.shape[0] == old and parameter.shape[0] == vocab and there.shape[1:] == parameter.shape[1:]:
            first = there.float().mean(0) if words else there[0].float()
            filled = first.expand(vocab - old, *there.shape[1:]).to(parameter.dtype)
            out[name] = torch.cat((there.to(parameter.dtype), filled))
        elif name.startswith("heads."):
            new.append(name)
            out[name] = parameter.detach()
        else:
            raise RecipeError(f"{name} is {tuple(there.shape)} in the source and {tuple(parameter.shape)} here.")
    return out, tuple(new)


# ------------------------------------------------------------------------------------------------ the model


def make(
    config: c.ModelConfig, recipe: Recipe, base: Mapping[str, Tensor] | None = None, start: Start | None = None
) -> Model:
    """The model at its first step: from nothing by the seed, or from the weights `base` of its start; with adapters
    where the recipe has them, and with what is frozen frozen.
    """
    if base is None:
        model = build(config, recipe.seed)
    else:
        model = build(config, device="meta")
        assign(model, {name: tensor.clone() for name, tensor in base.items()})
    if recipe.model.lora.rank:
        adapt(model, recipe, start)
    if recipe.train.freeze:
        freeze.freeze(model, recipe.train.freeze)
    return model


def adapt(model: Model, recipe: Recipe, start: Start | None) -> None:
    """Adapters beside the frozen source. What the source did not have trains as it is: stems, heads, new rows."""
    if start is None:
        raise RecipeError("model.lora adapts weights that are there: name them with --from (model.source).")
    split_rows(model, rows(model.config) - start.rows)
    lora.attach(model, lora.Lora.of(recipe.model.lora), seed=recipe.seed, new=start.new)
    names = [name for name, _ in model.named_parameters()]
    freeze.keep_only(model, [n for n in names if n in start.new or n.rpartition(".")[2] == "rows" or ".adapters." in n])


def split_rows(model: Model, new: int) -> None:
    """Let the last `new` rows of the tables of words be parameters of their own; a tied head shares the table's."""
    if not new:
        return
    size, made = rows(model.config), {}
    for module in model.modules():
        if isinstance(module, Embedding | Language) and len(module.weight) == size:
            key = id(module.weight)
            made.setdefault(key, nn.Parameter(module.weight.detach()[size - new :].clone()))
            module.rows = made[key]


@torch.no_grad()
def join_rows(model: Model) -> None:
    """Put rows that were parameters of their own back into their tables."""
    for module in model.modules():
        if isinstance(module, Embedding | Language) and module.rows is not None:
            module.weight[len(module.weight) - len(module.rows) :] = module.rows
            module.rows = None
