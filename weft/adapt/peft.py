"""Adapters in files, in the layout of the `peft` library: what it wrote is read, what is written it reads.

    adapter/
    ├── adapter_config.json          rank, alpha, which parts, of which base
    ├── adapter_model.safetensors    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (r,I) ...
    ├── weft.json                    SHA-256 of the base
    └── weft.safetensors             what an adapter cannot hold and was trained: new rows, stems, heads

Names are the family's own, by its table: our fused qkv has an adapter for each of q, k and v, as theirs. Where theirs
is fused and ours is in parts (GPT-2's c_attn), A's are laid one under the other and B's on a diagonal; equal A's once.

Shape letters:  I inputs  O outputs  r rank
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.adapt import lora
from weft.adapt.lora import WHOLE, Lora, LoraLinear
from weft.convert.header import header
from weft.convert.hf import read_json
from weft.convert.layouts import LAYOUTS, find, layouts_of
from weft.core.config import ModelConfig
from weft.errors import ConvertError
from weft.families.names import Rule, matches
from weft.model import Model

CONFIG, WEIGHTS, OURS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "weft.json", "weft.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(?P<module>.+)\.(?P<what>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)")


@dataclass(frozen=True)
class Place:
    """One of their linear modules: the matrix of ours and the parts of it that it stands for, in order."""

    path: str
    parts: tuple[str, ...]


def rules_of(config: ModelConfig, raw: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The family's table of names: of the layout that the source came in, else of its own. (): it has none."""
    if raw.get("architectures"):
        return find(raw).rules(config)
    return layouts_of(config)[0].rules(config) if config.family in {one.family for one in LAYOUTS} else ()


def places(model: Model, rules: Sequence[Rule]) -> dict[str, Place]:
    """Their module's name -> where it is in ours; without a table our own names, a fused matrix by parts."""
    sizes = lora.linear_parts(model)
    found: dict[str, Place] = {}
    for match in matches(rules, [f"{path}.weight" for path in sizes]):
        path = match.ours.removesuffix(".weight")
        parts, theirs = tuple(part for part, _ in sizes[path]), [name for name in match.theirs if name]
        if len(theirs) == len(parts):
            found |= {n.removesuffix(".weight"): Place(path, (p,)) for n, p in zip(theirs, parts, strict=True)}
        elif len(theirs) == 1:
            found[theirs[0].removesuffix(".weight")] = Place(path, parts)
    named = {place.path for place in found.values()}
    for path, parts in sizes.items():
        if path not in named:
            found |= {path if part == WHOLE else f"{path}.{part}": Place(path, (part,)) for part, _ in parts}
    return found


# ------------------------------------------------------------------------------------------------ out


@torch.no_grad()
def save(
    model: Model, folder: Path, rules: Sequence[Rule], *, name: str = lora.DEFAULT, digest: str = "",
    source: str = "", extra: Mapping[str, Tensor] | None = None,
) -> Path:  # fmt: skip
    """Write one adapter of a model. digest, source: of its base; extra: what else was trained with it."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dora, dropout = False, 0.0
    for module, place in places(model, rules).items():
        matrix = model.get_submodule(place.path)
        if not isinstance(matrix, LoraLinear) or name not in matrix.adapters:
            continue
        delta = matrix.delta(name)
        if not any(part in delta.a for part in place.parts):
            continue
        a, b, scale = joined(matrix, delta, place.parts)
        key = PREFIX + module
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        ranks[module], alphas[module] = len(a), scale * len(a)
        dropout = delta.dropout
        if len(delta.magnitude):
            dora = True
            tensors[f"{key}.lora_magnitude_vector"] = magnitude(matrix, delta, place.parts)
    if not tensors:
        raise ConvertError(f"The model has no adapter {name!r} to save.")
    rank, alpha = max(set(ranks.values()), key=list(ranks.values()).count), 0.0
    alpha = next(value for module, value in alphas.items() if ranks[module] == rank)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if "language" in model.config.heads else None,
        "base_model_name_or_path": source, "inference_mode": True, "bias": "none", "r": rank, "lora_alpha": alpha,
        "lora_dropout": dropout, "use_dora": dora, "use_rslora": False, "target_modules": sorted(ranks),
        "fan_in_fan_out": any(rule.how == "transposed" for rule in rules),
        "rank_pattern": {"^" + re.escape(m) + "$": r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {"^" + re.escape(m) + "$": a for m, a in alphas.items() if a != alpha},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / OURS).write_text(json.dumps({"base": digest, "source": source}, indent=2) + "\n", encoding="utf-8")
    if extra:
        save_file({n: t.detach().cpu().contiguous() for n, t in extra.items()}, folder / EXTRA)
    return folder


def joined(matrix: LoraLinear, delta: lora.Delta, parts: Sequence[str]) -> tuple[Tensor, Tensor, float]:
    """(r,I), (O,r) and the scale of some parts of a matrix as one."""
    scales = [delta.scales.get(part, delta.scale) for part in parts if part in delta.a]
    if len(parts) == 1:
        return delta.a[parts[0]], delta.b[parts[0]], scales[0]
    there = [part for part in parts if part in delta.a]
    same = len(there) == len(parts) and all(torch.equal(delta.a[p], delta.a[parts[0]]) for p in parts)
    if same and len(set(scales)) == 1:
        return delta.a[parts[0]], torch.cat([delta.b[part] for part in parts]), scales[0]
    sizes = dict(matrix.parts)
    blocks = [
        delta.b[part] * (delta.scales.get(part, delta.scale) / scales[0]) if part in delta.b
        else matrix.weight.new_zeros(sizes[part], 0) for part in parts
    ]  # fmt: skip
    return torch.cat([delta.a[part] for part in there]), torch.block_diag(*blocks), scales[0]


def magnitude(matrix: LoraLinear, delta: lora.Delta, parts: Sequence[str]) -> Tensor:
    """(O,) lengths of some parts' rows; of a part without an adapter those of the base."""
    rows = dict(zip([p for p, _ in matrix.parts], matrix.weight.split([n for _, n in matrix.parts]), strict=True))
    own = lambda part: delta.magnitude[part] if part in delta.magnitude else rows[part].float().norm(dim=1)
    return torch.cat([own(part) for part in parts])


