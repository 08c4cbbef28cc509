"""Which keys each query sees, by a stream's layout and a pattern. Drawings stand in `core/mask.py`.

Shape letters:  B rows  T queries  S keys
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.core import config as c
from weft.core.view import Layout, together


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
    marks = is_global(pattern, q), is_global(pattern, k)
    if marks[0] is not None and marks[1] is not None:
        near = near | marks[0][:, :, None] | marks[1][:, None, :]
    return near & back if pattern.right == 0 else near


def is_global(pattern: c.Window, layout: Layout) -> Tensor | None:
    """(1|B,T) bool: the global tokens, as the stream says or the first of each document. None: there are none."""
    if layout.globals is not None:
        return layout.globals > 0
    return layout.order < pattern.globals if pattern.globals else None


def looks_ahead(pattern: c.Full | c.Causal | c.Prefix | c.Window) -> bool:
    """Whether a token may see a later one outside of its span: then nothing can be decoded with a cache."""
    return isinstance(pattern, c.Full) or (isinstance(pattern, c.Window) and pattern.right > 0)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(1|B,T,S) bool -> (1|B,1,T,S): 0 where seen, -inf elsewhere. A query has to see something: itself, at least."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    return mask[:, None]
