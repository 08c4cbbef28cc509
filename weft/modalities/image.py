"""Images <-> arrays <-> patches. numpy in, numpy out.

Shape letters:  H height  W width  P pixels per side of a patch  N patches  (h,w) sides after `fit`

    file, bytes, PIL, array --open_image--> (H,W,3) --fit--> (h,w,3) --patches--> values (N,3*P*P), positions (N,3)
                                            uint8 └--square--> (S,S,3)  for a codec      N = h/P * w/P, row by row

Nothing is cropped: the aspect is kept by `fit` (its sides are rounded to whole patches) and by `square` (letterboxed).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from weft.errors import DataError, RecipeError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # only these decoders run, whatever Pillow could read
PIXELS = 89_478_485  # more is taken for a decompression bomb (Pillow's own limit: 256 MiB of RGB)
WHITE = 255
MIDDLE = (0.5, 0.5, 0.5)


class Patches(NamedTuple):
    """values (N,3*P*P) float16; positions (N,3) float32 (0, row, column); advance max(rows, columns)."""

    values: np.ndarray
    positions: np.ndarray
    advance: float


def open_image(source: str | Path | bytes | Image.Image | np.ndarray, name: str = "") -> np.ndarray:
    """Any picture -> (H,W,3) uint8, upright, on white.

    EXIF rotation is applied, alpha is laid over white, grey and 16 bit become 8-bit RGB, of an animation the first
    frame is taken. An array may be (H,W), (H,W,1), (H,W,3) or (H,W,4) of uint8, uint16, bool or float in [0,1]; other
    whole numbers are taken for 8 bit, and refused above 255.
    `name` stands for the picture in errors (a path names itself). Raises DataError.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "the image array")
    if isinstance(source, Image.Image):
        return _decode(source, name or "the image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = name or f"an image of {len(source)} bytes"
        stream: io.IOBase = io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        name = name or str(source)
        stream = io.BytesIO(read_file(source, "an image"))
    else:
        raise DataError(
            f"{name or 'an image'} came as {type(source).__name__}; a path, bytes, PIL image or array was expected"
        )
    if stream.getbuffer().nbytes == 0:  # type: ignore[attr-defined]
        raise DataError(f"{name}: the file is empty (0 bytes); an image was expected ({', '.join(FORMATS)})")
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error}; make it smaller (at most {PIXELS:,} pixels)") from error
    except Exception as error:  # a hostile header can raise nearly anything
        raise DataError(
            f"{name}: not an image that can be read; expected one of {', '.join(FORMATS)}. Convert it or drop the row"
        ) from error
    with image:
        return _decode(image, name)


def read_file(path: str | Path, what: str) -> bytes:
    """The bytes of a file, or a DataError that names it. `what` ("an image") is what was expected there."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; {what} was expected. Check the path in the table") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: this is a folder; {what} was expected") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {what} was expected") from error


def _decode(image: Image.Image, name: str) -> np.ndarray:
    """An opened picture -> (H,W,3) uint8."""
    if image.width * image.height > PIXELS:
        raise DataError(f"{name}: {image.width} x {image.height} pixels are more than {PIXELS:,}; make it smaller")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _from_array(_sixteen(np.asarray(image), name), name)
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
            image = Image.alpha_composite(white, image)
        return np.array(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # truncated or damaged data: OSError, SyntaxError, zlib.error, struct.error ...
        raise DataError(f"{name}: the {image.format or 'image'} data is damaged or cut off ({error})") from error


def _sixteen(array: np.ndarray, name: str) -> np.ndarray:
    """Pillow's whole-number modes are 16 bit in the file, whatever it holds them in; floats are passed on."""
    if array.dtype.kind not in "iu":
        return array
    _within(array, name, 65535)
    return array.astype(np.uint16)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    """(H,W), (H,W,1|3|4) of whole numbers, bool or float -> (H,W,3) uint8."""
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(
            f"{name} has shape {array.shape}; (H,W), (H,W,1), (H,W,3) or (H,W,4) was expected, channels last"
        )
    if array.dtype == bool:
        array = array * np.float32(255)
    elif array.dtype != np.uint8:
        array = _to_bytes(array, name)
    array = array.astype(np.float32)
    if array.shape[2] == 4:
        alpha = array[..., 3:] / 255
        array = array[..., :3] * alpha + WHITE * (1 - alpha)
    array = np.rint(array).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:2], 3)).copy()  # a broadcast view cannot be written to


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers of another type -> 0..255 by their type: uint16 is 16 bit, other whole numbers 8 bit, floats in [0,1].

    An int64 array is nearly always 8 bit that went through arithmetic. What it held before cannot be told from its
    numbers, so one with more than 255 is refused rather than guessed.
    """
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise DataError(f"{name} holds {array.dtype}; uint8, uint16, bool or float in [0,1] was expected")
    if array.dtype.kind in "iu" and array.dtype != np.uint16:
        _within(array, name, 255, ", or uint16 for 16 bit: array.astype(np.uint16)")
        return array.astype(np.uint8)
    limit = 65535 if array.dtype == np.uint16 else 1
    _within(array, name, limit)
    return array.astype(np.float32) * np.float32(255 / limit)


def _within(array: np.ndarray, name: str, limit: int, otherwise: str = "") -> None:
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} holds numbers that are not finite")
    if low < 0 or high > limit:
        raise DataError(f"{name} holds {array.dtype} from {low:g} to {high:g}; 0 to {limit} was expected{otherwise}")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H,W,3) uint8 -> (height,width,3) uint8, bilinear and antialiased; the same bits on every call."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # (H,W,3) -> (1,3,H,W)
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0).contiguous().numpy()


def fit(image: np.ndarray, size: int, patch: int) -> np.ndarray:
    """(H,W,3) uint8 -> (h,w,3) uint8: aspect kept, longest side `size`, both sides whole patches.

    `size` is rounded down to whole patches; the shorter side is rounded to the nearest whole patch and is at least one,
    which is the only distortion. Small images are enlarged. Raises RecipeError if `size` is less than one patch.
    """
    if patch < 1 or size < patch:
        raise RecipeError(
            f"image.size {size} with image.patch {patch}: at least one patch must fit; make the size larger"
        )
    longest = size // patch * patch
    scale = longest / max(image.shape[:2])
    height, width = (min(longest, max(1, round(side * scale / patch)) * patch) for side in image.shape[:2])
    return resize(image, height, width)


def square(image: np.ndarray, size: int) -> np.ndarray:
    """(H,W,3) uint8 -> (size,size,3) uint8: aspect kept, in the middle, letterboxed with white."""
    scale = size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    image = resize(image, height, width)
    if height == width:
        return image
    canvas = np.full((size, size, 3), WHITE, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def shift(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Move the picture by whole pixels (down and right are positive); the edge is repeated into the gap.

    Augmentation: the caller draws `rows` and `columns` from its own seed, so the same step gives the same picture.
    """
    height, width = image.shape[:2]
    down = np.clip(np.arange(height) - rows, 0, height - 1)
    right = np.clip(np.arange(width) - columns, 0, width - 1)
    return image.take(down, 0).take(right, 1)


