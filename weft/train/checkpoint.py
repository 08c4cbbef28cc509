"""Checkpoints that a kill at any moment leaves whole.

    checkpoints/
    ├── .step-000500.4711     1 being written: every file fsynced, the manifest last
    ├── step-000500/          2 committed by one rename, the folder fsynced
    │   ├── model.safetensors     weights
    │   ├── optimizer.pt          tensors and plain numbers, read with weights_only=True
    │   ├── state.json            step, counters; the loader's place and all randomness follow from the step
    │   └── manifest.json         {file: [bytes, SHA-256]}
    └── step-000400/          3 pruned, oldest first, once a newer one stands: hidden by a rename, then deleted

What is not committed does not count; what does not fit its manifest is said, and the one before is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weft.errors import RunError

MANIFEST = "manifest.json"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one under its first name only."""
    kept = model.state_dict().keys()  # leaves out buffers that are derived; the two below leave out later names
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in kept}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `weights` back. Raises RunError unless names and shapes are exactly the model's."""
    own = weights(model)
    wrong = [f"{n} is missing" for n in own if n not in tensors] + [
        f"{n} is not the model's" for n in tensors if n not in own
    ]
    wrong += [
        f"{n} is {tuple(tensors[n].shape)}, the model's {tuple(t.shape)}"
        for n, t in own.items()
        if n in tensors and tensors[n].shape != t.shape
    ]
    if wrong:
        raise RunError(f"These weights are of another model: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def save(folder: Path, step: int, parts: Mapping[str, Any], keep: int) -> Path:
    """Commit `parts` (file name -> content, kind by its ending) as the checkpoint of `step`; keep the newest `keep`.

    Raises RunError where it cannot be written (disk full, say): then nothing of it is left and those before are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    if target.exists() and not damage(target):
        return target  # saved a moment ago: with keep=1, replacing it would leave a moment without any
    staged = folder / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        manifest = {name: put(staged / name, content) for name, content in parts.items()}
        put(staged / MANIFEST, {"step": step, "files": manifest})
        flush_folder(staged)
        discard(target)  # a damaged one of the same step, met at resume
        os.rename(staged, target)
        flush_folder(folder)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's writer raises RuntimeError on a full disk
        shutil.rmtree(staged, ignore_errors=True)
        there = [path.name for path in all_of(folder)]
        raise RunError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Is the disk full? "
            f"{f'{there[0]} is intact: free some space and resume.' if there else 'None was saved before.'}"
        ) from error
    for old in all_of(folder)[max(1, keep) :]:
        discard(old)
    return target


def discard(path: Path) -> None:
    """Remove a checkpoint: out of sight by one rename first, so that a kill while its files go leaves no half of it."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old.{os.getpid()}")
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def put(path: Path, content: Any) -> list[int | str]:
    """Write one file to the disk itself; returns its length in bytes and SHA-256, read back from the file."""
    WRITERS[path.suffix](path, content)
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


WRITERS: dict[str, Callable[[Path, Any], Any]] = {
    ".safetensors": lambda path, tensors: save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, path),
    ".pt": lambda path, content: torch.save(content, path),
    ".json": lambda path, content: path.write_text(json.dumps(content, indent=1), encoding="utf-8"),
}
READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
}


def read(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint, by file name. Raises RunError for one that does not fit its manifest."""
    if problem := damage(path):
        raise RunError(f"{path} is damaged: {problem}.")
    names = READERS[".json"](path / MANIFEST)["files"]
    return {name: READERS[Path(name).suffix](path / name) for name in names}


def damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if every file has the length and hash that its manifest names."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, {size} were written"
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} does not have the hash it was written with"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    return ""


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that fits its manifest; damaged ones are said. None: there is none to go on from."""
    for path in all_of(folder):
        problem = damage(path)
        if not problem:
            return path
        say(f"{path} is damaged ({problem}); taking the one before it")
    return None


def all_of(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written. Only for who holds the run's lock."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def publish(checkpoint: Path, target: Path) -> None:
    """Let `target` be the checkpoint's weights: a hard link where the disk has them, else a copy; replaced at once."""
    staged = target.with_name(f".{target.name}.new")
    staged.unlink(missing_ok=True)
    try:
        os.link(checkpoint / "model.safetensors", staged)
    except OSError:
        shutil.copyfile(checkpoint / "model.safetensors", staged)
    os.replace(staged, target)
    staged.unlink(missing_ok=True)  # where both were the same file already, the rename leaves both


def flush_folder(folder: Path) -> None:
    """Write a folder's own entries to the disk. Windows cannot open folders, and needs it not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
