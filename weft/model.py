"""From a config tree to a model.

Shape letters:  B rows  T tokens  S source tokens  D width  V vocabulary  E width of a shared space
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache, Fixed, Growing, Sliding
from weft.core.init import initialise
from weft.core.mask import looks_ahead
from weft.core.record import Recorder
from weft.core.stack import Stack
from weft.core.topology import MODULES, Encoded, within
from weft.core.view import Tokens
from weft.errors import WeftError, nearest
from weft.heads import make_head


@dataclass
class Output:
    """What a forward in the ecosystem's names returns; what does not apply is None."""

    logits: Tensor | None = None
    hidden: Tensor | None = None
    loss: Tensor | None = None


class Model(nn.Module):
    """A topology and its heads. `config` describes all of it; `kind` says how it is used."""

    def __init__(self, config: c.ModelConfig) -> None:
        super().__init__()
        self.config, self.kind = config, kind(config.topology)
        self.body = MODULES[type(config.topology)](config.topology)
        stack, table = outlet(self.body)
        self.heads = nn.ModuleDict({name: make_head(head, stack.config.dim, table) for name, head in config.heads.items()})

    def hidden(
        self,
        tokens: Tokens,
        source: Tokens | Encoded | None = None,
        cache: Cache | None = None,
        record: Recorder | None = None,
    ) -> Tensor:
        """(B,T,D) hidden states of `tokens`. source: the encoder's side, raw or encoded; cache: what came before."""
        if isinstance(source, Tokens) and isinstance(self.config.topology, c.EncoderDecoderConfig):
            source = self.body.encode(source, record, keep=False)
        return self.body(tokens, source, cache, within(record, ""))

    def encode(self, source: Tokens, record: Recorder | None = None) -> Encoded:
        """The source once encoded, to be used by every step of a decoder."""
        if not isinstance(self.config.topology, c.EncoderDecoderConfig):
            raise WeftError(f"A {self.kind} has no separate encoder: give its tokens to `hidden`.")
        return self.body.encode(source, record)

    def logits(self, hidden: Tensor, head: str = "language") -> Tensor:
        """(...,D) -> (...,V) by a named head."""
        if head not in self.heads:
            raise WeftError(f"The model has no head {head!r}.{nearest(head, self.heads)}")
        return self.heads[head](hidden)

    def embed(self, tokens: Tokens, side: str = "left", record: Recorder | None = None) -> Tensor:
        """(B,E) unit vectors in the shared space of a dual encoder."""
        if self.kind != "dual":
            raise WeftError(f"A {self.kind} has no shared space; the family clip has one.")
        return self.body.embed(tokens, side, record)

    def cache(self, kind: str = "growing", capacity: int = 0) -> Cache:
        """An empty cache for this model: growing, fixed (of `capacity` tokens), or sliding (its own window)."""
        pattern = outlet(self.body)[0].config.attention.pattern
        if looks_ahead(pattern):
            raise WeftError(f"{type(pattern).__name__} attention looks ahead: there is nothing to cache.")
        if kind == "growing":
            return Growing()
        if kind == "fixed":
            return Fixed(capacity)
        if kind != "sliding":
            raise WeftError(f"No cache is called {kind!r}.{nearest(kind, ('growing', 'fixed', 'sliding'))}")
        if not isinstance(pattern, c.Window):
            raise WeftError(f"A sliding cache would forget what {type(pattern).__name__} attention still sees.")
        return Sliding(pattern.left, pattern.globals)

    def stack_modules(self) -> list[Stack]:
        """The modules worth compiling, one by one."""
        return [module for module in self.modules() if isinstance(module, Stack)]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """In the ecosystem's names. attention_mask (B,T): 1 real, 0 padding. labels (B,T): -100 untrained."""
        document = None if attention_mask is None else attention_mask.int()
        tokens, source = Tokens(input_ids, document=document), None
        if decoder_input_ids is not None:
            tokens, source = Tokens(decoder_input_ids), tokens
        hidden = self.hidden(tokens, source)
        if "language" not in self.heads:
            return Output(hidden=hidden)
        logits, loss = self.logits(hidden), None
        if labels is not None:
            shift = self.kind == "decoder"
            predicted, wanted = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
            loss = F.cross_entropy(predicted.flatten(0, 1).float(), wanted.flatten())
        return Output(logits, hidden, loss)


def kind(topology: c.Topology) -> str:
    """decoder | encoder | encoder-decoder | dual."""
    if isinstance(topology, c.EncoderDecoderConfig):
        return "encoder-decoder"
    if isinstance(topology, c.DualEncoderConfig):
        return "dual"
    stack = topology.tower.stack if isinstance(topology, c.EarlyFusionConfig) else topology.stack
    return "encoder" if looks_ahead(stack.attention.pattern) else "decoder"


def outlet(body: nn.Module) -> tuple[Stack, nn.Embedding]:
    """The stack whose output heads read, and the table of its input."""
    tower = body
    for name in ("decoder", "tower", "left"):
        tower = getattr(body, name, tower)
    return tower.stack, (tower.input if hasattr(tower, "input") else tower.target).table


def build(config: c.ModelConfig, seed: int | None = None, device: torch.device | str = "cpu") -> Model:
    """The model of a config, initialised. device "meta": shapes only, nothing is allocated (parameter counts)."""
    with torch.device("meta"):
        model = Model(config)
    if str(device) == "meta":
        return model
    model.to_empty(device=device)
    initialise(model, config.init, seed)
    return model
