"""Every family, every feature: one parametrised file.

Models are tiny and their weights large, so that a wrong mask or position shows.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from weft import families
from weft.core import config as c
from weft.core.cache import Cache
from weft.core.record import Recorder
from weft.core.view import Media, Tokens
from weft.errors import RecipeError, WeftError
from weft.model import Model, build

VOCAB, DIM, FEATURES = 50, 32, 12
ALL = [name for name, family in families.FAMILIES.items() if family.media]  # counted ones: test_recurrent.py
DECODING = [name for name in ALL if families.FAMILIES[name].kind in ("decoder", "encoder-decoder")]
DECODERS = [name for name in ALL if families.FAMILIES[name].kind == "decoder"]
WINDOWED = [name for name in DECODERS if name not in ("rnn", "llava", "smolvlm")]
ATTENDING = [name for name in ALL if name not in ("rnn", "birnn", "cnn")]
ONE_STREAM = [name for name in ALL if families.FAMILIES[name].kind != "dual"]


def loud(model: Model) -> Model:
    """Weights large enough to tell right from wrong."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


def tiny(name: str, **changes) -> Model:
    settings = {"dim": DIM, "depth": 2, "heads": 2, "stems": {"image": FEATURES, "audio": FEATURES}, **changes}
    return loud(build(families.make(name, vocab=VOCAB, length=64, **settings), seed=0))


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def numbers(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def source(model: Model, rows: int = 2) -> Tokens | None:
    return Tokens(ids(rows, 5, seed=9)) if model.kind == "encoder-decoder" else None


def with_image(rows: int = 2, length: int = 10, start: int = 2, patches: int = 4) -> Tokens:
    """A stream with a 2 x 2 image in each row, then a sound of one token."""
    generator = torch.Generator().manual_seed(3)
    at = torch.arange(rows)[:, None] * length + torch.arange(start, start + patches)
    span = torch.zeros(rows, length, dtype=torch.int32)
    span[:, start : start + patches], span[:, start + patches] = 1, 2
    positions = torch.arange(length).float()[None, :, None].repeat(rows, 1, 3)
    positions[:, start : start + patches] = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1.0]]) + start
    positions[:, start + patches :] -= 2  # an image of 2 x 2 moves on by 2
    image = Media("image", torch.randn(rows * patches, FEATURES, generator=generator), at.flatten())
    sound = Media("audio", torch.randn(rows, FEATURES, generator=generator), at[:, -1] + 1)
    return Tokens(ids(rows, length), span=span, positions=positions, media=(image, sound))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------- forward, backward


@pytest.mark.parametrize("name", ALL)
def test_shapes(name: str) -> None:
    model, tokens = tiny(name), with_image()
    assert model.kind == families.FAMILIES[name].kind
    if model.kind == "dual":
        vectors = model.embed(tokens, "left")
        assert vectors.shape == (2, DIM) and close(vectors.norm(dim=-1), torch.ones(2))
        return
    if model.kind == "encoder-decoder":
        hidden = model.hidden(Tokens(ids(2, 10)), tokens)
    else:
        hidden = model.hidden(tokens)
    assert hidden.shape == (2, 10, DIM)
    assert model.logits(hidden).shape == (2, 10, VOCAB)
    assert model.logits(hidden[0, :3]).shape == (3, VOCAB), "a head takes any leading shape"


@pytest.mark.parametrize("name", ALL)
def test_backward_reaches_every_parameter(name: str) -> None:
    model, tokens = tiny(name, labels={"label:mood": 3}, language=True), with_image()
    if model.kind == "dual":
        loss = model.body.scores(model.embed(tokens, "left"), model.embed(Tokens(ids(2, 6)), "right")).sum()
    else:
        side = tokens if model.kind == "encoder-decoder" else None
        hidden = model.hidden(Tokens(ids(2, 10)) if side else tokens, side)
        loss = model.logits(hidden).square().mean()
    if "label:mood" in model.config.heads and model.kind != "dual":
        loss = loss + model.logits(hidden[:, 0], "label:mood").square().mean()
    loss.backward()
    without = [
        n
        for n, p in model.named_parameters()
        if (p.grad is None or not p.grad.any()) and not n.startswith("heads.label")
    ]
    # A key's bias shifts all scores of a query alike: softmax does not see it, so only the fused bias as a whole moves.
    assert not without


