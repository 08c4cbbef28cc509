"""Packed against padded: the demo's rows through the demo's model, the way weft batches them and the usual way.

    packed    rows of train.length tokens filled with documents; samples that begin alike share that beginning
    padded    one sample a row, padded to the longest of its batch, samples in random order
    grouped   the same, but samples of similar length are put together first (the usual remedy)

Each batch holds about as many places (tokens and padding) as a packed one. What counts is what the user gets: tokens of
samples per second, a shared beginning counted for every sample that needs it, padding never.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft.data import pack
from weft.data.batch import Batch
from weft.data.loader import Loader
from weft.data.sources import open_table
from weft.model import build
from weft.objectives import OBJECTIVES
from weft.recipe import Recipe, load
from weft.train.machine import autocast, pick_dtype
from weft.train.optim import Optimizer
from weft.train.prepare import Prepared, prepare

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"
DRAWN = 4000  # samples that the padded batches are made of
Made = tuple[list[Batch], int, int]  # batches of one step, tokens of its samples, samples


def packed_against_padded(device: torch.device, seconds: float) -> dict[str, Any]:
    """Tokens and rows per second of each way, as measured in turns; and packed over padded."""
    recipe = load(RECIPE)
    # the codecs' quality does not matter here, so they are given a second or two
    recipe = replace(recipe, train=replace(recipe.train, minutes=0.4, steps=0))
    prepared = prepare(recipe, open_table(recipe.data))
    loader = Loader(
        prepared.table,
        prepared.renderer,
        arrows=prepared.arrows,
        resolutions=prepared.resolutions,
        recipe=recipe,
        split=prepared.split,
    )
    samples = draw(loader, prepared)
    makers = {
        "packed": packed(loader, samples),
        "padded": padded(loader, samples, grouped=False),
        "grouped": padded(loader, samples, grouped=True),
    }
    model = build(prepared.config, seed=0, device=device)
    measured = take_turns(makers, step_of(model, recipe, device), seconds)
    for name in ("padded", "grouped"):
        measured[name]["ratio"] = measured["packed"]["tokens_per_second"] / measured[name]["tokens_per_second"]
    measured["ratio"] = measured["padded"]["ratio"]
    measured["rows_ratio"] = measured["packed"]["rows_per_second"] / measured["padded"]["rows_per_second"]
    return measured


def draw(loader: Loader, prepared: Prepared) -> dict[tuple[int, int], int]:
    """(row, arrow) -> tokens, of the samples that the loader would train on in its first round."""
    found = {}
    for samples in loader.planner("train").samples:
        lengths = samples.lengths.sum(1).tolist()
        found.update(zip(zip(samples.row.tolist(), samples.arrow.tolist(), strict=True), lengths, strict=True))
    return found


def packed(loader: Loader, samples: dict[tuple[int, int], int]) -> Callable[[int], Made]:
    """The loader's own steps."""

    def make(number: int) -> Made:
        plan, inside = loader.locate(number)
        round_, planner = loader.round(plan), loader.planner("train")
        mine = [
            (int(s.row[i]), int(s.arrow[i]))
            for s, rows in zip(planner.samples, round_.step(inside), strict=True)
            for row in rows
            for doc in row
            for i in doc.samples
        ]
        return loader.step(number), sum(samples[one] for one in mine), len(mine)

    return make


def padded(loader: Loader, samples: dict[tuple[int, int], int], *, grouped: bool) -> Callable[[int], Made]:
    """One sample a row, padded to the longest of the batch."""
    places = loader.tokens_per_step
    rng = np.random.default_rng(0)
    keys = list(samples)
    order = [keys[i] for i in rng.permutation(len(keys))[:DRAWN]]
    if grouped:
        order.sort(key=samples.__getitem__)
    batches: list[list[tuple[int, int]]] = [[]]
    for key in order:
        longest = max([samples[key], *(samples[k] for k in batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > places:
            batches.append([])
        batches[-1].append(key)
    batches = [batches[i] for i in rng.permutation(len(batches))]

    def make(number: int) -> Made:
        mine = batches[number % len(batches)]
        longest = max(samples[key] for key in mine)
        rows = []
        for row, arrow in mine:
            sample = loader.renderer.render(loader.table.row(row), arrow, row=row)
            piece = pack.flatten(sample.spans)[0]
            rows.append([pack.tree(None, [piece], [arrow], [a.weight for a in loader.arrows])])
        stream = pack.collate(rows, len(rows), longest)
        batch = Batch(
            stream.tokens, stream.targets, stream.weights, stream.arrow, total=stream.trained, real=stream.real
        )
        return [batch], sum(samples[key] for key in mine), len(mine)

    return make


def step_of(model: Any, recipe: Recipe, device: torch.device) -> Callable[[list[Batch]], None]:
    """A whole training step, uncompiled: padded batches have a new shape each time."""
    optimizer = Optimizer(model, recipe.train)
    dtype = pick_dtype(recipe.train.options.dtype, device)

    def step(batches: list[Batch]) -> None:
        for batch in batches:
            with autocast(device, dtype):
                loss, _ = OBJECTIVES[batch.objective](model, batch.to(device))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.params, recipe.train.options.clip)
        optimizer.step(0.01)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def take_turns(
    makers: dict[str, Callable[[int], Made]], step: Callable[[list[Batch]], None], seconds: float
) -> dict[str, Any]:
    """One step of each way in turn, until each had about `seconds`. Making the batch is not timed: a thread does it."""
    times: dict[str, list[float]] = {name: [] for name in makers}
    told: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in makers}
    began, number = time.perf_counter(), 0
    while number < 4 or time.perf_counter() - began < seconds * len(makers):
        for name, make in makers.items():
            batches, tokens, rows = make(number)
            start = time.perf_counter()
            step(batches)
            if number:  # the first one warms up
                times[name].append(time.perf_counter() - start)
                places = sum(b.tokens.ids.numel() for b in batches)
                told[name].append((tokens, rows, sum(b.real for b in batches), places))
        number += 1
    out: dict[str, Any] = {}
    for name in makers:
        rates = [(t / s, r / s) for (t, r, _, _), s in zip(told[name], times[name], strict=True)]
        real, places = (sum(column) for column in list(zip(*told[name], strict=True))[2:])
        out[name] = {
            "tokens_per_second": statistics.median(t for t, _ in rates),
            "rows_per_second": statistics.median(r for _, r in rates),
            "padding": 1 - real / places,
            "steps": len(times[name]),
        }
    return out
