"""Models that are counted instead of trained by gradients: n-grams and hidden Markov models, as bodies like any other.

Both walk along documents as recurrent layers do (core/chain.py), so packing, branches and caches work alike.

Shape letters:  B rows  T tokens  N all of them  V vocabulary  C contexts  K hidden states  n documents  L their length

    n-gram    hidden = the last order-1 ids;  p(v | long) = discounted share of v after `long` + rest * p(v | short)
    Markov    hidden = log p(next state | ids so far);  p(v) = sum over states of p(state) p(v | state)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache
from weft.core.chain import chain
from weft.core.record import Recorder
from weft.core.view import Layout, Tokens
from weft.errors import RecipeError, WeftError

TINY = 1e-30


def walk(tokens: Tokens, cache: Cache | None, begin: Tensor, step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B,T,W) states along documents, each from `begin` (W,): step(ids (n,), states before (n,W)) -> (n,W)."""
    if tokens.media:
        raise WeftError(f"A counted model knows ids alone; {tokens.media[0].kind} came.")
    layout = Layout.of(tokens, *((None, 0) if cache is None else (cache.layout, cache.seen)))
    path = chain(layout, len(tokens.ids), None if cache is None else cache.layout)
    state = begin.expand(len(path.start), -1)
    if cache is not None and 0 in cache.layers:
        held = cache.layers[0][0].squeeze(1).flatten(0, 1)  # (B,1,P,W) -> (B*P,W)
        state = torch.where((path.start >= 0)[:, None], held[path.start.clamp(min=0)], state)
    states = []
    for ids, before in zip(tokens.ids.flatten()[path.order].split(path.sizes), path.before, strict=True):
        state = step(ids, state[slice(len(ids)) if before is None else before])
        states.append(state)
    joined = torch.cat(states)
    found = torch.empty_like(joined).index_copy(0, path.order, joined).view(*tokens.ids.shape, -1)
    if cache is not None:
        cache.arrive(layout)
        cache.extend(0, found[:, None], found[:, None])
    return found


# ---------------------------------------------------------------------------------------------------- n-grams


def discounts(counts: Tensor) -> tuple[float, float, float, float]:
    """What is taken from counts of 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 17), within bounds."""
    many = [int((counts == n).sum()) for n in range(5)]
    if not many[1] or not many[2]:
        return (0.0, 0.5, 0.75, 0.75)
    y = many[1] / (many[1] + 2 * many[2])
    raw = [n - (n + 1) * y * many[n + 1] / many[n] if many[n] else n * 0.75 for n in (1, 2, 3)]
    one, two, three = (min(max(value, 0.05), n - 0.05) for n, value in zip((1, 2, 3), raw, strict=True))
    return (0.0, one, two, three)


