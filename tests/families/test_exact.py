"""Text families against transformers' own, on tiny random weights that go through the layouts: the same numbers.

Every case is an odd config of one architecture. The controls show that the comparison would see a mistake: a mask that
is dropped, two layers that are swapped, a rotation that is scaled otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from exact_world import Case, ids, off, ours, pair, raw, theirs

from weft.convert.layouts import find
from weft.convert.weights import to_theirs
from weft.core import config as c
from weft.core.view import Tokens
from weft.data.batch import Batch
from weft.model import Model, build
from weft.objectives import OBJECTIVES

LEAST, LENGTH, PREFIX = 1e-4, 40, 31
HEARD = 1e-2  # what a mistake moves at least

GPT = {"vocab_size": 60, "n_positions": 48, "n_embd": 36, "n_layer": 2, "n_head": 3}
LLAMA = {
    "vocab_size": 60, "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {
    "vocab_size": 60, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50,
    "max_position_embeddings": 48,
}  # fmt: skip
ROBERTA = {**BERT, "pad_token_id": 1}
DISTIL = {
    "vocab_size": 60, "dim": 36, "n_layers": 2, "n_heads": 3, "hidden_dim": 50, "max_position_embeddings": 48,
}  # fmt: skip
ELECTRA = {**BERT, "embedding_size": 20}
T5 = {
    "vocab_size": 60, "d_model": 36, "d_kv": 10, "d_ff": 50, "num_layers": 2, "num_heads": 3,
    "decoder_start_token_id": 0,
}  # fmt: skip


def turned(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


LONG = {"original_max_position_embeddings": 16}  # rows of 40 go far past it
LLAMA3 = turned("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **LONG)
YARN = turned("yarn", factor=4.0, **LONG)


def case(architecture: str, base: Mapping[str, Any], **fields: Any) -> Case:
    title = architecture.split("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    return Case(architecture, title + "Config", {**base, **fields})


DECODERS = {
    "gpt2": case("GPT2LMHeadModel", GPT),
    "gpt2 untied, narrow, gelu": case(
        "GPT2LMHeadModel", GPT, n_inner=50, activation_function="gelu", tie_word_embeddings=False
    ),
    "gpt2 one head, relu, eps": case(
        "GPT2LMHeadModel", GPT, n_head=1, activation_function="relu", layer_norm_epsilon=1e-3
    ),
    "llama": case("LlamaForCausalLM", LLAMA),
    "llama one key head": case("LlamaForCausalLM", LLAMA, num_key_value_heads=1, rms_norm_eps=1e-3),
    "llama wide heads, biases, tied": case(
        "LlamaForCausalLM", LLAMA, head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama linear": case("LlamaForCausalLM", LLAMA, **turned("linear", factor=4.0)),
    "llama llama3": case("LlamaForCausalLM", LLAMA, **LLAMA3),
    "llama yarn": case("LlamaForCausalLM", LLAMA, **YARN),
    "llama yarn, all said": case(
        "LlamaForCausalLM", LLAMA,
        **turned("yarn", factor=3.0, beta_fast=16, beta_slow=2, attention_factor=1.3, truncate=False, **LONG),
    ),
    "llama yarn, mscale": case(
        "LlamaForCausalLM", LLAMA, **turned("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.7, **LONG)
    ),
    "smollm2": case("LlamaForCausalLM", LLAMA, tie_word_embeddings=True, **turned("default")),
    "mistral": case("MistralForCausalLM", LLAMA, sliding_window=5),
    "mistral no window": case("MistralForCausalLM", LLAMA, sliding_window=None, head_dim=8),
    "qwen2": case("Qwen2ForCausalLM", LLAMA),
    "qwen2 window, tied, yarn": case(
        "Qwen2ForCausalLM", LLAMA, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6,
        max_window_layers=0, **YARN,
    ),
    "qwen3": case("Qwen3ForCausalLM", LLAMA, head_dim=14),
    "qwen3 biases, tied": case("Qwen3ForCausalLM", LLAMA, head_dim=12, attention_bias=True, tie_word_embeddings=True),
}  # fmt: skip

HEADS = {"MaskedLM": {}, "SequenceClassification": {"num_labels": 5}, "TokenClassification": {"num_labels": 4},
         "QuestionAnswering": {}}  # fmt: skip
BASES = {"Bert": BERT, "Roberta": ROBERTA, "XLMRoberta": ROBERTA, "DistilBert": DISTIL, "Electra": ELECTRA}
ENCODERS = {
    **{f"{t}For{h}": case(f"{t}For{h}", base, **f) for t, base in BASES.items() for h, f in HEADS.items()},
    **{f"{title}Model": case(f"{title}Model", base) for title, base in BASES.items()},
    "BertForPreTraining": case("BertForPreTraining", BERT),
    "ElectraForPreTraining": case("ElectraForPreTraining", ELECTRA),
    "bert untied, relu": case("BertForMaskedLM", BERT, tie_word_embeddings=False, hidden_act="relu"),
    "bert three segments, eps": case("BertForMaskedLM", BERT, type_vocab_size=3, layer_norm_eps=1e-3),
    "distilbert relu": case("DistilBertForMaskedLM", DISTIL, activation="relu"),
    "roberta padding 4": case("RobertaForMaskedLM", BERT, pad_token_id=4, type_vocab_size=1),
    "electra as wide": case("ElectraForPreTraining", BERT, embedding_size=36),
}
BOTH = {
    "t5": case("T5ForConditionalGeneration", T5),
    "t5 1.1, untied": case("T5ForConditionalGeneration", T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5 deeper decoder, few buckets, silu": case(
        "T5ForConditionalGeneration", T5, num_decoder_layers=3, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, feed_forward_proj="gated-silu",
    ),
}  # fmt: skip


def padded(left: bool, padding: int = 1) -> tuple[Tensor, Tensor]:
    """(2,T) ids and mask, nine places of the first row padding."""
    row, mask = ids(2, LENGTH, low=5), torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, slice(0, 9) if left else slice(-9, None)] = 0
    return row.masked_fill(mask == 0, padding), mask


def places(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


# ---------------------------------------------------------------------------------------------------- forward


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    model, mine = pair(DECODERS[name])
    for left in (False, True):
        row, mask = padded(left)
        wanted = model(input_ids=row, attention_mask=mask, position_ids=places(mask))
        assert off(mine(row, mask).logits, wanted.logits, mask) <= LEAST
    # With caches: a prompt with padding before it, then token by token.
    past = model(
        input_ids=row[:, :PREFIX],
        attention_mask=mask[:, :PREFIX],
        position_ids=places(mask)[:, :PREFIX],
        use_cache=True,
    ).past_key_values
    sliding = isinstance(mine.config.topology.stack.attention.pattern, c.Window)
    caches = [mine.cache(), mine.cache("fixed", LENGTH), *([mine.cache("sliding")] if sliding else [])]
    for cache in caches:
        mine.hidden(Tokens(row[:, :PREFIX], document=mask[:, :PREFIX].int()), cache=cache)
    for at in range(PREFIX, LENGTH):
        step = slice(at, at + 1)
        out = model(
            input_ids=row[:, step], attention_mask=mask[:, : at + 1], position_ids=places(mask)[:, step],
            past_key_values=past, use_cache=True,
        )  # fmt: skip
        past = out.past_key_values
        for cache in caches:
            assert off(mine.logits(mine.hidden(Tokens(row[:, step]), cache=cache)), out.logits) <= LEAST


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    model, mine = pair(ENCODERS[name])
    padding = model.config.pad_token_id if "Roberta" in type(model).__name__ else 0
    row, mask = padded(False, padding)
    more = {}
    if mine.config.topology.input.segments > 1 and padding == 0:
        more = {"token_type_ids": (torch.arange(LENGTH) > 7).long().expand(2, -1)}
    found, wanted = mine(row, mask, **more), model(input_ids=row, attention_mask=mask, **more)
    if hasattr(wanted, "last_hidden_state"):
        assert off(found.hidden, wanted.last_hidden_state, mask) <= LEAST
        if getattr(wanted, "pooler_output", None) is not None:
            assert off(found.pooled, wanted.pooler_output) <= LEAST
    elif hasattr(wanted, "start_logits"):
        assert off(found.logits, torch.stack((wanted.start_logits, wanted.end_logits), -1), mask) <= LEAST
    elif hasattr(wanted, "seq_relationship_logits"):
        assert off(found.logits, wanted.prediction_logits, mask) <= LEAST
        assert off(mine.logits(found.hidden[:, 0], "order"), wanted.seq_relationship_logits) <= LEAST
    elif "Sequence" in type(model).__name__:
        assert found.logits.shape == (2, 5) and off(found.logits, wanted.logits) <= LEAST
    else:
        logits = found.logits[..., 0] if wanted.logits.dim() == 2 else found.logits
        assert off(logits, wanted.logits, mask) <= LEAST


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_encoder_decoders(name: str) -> None:
    model = theirs(BOTH[name])
    if "untied" in name:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 36) * 0.3)
    mine = ours(model)
    assert mine.config.heads["language"].tied is ("untied" not in name)
    (row, mask), target = padded(False), ids(2, LENGTH, seed=1)
    wanted = model(input_ids=row, attention_mask=mask, decoder_input_ids=target).logits
    assert off(mine(row, mask, decoder_input_ids=target).logits, wanted) <= LEAST
    encoded, cache = mine.encode(Tokens(row, document=mask.int())), mine.cache()
    parts = [mine.hidden(Tokens(part), encoded, cache) for part in target.split([PREFIX, *[1] * (LENGTH - PREFIX)], 1)]
    assert off(mine.logits(torch.cat(parts, 1)), wanted) <= LEAST


# ---------------------------------------------------------------------------------------------------- controls


SWAPPED = {
    "gpt2": ("transformer.h.", DECODERS["gpt2"]),
    "llama": ("model.layers.", DECODERS["llama"]),
    "bert": ("bert.encoder.layer.", ENCODERS["BertForMaskedLM"]),
    "distilbert": ("distilbert.transformer.layer.", ENCODERS["DistilBertForMaskedLM"]),
    "t5": ("decoder.block.", BOTH["t5"]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SWAPPED)
def test_swapped_layers_are_seen(name: str) -> None:
    before, model = SWAPPED[name][0], theirs(SWAPPED[name][1])

    def swap(state: dict[str, Tensor]) -> None:
        moved = {
            n: n.replace(f"{before}{i}.", f"{before}{1 - i}.") for i in (0, 1) for n in state if f"{before}{i}." in n
        }
        moved = {n: m for n, m in moved.items() if m in state}  # T5's first block alone has the table of distances
        values = {m: state[n] for n, m in moved.items()}
        state.update(values)

    row, mask = padded(False)
    more = {"decoder_input_ids": ids(2, 9)} if name == "t5" else {}
    wanted = model(input_ids=row, attention_mask=mask, **more).logits
    at = None if more else mask
    assert off(ours(model)(row, mask, **more).logits, wanted, at) <= LEAST
    assert off(ours(model, swap)(row, mask, **more).logits, wanted, at) > HEARD


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM", "t5"]
)
def test_a_dropped_mask_is_seen(name: str) -> None:
    model, mine = pair({**DECODERS, **ENCODERS, **BOTH}[name])
    decoder = name in DECODERS
    row, mask = padded(decoder)
    more = {"position_ids": places(mask)} if decoder else {"decoder_input_ids": ids(2, 9)} if name == "t5" else {}
    wanted = model(input_ids=row, attention_mask=mask, **more).logits
    kept = {"decoder_input_ids": more["decoder_input_ids"]} if name == "t5" else {}
    at = None if kept else mask
    assert off(mine(row, mask, **kept).logits, wanted, at) <= LEAST
    assert off(mine(row, **kept).logits, wanted, at) > HEARD


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama linear", "llama llama3", "llama yarn", "llama yarn, all said", "mistral"])
def test_another_scaling_or_window_is_seen(name: str) -> None:
    model, mine = pair(DECODERS[name])
    row = ids(2, LENGTH)
    wanted = model(input_ids=row).logits
    tower = mine.config.topology
    attention = tower.stack.attention
    rope = attention.position
    others = [replace(attention, position=replace(rope, scaling=s)) for s in (None, c.Interpolate(3.0))]
    if isinstance(rope.scaling, c.Yarn):
        others.append(replace(attention, position=replace(rope, scaling=replace(rope.scaling, attention=1.01))))
    if name == "mistral":
        others = [replace(attention, pattern=pattern) for pattern in (c.Causal(), c.Window(5), c.Window(3))]
    for other in others:
        config = replace(mine.config, topology=replace(tower, stack=replace(tower.stack, attention=other)))
        wrong = build(config)
        wrong.load_state_dict(mine.state_dict())
        assert off(wrong.eval()(row).logits, wanted) > HEARD


# ---------------------------------------------------------------------------------------------------- gradients, losses


def gradients(model: Model, tree: dict[str, Any]) -> dict[str, Tensor]:
    """Ours, under their names."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return to_theirs(find(tree).rules(model.config), model, grads)


