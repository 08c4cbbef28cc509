"""Layouts that weft reads and writes: one explicit table."""

from __future__ import annotations

from weft.convert.layout import Layout, Raw, architecture
from weft.convert.layouts import bert, clip, gpt, llama, llava, longformer, smolvlm, t5, vit, whisper
from weft.core.config import ModelConfig
from weft.errors import ConvertError, nearest

LAYOUTS: tuple[Layout, ...] = (
    gpt.LAYOUT,
    *llama.LAYOUTS,
    *bert.LAYOUTS,
    t5.LAYOUT,
    *vit.LAYOUTS,
    *clip.LAYOUTS,
    whisper.LAYOUT,
    longformer.LAYOUT,
    llava.LAYOUT,
    *smolvlm.LAYOUTS,
)


def find(raw: Raw) -> Layout:
    """The layout of a config.json. Raises ConvertError for an architecture that is not known, naming those that are."""
    name = architecture(raw)
    known = {a: layout for layout in LAYOUTS for a in layout.architectures}
    if name not in known:
        raise ConvertError(f"The architecture {name!r} is not known.{nearest(name, known)}")
    return known[name]


def layouts_of(config: ModelConfig) -> list[Layout]:
    """The layouts that a family's own models are written in, the first that can say all of it is taken.

    Raises ConvertError if it has none.
    """
    found = [layout for layout in LAYOUTS if layout.family == config.family]
    if not found:
        families = sorted({layout.family for layout in LAYOUTS})
        raise ConvertError(
            f"No other library has models of the family {config.family!r}; {', '.join(families)} can be written."
        )
    return found
