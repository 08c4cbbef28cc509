"""A GGUF file from metadata and tensors, and a run's model as one: `weft export RUN --to gguf DIR`.

    gguf        matrices in F16        gguf-f32        in F32        gguf-q8_0        in Q8_0

Norms and biases stay F32, as llama.cpp wants them. What was written is read again before it takes its place.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from weft.convert.gguf.llama import ARCHITECTURES, THEIRS, heads_of, renamed, stretching, turned
from weft.convert.gguf.read import ALIGNMENT, MAGIC, read
from weft.convert.gguf.types import NAMED, Kind, quantise
from weft.convert.gguf.vocabulary import entries
from weft.convert.hf import sayable
from weft.convert.layouts import find, layouts_of
from weft.convert.text import of_run
from weft.convert.weights import to_theirs
from weft.errors import ConvertError
from weft.run import Run

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}  # general.file_type
# numpy dtype of an array -> its type there
ARRAYS = {"int32": 5, "uint32": 4, "float32": 6, "int64": 11}
KEYS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.value_length": "head_dim", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size",
}  # fmt: skip


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Tensor, Kind]]) -> None:
    """Write a file. metadata: texts, bools, whole numbers, floats, lists of texts, numpy arrays of numbers."""
    staged = path.with_name(f".{path.name}.new")
    with open(staged, "wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(text(key) + value_of(value))
        offset = 0
        for name, (tensor, kind) in tensors.items():
            shape = tensor.shape[::-1]
            file.write(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind.number, offset))
            offset += up(tensor.numel() // kind.size * kind.bytes)
        fill(file)
        for tensor, kind in tensors.values():
            file.write(quantise(tensor.detach().float().cpu().numpy(), kind).tobytes())
            fill(file)
    read(staged)  # by the strict reader: what it would refuse is not left behind
    staged.replace(path)


def text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value_of(value: Any) -> bytes:
    """The type and the value of an entry."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if 0 <= value < 1 << 32 else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, ARRAYS[str(value.dtype)], len(value)) + value.tobytes()
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def up(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def fill(file: IO[bytes]) -> None:
    file.write(bytes(up(file.tell()) - file.tell()))


def export_gguf(run: Run, out: Path, kind: str) -> Path:
    """A run's model as a .gguf: at `out` if that ends in .gguf, else as a file in that folder.

    Raises ConvertError for a model that is not llama-like, and a tokenizer that a GGUF has no form for.
    """
    from weft.convert.transfer import told

    raw = told(run).get("config") or {}
    layout, tree = sayable([find(raw)] if raw else layouts_of(run.config), run.config, raw)
    known = {ours: name for name, (ours, _) in ARCHITECTURES.items()}
    if tree["architectures"][0] not in known:
        raise ConvertError(f"A GGUF is written of {', '.join(known)}, not of {tree['architectures'][0]}.")
    if (run.path / "renderer.json").is_file() and "role" in run.renderer.vocabulary.blocks:
        raise ConvertError(
            f"{run.path} learned conversations in roles of weft's own, for which a GGUF has no template. Start from a "
            "model with a chat template (--from), or export to hf."
        )
    name = known[tree["architectures"][0]]
    tensors = theirs(to_theirs(layout.rules(run.config), run.model()), tree, name, kind)
    metadata = described(run, tree, name) | {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
    metadata |= entries(of_run(run)[0], tree["vocab_size"])
    path = out if out.suffix == ".gguf" else out / f"{run.path.name}-{kind}.gguf"
    if path.exists():
        raise ConvertError(f"{path} is there already. Give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, metadata, tensors)
    return path


def theirs(
    tensors: Mapping[str, Tensor], tree: Mapping[str, Any], name: str, kind: str
) -> dict[str, tuple[Tensor, Kind]]:
    """Tensors under llama.cpp's names, q and k turned, each with the format that it is written in."""
    out = {}
    for ours, tensor in tensors.items():
        if ARCHITECTURES[name][1] and (heads := heads_of(ours, tree)):
            tensor = turned(tensor, heads)
        chosen = NAMED[kind] if tensor.dim() > 1 else NAMED["F32"]
        if tensor.shape[-1] % chosen.size:
            chosen = NAMED["F16"]  # rows that do not divide into blocks
        out[renamed(ours, THEIRS)] = (tensor, chosen)
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    if rope.get("rope_type") == "llama3":
        factors = stretching(rope, {**tree, "rope_theta": theta(tree)})
        out["rope_freqs.weight"] = (factors, NAMED["F32"])
    return out


def theta(tree: Mapping[str, Any]) -> float:
    """The base of the rotation, wherever the config says it."""
    return float((tree.get("rope_parameters") or {}).get("rope_theta") or tree.get("rope_theta") or 10_000.0)


def described(run: Run, tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The model's own entries. Raises ConvertError for a rotation that a GGUF has no form for."""
    out: dict[str, Any] = {"general.architecture": name, "general.type": "model", "general.name": run.path.name}
    out |= {f"{name}.{key}": int(tree[ours]) for key, ours in KEYS.items()}
    out[f"{name}.attention.layer_norm_rms_epsilon"] = float(tree["rms_norm_eps"])
    out[f"{name}.rope.freq_base"] = theta(tree)
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        out |= {f"{name}.rope.scaling.type": kind, f"{name}.rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            out[f"{name}.rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    elif kind not in ("default", "llama3"):
        raise ConvertError(f"A GGUF has no form for a rotation scaled by {kind!r}.")
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or (tree.get("sliding_window") and name == "llama"):
        raise ConvertError("A GGUF of this architecture has no partial rotation and no window.")
    return out


as_f32, as_f16, as_q8_0 = (partial(export_gguf, kind=kind) for kind in ("F32", "F16", "Q8_0"))
