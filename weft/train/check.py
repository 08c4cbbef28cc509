"""`weft check`: prove on the user's own rows that what will be trained is what was meant. Under a minute.

starting loss   near ln(vocabulary) for each head
padding         the loss does not change with it               ┐
packing         packed documents lose what they lose alone     ├ sums per arrow, in float32
accumulation    micro-batches give the loss and the gradient   ┘
decoding        with a cache = without
rows            each trains at least one token
gradients       each trainable tensor gets one
saving          saved and loaded weights give equal logits
resume          20 steps in one go = some, a save, the rest: equal bits
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft.adapt.start import make
from weft.core.config import Classify
from weft.core.view import Media, Tokens
from weft.data.batch import Batch
from weft.data.loader import Loader
from weft.data.sources import Table, content
from weft.errors import CheckError, DataError
from weft.model import Model
from weft.objectives import OBJECTIVES
from weft.recipe import Recipe
from weft.run import Run
from weft.train.fit import counting
from weft.train.guides import guided
from weft.train.loop import Session, per_arrow, restore, save, step
from weft.train.machine import pick_device, pick_dtype
from weft.train.optim import Optimizer
from weft.train.prepare import Prepared

ROWS = 24  # training rows of each arrow that are looked at; `rows` goes through all it has time for
NEAR = 2e-4  # relative difference that float32 sums in another order may make
STEPS = 20


@dataclass(frozen=True)
class Finding:
    """One thing proven, or found broken."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"  {'ok ' if self.ok else 'RED'}  {self.name:<14} {self.detail}"


@dataclass(frozen=True)
class Findings:
    """All of them, and the seconds that they took."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(
            [f"check: {len(self.findings)} invariants on your rows, {self.seconds:.0f} s", *map(str, self.findings)]
        )

    def as_dict(self) -> list[dict[str, Any]]:
        """For `--json`."""
        return [{"name": f.name, "ok": f.ok, "detail": f.detail} for f in self.findings]


@dataclass
class Bench:
    """A few of the user's rows, and models upon them. `rows[i]` is what the user calls row i of `table`.

    budget  seconds for going through rows, and again for the steps of `resume`
    """

    recipe: Recipe
    prepared: Prepared
    table: Table
    rows: np.ndarray
    device: torch.device
    budget: float

    def loader(self) -> Loader:
        """Of the few rows, all of them training rows."""
        return Loader(
            self.table, self.prepared.renderer, arrows=self.prepared.arrows, resolutions=self.prepared.resolutions,
            recipe=self.recipe, split=np.array(["train"] * len(self.table), dtype=object),
        )  # fmt: skip

    def model(self) -> Model:
        """As it is before its first step."""
        prepared = self.prepared
        model = make(prepared.config, self.recipe, prepared.base, prepared.start).to(self.device)
        return guided(model, self.recipe, prepared, self.device)

    def trained(self) -> Model:
        """A model whose every part does something: blocks that start as the identity would hide what is wrong."""
        model = self.model()
        generator = torch.Generator().manual_seed(self.recipe.seed)
        with torch.no_grad():
            for p in model.parameters():
                scale = p.shape[-1] ** -0.5 if p.ndim >= 2 else 0.1
                p += (scale * torch.randn(p.shape, generator=generator)).to(p)
        return model.eval()

    def session(self, folder: Path) -> Session:
        """A training session in a scratch directory."""
        run = Run(folder, self.recipe)
        model = self.model()
        names = [str(arrow) for arrow in self.prepared.arrows]
        return Session(run, model, Optimizer(model, self.recipe.train), self.loader(), self.device, names)

    def named(self, rows: Sequence[int]) -> str:
        """Rows of the bench by their numbers in the user's table."""
        return "row " + ", ".join(str(int(self.rows[row])) for row in rows[:5]) + (" ..." if len(rows) > 5 else "")


def prove(recipe: Recipe, prepared: Prepared, budget: float = 3.0) -> Findings:
    """Run every check. Raises CheckError, naming rows or tensors, if one is red."""
    began = time.perf_counter()
    bench = small(recipe, prepared, budget)
    looks = [look for look in CHECKS if look not in TRAINED] if counting(prepared.config) else CHECKS
    findings = tuple(look(bench) for look in looks)
    found = Findings(findings, time.perf_counter() - began)
    if not found.ok:
        red = "\n".join(str(finding) for finding in findings if not finding.ok)
        raise CheckError(f"An invariant is broken on these rows, so nothing was trained:\n{red}")
    return found