def same_gradients(model: torch.nn.Module, mine: Model) -> None:
    found = gradients(mine, raw(model))
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(wanted) == set(found)
    for name, grad in wanted.items():
        assert off(found[name], grad) <= LEAST * max(1.0, grad.abs().max().item()), name
        assert grad.abs().max() > 0 or "embeddings" in name or "k_proj.bias" in name


@pytest.mark.parametrize("name", ["gpt2", "llama llama3", "qwen3", "qwen2"])
def test_next_token_loss_and_gradients(name: str) -> None:
    model, mine = pair(DECODERS[name])
    row, mask = padded(False)
    labels = row.masked_fill(mask == 0, -100)
    wanted = model(input_ids=row, attention_mask=mask, labels=labels).loss
    wanted.backward()
    targets = torch.cat((labels[:, 1:], labels.new_full((2, 1), -100)), 1)
    total = float((targets != -100).sum())
    loss, _ = OBJECTIVES["next"](mine, Batch(Tokens(row, document=mask.int()), targets, total=total))
    loss.backward()
    assert off(loss, wanted) <= LEAST and off(mine(row, mask, labels=labels).loss, wanted) <= LEAST
    same_gradients(model, mine)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "ElectraForMaskedLM", "BertForTokenClassification"])
def test_hidden_word_and_tag_loss_and_gradients(name: str) -> None:
    model, mine = pair(ENCODERS[name])
    row, mask = padded(False, 0)
    classes = 4 if "Token" in name else 60
    labels = (row % classes).masked_fill((mask == 0) | (torch.arange(LENGTH) % 3 > 0), -100)
    wanted = model(input_ids=row, attention_mask=mask, labels=labels).loss
    wanted.backward()
    head = "tag" if "Token" in name else "language"
    objective = "tag" if "Token" in name else "masked"
    total = float((labels != -100).sum())
    batch = Batch(Tokens(row, document=mask.int()), labels, total=total, head=head, objective=objective)
    loss, _ = OBJECTIVES[objective](mine, batch)
    loss.backward()
    assert off(loss, wanted) <= LEAST and off(mine(row, mask, labels=labels).loss, wanted) <= LEAST
    same_gradients(model, mine)


