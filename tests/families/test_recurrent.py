"""Recurrent networks against torch's own, n-grams against numbers worked out by hand, hidden Markov models against all
paths."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import weft
from tests.train.tiny import SMALL, table
from weft import families
from weft.core import config as c
from weft.core.counted import Expected, count
from weft.core.view import Media, Tokens
from weft.errors import RecipeError, WeftError
from weft.evaluate.run import evaluate
from weft.model import Model, build
from weft.run import Run
from weft.train.fit import documents

CELLS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "tanh": torch.nn.RNN}
VOCAB = 20


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def numbers(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


# ---------------------------------------------------------------------------------------------------- recurrent


def same_weights(model: Model, theirs: torch.nn.RNNBase) -> None:
    with torch.no_grad():
        for number, layer in enumerate(model.body.stack.layers):
            for way, cell in enumerate(layer):
                ending = f"_l{number}" + ("_reverse" if way else "")
                for name, part in (("ih", cell.take), ("hh", cell.turn)):
                    part.weight.copy_(getattr(theirs, f"weight_{name}{ending}"))
                    part.bias.copy_(getattr(theirs, f"bias_{name}{ending}"))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_torch_has_the_same_states_and_gradients(cell: str, both: bool) -> None:
    torch.manual_seed(0)
    name = "birnn" if both else "rnn"
    model = build(families.make(name, vocab=VOCAB, length=16, dim=8, depth=2, language=True, options={"cell": cell}), 0)
    theirs = CELLS[cell](8, 4 if both else 8, 2, batch_first=True, bidirectional=both)
    same_weights(model, theirs)
    row, lengths = ids(3, 7), torch.tensor([7, 4, 6])
    document = (torch.arange(7) < lengths[:, None]).int()
    found = model.hidden(Tokens(row, document=document))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        model.body.input.table(row), lengths, batch_first=True, enforce_sorted=False
    )
    wanted, last = theirs(packed)
    wanted = torch.nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)[0]
    real = document > 0
    if both:  # the first token holds the last state of both ways
        state = last[0] if cell == "lstm" else last
        ends = torch.cat((state[-2], state[-1]), -1)
        assert (found[:, 0] - ends).abs().max() < 1e-6
        real[:, 0] = False
    assert (found - wanted)[real].abs().max() < 1e-6
    found[real].square().sum().backward()
    wanted[real].square().sum().backward()
    mine, other = model.body.stack.layers[0][0].turn.weight.grad, theirs.weight_hh_l0.grad
    assert (mine - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("name", ["rnn", "ngram", "hmm"])
def test_one_state_is_all_that_a_cache_needs(name: str) -> None:
    model = spoken(name)
    tokens = Tokens(ids(2, 10), document=numbers([0, 0] + [1] * 8, [1] * 4 + [2] * 6))
    cut = lambda a, b: Tokens(tokens.ids[:, a:b], document=tokens.document[:, a:b])
    whole = model.hidden(tokens)
    for kind in ("sliding", "growing", "fixed"):
        cache = model.cache(kind, capacity=12)
        parts = [model.hidden(cut(a, b), cache=cache) for a, b in itertools.pairwise([0, 6, 7, 10])]
        assert torch.allclose(torch.cat(parts, 1)[tokens.document > 0], whole[tokens.document > 0], atol=1e-5)
        assert kind != "sliding" or cache.layers[0][0].shape[2] == 1, "it does not grow"


def spoken(name: str) -> Model:
    """A model that tells tokens apart."""
    model = build(families.make(name, vocab=VOCAB, length=64, dim=16), seed=0).eval()
    if name == "ngram":
        texts = ids(30, 12, seed=3).tolist()
        model = counted(VOCAB, 3, texts)
    return model


def test_branches_that_are_no_tree_are_refused() -> None:
    model = spoken("rnn")
    with pytest.raises(WeftError, match="goes on after its branches"):
        model.hidden(Tokens(ids(1, 4), document=numbers([1] * 4), branch=numbers([0, 1, 0, 1])))
    both = build(families.make("birnn", vocab=VOCAB, length=8, dim=8), 0)
    with pytest.raises(WeftError, match="both ways"):
        both.hidden(Tokens(ids(1, 4), document=numbers([1] * 4), branch=numbers([0, 0, 1, 2])))
    with pytest.raises(RecipeError, match="Did you mean 'lstm'"):
        build(families.make("rnn", vocab=9, length=8, options={"cell": "lstmm"}))


# ---------------------------------------------------------------------------------------------------- n-grams


def pairs(texts: list[list[int]], vocab: int, order: int) -> tuple[Tensor, Tensor]:
    """Contexts, the newest token first, and what follows."""
    contexts, targets = [], []
    for text in texts:
        whole = [vocab] * (order - 1) + text
        for end in range(order - 1, len(whole)):
            contexts.append(whole[end - order + 1 : end][::-1])
            targets.append(whole[end])
    return torch.tensor(contexts), torch.tensor(targets)


def counted(vocab: int, order: int, texts: list[list[int]]) -> Model:
    body = count(c.NGramConfig(vocab, order), *pairs(texts, vocab, order))
    model = build(c.ModelConfig(body.config, {"language": c.Told(vocab)}, family="ngram"))
    model.body.load_state_dict(body.state_dict())
    return model.eval()


def test_kneser_ney_by_hand() -> None:
    """a b a c a b, bigrams. After a: b twice, c once. Unigrams count what a token was seen after: a 3, b 1, c 1.

    Unigrams: n1 = 2, n2 = 0, so the discounts are 0.5, 0.75, 0.75. Left over: (0.75 + 0.5 + 0.5) / 5 = 0.35, spread
    over 4 ids. p(b) = 0.5/5 + 0.35/4. Bigrams: n1 = 4, n2 = 1, Y = 4/6, D1 = 1 - 2 Y/4 = 2/3, D2 = 2 - 0 = 2, kept at
    1.95 so that something is left; p(b | a) = (2 - 1.95)/3 + (2/3 + 1.95)/3 p(b).
    """
    a, b, other = 0, 1, 2
    model = counted(4, 2, [[a, b, a, other, a, b]])
    p = lambda context, token: float(model.logits(torch.tensor([float(context)]))[token].exp())
    plain = {a: (3 - 0.75) / 5 + 0.35 / 4, b: 0.5 / 5 + 0.35 / 4, 3: 0.35 / 4}
    assert p(3, a) == pytest.approx(plain[a]) and p(3, 3) == pytest.approx(plain[3]), "3 was never seen: no context"
    assert p(a, b) == pytest.approx((2 - 1.95) / 3 + (2 / 3 + 1.95) / 3 * plain[b])
    assert p(a, 3) == pytest.approx((2 / 3 + 1.95) / 3 * plain[3])
    assert p(b, a) == pytest.approx((1 - 2 / 3) / 1 + 2 / 3 * plain[a])


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3, 5])
def test_probabilities_sum_to_one_in_any_context(order: int) -> None:
    texts = [ids(length, seed=length).tolist() for length in range(1, 25)]
    model = counted(VOCAB, order, texts)
    contexts, targets = pairs(texts, VOCAB, order)
    anything = torch.randint(0, VOCAB + 1, (100, order - 1), generator=torch.Generator().manual_seed(1))
    for some in (contexts, anything):
        assert torch.allclose(model.logits(some.float()).exp().sum(-1), torch.ones(len(some)), atol=1e-5)
    alone = model.body.probability(contexts.float(), targets)
    assert torch.allclose(
        model.logits(contexts.float()).exp()[torch.arange(len(targets)), targets].double(), alone, atol=1e-6
    )
    assert alone.log().mean() > -math.log(VOCAB), "it has learnt something"


@torch.no_grad()
def test_packed_documents_do_not_know_each_other() -> None:
    for name in ("ngram", "hmm"):
        model = spoken(name)
        one, two = ids(1, 4), ids(1, 5, seed=1)
        both = Tokens(torch.cat((one, two), 1), document=numbers([1] * 4 + [2] * 5))
        alone = torch.cat((model.hidden(Tokens(one)), model.hidden(Tokens(two))), 1)
        assert torch.allclose(model.hidden(both), alone, atol=1e-6)
        assert not torch.allclose(model.hidden(replace(both, document=None)), alone, atol=1e-6)
        tree = Tokens(torch.cat((one, two), 1), document=numbers([1] * 9), branch=numbers([0, 0, 1, 1] + [2] * 5))
        second = model.hidden(Tokens(torch.cat((one[:, :2], two), 1)))[:, 2:]
        assert torch.allclose(model.hidden(tree)[:, 4:], second, atol=1e-6), "a branch goes on from the trunk"
        with pytest.raises(WeftError, match="knows ids alone"):
            model.hidden(Tokens(one, media=(Media("image", torch.zeros(1, 3), torch.tensor([0])),)))
        with pytest.raises(RecipeError, match="image is none"):
            families.make(name, vocab=9, length=8, stems={"image": 3})


# ---------------------------------------------------------------------------------------------------- hidden Markov


def every_path(model: Model, text: list[int]) -> tuple[float, Tensor, Tensor]:
    """p(text), p(state at each place | text) (L,K), and expected moves (K,K), by summing over all paths."""
    start, move, emit = (t.double() for t in model.body.logs())
    states = model.config.topology.states
    total, held, moves = 0.0, torch.zeros(len(text), states).double(), torch.zeros(states, states).double()
    for path in itertools.product(range(states), repeat=len(text)):
        p = start[path[0]] + emit[path[0], text[0]]
        for t in range(1, len(text)):
            p = p + move[path[t - 1], path[t]] + emit[path[t], text[t]]
        p = float(p.exp())
        total += p
        for t, state in enumerate(path):
            held[t, state] += p
            if t:
                moves[path[t - 1], state] += p
    return total, held / total, moves / total


@torch.no_grad()
def test_forward_backward_is_the_sum_over_all_paths() -> None:
    model = build(families.make("hmm", vocab=4, length=16, options={"states": 3, "smoothing": 0.0}), seed=1)
    texts = [[0, 1, 3, 2, 2], [2, 2], [1]]
    expected = Expected(model.body.config)
    whole = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    expected.add(model.body, whole, torch.tensor([len(text) for text in texts]))
    start, moves, emitted, nats = torch.zeros(3).double(), torch.zeros(3, 3).double(), torch.zeros(3, 4).double(), 0.0
    for text in texts:
        p, held, moved = every_path(model, text)
        start, moves, nats = start + held[0], moves + moved, nats - math.log(p)
        for place, token in enumerate(text):
            emitted[:, token] += held[place]
        after = model.logits(model.hidden(Tokens(torch.tensor([text])))).exp()
        for end in range(1, len(text)):
            wanted = every_path(model, text[: end + 1])[0] / every_path(model, text[:end])[0]
            assert float(after[0, end - 1, text[end]]) == pytest.approx(wanted, rel=1e-5)
    assert expected.nats == pytest.approx(nats)
    for mine, wanted in ((expected.start, start), (expected.move, moves), (expected.emit, emitted)):
        assert torch.allclose(mine, wanted, atol=1e-9)


def test_each_epoch_makes_the_texts_likelier() -> None:
    model = build(families.make("hmm", vocab=VOCAB, length=16, options={"states": 5, "smoothing": 0.0}), seed=1)
    texts, lengths = ids(8, 12), torch.tensor([12, 3, 5, 7, 12, 1, 9, 12])
    losses = []
    for _ in range(12):
        expected = Expected(model.body.config)
        expected.add(model.body, texts, lengths)
        model.body.fit(expected)
        losses.append(expected.nats)
    assert all(later <= before + 1e-6 for before, later in itertools.pairwise(losses))
    assert losses[-1] < 0.8 * losses[0]


def test_branches_bring_their_trunk() -> None:
    row = torch.arange(1, 9)[None]
    tokens = Tokens(row, document=numbers([1] * 5 + [2, 2, 0]), branch=numbers([0, 0, 1, 1, 2, 0, 0, 0]))
    ((texts, lengths),) = documents(tokens)
    assert [text[:n].tolist() for text, n in zip(texts, lengths, strict=True)] == [[1, 2, 3, 4], [1, 2, 5], [6, 7]]


# ---------------------------------------------------------------------------------------------------- by command


def trained(folder: Path, family: str, *more: str, steps: int | None = None) -> Run:
    return weft.train(str(table(folder)), "-> note", out=folder / "run", family=family, steps=steps,
                      overrides=(*SMALL, "text.vocabulary=280", *more))  # fmt: skip


@pytest.mark.parametrize("family", ["ngram", "hmm", "rnn"])
def test_it_trains_evaluates_predicts_and_goes_on(family: str, tmp_path: Path) -> None:
    more = {"hmm": ("model.options.states=8",), "rnn": ("model.options.cell=gru",)}.get(family, ())
    run = trained(tmp_path, family, *more, steps=None if family == "ngram" else 6)
    losses = [line["loss"] for line in run.metrics("step")]
    assert family == "ngram" or losses[-1] < losses[0]
    (found, *_) = evaluate(run, say=lambda text: None)
    assert found["metric"] == "bits per byte"
    if family == "ngram":
        assert found["value"] == pytest.approx(found["baselines"]["3-gram (Kneser-Ney)"], rel=1e-3)
    assert isinstance(weft.predict(run, "-> note", {}, temperature=1.0)[0], str)
    again = weft.train(resume=run.path)
    assert again.metrics("event")[-1]["event"] == "end" and len(again.metrics("step")) == len(losses)


def test_expectation_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = ("model.options.states=6", "train.options.save_every=2")
    whole = trained(tmp_path / "a", "hmm", *options, steps=5).model().state_dict()
    run = trained(tmp_path / "b", "hmm", *options, steps=5)
    for step in (run.path / "checkpoints").glob("step-*5"):
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    weft.train(resume=run.path)
    assert all(torch.equal(t, whole[name]) for name, t in run.model().state_dict().items())
