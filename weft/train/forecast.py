"""How long a run will take and how much memory, measured before it starts: a few real steps on real batches.

minutes ─┐                       ┌─ compile?   if the steps saved outweigh the compiling
         ├─ real steps, timed ───┼─ steps      fixed here, saved in the recipe, so that a resume repeats them
batches ─┘                       └─ seconds and bytes, held against what they then were
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from weft.core.slot import Slot
from weft.data.batch import Batch
from weft.data.loader import AHEAD
from weft.errors import RecipeError, nearest
from weft.model import Model
from weft.objectives import OBJECTIVES
from weft.recipe import Recipe, TrainRecipe
from weft.train import checkpoint
from weft.train.fit import counting, foreseen
from weft.train.loop import Session, State, step
from weft.train.machine import autocast, free_memory, peak_memory, told
from weft.train.once import Once
from weft.train.optim import Optimizer

Say = Callable[[str], None]
COMPILE = ("auto", "on", "off")
COMPILING = 35.0  # seconds that compiling takes where it was never done (17-37 s seen on two cores)
GAIN = {"bfloat16": 1.4, "float32": 1.8}  # how much faster a compiled step is, seen on two cores
TIMED = 3  # steps timed, after one that warms up
FED, FEEDING = 15, 6.0  # steps with the loader beside them that the forecast rests on, and seconds for each pass
SLACK = 1.03  # later steps are this much slower than the ones timed: the machine is not alone
HELD = 2  # steps' worth of held-out rows that one validation looks at, at most
BLIND = 2  # times the blind-modality alarm is run
VALIDATIONS = 20  # per run, where the recipe does not say
MEMORY = 0.6  # of the free memory, for a micro-batch
SAVING = 120.0  # seconds between checkpoints, where the recipe does not say


@dataclass(frozen=True)
class Forecast:
    """seconds: of all steps; memory: bytes at the peak, 0 if unknown; step: seconds of one; tokens: real, a second."""

    seconds: float
    memory: int
    step: float
    steps: int
    tokens: float
    compile: bool
    compiling: float

    def __str__(self) -> str:
        if not self.step:
            return f"{self.steps:,} passes over the training rows, counted without gradients"
        compiled = f", compiled in {self.compiling:.0f} s" if self.compile else ""
        return (
            f"{self.steps:,} steps of {self.step:.2f} s{compiled}: {self.seconds / 60:.1f} minutes, "
            f"{told(self.memory)}, {self.tokens:,.0f} tokens/s"
        )


def forecast(
    session: Session, batches: Sequence[Sequence[Batch]], *, spent: float = 0.0, columns: int = 0,
    say: Say = lambda text: None, trial: bool = False,
) -> tuple[Forecast, Recipe]:  # fmt: skip
    """Time real steps, decide compile and steps, and put model and optimiser back to where they were.

    batches  of the first steps, as the loader gives them
    spent    seconds of the recipe's minutes that are gone already
    columns  inputs that the blind-modality alarm will shuffle
    trial    nothing will be trained: what compiling would do is taken from experience, not measured

    Returns the forecast, and the recipe with steps, compile, save_every and evaluate_every filled in.
    """
    recipe, began = session.run.recipe, time.perf_counter()
    if counting(session.model.config):
        recipe = foreseen(recipe, session.model.config)
        return Forecast(0.0, peak_memory(session.device), 0.0, recipe.train.steps, 0.0, False, 0.0), recipe
    train = recipe.train
    if train.options.compile not in COMPILE:
        raise RecipeError(
            f"train.options.compile is {train.options.compile!r}.{nearest(train.options.compile, COMPILE)}"
        )
    start = {name: tensor.clone() for name, tensor in checkpoint.weights(session.model).items()}
    pace, tokens = timed(session, batches)
    left = lambda: 60 * train.minutes - spent - (time.perf_counter() - began)
    compiling = 0.0
    will = train.options.compile == "on" or (train.options.compile == "auto" and pays(train, pace, left()))
    will = will and bool(compilable(session))
    if will and trial:
        compiling, pace, spent = COMPILING, pace / GAIN[train.options.dtype], spent + COMPILING
    elif will:
        compiling, pace = compiled(session, batches, pace, say)
        will = is_compiled(session.model)
    grows = 0.0
    if not trial:
        pace, grows = fed(session, pace, train.steps or left() / pace)
    checkpoint.fill(session.model, start)
    session.optimizer, session.state = Optimizer(session.model, train), State()
    steps = train.steps or max(1, math.floor(left() / (pace * SLACK) - watching(train, columns)))
    options = replace(
        train.options,
        compile="on" if will else "off",
        save_every=train.options.save_every or max(1, round(SAVING / pace)),
        evaluate_every=train.options.evaluate_every or math.ceil(steps / VALIDATIONS),
    )
    peak = peak_memory(session.device)
    found = Forecast(
        seconds=(steps + watching(train, columns)) * pace * SLACK,
        memory=peak and peak + to_keep(session, grows, steps),
        step=pace,
        steps=steps,
        tokens=tokens / pace,
        compile=will,
        compiling=compiling,
    )
    return found, replace(recipe, train=replace(train, steps=steps, options=options))


def rows_that_fit(session: Session, batch: Batch) -> int:
    """Rows of a micro-batch: all of the step's, or what the backward pass has the memory for.

    Measured on one forward pass of `batch`: the bytes that autograd keeps, parameters left out.
    """
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in session.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(session.device, session.recipe.options.dtype),
    ):
        loss, _ = OBJECTIVES[batch.objective](session.model, batch.to(session.device))
    del loss
    rows = len(batch.tokens.ids)
    each = 1.5 * sum(kept.values()) / rows  # gradients of activations live beside them for a while
    whole = max(1, session.recipe.tokens // session.recipe.length)
    return max(1, min(whole, int(MEMORY * free_memory(session.device) / max(each, 1))))


def watching(train: TrainRecipe, columns: int) -> float:
    """What validation and the blind-modality alarm cost, in steps. A pass without gradients is a third of a step."""
    every = train.options.evaluate_every
    validations = train.steps / every if train.steps and every else VALIDATIONS
    return HELD * (validations + BLIND * (1 + columns)) / 3


def timed(session: Session, batches: Sequence[Sequence[Batch]]) -> tuple[float, float]:
    """Seconds of a step, the median of TIMED after a first one, and real tokens in it. Weights move."""
    session.model.train()
    reports = []
    for number in range(TIMED + 1):
        reports.append(step(session, batches[number % len(batches)], time.perf_counter()))
    return sorted(r.seconds for r in reports[1:])[TIMED // 2], sum(r.tokens for r in reports[1:]) / TIMED


def fed(session: Session, pace: float, steps: float) -> tuple[float, float]:
    """Seconds of a step, the median of some, while the loader makes the next ones beside it, and bytes of samples that
    the loader keeps of each. Weights move.

    On a processor they share it: on two cores the demo's steps took a quarter longer than the same batches did again.
    Media are opened before where a run of so many `steps` sees most of them more than once.
    """
    most = min(FED, max(TIMED, math.ceil(FEEDING / pace)), session.recipe.steps or FED)
    enough = lambda done, began: done >= most or (done >= TIMED and time.perf_counter() - began > FEEDING)
    plan, began, ready = session.loader.round(0), time.perf_counter(), 0
    if steps > 2 * plan.steps / plan.epochs:
        while not enough(ready, began):
            session.loader.step(ready)  # media are opened here, which most steps need not do
            ready += 1
        session.loader.assembler.forget()
    batches = session.loader.iterate(0)
    try:
        began, seconds = time.perf_counter(), []
        while not enough(len(seconds), began) and len(seconds) < (ready or most):
            seconds.append(step(session, next(batches), time.perf_counter()).seconds)
    finally:
        batches.close()
    return sorted(seconds)[len(seconds) // 2], session.loader.assembler.kept / (len(seconds) + AHEAD)


def to_keep(session: Session, grows: float, steps: int) -> int:
    """Bytes of samples that the loader will keep over a run: so many of each step of the first epoch, within a budget.

    On an accelerator it is not its memory that they take.
    """
    if session.device.type != "cpu":
        return 0
    plan, assembler = session.loader.round(0), session.loader.assembler
    whole = min(grows * min(steps, plan.steps / plan.epochs), assembler.budget)
    return max(0, round(whole - assembler.kept))


def pays(train: TrainRecipe, pace: float, left: float) -> bool:
    """Whether a run of these steps, or of those that fit into `left` seconds, gains more by compiling than it costs."""
    seconds = train.steps * pace if train.steps else left
    return seconds * (1 - 1 / GAIN[train.options.dtype]) > COMPILING


def compiled(session: Session, batches: Sequence[Sequence[Batch]], pace: float, say: Say) -> tuple[float, float]:
    """Compile the stacks; seconds that it took, and of a step now. Undone where it fails or does not help."""
    must = session.recipe.options.compile == "on"
    began = time.perf_counter()
    compile_stacks(session)
    try:
        step(session, batches[0], began)
    except Exception as error:
        if must:
            raise RecipeError(
                f"train.options.compile is on, and compiling fails here: {error}. Set it to off."
            ) from error
        say(f"compiling is not possible here ({str(error).splitlines()[0]}): going on without")
        uncompile(session.model)
        session.optimizer.zero()
        return 0.0, pace
    compiling = time.perf_counter() - began
    faster, _ = timed(session, batches)
    if faster > 0.97 * pace and not must:
        say(f"compiled steps take {faster:.2f} s, plain ones {pace:.2f} s: going on without compiling")
        uncompile(session.model)
        return 0.0, pace
    return compiling, faster


def compile_stacks(session: Session) -> None:
    """Mark the stacks; they are compiled by their first step. Batches have one shape, so one graph each is enough."""
    for stack in compilable(session):
        stack.compile(dynamic=False)


def compilable(session: Session) -> list[Slot]:
    """The stacks worth compiling: not those of encoders that the loader asks once for each item, by themselves, whose
    bits must not depend on whether they were asked before or after compiling.
    """
    once = session.loader.encode
    alone = {id(m) for e in once.encoders.values() for m in e.modules()} if isinstance(once, Once) else set()
    return [stack for stack in session.model.stack_modules() if stack.compiles and id(stack) not in alone]


def uncompile(model: Model) -> None:
    """Back to plain Python."""
    for stack in model.stack_modules():
        stack._compiled_call_impl = None


def is_compiled(model: Model) -> bool:
    """Whether `compile_stacks` holds."""
    return any(stack._compiled_call_impl is not None for stack in model.stack_modules())
