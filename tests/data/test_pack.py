"""Packing: nothing is lost, nothing is cut, beginnings are shared, and a packed loss is the unpacked one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.arrows.sample import Sample, Span
from weft.data import pack
from weft.errors import WeftError


def text(*ids: int, loss: bool = False, key: object = None) -> Span:
    return Span("ids", np.array(ids), advance=float(len(ids)), loss=loss, role="output" if loss else "input", key=key)


def picture(number: int, side: int = 2) -> Span:
    places = np.stack([np.zeros(side * side), *np.divmod(np.arange(side * side), side)], 1).astype(np.float32)
    return Span(
        "image", None, np.full((side * side, 3), number, np.float16), places, float(side), key=("image", number)
    )


def asked(image: int, question: int, answer: int, arrow: int = 0) -> Sample:
    """[10] image [11] question [12] answer"""
    spans = (text(10, key="m"), picture(image), text(11), text(question), text(12, key="a"), text(answer, 1, loss=True))
    return Sample(0, arrow, spans)


def shared(samples: list[Sample], weights: list[float], room: int = 64) -> list[pack.Document]:
    """`pack.share`, with the arrows of the samples and their weights in place of the samples' numbers."""
    own = lambda part: part._replace(arrow=samples[part.arrow].arrow, weight=weights[samples[part.arrow].arrow])
    return [[own(part) if part.arrow >= 0 else part for part in document] for document in pack.share(samples, room)]


lengths = st.lists(st.integers(1, 32), min_size=1, max_size=200)


@given(lengths, st.integers(0, 5), st.integers(1, 64))
def test_rows_hold_every_document_once_and_never_too_much(sizes, seed, span):
    rows = pack.pack(np.array(sizes), 32, np.random.default_rng(seed), span)
    assert sorted(n for row in rows for n in row) == list(range(len(sizes))), "each document stands in one row"
    assert max(sum(sizes[n] for n in row) for row in rows) <= 32, "no row is too long"
    assert rows == pack.pack(np.array(sizes), 32, np.random.default_rng(seed), span), "the same seed packs the same"


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 32)), min_size=1, max_size=100), st.integers(0, 5))
def test_two_streams_fit_at_once(sizes, seed):
    rows = pack.pack(np.array(sizes), 32, np.random.default_rng(seed))
    for stream in (0, 1):
        assert max(sum(sizes[n][stream] for n in row) for row in rows) <= 32, f"stream {stream} is too long"


def test_best_fit_leaves_little_room():
    sizes = np.random.default_rng(0).integers(1, 200, 5000)
    rows = pack.pack(sizes, 256, np.random.default_rng(1))
    padding = 1 - sizes.sum() / (256 * len(rows))
    assert padding < 0.02, f"{padding:.1%} of the places are padding"


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(WeftError, match="33 tokens does not fit into a row of 32"):
        pack.pack(np.array([5, 33]), 32, np.random.default_rng(0))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(40, 80))
def test_branches_are_filled_into_few_documents(sizes, room):
    parts = pack.fill(sizes, room)
    assert sorted(n for part in parts for n in part) == list(range(len(sizes))), "each branch once"
    used = [sum(sizes[n] for n in part) for part in parts]
    assert max(used) <= room, "none is too long"
    assert all(a + b > room for a, b in pairwise(used)), "no two neighbours could have been one"


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=12))
def test_copies_stand_in_documents_of_their_own(drawn):
    """(size, how often): no document holds a copy twice; laid last, copies would need documents of their own."""
    sizes = [size for size, times in drawn for _ in range(times)]
    names = [number for number, (_, times) in enumerate(drawn) for _ in range(times)]
    parts = pack.fill(sizes, 20, names)
    assert sorted(n for part in parts for n in part) == list(range(len(sizes)))
    assert all(sum(sizes[n] for n in part) <= 20 for part in parts)
    assert all(len({names[n] for n in part}) == len(part) for part in parts)
    small = pack.fill([10, 8, 9, 9, 2, 2], 20, [0, 1, 2, 3, 4, 4])
    assert len(small) == 2 and len(pack.fill([10, 8, 9, 9, 2, 2], 20)) == 3, "control: laid last, as other branches are"


