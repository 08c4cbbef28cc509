"""Model directories of the Hugging Face hub's form, in and out.

    folder/
    ├── config.json                       architecture and sizes
    ├── model.safetensors                 or model-00001-of-00003.safetensors ... and model.safetensors.index.json
    └── tokenizer.json, vocab.txt, ...    carried along

Nothing in such a directory is imported or executed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.convert import archive
from weft.convert.header import Entry, header
from weft.convert.layout import Layout, Raw
from weft.convert.layouts import find, layouts_of
from weft.convert.weights import assign, own, to_ours, to_theirs
from weft.core import config as c
from weft.errors import ConvertError
from weft.model import Model, build

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLED = "pytorch_model.bin"  # of older directories; read if there is nothing better
SHARD = 5 * 10**9  # bytes of one file, unless told otherwise
FIXED = 1e-3  # how far a computed table may be from a stored one, which may have been rounded to float16
LARGEST = 10**7  # bytes of a config.json

# What travels beside the weights, if it is there.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "1_Pooling/config.json", "normalizer.json",
)  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """A model of another layout, in ours.

    config         our tree
    state          our tensors, a shared one once
    raw            config.json as it was, or as it would be ({}: no such layout)
    files          what lay beside it: name -> path (tokenizer, preprocessing)
    tokenizer      where there is one (`tokenizers.Tokenizer`)
    chat_template  Jinja text, or ""
    special        special tokens by their part: {"eos": [2], "bos": [1], "pad": [0]}
    preprocessing  how media are made ready: image mean and std, size, ...
    """

    config: c.ModelConfig
    state: dict[str, Tensor]
    raw: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    tokenizer: Any = None
    chat_template: str = ""
    special: dict[str, list[int]] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int = 0) -> Model:
        """The model with these weights; parts that the files lack (optional ones) start by the seed."""
        model = build(self.config, device="meta")
        if set(own(model)) - set(self.state):
            model = build(self.config, seed)
        assign(model, self.state)
        return model.eval()


def load_hf(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> Imported:
    """Read a directory. dtype: what floating tensors become; None: as they are stored.

    Raises ConvertError: an unknown architecture, damaged files, tensors that do not fit the config, by name.
    """
    folder = Path(folder)
    raw = read_config(folder)
    layout = find(raw)
    config = layout.read(raw)
    stored: dict[str, Tensor] = {}
    if only_pickled(folder):
        stored = archive.tensors(folder / PICKLED, archive.load_archive(folder / PICKLED))
    entries = {} if stored else shards(folder)
    count = len(stored) + sum(len(shard) for shard in entries.values())
    if (layers := deepest(config)) > count:
        raise ConvertError(f"{folder}: the config has {layers:,} layers, but the files hold {count} tensors.")
    for path in entries:
        stored |= load_file(path)
    theirs = {name: cast(tensor, dtype) for name, tensor in stored.items()}
    try:
        config, state = converted(raw, theirs)
    except ConvertError as error:
        raise ConvertError(f"{folder}: {error}") from error
    files = {name: folder / name for name in COMPANIONS if (folder / name).is_file()}
    return Imported(
        config,
        state,
        raw,
        files,
        chat_template=chat_template(files),
        special=special(raw, files),
        preprocessing=read_json(files["preprocessor_config.json"]) if "preprocessor_config.json" in files else {},
    )


def converted(raw: Raw, theirs: dict[str, Tensor]) -> tuple[c.ModelConfig, dict[str, Tensor]]:
    """Our tree and our tensors from a config.json and its tensors. Raises ConvertError by name."""
    layout = find(raw)
    theirs = without_fixed(prefixed(theirs, layout), layout, raw)
    config = layout.settle(layout.read(raw), theirs)
    return config, to_ours(layout.rules(config), theirs, build(config, device="meta"), layout.ignore)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Raises ConvertError if there is none, or it is none."""
    if not (folder / CONFIG).is_file():
        raise ConvertError(f"{folder} holds no {CONFIG}. A model directory has config.json and model.safetensors.")
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises ConvertError if it is none."""
    if path.stat().st_size > LARGEST:
        raise ConvertError(f"{path} has {path.stat().st_size:,} bytes; at most {LARGEST:,} were expected.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(f"{path} cannot be read ({error}).") from error
    if not isinstance(raw, dict):
        raise ConvertError(f"{path} is a {type(raw).__name__}; a JSON object was expected.")
    return raw


def chat_template(files: Mapping[str, Path]) -> str:
    """The Jinja text of a directory's chat template, empty if it has none; of several, the one named "default"."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(files[name]).get("chat_template", "") if name in files else ""
        if isinstance(found, list):
            found = next(
                (t.get("template", "") for t in found if isinstance(t, dict) and t.get("name") == "default"), ""
            )
        if isinstance(found, str) and found:
            return found
    return ""


