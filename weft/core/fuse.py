"""Items through encoders of their own, and the three ways in which they meet a stream of words.

    EarlyFusion     [image]▒▒▒▒[caption] ...            one stack; the items take the place of their placeholders
    ConcatFusion    ▒▒▒▒[image][caption] ...            one stack; the items stand in front
    CrossFusion     [image][caption] ...  ══ ▒▒▒▒       the stack of the words looks across to the items

Shape letters:  B rows  T tokens  T' words  S item tokens  M tokens of one kind  N states, N = k M  F features  D width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.bridge import cut, make_bridge
from weft.core.cache import Cache, Cross, join
from weft.core.convolve import Picture
from weft.core.embed import coordinates, items, put
from weft.core.record import Recorder
from weft.core.tower import Encoded, Tower, arrange, kinds, sight, within
from weft.core.view import Layout, Media, Tokens
from weft.errors import WeftError


class Encoder(nn.Module):
    """Items of one kind, each by itself, to the width of the main stream."""

    def __init__(self, config: c.ItemEncoder, dim: int) -> None:
        super().__init__()
        self.config, self.tower = config, Tower(config.tower)
        self.bridge = make_bridge(config.bridge, config.tower.stack.dim, dim, config.each)
        stack = config.tower.stack
        whole = config.layer == -1 and config.normed
        self.layers = stack.depth + 1 + config.layer if isinstance(stack, c.StackConfig) and not whole else None

    def forward(self, media: Media, tokens: Tokens, record: Recorder | None = None) -> Tensor:  # (M,F) -> (M,D)
        states = media.values if media.states else self.states(media, tokens, record)
        return self.bridge(states, *items(media, tokens))  # (N,D') -> (M,D)

    def states(self, media: Media, tokens: Tokens, record: Recorder | None = None) -> Tensor:
        """(M,F) -> (N,D'): what the tower makes of each item, before the bridge; those of one token side by side."""
        factor = self.config.bridge.factor
        inner, at = alone(media, tokens, self.config.tower.input.opening, factor, self.config.line)
        layout = Layout.of(inner)
        x = self.tower.input(inner, layout)
        view = sight(self.config.tower.stack, x, layout, record=record)
        hidden = self.tower.stack(x, view) if self.layers is None else self.tower.stack(x, view, self.layers)
        return hidden.flatten(0, 1)[at]  # (n,T,D') -> (N,D')


def alone(
    media: Media, tokens: Tokens, opening: tuple[int, ...], factor: int, line: bool = False
) -> tuple[Tokens, Tensor]:
    """Items of a stream as rows of their own, n of them: the opening ids, then patches row by row. And (N,) where the
    patches of each token of the stream have come to stand, those of a square together."""
    item, count = items(media, tokens)
    device, head = item.device, len(opening)
    start = torch.searchsorted(item, torch.arange(count, device=device))
    place = torch.arange(len(item), device=device) - start[item]  # (M,) within its item
    where = coordinates(media, tokens, item, count, place)  # (M,2) row, column
    grid = media.grid
    if line and factor > 1:
        place = (place[:, None] * factor + torch.arange(factor, device=device)).flatten()  # (N,)
        item, where = item.repeat_interleave(factor), torch.stack((torch.zeros_like(place), place), -1)
        grid = None if grid is None else (1, grid[1] * factor)
    elif factor > 1:
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
        media=(Media(media.kind, cut(media.values, factor, line)[order], at[order], grid),),
    )
    return inner, at


def encoders_of(config: c.Fusion) -> nn.ModuleDict:
    """Kind -> the module that encodes its items."""
    dim = config.tower.stack.dim
    make = lambda e: Picture(e, dim) if isinstance(e, c.PictureConfig) else Encoder(e, dim)
    return nn.ModuleDict({kind: make(e) for kind, e in config.encoders.items()})


