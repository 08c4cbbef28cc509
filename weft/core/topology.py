"""How streams meet. Each topology turns tokens into hidden states over the same stack.

Shape letters:  B rows  T tokens  S source tokens  D width

    Tower            tokens ── input ── stack ── hidden
    EncoderDecoder   source ── tower ── memory ══ cross ══╗
                     tokens ───────────────────── tower ──╨── hidden
    EarlyFusion, ConcatFusion, CrossFusion: see core/fuse.py
    Concat           [source ; tokens] ── stack ── hidden of the tokens
    DualEncoder      left ── tower ── pool ── project ── unit vector · unit vector ── project ── pool ── tower ── right
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache, Cross, join
from weft.core.counted import Markov, NGram
from weft.core.embed import Input
from weft.core.fuse import FUSED as FUSED
from weft.core.fuse import FUSIONS
from weft.core.fuse import EarlyFusion as EarlyFusion
from weft.core.pool import make_pool, make_project
from weft.core.record import Recorder
from weft.core.stack import Stack
from weft.core.tower import Encoded, Tower, sight, within
from weft.core.view import Layout, Tokens
from weft.errors import WeftError

SHARPEST = 100.0  # the largest factor on cosines


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


MODULES = {
    c.TowerConfig: Tower,
    c.EncoderDecoderConfig: EncoderDecoder,
    **FUSIONS,
    c.ConcatConfig: Concat,
    c.DualEncoderConfig: DualEncoder,
    c.NGramConfig: NGram,
    c.MarkovConfig: Markov,
}
