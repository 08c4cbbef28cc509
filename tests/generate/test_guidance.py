"""Guidance: the logits of what was asked, made more of against those of nothing; refused where nothing learned it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoding_world import make_predictor

from weft.data.condition import asked_nothing
from weft.errors import RecipeError
from weft.generate.decode import Rule, decode, led
from weft.generate.predict import GUIDANCE, Predictor, predict
from weft.generate.prompt import identity, lay
from weft.generate.sample import Draws, Sampling

HOT = Sampling(temperature=1.5, seed=5)


@pytest.fixture(scope="module")
def guided() -> Predictor:
    """As if trained with inputs left out of a tenth."""
    predictor = make_predictor()
    train = predictor.run.recipe.train
    options = replace(train.options, condition_dropout=0.1)
    recipe = replace(predictor.run.recipe, train=replace(train, options=options))
    predictor.run = SimpleNamespace(renderer=predictor.renderer, recipe=recipe, path="runs/x")
    return predictor


def test_the_formula() -> None:
    legal = torch.tensor([True, True, True, False])
    asked, nothing = torch.tensor([[2.0, 1.0, 0.0, 9.0]]), torch.tensor([[0.0, 1.0, 3.0, 9.0]])
    both = torch.cat((asked, nothing))
    logs = [x[:, :3].log_softmax(-1) for x in (asked, nothing)]
    for scale in (0.0, 1.0, 2.5):
        found = led(both, scale, legal)
        torch.testing.assert_close(found[:, :3], logs[1] + scale * (logs[0] - logs[1]))
        assert found[0, 3] == -torch.inf
    torch.testing.assert_close(led(both, 1.0, legal).softmax(-1)[:, :3], asked[:, :3].softmax(-1))


@pytest.mark.parametrize("arrow", ["text -> image", "text -> speech"])
@pytest.mark.parametrize("guidance", [1.5, 3.0])
def test_cached_equals_uncached_and_alone_equals_the_batch(
    guided: Predictor, records: list, arrow: str, guidance: float
) -> None:
    number, sampling = guided.find(arrow), replace(HOT, guidance=guidance)
    samples = guided.prompts(number, records[:3])
    column = guided.renderer.arrows[number].output
    rule = Rule.of(guided.renderer, column, guided.length, max(map(len, samples)))
    keys = [identity(sample) for sample in samples]
    prompts = lambda: lay(samples + [asked_nothing(sample) for sample in samples])
    cached, whole = (
        decode(guided.model, prompts(), rule, sampling, Draws(keys, 5), cached=kept) for kept in (True, False)
    )
    assert len(cached) == 3 and all(np.array_equal(a, b) for a, b in zip(cached, whole, strict=True))
    together = guided.produce(number, records[:3], sampling)
    assert all(np.array_equal(a, one.ids) for a, one in zip(cached, together, strict=True))
    alone = [guided.produce(number, [record], sampling)[0] for record in records[:3]]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(alone, together, strict=True))
    free = guided.produce(number, records[:3], HOT)
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(free, together, strict=True)), "control: it matters"


def test_the_first_token_is_drawn_from_the_guided_distribution(guided: Predictor, records: list) -> None:
    number = guided.find("text -> image")
    sample = guided.prompts(number, records[1:2])[0]
    rule = Rule.of(guided.renderer, "image", guided.length, len(sample))
    logits = []
    for one in (sample, asked_nothing(sample)):
        prompts = lay([one])
        with torch.no_grad():
            logits.append(guided.model.logits(guided.model.hidden(prompts.tokens)[:, -1]))
    for guidance in (0.0, 1.0, 2.0, 6.0):
        wanted = led(torch.cat(logits), guidance, rule.legal).argmax().item()
        found = guided.produce(number, records[1:2], Sampling(guidance=guidance))[0]
        assert found.ids[0] == wanted


def test_who_is_guided_unless_said(guided: Predictor) -> None:
    plain = make_predictor()
    assert guided.default(guided.find("text -> image")).guidance == GUIDANCE > 1
    assert plain.default(plain.find("text -> image")).guidance == 1.0
    assert guided.default(guided.find("text -> speech")) == guided.default(guided.find("image -> text")) == Sampling()


def test_refused_where_nothing_learned_it(guided: Predictor, records: list) -> None:
    with pytest.raises(RecipeError, match=r"guidance=3 needs an arrow from words .*'image -> text' of runs/x is not"):
        guided.produce("image -> text", records[:1], Sampling(guidance=3.0))
    plain = make_predictor()
    plain.run = SimpleNamespace(renderer=plain.renderer, recipe=plain.run.recipe, path="runs/y")
    with pytest.raises(RecipeError, match="condition_dropout"):
        plain.produce("text -> image", records[:1], replace(HOT, guidance=2.0))
    with pytest.raises(RecipeError, match="guidance=-1"):
        Sampling(guidance=-1.0)


def test_an_encoder_is_asked_nothing_as_well(records: list) -> None:
    """t5: the words stand in the source, which is asked nothing beside itself."""
    predictor = make_predictor("t5", arrows=("text -> image", "text -> speech"))
    sampling = replace(HOT, guidance=2.5)
    for column in ("image", "speech"):
        number = predictor.find(f"text -> {column}")
        samples = predictor.prompts(number, records[:3])
        both = samples + [asked_nothing(sample) for sample in samples]
        rule = Rule.of(predictor.renderer, column, predictor.length, 2)
        keys = [identity(sample) for sample in samples]
        cached, whole = (
            decode(predictor.model, lay(both, two=True), rule, sampling, Draws(keys, 5), cached=kept)
            for kept in (True, False)
        )
        assert len(cached) == 3 and all(np.array_equal(a, b) for a, b in zip(cached, whole, strict=True))
        free = decode(predictor.model, lay(samples, two=True), rule, HOT, Draws(keys, 5))
        assert any(not np.array_equal(a, b) for a, b in zip(cached, free, strict=True)), "control: it matters"


def test_a_temperature_leaves_the_guidance_as_it_is(guided: Predictor, records: list) -> None:
    drawn = lambda **said: predict(guided, "text -> image", records[:3], temperature=1.3, seed=4, **said)
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert same(drawn(), drawn(guidance=GUIDANCE))
    assert not same(drawn(), drawn(guidance=1.0)), "control"


def test_a_streamed_text_cannot_be_guided(guided: Predictor, records: list) -> None:
    with pytest.raises(RecipeError, match="guidance=2 needs"):
        next(guided.stream("image -> text", records[0], Sampling(guidance=2.0)))
