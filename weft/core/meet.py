"""How encoded items meet a stream of words, as small frozen types.

ItemEncoder         picture ── tower ── bridge ──>      (frozen or not; its bridge is what is trained first)
EarlyFusionConfig   [image]▒▒▒▒[caption] a red pear     in place of their placeholders (LLaVA)
ConcatFusionConfig  ▒▒▒▒ + [image][caption] a red pear  in front of the words, each seen both ways (PaliGemma)
CrossFusionConfig   [image][caption] a red pear         beside the words, which look across to them (Flamingo)
                        ╚═══ ▒▒▒▒
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weft.core.others import PictureConfig

if TYPE_CHECKING:
    from weft.core.config import Attention, Stem, TowerConfig


@dataclass(frozen=True)
class MlpBridge:
    """D' -> hidden -> D, the main width, for each token by itself (LLaVA 1.5).

    factor  so many neighbours side by side become one token, of a picture factor x factor (InternVL: Chen et al. 2024)
    """

    hidden: int
    activation: str = "gelu"
    bias: bool = True
    factor: int = 1


@dataclass(frozen=True)
class ShuffleBridge:
    """factor x factor neighbouring patches side by side, and one matrix: fewer tokens than patches (SmolVLM).

    A token of the main stream then brings a square of factor * p pixels, which is cut into patches of p here.
    """

    factor: int
    bias: bool = False


@dataclass(frozen=True)
class ResampleBridge:
    """Learned queries ask all states of an item, `depth` times, and a matrix takes them to the main width.

    The Perceiver resampler of Flamingo (Alayrac et al. 2022, section 3.1): keys are of the states and of the queries.
    queries  rows of the table; an item takes the first so many as it has tokens in the main stream
    factor   as in MlpBridge: how many states each token of the main stream brings along
    """

    queries: int
    depth: int
    heads: int
    hidden: int
    factor: int = 1


Bridge = MlpBridge | ShuffleBridge | ResampleBridge


@dataclass(frozen=True)
class ItemEncoder:
    """Continuous items through a tower of their own, each item by itself, then a bridge to the main width.

    tower   its input has one stem, and opens each item as `TextInput.opening` says; what comes of that is not passed on
    layer   -1: all blocks and the last norm. -2: all but the last block, and no norm (LLaVA); and so on
    normed  False: layer -1 is taken without the last norm
    token   id that stands at its places where others write a stream as ids alone; -1: none
    line    its items have one dimension: neighbours are before and behind, not around
    """

    tower: TowerConfig
    bridge: Bridge
    layer: int = -1
    normed: bool = True
    token: int = -1
    line: bool = False

    @property
    def each(self) -> int:
        """States of the tower that one token of the main stream brings."""
        factor = self.bridge.factor
        return factor if self.line else factor**2

    @property
    def stem(self) -> Stem:
        """The stem as seen from the main stream: a token brings all patches of its square, or frames of its stretch."""
        (stem,) = self.tower.input.stems.values()
        return replace(stem, features=stem.features * self.each)


@dataclass(frozen=True)
class EarlyFusionConfig:
    """Encoded items take the place of their placeholders in one stream (LLaVA)."""

    tower: TowerConfig
    encoders: dict[str, ItemEncoder | PictureConfig]


@dataclass(frozen=True)
class ConcatFusionConfig:
    """Encoded items in front of the words, one stack over both; a `Prefix` pattern lets an item see itself both ways.

    Beyer et al. 2024 (PaliGemma). The places that the stream keeps for items are left out.
    """

    tower: TowerConfig
    encoders: dict[str, ItemEncoder]


@dataclass(frozen=True)
class CrossFusionConfig:
    """Encoded items beside the words: the stack's `cross` looks across to those of the own document.

    Alayrac et al. 2022 (Flamingo), but that words see all items of their document, not the last one before them alone.
    The places that the stream keeps for items are left out.
    """

    tower: TowerConfig
    encoders: dict[str, ItemEncoder]


Fusion = EarlyFusionConfig | ConcatFusionConfig | CrossFusionConfig


@dataclass(frozen=True)
class GatedCross:
    """In a stack's `cross`: before its block, x + tanh(a) * attention(x, source), then x + tanh(b) * feed-forward(x).

    Alayrac et al. 2022, section 3.2 and figure 4. a and b start at 0: at first the words are what they were.
    hidden  of the feed-forward part
    """

    attention: Attention
    hidden: int
    activation: str = "gelu"
