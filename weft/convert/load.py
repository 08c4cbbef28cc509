"""`weft.load`: a model from whatever holds one.

runs/mine            a run directory      recipe.toml in it
models/gpt2          a hub's directory    config.json with a model_type in it
model.gguf, ...      a weight file        by its ending, see READERS
smollm2, ...         a pretrained model   by its name, see pretrained.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.convert.pretrained import PRETRAINED, find
from weft.errors import ConvertError
from weft.run import RECIPE, Run

if TYPE_CHECKING:
    from weft.convert.hf import Imported
    from weft.model import Model

DIRECTORY = "directory"

# What a source is -> module:function that reads it, (Path) -> Imported.
READERS: dict[str, str] = {
    DIRECTORY: "weft.convert.hf:load_hf",
    ".gguf": "weft.convert.gguf.llama:load_gguf",
    ".pt": "weft.convert.whisper:load_whisper",
    ".onnx": "weft.convert.onnx:load_onnx",
}


def load(source: str | Path, device: str = "cpu") -> Model:
    """The model of a run directory, a model directory or a weight file, ready to predict: `weft.load("runs/mine")`.

    Raises RunError or ConvertError: what is wrong with the source.
    """
    path = named(source)
    if (path / RECIPE).is_file():
        return Run.open(path).model(device)
    return read(path).model().to(device)


def read(source: str | Path) -> Imported:
    """Weights of another layout. Raises ConvertError for what is not there or not known."""
    path = named(source)
    kind = DIRECTORY if path.is_dir() else path.suffix
    if not path.exists():
        raise ConvertError(
            f"{source} is not there. Name a run, a model directory, a weight file, or one of {', '.join(PRETRAINED)}."
        )
    if kind not in READERS:
        raise ConvertError(f"{source} is no kind of weight file that weft reads. It reads {', '.join(READERS)}.")
    return reached(READERS[kind])(path)


def named(source: str | Path) -> Path:
    """A path as it is, or that of a pretrained model by its name. A file of that name comes first."""
    path = Path(source)
    return find(str(source)) if not path.exists() and str(source) in PRETRAINED else path


def foreign(source: str | Path) -> bool:
    """Whether a source is there and no run that was trained here: it has no renderer, only what came with it."""
    path = Path(source)
    if not path.exists():
        return str(source) in PRETRAINED
    if (path / RECIPE).is_file():
        return not (path / "renderer.json").is_file() and (path / "source.json").is_file()
    return path.is_file() or (path / "config.json").is_file()


def reached(place: str) -> Callable[..., Any]:
    """The function at "module:name", imported now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
