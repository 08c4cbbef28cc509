"""Forward and training step of each family beside transformers: the same weights, the same input, the same loss.

    make bench      or      .venv/bin/python bench/families.py [--only bert t5] [--seconds 2] [--processor] [--json]

Each model is made by transformers, 5 to 15 M parameters, and read by weft's layouts. Both are run eagerly, in float32
and under bf16 autocast, without dropout and without padding. A training step is forward, loss, backward, clipping and
AdamW (fused), by the calls that weft's own loop makes and that transformers' documentation teaches. The peers take
turns, one call each; what is compared are medians. Before the clock runs, the logits and the loss must agree.

    ratio   transformers' time / weft's: above 1, weft is faster
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from train import optimizer_of, update

from weft.convert.hf import load_hf
from weft.core.stream import stream
from weft.core.view import Tokens
from weft.data.batch import Batch
from weft.model import Model
from weft.objectives import OBJECTIVES

VOCAB, IMAGE = 8192, 8000  # words; LLaVA's place for a picture is one of them
FEWEST, SLOWEST = 5, 0.95  # calls of each peer, at least; ratios below are pointed out
CLOSE = 2e-3  # logits and losses in float32 differ by so much at most
PRECISIONS = {"float32": False, "bf16": True}

Inputs = dict[str, Tensor]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Family:
    """architecture, config  classes of transformers and what the config is told
    inputs   what both peers' forward takes            labels   what transformers' forward takes besides, to train
    batch    the same for weft's objective             note     rows and lengths, in words
    """

    architecture: str
    config: Callable[[Any], Any]
    inputs: Inputs
    labels: dict[str, Any]
    batch: Callable[[Model], Batch]
    note: str


def ids(*shape: int) -> Tensor:
    return torch.randint(5, IMAGE, shape, generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def shifted(labels: Tensor) -> Tensor:
    """(B,T) labels -> the id to be predicted at each place."""
    return torch.cat((labels[:, 1:], labels.new_full((len(labels), 1), -100)), 1)


def hidden_words(row: Tensor) -> Tensor:
    """Labels of 15 % of the places, as BERT is trained."""
    return row.masked_fill(torch.rand(row.shape, generator=torch.Generator().manual_seed(2)) > 0.15, -100)


def made(tokens: Tokens, targets: Tensor, objective: str, **more: Any) -> Batch:
    return Batch(tokens, targets, total=float((targets != -100).sum()), objective=objective, **more)


def decoder(architecture: str, config: Callable[[Any], Any]) -> Family:
    row = ids(2, 256)
    return Family(
        architecture, config, {"input_ids": row}, {"labels": row},
        lambda model: made(Tokens(row), shifted(row), "next"), "2 x 256 words",
    )  # fmt: skip


def gpt() -> Family:
    return decoder("GPT2LMHeadModel", lambda hf: hf.GPT2Config(
        vocab_size=VOCAB, n_positions=256, n_embd=320, n_layer=6, n_head=5, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    ))  # fmt: skip


def llama() -> Family:
    return decoder("LlamaForCausalLM", lambda hf: hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=320, intermediate_size=896, num_hidden_layers=6, num_attention_heads=5,
        num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
    ))  # fmt: skip


ENCODER = {
    "vocab_size": VOCAB, "hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 5,
    "intermediate_size": 1280, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0,
}  # fmt: skip


def bert() -> Family:
    row = ids(4, 128)
    labels = hidden_words(row)
    return Family(
        "BertForMaskedLM", lambda hf: hf.BertConfig(**ENCODER, max_position_embeddings=128),
        {"input_ids": row}, {"labels": labels},
        lambda model: made(Tokens(row), labels, "masked"), "4 x 128 words, 15 % hidden",
    )  # fmt: skip


def longformer() -> Family:
    row = ids(1, 1024)
    marks, labels = torch.zeros_like(row), hidden_words(row)
    marks[:, 0] = 1
    config = {**ENCODER, "num_hidden_layers": 3, "attention_window": [128] * 3}
    return Family(
        "LongformerForMaskedLM", lambda hf: hf.LongformerConfig(**config, max_position_embeddings=1026, pad_token_id=1),
        {"input_ids": row, "global_attention_mask": marks}, {"labels": labels},
        lambda model: made(Tokens(row, globals=marks), labels, "masked"), "1 x 1024 words, window 128, one global",
    )  # fmt: skip


def t5() -> Family:
    row, labels = ids(4, 128), ids(4, 64)
    target = torch.cat((labels.new_zeros(4, 1), labels[:, :-1]), 1)
    return Family(
        "T5ForConditionalGeneration", lambda hf: hf.T5Config(
            vocab_size=VOCAB, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4, dropout_rate=0,
            decoder_start_token_id=0,
        ),
        {"input_ids": row, "decoder_input_ids": target}, {"labels": labels},
        lambda model: made(Tokens(target), labels, "seq2seq", source=Tokens(row)), "4 x 128 words, 4 x 64 answered",
    )  # fmt: skip


SEEN = {"image_size": 128, "patch_size": 16, "num_attention_heads": 4}


def vit() -> Family:
    pixels, labels = noise(8, 3, 128, 128), torch.arange(8)

    def batch(model: Model) -> Batch:
        tokens, _ = stream(model.body, pixels=pixels)
        targets = torch.full_like(tokens.ids, -100)
        targets[:, 0] = labels
        return made(tokens, targets, "classify", head="label")

    return Family(
        "ViTForImageClassification", lambda hf: hf.ViTConfig(
            **SEEN, hidden_size=320, num_hidden_layers=6, intermediate_size=1280, num_labels=100,
            hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        ),
        {"pixel_values": pixels}, {"labels": labels}, batch, "8 pictures of 64 patches",
    )  # fmt: skip


def clip() -> Family:
    row, pixels = ids(8, 32), noise(8, 3, 128, 128)
    row[:, -1] = VOCAB - 1
    tower = {"hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 1024}
    words = {**tower, "vocab_size": VOCAB, "max_position_embeddings": 32, "eos_token_id": VOCAB - 1}
    return Family(
        "CLIPModel",
        lambda hf: hf.CLIPConfig(text_config=words, vision_config={**tower, **SEEN}, projection_dim=256),
        {"input_ids": row, "pixel_values": pixels}, {"return_loss": True},
        lambda model: Batch(
            stream(model.body, pixels=pixels)[0], source=stream(model.body, row)[0], objective="contrastive", total=8.0
        ),
        "8 pictures of 64 patches, 8 x 32 words",
    )  # fmt: skip


def whisper() -> Family:
    sounds, labels = noise(2, 80, 600), ids(2, 48)
    target = torch.cat((labels.new_ones(2, 1), labels[:, :-1]), 1)
    return Family(
        "WhisperForConditionalGeneration", lambda hf: hf.WhisperConfig(
            vocab_size=VOCAB, d_model=256, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_source_positions=300,
            max_target_positions=64, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        {"input_features": sounds, "decoder_input_ids": target}, {"labels": labels},
        lambda model: made(Tokens(target), labels, "seq2seq", source=stream(model.body, sounds=sounds)[0]),
        "2 sounds of 6 s, 2 x 48 words",
    )  # fmt: skip


def llava() -> Family:
    row, pixels = ids(4, 128), noise(4, 3, 128, 128)
    row[:, 1:65] = IMAGE
    labels = row.masked_fill(row == IMAGE, -100)

    def config(hf: Any) -> Any:
        eyes = hf.CLIPVisionConfig(**SEEN, hidden_size=192, num_hidden_layers=4, intermediate_size=768)
        words = hf.LlamaConfig(
            vocab_size=VOCAB, hidden_size=256, intermediate_size=704, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256,
        )  # fmt: skip
        return hf.LlavaConfig(vision_config=eyes, text_config=words, image_token_index=IMAGE)

    return Family(
        "LlavaForConditionalGeneration", config, {"input_ids": row, "pixel_values": pixels}, {"labels": labels},
        lambda model: made(stream(model.body, row, pixels=pixels)[0], shifted(labels), "next"),
        "4 pictures of 64 patches, 4 x 64 words",
    )  # fmt: skip


FAMILIES = {f.__name__: f for f in (gpt, llama, bert, t5, longformer, vit, clip, whisper, llava)}


@dataclass
class Peers:
    """Both models of a family, on the same weights; each by a forward and by a training step."""

    family: Family
    theirs: nn.Module
    ours: Model

    @staticmethod
    def of(family: Family) -> Peers:
        torch.manual_seed(0)
        theirs = getattr(transformers, family.architecture)(family.config(transformers)).train()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = load_hf(folder).model()
        return Peers(family, theirs, ours.train())

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        batch, labels = self.family.batch(self.ours), self.family.labels
        given = {n: t for n, t in self.family.inputs.items() if n != "decoder_input_ids"}  # made of the labels there
        return {
            "weft": lambda: OBJECTIVES[batch.objective](self.ours, batch)[0],
            "transformers": lambda: self.theirs(**given, **labels).loss,
        }

    def forwards(self) -> dict[str, Callable[[], Tensor]]:
        inputs = self.family.inputs

        def theirs() -> Tensor:
            found = self.theirs(**inputs)
            return found.logits if hasattr(found, "logits") else found.logits_per_image

        return {"weft": lambda: self.ours(**inputs).logits, "transformers": theirs}

    @torch.no_grad()
    def differences(self) -> tuple[float, float]:
        """How far logits and losses are apart, relative to the largest logit and to the loss."""
        mine, wanted = (call() for call in self.forwards().values())
        loss, other = (call() for call in self.losses().values())
        return ((mine - wanted).abs().max() / wanted.abs().max()).item(), ((loss - other).abs() / other).item()

    def steps(self) -> dict[str, Callable[[], Any]]:
        models = {"weft": self.ours, "transformers": self.theirs}

        def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], wide: bool) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=wide):
                value = loss()
            value.backward()
            update(model, optimizer)

        made = {name: (models[name], optimizer_of(models[name]), loss) for name, loss in self.losses().items()}
        return {name: (lambda wide, parts=parts: step(*parts, wide)) for name, parts in made.items()}

    def runs(self) -> dict[str, dict[str, Callable[[bool], Any]]]:
        def forward(call: Callable[[], Tensor], wide: bool) -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=wide):
                call()

        forwards = {n: (lambda wide, call=call: forward(call, wide)) for n, call in self.forwards().items()}
        return {"forward": forwards, "step": self.steps()}


def medians(calls: dict[str, Callable[[bool], Any]], wide: bool, seconds: float, clock: Clock) -> dict[str, Any]:
    """Milliseconds of each, taken in turns, each first as often as the other."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(wide)
    began, order = time.perf_counter(), list(calls)
    while len(times["weft"]) < FEWEST or time.perf_counter() - began < seconds:
        for name in order:
            start = clock()
            calls[name](wide)
            times[name].append(clock() - start)
        order.reverse()
    found = {name: 1000 * statistics.median(t) for name, t in times.items()}
    return {**found, "ratio": found["transformers"] / found["weft"], "calls": len(times["weft"])}


