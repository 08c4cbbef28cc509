"""From a config tree to a model.

Shape letters:  B rows  T tokens  S source tokens  D width  V vocabulary  E width of a shared space
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft.core import config as c
from weft.core.cache import Cache, Fixed, Growing, Sliding
from weft.core.counted import Markov, NGram
from weft.core.init import initialise
from weft.core.record import Recorder
from weft.core.slot import Slot, reads_ahead
from weft.core.stream import stream
from weft.core.topology import FUSED, MODULES, Concat, DualEncoder, Encoded, EncoderDecoder, Tower, within
from weft.core.view import Tokens
from weft.errors import WeftError, nearest
from weft.heads import beside, loss, make_head, outputs


@dataclass
class Output:
    """What a forward in the ecosystem's names returns; what does not apply is None."""

    logits: Tensor | None = None
    hidden: Tensor | None = None
    loss: Tensor | None = None
    pooled: Tensor | None = None


class Model(nn.Module):
    """A topology and its heads. `config` describes all of it; `kind` says how it is used."""

    def __init__(self, config: c.ModelConfig) -> None:
        super().__init__()
        self.config, self.kind = config, kind(config.topology)
        self.guide: object = None  # frozen models that an objective is held against; no part of this one
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

    def beside(self, hidden: Tensor, tokens: Tokens, head: str) -> Tensor:
        """(B,T,D) -> (B,T,D'): what a named head reads at each token."""
        self.known(head)
        return beside(self.config.heads[head], hidden, tokens)

    def classes(self, head: str = "language") -> int:
        """How many logits a head gives."""
        self.known(head)
        return outputs(self.config.heads[head])

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
        config = outlet(self.body)[0].config
        if ahead := reads_ahead(config):
            raise WeftError(f"{ahead} looks ahead: there is nothing to cache.")
        if kind == "growing":
            return Growing()
        if kind == "fixed":
            return Fixed(capacity)
        if kind != "sliding":
            raise WeftError(f"No cache is called {kind!r}.{nearest(kind, ('growing', 'fixed', 'sliding'))}")
        if isinstance(config, c.RecurrentConfig | c.NGramConfig | c.MarkovConfig):
            return Sliding(1)  # one state is all it needs of what came before
        pattern = config.attention.pattern
        if not isinstance(pattern, c.Window):
            raise WeftError(f"A sliding cache would forget what {type(pattern).__name__} attention still sees.")
        return Sliding(pattern.left, pattern.globals)

    def stack_modules(self) -> list[Slot]:
        """The stacks, where most of the work is done. Those that say `compiles` are worth compiling, one by one."""
        return [module for module in self.modules() if isinstance(module, Slot)]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """In the ecosystem's names, one document a row.

        input_ids (B,T), attention_mask (B,T) 1 real 0 padding; pixel_values (B,C,H,W) and input_features
        (B,frames,mels), or (B,mels,frames) for Whisper, stand before the ids, whose hidden states and logits are
        answered; without ids the model's own opening (a class token) stands first. global_attention_mask (B,T) 1: a
        global token (Longformer). decoder_input_ids, decoder_attention_mask (B,T') of an encoder-decoder.
        token_type_ids (B,T) rows of the segment table. labels: (B,T) or (B,T'), -100 untrained, shifted here for a
        decoder; (B,) for a classification head; (B,2) first and last token for a span head. A dual encoder answers
        (B,B) scores, images or sounds by texts; of one side alone its unit vectors, as `hidden`.
        """
        if self.kind == "dual":
            return self.pair(input_ids, attention_mask, pixel_values, input_features)
        tokens, before = stream(
            self.body, input_ids, attention_mask,
            pixels=pixel_values, sounds=input_features, marks=global_attention_mask,
        )  # fmt: skip
        tokens.segment = token_type_ids
        source = None
        if decoder_input_ids is not None:
            mask = None if decoder_attention_mask is None else decoder_attention_mask.int()
            tokens, source, before = Tokens(decoder_input_ids, mask), tokens, 0
        whole = self.hidden(tokens, source)
        hidden = whole[:, before:]
        found = Output(hidden=hidden)
        for name, head in self.config.heads.items():
            if isinstance(head, c.Pooler):
                found.pooled = self.logits(hidden[:, 0], name)
        answering = [name for name, head in self.config.heads.items() if not isinstance(head, c.Pooler)]
        if not answering:
            return found
        name = "language" if "language" in answering else answering[0]
        head = self.config.heads[name]
        read = self.beside(whole, tokens, name)[:, before] if isinstance(head, c.Classify) else hidden
        found.logits = self.logits(read, name)
        if labels is not None:
            shift = self.kind == "decoder" and labels.dim() == 2
            found.loss = loss(head, found.logits, labels, attention_mask, shift=shift)
        return found

    def pair(self, ids: Tensor | None, mask: Tensor | None, pixels: Tensor | None, sounds: Tensor | None) -> Output:
        """Of a dual encoder: scores (B,B) of media by texts; of one side alone its (B,E) unit vectors."""
        side, other = ("right", "left") if self.body.right.input.stems else ("left", "right")
        media = text = None
        if pixels is not None or sounds is not None:
            media = self.embed(stream(self.body, pixels=pixels, sounds=sounds)[0], side)
        if ids is not None or media is None:
            text = self.embed(stream(self.body, ids, mask)[0], other)
        if media is None or text is None:
            return Output(hidden=text if media is None else media)
        return Output(logits=self.body.scores(media, text))


def key(head: str) -> str:
    """A head's name as a module's, which must hold no dot."""
    return head.replace("%", "%25").replace(".", "%2E")


def kind(topology: c.Topology) -> str:
    """decoder | encoder | encoder-decoder | dual."""
    if isinstance(topology, c.EncoderDecoderConfig):
        return "encoder-decoder"
    if isinstance(topology, c.DualEncoderConfig):
        return "dual"
    if isinstance(topology, c.NGramConfig | c.MarkovConfig):
        return "decoder"
    stack = topology.tower.stack if isinstance(topology, c.Fusion) else topology.stack
    return "encoder" if reads_ahead(stack) else "decoder"


def outlet(body: nn.Module) -> tuple[Any, Any]:
    """The stack whose output heads read, and the table of its input; of a counted model itself."""
    if isinstance(body, NGram | Markov):
        return body, body
    if isinstance(body, Concat):
        return body.stack, body.target.table
    if isinstance(body, EncoderDecoder):
        body = body.decoder
    elif isinstance(body, FUSED):
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
