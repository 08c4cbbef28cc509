"""Layouts that weft reads and writes: one explicit table."""

from __future__ import annotations

from weft.convert.layout import Layout, Raw, architecture
from weft.convert.layouts import gpt
from weft.core.config import ModelConfig
from weft.errors import ConvertError, nearest

LAYOUTS: tuple[Layout, ...] = (gpt.LAYOUT,)


def find(raw: Raw) -> Layout:
    """The layout of a config.json. Raises ConvertError for an architecture that is not known, naming those that are."""
    name = architecture(raw)
    known = {a: layout for layout in LAYOUTS for a in layout.architectures}
    if name not in known:
        raise ConvertError(f"The architecture {name!r} is not known.{nearest(name, known)}")
    return known[name]


def layout_of(config: ModelConfig) -> Layout:
    """The layout that a family's own models are written in. Raises ConvertError if it has none."""
    families = {layout.family: layout for layout in reversed(LAYOUTS) if layout.family}
    if config.family not in families:
        raise ConvertError(
            f"No other library has models of the family {config.family!r}; it can be written for {', '.join(families)}."
        )
    return families[config.family]
