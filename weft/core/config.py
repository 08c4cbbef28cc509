"""The choices a transformer is made of, as small frozen types, and the tree of them as JSON.

A choice with its own numbers is its own type, so an illegal combination cannot be written down:

    ModelConfig
    ├── topology   TowerConfig | EncoderDecoderConfig | EarlyFusionConfig | ConcatConfig | DualEncoderConfig
    │   ├── input  TextInput(vocab, positions, stems={"image": LinearStem(192)})
    │   └── stack  StackConfig(dim, depth, Attention(heads, position=Rope()), FeedForward(hidden), RMSNorm())
    ├── heads      {"language": Language(vocab)}
    └── init       Init(std=0.02)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from weft.core.meet import Bridge as Bridge
from weft.core.meet import (
    ConcatFusionConfig,
    CrossFusionConfig,
    EarlyFusionConfig,
    Fusion,
    GatedCross,
    ItemEncoder,
    MlpBridge,
    ResampleBridge,
    ShuffleBridge,
)
from weft.core.others import ConvolveConfig, MarkovConfig, NGramConfig, PictureConfig, RecurrentConfig, Told
from weft.errors import RecipeError, nearest

# ---------------------------------------------------------------------------------------------------- positions


@dataclass(frozen=True)
class Learned:
    """A table of vectors, one per place in the document, added to the embeddings (GPT-2, BERT).

    offset  rows of the table before that of the first place (RoBERTa: 2)
    """

    length: int
    offset: int = 0


@dataclass(frozen=True)
class Grid:
    """A table for `before` tokens and then rows x columns of a picture's patches, added to the embeddings (ViT).

    A picture with another number of patches takes the table interpolated (bicubic) to its own: Dosovitskiy et al. 2021,
    section 3.2. Ids past the first `before` share the last one's place.
    """

    rows: int
    columns: int
    before: int = 1

    @property
    def length(self) -> int:
        """Rows of the table."""
        return self.before + self.rows * self.columns


@dataclass(frozen=True)
class CodeGrid:
    """Two tables for the codes of drawn pictures, of rows and of columns, and one by order for all other ids (DALL-E).

    length  of the table by order;  side  codes of a row of a picture, and rows of it
    first, count  the ids that are codes
    """

    length: int
    side: int
    first: int
    count: int


@dataclass(frozen=True)
class Sinusoidal:
    """Sines, then cosines, of geometric wavelengths, added to the embeddings.

    Vaswani et al. 2017, section 3.5, in the order of the authors' code, not of the formula (`position.sinusoidal`).
    """

    theta: float = 10_000.0


@dataclass(frozen=True)
class Stretch:
    """Rope made longer: wavelengths over `length / low` are stretched by `factor` (Llama 3.1)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    length: int = 8192


@dataclass(frozen=True)
class Interpolate:
    """Rope made longer: every wavelength times `factor` (Chen et al. 2023, position interpolation)."""

    factor: float


