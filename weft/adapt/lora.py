"""Low-rank adapters: a frozen matrix and a small one beside it that learns.

    x (..,I) ─┬─ W (O,I) frozen ──────────────────(+)── y (..,O)      W is fused of parts (q, k, v; gate, up):
              └─ A (r,I) ── B (O,r), 0 at first ── * alpha/r          each part has an A and a B of its own

Hu et al. 2021. B starts at zero, so the first step starts from the base to the bit. DoRA (Liu et al. 2024, eq. 5) lets
the length of each row of W + BA be learned apart from its direction, starting from the rows of W.

A matrix with adapters is still a `Linear` of the same name; several adapters may lie beside it, one or none in use.

Shape letters:  I inputs  O outputs  P outputs of one part  r rank
"""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adapt.patterns import matched
from weft.core.attention import Attention, CrossAttention
from weft.core.feedforward import FeedForward
from weft.core.fuse import Encoder
from weft.core.layers import Linear
from weft.core.stack import Stack
from weft.errors import RecipeError, nearest
from weft.recipe import LoraRecipe

WHOLE = "whole"  # the part of a matrix that is not fused
ALL = "all"  # every linear part of the stacks
DEFAULT = "default"


@dataclass(frozen=True)
class Lora:
    """What an adapter is made like.

    rank     r; alpha: its product is multiplied with alpha / rank
    target   patterns of linear parts; "all": every one in the stacks
    dropout  of the adapter's input, in training
    dora     learn the length of each row apart
    """

    rank: int = 8
    alpha: float = 16.0
    target: tuple[str, ...] = (ALL,)
    dropout: float = 0.0
    dora: bool = False

    @classmethod
    def of(cls, recipe: LoraRecipe) -> Lora:
        """As a recipe says it."""
        return cls(recipe.rank, recipe.alpha or 2.0 * recipe.rank, recipe.target, recipe.dropout, recipe.dora)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Delta(nn.Module):
    """One adapter of one matrix: for each of its parts an A, a B, and for DoRA the lengths of the rows."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], inputs: int, lora: Lora, device: torch.device) -> None:
        """sizes: part -> (P, r)."""
        super().__init__()
        self.scale, self.dropout, self.scales = lora.scale, lora.dropout, {}
        make = lambda *shape: nn.Parameter(torch.zeros(*shape, device=device))
        self.a = nn.ParameterDict({part: make(rank, inputs) for part, (_, rank) in sizes.items()})
        self.b = nn.ParameterDict({part: make(size, rank) for part, (size, rank) in sizes.items()})
        rows = {part: make(size) for part, (size, _) in sizes.items()} if lora.dora else {}
        self.magnitude = nn.ParameterDict(rows)

    def product(self, part: str) -> Tensor:
        """(P,I): what is added to the part's matrix."""
        return self.b[part] @ self.a[part] * self.scales.get(part, self.scale)

    def factor(self, part: str, weight: Tensor) -> Tensor:
        """(P,) of DoRA: learned length over the length of W + BA, which is taken as a constant (section 4.3)."""
        with torch.no_grad():
            length = torch.linalg.vector_norm(weight.float() + self.product(part).float(), dim=1)
        return self.magnitude[part] / length

    def forward(self, x: Tensor, base: Tensor, matrix: LoraLinear) -> Tensor:  # (..,I), (..,O) -> (..,O)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        low = F.linear(x, torch.cat(list(self.a.values())))  # (..,I) -> (.., r of every part)
        pieces = dict(zip(self.a, low.split([a.shape[0] for a in self.a.values()], -1), strict=True))
        added, start = [], 0
        for part, size in matrix.parts:
            rows = slice(start, start + size)
            start += size
            if part not in pieces:
                added.append(base.new_zeros(*base.shape[:-1], size))
                continue
            delta = F.linear(pieces[part], self.b[part]) * self.scales.get(part, self.scale)
            if part in self.magnitude:
                factor = self.factor(part, matrix.weight[rows]).to(base.dtype)
                plain = base[..., rows] if matrix.bias is None else base[..., rows] - matrix.bias[rows].to(base.dtype)
                delta = (factor - 1) * plain + factor * delta
            added.append(delta)
        return base + (added[0] if len(added) == 1 else torch.cat(added, -1))


