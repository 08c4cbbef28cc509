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
from weft.core.cache import Cache, Cross
from weft.core.position import alibi, buckets, rotation
from weft.core.record import Recorder
from weft.core.view import Layout, together


@dataclass
class View:
    """What the layers of one stack look through. Tensors only, so that a stack compiles as one graph.

    mask      (1|B,1|H,T,S) added to the scores, 0 or -inf (and ALiBi), in the dtype of the queries; None: all is seen
    causal    no mask needed but the kernel's own causal one
    rotation  (cos, sin), each (1|B,T,1,E'/2), of Rope
    buckets   (1|B,T,S) int64 of RelativeBias: the stack, which owns the table, adds them to the mask
    kinds     for PerModality: per kind, text first, the places (n,) of its tokens in the flattened (B*T)
    memory    (B,S,D) what the cross attention looks at
    across    the view of the cross attention; its keys and values may be `kept`
    cache     what came before; record: who wants the weights
    """

    mask: Tensor | None = None
    causal: bool = False
    rotation: tuple[Tensor, Tensor] | None = None
    buckets: Tensor | None = None
    kinds: Sequence[Tensor] = ()
    memory: Tensor | None = None
    across: View | None = None
    cache: Cache | None = None
    kept: Cross | None = None
    record: Recorder | None = None


def visible(pattern: c.Full | c.Causal | c.Prefix | c.Window, q: Layout, k: Layout) -> Tensor | None:
    """(1|B,T,S) bool: which keys each query sees. None: all of them."""
    seen = together(q, k)
    allowed = _allowed(pattern, q, k)
    if seen is None or allowed is None:
        return allowed if seen is None else seen
    return seen & allowed


def _allowed(pattern: c.Full | c.Causal | c.Prefix | c.Window, q: Layout, k: Layout) -> Tensor | None:
    """(1|B,T,S) bool of the pattern alone."""
    if isinstance(pattern, c.Full):
        return None
    back = k.index[:, None, :] <= q.index[:, :, None]
    if isinstance(pattern, c.Causal):
        return back
    if isinstance(pattern, c.Prefix):
        if q.span is None or k.span is None:
            return back
        return back | ((q.span[:, :, None] == k.span[:, None, :]) & (q.span[:, :, None] > 0))
    distance = q.order[:, :, None] - k.order[:, None, :]  # (1|B,T,S) > 0: the key is behind
    near = (distance <= pattern.left) & (distance >= -pattern.right)
    if pattern.globals:
        near = near | (q.order < pattern.globals)[:, :, None] | (k.order < pattern.globals)[:, None, :]
    return near & back if pattern.right == 0 else near


def looks_ahead(pattern: c.Full | c.Causal | c.Prefix | c.Window) -> bool:
    """Whether a token may see a later one outside of its span: then nothing can be decoded with a cache."""
    return isinstance(pattern, c.Full) or (isinstance(pattern, c.Window) and pattern.right > 0)


def look(attention: c.Attention, q: Layout, k: Layout, *, width: int, dtype: torch.dtype, fresh: bool = True) -> View:
    """The view of `q` upon `k` for layers of `attention`. fresh: q and k are one stream, nothing cached before it.

    width  features of one head; dtype  that of the queries.
    """
    pattern, position = attention.pattern, attention.position
    view = View()
    if isinstance(position, c.Rope):
        view.rotation = rotation(position, q, width, dtype)
    if isinstance(position, c.RelativeBias):
        view.buckets = buckets(position, q, k, both=looks_ahead(pattern))
    plain = together_is_all(q, k) and (
        isinstance(pattern, c.Causal) or (isinstance(pattern, c.Prefix) and q.span is None)
    )
    if plain and fresh and not isinstance(position, c.Alibi | c.RelativeBias):
        view.causal = True
        return view
    if plain and len(q) == 1 and len(k) == int(q.index[0, -1]) + 1 and not isinstance(position, c.Alibi):
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


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(1|B,T,S) bool -> (1|B,1,T,S): 0 where seen, -inf elsewhere. A query has to see something: itself, at least."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    return mask[:, None]


def across(attention: c.Attention, q: Layout, source: Layout, memory: Tensor, *, dtype: torch.dtype) -> View:
    """The view of a decoder's cross attention: each document upon the source document of its number."""
    seen = visible(c.Full(), q, source)
    if seen is None:
        return View(memory=memory)
    lost = ~seen.any(-1, keepdim=True)  # padding looks at everything, so that its softmax is finite
    return View(additive(seen | lost, dtype), memory=memory)