@dataclass(frozen=True)
class Yarn:
    """Rope made longer (Peng et al. 2023): waves that turn less than `slow` times within `length` are stretched by
    `factor`, those of more than `fast` turns kept, a ramp between; q and k times `attention` (0: 0.1 ln(factor) + 1).

    whole  the ramp begins and ends at whole feature numbers
    """

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 0.0
    whole: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021).

    axes      1: the token's place in its document. 2: row, column. 3: sequence, row, column, so that text keeps the
              one-dimensional rotation and patches or seconds turn by their own (M-RoPE, Wang et al. 2024)
    fraction  share of each head's features that is rotated
    """

    theta: float = 10_000.0
    axes: int = 1
    fraction: float = 1.0
    scaling: Interpolate | Stretch | Yarn | None = None


@dataclass(frozen=True)
class RelativeBias:
    """A learned number per head and bucket of distance, added to the attention scores, shared by all layers (T5)."""

    buckets: int = 32
    distance: int = 128


@dataclass(frozen=True)
class Alibi:
    """A penalty linear in the distance, with a fixed slope per head (Press et al. 2022)."""


# ---------------------------------------------------------------------------------------------------- patterns


@dataclass(frozen=True)
class Full:
    """Every token sees its whole document."""


@dataclass(frozen=True)
class Causal:
    """A token sees itself and what came before it."""


@dataclass(frozen=True)
class Prefix:
    """Causal, but the tokens of one `span` (an image, a sound, a prompt) see each other both ways."""


@dataclass(frozen=True)
class Window:
    """A token sees `left` tokens back and `right` ahead; the first `globals` of a document see and are seen by all.

    With `right=0` nothing looks ahead, the global tokens neither (Mistral; attention sinks). Longformer: both sides.
    Where a stream says itself which tokens are global (`Tokens.globals`), those are, in place of the first ones. Over
    long rows the products are made in bands, so that their cost is linear in the length (`core/band.py`).
    """

    left: int
    right: int = 0
    globals: int = 0


# ---------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class LayerNorm:
    """Ba et al. 2016."""

    eps: float = 1e-5
    bias: bool = True


@dataclass(frozen=True)
class RMSNorm:
    """Zhang & Sennrich 2019. `weight=False`: nothing learned."""

    eps: float = 1e-6
    weight: bool = True


@dataclass(frozen=True)
class PerModality:
    """One copy of `part` for text and one for each of `kinds`; every token goes through the copy of its kind."""

    kinds: tuple[str, ...]
    part: FeedForward | LayerNorm | RMSNorm


@dataclass(frozen=True)
class Attention:
    """heads x head_dim queries over kv_heads x head_dim keys and values (0: all heads; dim / heads).

    scale     factor on the scores; None: head_dim^-1/2
    key_bias  False: where there are biases, keys have none (Whisper)
    out_bias  whether the last matrix has a bias; None: as the others (Qwen2: no)
    globals   global tokens of a Window ask, and are asked by, matrices of their own (Longformer)
    """

    heads: int
    kv_heads: int = 0
    head_dim: int = 0
    bias: bool = False
    qk_norm: LayerNorm | RMSNorm | None = None
    position: Rope | RelativeBias | Alibi | None = None
    pattern: Full | Causal | Prefix | Window = Causal()
    scale: float | None = None
    key_bias: bool = True
    globals: bool = False
    out_bias: bool | None = None


@dataclass(frozen=True)
class FeedForward:
    """activation: gelu, gelu_tanh, gelu_quick, relu, relu2 (squared), silu.

    gated  act(gate(x)) * up(x) in place of act(up(x)) (Shazeer 2020)
    """

    hidden: int
    activation: str = "gelu"
    gated: bool = False
    bias: bool = False


@dataclass(frozen=True)
class StackConfig:
    """`depth` equal blocks. order "pre": norm before each part and once at the end; "post": norm after each sum.

    cross        attention to a source of width `source` (0: dim), in every `cross_every`-th block
    layer_scale  a learned factor per feature on what each part adds, and where it starts (Touvron et al. 2021); 0: none
    """

    dim: int
    depth: int
    attention: Attention
    feedforward: FeedForward | PerModality
    norm: LayerNorm | RMSNorm | PerModality
    order: str = "pre"
    cross: Attention | GatedCross | None = None
    cross_every: int = 1
    source: int = 0
    dropout: float = 0.0
    layer_scale: float = 0.0


# ---------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class LinearStem:
    """(N,F) -> (N,D) by one matrix (ViT's patch projection, unrolled)."""

    features: int
    bias: bool = True


@dataclass(frozen=True)
class MlpStem:
    """(N,F) -> (N,hidden) -> (N,D) with a GELU between."""

    features: int
    hidden: int


@dataclass(frozen=True)
class ConvStem:
    """(N,F) as (N,channels,p,p) through two strided 3x3 convolutions, inside each patch, -> (N,D)."""

    features: int
    width: int
    channels: int = 3


@dataclass(frozen=True)
class FrameStem:
    """(N,F), two frames of F/2 mels side by side, through two convolutions over time -> (N,D), never across items.

    Both look at three frames, the second goes in steps of two, a GELU after each (Radford et al. 2022, section 2.2).
    """

    features: int


@dataclass(frozen=True)
class PyramidStem:
    """(N,F), the cells of a picture or a sound, through 3-wide convolutions in steps of two until each is one token.

    They look beyond the cell, never beyond the item (Xiao et al. 2021, Early Convolutions Help Transformers
    See Better).

    cell    (channels, rows, columns) of one token: (3,8,8) pixels, channels first; (80,1,8): eight frames, mels last
    widths  channels after each convolution but the last, which gives the model's width
    """

    cell: tuple[int, int, int]
    widths: tuple[int, ...]

    @property
    def features(self) -> int:
        """F: numbers of one token."""
        return self.cell[0] * self.cell[1] * self.cell[2]


Stem = LinearStem | MlpStem | ConvStem | FrameStem | PyramidStem


@dataclass(frozen=True)
class TextInput:
    """Ids to vectors: a table, added positions, segments, a norm; continuous items go through the stem of their kind.

    vocab    rows of the table; 0: none, only continuous items come in
    scale    factor on the embeddings, before positions are added
    width    of the table, positions and segments, where a matrix takes them to the stack's (ELECTRA); 0: the stack's
    opening  ids that stand before a picture or a sound that is given alone: the class token, or the column's marker
    """

    vocab: int
    positions: Learned | Grid | CodeGrid | Sinusoidal | None = None
    segments: int = 0
    norm: LayerNorm | RMSNorm | None = None
    stems: dict[str, Stem] = field(default_factory=dict)
    scale: float = 1.0
    width: int = 0
    opening: tuple[int, ...] = (0,)


AnyStack = StackConfig | RecurrentConfig | ConvolveConfig

# ---------------------------------------------------------------------------------------------------- topologies


@dataclass(frozen=True)
class TowerConfig:
    """One stream through one stack. With `stack.cross` it looks across to a source given as vectors."""

    input: TextInput
    stack: AnyStack


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """The source through one tower, the target through another that looks across (T5, Whisper; Flamingo's cross).

    shared  both sides use the encoder's token table
    """

    encoder: TowerConfig
    decoder: TowerConfig
    shared: bool = True


@dataclass(frozen=True)
class ConcatConfig:
    """Source, then target, each with its own input, one after the other through one stack (DALL-E, PaliGemma)."""

    source: TextInput
    target: TextInput
    stack: StackConfig


@dataclass(frozen=True)
class AtToken:
    """A row is read where the id `token` stands first; at its last token, if it does not (CLIP's end of text)."""

    token: int


@dataclass(frozen=True)
class AttentionPool:
    """A learned query asks all tokens of a row, then x + feed-forward(norm(x)) (SigLIP; Lee et al. 2019)."""

    attention: Attention
    feedforward: FeedForward
    norm: LayerNorm | RMSNorm


@dataclass(frozen=True)
class Project:
    """A matrix from a tower's width to that of the shared space."""

    bias: bool = False


Pool = str | AtToken | AttentionPool  # "first", "last", "mean"


@dataclass(frozen=True)
class DualEncoderConfig:
    """Two towers into one space of `width` (CLIP, SigLIP).

    left_pool, right_pool        how each row becomes one vector: "first", "last", "mean", AtToken or AttentionPool
    left_project, right_project  the matrix behind it; None: that side has `width` already
    bias                         where the learned number added to all scores starts; None: there is none
    """

    left: TowerConfig
    right: TowerConfig
    width: int
    left_pool: Pool = "first"
    right_pool: Pool = "last"
    temperature: float = 0.07
    left_project: Project | None = Project()
    right_project: Project | None = Project()
    bias: float | None = None


Counted = NGramConfig | MarkovConfig
Topology = TowerConfig | EncoderDecoderConfig | Fusion | ConcatConfig | DualEncoderConfig | Counted

# ---------------------------------------------------------------------------------------------------- heads, model


@dataclass(frozen=True)
class Language:
    """Hidden to vocabulary. tied: by the input's table. transform: a dense layer, activation and norm before it (BERT).

    scale  factor on the hidden state before the table (T5: dim^-1/2)
    """

    vocab: int
    tied: bool = True
    bias: bool = False
    transform: LayerNorm | None = None
    scale: float = 1.0
    activation: str = "gelu"


@dataclass(frozen=True)
class Classify:
    """Pooled hidden to classes. hidden > 0: a layer of that width before it, with its activation (BERT's pooler).

    tokens  the first so many tokens are read, each by a matrix of its own, and averaged (2: DeiT, Touvron et al. 2021)
    mean    the mean of the other tokens stands beside the first one (DINOv2)
    """

    classes: int
    hidden: int = 0
    tokens: int = 1
    mean: bool = False
    activation: str = "tanh"


@dataclass(frozen=True)
class Tag:
    """Each token to classes: parts of speech, names, replaced or not (ELECTRA). hidden: as in Classify."""

    classes: int
    hidden: int = 0
    activation: str = "tanh"


@dataclass(frozen=True)
class Span:
    """Each token to two scores, of being the first and the last of the answer (Devlin et al. 2018, section 4.2)."""


@dataclass(frozen=True)
class Pooler:
    """The first token through a layer of `width` and tanh: a vector for the row (BERT)."""

    width: int


Head = Told | Language | Classify | Tag | Span | Pooler


@dataclass(frozen=True)
class Init:
    """How weights start.

    std        of matrices; 0: fan_in^-1/2 of each
    embedding  std of tables
    head       std of an untied language head
    residual   what the last matrix of each residual part is multiplied with; 0: parts^-1/2, with 2 or 3 parts a block
               (GPT-2); near 0 every block starts as the identity
    """

    std: float = 0.02
    embedding: float = 0.02
    head: float = 0.02
    residual: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """All that `weft.model.build` needs."""

    topology: Topology
    heads: dict[str, Head] = field(default_factory=dict)
    init: Init = Init()
    family: str = ""  # for people; nothing branches on it


# ---------------------------------------------------------------------------------------------------- JSON

TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        RecurrentConfig, ConvolveConfig, PictureConfig, NGramConfig, MarkovConfig, Told, Learned, Grid, CodeGrid,
        Sinusoidal, Interpolate, Stretch, Yarn, Rope, RelativeBias, Alibi, Full, Causal, Prefix, Window, LayerNorm,
        RMSNorm, PerModality, Attention, FeedForward, StackConfig, LinearStem, MlpStem, ConvStem, FrameStem,
        PyramidStem, TextInput, TowerConfig, EncoderDecoderConfig, MlpBridge, ShuffleBridge, ResampleBridge,
        ItemEncoder, EarlyFusionConfig, ConcatFusionConfig, CrossFusionConfig, GatedCross, ConcatConfig, AtToken,
        AttentionPool, Project, DualEncoderConfig, Language, Classify, Tag, Span, Pooler, Init, ModelConfig,
    )
}  # fmt: skip


def to_tree(value: Any) -> Any:
    """A config as plain JSON values; every type is tagged by its name."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {key: to_tree(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_tree(item) for item in value]
    return value


def from_tree(tree: Any) -> Any:
    """The config that `to_tree` wrote. Raises RecipeError for an unknown type or field, naming the nearest one."""
    if isinstance(tree, list):
        return tuple(from_tree(item) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "type" not in tree:
        return {key: from_tree(item) for key, item in tree.items()}
    name, fields = tree["type"], {key: from_tree(item) for key, item in tree.items() if key != "type"}
    if name not in TYPES:
        raise RecipeError(f"A config of type {name!r} is not known.{nearest(name, TYPES)}")
    known = [f.name for f in dataclasses.fields(TYPES[name])]
    for key in fields:
        if key not in known:
            raise RecipeError(f"{name} has no field {key!r}.{nearest(key, known)}")
    return TYPES[name](**fields)