def measure(name: str, seconds: float, clock: Clock) -> dict[str, Any]:
    family = FAMILIES[name]()
    peers = Peers.of(family)
    logits, loss = peers.differences()
    if max(logits, loss) > CLOSE:
        sys.exit(f"{name}: the peers do not compute the same (logits {logits:.1e}, loss {loss:.1e}).")
    rows = [
        {"what": what, "precision": precision, **medians(calls, wide, seconds, clock)}
        for precision, wide in PRECISIONS.items()
        for what, calls in peers.runs().items()
    ]
    count = sum(p.numel() for p in peers.ours.parameters())
    return {"family": name, "parameters": count, "note": family.note, "logits": logits, "loss": loss, "rows": rows}


def show(found: dict[str, Any]) -> None:
    head = f"{found['family']:11}{found['parameters'] / 1e6:5.1f} M  {found['note']}"
    print(f"{head:64} logits {found['logits']:.0e}, loss {found['loss']:.0e} apart")
    for row in found["rows"]:
        mark = "  slower" if row["ratio"] < SLOWEST else ""
        print(
            f"    {row['what']:8} {row['precision']:8}{row['weft']:9.1f} ms {row['transformers']:9.1f} ms"
            f"{row['ratio']:8.2f} x{mark}", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of measuring, for both peers of a line together")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, help="these families", default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument(
        "--processor", action="store_true",
        help="one thread, and the processor's time in place of the clock's: for a machine that is busy otherwise",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    clock = time.process_time if arguments.processor else time.perf_counter
    if threads := 1 if arguments.processor else arguments.threads:
        torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, load {load:.1f}"
    machine += ", processor's time" if arguments.processor else ""
    if not arguments.json:
        print(f"{machine}, torch {torch.__version__}\n\n{'':26}weft    transformers   ratio")
    results = []
    for name in arguments.only:
        results.append(measure(name, arguments.seconds, clock))
        if not arguments.json:
            show(results[-1])
    if arguments.json:
        print(json.dumps({"machine": machine, "torch": torch.__version__, "families": results}, indent=2))


if __name__ == "__main__":
    main()
