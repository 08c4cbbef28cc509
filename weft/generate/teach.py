"""What the model thinks of an answer that is given to it: teacher-forced, documents made as in training.

Shape letters:  B rows  T tokens  m trained tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from weft.data import pack
from weft.data.assemble import Assembler, Skips
from weft.data.pack import Document
from weft.data.plan import Doc
from weft.generate.decode import precision

if TYPE_CHECKING:
    from weft.data.sources import Table
    from weft.generate.predict import Predictor

TOKENS = 16_384


@torch.no_grad()
def teach(predictor: Predictor, table: Table, rows: Sequence[int], arrow: int) -> np.ndarray:
    """(n,3) per row of `table`: nats summed over its trained tokens, how many of them the model has right, how many
    there are.

    (n,2,3) for an arrow `prompt -> chosen > rejected`: of each of the two answers.

    Rows longer than the context are scored in windows, as they are trained in; pairs of answers have to fit.
    """
    model, renderer, length = predictor.model, predictor.renderer, predictor.length
    recipe = predictor.run.recipe
    prefers = renderer.arrows[arrow].kind == "prefer"
    taught = {"encoder": "masked", "encoder-decoder": "seq2seq"}.get(model.kind, "next")
    objective = "prefer" if prefers else taught
    maker = Assembler(table, renderer, arrows=renderer.arrows, skips=Skips(len(table), 1.0), recipe=recipe, budget=0)
    two = objective == "seq2seq"
    found = np.zeros((len(rows), 2, 3) if prefers else (len(rows), 3))
    batch: list[tuple[int, Document, Document]] = []

    def flush() -> None:
        if batch:
            _score(predictor, batch, found, two=two)
            batch.clear()

    for number, row in enumerate(rows):
        total = renderer.length(table.row(row), arrow)
        for start in range(0, total, length):
            whole = total <= length or prefers
            doc = Doc((number,), 0) if whole else Doc((number,), 0, start, min(start + length, total))
            pair = [(int(row), arrow)]
            if two:
                first, second = maker.two(pair, doc, objective)
            else:
                first, second = getattr(maker, objective)(pair, doc), []
            if first:
                batch.append((number, first, second))
            if len(batch) * min(length, total) >= TOKENS:
                flush()
            if whole:
                break
    flush()
    return found


def _score(predictor: Predictor, batch: list[tuple[int, Document, Document]], found: np.ndarray, *, two: bool) -> None:
    """Add what a batch of documents scores to the rows they belong to; one document per row of the batch."""
    model, device = predictor.model, predictor.device
    stream = _rows([document for _, document, _ in batch])
    source = _rows([document for _, _, document in batch]).tokens.to(device) if two else None
    at = (stream.targets != pack.UNTRAINED).nonzero()  # (m,2)
    targets = stream.targets[at[:, 0], at[:, 1]].to(device)
    with precision(device, predictor.half):
        hidden = model.hidden(stream.tokens.to(device), source)
        logits = model.logits(hidden[at[:, 0].to(device), at[:, 1].to(device)]).float()  # (m,D) -> (m,V)
    nats = F.cross_entropy(logits, targets, reduction="none").cpu().double().numpy()
    right = (logits.argmax(-1) == targets).cpu().numpy()
    numbers = np.array([number for number, _, _ in batch])[at[:, 0].numpy()]
    where: tuple[np.ndarray, ...] = (numbers,)
    branch = stream.tokens.branch
    if found.ndim == 3 and branch is not None:
        where = (numbers, branch[at[:, 0], at[:, 1]].numpy() - 1)  # 1: chosen, 2: rejected
    np.add.at(found, where, np.stack([nats, right, np.ones_like(nats)], -1))


def _rows(documents: Sequence[Document]) -> pack.Stream:
    longest = max(sum(len(part.piece) for part in document) for document in documents)
    return pack.collate([[document] for document in documents], len(documents), longest)