def test_fill_refuses_what_fits_nowhere():
    with pytest.raises(WeftError, match="41 tokens does not fit into 40"):
        pack.fill([41], 40)


def test_samples_of_one_image_share_it():
    samples = [asked(1, 20, 30), asked(2, 20, 31), asked(1, 21, 32)]
    first, second = shared(samples, [1.0])
    assert [len(part.piece) for part in first] == [5, 5, 5], "trunk of marker and image, then two branches"
    assert [part.branch for part in first] == [0, 1, 2], "the trunk is branch 0"
    assert [part.start for part in first] == [0.0, 3.0, 3.0], "both branches start where marker and image end"
    assert len(second) == 1 and second[0].branch == 0, "a lone sample is all trunk"


def test_what_does_not_fit_shares_again():
    documents = pack.share([asked(1, 20 + n, 30 + n) for n in range(5)], 20)
    assert [[len(part.piece) for part in document] for document in documents] == [[5, 5, 5, 5], [5, 5, 5]]
    assert [part.arrow for document in documents for part in document] == [-1, 0, 1, 2, -1, 3, 4], "samples' numbers"
    (alone,) = pack.share([asked(1, 20, 30)], 4)
    assert sum(len(part.piece) for part in alone) == 10, "one that is longer stands by itself"


def test_what_predicts_is_not_shared():
    """Two outputs after one input: the marker before them would have to predict both, so it stays in the branches."""
    one, two = (
        Sample(0, 0, (text(10, key="m"), text(5, key="t"), text(12, key="o"), text(n, 1, loss=True))) for n in (30, 31)
    )
    assert len(pack.leading(one)) == 2, "marker and text are shared, the output's marker is not"
    (document,) = shared([one, two], [1.0])
    stream = pack.collate([[document]], 1, 16)
    assert sorted(stream.targets[stream.targets >= 0].tolist()) == [1, 1, 30, 31], "every output token has its target"


def test_shared_branches_train_what_single_samples_train():
    samples = [asked(1, 20 + n, 30 + n) for n in range(5)]
    together = pack.collate([shared(samples, [2.0])], 1, 64)
    single = pack.collate([[shared([s], [2.0])[0]] for s in samples], 5, 16)
    trained = lambda stream: sorted(stream.targets[stream.targets >= 0].tolist())
    assert trained(together) == trained(single), "the same tokens are predicted"
    assert together.trained == single.trained == 20.0, "ten tokens of weight 2"
    assert together.real == 5 + 25 and single.real == 50, "sharing saves four images with their markers"


def test_collate_lays_out_documents_branches_positions_and_media():
    samples = [asked(1, 20, 30, arrow=0), asked(1, 21, 31, arrow=1), asked(2, 22, 32, arrow=1)]
    row = shared(samples, [1.0, 0.5])
    stream = pack.collate([row, []], 3, 32)
    tokens = stream.tokens
    assert tokens.ids.shape == (3, 32) and tokens.positions.shape == (3, 32, 3), "three rows, two of them empty"
    assert tokens.document[0].tolist() == [1] * 15 + [2] * 10 + [0] * 7
    assert tokens.branch[0].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [0] * 17
    assert tokens.span[0].tolist() == [0, 1, 1, 1, 1] + [0] * 11 + [2] * 4 + [0] * 12, "spans are numbered in the row"
    assert tokens.positions[0, :5].tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2]], (
        "image in rows, columns"
    )
    assert tokens.positions[0, 5:10, 0].tolist() == tokens.positions[0, 10:15, 0].tolist() == [3, 4, 5, 6, 7]
    (media,) = tokens.media
    assert media.at.tolist() == [1, 2, 3, 4, 16, 17, 18, 19], "places in the flattened rows"
    assert media.values[:, 0].tolist() == [1.0] * 4 + [2.0] * 4
    assert stream.arrow[0].tolist() == [-1] * 5 + [0] * 5 + [1] * 15 + [-1] * 7
    assert stream.weights[0][stream.targets[0] >= 0].tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5], (
        "the weight of each one's arrow"
    )
    assert stream.targets[0, 4] == -100, "the trunk's last token does not predict a branch"
    assert (tokens.document[1:] == 0).all() and stream.real == 25, "missing rows are padding"


