"""A run directory: the unit that everything reads and writes.

runs/mine/
├── recipe.toml         resolved: nothing in it is left to be decided
├── command.txt         the words it was started with
├── config.json         the model's config tree        ┐
├── model.safetensors   the newest saved weights       │ all that is needed to predict
├── renderer.json, tokenizer.json, codecs/             ┘
├── checkpoints/step-000500/                            all that is needed to go on (see train/checkpoint.py)
├── metrics.jsonl       a line per step (loss ...), per validation, and per event
├── skipped.jsonl       every row or file that was left out, and why
└── card.md             what the model is, for people
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from weft.errors import RunError
from weft.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from weft.arrows.grammar import Arrow
    from weft.arrows.render import Renderer
    from weft.core.config import ModelConfig
    from weft.data.sources import Table
    from weft.model import Model

RECIPE, CONFIG, WEIGHTS, METRICS, SKIPPED = (
    "recipe.toml",
    "config.json",
    "model.safetensors",
    "metrics.jsonl",
    "skipped.jsonl",
)
COMMAND, LOCK = "command.txt", ".lock"
PREPARED = "prepared.json"  # written last before the first step: from then on a run only needs to be gone on with


@dataclass(eq=False)
class Run:
    """A run directory that exists. Everything in it is read when it is first asked for.

    path    the directory
    recipe  as resolved so far
    merge   whether `model` puts the adapter that was trained into the weights
    source  the table, where it was given in memory and `recipe.data` names no file
    """

    path: Path
    recipe: Recipe
    source: Any = None
    merge: bool = False

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe, command: str = "", source: Any = None) -> Run:
        """Make the directory. Raises RunError if a run is in it already, or it cannot be written."""
        path = Path(path)
        if (path / RECIPE).exists():
            raise RunError(
                f"{path} holds a run already. Go on with it (weft train --resume {path}), or give another --out."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, recipe, source)
            if command:
                replace_text(path / COMMAND, command + "\n")
            run.keep(recipe)
        except OSError as error:
            raise RunError(f"{path} cannot be made or written ({error.strerror}). Give another --out.") from error
        return run

    @classmethod
    def open(cls, path: str | Path, source: Any = None) -> Run:
        """The run in `path`. Raises RunError if there is none."""
        from weft.recipe import load

        path = Path(path)
        if not (path / RECIPE).is_file():
            raise RunError(
                f"{path} holds no run: there is no {RECIPE} in it. Runs here: {', '.join(beside(path)) or 'none'}."
            )
        return cls(path, load(path / RECIPE), source)

    def keep(self, recipe: Recipe) -> None:
        """Take `recipe` as this run's, and write it."""
        from weft.recipe import to_toml

        self.recipe = recipe
        replace_text(self.path / RECIPE, to_toml(recipe))

    def forget(self) -> None:
        """Take back what `create` made, and the directory with it unless something else lies there. For its holder."""
        for name in (RECIPE, COMMAND, LOCK):
            with contextlib.suppress(PermissionError):  # Windows keeps the lock while it is held
                (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    # ------------------------------------------------------------------------------------------------ what is in it

    @cached_property
    def table(self) -> Table:
        """The data, opened again."""
        from weft.data.sources import open_table

        if self.source is not None:
            return open_table(self.source)
        if not self.recipe.data:
            raise RunError(f"{self.path} was trained on a table held in memory, which is gone. Give the table again.")
        return open_table(self.recipe.data)

    @property
    def prepared(self) -> dict[str, Any]:
        """What it was prepared from: the table's fingerprint, the number of the plan; {} if it did not come so far."""
        path = self.path / PREPARED
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def changed(self) -> bool:
        """Whether the table is another one than when it was prepared."""
        return self.prepared.get("fingerprint", self.table.fingerprint) != self.table.fingerprint

    @cached_property
    def split(self) -> np.ndarray:
        """(rows,) "train", "validation" or "test" for each row of the table."""
        from weft.data.split import assign

        return assign(self.table, self.recipe.split, self.recipe.seed)

    @cached_property
    def arrows(self) -> list[Arrow]:
        """The recipe's arrows, parsed."""
        from weft.arrows.grammar import parse

        return [parse(text) for text in self.recipe.arrows]

    @cached_property
    def renderer(self) -> Renderer:
        """The renderer that the model was trained with. Raises RunError if the run has not come that far."""
        from weft.arrows.render import Renderer

        if not (self.path / "renderer.json").is_file():
            raise RunError(f"{self.path} has no renderer.json: its preparation never finished. Train it anew.")
        return Renderer.load(self.path)

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config tree."""
        from weft.core.config import from_tree

        if not (self.path / CONFIG).is_file():
            raise RunError(f"{self.path} has no {CONFIG}: its preparation never finished. Train it anew.")
        return from_tree(json.loads((self.path / CONFIG).read_text(encoding="utf-8")))

    def model(self, device: str = "cpu") -> Model:
        """The model with the newest saved weights, ready to predict; an adapter lies beside its base.

        Raises RunError if nothing was saved yet.
        """
        from safetensors.torch import load_file

        from weft.adapt.merge import plain
        from weft.adapt.start import load_start, make
        from weft.model import build
        from weft.train.checkpoint import fill
        from weft.train.checkpoint import weights as weights_of

        if not (self.path / WEIGHTS).is_file():
            raise RunError(
                f"{self.path} has no {WEIGHTS} yet: nothing was saved. Go on with: weft train --resume {self.path}"
            )
        base, start = load_start(self.path)
        model = build(self.config) if base is None else make(self.config, self.recipe, base, start)
        before = {} if base is None else weights_of(model)
        try:
            weights = load_file(self.path / WEIGHTS)
        except Exception as error:  # safetensors raises its own kind, which derives from Exception alone
            raise RunError(
                f"{self.path / WEIGHTS} cannot be read ({error}). Copy it from the newest checkpoint."
            ) from error
        fill(model, {**{name: t for name, t in before.items() if name not in weights}, **weights})
        return (plain(model) if self.merge else model).to(device).eval()

    def start(self, device: str = "cpu") -> Model:
        """The model at its first step. Raises RunError for a run that did not start from weights."""
        from weft.adapt.start import load_start, make

        base, start = load_start(self.path)
        if base is None:
            raise RunError(f"{self.path} started from nothing: there is no model before its training.")
        return make(self.config, self.recipe, base, start).to(device).eval()

    # ------------------------------------------------------------------------------------------------ what is written

    def record(self, **values: Any) -> None:
        """Add a line to metrics.jsonl: step=, loss=, ... or step=, validation={...} or event="start", ..."""
        append(self.path / METRICS, values)

    def metrics(self, kind: str = "") -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; of a kind "step", "validation" or "event" only those."""
        path = self.path / METRICS
        return [line for line in read_lines(path) if kind in ("", kind_of(line))] if path.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`: a resume will live through them again."""
        path = self.path / METRICS
        if path.exists():
            kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def skip(self, entries: list[dict[str, Any]]) -> None:
        """Write what was left out, and why, to skipped.jsonl."""
        if entries:
            replace_text(
                self.path / SKIPPED, "".join(json.dumps(e, ensure_ascii=False, default=str) + "\n" for e in entries)
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one training process. Raises RunError if another one holds it.

        The lock is the operating system's, so a killed process leaves none behind; the pid in the file is for the
        message.
        """
        path = self.path / LOCK
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open as long as the lock is
        try:
            try:
                take(file)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunError(
                    f"{self.path} is in use by another training (process {holder}). Wait for it, or stop it."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            file.close()


def kind_of(line: dict[str, Any]) -> str:
    """event | validation | step"""
    return next((kind for kind in ("event", "validation") if kind in line), "step")


def take(file: IO[str]) -> None:
    """Lock an open file, or raise OSError at once if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: the same promise, one byte far behind the pid
        import msvcrt

        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never half of it."""
    staged = path.with_name(f".{path.name}.new")
    with open(staged, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line. Raises RunError where the disk is full."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}). Free some space; saved checkpoints are intact."
        ) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file; a last one without its end was cut off by a kill and is not a line."""
    for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
        yield json.loads(text)


def beside(path: Path) -> list[str]:
    """Runs in the same folder, for an error message."""
    folder = path.parent
    return sorted(str(p.parent) for p in folder.glob(f"*/{RECIPE}"))[:8] if folder.is_dir() else []
