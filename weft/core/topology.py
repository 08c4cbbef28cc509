"""How streams meet. Each topology turns tokens into hidden states over the same stack.

Shape letters:  B rows  T tokens  S source tokens  D width

    Tower            tokens ── input ── stack ── hidden
    EncoderDecoder   source ── tower ── memory ══ cross ══╗
                     tokens ───────────────────── tower ──╨── hidden
    EarlyFusion      items ── stem ── stack ── MLP ─┐
                     tokens ── input ── put in place ┴── stack ── hidden
    Concat           [source ; tokens] ── stack ── hidden of the tokens
    DualEncoder      left ── tower ── pool ── project ── unit vector · unit vector ── project ── pool ── tower ── right
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.attention import head_width
from weft.core.bridge import cut, make_bridge
from weft.core.cache import Cache, Cross, join
from weft.core.convolve import Picture
from weft.core.counted import Markov, NGram
from weft.core.embed import Input, coordinates, items, put
from weft.core.mask import View, across, look
from weft.core.pool import make_pool, make_project
from weft.core.record import Recorder
from weft.core.slot import VIEWS, make_stack, reads_ahead
from weft.core.stack import Stack
from weft.core.view import Layout, Media, Tokens
from weft.errors import WeftError

SHARPEST = 100.0  # the largest factor on cosines


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
            if source is None:
                raise WeftError("This model looks across to a source, but none was given.")
            view.across = across(self.config.stack.cross, layout, source.layout, source.memory, dtype=x.dtype)
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


class EncoderDecoder(nn.Module):
    """Sutskever et al. 2014 in the form of Vaswani et al. 2017."""

    def __init__(self, config: c.EncoderDecoderConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = Tower(config.encoder), Tower(config.decoder)
        if config.shared:
            self.decoder.input.table = self.encoder.input.table

    def encode(self, source: Tokens, record: Recorder | None = None, keep: bool = True) -> Encoded:
        layout = Layout.of(source)
        x = self.encoder.run(self.encoder.input(source, layout), source, layout, record=within(record, "encoder"))
        return Encoded(x, layout, Cross() if keep else None)

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        return self.decoder(tokens, source, cache, within(record, "decoder"))


class Encoder(nn.Module):
    """Items of one kind, each by itself, to the width of the main stream."""

    def __init__(self, config: c.ItemEncoder, dim: int) -> None:
        super().__init__()
        self.config, self.tower = config, Tower(config.tower)
        self.bridge = make_bridge(config.bridge, config.tower.stack.dim, dim)
        stack = config.tower.stack
        whole = config.layer == -1 and config.normed
        self.layers = stack.depth + 1 + config.layer if isinstance(stack, c.StackConfig) and not whole else None

    def forward(self, media: Media, tokens: Tokens, record: Recorder | None = None) -> Tensor:  # (M,F) -> (M,D)
        inner, at = alone(media, tokens, self.config.tower.input.opening, self.bridge.factor)
        layout = Layout.of(inner)
        x = self.tower.input(inner, layout)
        view = sight(self.config.tower.stack, x, layout, record=record)
        hidden = self.tower.stack(x, view) if self.layers is None else self.tower.stack(x, view, self.layers)
        return self.bridge(hidden.flatten(0, 1)[at])  # (n,T,D') -> (N,D') -> (M,D)


def alone(media: Media, tokens: Tokens, opening: tuple[int, ...], factor: int) -> tuple[Tokens, Tensor]:
    """Items of a stream as rows of their own, n of them: the opening ids, then patches row by row. And (N,) where the
    patches of each token of the stream have come to stand, those of a square together."""
    item, count = items(media, tokens)
    device, head = item.device, len(opening)
    start = torch.searchsorted(item, torch.arange(count, device=device))
    place = torch.arange(len(item), device=device) - start[item]  # (M,) within its item
    where = coordinates(media, tokens, item, count, place)  # (M,2) row, column
    grid = media.grid
    if factor > 1:
        step = torch.cartesian_prod(*[torch.arange(factor, device=device)] * 2)  # (r*r,2)
        where = (where[:, None] * factor + step).flatten(0, 1)  # (N,2)
        item = item.repeat_interleave(factor**2)
        columns = torch.zeros(count, dtype=where.dtype, device=device).scatter_reduce(0, item, where[:, 1], "amax") + 1
        place = where[:, 0] * columns[item] + where[:, 1]
        grid = None if grid is None else (grid[0] * factor, grid[1] * factor)
    lengths = torch.bincount(item, minlength=count) + head
    length = int(lengths.max()) if count else head
    at = item * length + head + place
    ids = torch.zeros(count, length, dtype=torch.long, device=device)
    ids[:, :head] = torch.tensor(opening, dtype=torch.long, device=device)
    span = torch.zeros(count * length, dtype=torch.int32, device=device)
    span[at] = 1
    positions = torch.arange(length, device=device).float()[None, :, None].repeat(count, 1, 3).flatten(0, 1)
    positions[at] = torch.cat((torch.zeros_like(where[:, :1]), where), 1).float() + head
    real = torch.arange(length, device=device) < lengths[:, None]
    order = at.argsort()  # media stand in the order of their places
    inner = Tokens(
        ids,
        document=None if grid is not None else real.int(),
        span=span.unflatten(0, (count, length)),
        positions=positions.unflatten(0, (count, length)),
        media=(Media(media.kind, cut(media.values, factor)[order], at[order], grid),),
    )
    return inner, at


class EarlyFusion(nn.Module):
    """Liu et al. 2023: encoded items take the place of their placeholders."""

    def __init__(self, config: c.EarlyFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = Tower(config.tower)
        dim = config.tower.stack.dim
        self.encoders = nn.ModuleDict({
            kind: Picture(e, dim) if isinstance(e, c.PictureConfig) else Encoder(e, dim)
            for kind, e in config.encoders.items()
        })  # fmt: skip

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        layout = arrange(self.config.tower.input, tokens, cache)
        encoded = [m for m in tokens.media if m.kind in self.encoders]
        x = self.tower.input(replace(tokens, media=tuple(m for m in tokens.media if m not in encoded)), layout)
        for media in encoded:
            x = put(x, media, self.encoders[media.kind](media, tokens, within(record, media.kind)))
        return self.tower.run(x, tokens, layout, source, cache, within(record, ""))


class Concat(nn.Module):
    """Ramesh et al. 2021; Beyer et al. 2024: the source stands before the target in one stream."""

    def __init__(self, config: c.ConcatConfig) -> None:
        super().__init__()
        self.config = config
        self.source, self.target = Input(config.source, config.stack.dim), Input(config.target, config.stack.dim)
        self.stack = Stack(config.stack)

    def forward(
        self, tokens: Tokens, source: Tokens | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        """(B,T,D) of the target. With a cache the source is given once, with the first tokens."""
        past, seen = (None, 0) if cache is None else (cache.layout, cache.seen)
        if source is None:
            if past is None:
                raise WeftError("A concatenated model needs a source before the first target token.")
            layout = Layout.of(tokens, past, seen)
            return self.stack(x := self.target(tokens, layout), sight(self.config.stack, x, layout, cache, record))
        before = Layout.of(replace(source, span=torch.ones_like(source.ids) if source.span is None else source.span))
        after = Layout.of(tokens, before, len(before))
        x = torch.cat((self.source(source, before), self.target(tokens, after)), 1)  # (B,S,D), (B,T,D) -> (B,S+T,D)
        return self.stack(x, sight(self.config.stack, x, join(before, after), cache, record))[:, len(before) :]


class DualEncoder(nn.Module):
    """Radford et al. 2021; Zhai et al. 2023: both sides into one space, as unit vectors."""

    def __init__(self, config: c.DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.left, self.right = Tower(config.left), Tower(config.right)
        self.left_pool = make_pool(config.left_pool, config.left)
        self.right_pool = make_pool(config.right_pool, config.right)
        self.left_project = make_project(config.left_project, config.left.stack.dim, config.width)
        self.right_project = make_project(config.right_project, config.right.stack.dim, config.width)
        self.sharpness = nn.Parameter(torch.empty(()))  # log of the factor on cosines: -log(temperature)
        self.score_bias = None if config.bias is None else nn.Parameter(torch.empty(()))

    def embed(self, tokens: Tokens, side: str = "left", record: Recorder | None = None) -> Tensor:
        """(B,E) unit vectors, one for each row."""
        if side not in ("left", "right"):
            raise WeftError(f"The sides of a dual encoder are 'left' and 'right', not {side!r}.")
        hidden = getattr(self, side)(tokens, record=within(record, side))  # (B,T,D)
        pooled = getattr(self, side + "_pool")(hidden, tokens)  # (B,D)
        return F.normalize(getattr(self, side + "_project")(pooled).float(), dim=-1)

    def scores(self, left: Tensor, right: Tensor) -> Tensor:
        """(L,E), (R,E) unit vectors -> (L,R): cosines times the factor, which stays at 100 and under (Radford et al.
        2021, section 2.5), and the learned number added to them, where there is one."""
        scores = left @ right.T * self.sharpness.exp().clamp(max=SHARPEST)
        return scores if self.score_bias is None else scores + self.score_bias

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        return self.left(tokens, None, cache, within(record, "left"))


def within(record: Recorder | None, stack: str) -> Recorder | None:
    return None if record is None else record.within(stack)


MODULES = {
    c.TowerConfig: Tower,
    c.EncoderDecoderConfig: EncoderDecoder,
    c.EarlyFusionConfig: EarlyFusion,
    c.ConcatConfig: Concat,
    c.DualEncoderConfig: DualEncoder,
    c.NGramConfig: NGram,
    c.MarkovConfig: Markov,
}