def test_collate_says_when_a_row_is_too_long():
    with pytest.raises(WeftError, match="A row of 10 tokens was packed for a length of 8"):
        pack.collate([shared([asked(1, 20, 30)], [1.0])], 1, 8)


def test_no_row_at_all_is_all_padding():
    stream = pack.collate([], 2, 4)
    assert (stream.tokens.document == 0).all() and (stream.targets == -100).all() and stream.real == 0


@settings(max_examples=30)
@given(st.integers(2, 200), st.integers(2, 40), st.integers(0, 9))
def test_windows_go_on_over_the_cut(total, length, seed):
    from weft.data.plan import cuts

    ids = np.arange(100, 100 + total, dtype=np.int32)
    piece, _ = pack.flatten([text(*ids[:1].tolist()), text(*ids[1:].tolist(), loss=True)])
    parts = [pack.window(piece, a, b) for a, b in cuts(total, length, np.random.default_rng(seed))]
    assert max(map(len, parts)) <= length, "no window is too long"
    assert np.concatenate([part.ids for part in parts]).tolist() == ids.tolist(), "every token stands in one window"
    targets = np.concatenate([part.targets for part in parts])
    assert targets.tolist() == [*ids[1:].tolist(), -100], "each token predicts the next one, also over a cut"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(20, 30), st.integers(30, 40)), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_a_packed_loss_is_the_unpacked_loss(rows, seed):
    """Through a real model: the same samples alone in their rows, and packed into trees."""
    total = lambda batches: sum(float(losses(stream)) for stream in batches)
    samples = [asked(*row) for row in rows]
    documents = shared(samples, [1.0])
    sizes = np.array([sum(len(part.piece) for part in document) for document in documents])
    rows_of = pack.pack(sizes, int(max(sizes.max(), 48)), np.random.default_rng(seed))
    packed = pack.collate([[documents[n] for n in row] for row in rows_of], len(rows_of), int(max(sizes.max(), 48)))
    single = [pack.collate([shared([sample], [1.0])], 1, 12) for sample in samples]
    assert total([packed]) == pytest.approx(total(single), rel=1e-5), "packing changes the loss"


@pytest.mark.parametrize("fault", ["documents", "branches", "positions", "media"])
def test_each_part_of_packing_is_needed(fault):
    """Negative controls: with one of them left out, the packed loss is off by 100 times the tolerance."""
    samples = [asked(n % 2, 20 + n, 30 + n) for n in range(6)]
    row = pack.share(samples, 64)
    packed = pack.collate([row], 1, 64)
    right = float(losses(packed))
    assert right == pytest.approx(sum(float(losses(pack.collate([pack.share([s], 64)], 1, 12))) for s in samples), 1e-5)
    tokens = packed.tokens
    if fault == "documents":
        tokens.document = tokens.document.clamp(max=1)
    elif fault == "branches":
        tokens.branch = torch.zeros_like(tokens.branch)
    elif fault == "positions":  # a branch goes on from the one before it, not from the trunk
        tokens.positions = tokens.positions + tokens.branch[..., None].clamp(min=1) - 1
    else:
        tokens.media[0].values = tokens.media[0].values.flip(0)
    assert abs(float(losses(packed)) - right) > 1e-3 * right, f"{fault} could be left out"


def losses(stream: pack.Stream) -> torch.Tensor:
    """Sum of the cross entropies of a tiny model."""
    tokens = stream.tokens
    with torch.no_grad():
        logits = model().logits(model().hidden(tokens))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), stream.targets.flatten(), reduction="sum")


def model(made: list = []) -> torch.nn.Module:  # noqa: B006  built once
    from weft import families
    from weft.model import build

    if not made:
        config = families.make("weft", vocab=64, length=64, dim=16, depth=2, heads=2, stems={"image": 3})
        made.append(build(config, seed=0).float().eval())
        with torch.no_grad():  # livelier than at the start, so that a wrong mask shows
            for parameter in made[0].parameters():
                parameter.add_(
                    0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
                )
    return made[0]
