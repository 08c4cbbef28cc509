"""`train`: from words to a trained run directory, and from a half-trained one on.

recipe ─ table ─ prepare ─ check ─ forecast ─┐          a new run
                                             ├─ loop ─ model.safetensors, card.md
run directory ─ newest valid checkpoint ─────┘          a resumed one
"""

from __future__ import annotations

import json as json_module
import math
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import weft
from weft.adapt.freeze import share
from weft.adapt.shelf import save as save_adapter
from weft.adapt.source import open_source
from weft.adapt.start import load_start, make
from weft.arrows.resolve import describe
from weft.core.config import Classify, Language, to_tree
from weft.data.assemble import Skips
from weft.data.batch import Batch
from weft.data.loader import Loader
from weft.data.plan import PLAN
from weft.data.sources import Table, content, open_table
from weft.errors import RecipeError, RunError, WeftError
from weft.model import kind as kind_of
from weft.recipe import Recipe, load, override
from weft.run import CONFIG, METRICS, PREPARED, SKIPPED, Run, read_lines, replace_text
from weft.train.card import card
from weft.train.check import prove
from weft.train.fit import course
from weft.train.forecast import HELD, Forecast, compile_stacks, forecast, rows_that_fit
from weft.train.guides import guided
from weft.train.keep import keep
from weft.train.keep import told as kept_told
from weft.train.loop import Interrupt, Session, Watcher, restore, save
from weft.train.machine import describe as describe_machine
from weft.train.machine import held_memory, peak_memory, pick_device, pick_dtype, told
from weft.train.once import Once, resting
from weft.train.optim import Optimizer
from weft.train.prepare import Prepared, prepare, produced, producing, resolved, understand
from weft.train.progress import Progress, aligned, speak
from weft.train.vectors import give
from weft.train.watch import Blind, Evaluate, Log, Save, swapped

TUNE_LR, ADAPTER_LR = 1e-4, 1e-3  # of AdamW from pretrained weights (Hu et al. 2021, table 9 and after: 2e-4 to 1e-2)
PROBE_LR = 1e-2  # where the whole body is frozen: a new head has nothing to lose
SAMPLES = 40  # held-out rows of each arrow that a validation looks at
PIECES = 8  # batches that a step's worth of them is looked at in


def train(
    data: Any = None,
    *arrows: str,
    out: str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    resume: str | Path | Run | None = None,
    family: str | None = None,
    overrides: Sequence[str] = (),
    json: bool = False,
) -> Run:
    """Train one model on all `arrows` of a table, or go on with a run (`resume`).

    data       a path, a built-in name, rows in memory; or a recipe (.toml), which brings arrows of its own
    out        the run directory; default runs/<name>-<n>
    minutes, steps   how long: minutes become steps by the forecast, once, and are saved
    overrides  "key=value" of the recipe, as "train.lr=0.01"
    json       print the held-out losses as JSON to stdout at the end

    Ctrl-C or SIGTERM saves and returns; a second one raises KeyboardInterrupt. Raises WeftError for what the user can
    mend.
    """
    began = time.perf_counter()
    if resume is not None:
        run = resume if isinstance(resume, Run) else Run.open(resume, None if isinstance(data, str | Path) else data)
        if minutes is not None or steps is not None:
            raise RecipeError(
                "A resumed run keeps its number of steps, so that it repeats: leave out minutes and steps."
            )
    else:
        if data is None:
            raise RecipeError("Name the data, or the run to resume.")
        recipe, source = make_recipe(data, arrows, family=family, minutes=minutes, steps=steps, overrides=overrides)
        out = Path(out or recipe.out or free(name_of(recipe, source)))
        run = Run.create(out, replace(recipe, out=str(out)), shlex.join(["weft", *sys.argv[1:]]), source)
    with run.lock(), held_memory(pick_device()):
        try:
            go(run, began)
        except WeftError:
            if resume is None and not is_prepared(run):  # nothing is lost: the same --out may be given again
                run.forget()
            raise
    if json:
        print(json_module.dumps(results(run), indent=2, ensure_ascii=False))
    return run


