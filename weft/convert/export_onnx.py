"""`weft export RUN --to onnx DIR`: a model as a graph that other programs run, with its shapes left open.

    encoder, decoder    input_ids, attention_mask (B,T) -> logits or hidden       or pixel_values (B,C,H,W) -> the same
    encoder-decoder     input_ids or input_features, decoder_input_ids (B,T') -> logits
    dual                pixel_values, input_ids, attention_mask -> scores

The graph is proven before it is kept: onnxruntime must give what the model gives, at another batch and length.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.embed import Input
from weft.core.stream import known_stems
from weft.core.topology import DualEncoder, EncoderDecoder
from weft.errors import ConvertError, MissingExtra
from weft.model import Model
from weft.run import Run

FILE, ABOUT = "model.onnx", "inputs.json"
NEEDS = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-5  # times the largest number that comes out, where that is more than 1
LONG = 12  # ids of an example


@dataclass(frozen=True)
class Example:
    """Inputs by name, and which of their axes are open: name -> {axis: what it counts}."""

    inputs: dict[str, Tensor]
    open: dict[str, dict[int, str]]


class Graph(nn.Module):
    """A model that takes its inputs in order and answers one tensor."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        found = self.model(**dict(zip(self.names, values, strict=True)))
        return found.hidden if found.logits is None else found.logits


def export_onnx(run: Run, folder: Path) -> Path:
    """Write `model.onnx`. Raises MissingExtra without the libraries, ConvertError for a model without such a graph."""
    for name in NEEDS:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"Writing ONNX (it needs {', '.join(NEEDS)})", "onnx")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConvertError(f"{folder} is there and not empty. Give a new directory.")
    model = run.model().eval()
    made = example(model, 2, LONG)
    names = list(made.inputs)
    program = traced(Graph(model, names), made)
    folder.mkdir(parents=True, exist_ok=True)
    program.save(str(folder / FILE))
    worst = prove(model, folder / FILE)
    about = {"inputs": {n: {"shape": shape(made, n), "type": str(made.inputs[n].dtype)} for n in names},
             "output": "logits" if model.config.heads or model.kind == "dual" else "hidden",
             "difference": worst}  # fmt: skip
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder


def shape(made: Example, name: str) -> list[int | str]:
    """The sizes of an input, open ones by what they count."""
    return [made.open[name].get(axis, size) for axis, size in enumerate(made.inputs[name].shape)]


def traced(graph: Graph, made: Example) -> Any:
    """The program of a graph. Raises ConvertError where a part of the model cannot be written down."""
    dims: dict[str, Any] = {}
    shapes = tuple(
        {axis: dims.setdefault(word, torch.export.Dim.DYNAMIC) for axis, word in made.open[name].items()}
        for name in graph.names
    )
    quiet, log = io.StringIO(), logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # it tells which libraries it would know besides
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(quiet):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                graph, tuple(made.inputs.values()), input_names=graph.names, output_names=["output"],
                dynamic_shapes=(shapes,), dynamo=True, verbose=False, external_data=False,
            )  # fmt: skip
    except Exception as error:  # torch wraps whatever a part raised
        deepest: BaseException = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        reason = str(deepest).strip().splitlines()
        raise ConvertError(
            f"This {graph.model.kind} of the family {graph.model.config.family!r} cannot be written as ONNX "
            f"({reason[0] if reason else type(deepest).__name__})."
        ) from error
    finally:
        log.setLevel(level)


def example(model: Model, rows: int, length: int) -> Example:
    """Inputs that the model takes, of so many rows and ids."""
    body, generator = model.body, torch.Generator().manual_seed(rows)
    inputs: dict[str, Tensor] = {}
    open: dict[str, dict[int, str]] = {}

    def add(name: str, value: Tensor, **axes: int) -> None:
        inputs[name], open[name] = value, {axis: word for word, axis in axes.items()}

    def ids(name: str, vocab: int, masked: bool) -> None:
        add(name, torch.randint(0, vocab, (rows, length), generator=generator), batch=0, length=1)
        if masked:
            mask = torch.ones(rows, length, dtype=torch.long)
            mask[0, length - 2 :] = 0
            add("attention_mask", mask, batch=0, length=1)

    stems = known_stems(body)
    if "image" in stems:
        size = picture(stems["image"], body)
        add("pixel_values", torch.randn(rows, 3 if stems["image"].features % 3 == 0 else 1, size, size,
            generator=generator), batch=0)  # fmt: skip
    if isinstance(body, EncoderDecoder):
        stem = body.encoder.input.config.stems.get("audio")
        if isinstance(stem, c.FrameStem):
            add("input_features", torch.randn(rows, stem.features // 2, 3000, generator=generator), batch=0)
        elif "image" not in stems:
            ids("input_ids", body.encoder.input.config.vocab, False)
        vocab = body.decoder.input.config.vocab
        add("decoder_input_ids", torch.randint(0, vocab, (rows, length), generator=generator), batch=0, written=1)
        return Example(inputs, open)
    if isinstance(body, DualEncoder):
        text = body.left if "image" not in body.left.input.config.stems else body.right
        ids("input_ids", text.input.config.vocab, True)
    elif "image" not in stems:
        config = next(m.config for m in body.modules() if isinstance(m, Input))
        ids("input_ids", config.vocab, True)
    return Example(inputs, open)


def picture(stem: c.Stem | c.PictureConfig, body: nn.Module) -> int:
    """The side of a picture: as large as the table of positions says, else of 4 x 4 patches."""
    channels = 3 if stem.features % 3 == 0 else 1
    side = math.isqrt(stem.features // channels)
    grids = [m.config.positions for m in body.modules() if isinstance(m, Input)]
    rows = next((grid.rows for grid in grids if isinstance(grid, c.Grid)), 4)
    return rows * side


def prove(model: Model, path: Path) -> float:
    """The largest difference to onnxruntime, on other sizes than it was written with. Raises ConvertError past 1e-5."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, length in ((2, LONG), (3, LONG - 5)):
        made = example(model, rows, length)
        with torch.no_grad():
            found = model(**made.inputs)
        wanted = found.hidden if found.logits is None else found.logits
        got = session.run(None, {name: value.numpy() for name, value in made.inputs.items()})[0]
        scale = max(1.0, float(wanted.abs().max()))
        worst = max(worst, float((torch.from_numpy(got) - wanted).abs().max()) / scale)
    if worst > CLOSE:
        raise ConvertError(f"The graph differs from the model by {worst:.2g}; at most {CLOSE:.0e} was expected.")
    return worst