def bend(image: np.ndarray, change: np.ndarray, rows: int = 0, columns: int = 0) -> np.ndarray:
    """(H,W,C) turned, zoomed and slanted about its middle, then moved as `shift` moves it; the edge is repeated.

    change  (2,2) from (row, column) of the result to that of the picture. Each pixel is the nearest one of the picture:
            mixed ones would round all corners, and pictures that are not bent have sharp ones.
    """
    height, width = image.shape[:2]
    middle, last = np.array([[height - 1], [width - 1]]) / 2, np.array([[height - 1], [width - 1]])
    grid = np.indices((height, width)).reshape(2, -1) - np.array([[rows], [columns]]) - middle
    row, column = np.clip(np.rint(change @ grid + middle), 0, last).astype(np.int64)  # (H*W,) each
    return image.reshape(height * width, -1)[row * width + column].reshape(image.shape)


def move_patches(
    values: np.ndarray, columns: int, patch: int, down: int, right: int, change: np.ndarray | None = None
) -> np.ndarray:
    """(N,3*P*P) patches of a picture, `columns` to a row -> the same picture as `shift` moves it, or `bend`."""
    rows = len(values) // columns
    pixels = values.reshape(rows, columns, 3, patch, patch).transpose(0, 3, 1, 4, 2)  # (rows,P,columns,P,3)
    picture = pixels.reshape(rows * patch, columns * patch, 3)
    moved = shift(picture, down, right) if change is None else bend(picture, change, down, right)
    return moved.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3).reshape(values.shape)


def patches(image: np.ndarray, patch: int, mean: Sequence[float] = MIDDLE, std: Sequence[float] = MIDDLE) -> Patches:
    """(h,w,3) uint8 -> (N,3*P*P) float16, row by row; within a patch channel, row, column (as in ViT).

    mean, std  of red, green and blue in [0,1]: (value - mean) / std. The default takes them to [-1,1].

    Raises DataError if a side is no multiple of `patch`: call `fit` first.
    """
    height, width = image.shape[:2]
    if height % patch or width % patch:
        raise DataError(
            f"an image of {height} x {width} pixels does not divide into patches of {patch}; fit() it first"
        )
    rows, columns = height // patch, width // patch
    values = image.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)  # (rows,columns,3,P,P)
    flat = torch.from_numpy(values.reshape(rows * columns, -1))  # torch rounds to float16 five times as fast as numpy
    if tuple(mean) == MIDDLE and tuple(std) == MIDDLE:
        values = flat.float().div_(127.5).sub_(1).half().numpy()
    else:
        shape = lambda numbers: torch.tensor(numbers, dtype=torch.float32).repeat_interleave(patch * patch)
        values = flat.float().div_(255).sub_(shape(mean)).div_(shape(std)).half().numpy()
    positions = np.zeros((rows * columns, 3), np.float32)
    positions[:, 1] = np.repeat(np.arange(rows), columns)
    positions[:, 2] = np.tile(np.arange(columns), rows)
    return Patches(values, positions, float(max(rows, columns)))


def to_png(image: np.ndarray) -> bytes:
    """(H,W,3) uint8 -> the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
