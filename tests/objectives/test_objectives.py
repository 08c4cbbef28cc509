"""Losses: of the trained places only, weighted, over the whole step; and the numbers beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft import families
from weft.core.view import Media, Tokens
from weft.data.batch import Batch
from weft.errors import WeftError
from weft.model import Model, build
from weft.objectives import OBJECTIVES

VOCAB = 40


def model(name: str, **more) -> Model:
    torch.manual_seed(0)
    config = families.make(name, vocab=VOCAB, length=16, dim=32, depth=2, heads=2, **more)
    made = build(config, seed=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def batch(**more) -> Batch:
    """Two rows of six; places 1..3 of row 0 (arrow 0, weight 1) and 4 of row 1 (arrow 2, weight 2) are trained."""
    targets = torch.full((2, 6), -100)
    targets[0, 1:4], targets[1, 4] = torch.tensor([3, 4, 5]), 6
    weights = (targets >= 0).float()
    weights[1] *= 2
    arrow = torch.tensor([[0] * 6, [2] * 6])
    return Batch(Tokens(ids(2, 6)), targets, weights, arrow, total=float(weights.sum()), **more)


@pytest.mark.parametrize(("objective", "family"), [("next", "weft"), ("masked", "bert"), ("seq2seq", "t5")])
def test_the_loss_is_weighted_cross_entropy_of_trained_places(objective: str, family: str) -> None:
    made, given = model(family), batch(objective=objective)
    if objective == "seq2seq":
        given.source = Tokens(ids(2, 4, seed=3))
    loss, report = OBJECTIVES[objective](made, given)
    logits = made.logits(made.hidden(given.tokens, given.source))
    each = F.cross_entropy(logits.flatten(0, 1), given.targets.flatten(), reduction="none").view(2, 6)
    assert loss.item() == pytest.approx((each * given.weights).sum().item() / 5, rel=1e-5)
    assert report["counts"].tolist() == [3, 0, 1]
    assert report["sums"].tolist() == pytest.approx([each[0].sum().item(), 0, each[1].sum().item()], rel=1e-5)
    assert report["loss"].item() == pytest.approx(each.sum().item() / 4, rel=1e-5)
    assert not any(t.requires_grad for t in report.values())


def test_chunks_of_logits_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = model("bert"), batch(objective="masked")

    def run() -> tuple[float, dict[str, torch.Tensor]]:
        made.zero_grad()
        loss = OBJECTIVES["masked"](made, given)[0]
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in made.named_parameters()}

    loss, gradients = run()
    calls = []
    whole = made.logits
    monkeypatch.setattr(made, "logits", lambda hidden, head: (calls.append(len(hidden)), whole(hidden, head))[1])
    monkeypatch.setattr("weft.objectives.predict.LOGITS", 3 * VOCAB)
    again, others = run()
    assert calls[:2] == [3, 1], "four places, three at a time"
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, atol=1e-6), name


def test_micro_batches_add_up_to_the_step() -> None:
    made, whole = model("weft"), batch()
    loss = OBJECTIVES["next"](made, whole)[0]
    halves = []
    for row in (slice(0, 1), slice(1, 2)):
        part = Batch(
            Tokens(whole.tokens.ids[row]), whole.targets[row], whole.weights[row], whole.arrow[row], total=whole.total
        )
        halves.append(OBJECTIVES["next"](made, part)[0])
    assert sum(halves).item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_batch_that_trains_nothing_costs_nothing() -> None:
    given = replace(batch(), targets=torch.full((2, 6), -100))
    loss, report = OBJECTIVES["next"](model("weft"), given)
    loss.backward()
    assert loss.item() == 0 and report["loss"].item() == 0


def test_classify_uses_the_head_that_the_batch_names() -> None:
    made = model("bert", labels={"label:a": 3, "label:b.c": 5})
    targets = torch.full((2, 6), -100)
    targets[:, 0] = torch.tensor([2, 4])
    given = Batch(Tokens(ids(2, 6)), targets, objective="classify", head="label:b.c", total=2)
    loss = OBJECTIVES["classify"](made, given)[0]
    logits = made.logits(made.hidden(given.tokens)[:, 0], "label:b.c")
    assert logits.shape == (2, 5)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.tensor([2, 4])).item(), rel=1e-5)
    with pytest.raises(WeftError, match="no head 'language'"):
        OBJECTIVES["classify"](made, replace(given, head="language"))


def pairs(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor | None = None, total: float = 3) -> Batch:
    return Batch(Tokens(left), weights=weights, source=Tokens(right), objective="contrastive", total=total)


def test_contrastive_is_the_papers_figure() -> None:
    made, given = model("clip"), pairs(ids(3, 5), ids(3, 4, seed=1))
    loss, report = OBJECTIVES["contrastive"](made, given)
    scores = (
        made.embed(given.tokens, "left")
        @ made.embed(given.source, "right").T
        * made.body.sharpness.exp().clamp(max=100)
    )
    partner = torch.arange(3)
    wanted = (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5) and report["counts"].tolist() == [3]


def test_twins_are_not_told_apart() -> None:
    made = model("clip")
    left, right = ids(3, 5), ids(3, 4, seed=1)
    right[2] = right[0]  # two items with one caption
    loss = OBJECTIVES["contrastive"](made, pairs(left, right))[0]
    scores = (
        made.embed(Tokens(left), "left")
        @ made.embed(Tokens(right), "right").T
        * made.body.sharpness.exp().clamp(max=100)
    )
    scores[0, 2] = scores[2, 0] = float("-inf")
    partner = torch.arange(3)
    wanted = (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_rows_with_media_are_only_their_own_twins() -> None:
    made = model("clip", stems={"image": 12})
    same = ids(1, 4).expand(2, 4).contiguous()
    images = Media("image", torch.randn(4, 12), torch.tensor([1, 2, 5, 6]))
    given = pairs(same, ids(2, 4, seed=1), total=2)
    given.tokens = Tokens(same, media=(images,))
    loss = OBJECTIVES["contrastive"](made, given)[0]
    assert loss.item() > 0.01, "the two images have to be told apart though their ids are equal"


def test_rows_of_padding_are_no_pairs() -> None:
    made, left, right = model("clip"), ids(3, 5), ids(3, 4, seed=1)
    weights = torch.zeros(3, 5)
    weights[:2, 0] = 1.0
    document = torch.tensor([[1] * 5, [1] * 5, [0] * 5], dtype=torch.int32)
    given = pairs(left, right, weights, total=2)
    given.tokens = Tokens(left, document=document)
    given.arrow = torch.tensor([[1] * 5, [1] * 5, [-1] * 5])
    loss, report = OBJECTIVES["contrastive"](made, given)
    alone = OBJECTIVES["contrastive"](made, pairs(left[:2], right[:2], total=2))[0]
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5) and report["counts"].tolist() == [0, 2]


@pytest.mark.parametrize("objective", ["seq2seq", "contrastive"])
def test_a_missing_source_is_said(objective: str) -> None:
    with pytest.raises(WeftError, match="source"):
        OBJECTIVES[objective](model("t5" if objective == "seq2seq" else "clip"), batch())
    with pytest.raises(WeftError, match="needs targets"):
        OBJECTIVES["next"](model("weft"), replace(batch(), targets=None))


def test_twins_are_told_by_pictures_too() -> None:
    from weft.core.view import Media
    from weft.objectives.contrast import same

    def rows(values: torch.Tensor, ids: list[list[int]]) -> Tokens:
        at = torch.arange(len(ids))[:, None] * 3 + torch.tensor([1, 2])
        return Tokens(torch.tensor(ids), media=(Media("image", values.flatten(0, 1), at.flatten()),))

    picture = torch.randn(2, 4)
    values = torch.stack((picture, picture + 1, picture))
    ids = [[5, 0, 0], [5, 0, 0], [5, 9, 9]]  # what id stands at a media place is ignored
    assert same(rows(values, ids)).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    ids[2][0] = 6
    assert not same(rows(values, ids))[0, 2], "the same picture, another marker"
