"""The one loop, for any arrow and any modality.

step n:  batches (a pure function of seed and n)
         -> forward, backward per micro-batch           the loss is per token of the whole step
         -> clip -> optimiser at schedule(n)            a step that is not finite changes nothing, and is counted
         -> watchers: log, evaluate, save, blind        each knows when its time is
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weft.adapt.start import BASE
from weft.data.batch import Batch
from weft.errors import RunError
from weft.objectives import OBJECTIVES
from weft.recipe import TrainRecipe
from weft.train import checkpoint
from weft.train.machine import GIVE_BACK, autocast, give_back
from weft.train.optim import Optimizer
from weft.train.schedule import factor

if TYPE_CHECKING:
    from weft.data.loader import Loader
    from weft.model import Model
    from weft.run import Run

STREAK = 5  # steps in a row that are not finite: it will not come right by itself


@dataclass
class State:
    """What a checkpoint holds beside tensors. All randomness is seeded by the step, so no generator is among it.

    step     done
    tokens   real ones, padding left out
    seconds  of training
    bad      steps that were not finite; streak: how many of them are the last ones
    rounds   where the loader's rounds end (`Loader.ends`): it follows from the seed, kept so that it need not be redone
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad: int = 0
    streak: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """One step. loss: per token; arrows: loss per token of each arrow in it; norm: of the gradient before clipping."""

    loss: float
    arrows: dict[str, float]
    norm: float
    lr: float
    tokens: int
    seconds: float
    waited: float  # seconds of them spent waiting for the loader

    @property
    def finite(self) -> bool:
        return abs(self.loss) + abs(self.norm) < float("inf")  # false for nan as well


@dataclass
class Session:
    """Everything a step touches."""

    run: Run
    model: Model
    optimizer: Optimizer
    loader: Loader
    device: torch.device
    names: list[str]  # of the arrows
    state: State = field(default_factory=State)

    @property
    def recipe(self) -> TrainRecipe:
        return self.run.recipe.train


Watcher = Callable[[Session, Report], None]


def loop(session: Session, watchers: Sequence[Watcher], stop: Interrupt) -> None:
    """Train from `session.state` to the recipe's last step, or until `stop` is asked. Raises RunError on divergence."""
    state, recipe = session.state, session.recipe
    session.model.train()
    batches = session.loader.iterate(state.step)
    try:
        while state.step < recipe.steps and not stop.asked:
            began = time.perf_counter()
            parts = next(batches)
            waited = time.perf_counter() - began
            report = step(session, parts, began, waited)
            for watcher in watchers:
                watcher(session, report)
            if state.step % GIVE_BACK == 0:
                give_back(session.device)
            if state.streak >= STREAK:
                raise RunError(diverged(state, recipe))
    finally:
        batches.close()  # ends the loader's thread


def step(session: Session, batches: Sequence[Batch], began: float, waited: float = 0.0) -> Report:
    """One optimiser step over its micro-batches; the state is counted on."""
    state, recipe, optimizer = session.state, session.recipe, session.optimizer
    state.step += 1
    torch.manual_seed(session.run.recipe.seed * 1_000_003 + state.step)  # dropout: a function of seed and step alone
    total, sums, counts = backward(session, batches)
    norm = torch.nn.utils.clip_grad_norm_(optimizer.params, recipe.options.clip)
    rate = factor(state.step, recipe)
    tokens = sum(batch.real for batch in batches)
    loss, gradient = torch.stack([total, norm.to(total)]).tolist()  # the one place where a GPU is waited for
    arrows = {name: s / c for name, s, c in zip(session.names, sums.tolist(), counts.tolist(), strict=True) if c}
    finite = Report(loss, {}, gradient, 0, 0, 0, 0).finite
    if finite:
        optimizer.step(rate)
    else:
        optimizer.zero()
    state.bad, state.streak = state.bad + (not finite), 0 if finite else state.streak + 1
    state.tokens += tokens
    seconds = time.perf_counter() - began
    state.seconds += seconds
    return Report(loss, arrows, gradient, recipe.lr * rate, tokens, seconds, waited)


