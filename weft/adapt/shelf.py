"""Several adapters by name beside one base: each answers as the model it was trained to be, the base as itself.

    RUN/adapter/             the run's own, where it trained one        "default"
    RUN/adapters/german/     others that were laid there                "german"
    other/run, a/folder      anywhere else                              by its path
    none                     the base

What an adapter cannot hold and was trained with it (new rows, stems, heads) is exchanged with it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from weft.adapt import lora, peft
from weft.adapt.start import digest, load_start
from weft.convert.transfer import told
from weft.errors import ConvertError, RunError, nearest
from weft.model import Model
from weft.run import WEIGHTS, Run

NONE, OWN, OTHERS = "none", "adapter", "adapters"


class Shelf:
    """The adapters of a run's model. `use` takes one from the shelf, reading it the first time."""

    def __init__(self, run: Run, model: Model) -> None:
        self.run, self.model = run, model
        self.rules = peft.rules_of(model.config, told(run).get("config", {}))
        self.extras: dict[str, dict[str, Tensor]] = {}
        self.names = {lora.DEFAULT: lora.DEFAULT} if lora.adapters(model) else {}
        self.plain: dict[str, Tensor] = {}  # what `extras` stand in place of

    def use(self, adapter: str) -> None:
        """Answer with an adapter: a name, a path, "none" for the base, "" for what the run was saved with.

        Raises RunError for one that is not there, ConvertError for one made for another base.
        """
        if adapter in ("", lora.DEFAULT) and not (self.names or adapter):
            return
        name = "" if adapter == NONE else self.names.get(adapter or lora.DEFAULT) or self.take(adapter)
        self.put(self.plain)
        self.plain = {}
        if extra := self.extras.get(name, {}):
            own = dict(self.model.named_parameters())
            self.plain = {key: own[key].detach().clone() for key in extra}
            self.put(extra)
        lora.use(self.model, name)

    def take(self, adapter: str) -> str:
        """Read an adapter and lay it beside the model; the name it lies there under."""
        folder = self.find(adapter)
        name = f"a{len(self.names)}"
        extra = peft.load(self.model, folder, self.rules, name=name, digests=self.digests())
        own = dict(self.model.named_parameters())
        for key, tensor in extra.items():
            if key not in own or own[key].shape != tensor.shape:
                raise ConvertError(
                    f"{folder} was trained with a {key} {tuple(tensor.shape)} that this model lacks: it knows more "
                    "columns. Use the run that it was trained in."
                )
        self.extras[name], self.names[adapter] = extra, name
        return name

    def find(self, adapter: str) -> Path:
        """Where an adapter lies."""
        places = (self.run.path / OTHERS / adapter, Path(adapter) / OWN, Path(adapter))
        for place in places:
            if (place / peft.CONFIG).is_file():
                return place
        beside = self.run.path / OTHERS
        there = [NONE, *self.names, *(sorted(p.name for p in beside.iterdir()) if beside.is_dir() else ())]
        raise RunError(f"There is no adapter {adapter!r}, neither in {beside} nor as a path.{nearest(adapter, there)}")

    def digests(self) -> list[str]:
        """What the base goes by: the hash of its weights, and of those that it froze."""
        _, start = load_start(self.run.path)
        if start is not None and self.run.recipe.model.lora.rank:
            return [start.digest]
        return [digest(load_file(self.run.path / WEIGHTS))]

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor]) -> None:
        """Parameters by name."""
        own = dict(self.model.named_parameters())
        for key, tensor in tensors.items():
            own[key].copy_(tensor)


def save(run: Run, model: Model) -> Path | None:
    """Write RUN/adapter of a run that trained one, and what else was trained; None where it trained none."""
    _, start = load_start(run.path)
    if start is None or not lora.adapters(model):
        return None
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and ".adapters." not in n}
    rules = peft.rules_of(model.config, told(run).get("config", {}))
    return peft.save(model, run.path / OWN, rules, digest=start.digest, source=start.source, extra=trained)