def small(recipe: Recipe, prepared: Prepared, budget: float = 3.0) -> Bench:
    """ROWS training rows of each arrow, two packed rows per step, no decisions left open."""
    table, chosen = prepared.table, []
    for number in range(len(prepared.arrows)):
        chosen += rows_of_arrow(prepared, number)[:ROWS].tolist()
    rows = np.array(sorted(set(chosen)))
    part = Table({c: [table.column(c)[i] for i in rows] for c in table.columns}, table.folder, table.name)
    options = replace(recipe.train.options, dtype="float32", compile="off", skip_share=1.0)
    train = replace(recipe.train, tokens=2 * recipe.train.length, micro=0, steps=STEPS, options=options)
    return Bench(replace(recipe, train=train, mix={}), prepared, part, rows, pick_device(), budget)


# ------------------------------------------------------------------------------------------------ the checks


def starting_loss(bench: Bench) -> Finding:
    """An untrained head knows nothing: its loss is that of guessing."""
    if bench.prepared.base is not None:
        return Finding("starting loss", True, "does not apply: it starts from weights that know something")
    model, loader = bench.model().eval(), bench.loader()
    told, ok = [], True
    sums: dict[tuple[str, str], list[float]] = {}
    guesses: dict[tuple[str, str], float] = {}
    for batch in (b for number in range(2) for b in loader.step(number)):
        total, counts = summed(model, batch, bench.device)
        key = (batch.objective, batch.head)
        old = sums.setdefault(key, [0.0, 0.0])
        sums[key] = [old[0] + total.sum().item(), old[1] + counts.sum().item()]
        head = bench.prepared.config.heads.get(batch.head)
        classes = head.classes if isinstance(head, Classify) else bench.prepared.renderer.vocabulary.size
        guesses[key] = math.log(classes)
        if batch.objective == "contrastive":  # of a sigmoid loss almost all is the pair itself, refused by the bias
            bias = getattr(bench.prepared.config.topology, "bias", None)
            guesses[key] = math.log(max(2, len(batch.rows))) if bias is None else math.log1p(math.exp(-bias))
    for (objective, head), (total, count) in sums.items():
        loss, guess = total / max(count, 1), guesses[objective, head]
        # a sharp temperature makes even untrained pairs unlike: Radford et al. 2021 start at 0.07
        ok &= abs(loss - guess) < 0.1 * guess + (1.5 if objective == "contrastive" else 0.3)
        told.append(f"{objective if objective == 'contrastive' else head}: {loss:.2f}, guessing gives {guess:.2f}")
    return Finding("starting loss", ok, "; ".join(told))


def padding(bench: Bench) -> Finding:
    """Rows cut down to their longest document, against the same rows in full width."""
    model = bench.trained()
    for batch in alone(bench):
        cut = narrow(batch)
        worst = difference(summed(model, batch, bench.device)[0], summed(model, cut, bench.device)[0])
        if worst > NEAR:
            return Finding("padding", False, f"{bench.named(batch.rows)}: padding changes the loss by {worst:.1e}")
    return Finding("padding", True, "the loss does not change with it")


def packing(bench: Bench) -> Finding:
    """Every packed row against its samples, each by itself."""
    model, loader = bench.trained(), bench.loader()
    count, shared = 0, 0
    for packed, single in pairs(loader):
        if packed.objective == "contrastive":  # its loss is over all pairs of the batch, by its nature
            continue
        a, tokens = summed(model, packed, bench.device)
        b, others = summed(model, single, bench.device)
        if not torch.equal(tokens, others):
            return Finding(
                "packing",
                False,
                f"{bench.named(packed.rows)}: {tokens.sum():.0f} tokens are trained packed, {others.sum():.0f} alone",
            )
        if (worst := difference(a, b)) > NEAR:
            return Finding("packing", False, f"{bench.named(packed.rows)}: packing changes the loss by {worst:.1e}")
        count += len(single.rows)
        shared += int(packed.tokens.branch is not None and bool((packed.tokens.branch > 0).any()))
    if not count:
        return Finding("packing", True, "does not apply: each pair has a row of its own")
    return Finding(
        "packing",
        True,
        f"{count} samples lose packed what they lose alone" + (f"; {shared} rows share a trunk" if shared else ""),
    )


