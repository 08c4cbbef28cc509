"""ONNX files: a DINOv2-like ViT out of one, and a run's model into one.

    initialisers   named like the layout's tensors, but for the matrices: an exporter turns those around and numbers
                   them (`onnx::MatMul_1966`), so they are named here by the bias that is added to their product

Reading needs no library: the file is mapped, its messages are walked (`protobuf.py`), and every tensor is checked
against the bytes that are there. Nothing of the graph is run.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.convert.hf import Imported
from weft.convert.layouts import vit as layouts
from weft.convert.protobuf import Value, fields, text, varint, view
from weft.convert.weights import to_ours
from weft.errors import ConvertError
from weft.model import build

# Fields of onnx.proto3.
GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, OUTPUT, OPERATION = 1, 2, 4
DIMS, TYPE, NAME, RAW, FLOATS = 1, 2, 8, 9, 4
FLOAT, HALF = 1, 10
SIZES = {FLOAT: 4, HALF: 2}
# What DINOv2 pictures were trained with (ImageNet's mean and standard deviation).
PREPROCESSING = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass
class Graph:
    """Initialisers by name, and nodes as (operation, inputs, outputs)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[tuple[str, list[str], list[str]]] = field(default_factory=list)


def read_graph(path: Path) -> Graph:
    """The floating initialisers of a file, and its nodes. Raises ConvertError for what is no ONNX file."""
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read ({error}).") from error
    graph = Graph()
    try:
        found = [value for number, value in fields(data) if number == GRAPH]
        if len(found) != 1:
            raise ConvertError("it holds no graph")
        for number, value in fields(view(found[0])):
            if number == NODE:
                graph.nodes.append(node(view(value)))
            elif number == INITIALIZER:
                name, tensor = initialiser(view(value))
                if tensor is not None:
                    graph.tensors[name] = tensor
    except ConvertError as error:
        raise ConvertError(f"{path} is no ONNX file that can be read: {error}") from error
    return graph


def node(data: memoryview) -> tuple[str, list[str], list[str]]:
    """operation, names of inputs, names of outputs."""
    inputs, outputs, operation = [], [], ""
    for number, value in fields(data):
        if number == INPUT:
            inputs.append(text(value))
        elif number == OUTPUT:
            outputs.append(text(value))
        elif number == OPERATION:
            operation = text(value)
    return operation, inputs, outputs


def initialiser(data: memoryview) -> tuple[str, Tensor | None]:
    """Name and numbers, as a view of the file; None for a type that is no float."""
    shape: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for number, value in fields(data):
        if number == DIMS:
            shape += sizes(value)
        elif number == TYPE and isinstance(value, int):
            kind = value
        elif number == NAME:
            name = text(value)
        elif number in (RAW, FLOATS):
            raw = view(value)
    if kind not in SIZES:
        return name, None
    if math.prod(shape) * SIZES[kind] != len(raw) or any(size >= 1 << 31 for size in shape):
        raise ConvertError(f"the tensor {name!r} says {shape}, but has {len(raw):,} bytes")
    numbers = np.frombuffer(raw, np.float32 if kind == FLOAT else np.float16).reshape(shape)
    return name, torch.from_numpy(numbers.astype(np.float32))


def sizes(value: Value) -> list[int]:
    """A size, or several packed into one field."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        size, at = varint(value, at)
        found.append(size)
    return found


def named(graph: Graph) -> dict[str, Tensor]:
    """The tensors by the layout's names: a matrix gets the name of the bias that its product meets."""
    tensors = dict(graph.tensors)
    product: dict[str, str] = {}  # output of a MatMul -> its matrix
    for operation, inputs, outputs in graph.nodes:
        if operation == "MatMul" and len(inputs) == 2 and inputs[1] in graph.tensors:
            product[outputs[0]] = inputs[1]
        elif operation == "Add":
            for bias, other in (inputs, inputs[::-1]):
                if bias.endswith(".bias") and bias in graph.tensors and other in product:
                    matrix = tensors.pop(product[other], None)
                    if matrix is not None:
                        tensors[bias.removesuffix("bias") + "weight"] = matrix.T
    return tensors


def load_onnx(path: str | Path) -> Imported:
    """A DINOv2-like ViT from an exported graph: `backbone.embeddings...`, `backbone.encoder.layer...`.

    The features alone are read: what else the graph makes of them (`decoder...`) is no part of the model. Raises
    ConvertError for a graph that holds no such ViT.
    """
    path = Path(path)
    tensors = named(read_graph(path))
    body = "backbone.embeddings.cls_token"
    if body not in tensors or "backbone.layernorm.weight" not in tensors:
        raise ConvertError(f"{path} holds no ViT: there is no {body} in it. Of ONNX files weft reads DINOv2-like ones.")
    theirs = {"dinov2." + n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    raw = config(theirs, path)
    positions(theirs, tensors, raw, path)
    tree = layouts.read_dinov2(raw)
    try:
        state = to_ours(layouts.rules_dinov2(tree), theirs, build(tree, device="meta"))
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from error
    return Imported(tree, state, raw, preprocessing=PREPROCESSING)


def config(theirs: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes told from the shapes, as the hub's config.json."""
    patch = theirs["dinov2.embeddings.patch_embeddings.projection.weight"]
    dim, channels, side, _ = patch.shape
    layers = {int(name.split(".")[3]) for name in theirs if name.startswith("dinov2.encoder.layer.")}
    up = theirs.get("dinov2.encoder.layer.0.mlp.fc1.weight")
    if layers != set(range(len(layers))) or up is None or dim % 64:
        raise ConvertError(f"{path}: its layers are none of a DINOv2.")
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": dim,
        "num_hidden_layers": len(layers),
        "num_attention_heads": dim // 64,  # as all of them have
        "mlp_ratio": up.shape[0] // dim,
        "num_channels": channels,
        "patch_size": side,
        "use_mask_token": False,
    }


def positions(theirs: dict[str, Tensor], tensors: dict[str, Tensor], raw: dict[str, Any], path: Path) -> None:
    """The table of positions: whole, or as an exporter folds it, its first row apart from the grid (1,n*n,D)."""
    dim, name = raw["hidden_size"], "dinov2.embeddings.position_embeddings"
    if name not in theirs:
        rest = [t for n, t in tensors.items() if not n.startswith("backbone.") and t.dim() == 3 and t.shape[2] == dim]
        first = [t for t in rest if t.shape[1] == 1]
        grid = [t for t in rest if t.shape[1] > 1 and math.isqrt(t.shape[1]) ** 2 == t.shape[1]]
        if len(first) != 1 or len(grid) != 1:
            raise ConvertError(f"{path}: the table of positions was not found.")
        theirs[name] = torch.cat((first[0], grid[0]), 1)
    raw["image_size"] = math.isqrt(theirs[name].shape[1] - 1) * raw["patch_size"]