class LoraLinear(nn.Linear):
    """A linear part with adapters beside it. Its own weight and bias are the very parameters of the part before."""

    def __init__(self, base: nn.Linear, parts: Sequence[tuple[str, int]]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.parts, self.active = tuple(parts), ""
        self.adapters = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:  # (..,I) -> (..,O)
        base = F.linear(x, self.weight, self.bias)
        return self.adapters[self.active](x, base, self) if self.active in self.adapters else base

    def delta(self, name: str) -> Delta:
        """One of its adapters."""
        return cast(Delta, self.adapters[name])

    @torch.no_grad()
    def merged(self, name: str) -> Tensor:
        """(O,I) the matrix with an adapter in it, summed in double precision."""
        delta, out, start = self.delta(name), self.weight.double().clone(), 0
        for part, size in self.parts:
            if part in delta.a:
                rows = slice(start, start + size)
                out[rows] += delta.b[part].double() @ delta.a[part].double() * delta.scales.get(part, delta.scale)
                if part in delta.magnitude:
                    length = torch.linalg.vector_norm(out[rows], dim=1)
                    out[rows] *= (delta.magnitude[part].double() / length)[:, None]
            start += size
        return out.to(self.weight.dtype)


# ------------------------------------------------------------------------------------------------ where they may be


def linear_parts(model: nn.Module) -> dict[str, tuple[tuple[str, int], ...]]:
    """Path of every linear part -> its parts and their outputs, in the order of its rows."""
    fused: dict[int, tuple[tuple[str, int], ...]] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            fused[id(module.qkv)] = tuple(zip(("q", "k", "v"), module.sizes, strict=True))
        elif isinstance(module, CrossAttention):
            half = module.kv.out_features // 2
            fused[id(module.kv)] = (("k", half), ("v", half))
        elif isinstance(module, FeedForward) and module.gated:
            half = module.up.out_features // 2
            fused[id(module.up)] = (("gate", half), ("up", half))
    return {
        path: fused.get(id(module), ((WHOLE, module.out_features),))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def targets(model: nn.Module, patterns: Sequence[str], new: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Path -> the parts of it that some pattern means: "attn.qkv" all three, "attn.qkv.v" one, "all" the stacks'.

    "all" leaves out encoders of items: they are named by a pattern of their own. So are `new` parameters, which train
    as they are.

    Raises RecipeError for a pattern that fits nothing.
    """
    parts = {path: of for path, of in linear_parts(model).items() if f"{path}.weight" not in new}
    inside = {id(m) for stack in model.modules() if isinstance(stack, Stack) for m in stack.modules()}
    inside -= {id(m) for encoder in model.modules() if isinstance(encoder, Encoder) for m in encoder.modules()}
    full = {f"{path}.{part}" if part != WHOLE else path: (path, part) for path in parts for part, _ in parts[path]}
    said = [pattern for pattern in patterns if pattern != ALL]
    found = {full[name] for name in matched(said, full, "lora target")}
    if ALL in patterns:
        found |= {one for one in full.values() if id(model.get_submodule(one[0])) in inside}
    chosen = {path: tuple(part for part, _ in of if (path, part) in found) for path, of in parts.items()}
    chosen = {path: names for path, names in chosen.items() if names}
    if not chosen:
        raise RecipeError(f"lora target: {', '.join(patterns)} means no linear part of this model.")
    return chosen


# ------------------------------------------------------------------------------------------------ adapters on a model


def attach(model: nn.Module, lora: Lora, name: str = DEFAULT, seed: int = 0, new: Collection[str] = ()) -> list[str]:
    """Lay a new adapter beside every target and use it. Returns the paths. new: parameters that train as they are.

    A starts as in Hu et al.'s code (uniform, fan_in^-1/2), the same numbers for the same seed and path; B at zero.
    Raises RecipeError for a target that fits nothing, or a rank that means nothing.
    """
    if lora.rank < 1:
        raise RecipeError(f"The rank of an adapter is {lora.rank}; expected 1 or more.")
    sizes = linear_parts(model)
    for path, parts in targets(model, lora.target, new).items():
        delta = place(model, path, name, dict.fromkeys(parts, lora.rank), sizes[path], lora)
        matrix = cast(LoraLinear, model.get_submodule(path))
        start = 0
        for part, size in sizes[path]:
            if part in parts:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(f"{path}.{part}".encode()))
                bound = 1 / math.sqrt(matrix.in_features)
                with torch.no_grad():
                    drawn = torch.rand(delta.a[part].shape, generator=generator) * 2 * bound - bound
                    delta.a[part].copy_(drawn)
                    if part in delta.magnitude:
                        rows = matrix.weight[start : start + size].float()
                        delta.magnitude[part].copy_(torch.linalg.vector_norm(rows, dim=1))
            start += size
    use(model, name)
    return [
        path for path, module in model.named_modules() if isinstance(module, LoraLinear) and name in module.adapters
    ]


def place(
    model: nn.Module, path: str, name: str, ranks: Mapping[str, int], parts: Sequence[tuple[str, int]], lora: Lora
) -> Delta:  # fmt: skip
    """An adapter of zeros beside one matrix, whose module becomes a LoraLinear if it is none yet."""
    if not re.fullmatch(r"[\w-]+", name):
        raise RecipeError(f"An adapter is called {name!r}; letters, digits, _ and - were expected.")
    matrix = model.get_submodule(path)
    if not isinstance(matrix, LoraLinear):
        matrix = LoraLinear(cast(nn.Linear, matrix), parts)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, matrix)
    sizes = {part: (size, ranks[part]) for part, size in parts if part in ranks}
    matrix.adapters[name] = delta = Delta(sizes, matrix.in_features, lora, matrix.weight.device)
    return delta


def adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that lie beside the model."""
    return list(dict.fromkeys(name for m in model.modules() if isinstance(m, LoraLinear) for name in m.adapters))


def active(model: nn.Module) -> str:
    """The adapter in use; "": none."""
    return next((m.active for m in model.modules() if isinstance(m, LoraLinear)), "")


def use(model: nn.Module, name: str) -> None:
    """Let the model answer with an adapter, or as its base (""). Raises RecipeError for one that it does not have."""
    if name and name not in adapters(model):
        raise RecipeError(f"There is no adapter {name!r}.{nearest(name, adapters(model))}")
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.active = name


@contextlib.contextmanager
def using(model: nn.Module, name: str) -> Iterator[None]:
    """`use`, for as long as the block lasts."""
    before = active(model)
    use(model, name)
    try:
        yield
    finally:
        use(model, before)


def merge(model: nn.Module, name: str = DEFAULT) -> None:
    """Put an adapter into its matrices and take all adapters away: plain linear parts again."""
    if name not in adapters(model):
        raise RecipeError(f"There is no adapter {name!r} to merge.{nearest(name, adapters(model))}")
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            if name in module.adapters:
                with torch.no_grad():
                    module.weight.copy_(module.merged(name))
            strip(model, path, module)


def strip(model: nn.Module, path: str, matrix: LoraLinear) -> None:
    """The linear part as it was before adapters came."""
    with torch.device("meta"):
        plain = Linear(matrix.in_features, matrix.out_features, bias=matrix.bias is not None)
    plain.weight, plain.bias = matrix.weight, matrix.bias
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, plain)