@pytest.mark.parametrize("name", BOTH)
def test_sequence_to_sequence_loss_and_gradients(name: str) -> None:
    model = theirs(BOTH[name])
    if "untied" in name:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 36) * 0.3)
    mine = ours(model)
    (row, mask), labels = padded(False), ids(2, 12, seed=1)
    labels[1, 9:] = -100
    wanted = model(input_ids=row, attention_mask=mask, labels=labels).loss  # shifts the labels itself
    wanted.backward()
    target = torch.cat((labels.new_zeros(2, 1), labels[:, :-1].clamp(min=0)), 1)
    total = float((labels != -100).sum())
    batch = Batch(Tokens(target), labels, source=Tokens(row, document=mask.int()), total=total, objective="seq2seq")
    loss, _ = OBJECTIVES["seq2seq"](mine, batch)
    loss.backward()
    assert off(loss, wanted) <= LEAST
    assert off(mine(row, mask, decoder_input_ids=target, labels=labels).loss, wanted) <= LEAST
    same_gradients(model, mine)


def test_span_loss_and_gradients() -> None:
    model, mine = pair(ENCODERS["BertForQuestionAnswering"])
    row, first, last = ids(2, LENGTH), torch.tensor([3, 8]), torch.tensor([3, 11])
    wanted = model(input_ids=row, start_positions=first, end_positions=last).loss
    wanted.backward()
    targets = torch.zeros(2, LENGTH, dtype=torch.long)
    targets[[0, 1], first] += 1
    targets[[0, 1], last] += 2
    loss, report = OBJECTIVES["span"](mine, Batch(Tokens(row), targets, total=2.0, head="span", objective="span"))
    loss.backward()
    assert off(loss, wanted) <= LEAST and off(report["loss"], wanted) <= LEAST
    assert off(mine(row, labels=torch.stack((first, last), 1)).loss, wanted) <= LEAST
    same_gradients(model, mine)
    # Packed into one row, each document's softmax is its own.
    both = Tokens(row.view(1, -1), document=torch.tensor([[1] * LENGTH + [2] * LENGTH], dtype=torch.int32))
    packed, _ = OBJECTIVES["span"](mine, Batch(both, targets.view(1, -1), total=2.0, head="span", objective="span"))
    assert off(packed, wanted) <= LEAST


@torch.no_grad()
def test_replaced_token_and_label_loss() -> None:
    model, mine = pair(ENCODERS["ElectraForPreTraining"])
    row, mask = padded(False, 0)
    labels = row % 2
    wanted = model(input_ids=row, attention_mask=mask, labels=labels).loss
    assert off(mine(row, mask, labels=labels).loss, wanted) <= LEAST
    model, mine = pair(ENCODERS["RobertaForSequenceClassification"])
    row, mask = padded(False, 1)
    wanted = model(input_ids=row, attention_mask=mask, labels=torch.tensor([4, 1])).loss
    assert off(mine(row, mask, labels=torch.tensor([4, 1])).loss, wanted) <= LEAST
    targets = torch.full((2, LENGTH), -100)
    targets[:, 0] = torch.tensor([4, 1])
    batch = Batch(Tokens(row, document=mask.int()), targets, total=2.0, head="label", objective="classify")
    assert off(OBJECTIVES["classify"](mine, batch)[0], wanted) <= LEAST