def make_recipe(
    data: Any, arrows: Sequence[str], *, family: str | None = None, minutes: float | None = None,
    steps: int | None = None, overrides: Sequence[str] = (),
) -> tuple[Recipe, Any]:  # fmt: skip
    """The recipe that these words mean, and the table where it is held in memory (else None)."""
    source = None
    if isinstance(data, str | Path) and str(data).endswith(".toml"):
        recipe = load(data)
        if not recipe.data:
            raise RecipeError(f'{data} names no data: add a line such as data = "photos/metadata.csv".')
    elif isinstance(data, str | Path):
        recipe = Recipe(data=str(data))
    else:
        recipe, source = Recipe(), open_table(data)
    if arrows:
        recipe = replace(recipe, arrows=tuple(str(arrow) for arrow in arrows))
    if family:
        recipe = replace(recipe, model=replace(recipe.model, family=family))
    if minutes is not None:
        recipe = replace(recipe, train=replace(recipe.train, minutes=minutes, steps=0))
    if steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, steps=steps))
    recipe = override(recipe, list(overrides))
    if recipe.model.source:
        recipe = gentler(recipe, [*overrides, *(keys_in(data) if str(data).endswith(".toml") else ())])
    if recipe.train.steps < 0 or recipe.train.minutes <= 0:
        raise RecipeError(
            f"train.steps={recipe.train.steps}, train.minutes={recipe.train.minutes}: they have to be positive."
        )
    if source is None and Path(recipe.data).exists():
        recipe = replace(recipe, data=str(Path(recipe.data).resolve()))  # a resume may come from another folder
    model, options = recipe.model, recipe.train.options
    guide = replace(model.guide, teacher=absolute(model.guide.teacher))
    parts = {kind: absolute(part) for kind, part in model.parts.items()}
    model = replace(model, source=absolute(model.source), parts=parts, guide=guide)
    options = replace(options, keep_text=absolute(options.keep_text))
    recipe = replace(recipe, model=model, train=replace(recipe.train, options=options))
    return recipe, source


