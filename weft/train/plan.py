"""`weft plan`: everything that a run would do, said before it does anything."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weft.adapt.freeze import share
from weft.arrows.resolve import describe
from weft.arrows.show import show
from weft.data.sources import open_table
from weft.errors import DataError
from weft.recipe import Recipe
from weft.run import Run
from weft.train.forecast import Forecast, forecast
from weft.train.machine import describe as describe_machine
from weft.train.machine import pick_device, pick_dtype
from weft.train.prepare import Prepared, prepare
from weft.train.progress import aligned

SHOWN = 3  # real samples shown


@dataclass(frozen=True)
class Plan:
    """What `weft plan` found.

    columns   {column, type, reason}
    arrows    {arrow, objective, head, decoder, metric}
    rows      split -> rows of the table
    samples   real samples of training rows as text, trained tokens in «»
    flops     of one optimiser step, forward and backward, by 6 N per token: attention's own products are not in it
    """

    columns: list[dict[str, str]]
    arrows: list[dict[str, str]]
    rows: dict[str, int]
    samples: list[str]
    parameters: int
    trained: int
    flops: float
    padding: float
    forecast: Forecast
    machine: str

    @property
    def trained_share(self) -> str:
        """How many parameters are trained, where that is not all of them."""
        if self.trained == self.parameters:
            return ""
        return f", {self.trained:,} of them trained ({self.trained / self.parameters:.2%})"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        return "\n".join([
            f"columns ({rows} rows)",
            *aligned(self.columns, ("column", "type", "reason")),
            "",
            "arrows",
            *aligned(self.arrows, ("arrow", "objective", "head", "decoder", "metric")),
            "",
            "samples (trained tokens in «»)",
            *(f"  {sample}" for sample in self.samples),
            "",
            f"model      {self.parameters:,} parameters{self.trained_share}",
            f"step       {self.flops / 1e9:,.0f} GFLOP, {self.padding:.1%} of it padding",
            f"forecast   {self.forecast}",
            f"machine    {self.machine}",
        ])  # fmt: skip


def plan(data: Any, *arrows: str, family: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """What a run of these words would do: columns, arrows, samples, size, time and memory. Nothing is written.

    The forecast is measured on real steps. Raises WeftError for what the user can mend.
    """
    from weft.train.session import assemble, inputs, make_recipe

    recipe, source = make_recipe(data, arrows, family=family, overrides=overrides)
    device = pick_device()
    options = replace(recipe.train.options, dtype=pick_dtype(recipe.train.options.dtype, device))
    recipe = replace(recipe, train=replace(recipe.train, options=options))
    table = open_table(recipe.data) if source is None else source
    prepared = prepare(recipe, table, quick=True)
    with tempfile.TemporaryDirectory() as folder:
        session = assemble(Run(Path(folder), recipe, table), prepared, device)
        batches = [session.loader.step(number) for number in range(2)]
        found, _ = forecast(session, batches, columns=len(inputs(prepared)), trial=True)
    parameters = sum(p.numel() for p in session.model.parameters())
    return Plan(
        columns=[{"column": name, "type": kind.name, "reason": kind.reason} for name, kind in prepared.types.items()],
        arrows=describe(prepared.resolutions),
        rows={name: int((prepared.split == name).sum()) for name in ("train", "validation", "test")},
        samples=samples(recipe, prepared),
        parameters=parameters,
        trained=share(session.model)[0],
        flops=6.0 * parameters * session.loader.tokens_per_step,
        padding=session.loader.padding,
        forecast=found,
        machine=describe_machine(device),
    )


def samples(recipe: Recipe, prepared: Prepared) -> list[str]:
    """Real samples of training rows: one of each arrow, at least SHOWN where there are rows."""
    shown: list[str] = []
    each = max(1, -(-SHOWN // len(prepared.arrows)))
    for number, arrow in enumerate(prepared.arrows):
        filled = np.all([prepared.table.filled(name) for name in arrow.columns], axis=0) & (prepared.split == "train")
        rows = np.random.default_rng([recipe.seed, 6, number]).permutation(np.flatnonzero(filled))
        for row in rows[:each].tolist():
            try:
                sample = prepared.renderer.render(prepared.table.row(row), number, row=row)
            except DataError as error:
                shown.append(f"row {row} will be skipped: {error}")
                continue
            shown.append(str(show(sample, prepared.renderer, colour=False)))
    return shown
