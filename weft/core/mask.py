"""From layouts to what a stack needs: one mask and one rotation, built once per forward and shared by all its layers.

Shape letters:  B rows  H heads  T queries  S keys  E features of a head  D width

    Causal      Prefix (span ..##..)   Window(left=2)   packed 1 1 1 2 2 2     trunk and branches . . 1 1 2 2
    1 . . .     1 . . . . .            1 . . . . .      1 . . . . .            1 . . . . .
    1 1 . .     1 1 . . . .            1 1 . . . .      1 1 . . . .            1 1 . . . .
    1 1 1 .     1 1 1 1 . .            1 1 1 . . .      1 1 1 . . .            1 1 1 . . .
    1 1 1 1     1 1 1 1 . .            . 1 1 1 . .      . . . 1 . .            1 1 1 1 . .
                1 1 1 1 1 .            . . 1 1 1 .      . . . 1 1 .            1 1 . . 1 .
                1 1 1 1 1 1            . . . 1 1 1      . . . 1 1 1            1 1 . . 1 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.core import config as c
from weft.core.band import Band, Marked, band, bands, marked
from weft.core.cache import Cache, Cross
from weft.core.chain import Chain
from weft.core.pattern import additive, visible
from weft.core.pattern import looks_ahead as looks_ahead
from weft.core.position import alibi, buckets, rotation
from weft.core.record import Recorder
from weft.core.view import Layout


@dataclass
class View:
    """What the layers of one stack look through. Tensors only, so that a stack compiles as one graph.

    mask      (1|B,1|H,T,S) added to the scores, 0 or -inf (and ALiBi), in the dtype of the queries; None: all is seen
    causal    no mask needed but the kernel's own causal one
    rotation  (cos, sin), each (1|B,T,1,E'/2), of Rope
    buckets   (1|B,T,S) int64 of RelativeBias: the stack, which owns the table, adds them to the mask
    band      in place of a mask: the pieces that a Window is computed in (core/band.py)
    marked    the global tokens of a Window whose own attention is computed apart: where they are, what each sees
    chains    of recurrent stacks: who comes before whom, each way that is read (core/chain.py)
    around    of convolutions: the document of each token (B,T), numbered through all rows, and where each begins
    kinds     for PerModality: per kind, text first, the places (n,) of its tokens in the flattened (B*T)
    memory    (B,S,D) what the cross attention looks at
    found     (1|B,T,1) bool: who sees anything of it; None: all
    across    the view of the cross attention; its keys and values may be `kept`
    cache     what came before; record: who wants the weights
    """

    mask: Tensor | None = None
    causal: bool = False
    rotation: tuple[Tensor, Tensor] | None = None
    buckets: Tensor | None = None
    band: Band | None = None
    marked: Marked | None = None
    chains: Sequence[Chain] = ()
    around: tuple[Tensor, Tensor] | None = None
    kinds: Sequence[Tensor] = ()
    memory: Tensor | None = None
    found: Tensor | None = None
    across: View | None = None
    cache: Cache | None = None
    kept: Cross | None = None
    record: Recorder | None = None


def look(
    attention: c.Attention, q: Layout, k: Layout, *, width: int, dtype: torch.dtype, fresh: bool = True,
    banded: bool = True,
) -> View:  # fmt: skip
    """The view of `q` upon `k` for layers of `attention`. fresh: q and k are one stream, nothing cached before it.

    width  features of one head; dtype  that of the queries; banded  a long Window may be computed in bands.
    """
    pattern, position = attention.pattern, attention.position
    view = View()
    if isinstance(position, c.Rope):
        view.rotation = rotation(position, q, width, dtype)
    if isinstance(position, c.RelativeBias):
        view.buckets = buckets(position, q, k, both=looks_ahead(pattern))
    if isinstance(pattern, c.Window):
        banded = banded and fresh and not isinstance(position, c.Alibi | c.RelativeBias) and bands(pattern, q)
        if banded or attention.globals:
            view.marked = marked(pattern, q, k, dtype)
        if banded:
            view.band = band(pattern, q, view.marked, dtype)
            return view
    plain = together_is_all(q, k) and (
        isinstance(pattern, c.Causal) or (isinstance(pattern, c.Prefix) and q.span is None)
    )
    if plain and fresh and not isinstance(position, c.Alibi | c.RelativeBias):
        view.causal = True
        return view
    if plain and q.index.shape[1] == 1 and len(k) == int(q.index[0, -1]) + 1 and not isinstance(position, c.Alibi):
        return view  # one new token after all the others: it sees everything
    seen = visible(pattern, q, k)
    if seen is not None:
        view.mask = additive(seen, dtype)
    if isinstance(position, c.Alibi):
        bias = alibi(attention.heads, q, k).to(dtype)
        view.mask = bias if view.mask is None else view.mask + bias
    return view


def together_is_all(q: Layout, k: Layout) -> bool:
    """Whether documents and branches hide nothing, told without looking at the numbers."""
    return q.document is None and k.document is None and k.branch is None


def across(q: Layout, source: Layout, memory: Tensor, *, dtype: torch.dtype) -> View:
    """The view of a decoder's cross attention: each document upon the source document of its number."""
    seen = visible(c.Full(), q, source)
    if seen is None:
        return View(memory=memory)
    lost = ~seen.any(-1, keepdim=True)  # padding looks at everything, so that its softmax is finite
    return View(additive(seen | lost, dtype), memory=memory, found=~lost)
