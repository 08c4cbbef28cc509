"""One stream through one stack, and what it may look across to.

Shape letters:  B rows  T tokens  S source tokens  D width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import head_width
from weft.core.cache import Cache, Cross
from weft.core.embed import Input
from weft.core.mask import View, across, look
from weft.core.record import Recorder
from weft.core.slot import VIEWS, make_stack, reads_ahead
from weft.core.view import Layout, Tokens
from weft.errors import WeftError


@dataclass
class Encoded:
    """A source once encoded: what a decoder looks across to, and its keys and values once they are made."""

    memory: Tensor  # (B,S,D)
    layout: Layout
    cache: Cross | None = None

    def select(self, rows: Tensor) -> Encoded:
        """These rows, in this order."""
        kept = Encoded(self.memory[rows], self.layout.map(lambda t: t if t.shape[0] == 1 else t[rows]))
        if self.cache is not None:
            kept.cache = Cross()
            kept.cache.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.cache.layers.items()}
        return kept


class Tower(nn.Module):
    """One stream through one stack."""

    def __init__(self, config: c.TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.input = Input(config.input, config.stack.dim)
        self.stack = make_stack(config.stack)

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        """(B,T,D) of `tokens`; they follow what the cache holds."""
        layout = arrange(self.config.input, tokens, cache)
        return self.run(self.input(tokens, layout), tokens, layout, source, cache, record)

    def run(
        self,
        x: Tensor,
        tokens: Tokens,
        layout: Layout,
        source: Encoded | None = None,
        cache: Cache | None = None,
        record: Recorder | None = None,
    ) -> Tensor:
        """(B,T,D) -> (B,T,D): the stack upon embedded tokens."""
        view = sight(self.config.stack, x, layout, cache, record)
        view.kinds = kinds(self.config.stack, tokens)
        if isinstance(self.config.stack, c.StackConfig) and self.config.stack.cross is not None:
            gated = isinstance(self.config.stack.cross, c.GatedCross)  # which words without items pass by
            if source is None and not gated:
                raise WeftError("This model looks across to a source, but none was given.")
            if source is not None:
                view.across = across(layout, source.layout, source.memory.to(x.dtype), dtype=x.dtype)
                view.across.kept, view.across.record = source.cache, record
        return self.stack(x, view)


def arrange(config: c.TextInput, tokens: Tokens, cache: Cache | None) -> Layout:
    """The layout of a stream behind what the cache holds, with what the positions of its input need."""
    past = None if cache is None else cache.layout
    layout = Layout.of(tokens, past, 0 if cache is None else cache.seen)
    if isinstance(config.positions, c.CodeGrid):
        number = tokens.ids - config.positions.first
        layout.coded = layout.count_of((number >= 0) & (number < config.positions.count), past, "coded")
    return layout


def sight(
    config: c.AnyStack, x: Tensor, layout: Layout, cache: Cache | None = None, record: Recorder | None = None
) -> View:
    """The view of a stack upon its own stream, and upon the cached tokens before it."""
    if cache is not None and (ahead := reads_ahead(config)):
        raise WeftError(f"{ahead} looks ahead: it cannot be continued from a cache.")
    if not isinstance(config, c.StackConfig):
        return VIEWS[type(config)](config, x, layout, cache, record)
    keys = layout
    if cache is not None:
        keys = cache.arrive(layout)
    width = head_width(config.attention, config.dim)
    fresh = cache is None or len(keys) == len(layout)
    banded = record is None  # whoever wants the weights gets them for all keys
    view = look(config.attention, layout, keys, width=width, dtype=x.dtype, fresh=fresh, banded=banded)
    view.cache, view.record = cache, record
    return view


def kinds(config: c.AnyStack, tokens: Tokens) -> tuple[Tensor, ...]:
    """Per kind, text first: the places of its tokens in (B*T). Empty when the stack treats all kinds alike."""
    if not isinstance(config, c.StackConfig):
        return ()
    named = next((p.kinds for p in (config.feedforward, config.norm) if isinstance(p, c.PerModality)), ())
    present = {m.kind: m.at for m in tokens.media}
    if not named or not present:
        return ()
    device = tokens.ids.device
    none = torch.empty(0, dtype=torch.long, device=device)
    text = torch.ones(tokens.ids.numel(), dtype=torch.bool, device=device)
    for kind in named:
        text[present.get(kind, none)] = False
    return (text.nonzero()[:, 0], *(present.get(kind, none) for kind in named))


def within(record: Recorder | None, stack: str) -> Recorder | None:
    return None if record is None else record.within(stack)
