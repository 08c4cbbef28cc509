"""The course of training that a model's topology takes: the gradient loop, or counting.

n-gram           one step: every training sample once, contexts and what followed them counted
hidden Markov    each step is an epoch of expectation and maximisation (Baum et al. 1970)
the others       train/loop.py
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weft.core import config as c
from weft.core.counted import Expected, count
from weft.core.view import Tokens
from weft.data.batch import Batch
from weft.model import Model
from weft.recipe import Recipe
from weft.run import CONFIG, replace_text
from weft.train.loop import Interrupt, Report, Session, Watcher, loop

Course = Callable[[Session, Sequence[Watcher], Interrupt], None]
EPOCHS = 20  # of expectation and maximisation, where the recipe does not say


def counts(session: Session, watchers: Sequence[Watcher], stop: Interrupt) -> None:
    """Count, and put a model of the right size in the session's place; its config is written before its weights are."""
    began, body = time.perf_counter(), session.model.body
    contexts, targets = [], []
    for batch in samples(session):
        if batch.targets is not None:
            trained = batch.targets != -100
            contexts.append(body(batch.tokens)[trained].long())
            targets.append(batch.targets[trained])
    if stop.asked:
        return
    counted = count(replace(body.config, contexts=(), entries=()), torch.cat(contexts), torch.cat(targets))
    config = replace(session.model.config, topology=counted.config)
    replace_text(session.run.path / CONFIG, json.dumps(c.to_tree(config), indent=1) + "\n")
    session.model = Model(config).to(session.device)
    session.model.body.load_state_dict(counted.state_dict())
    nats = -counted.probability(torch.cat(contexts).float(), torch.cat(targets)).log().mean()
    told(session, watchers, float(nats), sum(map(len, targets)), began)


def expectation(session: Session, watchers: Sequence[Watcher], stop: Interrupt) -> None:
    """Epochs of it, from where the session stands; the loss is that of the model each epoch began with."""
    body = session.model.body
    while session.state.step < session.recipe.steps and not stop.asked:
        began, expected = time.perf_counter(), Expected(body.config)
        for batch in samples(session):
            for ids, lengths in documents(batch.tokens):
                expected.add(body.cpu(), ids, lengths)
        body.fit(expected)
        body.to(session.device)
        told(session, watchers, expected.nats / max(expected.tokens, 1), expected.tokens, began)


COURSES: dict[type, Course] = {c.NGramConfig: counts, c.MarkovConfig: expectation}


def course(config: c.ModelConfig) -> Course:
    """How a model of this config is trained."""
    return COURSES.get(type(config.topology), loop)


def counting(config: c.ModelConfig) -> bool:
    """Whether it is trained without gradients."""
    return type(config.topology) in COURSES


def samples(session: Session) -> Iterator[Batch]:
    """Every training sample once, on the CPU."""
    session.model.cpu()
    for batches in session.loader.evaluation("train"):
        yield from batches
    session.model.to(session.device)


def told(session: Session, watchers: Sequence[Watcher], loss: float, tokens: int, began: float) -> None:
    """One step is done."""
    seconds = time.perf_counter() - began
    session.state.step += 1
    session.state.tokens += tokens
    session.state.seconds += seconds
    report = Report(loss, {}, 0.0, 0.0, tokens, seconds, 0.0)
    for watcher in watchers:
        watcher(session, report)


def documents(tokens: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
    """Packed documents as rows of their own: ids (n,L) and lengths (n,). Every branch brings its trunk along."""
    found = []
    document = torch.ones_like(tokens.ids) if tokens.document is None else tokens.document
    branch = torch.zeros_like(tokens.ids) if tokens.branch is None else tokens.branch
    for ids, numbers, branches in zip(tokens.ids, document, branch, strict=True):
        for number in numbers.unique().tolist():
            if number:
                mine = numbers == number
                leaves = [b for b in branches[mine].unique().tolist() if b] or [0]
                found += [ids[mine & ((branches == 0) | (branches == leaf))] for leaf in leaves]
    if found:
        yield torch.nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(ids) for ids in found])


def foreseen(recipe: Recipe, config: c.ModelConfig) -> Recipe:
    """The recipe with steps, save_every and evaluate_every filled in."""
    steps = 1 if isinstance(config.topology, c.NGramConfig) else recipe.train.steps or EPOCHS
    options = replace(
        recipe.train.options,
        compile="off",
        save_every=recipe.train.options.save_every or steps,
        evaluate_every=recipe.train.options.evaluate_every or math.ceil(steps / 10),
    )
    return replace(recipe, train=replace(recipe.train, steps=steps, options=options))
