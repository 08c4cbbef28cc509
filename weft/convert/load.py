"""`weft.load`: a model from whatever holds one.

runs/mine            a run directory      recipe.toml in it
models/gpt2          a hub's directory    config.json with a model_type in it
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ConvertError
from weft.run import RECIPE, Run

if TYPE_CHECKING:
    from weft.model import Model


def load(source: str | Path, device: str = "cpu") -> Model:
    """The model of a run directory or a model directory, ready to predict: `weft.load("runs/mine")`.

    Raises RunError or ConvertError: what is wrong with the source.
    """
    from weft.convert.hf import CONFIG, is_hf, load_hf

    path = Path(source)
    if (path / RECIPE).is_file():
        return Run.open(path).model(device)
    if (path / CONFIG).is_file() and is_hf(path):
        return load_hf(path).model().to(device)
    if path.is_file():
        raise ConvertError(f"{path} is no kind of weight file that weft reads. Give a run or a model directory.")
    return Run.open(path).model(device)  # says that there is none, and which are near
