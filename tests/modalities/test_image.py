"""Images: whatever Pillow opens arrives upright, on white, whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from weft.errors import DataError, RecipeError
from weft.modalities import image as images
from weft.modalities.image import fit, open_image, patches, resize, shift, square, to_png


def noise(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind: str, tmp_path) -> None:
    array = noise()
    path = tmp_path / "picture"
    path.write_bytes(saved(Image.fromarray(array), kind))
    for source in (path, str(path), path.read_bytes(), Image.open(path), array):
        np.testing.assert_array_equal(open_image(source), array)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_close(kind: str) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (24, 40, 3))
    opened = open_image(saved(Image.fromarray(smooth.copy()), kind))
    assert opened.shape == (24, 40, 3)
    assert np.abs(opened.astype(int) - smooth).mean() < 8


def test_exif_rotation_is_applied() -> None:
    array = noise()
    exif = Image.Exif()
    exif[274] = 6  # the camera was held turned: show it 90 degrees clockwise
    opened = open_image(saved(Image.fromarray(array), "PNG", exif=exif))
    np.testing.assert_array_equal(opened, np.rot90(array, -1))
    assert opened.shape == (40, 24, 3), "control: without the tag it stays lying"


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 128)
    for source in (rgba, saved(Image.fromarray(rgba), "PNG")):
        opened = open_image(source)
        assert opened[0, 0].tolist() == [200, 0, 0]
        assert abs(int(opened[0, 1, 0]) - 127) <= 1, "half black on white is grey"
        assert opened[1, 1].tolist() == [255, 255, 255]


def test_transparent_palette_lies_over_white() -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    assert open_image(saved(picture, "PNG", transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert open_image(saved(picture, "PNG"))[0, 0].tolist() == [0, 255, 0]


def test_grey_two_tone_and_sixteen_bit() -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    expected = np.repeat(grey[..., None], 3, 2)
    deep = grey.astype(np.uint16) * 257
    for source in (
        grey,
        grey[..., None],
        deep,
        saved(Image.fromarray(grey), "PNG"),
        saved(Image.fromarray(deep), "PNG"),
    ):
        np.testing.assert_array_equal(open_image(source), expected)
    np.testing.assert_array_equal(open_image(grey / np.float32(255)), expected)
    two = saved(Image.fromarray(grey > 100).convert("1"), "PNG")
    np.testing.assert_array_equal(open_image(two), np.repeat((grey > 100)[..., None] * np.uint8(255), 3, 2))
    np.testing.assert_array_equal(open_image(grey > 100), open_image(two))


@pytest.mark.parametrize("kind", ["int64", "int32", "int16", "uint32"])
def test_other_whole_numbers_are_eight_bit_or_refused(kind: str) -> None:
    """Arithmetic leaves int64: 200 is then still 200, not 200 of 65,535."""
    array = noise()
    np.testing.assert_array_equal(open_image(array.astype(kind)), array)
    np.testing.assert_array_equal(open_image(array.astype(np.uint16) * 257), array, "control: uint16 is 16 bit")
    with pytest.raises(DataError, match=rf"holds {kind} from .* to 3000; 0 to 255 was expected, or uint16"):
        open_image(np.array([[0, 3000]], kind))


def test_pillows_wide_pictures_are_sixteen_bit() -> None:
    wide = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32))
    assert wide.mode == "I"
    assert open_image(wide)[0, :, 0].tolist() == [0, 100, 255]
    with pytest.raises(DataError, match="0 to 65535"):
        open_image(Image.fromarray(np.array([[70000]], np.int32)))


def test_first_frame_of_an_animation() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WEBP", "TIFF"):
        data = saved(first, kind, save_all=True, append_images=[second])
        red, _, blue = open_image(data)[4, 4].tolist()
        assert red > 240 and blue < 15, kind


def test_four_inks() -> None:
    assert open_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4, 0] > 200


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"hello, this is text", "not an image"), (b"RIFF\x24\x00\x00\x00WAVEfmt ", "not an image")],
)
def test_wrong_files_are_named(content: bytes, said: str, tmp_path) -> None:
    path = tmp_path / "wrong.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"wrong\.png.*{said}"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_off_files_are_named(kind: str, tmp_path) -> None:
    data = saved(Image.fromarray(noise(64, 64)), kind)
    path = tmp_path / "cut"
    for share in (0.02, 0.3, 0.7):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match="cut: "):
            open_image(path)


def test_missing_files_and_folders_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"absent\.png: there is no such file; an image was expected"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="folder"):
        open_image(tmp_path)


def test_formats_beyond_the_list_are_refused() -> None:
    with pytest.raises(DataError, match="expected one of PNG"):
        open_image(saved(Image.new("RGB", (8, 8)), "ICO"))


def test_decompression_bombs_are_refused(monkeypatch) -> None:
    bomb = saved(Image.new("1", (10_000, 10_000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(DataError, match="smaller"):
        open_image(bomb, name="bomb.png")
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match="smaller"):
        open_image(bomb, name="bomb.png")  # the same where warnings are only shown
    monkeypatch.setattr(images, "PIXELS", 10)
    with pytest.raises(DataError, match="more than 10"):
        open_image(Image.new("RGB", (4, 4)))


def test_arrays_that_are_no_images_are_refused() -> None:
    for array, said in [
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros(8, np.uint8), "shape"),
        (np.full((4, 4), 7.0), "0 to 1"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), -3), "0 to 255"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), "a"), "uint8"),
    ]:
        with pytest.raises(DataError, match=said):
            open_image(array)
    with pytest.raises(DataError, match="came as dict"):
        open_image({})  # type: ignore[arg-type]


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([(64, 8), (64, 16), (50, 8), (32, 1)]))
@settings(deadline=None, max_examples=60)
def test_fit_keeps_the_aspect(height: int, width: int, sizes: tuple[int, int]) -> None:
    size, patch = sizes
    out = fit(np.zeros((height, width, 3), np.uint8), size, patch)
    longest = size // patch * patch
    assert max(out.shape[:2]) == longest
    assert out.shape[0] % patch == 0 and out.shape[1] % patch == 0
    exact = longest * min(height, width) / max(height, width)
    assert abs(min(out.shape[:2]) - max(exact, patch)) <= patch / 2, "the shorter side is within half a patch of exact"
    assert (height >= width) == (out.shape[0] >= out.shape[1]) or out.shape[0] == out.shape[1]


@given(st.integers(1, 90), st.integers(1, 90))
@settings(deadline=None, max_examples=40)
def test_square_keeps_the_aspect(height: int, width: int) -> None:
    out = square(np.zeros((height, width, 3), np.uint8), 64)  # black on white bars
    assert out.shape == (64, 64, 3)
    dark = (out == 0).all(2)
    rows, columns = dark.any(1).sum(), dark.any(0).sum()
    scale = 64 / max(height, width)
    assert (rows, columns) == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert dark.sum() == rows * columns
    top, left = np.argmax(dark.any(1)), np.argmax(dark.any(0))
    assert abs(2 * top + rows - 64) <= 1 and abs(2 * left + columns - 64) <= 1, "in the middle"


def test_resize_is_antialiased_and_repeats() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 16, 16)
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() < 12, "picking pixels would give all black or white"
    np.testing.assert_array_equal(small, resize(stripes, 16, 16))
    reference = np.asarray(Image.fromarray(noise()).resize((17, 11), Image.Resampling.BILINEAR))
    assert np.abs(resize(noise(), 11, 17).astype(int) - reference).max() <= 1


def test_patches_are_row_by_row_and_come_back() -> None:
    array = noise(16, 24)
    values, positions, advance = patches(array, 8)
    assert values.shape == (6, 192) and values.dtype == np.float16
    assert positions.tolist() == [[0, r, c] for r in range(2) for c in range(3)]
    assert advance == 3
    fourth = array[8:16, 0:8].transpose(2, 0, 1).reshape(-1)  # channel, row, column
    np.testing.assert_allclose(values[3], fourth / 127.5 - 1, atol=1e-3)
    assert values.min() >= -1 and values.max() <= 1
    back = values.reshape(2, 3, 3, 8, 8).transpose(0, 3, 1, 4, 2).reshape(16, 24, 3).astype(np.float32)
    np.testing.assert_array_equal(np.rint((back + 1) * 127.5), array, "nothing is lost")


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="10 x 16"):
        patches(noise(10, 16), 8)
    with pytest.raises(RecipeError, match=r"image\.size 4 with image\.patch 8"):
        fit(noise(), 4, 8)


def test_shift_moves_and_repeats_the_edge() -> None:
    array = noise(6, 6)
    moved = shift(array, 2, -1)
    np.testing.assert_array_equal(moved[2:, :5], array[:4, 1:])
    np.testing.assert_array_equal(moved[0], moved[2])
    np.testing.assert_array_equal(shift(array, 0, 0), array)


def test_png_comes_back() -> None:
    np.testing.assert_array_equal(open_image(to_png(noise())), noise())
