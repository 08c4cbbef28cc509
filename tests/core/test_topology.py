"""How streams meet, and parts that families do not use by default."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weft import families
from weft.core import config as c
from weft.core.embed import make_stem
from weft.core.stack import Stack
from weft.core.view import Media, Tokens
from weft.errors import RecipeError, WeftError
from weft.model import Model, build

DIM, FEATURES, VOCAB = 16, 12, 30
NORM, FFN, CAUSAL = c.RMSNorm(), c.FeedForward(32, "silu", gated=True), c.Causal()
HEADS = {"language": c.Language(VOCAB)}


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def stack(pattern=CAUSAL, dim: int = DIM, **more) -> c.StackConfig:
    attention = c.Attention(2, position=c.Rope(), pattern=pattern)
    return c.StackConfig(dim, 2, attention, FFN, NORM, **more)


def loud(topology: c.Topology) -> Model:
    model = build(c.ModelConfig(topology, HEADS), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def grows(model: Model, loss: torch.Tensor) -> list[str]:
    """Names of parameters that the loss does not reach."""
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


def llava() -> Model:
    eyes = c.TowerConfig(c.TextInput(0, stems={"image": c.LinearStem(FEATURES)}, opening=()), stack(c.Full(), 8))
    encoder = c.ItemEncoder(eyes, c.MlpBridge(24))
    tower = c.TowerConfig(c.TextInput(VOCAB), stack())
    return loud(c.EarlyFusionConfig(tower, {"image": encoder}))


def two_images() -> Tokens:
    """Row 0: an image of 3 tokens, text, an image of 2; row 1: text, an image of 3."""
    at = torch.tensor([0, 1, 2, 5, 6, 8 + 4, 8 + 5, 8 + 6])
    span = torch.zeros(2, 8, dtype=torch.int32)
    span.view(-1)[at] = torch.tensor([1, 1, 1, 2, 2, 3, 3, 3], dtype=torch.int32)
    values = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(2))
    return Tokens(ids(2, 8), span=span, media=(Media("image", values, at),))


def test_early_fusion_reaches_all_of_itself() -> None:
    model = llava()
    assert grows(model, model.logits(model.hidden(two_images())).square().mean()) == []


@torch.no_grad()
def test_early_fusion_encodes_each_item_by_itself() -> None:
    model, tokens = llava(), two_images()
    whole = model.hidden(tokens)
    first = Tokens(
        tokens.ids[:1, :3],
        span=tokens.span[:1, :3],
        media=(Media("image", tokens.media[0].values[:3], torch.arange(3)),),
    )
    assert close(model.hidden(first), whole[:1, :3]), "the row's other image, and the other row, are not seen"
    values = tokens.media[0].values.clone()
    values[2] += 1  # the last patch of the first image
    changed = model.hidden(replace(tokens, media=(Media("image", values, tokens.media[0].at),)))
    assert not close(changed[0, 0], whole[0, 0]), "its encoder sees both ways, though the stream is causal"
    assert close(changed[1], whole[1])
    with pytest.raises(WeftError, match="span"):
        model.hidden(replace(tokens, span=None))


@torch.no_grad()
def test_early_fusion_is_decoded_with_a_cache() -> None:
    model, tokens = llava(), two_images()
    whole, cache = model.hidden(tokens), model.cache()
    head = replace(
        tokens,
        ids=tokens.ids[:, :7],
        span=tokens.span[:, :7],
        media=(replace(tokens.media[0], at=tokens.media[0].at // 8 * 7 + tokens.media[0].at % 8),),
    )
    parts = [model.hidden(head, cache=cache), model.hidden(Tokens(tokens.ids[:, 7:]), cache=cache)]
    assert close(torch.cat(parts, 1), whole)


def dalle() -> Model:
    side = c.TextInput(VOCAB, positions=c.Sinusoidal())
    return loud(c.ConcatConfig(side, side, stack(c.Prefix())))


def test_concat_reaches_all_of_itself() -> None:
    model = dalle()
    hidden = model.hidden(Tokens(ids(2, 5)), Tokens(ids(2, 4, seed=1)))
    assert hidden.shape == (2, 5, DIM) and model.kind == "decoder"
    assert grows(model, model.logits(hidden).square().mean()) == []


@torch.no_grad()
def test_concat_sees_its_source_whole_and_is_decoded_with_a_cache() -> None:
    model, target, source = dalle(), Tokens(ids(2, 5)), Tokens(ids(2, 4, seed=1))
    whole, cache = model.hidden(target, source), model.cache()
    parts = [model.hidden(Tokens(target.ids[:, :2]), source, cache)]
    parts += [model.hidden(Tokens(target.ids[:, i : i + 1]), cache=cache) for i in range(2, 5)]
    assert close(torch.cat(parts, 1), whole)
    padded = Tokens(
        torch.cat((source.ids, ids(2, 2, seed=5)), 1), document=torch.tensor([[1] * 4 + [0] * 2] * 2, dtype=torch.int32)
    )
    marked = Tokens(target.ids, document=torch.ones(2, 5, dtype=torch.int32))
    assert close(model.hidden(marked, padded), whole)
    with pytest.raises(WeftError, match="needs a source"):
        model.hidden(target)


def flamingo(every: int = 2) -> Model:
    vision = c.TowerConfig(c.TextInput(VOCAB, stems={"image": c.LinearStem(FEATURES)}), stack(c.Full(), 8))
    language = c.TowerConfig(
        c.TextInput(VOCAB), stack(cross=c.Attention(2, pattern=c.Full()), cross_every=every, source=8)
    )
    return loud(c.EncoderDecoderConfig(vision, language, shared=False))


def test_cross_attention_in_every_second_block_to_a_source_of_another_width() -> None:
    model = flamingo()
    assert [block.crosses for block in model.body.decoder.stack.blocks] == [True, False]
    source = Tokens(ids(2, 4), media=(Media("image", torch.randn(4, FEATURES), torch.tensor([1, 2, 5, 6])),))
    hidden = model.hidden(Tokens(ids(2, 3, seed=1)), source)
    assert grows(model, model.logits(hidden).square().mean()) == []
    with pytest.raises(WeftError, match="looks across"):
        model.hidden(Tokens(ids(2, 3)))


@torch.no_grad()
def test_each_kind_goes_through_its_own_part() -> None:
    part = c.PerModality(("image",), FFN)
    config = replace(stack(c.Prefix()), feedforward=part, norm=c.PerModality(("image",), NORM))
    stems = {"image": c.LinearStem(FEATURES)}
    model = loud(c.TowerConfig(c.TextInput(VOCAB, stems=stems), config))
    tokens = Tokens(ids(1, 4), media=(Media("image", torch.randn(2, FEATURES), torch.tensor([2, 3])),))
    whole = model.hidden(tokens)
    parts = model.body.stack.blocks[0].ffn.parts
    parts["image"].down.weight.add_(1.0)
    changed = model.hidden(tokens)
    assert close(changed[:, :2], whole[:, :2]), "text before the image never meets the image's part"
    assert not close(changed[:, 2:], whole[:, 2:])
    text = model.hidden(Tokens(tokens.ids))
    assert close(text[:, :2], whole[:, :2])
    cache = model.cache()
    assert close(
        torch.cat([model.hidden(replace(tokens), cache=cache), model.hidden(Tokens(ids(1, 1)), cache=cache)], 1)[:, :4],
        changed,
    )


def test_a_part_per_kind_reaches_all_of_itself() -> None:
    config = families.make(
        "weft",
        vocab=VOCAB,
        length=8,
        dim=DIM,
        depth=2,
        heads=2,
        stems={"image": FEATURES},
        options={"per_modality": True},
    )
    model = build(config, seed=0)
    tokens = Tokens(ids(1, 4), media=(Media("image", torch.randn(2, FEATURES), torch.tensor([2, 3])),))
    assert grows(model, model.logits(model.hidden(tokens)).square().mean()) == []


@pytest.mark.parametrize("order", ["pre", "post"])
def test_the_norm_stands_where_the_order_says(order: str) -> None:
    model = Stack(stack(order=order))
    assert (model.norm is None) == (order == "post")
    with pytest.raises(RecipeError, match="'pre' or 'post'"):
        Stack(stack(order="middle"))


@torch.no_grad()
@pytest.mark.parametrize("position", [c.Alibi(), c.RelativeBias(), c.Rope(fraction=0.5), None])
@pytest.mark.parametrize("pattern", [c.Causal(), c.Window(2)])
def test_every_position_with_grouped_heads_is_decoded_with_a_cache(position, pattern) -> None:
    attention = c.Attention(
        4, kv_heads=2, head_dim=6, qk_norm=c.LayerNorm(), position=position, pattern=pattern, bias=True
    )
    model = loud(c.TowerConfig(c.TextInput(VOCAB), replace(stack(), attention=attention)))
    tokens = Tokens(ids(2, 7), document=torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7], dtype=torch.int32))
    whole = model.hidden(tokens)
    for kind in ("growing", "fixed"):
        cache = model.cache(kind, capacity=9)
        parts = [model.hidden(Tokens(tokens.ids[:, :4], document=tokens.document[:, :4]), cache=cache)]
        parts += [model.hidden(Tokens(tokens.ids[:, i : i + 1]), cache=cache) for i in range(4, 7)]
        real = tokens.document > 0
        assert close(torch.cat(parts, 1)[real], whole[real])


@torch.no_grad()
def test_plain_products_are_the_fused_kernel() -> None:
    """On CPUs, training in bf16 attends by plain products; without gradients by the fused kernel."""
    attention = c.Attention(4, kv_heads=2, position=c.Rope(), pattern=c.Prefix())
    model = build(
        c.ModelConfig(c.TowerConfig(c.TextInput(VOCAB), replace(stack(), attention=attention)), HEADS), seed=0
    )
    document = torch.tensor([[1] * 5 + [2] * 3] * 2, dtype=torch.int32)
    for tokens in (Tokens(ids(2, 8)), Tokens(ids(2, 8), document=document)):
        with torch.autocast("cpu", torch.bfloat16):
            fused = model.hidden(tokens)
            with torch.enable_grad():
                plain = model.hidden(tokens)
        exact = model.hidden(tokens)
        assert fused.dtype == plain.dtype == torch.bfloat16
        assert (plain - exact).abs().max() < 0.06 and (fused - exact).abs().max() < 0.06


def test_dropout_is_only_where_it_is_asked_for() -> None:
    with_drop = build(
        families.make("gpt", vocab=VOCAB, length=8, dim=DIM, depth=1, heads=2, options={"dropout": 0.5}), seed=0
    )
    without = build(families.make("gpt", vocab=VOCAB, length=8, dim=DIM, depth=1, heads=2), seed=0)
    assert sum(isinstance(m, torch.nn.Dropout) for m in with_drop.modules()) == 1
    assert not any(isinstance(m, torch.nn.Dropout) for m in without.modules())
    tokens = Tokens(ids(1, 5))
    assert not close(with_drop.train().hidden(tokens), with_drop.hidden(tokens))
    assert torch.equal(with_drop.eval().hidden(tokens), without.eval().hidden(tokens))


def test_a_learned_table_says_where_it_ends() -> None:
    model = build(families.make("gpt", vocab=VOCAB, length=4, dim=DIM, depth=1, heads=2), seed=0)
    with pytest.raises(WeftError, match="5 tokens in one document, but the table of learned positions ends at 4"):
        model.hidden(Tokens(ids(1, 5)))
    packed = torch.tensor([[1, 1, 1, 2, 2, 2]], dtype=torch.int32)
    assert model.hidden(Tokens(ids(1, 6), document=packed)).shape == (1, 6, DIM), "each of its documents fits"


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the capture itself asks a non-leaf tensor
def test_a_stack_is_one_graph() -> None:
    """Compilers see a whole stack, masks, rotation and all, whatever the rows hold. (Captured only, not compiled.)"""
    tokens = Tokens(ids(2, 6), document=torch.tensor([[1] * 4 + [2] * 2] * 2, dtype=torch.int32))
    image = replace(tokens, media=(Media("image", torch.randn(2, FEATURES), torch.tensor([1, 7])),))
    side = Tokens(ids(2, 5))
    for name in ("weft", "gpt", "t5"):
        more = {"options": {"per_modality": True}} if name == "weft" else {}
        made = families.make(name, vocab=VOCAB, length=8, dim=DIM, depth=2, heads=2, stems={"image": FEATURES}, **more)
        model = build(made, seed=0)
        given = tokens if name == "t5" else image
        eager = model.hidden(given, side if name == "t5" else None)
        for module in model.stack_modules():
            module.compile(backend="eager", fullgraph=True, dynamic=False)
        assert close(model.hidden(given, side if name == "t5" else None), eager)


def started(stem: torch.nn.Module) -> torch.nn.Module:
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return stem


def test_a_pyramid_sees_past_its_cell_but_never_past_its_item() -> None:
    torch.manual_seed(0)
    sound = c.PyramidStem((6, 1, 4), (8,))
    picture = c.PyramidStem((3, 4, 4), (8,))
    for config, sizes in ((sound, [(1, 3), (1, 5), (1, 1)]), (picture, [(2, 3), (3, 2), (1, 1)])):
        stem = started(make_stem(config, 10))
        places = [torch.cartesian_prod(torch.arange(r), torch.arange(w)).view(-1, 2) for r, w in sizes]
        item = torch.cat([torch.full((len(p),), i) for i, p in enumerate(places)])
        where, values = torch.cat(places), torch.randn(len(item), config.features)
        with torch.no_grad():
            together = stem(values, item, len(sizes), where)
            for i, place in enumerate(places):
                mine = item == i
                alone = stem(values[mine], torch.zeros(len(place), dtype=torch.long), 1, place)
                assert torch.allclose(together[mine], alone, atol=1e-6), f"item {i} of {config}"
            moved = values.clone()
            moved[0] += 1.0  # the first cell of the first item
            change = (stem(moved, item, len(sizes), where) - together).abs().amax(1)
        assert change[1] > 1e-4, "its neighbour sees it"
        assert (change[item > 0] == 0).all(), "another item does not"


def test_a_picture_is_convolved_as_the_whole_it_was_cut_from() -> None:
    torch.manual_seed(0)
    stem = started(make_stem(c.PyramidStem((3, 4, 4), (8,)), 10))
    image = torch.randn(1, 3, 8, 12)
    cells = image.view(1, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(6, -1)  # as modalities.image.patches
    where = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    first, second = stem.convs
    with torch.no_grad():
        whole = second(torch.nn.functional.gelu(first(image)))  # (1,10,2,3)
        assert torch.allclose(stem(cells, torch.zeros(6, dtype=torch.long), 1, where), whole[0].flatten(1).T, atol=1e-6)


def test_a_pyramid_that_does_not_end_at_one_token_is_refused() -> None:
    with pytest.raises(RecipeError, match="one token of 4 columns"):
        make_stem(c.PyramidStem((3, 8, 8), (8,)), 10)
