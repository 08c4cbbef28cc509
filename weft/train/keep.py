"""Does training on new things forget the old? The language model's loss on a plain text, before and after.

The text is read as the model's own pretraining read text: its tokenizer's ids and nothing else, no markers.

Shape letters:  B rows  T tokens
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft.arrows.render import Renderer
from weft.core.view import Tokens
from weft.errors import DataError, RecipeError
from weft.model import Model
from weft.objectives.predict import cross_entropy
from weft.train.loop import Report, Session
from weft.train.machine import autocast, eager

MOST = 32_768  # tokens of the text that are looked at
EVENT = "keep"


@dataclass
class Keep:
    """Measures at the first step that it is asked for, and at the last. text: the ids; size: bytes under them."""

    name: str
    ids: np.ndarray
    size: int

    def measure(self, session: Session) -> dict[str, float]:
        """Record nats per token and bits per byte of the text, as the model is now."""
        nats, count = loss(session.model, self.ids, session.recipe.length, session)
        found = {"loss": nats / count, "bits_per_byte": nats / math.log(2) / max(1, self.size)}
        session.run.record(event=EVENT, step=session.state.step, text=self.name, tokens=count, **found)
        return found

    def __call__(self, session: Session, report: Report) -> None:
        if session.state.step == session.recipe.steps:
            self.measure(session)


def keep(session: Session, renderer: Renderer) -> Keep | None:
    """The watcher of the recipe's text, which is measured now if it was not yet; None where there is no text.

    Raises RecipeError for a model that does not write text, DataError for a text that cannot be read.
    """
    path = session.recipe.options.keep_text
    if not path:
        return None
    if session.model.kind != "decoder" or renderer.text is None or "language" not in session.model.config.heads:
        raise RecipeError("train.options.keep_text is for a decoder that writes text. Leave it out (--keep).")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} (--keep) cannot be read as text: {error}") from error
    ids = renderer.text.encode(text[: 8 * MOST])[:MOST]
    if len(ids) < 2:
        raise DataError(f"{path} (--keep) holds {len(ids)} tokens; a plain text was expected.")
    size = len(renderer.text.decode(ids[1:]).encode())
    watcher = Keep(path, ids + renderer.vocabulary.block("text").start, size)
    if not any(line["event"] == EVENT for line in session.run.metrics("event")):
        watcher.measure(session)
    return watcher


@torch.no_grad()
def loss(model: Model, ids: np.ndarray, length: int, session: Session) -> tuple[float, int]:
    """(nats, tokens predicted) of a text in windows of `length` tokens; each token but the first is predicted once."""
    training = model.training
    model.eval()
    nats = 0.0
    with eager(model):
        for start in range(0, len(ids) - 1, length):
            window = torch.from_numpy(ids[start : start + length + 1]).to(session.device)[None]  # (1,T+1)
            with autocast(session.device, session.recipe.options.dtype):
                hidden = model.hidden(Tokens(window[:, :-1]))[0]  # (T,D)
                nats += float(cross_entropy(model, hidden, window[0, 1:], "language").sum())
    model.train(training)
    return nats, len(ids) - 1


def told(events: list[dict[str, Any]]) -> str:
    """Before and after in one line; empty where nothing was measured."""
    found = [line for line in events if line["event"] == EVENT]
    if not found:
        return ""
    first, last = found[0], found[-1]
    after = f", {last['loss']:.3f} after ({last['loss'] - first['loss']:+.3f})" if last is not first else ""
    return f"loss per token on {Path(first['text']).name}: {first['loss']:.3f} before{after}"