def special(raw: Raw, files: Mapping[str, Path]) -> dict[str, list[int]]:
    """Ids of special tokens by their part, as the generation config says, else config.json."""
    sources = [read_json(files[name]) for name in ("generation_config.json",) if name in files] + [dict(raw)]
    found = {}
    for part in ("bos", "eos", "pad", "decoder_start", "sep", "cls", "mask"):
        key = part + "_token_id"
        value = next((source[key] for source in sources if source.get(key) is not None), None)
        if value is not None:
            found[part] = [int(item) for item in (value if isinstance(value, list) else [value])]
    return found


def only_pickled(folder: Path) -> bool:
    """Whether the weights are there in torch's own form alone."""
    return (folder / PICKLED).is_file() and not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file()


def shards(folder: Path) -> dict[Path, dict[str, Entry]]:
    """The files of a directory and the tensors in each, all headers checked."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: header(folder / WEIGHTS)}
    index = folder / INDEX
    if not index.is_file():
        other = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.h5"))
        hint = f" {', '.join(other[:3])} cannot be read: convert it to safetensors first." if other else ""
        raise ConvertError(f"{folder} holds neither {WEIGHTS} nor {INDEX}.{hint}")
    try:
        place = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = {str(name): str(file) for name, file in place.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{index} has no weight_map that can be read ({error}).") from error
    found = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ConvertError(f"{index} names {file!r}, which is no file in {folder}.")
        found[folder / file] = header(folder / file)
        said = {name for name, where in named.items() if where == file}
        if said != set(found[folder / file]):
            differ = sorted(said ^ set(found[folder / file]))
            raise ConvertError(f"{index} and {file} do not hold the same tensors: {', '.join(differ[:6])}.")
    return found


def deepest(config: Any) -> int:
    """Layers of all stacks in a tree."""
    if isinstance(config, c.StackConfig):
        return config.depth
    if isinstance(config, dict):
        return sum(map(deepest, config.values()))
    return sum(deepest(value) for value in vars(config).values()) if hasattr(config, "__dict__") else 0


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floating tensors in `dtype`; others as they are."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def prefixed(theirs: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """All names as the rules have them: a body saved by itself lacks the prefix, old files have older names."""
    for old, new in layout.older.items():
        theirs = {name.removesuffix(old) + new if name.endswith(old) else name: t for name, t in theirs.items()}
    for old, new in layout.renamed:
        theirs = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in theirs.items()}
    if not layout.prefix or any(name.startswith(layout.prefix) for name in theirs):
        return theirs
    return {layout.prefix + name: tensor for name, tensor in theirs.items()}


def without_fixed(theirs: dict[str, Tensor], layout: Layout, raw: Raw) -> dict[str, Tensor]:
    """What is left without the tensors that weft computes. Raises ConvertError for one that holds other numbers."""
    if layout.fixed is None:
        return theirs
    for name, tensor in layout.fixed(raw).items():
        given = theirs.get(name)
        if given is not None and (given.shape != tensor.shape or (given.float() - tensor).abs().max() > FIXED):
            raise ConvertError(f"{name} {tuple(given.shape)} holds other numbers than follow from the config.")
    return {name: tensor for name, tensor in theirs.items() if name not in layout.fixed(raw)}


def save_hf(
    model: Model,
    folder: str | Path,
    raw: Raw | None = None,
    *,
    files: Mapping[str, Path] | None = None,
    dtype: torch.dtype | None = torch.float32,
    shard_bytes: int = SHARD,
) -> Path:
    """Write a model as a directory that the ecosystem reads.

    raw    config.json of the directory it came from; None: it was made here, and its family's layout is taken
    files  companions to copy: name -> path
    Raises ConvertError if the layout cannot say all that the config says, and for a directory that is not empty.
    """
    folder, raw = Path(folder), dict(raw or {})
    layout, tree = sayable([find(raw)] if raw else layouts_of(model.config), model.config, raw)
    tensors = to_theirs(layout.rules(model.config), model)
    if layout.fixed is not None:
        tensors |= layout.fixed(tree)
    if layout.prefix and tree["architectures"][0] in layout.bare:
        tensors = {name.removeprefix(layout.prefix): tensor for name, tensor in tensors.items()}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConvertError(f"{folder} is there and not empty. Give a new directory.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: cast(tensor, dtype).cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_shards(folder, tensors, shard_bytes)
    kept = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    tree.pop("torch_dtype", None)
    tree["dtype"] = str(kept).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    for name, path in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return folder


def sayable(layouts: list[Layout], config: c.ModelConfig, raw: Raw) -> tuple[Layout, dict[str, Any]]:
    """The first layout that can say all of a config, and its config.json. Raises the first one's ConvertError."""
    errors = []
    for layout in layouts:
        try:
            return layout, written(layout, config, raw)
        except ConvertError as error:
            errors.append(error)
    raise errors[0]


