"""An adapter put into the weights it lies beside: a plain model again, which every exporter can say."""

from __future__ import annotations

from weft.adapt import lora
from weft.adapt.start import join_rows
from weft.model import Model


def plain(model: Model, name: str = lora.DEFAULT) -> Model:
    """The model itself, with an adapter merged if it has any and rows of their own back in their tables.

    The sums are made in double precision and rounded once: what it answers differs by that rounding alone.
    """
    if lora.adapters(model):
        lora.merge(model, name)
    join_rows(model)
    return model
