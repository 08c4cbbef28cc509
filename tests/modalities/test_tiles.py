"""Tiles against transformers' own preparation of pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from weft.errors import RecipeError
from weft.modalities.tiles import FENCE, PLACE, WHOLE, tiles, within


def picture(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + phase) * np.cos(columns / 7 - phase) for phase in (0, 1, 2)]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 70), (70, 40), (33, 33), (16, 100), (24, 30), (101, 37)])
@pytest.mark.parametrize("longest", [32, 64, 96])
def test_the_same_tiles_and_pixels(size: tuple[int, int], longest: int) -> None:
    idefics = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3")
    theirs = idefics.Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 32}, return_row_col_info=True, do_pad=True
    )
    found = theirs([[picture(*size)]], return_tensors="np")
    ours = tiles(picture(*size), 32, longest)
    assert (ours.rows, ours.columns) == (found["rows"][0][0], found["cols"][0][0])
    pixels = ours.pixels()
    assert pixels.shape == found["pixel_values"][0].shape
    assert np.abs(pixels - found["pixel_values"][0]).max() < 1e-5


def test_the_prompt_keeps_as_many_places_as_tiles_bring() -> None:
    whole = tiles(picture(20, 20), 32, 32)
    assert whole.text(2) == f"{FENCE}{WHOLE}{PLACE}{PLACE}{FENCE}" and len(whole.pictures) == 1
    cut = tiles(picture(40, 80), 32, 64)
    said = cut.text(4)
    assert (cut.rows, cut.columns) == (1, 2) and said.count(PLACE) == 4 * len(cut.pictures)
    row = f"{FENCE}<row_1_col_1>{PLACE * 4}{FENCE}<row_1_col_2>{PLACE * 4}\n"
    assert said == f"{row}\n{FENCE}{WHOLE}{PLACE * 4}{FENCE}"


@pytest.mark.parametrize("size", [(40, 80), (90, 40), (20, 20)])
def test_the_same_prompt(size: tuple[int, int]) -> None:
    processing = pytest.importorskip("transformers.models.idefics3.processing_idefics3")
    names = {"fake_image_token": FENCE, "image_token": PLACE, "global_image_tag": WHOLE, "image_seq_len": 3}
    ours = tiles(picture(*size), 32, 64 if max(size) > 32 else 32)
    found = {"rows": [[ours.rows]], "cols": [[ours.columns]]}
    wanted = processing.Idefics3Processor.replace_image_token(SimpleNamespace(**names), found, 0)
    assert ours.text(3) == wanted


def test_sizes_have_bounds() -> None:
    assert max(within(10, 10_000, 8000)) == 4096
    with pytest.raises(RecipeError, match="do not fit"):
        tiles(picture(8, 8), 64, 32)
