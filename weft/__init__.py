"""weft: weave text, images and sound into one language model.

    import weft

    run = weft.train("photos/metadata.csv", "image, question -> answer", "caption -> image", out="runs/mine")
    weft.predict(run, "image, question -> answer", {"image": "cat.png", "question": "what colour is it?"})

Importing does nothing and is quick: each public name is fetched when it is first asked for (PEP 562).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what an editor and pyright see; at run time __getattr__ below does it
    from weft.convert.load import load as load
    from weft.convert.transfer import export as export
    from weft.convert.transfer import import_model as import_model
    from weft.errors import WeftError as WeftError
    from weft.evaluate.compare import compare as compare
    from weft.evaluate.report import report as report
    from weft.evaluate.run import evaluate as evaluate
    from weft.generate.chat import chat as chat
    from weft.generate.embed import embed as embed
    from weft.generate.embed import embed_file as embed_file
    from weft.generate.predict import predict as predict
    from weft.generate.search import search as search
    from weft.generate.transcribe import transcribe as transcribe
    from weft.train import check as check
    from weft.train import plan as plan
    from weft.train import train as train

# public name -> the module that holds it
PUBLIC = {
    "load": "weft.convert.load",
    "import_model": "weft.convert.transfer",
    "export": "weft.convert.transfer",
    "train": "weft.train",
    "plan": "weft.train",
    "check": "weft.train",
    "predict": "weft.generate.predict",
    "transcribe": "weft.generate.transcribe",
    "chat": "weft.generate.chat",
    "embed": "weft.generate.embed",
    "embed_file": "weft.generate.embed",
    "search": "weft.generate.search",
    "evaluate": "weft.evaluate.run",
    "compare": "weft.evaluate.compare",
    "report": "weft.evaluate.report",
    "WeftError": "weft.errors",
}
__all__ = [
    "WeftError", "__version__", "chat", "check", "compare", "embed", "embed_file", "evaluate", "export",
    "import_model", "load", "plan", "predict", "report", "search", "train", "transcribe",
]  # fmt: skip


def public(name: str) -> Any:
    """The object behind a public name; its module is imported now if it was not yet."""
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'weft' has no attribute {name!r}. Public names: {', '.join(sorted(PUBLIC))}")
    return public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


class _Room(ModuleType):
    """A room whose name is a public function too (`weft.train`): called, it calls that function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return public(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Weft(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds `weft.train`, the package, over `weft.train`, the function, as soon as any of the
        # package's modules is imported. Both meanings have to hold, whatever was imported before.
        if name in PUBLIC and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Weft
