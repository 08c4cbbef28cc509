"""Greedy and beam search equal transformers' `generate`, token for token, on tiny random models."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers

import weft
from weft.errors import RecipeError
from weft.generate.beam import Beams, beam
from weft.generate.decode import Rule, steps
from weft.generate.text import lay_ids, lay_sources
from weft.model import Model

VOCAB, PAD, MOST = 60, 1, 9
CONFIGS = {
    "gpt": transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4),
    "llama": transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
    "t5": transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
    ),
}  # fmt: skip
ENDS = ((5,), (5, 9, 11, 2))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, object, Model]:
    """The reference's model and ours with its weights, made larger so that the likeliest tokens are not all alike."""
    torch.manual_seed(0)
    auto = transformers.AutoModelForSeq2SeqLM if request.param == "t5" else transformers.AutoModelForCausalLM
    theirs = auto.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return request.param, theirs, weft.load(folder)


def rows(seed: int, *lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(12, VOCAB, length) for length in lengths]


def wanted(
    theirs: object, prompts: list[np.ndarray], ends: tuple[int, ...], name: str, **how: object
) -> list[list[int]]:
    """What the reference produces after each prompt: padded on the side that it wants, and cut at the end."""
    width = max(len(prompt) for prompt in prompts)
    pads = [[PAD] * (width - len(prompt)) for prompt in prompts]
    left = name != "t5"
    ids = torch.tensor([[*p, *r] if left else [*r, *p] for p, r in zip(pads, prompts, strict=True)])
    mask = torch.tensor(
        [
            [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p)
            for p, r in zip(pads, prompts, strict=True)
        ]
    )
    with torch.no_grad():
        found = theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=ids, attention_mask=mask, max_new_tokens=MOST, do_sample=False, eos_token_id=list(ends),
            pad_token_id=PAD, **how,
        )  # fmt: skip
    out = []
    for row in found[:, width if left else 1 :].tolist():
        last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        out.append(row[: last + 1])
    return out


def laid(prompts: list[np.ndarray], name: str):
    return lay_sources(prompts, start=0, pad=PAD) if name == "t5" else lay_ids(prompts, pad=PAD)


def rule(ends: tuple[int, ...]) -> Rule:
    return Rule(torch.ones(VOCAB, dtype=torch.bool), None, ends, 32)


@pytest.mark.parametrize("lengths", [(6, 6), (3, 7, 5)], ids=["even", "padded"])
@pytest.mark.parametrize("ends", ENDS)
def test_greedy(pair: tuple, ends: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    name, theirs, ours = pair
    for seed in range(3):
        prompts = rows(seed, *lengths)
        for cached in (True, False):
            columns = itertools.islice(steps(ours, laid(prompts, name), rule(ends), cached=cached), MOST)
            found = [row[row >= 0].tolist() for row in torch.stack(list(columns), 1).numpy()]
            assert found == wanted(theirs, prompts, ends, name)


@pytest.mark.parametrize("lengths", [(6, 6), (3, 7)], ids=["even", "padded"])
@pytest.mark.parametrize("patience", ["likely", "full", "never"])
@pytest.mark.parametrize("ends", ENDS)
def test_beams(pair: tuple, ends: tuple[int, ...], patience: str, lengths: tuple[int, ...]) -> None:
    name, theirs, ours = pair
    early = {"likely": False, "full": True, "never": "never"}[patience]
    differs = False
    for seed, (width, penalty) in enumerate(((2, 1.0), (4, 0.0), (3, 2.0), (4, -0.5))):
        prompts = rows(seed, *lengths)
        beams = Beams(width, penalty, patience)
        found = [some[0].ids.tolist() for some in beam(ours, laid(prompts, name), rule(ends), beams, most=MOST)]
        how = {"num_beams": width, "length_penalty": penalty, "early_stopping": early}
        assert found == wanted(theirs, prompts, ends, name, **how), (width, penalty)
        differs |= found != wanted(theirs, prompts, ends, name)
    assert differs, "the control: greedy finds something else"


def test_several_answers_and_their_scores(pair: tuple) -> None:
    name, theirs, ours = pair
    prompts = rows(3, 6)
    found = beam(ours, laid(prompts, name), rule((5,)), Beams(4, answers=3), most=MOST)[0]
    ids = torch.from_numpy(np.stack(prompts))
    with torch.no_grad():
        told = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False, num_beams=4,
            num_return_sequences=3, eos_token_id=5, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    assert [a.score for a in found] == pytest.approx(told.sequences_scores.tolist(), abs=1e-4)
    assert len({tuple(a.ids.tolist()) for a in found}) == 3


def test_a_row_does_not_depend_on_its_company(pair: tuple) -> None:
    name, _, ours = pair
    prompts = rows(7, 4, 8, 6)
    together = beam(ours, laid(prompts, name), rule((5,)), Beams(3), most=MOST)
    for prompt, found in zip(prompts, together, strict=True):
        alone = beam(ours, laid([prompt], name), rule((5,)), Beams(3), most=MOST)[0]
        assert alone[0].ids.tolist() == found[0].ids.tolist()


def test_only_what_is_legal(pair: tuple) -> None:
    name, _, ours = pair
    legal = torch.zeros(VOCAB, dtype=torch.bool)
    legal[[5, 20, 21]] = True
    some = beam(ours, laid(rows(1, 5), name), Rule(legal, None, (5,), 32), Beams(2, answers=2), most=MOST)[0]
    assert {token for answer in some for token in answer.ids.tolist()} <= {5, 20, 21}
    exact = beam(ours, laid(rows(1, 5), name), Rule(legal, 4, None, 32), Beams(2), most=MOST)[0]
    assert len(exact[0].ids) == 4, "a count is kept"


def test_what_cannot_be() -> None:
    for width, answers, patience in ((0, 1, "likely"), (2, 3, "likely"), (2, 1, "often")):
        with pytest.raises(RecipeError):
            Beams(width, 1.0, patience, answers)