def accumulation(bench: Bench) -> Finding:
    """A step's rows at once, against one row after the other: loss and gradient."""
    loader = bench.loader()
    fullest = max(map(loader.step, range(min(4, loader.round(0).steps))), key=lambda step: sum(b.real for b in step))
    batches = [b for b in fullest if b.objective != "contrastive"]
    if not batches:
        return Finding("accumulation", True, "does not apply: the loss is over all pairs of a batch")
    total = sum(b.total for b in batches) or 1.0
    found = []
    for parts in (batches, [p for b in batches for p in (rows_of(b, [i]) for i in range(len(b.tokens.ids)))]):
        model = bench.trained()
        loss = 0.0
        for part in parts:
            value, _ = OBJECTIVES[part.objective](model, replace(part, total=total).to(bench.device))
            if value.requires_grad:
                value.backward()
            loss += value.item()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (a, whole), (b, pieces) = found
    if abs(a - b) > NEAR * abs(a):
        return Finding("accumulation", False, f"at once the loss is {a:.6f}, row by row {b:.6f}")
    for name, gradient in whole.items():
        if (worst := difference(gradient, pieces[name])) > 20 * NEAR:
            return Finding("accumulation", False, f"the gradient of {name} differs by {worst:.1e}")
    return Finding("accumulation", True, f"loss and {len(whole)} gradients are equal at once and row by row")


@torch.no_grad()
def decoding(bench: Bench) -> Finding:
    """One sample of each arrow in one go, against its prompt first and then token by token from a cache."""
    model, seen = bench.trained(), set()
    if model.kind not in ("decoder", "encoder-decoder"):
        return Finding("decoding", True, f"the {model.kind} does not decode")
    for batch in alone(bench):
        if batch.arrow is None or batch.targets is None:
            continue
        number = int(batch.arrow.max())
        if number in seen:
            continue
        seen.add(number)
        start = int((batch.targets[0] != -100).nonzero()[0, 0]) + 1  # behind the prompt
        batch = narrow(batch).to(bench.device)
        source = batch.source if batch.source is None else model.encode(batch.source)
        whole = model.hidden(batch.tokens, source)  # (1,T,D)
        length = whole.shape[1]
        edges = [0, start, *range(start + 1, min(start + 8, length) + 1)]
        source = batch.source if batch.source is None else model.encode(batch.source)
        cache, parts = model.cache(), []
        for a, b in pairwise(edges):
            parts.append(model.hidden(columns(batch.tokens, a, b), source, cache=cache))
        worst = difference(whole[:, : edges[-1]], torch.cat(parts, 1))
        if worst > NEAR:
            arrow = bench.prepared.arrows[number]
            return Finding(
                "decoding", False, f"{bench.named(batch.rows)}, '{arrow}': a cache changes hidden states by {worst:.1e}"
            )
    return Finding("decoding", True, f"cached equals uncached for {len(seen)} arrows")


def every_row(bench: Bench) -> Finding:
    """Training rows of each arrow, for as long as the budget lasts: one of each different output, since what is trained
    is rendered from the output's cell alone.
    """
    prepared = bench.prepared
    began, looked, different, rows = time.perf_counter(), 0, 0, 0
    for number, arrow in enumerate(prepared.arrows):
        if arrow.kind == "align":
            continue  # pairs are trained, not tokens
        mine = rows_of_arrow(prepared, number)
        cells = prepared.table.column(arrow.output)
        first = {content(cells[row]): row for row in reversed(mine.tolist())}
        rows, different = rows + len(mine), different + len(first)
        until = began + bench.budget * (number + 1) / len(prepared.arrows)
        for tried, row in enumerate(first.values()):
            if time.perf_counter() > until and tried >= ROWS:
                break
            looked += 1
            try:
                trained = prepared.renderer.render(prepared.table.row(row), number, row=row).trained
            except DataError:  # the loader lists this row as skipped, and stops where there are too many
                continue
            if not trained:
                return Finding("rows", False, f"row {row} trains no token under '{arrow}'")
    if not rows:
        return Finding("rows", True, "does not apply: pairs are trained, not tokens")
    some = "" if looked == different else f"; {looked:,} of them were looked at in the time there was"
    return Finding(
        "rows", True, f"{rows:,} samples have {different:,} different outputs, each trains at least one token{some}"
    )


