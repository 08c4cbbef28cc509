"""Where `weft predict` puts what it made: pictures and sounds become files, texts are printed, and written if asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.errors import RecipeError
from weft.run import replace_text


def checked(out: Path) -> Path:
    """`out`, if it can be made. Raises RecipeError: it is asked before the work is done, so that none is lost."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if there != out and not there.is_dir():
        raise RecipeError(f"{out} cannot be made: {there} is a file. Give another --out.")
    if not os.access(there, os.W_OK):
        raise RecipeError(f"{out} cannot be written: {there} may not be changed. Give another --out.")
    return out


def present(values: Sequence[Any], out: Path | None, folder: Path, name: str) -> list[str]:
    """Texts as they are; pictures (H,W,3) uint8 and sounds (samples,) float at 16 kHz as the paths of their files.

    out     texts: their file, one on each line (.jsonl: as JSON), or a folder that is there; a single medium: its
            file, if it ends as one; else the folder of the media
    folder  of media, where `out` is not given
    """
    if not any(hasattr(value, "dtype") for value in values):
        shown = [str(value) for value in values]
        if out is not None:
            out = out / f"{name}.txt" if out.is_dir() else out
            lines = [json.dumps({name: one}, ensure_ascii=False) for one in shown] if out.suffix == ".jsonl" else shown
            out.parent.mkdir(parents=True, exist_ok=True)
            replace_text(out, "".join(line + "\n" for line in lines))
        return shown
    return [_file(value, out or folder, name, alone=out is not None and len(values) == 1) for value in values]


def _file(value: Any, out: Path, name: str, alone: bool) -> str:
    if value.ndim == 3:
        from weft.modalities.image import to_png as encode

        suffix = ".png"
    else:
        from weft.modalities.audio import to_wav as encode

        suffix = ".wav"
    if alone and out.suffix.lower() == suffix and not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        path = out
    else:
        if out.is_file():  # another kind of file, or many things for one: they go beside it
            out = out.with_name(f"{out.name}-{name}")
        out.mkdir(parents=True, exist_ok=True)
        path, number = out / f"{name}{suffix}", 1
        while path.exists():  # never over an earlier one
            number += 1
            path = out / f"{name}-{number}{suffix}"
    path.write_bytes(encode(value))
    return str(path)