@pytest.mark.parametrize("name", ONE_STREAM)
def test_media_change_what_follows(name: str) -> None:
    model, tokens = tiny(name), with_image()
    other = replace(tokens, media=(replace(tokens.media[0], values=tokens.media[0].values + 1), tokens.media[1]))
    if model.kind == "encoder-decoder":
        a, b = (model.hidden(Tokens(ids(2, 4)), side) for side in (tokens, other))
    else:
        a, b = model.hidden(tokens), model.hidden(other)
    at = 0 if name == "cnn" else -1  # which looks at neighbours, and at all of a document at its first token
    assert not close(a[:, at], b[:, at])
    changed = replace(tokens, ids=tokens.ids.index_fill(1, torch.tensor([2, 3]), 0))
    if model.kind != "encoder-decoder":
        assert torch.equal(model.hidden(changed), a), "what id stands at a media place is ignored"


def test_media_without_a_stem_are_refused() -> None:
    with pytest.raises(WeftError, match="no stem for 'image'"):
        tiny("gpt", stems={"audio": FEATURES}).hidden(with_image())


# ---------------------------------------------------------------------------------------------------- caches


def stepwise(model: Model, tokens: Tokens, cache: Cache, cuts: list[int], side=None) -> Tensor:
    """Hidden states, a piece at a time. Media belong to the first piece."""
    parts, length = [], tokens.ids.shape[1]
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        cut = {
            n: getattr(tokens, n)[:, start:stop]
            for n in ("document", "branch", "span", "positions")
            if getattr(tokens, n) is not None
        }
        media = ()
        if start == 0:
            media = tuple(replace(m, at=m.at // length * stop + m.at % length) for m in tokens.media)
        parts.append(model.hidden(Tokens(tokens.ids[:, start:stop], **cut, media=media), side, cache))
    return torch.cat(parts, 1)


STREAMS = {
    "plain": lambda: Tokens(ids(2, 10)),
    "padded left": lambda: Tokens(ids(2, 10), document=numbers([0, 0, 0] + [1] * 7, [1] * 10)),
    "padded between": lambda: Tokens(ids(2, 10), document=numbers([1] * 5 + [0, 0] + [1] * 3, [1] * 10)),
    "packed": lambda: Tokens(ids(2, 10), document=numbers([1] * 6 + [2] * 4, [1] * 3 + [2] * 7)),
    "branches": lambda: Tokens(
        ids(2, 10), document=torch.ones(2, 10, dtype=torch.int32), branch=numbers([0] * 5 + [1, 1, 1, 2, 2], [0] * 10)
    ),
    "images": with_image,
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["growing", "fixed"])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", DECODING)
def test_cached_is_uncached(name: str, stream: str, kind: str) -> None:
    model = tiny(name)
    tokens = STREAMS[stream]()
    if model.kind == "encoder-decoder":
        tokens = replace(tokens, media=(), span=None)
    side = source(model)
    whole = model.hidden(tokens, side)
    cached = stepwise(model, tokens, model.cache(kind, capacity=16), [7, 8, 9], side)
    real = torch.ones_like(tokens.ids, dtype=torch.bool) if tokens.document is None else tokens.document > 0
    assert close(cached[real], whole[real])


@torch.no_grad()
@pytest.mark.parametrize("stream", ["plain", "padded left", "packed", "images"])
@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("sinks", [0, 2])
def test_a_sliding_cache_keeps_what_a_window_sees(name: str, stream: str, sinks: int) -> None:
    config = families.make(
        name, vocab=VOCAB, length=64, dim=DIM, depth=2, heads=2, stems={"image": FEATURES, "audio": FEATURES}
    )
    stack = config.topology.stack
    window = replace(stack, attention=replace(stack.attention, pattern=c.Window(3, 0, globals=sinks)))
    model = loud(build(replace(config, topology=replace(config.topology, stack=window)), seed=0))
    tokens = STREAMS[stream]()
    whole = model.hidden(tokens)
    cache = model.cache("sliding")
    cached = stepwise(model, tokens, cache, [7, 8, 9])
    real = torch.ones_like(tokens.ids, dtype=torch.bool) if tokens.document is None else tokens.document > 0
    assert close(cached[real], whole[real])
    assert cache.layers[0][0].shape[2] == 3 + sinks, "it does not grow"


@torch.no_grad()
def test_the_cache_goes_on_by_itself() -> None:
    """Ids alone after a prompt with padding and an image: documents and positions are counted on."""
    model = tiny("weft")
    prompt = replace(with_image(), document=numbers([0, 0] + [1] * 8, [1] * 10))
    whole_ids = torch.cat((prompt.ids, ids(2, 2, seed=5)), 1)
    document = torch.cat((prompt.document, torch.ones(2, 2, dtype=torch.int32)), 1)
    after = prompt.positions.amax((1, 2))[:, None, None] + torch.tensor([1.0, 2.0])[None, :, None].expand(2, 2, 3)
    media = tuple(replace(m, at=m.at // 10 * 12 + m.at % 10) for m in prompt.media)
    span = torch.cat((prompt.span, torch.zeros(2, 2, dtype=torch.int32)), 1)
    whole = model.hidden(Tokens(whole_ids, document, None, span, torch.cat((prompt.positions, after), 1), media))
    for kind in ("growing", "fixed"):
        cache = model.cache(kind, capacity=12)
        model.hidden(prompt, cache=cache)
        steps = [model.hidden(Tokens(whole_ids[:, i : i + 1]), cache=cache) for i in (10, 11)]
        assert close(torch.cat(steps, 1), whole[:, 10:])


@torch.no_grad()
def test_a_source_is_encoded_once() -> None:
    model = tiny("t5")
    side = Tokens(ids(2, 5, seed=9), document=numbers([1, 1, 1, 0, 0], [1] * 5))
    tokens = Tokens(ids(2, 6))
    encoded, cache = model.encode(side), model.cache()
    assert close(stepwise(model, tokens, cache, [3, 4, 5], encoded), model.hidden(tokens, side))
    kept = encoded.cache.layers[0][0]
    assert kept.shape == (2, 2, 5, DIM // 2)
    encoded.memory.zero_()  # its keys are made already: the memory is not read again
    assert close(model.hidden(tokens, encoded), model.hidden(tokens, side))


@torch.no_grad()
@pytest.mark.parametrize("name", DECODING)
def test_rows_of_a_cache_can_be_chosen(name: str) -> None:
    model = tiny(name)
    tokens, side, cache = Tokens(ids(2, 6)), source(model), model.cache()
    model.hidden(replace(tokens, ids=tokens.ids[:, :4]), encoded := model.encode(side) if side else None, cache)
    order = torch.tensor([1, 0, 1])
    cache.select(order)
    after = model.hidden(Tokens(tokens.ids[order, 4:]), encoded.select(order) if encoded else None, cache)
    assert close(after, model.hidden(tokens, side)[order, 4:])


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_what_looks_ahead_has_no_cache(name: str) -> None:
    model = tiny(name)
    with pytest.raises(WeftError, match="looks ahead"):
        model.cache()
    with pytest.raises(WeftError, match="looks ahead"):
        model.hidden(Tokens(ids(1, 3)), cache=tiny("gpt").cache())


def test_caches_that_would_lie_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(WeftError, match="forget"):
        model.cache("sliding")
    with pytest.raises(WeftError, match="Did you mean 'growing'"):
        model.cache("grow")
    with pytest.raises(WeftError, match="holds 4 tokens"):
        model.hidden(Tokens(ids(1, 5)), cache=model.cache("fixed", capacity=4))


# ---------------------------------------------------------------------------------------------------- packing


def run(model: Model, tokens: Tokens) -> Tensor:
    """(B,T,D) of a stream, or for an encoder-decoder of its encoder's side, or of one tower."""
    if model.kind == "encoder-decoder":
        return model.encode(tokens).memory
    return model.hidden(tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name: str) -> None:
    model, row = tiny(name), ids(1, 6)
    alone = run(model, Tokens(row))
    for before, behind in ((0, 3), (3, 0), (2, 2)):
        padded = torch.cat((ids(1, before, seed=7), row, ids(1, behind, seed=8)), 1)
        document = numbers([0] * before + [1] * 6 + [0] * behind)
        assert close(run(model, Tokens(padded, document=document))[:, before : before + 6], alone)
    bare = run(model, Tokens(torch.cat((ids(1, 3, seed=7), row), 1)))[:, 3:]
    assert not close(bare, alone), "the control: without documents, what is in front is seen"


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_packing_changes_nothing(name: str) -> None:
    model, a, b = tiny(name), ids(1, 4, seed=1), ids(1, 6, seed=2)
    alone = torch.cat((run(model, Tokens(a)), run(model, Tokens(b))), 1)
    both = torch.cat((a, b), 1)
    assert close(run(model, Tokens(both, document=numbers([1] * 4 + [2] * 6))), alone)
    assert not close(run(model, Tokens(both)), alone), "the control: one document instead of two"


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_branches_change_nothing(name: str) -> None:
    model, trunk, one, two = tiny(name), ids(1, 3), ids(1, 2, seed=1), ids(1, 4, seed=2)
    tokens = Tokens(
        torch.cat((trunk, one, two), 1), document=numbers([1] * 9), branch=numbers([0] * 3 + [1] * 2 + [2] * 4)
    )
    tree = model.hidden(tokens)
    assert close(tree[:, :5], model.hidden(Tokens(torch.cat((trunk, one), 1))))
    assert close(tree[:, 5:], model.hidden(Tokens(torch.cat((trunk, two), 1)))[:, 3:])
    flat = model.hidden(replace(tokens, branch=None))
    assert not close(flat[:, 5:], tree[:, 5:]), "the control: without branches, sisters are seen"


@torch.no_grad()
def test_pairs_may_be_packed_on_both_sides() -> None:
    model = tiny("t5")
    sources, targets = (ids(1, 3, seed=1), ids(1, 5, seed=2)), (ids(1, 4, seed=3), ids(1, 2, seed=4))
    alone = torch.cat([model.hidden(Tokens(t), Tokens(s)) for s, t in zip(sources, targets, strict=True)], 1)
    packed = model.hidden(
        Tokens(torch.cat(targets, 1), document=numbers([1] * 4 + [2] * 2)),
        Tokens(torch.cat(sources, 1), document=numbers([1] * 3 + [2] * 5)),
    )
    assert close(packed, alone)


# ---------------------------------------------------------------------------------------------------- recorder, files


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENDING)
def test_recorded_attention_sums_to_one_and_changes_nothing(name: str) -> None:
    model, record = tiny(name), Recorder()
    tokens = Tokens(ids(2, 7), document=numbers([1] * 4 + [2] * 3, [1] * 5 + [0] * 2))
    side = (
        replace(source(model), document=numbers([1, 1, 2, 2, 2], [1] * 5)) if model.kind == "encoder-decoder" else None
    )
    assert close(model.hidden(tokens, side, record=record), model.hidden(tokens, side))
    parts = {(stack, part) for stack, _, part in record.weights}
    wanted = {
        "encoder-decoder": {("encoder", "self"), ("decoder", "self"), ("decoder", "cross")},
        "dual": {("left", "self")},
    }
    assert parts == wanted.get(model.kind, {("", "self")})
    assert len(record.weights) == 2 * len(parts), "two layers"
    for weights in record.weights.values():
        assert weights.shape[:2] == (2, 2)
        assert close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    own = record.weights[{"encoder-decoder": "decoder", "dual": "left"}.get(model.kind, ""), 0, "self"]
    assert not own[0, :, :4, 4:].any() and not own[0, :, 4:, :4].any(), "documents do not attend to each other"


@pytest.mark.parametrize("name", ALL)
def test_a_config_goes_to_json_and_back(name: str) -> None:
    config = families.make(
        name, vocab=VOCAB, length=64, stems={"image": FEATURES}, labels={"label:a.b": 3}, language=True
    )
    again = c.from_tree(json.loads(json.dumps(c.to_tree(config))))
    assert again == config and type(again.topology) is type(config.topology)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_saved_is_loaded(name: str, tmp_path) -> None:
    model = tiny(name, labels={"label:a.b": 3}, language=True)
    save_model(model, str(tmp_path / "model.safetensors"))
    other = build(model.config, seed=5).eval()
    tokens, side = Tokens(ids(2, 7)), source(model)
    assert not close(other.hidden(tokens, side), model.hidden(tokens, side))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other.hidden(tokens, side), model.hidden(tokens, side))


@pytest.mark.parametrize("name", ALL)
def test_a_seed_gives_the_same_weights(name: str) -> None:
    config = families.make(name, vocab=VOCAB, length=16, dim=DIM, depth=1, heads=2)
    a, b, other = (build(config, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], other[key]) for key in a)


# ---------------------------------------------------------------------------------------------------- make


def test_names_that_do_not_exist_bring_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'llama'"):
        families.make("lama", vocab=9, length=8)
    with pytest.raises(RecipeError, match=r"no option 'activatoin'. Did you mean 'activation'"):
        families.make("gpt", vocab=9, length=8, options={"activatoin": "relu"})
    with pytest.raises(RecipeError, match="Did you mean 'gelu'"):
        build(families.make("gpt", vocab=9, length=8, options={"activation": "gelo"}))
    with pytest.raises(RecipeError, match="cannot be shared by 3 heads"):
        families.make("gpt", vocab=9, length=8, dim=32, heads=3)
    with pytest.raises(RecipeError, match="linear, mlp, conv or pyramid"):
        families.make("weft", vocab=9, length=8, stems={"image": 12}, options={"stem": "cnn"})


@pytest.mark.parametrize("stem", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("name", ["weft", "gpt", "llama", "bert", "t5", "vit", "clip"])
def test_every_stem_fits_every_family(name: str, stem: str) -> None:
    model = tiny(name, stems={"image": 3 * 16, "audio": 20}, options={"stem": stem})
    image, sound = torch.randn(4, 48), torch.randn(2, 20)
    tokens = Tokens(
        ids(1, 8), media=(Media("image", image, torch.arange(4)), Media("audio", sound, torch.arange(5, 7)))
    )
    assert run(model, tokens).shape == (1, 8, DIM)


def test_encoders_that_classify_have_no_head_over_words_unless_asked() -> None:
    make = lambda **more: families.make("bert", vocab=9, length=8, labels={"mood": 2}, **more).heads
    assert list(make()) == ["mood"] and list(make(language=True)) == ["language", "mood"]


@torch.no_grad()
def test_the_first_loss_is_that_of_chance() -> None:
    for name in ONE_STREAM:
        model = build(families.make(name, vocab=500, length=64, dim=128, depth=2, heads=2), seed=0)
        tokens = Tokens(torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(0)))
        logits = model.logits(model.hidden(tokens, tokens if model.kind == "encoder-decoder" else None))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens.ids[:, 1:].flatten())
        assert abs(loss.item() - 6.2146) < 0.75, f"{name}: {loss.item():.2f}"


# ---------------------------------------------------------------------------------------------------- other names


@torch.no_grad()
def test_forward_in_the_ecosystems_names() -> None:
    row, mask = ids(2, 6), torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    gpt = tiny("gpt")
    out = gpt(row, mask, labels=row.masked_fill(mask == 0, -100))
    alone = gpt(row[:1, :4], labels=row[:1, :4])
    assert close(out.logits[:1, :4], alone.logits) and out.hidden.shape == (2, 6, DIM)
    shifted = torch.nn.functional.cross_entropy(alone.logits[0, :-1], row[0, 1:4])
    assert close(alone.loss, shifted)
    t5 = tiny("t5")
    out = t5(row, mask, decoder_input_ids=row[:, :3], labels=row[:, :3])
    assert out.logits.shape == (2, 3, VOCAB) and out.loss.dim() == 0
    vit = tiny("vit", stems={"image": 12}, labels={"label": 4})
    pixels = torch.randn(2, 3, 4, 6)
    out = vit(pixel_values=pixels, labels=torch.tensor([0, 3]))
    assert out.logits.shape == (2, 4) and out.hidden.shape == (2, 1 + 6, DIM) and out.loss.dim() == 0
    weft = tiny("weft", stems={"image": 12, "audio": 8})
    out = weft(row, mask, pixel_values=pixels, input_features=torch.randn(2, 5, 4))
    assert out.logits.shape == (2, 6, VOCAB), "media stand before the ids and are not answered"
    clip = tiny("clip", stems={"image": 12})
    assert clip(row, mask, pixel_values=pixels).logits.shape == (2, 2)
    with pytest.raises(WeftError, match="does not divide into patches of 2"):
        weft(row, pixel_values=torch.randn(2, 3, 5, 4))
    with pytest.raises(WeftError, match="Nothing came in"):
        weft()