class NGram(nn.Module):
    """Tables of a tree of contexts, read backwards from the last token. Level k holds the contexts of k tokens:

    nodes_k    (C,) int64 sorted: number of the shorter context in its level, times V+1, plus the token before it
    entries_k  (N,) int64 sorted: number of the context, times V+1, plus the token that followed
    share_k    (N,) float32: (count - discount) / all, of that token;  left_k (C,): what the discounts left over

    V itself stands for what is before a document.
    """

    def __init__(self, config: c.NGramConfig) -> None:
        super().__init__()
        if config.order < 2:
            raise RecipeError(f"The order of an n-gram model is 2 or more, not {config.order}.")
        self.config = config
        for k, (contexts, entries) in enumerate(
            zip(sized(config.contexts, 1, config), sized(config.entries, 0, config), strict=True)
        ):
            self.register_buffer(f"nodes_{k}", torch.zeros(contexts, dtype=torch.int64))
            self.register_buffer(f"entries_{k}", torch.zeros(entries, dtype=torch.int64))
            setattr(self, f"share_{k}", nn.Parameter(torch.zeros(entries), requires_grad=False))
            setattr(self, f"left_{k}", nn.Parameter(torch.ones(contexts), requires_grad=False))

    def forward(
        self, tokens: Tokens, source: None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        """(B,T,order-1) the last ids before what comes next, the newest first; V before a document. Exact as floats."""
        begin = torch.full((self.config.dim,), float(self.config.vocab), device=tokens.ids.device)
        return walk(tokens, cache, begin, lambda ids, past: torch.cat((ids[:, None].to(past), past[:, :-1]), 1))

    def scores(self, hidden: Tensor) -> Tensor:
        """(...,order-1) -> (...,V) log probabilities of the next token."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        vocab = self.config.vocab
        p = torch.full((len(flat), vocab), 1 / vocab, device=hidden.device)
        for share, left, entries, node, has in self.found(flat):
            p = torch.where(has[:, None], p * left[node][:, None], p)
            if not len(entries):
                continue
            first = torch.searchsorted(entries, node * (vocab + 1))
            count = (torch.searchsorted(entries, (node + 1) * (vocab + 1)) - first) * has
            row = torch.arange(len(flat), device=p.device).repeat_interleave(count)
            at = torch.arange(len(row), device=p.device) - (count.cumsum(0) - count)[row] + first[row]
            p = p.flatten().index_add(0, row * vocab + entries[at] % (vocab + 1), share[at]).view_as(p)
        return p.clamp(min=TINY).log().view(*hidden.shape[:-1], vocab)

    def probability(self, hidden: Tensor, target: Tensor) -> Tensor:
        """(N,order-1), (N,) -> (N,) of one token each, without the others."""
        p = torch.full((len(hidden),), 1 / self.config.vocab, dtype=torch.float64, device=hidden.device)
        for share, left, entries, node, has in self.found(hidden):
            own = torch.zeros_like(p)
            if len(entries):
                at, there = lookup(entries, node * (self.config.vocab + 1) + target)
                own = torch.where(there, share[at].double(), own)
            p = torch.where(has, own + left[node].double() * p, p)
        return p

    def found(self, hidden: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Per level: shares, what is left, entries, the number of each row's context, and whether it was ever met."""
        node = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        has = torch.ones_like(node, dtype=torch.bool)
        for k in range(self.config.order):
            if k:
                token = hidden[:, k - 1].long()
                node, met = lookup(getattr(self, f"nodes_{k}"), node * (self.config.vocab + 1) + token)
                has = has & met
            if not len(getattr(self, f"left_{k}")):
                return
            tables = (getattr(self, f"{name}_{k}") for name in ("share", "left", "entries"))
            yield (*tables, node, has)


def sized(said: tuple[int, ...], first: int, config: c.NGramConfig) -> tuple[int, ...]:
    """Sizes by level; before anything is counted there is the empty context alone."""
    return said or (first, *[0] * config.dim)


def lookup(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Places of `wanted` among sorted keys, and whether they are there; place 0 where not."""
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    there = keys[at] == wanted
    return torch.where(there, at, 0), there


def count(config: c.NGramConfig, contexts: Tensor, targets: Tensor) -> NGram:
    """The model of (N,order-1) contexts, newest token first, and the (N,) tokens that followed.

    Lower orders count how many different tokens a continuation was seen after, not how often (Kneser & Ney 1995).
    """
    base = config.vocab + 1
    numbers, nodes = [torch.zeros(len(targets), dtype=torch.int64)], [torch.zeros(1, dtype=torch.int64)]
    for k in range(1, config.order):
        keys, number = torch.unique(numbers[-1] * base + contexts[:, k - 1].long(), return_inverse=True)
        nodes.append(keys)
        numbers.append(number)
    levels: list[tuple[Tensor, Tensor]] = []
    top, counts = torch.unique(numbers[-1] * base + targets, return_counts=True)
    levels.append((top, counts))
    for k in range(config.order - 2, -1, -1):
        shorter = nodes[k + 1][levels[0][0] // base] // base  # the context without its oldest token
        entries, different = torch.unique(shorter * base + levels[0][0] % base, return_counts=True)
        levels.insert(0, (entries, different))
    sizes = replace(config, contexts=tuple(map(len, nodes)), entries=tuple(len(entries) for entries, _ in levels))
    model = NGram(sizes)
    with torch.no_grad():
        for k, (entries, counts) in enumerate(levels):
            taken = torch.tensor(discounts(counts), dtype=torch.float64)[counts.clamp(max=3)]
            node = entries // base
            total = torch.zeros(len(nodes[k]), dtype=torch.float64).index_add(0, node, counts.double())
            lost = torch.zeros_like(total).index_add(0, node, taken)
            getattr(model, f"nodes_{k}").copy_(nodes[k])
            getattr(model, f"entries_{k}").copy_(entries)
            getattr(model, f"share_{k}").copy_((counts - taken) / total[node])
            getattr(model, f"left_{k}").copy_(torch.where(total > 0, lost / total.clamp(min=1), 1.0))
    return model


# ---------------------------------------------------------------------------------------------------- hidden Markov


class Markov(nn.Module):
    """start (K,), move (K,K), emit (K,V): scores whose softmax along the last axis are the probabilities."""

    def __init__(self, config: c.MarkovConfig) -> None:
        super().__init__()
        self.config = config
        self.start: nn.Parameter
        self.move: nn.Parameter
        self.emit: nn.Parameter
        shapes = {"start": (config.states,), "move": (config.states,) * 2, "emit": (config.states, config.vocab)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    def begin(self, generator: torch.Generator) -> None:
        """Random scores: equal states would stay equal for ever."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log probabilities: (K,), (K,K), (K,V)."""
        return self.start.log_softmax(-1), self.move.log_softmax(-1), self.emit.log_softmax(-1)

    def forward(
        self, tokens: Tokens, source: None = None, cache: Cache | None = None, record: Recorder | None = None
    ) -> Tensor:
        """(B,T,K) log p(state of the next token | ids up to this one): the forward algorithm, in logs."""
        start, move, emit = self.logs()
        seen = emit.T  # (V,K)

        def step(ids: Tensor, expected: Tensor) -> Tensor:
            here = (expected + seen[ids]).log_softmax(-1)  # p(state of this token | ids up to it)
            return product(here, move)

        with torch.autocast(tokens.ids.device.type, enabled=False):
            return walk(tokens, cache, start, step)

    def scores(self, hidden: Tensor) -> Tensor:
        """(...,K) -> (...,V) log probabilities of the next token."""
        with torch.autocast(hidden.device.type, enabled=False):
            return product(hidden.float(), self.logs()[2])

    def fit(self, expected: Expected) -> None:
        """The M step: expected counts as probabilities."""
        with torch.no_grad():
            for name, counts in (("start", expected.start), ("move", expected.move), ("emit", expected.emit)):
                counts = counts + self.config.smoothing
                getattr(self, name).copy_((counts / counts.sum(-1, keepdim=True)).clamp(min=TINY).log())


def product(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) @ exp(b)) of (...,K), (K,M), the largest taken out before so that nothing vanishes."""
    high, top = a.amax(-1, keepdim=True), b.amax()
    return ((a - high).exp() @ (b - top).exp()).clamp(min=TINY).log() + high + top


class Expected:
    """Expected counts of an epoch: how often a document starts in a state (K,), moves (K,K), emits (K,V)."""

    def __init__(self, config: c.MarkovConfig) -> None:
        k = config.states
        self.start, self.move = torch.zeros(k).double(), torch.zeros(k, k).double()
        self.emit = torch.zeros(k, config.vocab).double()
        self.nats, self.tokens = 0.0, 0

    def add(self, model: Markov, ids: Tensor, lengths: Tensor) -> None:
        """The E step on (n,L) documents of these lengths (Baum et al. 1970): forwards, backwards, both together."""
        start, move, emit = (t.double() for t in model.logs())
        seen = emit.T[ids]  # (n,L,K)
        steps = ids.shape[1]
        forward = [start + seen[:, 0]]
        for t in range(1, steps):
            forward.append(product(forward[-1], move) + seen[:, t])
        backward = [torch.zeros_like(forward[0])]
        for t in range(steps - 1, 0, -1):
            inside = (t < lengths)[:, None]
            backward.append(torch.where(inside, product(seen[:, t] + backward[-1], move.T), 0.0))
        alpha, beta = torch.stack(forward, 1), torch.stack(backward[::-1], 1)  # (n,L,K)
        real = torch.arange(steps) < lengths[:, None]
        nats = -alpha[torch.arange(len(ids)), lengths - 1].logsumexp(-1)  # (n,)
        state = (alpha + beta + nats[:, None, None]).exp() * real[..., None]  # p(state | document)
        self.start += state[:, 0].sum(0)
        self.emit += torch.zeros_like(self.emit.T).index_add(0, ids.flatten(), state.flatten(0, 1)).T
        later = (seen[:, 1:] + beta[:, 1:]) + nats[:, None, None]
        high = later.amax(-1, keepdim=True)
        left = (alpha[:, :-1] + high).exp() * real[:, 1:, None]  # (n,L-1,K)
        self.move += (left.flatten(0, 1).T @ (later - high).exp().flatten(0, 1)) * move.exp()
        self.nats += float(nats.sum())
        self.tokens += int(lengths.sum())
