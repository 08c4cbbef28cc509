"""What a model's own encoders of items make of a picture or a sound: one vector for each.

Shape letters:  M tokens of the item  D' width of the encoder
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from weft.arrows.media import identify
from weft.arrows.render import Renderer
from weft.core.fuse import FUSED, Encoder
from weft.core.view import Media, Tokens
from weft.generate.decode import precision
from weft.model import Model


def encoders(model: Model) -> dict[str, Encoder]:
    """Kind -> the encoder that its items go through; empty for a model that has none."""
    if not isinstance(model.body, FUSED):
        return {}
    return {kind: one for kind, one in model.body.encoders.items() if isinstance(one, Encoder)}


@torch.no_grad()
def vector(encoder: Encoder, renderer: Renderer, kind: str, cell: Any, *, half: bool = False) -> np.ndarray:
    """(D',) float32 of length one: the mean of the encoder's states of an item, before the bridge.

    half  products in bfloat16, as where training made them so

    Raises DataError for an item that cannot be decoded.
    """
    found = renderer.reader.read(kind, *identify(cell))
    device, size = next(encoder.parameters()).device, len(found.values)
    row = Tokens(
        torch.zeros(1, size, dtype=torch.long), span=torch.ones(1, size, dtype=torch.int32),
        positions=torch.from_numpy(found.positions)[None],
    ).to(device)  # fmt: skip
    media = Media(kind, torch.from_numpy(found.values).float(), torch.arange(size)).to(device)
    with precision(device, half):
        mean = encoder.states(media, row).float().mean(0)
    return (mean / mean.norm().clamp_min(1e-9)).cpu().numpy()