# ------------------------------------------------------------------------------------------------ in


def load(
    model: Model, folder: str | Path, rules: Sequence[Rule], *, name: str = lora.DEFAULT, digests: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Lay the adapter in `folder` beside the model; what else was trained with it is returned, by our names.

    digests  SHA-256 that the base goes by; an adapter that says another one was made for another base
    Raises ConvertError: what is missing, damaged, made for another base, or of a kind that weft does not have.
    """
    folder = Path(folder)
    config, tensors = files(folder)
    said = read_json(folder / OURS).get("base", "") if (folder / OURS).is_file() else ""
    if said and digests and said not in digests:
        raise ConvertError(
            f"{folder} was made for another base: its weights hash to {said[:12]}, these to {digests[0][:12]}. "
            f"It belongs to {read_json(folder / OURS).get('source') or 'another source'}."
        )
    known = places(model, rules)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key.removeprefix(PREFIX))
        if not match or match["module"] not in known:
            raise ConvertError(f"{folder}: {key} belongs to no linear part of this model.")
        found.setdefault(match["module"], {})[match["what"].removesuffix(".weight")] = tensor
    lay(model, name, {module: known[module] for module in found}, found, config, folder)
    lora.use(model, name)
    return load_file(folder / EXTRA) if (folder / EXTRA).is_file() and header(folder / EXTRA) else {}


def files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of an adapter's directory. Raises ConvertError for one that weft cannot use."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ConvertError(f"{folder} holds no adapter: {CONFIG} and {WEIGHTS} were expected in it.")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ConvertError(f"{folder}: its peft_type is {config.get('peft_type')!r}; weft has LORA.")
    for key, usual in (("bias", "none"), ("modules_to_save", None), ("lora_bias", False), ("layer_replication", None),
                       ("trainable_token_indices", None), ("target_parameters", None)):  # fmt: skip
        if config.get(key) not in (usual, None, [], {}):
            raise ConvertError(f"{folder}: {key} is {config[key]!r}, which weft does not have.")
    header(folder / WEIGHTS)
    return config, {key: tensor.float() for key, tensor in load_file(folder / WEIGHTS).items()}


@torch.no_grad()
def lay(
    model: Model, name: str, known: Mapping[str, Place], found: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any], folder: Path,
) -> None:  # fmt: skip
    """Their tensors into deltas beside our matrices."""
    sizes = lora.linear_parts(model)
    by_path: dict[str, list[str]] = {}
    for module, place in known.items():
        by_path.setdefault(place.path, []).append(module)
    for path, modules in by_path.items():
        outputs, ranks = dict(sizes[path]), {}
        for module in modules:
            size = sum(outputs[part] for part in known[module].parts)
            check(module, found[module], size, model.get_submodule(path), folder)
            ranks |= dict.fromkeys(known[module].parts, len(found[module]["lora_A"]))
        dora = bool(config.get("use_dora"))
        recipe = Lora(1, 1.0, (), float(config.get("lora_dropout", 0.0)), dora)
        delta = lora.place(model, path, name, ranks, sizes[path], recipe)
        for module in modules:
            theirs, parts = found[module], known[module].parts
            pieces = zip(parts, theirs["lora_B"].split([outputs[p] for p in parts]), strict=True)
            for part, b in pieces:
                delta.a[part].copy_(theirs["lora_A"])
                delta.b[part].copy_(b)
                delta.scales[part] = scale(config, module, len(theirs["lora_A"]))
            if dora:
                lengths = theirs["lora_magnitude_vector"].split([outputs[p] for p in parts])
                for part, length in zip(parts, lengths, strict=True):
                    delta.magnitude[part].copy_(length)


def check(module: str, tensors: Mapping[str, Tensor], outputs: int, matrix: Any, folder: Path) -> None:
    """Raise ConvertError unless A (r,I) and B (O,r) fit the matrix and each other."""
    a, b = tensors.get("lora_A"), tensors.get("lora_B")
    if a is None or b is None:
        raise ConvertError(f"{folder}: {module} has {', '.join(tensors)} only; lora_A and lora_B were expected.")
    wanted = (len(a), matrix.in_features), (outputs, len(a))
    if (tuple(a.shape), tuple(b.shape)) != wanted:
        raise ConvertError(
            f"{folder}: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}; this model takes A {wanted[0]} and "
            f"B {wanted[1]}. It was made for another base."
        )
    length = tensors.get("lora_magnitude_vector")
    if length is not None and length.shape != (outputs,):
        raise ConvertError(f"{folder}: {module} has {tuple(length.shape)} lengths of rows; {outputs} were expected.")


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r of a module, as peft finds it: the first pattern that fits its name, else the common alpha."""
    patterns = config.get("alpha_pattern") or {}
    fits = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(fits, config.get("lora_alpha", rank)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