@dataclass
class Parted:
    """A stream without its encoded items, and they apart.

    words   (B,T') in the order of the stream; at (B,T') where each stood in it
    memory  (B,S,D) vectors of the items; places: their documents, branches, spans and positions
    """

    words: Tokens
    at: Tensor
    memory: Tensor
    places: Tokens

    def back(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """(B,T',D) -> (B,T,D): each word's hidden state where the word stood, zeros where items stood."""
        whole = hidden.new_zeros(*tokens.ids.shape, hidden.shape[-1])
        return whole.scatter(1, self.at[..., None].expand(-1, -1, hidden.shape[-1]), hidden)


def part(encoders: nn.ModuleDict, tokens: Tokens, dim: int, record: Recorder | None) -> Parted | None:
    """Words and encoded items apart; None where no item came."""
    encoded = [m for m in tokens.media if m.kind in encoders]
    if not encoded:
        return None
    rows, length = tokens.ids.shape
    taken = torch.zeros(rows * length, dtype=torch.bool, device=tokens.ids.device)
    vectors = None
    for media in encoded:
        found = encoders[media.kind](media, tokens, within(record, media.kind))  # (M,D)
        vectors = found.new_zeros(rows, length, dim) if vectors is None else vectors
        vectors = put(vectors, media, found)
        taken[media.at] = True
    taken = taken.view(rows, length)
    at, items_at = (mask.int().argsort(dim=1, stable=True) for mask in (taken, ~taken))
    at, items_at = at[:, : max(1, int((~taken).sum(1).max()))], items_at[:, : int(taken.sum(1).max())]
    rest = tuple(m for m in tokens.media if m.kind not in encoders)
    words = pick(tokens, at, ~taken.gather(1, at), rest)
    places = pick(tokens, items_at, taken.gather(1, items_at), ())
    memory = vectors.gather(1, items_at[..., None].expand(-1, -1, dim))  # type: ignore[union-attr]
    return Parted(words, at, memory, places)


def pick(tokens: Tokens, at: Tensor, real: Tensor, media: tuple[Media, ...]) -> Tokens:
    """The tokens at `at` (B,T') of each row; those that are not `real` become padding."""

    def take(t: Tensor) -> Tensor:
        return t.gather(1, at if t.dim() == 2 else at[..., None].expand(-1, -1, t.shape[2]))

    some = lambda t: None if t is None else take(t)
    document = torch.ones_like(tokens.ids, dtype=torch.int32) if tokens.document is None else tokens.document
    moved = []
    if media:
        length = tokens.ids.shape[1]
        new = torch.arange(at.shape[1], device=at.device).expand_as(at)
        where = torch.zeros_like(tokens.ids).scatter(1, at, new)  # (B,T) -> its place among the words
        for one in media:
            row = one.at // length
            moved.append(replace(one, at=row * at.shape[1] + where.flatten()[one.at]))
    return Tokens(
        take(tokens.ids), take(document) * real.to(document.dtype), some(tokens.branch), some(tokens.span),
        some(tokens.positions), tuple(moved), some(tokens.segment), some(tokens.globals),
    )  # fmt: skip


class EarlyFusion(nn.Module):
    """Liu et al. 2023: encoded items take the place of their placeholders."""

    def __init__(self, config: c.EarlyFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower, self.encoders = Tower(config.tower), encoders_of(config)

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        layout = arrange(self.config.tower.input, tokens, cache)
        encoded = [m for m in tokens.media if m.kind in self.encoders]
        x = self.tower.input(replace(tokens, media=tuple(m for m in tokens.media if m not in encoded)), layout)
        for media in encoded:
            x = put(x, media, self.encoders[media.kind](media, tokens, within(record, media.kind)))
        return self.tower.run(x, tokens, layout, source, cache, within(record, ""))


class ConcatFusion(nn.Module):
    """Beyer et al. 2024: encoded items in front of the words of their row, in one stack."""

    def __init__(self, config: c.ConcatFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower, self.encoders = Tower(config.tower), encoders_of(config)

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        parted = part(self.encoders, tokens, self.config.tower.stack.dim, record)
        if parted is None:
            return self.tower(tokens, source, cache, within(record, ""))
        past, seen = (None, 0) if cache is None else (cache.layout, cache.seen)
        before = Layout.of(parted.places, past, seen)
        reached = before if past is None else join(past, before)
        after = Layout.of(parted.words, reached, seen + len(before))
        words = self.tower.input(parted.words, after)
        x = torch.cat((parted.memory.to(words.dtype), words), 1)  # (B,S,D), (B,T',D) -> (B,S+T',D)
        stack = self.config.tower.stack
        view = sight(stack, x, join(before, after), cache, within(record, ""))
        view.kinds = kinds(stack, parted.words)
        return parted.back(self.tower.stack(x, view)[:, len(before) :], tokens)


class CrossFusion(nn.Module):
    """Alayrac et al. 2022: the words look across to the encoded items of their document."""

    def __init__(self, config: c.CrossFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower, self.encoders = Tower(config.tower), encoders_of(config)

    def forward(
        self, tokens: Tokens, source: Encoded | None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        stack = self.config.tower.stack
        width = stack.source if isinstance(stack, c.StackConfig) else 0
        parted = part(self.encoders, tokens, width or stack.dim, record)
        if parted is None:  # words alone, or words that go on
            return self.tower(tokens, source or (None if cache is None else cache.source), cache, within(record, ""))
        if cache is not None and cache.source is not None:
            raise WeftError(
                "Items came before and are cached; new ones cannot be added to what the words look across to."
            )
        source = Encoded(parted.memory, Layout.of(parted.places), None if cache is None else Cross())
        if cache is not None:
            cache.source = source
        return parted.back(self.tower(parted.words, source, cache, within(record, "")), tokens)


FUSIONS: Mapping[type, type[nn.Module]] = {
    c.EarlyFusionConfig: EarlyFusion,
    c.ConcatFusionConfig: ConcatFusion,
    c.CrossFusionConfig: CrossFusion,
}
FUSED = EarlyFusion | ConcatFusion | CrossFusion
