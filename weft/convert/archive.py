"""Weights in torch's own files (`.pt`, `.bin`): a pickle, read so that it can neither run anything nor fill memory.

    model.bin   a zip of data.pkl (names, shapes) and one stored member per tensor

The pickle may only name tensors (`weights_only`). They are views of the file itself (`mmap`), each no larger than the
bytes behind it, so a file takes no more memory than it is long.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.errors import ConvertError

PICKLE = 16 << 20  # bytes of names and shapes; those of the largest models take a few


def load_archive(path: Path) -> Any:
    """What a file holds. Raises ConvertError for one that is damaged, hostile, or of torch's form before 1.6."""
    check(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch and pickle raise many kinds
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConvertError(f"{path} cannot be read as torch's weights ({why}).") from error


def check(path: Path) -> None:
    """That a file is a zip of stored members, which together are no longer than it is. Raises ConvertError."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ConvertError(f"{path} cannot be read as torch's weights ({error}).") from error
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(m.file_size for m in members) > size:
        raise ConvertError(f"{path}: its members are larger than the file says; it is damaged, or made to fill memory.")
    if any(m.filename.endswith(".pkl") and m.file_size > PICKLE for m in members):
        raise ConvertError(f"{path}: its pickle has more than {PICKLE:,} bytes; no model has.")


def tensors(path: Path, state: Any) -> dict[str, Tensor]:
    """`state`, found in a file, as named tensors. Raises ConvertError for anything else in it, and for a tensor that is
    more than the bytes behind it.
    """
    if not isinstance(state, Mapping) or not all(isinstance(n, str) and type(t) is Tensor for n, t in state.items()):
        raise ConvertError(f"{path} holds other things than named tensors.")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ConvertError(f"{path}: {name} {tuple(tensor.shape)} is more than the bytes behind it.")
    return dict(state)
