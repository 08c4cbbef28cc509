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
from weft.core.stream import stream
from weft.core.topology import MODULES, Concat, DualEncoder, EarlyFusion, Encoded, EncoderDecoder, Tower, within
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
        self.heads = nn.ModuleDict({key(n): make_head(h, stack.config.dim, table) for n, h in config.heads.items()})

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
        return self.heads[self.known(head)](hidden)

    def classes(self, head: str = "language") -> int:
        """How many logits a head gives."""
        self.known(head)
        config = self.config.heads[head]
        return config.vocab if isinstance(config, c.Language) else config.classes

    def known(self, head: str) -> str:
        """The module name of a head. Raises WeftError if there is none, with the nearest."""
        if head not in self.config.heads:
            raise WeftError(f"The model has no head {head!r}.{nearest(head, self.config.heads)}")
        return key(head)

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
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """In the ecosystem's names, one document a row.

        input_ids (B,T), attention_mask (B,T) 1 real 0 padding; pixel_values (B,C,H,W) and input_features
        (B,frames,mels) stand before the ids, whose hidden states and logits are answered; without ids a class token
        (id 0) stands first. decoder_input_ids (B,T') of an encoder-decoder. labels: (B,T) or (B,T'), -100 untrained,
        shifted here for a decoder; (B,) for a classification head. A dual encoder answers (B,B) scores, images or
        sounds by texts.
        """
        if self.kind == "dual":
            media = stream(self.body, pixels=pixel_values, sounds=input_features)[0]
            text = stream(self.body, input_ids, attention_mask)[0]
            scores = self.embed(media, "left") @ self.embed(text, "right").T * self.body.sharpness.exp()
            return Output(logits=scores)
        tokens, before = stream(self.body, input_ids, attention_mask, pixels=pixel_values, sounds=input_features)
        source = None
        if decoder_input_ids is not None:
            tokens, source, before = Tokens(decoder_input_ids), tokens, 0
        hidden = self.hidden(tokens, source)[:, before:]
        head = "language" if "language" in self.config.heads else next(iter(self.config.heads), "")
        if not head:
            return Output(hidden=hidden)
        logits = self.logits(hidden if head == "language" else hidden[:, 0], head)
        if labels is None:
            return Output(logits, hidden)
        shift = self.kind == "decoder" and labels.dim() == 2
        predicted, wanted = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        return Output(logits, hidden, F.cross_entropy(predicted.flatten(0, -2).float(), wanted.flatten()))


def key(head: str) -> str:
    """A head's name as a module's, which must hold no dot."""
    return head.replace("%", "%25").replace(".", "%2E")


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
    if isinstance(body, Concat):
        return body.stack, body.target.table
    if isinstance(body, EncoderDecoder):
        body = body.decoder
    elif isinstance(body, EarlyFusion):
        body = body.tower
    elif isinstance(body, DualEncoder):
        body = body.left
    if not isinstance(body, Tower):
        raise WeftError(f"{type(body).__name__} is no topology of weft.")
    return body.stack, body.input.table


def build(config: c.ModelConfig, seed: int | None = None, device: torch.device | str = "cpu") -> Model:
    """The model of a config, initialised. device "meta": shapes only, nothing is allocated (parameter counts)."""
    with torch.device(device):
        model = Model(config)
    if str(device) != "meta":
        initialise(model, config.init, seed)
    return model
