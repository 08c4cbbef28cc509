"""A picture as tiles and a small whole, as SmolVLM and Idefics3 take it.

    ┌────┬────┬────┐        longest side to `longest`, both sides up to whole tiles, cut row by row;
    │ 11 │ 12 │ 13 │        behind them the whole picture as one more tile
    ├────┼────┼────┤ + ┌────┐
    │ 21 │ 22 │ 23 │   │ all│        <fake><row_1_col_1><image>... \n  <fake><global-img><image>... <fake>
    └────┴────┴────┘   └────┘

Sources: Laurençon et al. 2024, section 3.2; Marafioti et al. 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from weft.errors import RecipeError

LARGEST = 4096  # pixels a side, before tiles are made whole
FENCE, PLACE, WHOLE = "<fake_token_around_image>", "<image>", "<global-img>"


@dataclass(frozen=True, eq=False)
class Tiles:
    """pictures (tile,tile,3) uint8 each, the whole one last; rows and columns of the others, 0 where there are none."""

    pictures: list[np.ndarray]
    rows: int
    columns: int

    def pixels(self, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3) -> np.ndarray:
        """(n,3,tile,tile) float32, as the model's `pixel_values` of one row."""
        stacked = np.stack(self.pictures).astype(np.float32) / 255
        return ((stacked - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).transpose(0, 3, 1, 2)

    def text(self, places: int) -> str:
        """What stands for the picture in the prompt; each tile takes so many `places` (pixels / patch / factor)^2."""
        kept = PLACE * places
        lines = [
            "".join(f"{FENCE}<row_{row}_col_{column}>{kept}" for column in range(1, self.columns + 1)) + "\n"
            for row in range(1, self.rows + 1)
        ]
        return "".join(lines) + ("\n" if lines else "") + f"{FENCE}{WHOLE}{kept}{FENCE}"


def tiles(image: np.ndarray, tile: int = 364, longest: int = 4 * 364) -> Tiles:
    """(H,W,3) uint8 -> tiles. Raises RecipeError for sizes that cannot be."""
    if not 0 < tile <= longest:
        raise RecipeError(f"Tiles of {tile} pixels do not fit into a longest side of {longest}.")
    image = lanczos(image, *within(image.shape[0], image.shape[1], longest))
    height, width = image.shape[:2]
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    image = lanczos(image, height, width)
    rows, columns = height // tile, width // tile
    if rows == columns == 1:
        return Tiles([image], 0, 0)
    cuts = [
        image[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        for row in range(rows)
        for column in range(columns)
    ]
    return Tiles([*cuts, lanczos(image, tile, tile)], rows, columns)


def within(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size with its longest side at `longest`, at most LARGEST; the other one even, as the authors' code has it."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    if max(height, width) > LARGEST:
        height, width = (int(LARGEST / ratio), LARGEST) if width >= height else (LARGEST, int(LARGEST * ratio))
    return max(height, 1), max(width, 1)


def lanczos(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H,W,3) uint8 -> (height,width,3) uint8."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