def written(layout: Layout, config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """config.json of a config, proven by reading it again. Raises ConvertError where something would be lost."""
    tree = layout.write(config, raw)
    again = layout.read(json.loads(json.dumps(tree)))
    if lost := difference(settled(c.to_tree(config)), settled(c.to_tree(again))):
        raise ConvertError(f"The layout of {layout.architectures[0]} cannot say all of this model: {lost}.")
    return tree


def settled(tree: Any) -> Any:
    """A tree without what a config.json need not carry, defaults filled in.

    That is: how weights start, dropout, the family, the names of heads.
    """
    if isinstance(tree, list):
        return [settled(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    out = {key: settled(value) for key, value in tree.items() if key not in ("init", "dropout", "family")}
    if "heads" in out and "topology" in out:
        out["heads"] = sorted(out["heads"].values(), key=lambda head: head["type"])
    for part in (out.get("attention"), out.get("cross")):
        if isinstance(part, dict) and "heads" in part and "dim" in out:
            part["kv_heads"] = part["kv_heads"] or part["heads"]
            part["head_dim"] = part["head_dim"] or out["dim"] // part["heads"]
            part["out_bias"] = part["bias"] if part["out_bias"] is None else part["out_bias"]
    return out


def difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two trees first differ; empty if nowhere."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            if found := difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key):
                return found
        return ""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next(
            (d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if (d := difference(a, b, f"{path}[{i}]"))),
            "",
        )
    return "" if ours == theirs else f"{path} is {named(ours)}, it would be read as {named(theirs)}"


def named(value: Any) -> str:
    return value["type"] if isinstance(value, dict) and "type" in value else repr(value)[:60]


def write_shards(folder: Path, tensors: dict[str, Tensor], most: int) -> None:
    """One file, or several of at most `most` bytes (a larger tensor has one of its own) and their index."""
    groups: list[dict[str, Tensor]] = [{}]
    taken = 0
    for name, tensor in tensors.items():
        if groups[-1] and taken + tensor.nbytes > most:
            groups.append({})
            taken = 0
        groups[-1][name] = tensor
        taken += tensor.nbytes
    if len(groups) == 1:
        save_file(groups[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    place = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(group, file)
    total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": place}, indent=2) + "\n", encoding="utf-8")