def absolute(path: str) -> str:
    """A path that is there from any folder; a name that is none as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def gentler(recipe: Recipe, said: Sequence[str]) -> Recipe:
    """Rates for weights that know something, where nothing was `said` of them: AdamW, for adapters ten times the rate,
    for new heads on a frozen body a hundred times.

    (Orthogonal steps at Muon's rate would undo what is there.)
    """
    if any(word.startswith(("train.optimizer", "train.lr", "train.adam_lr")) for word in said):
        return recipe
    lr = ADAPTER_LR if recipe.model.lora.rank else TUNE_LR
    if "body" in recipe.train.freeze and not recipe.model.parts:
        heads = open_source(recipe.model.source).config.heads.values()
        if not any(isinstance(head, Language | Classify) for head in heads):  # none that could be trained on
            lr = PROBE_LR
    return replace(recipe, train=replace(recipe.train, optimizer="adamw", lr=lr))


def keys_in(path: str | Path) -> list[str]:
    """The keys of [train] that a recipe file says."""
    train = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("train", {})
    return [f"train.{key}" for key in train]


def name_of(recipe: Recipe, source: Any) -> str:
    """What to call a run of this data: photos/metadata.csv -> photos."""
    if source is not None:
        return "table"
    path = Path(recipe.data)
    return path.parent.name if path.stem == "metadata" and path.parent.name else path.stem


def free(name: str) -> Path:
    """runs/<name>-<n>, the first that is not there yet."""
    number = 1
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


# ------------------------------------------------------------------------------------------------ the course of a run


def go(run: Run, began: float) -> None:
    """Bring a locked run to its end, or as far as it is let."""
    session, prepared = reopen(run) if is_prepared(run) else begin(run, began)
    if session.state.step >= session.recipe.steps:
        if not any(line["event"] == "end" for line in run.metrics("event")):  # killed before that line
            finish(session, prepared, "", session.state.seconds)
        speak(f"{run.path} is done: all {session.recipe.steps:,} steps are trained.")
        return
    progress = Progress(session.recipe.steps, session.state.step)
    before, started = session.state.seconds, time.perf_counter()
    try:
        kept = keep(session, prepared.renderer)
        watchers: list[Watcher] = [
            Log(progress), *held_out(session, prepared, progress.say), *([kept] if kept else []), Save()
        ]  # fmt: skip
        with Interrupt() as stop, progress.shown():
            course(session.model.config)(session, watchers, stop)
            save(session)
    finally:
        list_skipped(session)
    stopped = stop.asked if session.state.step < session.recipe.steps else ""
    finish(session, prepared, stopped, before + time.perf_counter() - started)


def is_prepared(run: Run) -> bool:
    """Whether everything before the first step was done."""
    return (run.path / PREPARED).is_file()


def begin(run: Run, began: float) -> tuple[Session, Prepared]:
    """A new run: prepare, prove, foresee; from here on a kill loses nothing but time."""
    for name in (METRICS, SKIPPED):
        (run.path / name).unlink(missing_ok=True)  # of a beginning that was killed
    device = pick_device()
    options = replace(run.recipe.train.options, dtype=pick_dtype(run.recipe.train.options.dtype, device))
    run.recipe = replace(run.recipe, train=replace(run.recipe.train, options=options))
    prepared = prepare(run.recipe, run.table, run.path, speak)
    run.recipe = resolved(run.recipe, prepared)
    speak("\n".join(understood(prepared)))
    replace_text(run.path / CONFIG, json_module.dumps(to_tree(prepared.config), indent=1) + "\n")
    code_ahead(prepared)
    if options.check:
        speak(str(prove(run.recipe, prepared)))
    session = assemble(run, prepared, device)
    try:
        if isinstance(session.loader.encode, Once):
            session.loader.encode.fill(session.loader, run.recipe.train.steps, speak)
        batches = settle(session)
        found, run.recipe = forecast(
            session, batches, spent=time.perf_counter() - began, columns=len(inputs(prepared)), say=speak
        )  # fmt: skip
    finally:
        list_skipped(session)
    speak(str(found))
    tell(session, prepared, found)
    run.keep(run.recipe)
    replace_text(run.path / PREPARED, json_module.dumps({"fingerprint": run.table.fingerprint, "plan": PLAN}) + "\n")
    return session, prepared


def understood(prepared: Prepared) -> list[str]:
    """Columns and arrows as they were understood, as lines."""
    columns = [{"column": name, "type": t.name, "reason": t.reason} for name, t in prepared.types.items()]
    rows = ", ".join(f"{(prepared.split == name).sum():,} {name}" for name in ("train", "validation", "test"))
    return [
        f"columns ({rows} rows)",
        *aligned(columns, ("column", "type", "reason")),
        "arrows",
        *aligned(describe(prepared.resolutions), ("arrow", "objective", "head", "decoder", "metric")),
    ]


def settle(session: Session) -> list[list[Batch]]:
    """Decide the size of micro-batches where the recipe leaves it open; returns the batches of the first two steps.

    Pairs of `a <-> b` are not split: their loss is over all of them.
    """
    recipe, loader = session.run.recipe, session.loader
    if not recipe.train.micro and not any(lane.paired for lane in loader.lanes):
        with_rows = lambda micro: replace(recipe, train=replace(recipe.train, micro=micro))
        loader.recipe = with_rows(1)
        fitting = rows_that_fit(session, loader.step(0)[0])
        session.run.recipe = loader.recipe = with_rows(fitting)
    return [session.loader.step(number) for number in range(2)]


def reopen(run: Run) -> tuple[Session, Prepared]:
    """A run that was prepared: everything from its files, weights from the newest valid checkpoint."""
    if run.changed:
        raise RunError(
            f"{run.table.name} is not what {run.path} was trained on: its content has changed. "
            "Restore it, or train anew. (A built-in table of an older weft lies beside the new one, as <name>-before.)"
        )
    if run.prepared.get("plan", 1) != PLAN and any(isinstance(m, float) and m > 1 for m in run.recipe.mix.values()):
        speak("an older weft planned this run: from here on it meets its rows in another order than it would have")
    arrows, types, resolutions = understand(run.recipe, run.table, kind_of(run.config.topology), run.renderer.columns)
    base, start = load_start(run.path)
    prepared = Prepared(
        run.table, run.split, types, arrows, resolutions, run.renderer, run.config, base=base, start=start
    )
    session = assemble(run, prepared, pick_device())
    if run.recipe.train.options.compile == "on":
        compile_stacks(session)
    there = restore(session, speak)
    if session.state.step < run.recipe.train.steps:
        run.record(event="resume", step=session.state.step)
        where = f"after step {session.state.step:,}" if there else "at its first step: nothing was saved"
        speak(f"going on with {run.path} {where}")
        code_ahead(prepared)
    return session, prepared


def code_ahead(prepared: Prepared) -> None:
    """Code the media that is to be produced, many at once: far quicker than one by one as rows are rendered."""
    rows = np.flatnonzero(prepared.split != "test")
    for columns in produced(prepared.arrows, prepared.types).values():
        for name, mine in producing(prepared.table, rows, prepared.arrows, columns).items():
            cells = prepared.table.column(name)
            first = {content(cells[i]): int(i) for i in mine}
            prepared.renderer.precode(name, (prepared.table.row(i)[name] for i in first.values()))


def assemble(run: Run, prepared: Prepared, device: torch.device) -> Session:
    """Model, optimiser and loader at step 0."""
    model = make(prepared.config, run.recipe, prepared.base, prepared.start).to(device)
    if run.recipe.model.embeddings:
        speak(give(model, prepared.renderer, run.recipe.model.embeddings, run.recipe.model.source))
    guided(model, run.recipe, prepared, device)
    names = [str(arrow) for arrow in prepared.arrows]
    loader = loader_of(prepared, run.recipe)
    if encoders := resting(model, loader.assembler.augment.kinds):
        loader.encode = Once(encoders, device, run.recipe.train.options.dtype)
    return Session(run, model, Optimizer(model, run.recipe.train), loader, device, names)


def loader_of(prepared: Prepared, recipe: Recipe, table: Table | None = None, skips: Skips | None = None) -> Loader:
    """The loader of the run's rows, or of another table with the same rows. skips: where it lists rows left out."""
    return Loader(
        table or prepared.table, prepared.renderer, arrows=prepared.arrows, resolutions=prepared.resolutions,
        recipe=recipe, split=prepared.split, skips=skips,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ held-out rows


def inputs(prepared: Prepared) -> dict[str, list[str]]:
    """Input column -> the arrows that read it."""
    users: dict[str, list[str]] = {}
    for arrow in prepared.arrows:
        for column in arrow.inputs if arrow.kind == "produce" else ():
            users.setdefault(column.name, []).append(str(arrow))
    return users


def held_out(session: Session, prepared: Prepared, say: Callable[[str], None]) -> list[Watcher]:
    """The watchers that look at validation rows; none where there are no such rows."""
    if not (prepared.split == "validation").any():
        say("no rows are held out for validation, so nothing is said about rows that the model has not seen")
        return []
    plain = look_at(session, prepared, prepared.table)
    makers = {}
    for column in inputs(prepared):
        rows = np.flatnonzero(prepared.split == "validation")
        table = swapped(prepared.table, column, rows, session.run.recipe.seed)
        if table is not None:
            makers[column] = partial(look_at, session, prepared, table)
    return [Evaluate(plain), Blind(plain, makers, inputs(prepared), say)]


def look_at(session: Session, prepared: Prepared, table: Table) -> list[Batch]:
    """SAMPLES validation rows of each arrow, at most HELD steps' worth, in small batches: their spread tells how sure a
    mean is.
    """
    recipe = session.run.recipe
    train = recipe.train
    height = max(1, train.tokens // train.length)
    small = replace(recipe, train=replace(train, micro=math.ceil(height / PIECES)))
    skips = session.loader.skips if table is prepared.table else None  # exchanged cells are not those of the row
    loader = loader_of(prepared, small, table, skips)
    loader.encode = session.loader.encode
    steps = loader.evaluation("validation", SAMPLES)
    return [batch for batches in islice(steps, HELD) for batch in batches]


# ------------------------------------------------------------------------------------------------ what is written


def results(run: Run) -> list[dict[str, Any]]:
    """The last validation as `weft eval --json` writes results: the loss per token of each arrow. n counts rows.
    low and high are None where there is one row only."""
    lines = run.metrics("validation")
    if not lines:
        return []
    held = lines[-1]["validation"]
    return [
        {"arrow": name, "split": "validation", "metric": "loss", "value": value, "low": low, "high": high, "n": n}
        for name, value in held["arrows"].items()
        for low, high, n in [held["intervals"][name]]
    ]


def tell(session: Session, prepared: Prepared, found: Forecast) -> None:
    """The first line of metrics.jsonl: what was decided and foreseen."""
    session.run.record(
        event="start",
        command=" ".join(["weft", *sys.argv[1:]]),
        weft=weft.__version__,
        torch=torch.__version__,
        machine=describe_machine(session.device),
        parameters=share(session.model)[1],
        trained=share(session.model)[0],
        resolutions=describe(prepared.resolutions),
        forecast={**asdict(found)},
    )


def list_skipped(session: Session) -> int:
    """Write skipped.jsonl: what was listed before a resume, and what this process left out. Returns how many."""
    path = session.run.path / SKIPPED
    found = {(line["row"], line["arrow"]): line for line in (read_lines(path) if path.exists() else ())}
    for s in session.loader.skipped:
        found[s.row, s.arrow] = {"row": s.row, "file": str(s.what), "arrow": s.arrow, "reason": s.reason}
    session.run.skip([found[key] for key in sorted(found)])
    return len(found)


def finish(session: Session, prepared: Prepared, stopped: str, seconds: float) -> None:
    """What is written at the end, or where a signal ended it."""
    run, state = session.run, session.state
    promised = next(line["forecast"] for line in run.metrics("event") if line["event"] == "start")
    was = {"seconds": seconds, "memory": peak_memory(session.device)}
    skipped = list_skipped(session)
    run.record(
        event="stop" if stopped else "end", step=state.step, **was, nonfinite=state.bad,
        skipped=skipped, hit={key: value / promised[key] for key, value in was.items() if promised[key]},
    )  # fmt: skip
    replace_text(run.path / "card.md", card(session, prepared))
    if (adapter := save_adapter(run, session.model)) is not None:
        speak(f"the adapter by itself, as peft reads it: {adapter}")
    if stopped:
        speak(f"{stopped}: saved after step {state.step:,}. Go on with: weft train --resume {run.path}")
        return
    soon = f", {promised['seconds'] / 60:.1f} were foreseen" if promised["seconds"] else ""
    parts = (f"{seconds / 60:.1f} minutes{soon}",
             f"{told(was['memory'])}, {told(promised['memory'])} foreseen")  # fmt: skip
    speak("; ".join(parts))
    if skipped:
        speak(f"left out: {skipped} x a row for an arrow, each with its reason in {run.path / SKIPPED}")
    if said := kept_told(run.metrics("event")):
        speak(said)
