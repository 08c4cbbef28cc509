"""Frozen encoders are computed once: what they make of a picture or a sound is kept by its content.

    batch ── each item ── known? ──> its states              (k*N,D'), in place of pixels or frames
                             └─ no: the encoder, on this item alone

An item is encoded by itself, so that what it gives does not depend on its company: a resumed run sees the same bits.
Only for encoders that do not train and do not drop out, and kinds that are not augmented.

Shape letters:  M tokens of one kind in the main stream  k states each brings  F features  D' width of the encoder
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weft.arrows.media import Cache
from weft.core.embed import items
from weft.core.fuse import FUSED, Encoder
from weft.core.view import Media, Tokens
from weft.data.batch import Batch
from weft.model import Model
from weft.train.machine import autocast

if TYPE_CHECKING:
    from weft.data.loader import Loader

BUDGET = 1 << 30  # bytes of states that are kept; what does not fit is computed each time


def resting(model: Model, moved: Collection[str]) -> dict[str, Encoder]:
    """Kind -> the encoder of items whose states never change. moved: kinds that are augmented."""
    if not isinstance(model.body, FUSED):
        return {}
    still = lambda tower: not any(p.requires_grad for p in tower.parameters())
    drops = lambda tower: any(isinstance(m, nn.Dropout) for m in tower.modules())
    return {
        kind: encoder for kind, encoder in model.body.encoders.items()
        if isinstance(encoder, Encoder) and still(encoder.tower) and not drops(encoder.tower) and kind not in moved
    }  # fmt: skip


@dataclass
class Once:
    """Puts an encoder's states in the place of the items of a batch. dtype: of products, as in training."""

    encoders: Mapping[str, Encoder]
    device: torch.device
    dtype: str
    known: Cache = field(default_factory=lambda: Cache(BUDGET))
    seconds: float = 0.0  # spent in encoders
    count: int = 0  # items encoded

    def __call__(self, batch: Batch) -> Batch:
        """The batch with states where its encoders are known; else as it is."""
        return replace(batch, tokens=self.told(batch.tokens))

    def told(self, tokens: Tokens) -> Tokens:
        """A stream with the states of its items."""
        if not any(m.kind in self.encoders and not m.states for m in tokens.media):
            return tokens
        return replace(tokens, media=tuple(self.media(m, tokens) for m in tokens.media))

    def media(self, media: Media, tokens: Tokens) -> Media:
        """All items of a kind, each from what is kept or encoded now."""
        if media.kind not in self.encoders or media.states or not len(media.at):
            return media
        item, count = items(media, tokens)
        sizes = torch.bincount(item, minlength=count).tolist()
        places = None if tokens.positions is None else tokens.positions.flatten(0, 1)[media.at]
        found, start = [], 0
        for size in sizes:
            here = slice(start, start + size)
            start += size
            place = None if places is None else places[here] - places[here].amin(0)
            found.append(self.states(media.kind, media.values[here], place))
        return replace(media, values=torch.cat(found), states=True)

    @torch.no_grad()
    def states(self, kind: str, values: Tensor, place: Tensor | None) -> Tensor:
        """(M,F), (M,3) from the item's own corner -> (k*M,D')."""
        name = hashlib.blake2b(kind.encode(), digest_size=16)
        for tensor in (values, place):
            name.update(b"" if tensor is None else tensor.contiguous().numpy().data)
        key = name.digest()
        if (known := self.known.get(key)) is not None:
            return known
        began, size = time.perf_counter(), len(values)
        row = Tokens(
            torch.zeros(1, size, dtype=torch.long), span=torch.ones(1, size, dtype=torch.int32),
            positions=None if place is None else place[None],
        ).to(self.device)  # fmt: skip
        alone = Media(kind, values, torch.arange(size)).to(self.device)
        with autocast(self.device, self.dtype):
            found = self.encoders[kind].states(alone, row)
        self.seconds, self.count = self.seconds + time.perf_counter() - began, self.count + 1
        return self.known.keep(key, found, found.numel() * found.element_size())

    def fill(self, loader: Loader, steps: int, say: Callable[[str], None]) -> None:
        """Encode what the first epoch shows, ahead: the steps that are timed are then like all others."""
        for number in range(min(steps or 1 << 30, math.ceil(loader.round(0).steps / loader.round(0).epochs))):
            loader.step(number)
        say(f"frozen encoders: {self.count:,} items, each once, {self.seconds:.0f} s")