def backward(session: Session, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of all micro-batches summed. Returns the step's loss, and per arrow (n,) its sum and its tokens."""
    device = session.device
    total, sums, counts = torch.zeros((), device=device), *torch.zeros(2, len(session.names), device=device)
    for batch in batches:
        with autocast(device, session.recipe.options.dtype):
            loss, report = OBJECTIVES[batch.objective](session.model, batch.to(device))
        loss.backward()
        total += loss.detach()
        mine, tokens = per_arrow(report)
        sums[: len(mine)] += mine  # an objective numbers the arrows as far as it met them
        counts[: len(tokens)] += tokens
    return total, sums, counts


def per_arrow(report: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(arrows,) twice of an objective's report: the loss summed over the tokens of each arrow, and their number."""
    return report["sums"], report["counts"]


def save(session: Session) -> None:
    """Commit a checkpoint of this step and let the run's weights be its. Raises RunError where the disk is full."""
    folder = session.run.path / "checkpoints"
    parts = {
        "model.safetensors": kept(session),
        "optimizer.pt": session.optimizer.state(),
        "state.json": asdict(replace(session.state, rounds=list(session.loader.ends))),
    }
    path = checkpoint.save(folder, session.state.step, parts, session.recipe.options.keep)
    checkpoint.publish(path, session.run.path / "model.safetensors")


def kept(session: Session) -> dict[str, Tensor]:
    """The weights that a checkpoint holds: all, or what trains where the run has the others in its base."""
    there = checkpoint.weights(session.model)
    if not (session.run.path / BASE).is_file():
        return there
    resting = frozen(session.model)
    return {name: tensor for name, tensor in there.items() if name not in resting}


def frozen(model: Model) -> dict[str, Tensor]:
    """The weights that do not train."""
    resting = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in checkpoint.weights(model).items() if name in resting}


def restore(session: Session, say: Callable[[str], None]) -> bool:
    """Go back to the newest valid checkpoint, if there is one; what was logged after it is dropped."""
    folder = session.run.path / "checkpoints"
    checkpoint.sweep(folder)
    path = checkpoint.newest(folder, say)
    if path is not None:
        parts = checkpoint.read(path)
        checkpoint.fill(session.model, {**frozen(session.model), **parts["model.safetensors"]})
        session.optimizer.load(parts["optimizer.pt"])
        session.state = State(**parts["state.json"])
        session.loader.ends = list(session.state.rounds)
        checkpoint.publish(path, session.run.path / "model.safetensors")
    session.run.forget_after(session.state.step)
    if path is not None and session.state.threads != torch.get_num_threads():
        say(
            f"saved with {session.state.threads} threads, now there are {torch.get_num_threads()}: sums round "
            "differently, so the numbers will not repeat to the last bit"
        )
    session.state.threads = torch.get_num_threads()
    return path is not None


def diverged(state: State, recipe: TrainRecipe) -> str:
    """What to say, and to try, when step after step is not finite."""
    tries = [f"train.lr={recipe.lr / 3:.2g}"]
    if recipe.optimizer == "muon":
        tries.append(f"train.adam_lr={recipe.adam_lr / 3:.2g}")
    tries.append(f"train.options.warmup={max(0.05, recipe.options.warmup * 2):.2g}")
    if recipe.options.dtype == "bfloat16":
        tries.append("train.options.dtype=float32")
    return (
        f"Loss or gradient was not finite in {state.streak} steps in a row, the last at step {state.step}. They "
        f"changed nothing; the last checkpoint is good. Train anew with a gentler recipe, such as: {' '.join(tries)}"
    )


class Interrupt:
    """Ctrl-C and SIGTERM ask the loop to finish its step; a second one ends at once.

    with Interrupt() as stop: ... stop.asked
    """

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not let us listen
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