def rows_of_arrow(prepared: Prepared, number: int) -> np.ndarray:
    """Training rows that have a value in every column of an arrow, in a seeded order."""
    filled = np.all([prepared.table.filled(name) for name in prepared.arrows[number].columns], axis=0)
    return np.random.default_rng([5, number]).permutation(np.flatnonzero(filled & (prepared.split == "train")))


def gradients(bench: Bench) -> Finding:
    """Over a few steps on the rows: a tensor that never gets a gradient is trained by nothing."""
    model, loader = bench.trained(), bench.loader()
    model.train()
    for number in range(8):
        for batch in loader.step(number):
            loss, _ = OBJECTIVES[batch.objective](model, batch.to(bench.device))
            loss.backward()
        lost = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        if not lost:
            count = sum(1 for p in model.parameters() if p.requires_grad)
            return Finding("gradients", True, f"all {count} tensors get one")
    return Finding("gradients", False, f"no gradient reaches {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}")


@torch.no_grad()
def saving(bench: Bench) -> Finding:
    """Weights through a checkpoint on disk into a new model."""
    batch = bench.loader().step(0)[0].to(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        session = bench.session(Path(folder))
        session.model = bench.trained()
        session.optimizer = Optimizer(session.model, bench.recipe.train)
        save(session)
        again = bench.session(Path(folder))
        restore(again, lambda text: None)
    a, b = (m.eval().hidden(batch.tokens, batch.source) for m in (session.model, again.model))
    if not torch.equal(a, b):
        return Finding("saving", False, f"loaded weights change hidden states by {difference(a, b):.1e}")
    return Finding("saving", True, "saved and loaded weights give equal bits")


def resume(bench: Bench) -> Finding:
    """Training in one go, against half of it, a save, a new session, and the rest."""
    with tempfile.TemporaryDirectory() as folder:
        whole = bench.session(Path(folder))
        losses = steps(whole, 2)
        began = time.perf_counter()
        losses += steps(whole, 1)  # the first ones plan, and read what is read once
        count = max(4, min(STEPS, int(bench.budget / (time.perf_counter() - began) / 2)))
        losses += steps(whole, count - 3)
        first = bench.session(Path(folder))
        again = steps(first, count // 2)
        save(first)
        second = bench.session(Path(folder))
        restore(second, lambda text: None)
        again += steps(second, count - count // 2)
    for number, (a, b) in enumerate(zip(losses, again, strict=True), 1):
        if a != b:
            return Finding(
                "resume",
                False,
                f"the loss of step {number} is {a!r} in one go and {b!r} with a resume after step {count // 2}",
            )
    for (name, p), q in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        if not torch.equal(p, q):
            return Finding("resume", False, f"{name} differs after {count} steps with a resume among them")
    return Finding("resume", True, f"{count} steps with a save and a resume among them give equal bits")


CHECKS: tuple[Callable[[Bench], Finding], ...] = (
    starting_loss, padding, packing, accumulation, decoding, every_row, gradients, saving, resume,
)  # fmt: skip


TRAINED = (accumulation, gradients, resume)  # of what has gradients


# ------------------------------------------------------------------------------------------------ their tools


def steps(session: Session, count: int) -> list[float]:
    """Train on; the losses."""
    session.model.train()
    return [step(session, session.loader.step(session.state.step), time.perf_counter()).loss for _ in range(count)]


@torch.no_grad()
def summed(model: Model, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(arrows,) the loss summed over tokens, and how many they are."""
    _, report = OBJECTIVES[batch.objective](model, batch.to(device))
    sums, counts = per_arrow(report)
    return sums.double().cpu(), counts.cpu()


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, against the largest number."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) if a.numel() else 0.0


def pairs(loader: Loader) -> Iterator[tuple[Batch, Batch]]:
    """Each packed row of the first two steps, and its samples as a batch of one sample per row."""
    planner, plan = loader.planner("train"), loader.round(0)
    for number in range(min(2, plan.steps)):
        for index, rows in enumerate(plan.step(number)):
            lane, samples, widths = loader.lanes[index], planner.samples[index], planner.widths(index)
            for row in rows:
                singles = [[doc._replace(samples=(i,))] for doc in row for i in doc.samples]
                make = partial(loader.assembler.batch, lane, samples)
                yield make([row], 1, widths), make(singles, len(singles), widths)


def alone(bench: Bench) -> Iterator[Batch]:
    """Samples one by one, each in a row of its own."""
    for _, single in pairs(bench.loader()):
        for number in range(len(single.tokens.ids)):
            yield rows_of(single, [number])


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, as a batch."""
    pick = lambda t: None if t is None else t[rows]
    source = None if batch.source is None else tokens_of(batch.source, rows, 0, batch.source.ids.shape[1])
    return replace(
        batch, tokens=tokens_of(batch.tokens, rows, 0, batch.tokens.ids.shape[1]), source=source,
        targets=pick(batch.targets), weights=pick(batch.weights), arrow=pick(batch.arrow),
        rows=[batch.rows[i] for i in rows] if len(batch.rows) == len(batch.tokens.ids) else batch.rows,
    )  # fmt: skip


def narrow(batch: Batch) -> Batch:
    """The batch without the columns that are padding in all rows."""
    width = lambda t: int((t.document > 0).any(0).nonzero().max()) + 1
    every = list(range(len(batch.tokens.ids)))
    n = width(batch.tokens)
    cut = lambda t: None if t is None else t[:, :n]
    source = None if batch.source is None else tokens_of(batch.source, every, 0, width(batch.source))
    return replace(
        batch, tokens=tokens_of(batch.tokens, every, 0, n), source=source, targets=cut(batch.targets),
        weights=cut(batch.weights), arrow=cut(batch.arrow),
    )  # fmt: skip


def columns(tokens: Tokens, start: int, stop: int) -> Tokens:
    """Columns start..stop of every row."""
    return tokens_of(tokens, list(range(len(tokens.ids))), start, stop)


def tokens_of(tokens: Tokens, rows: list[int], start: int, stop: int) -> Tokens:
    """Some rows and columns of a stream; media that lies elsewhere is left out, the rest finds its new place."""
    cut = lambda t: None if t is None else t[rows, start:stop]
    place = torch.full(tokens.ids.shape, -1, dtype=torch.long, device=tokens.ids.device)
    place[rows, start:stop] = torch.arange(len(rows) * (stop - start), device=tokens.ids.device).view(len(rows), -1)
    media = []
    for one in tokens.media:
        at = place.flatten()[one.at]
        if (at >= 0).any():
            media.append(Media(one.kind, one.values[at >= 0], at[at >= 0]))
    return Tokens(
        tokens.ids[rows, start:stop],
        cut(tokens.document),
        cut(tokens.branch),
        cut(tokens.span),
        cut(tokens.positions),
        tuple(media),
    )


# ------------------------------------------------------------------------------------------------ the command


def check(data: Any, *arrows: str, family: str | None = None, overrides: Sequence[str] = ()) -> Findings:
    """Prove the invariants above for a run that these words would start. Nothing is written.

    Codecs are only begun, since what a code looks like proves nothing. Raises CheckError naming the row or tensor of
    each red one, and WeftError for what the user can mend before.
    """
    from weft.data.sources import open_table
    from weft.train.prepare import prepare
    from weft.train.session import make_recipe

    recipe, source = make_recipe(data, arrows, family=family, overrides=overrides)
    device = pick_device()
    options = replace(recipe.train.options, dtype=pick_dtype(recipe.train.options.dtype, device))
    recipe = replace(recipe, train=replace(recipe.train, options=options))
    prepared = prepare(recipe, open_table(recipe.data) if source is None else source, quick=True)
    return prove(recipe, prepared, budget=12.0)
