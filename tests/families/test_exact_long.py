"""Whisper and Longformer through directories of the hub's form, against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_exact_media import CLOSE, SIZE, difference, loud, same_gradients, through
from torch import Tensor

from weft import families
from weft.convert.hf import load_hf, save_hf
from weft.core import config as c
from weft.core.record import Recorder
from weft.core.view import Tokens
from weft.errors import ConvertError, RecipeError
from weft.model import Model, build

transformers = pytest.importorskip("transformers")


def ids(*shape: int, seed: int = 0, most: int = 60) -> Tensor:
    return torch.randint(3, most, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- whisper

WHISPER = {
    "plain": {},
    "odd": {"encoder_layers": 1, "decoder_layers": 3, "decoder_attention_heads": 2, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False, "d_model": 24, "encoder_attention_heads": 3, "encoder_ffn_dim": 50},
}


def whisper(case: str, name: str = "WhisperForConditionalGeneration") -> torch.nn.Module:
    settings = {
        "vocab_size": 60, "num_mel_bins": 6, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "max_source_positions": 9, "max_target_positions": 20, "decoder_start_token_id": 1, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "begin_suppress_tokens": None,
    }  # fmt: skip
    config = transformers.WhisperConfig(**{**settings, **WHISPER[case]})
    return loud(getattr(transformers, name)(config))


def frames(rows: int = 2) -> Tensor:
    return torch.randn(rows, 6, 18, generator=torch.Generator().manual_seed(1))


TARGET_MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])


@torch.no_grad()
@pytest.mark.parametrize("case", WHISPER)
def test_sound(case: str, tmp_path: Path) -> None:
    theirs = whisper(case)
    ours = through(theirs, tmp_path)
    target = ids(2, 6)
    wanted = theirs(input_features=frames(), decoder_input_ids=target, decoder_attention_mask=TARGET_MASK).logits
    got = ours(input_features=frames(), decoder_input_ids=target, decoder_attention_mask=TARGET_MASK).logits
    real = TARGET_MASK > 0
    assert difference(got[real], wanted[real]) < CLOSE
    turned = ours(input_features=frames().transpose(1, 2), decoder_input_ids=target).logits
    assert difference(turned[1], got[1]) < CLOSE, "frames may come either way round"


@torch.no_grad()
def test_sound_decoded_with_a_cache(tmp_path: Path) -> None:
    theirs = whisper("plain")
    ours = through(theirs, tmp_path)
    target = ids(2, 6)
    from weft.core.stream import stream

    source = ours.encode(stream(ours.body, sounds=frames())[0])
    cache = ours.cache()
    parts = [ours.hidden(Tokens(target[:, a:b]), source, cache) for a, b in ((0, 3), (3, 4), (4, 6))]
    wanted = theirs(input_features=frames(), decoder_input_ids=target).logits
    assert difference(ours.logits(torch.cat(parts, 1)), wanted) < CLOSE


@torch.no_grad()
def test_controls_of_sound(tmp_path: Path) -> None:
    theirs = whisper("plain")
    ours = through(theirs, tmp_path)
    target = ids(2, 6)
    wanted = theirs(input_features=frames(), decoder_input_ids=target).logits
    for name in ("body.encoder.input.stems.audio.second.weight", "body.decoder.stack.blocks.1.cross.v_bias"):
        parameter = ours.get_parameter(name)
        kept = parameter.clone()
        parameter.add_(0.05)
        assert difference(ours(input_features=frames(), decoder_input_ids=target).logits, wanted) > 10 * CLOSE, name
        parameter.copy_(kept)


def test_gradients_of_sound(tmp_path: Path) -> None:
    theirs = whisper("plain")
    ours = through(theirs, tmp_path)
    target, labels = ids(2, 6), ids(2, 6, seed=3)
    labels[0, 4:] = -100
    wanted = theirs(input_features=frames(), decoder_input_ids=target, labels=labels).loss
    got = ours(input_features=frames(), decoder_input_ids=target, labels=labels).loss
    assert abs((wanted - got).item()) < CLOSE
    wanted.backward()
    got.backward()
    same_gradients(ours, theirs)


@torch.no_grad()
def test_a_body_alone(tmp_path: Path) -> None:
    theirs = whisper("plain", "WhisperModel")
    ours = through(theirs, tmp_path)
    wanted = theirs(input_features=frames(), decoder_input_ids=ids(2, 6)).last_hidden_state
    assert difference(ours(input_features=frames(), decoder_input_ids=ids(2, 6)).hidden, wanted) < CLOSE


def test_places_that_are_no_sinusoids_are_refused(tmp_path: Path) -> None:
    theirs = whisper("plain")
    with torch.no_grad():
        theirs.model.encoder.embed_positions.weight.add_(0.1)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ConvertError, match="embed_positions"):
        load_hf(tmp_path)


@torch.no_grad()
def test_no_frame_is_seen_from_another_item() -> None:
    """Sounds of different lengths packed in one row come out as each by itself."""
    from weft.core.view import Media

    config = families.make(
        "whisper", vocab=9, length=8, dim=16, depth=1, heads=2, stems={"audio": 12}, options={"heard": True}
    )
    model = build(config, seed=0)
    values = torch.randn(5, 12)
    span = torch.tensor([[1, 1, 1, 2, 2]])
    both = Tokens(torch.zeros(1, 5, dtype=torch.long), span=span, media=(Media("audio", values, torch.arange(5)),))
    stem = model.body.encoder.input
    from weft.core.embed import embed

    together = embed(stem.stems["audio"], both.media[0], both, torch.float32)
    for part in (slice(0, 3), slice(3, 5)):
        count = part.stop - part.start
        alone = Tokens(torch.zeros(1, count, dtype=torch.long), span=torch.ones(1, count, dtype=torch.long))
        media = Media("audio", values[part], torch.arange(count))
        assert difference(embed(stem.stems["audio"], media, alone, torch.float32), together[part]) < 1e-6


# ---------------------------------------------------------------------------------------------------- longformer

LONG = {
    "masked": ("LongformerForMaskedLM", {}),
    "masked, odd": (
        "LongformerForMaskedLM",
        {"attention_window": [6, 6], "num_attention_heads": 2, "hidden_act": "relu"},
    ),
    "classify": ("LongformerForSequenceClassification", {"num_labels": 3}),
    "tag": ("LongformerForTokenClassification", {"num_labels": 4, "type_vocab_size": 1}),
    "span": ("LongformerForQuestionAnswering", {}),
    "alone": ("LongformerModel", {"pad_token_id": 0}),
}


def longformer(case: str) -> torch.nn.Module:
    name, more = LONG[case]
    settings = {
        "vocab_size": 60, "max_position_embeddings": 220, "attention_window": [4, 4], "pad_token_id": 1, **SIZE, **more
    }  # fmt: skip
    return loud(getattr(transformers, name)(transformers.LongformerConfig(**settings)))


def padded(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, their padding, and global tokens here and there."""
    mask, marks = torch.ones(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
    mask[0, length - length // 3 :] = 0
    marks[0, 0] = marks[1, 0] = marks[1, length // 2] = marks[1, length - 1] = 1
    return ids(2, length).masked_fill(mask == 0, 1), mask, marks


@torch.no_grad()
@pytest.mark.parametrize("length", [11, 203])
@pytest.mark.parametrize("case", LONG)
def test_windows(case: str, length: int, tmp_path: Path) -> None:
    theirs = longformer(case)
    ours = through(theirs, tmp_path)
    row, mask, marks = padded(length)
    if case == "alone":
        row = row.masked_fill(mask == 0, 0)
    for given in (None, marks):
        if case == "span" and given is None:
            continue  # the reference then looks for separators
        wanted = theirs(row, attention_mask=mask, global_attention_mask=given)
        got = ours(row, mask, global_attention_mask=given)
        real = mask > 0
        if case == "classify":
            assert difference(got.logits, wanted.logits) < CLOSE
        elif case == "span":
            assert difference(got.logits[..., 0][real], wanted.start_logits[real]) < CLOSE
        elif case == "alone":
            assert difference(got.hidden[real], wanted.last_hidden_state[real]) < CLOSE
            assert difference(got.pooled, wanted.pooler_output) < CLOSE
        else:
            assert difference(got.logits[real], wanted.logits[real]) < CLOSE


@torch.no_grad()
def test_controls_of_windows(tmp_path: Path) -> None:
    theirs = longformer("masked")
    ours = through(theirs, tmp_path)
    row, mask, marks = padded(203)
    wanted, real = theirs(row, attention_mask=mask, global_attention_mask=marks).logits, mask > 0
    assert difference(ours(row, mask).logits[real], wanted[real]) > 10 * CLOSE, "no global tokens"
    assert difference(ours(row, global_attention_mask=marks).logits[real], wanted[real]) > 10 * CLOSE, "no padding"
    ours.get_parameter("body.stack.blocks.0.attn.global_qkv.weight").add_(0.05)
    assert difference(ours(row, mask, global_attention_mask=marks).logits[real], wanted[real]) > 10 * CLOSE


def test_gradients_of_windows(tmp_path: Path) -> None:
    theirs = longformer("masked")
    ours = through(theirs, tmp_path)
    row, mask, marks = padded(203)
    labels = ids(2, 203, seed=4).masked_fill(mask == 0, -100)
    wanted = theirs(row, attention_mask=mask, global_attention_mask=marks, labels=labels).loss
    got = ours(row, mask, global_attention_mask=marks, labels=labels).loss
    assert abs((wanted - got).item()) < CLOSE
    wanted.backward()
    got.backward()
    same_gradients(ours, theirs)


def test_odd_and_different_windows_are_refused(tmp_path: Path) -> None:
    longformer("masked").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    import json

    for window in ([4, 6], 5):
        (tmp_path / "config.json").write_text(json.dumps({**json.loads(text), "attention_window": window}))
        with pytest.raises(ConvertError, match="attention_window"):
            load_hf(tmp_path)


def windowed(name: str, pattern: c.Window, *, kv: int = 0, own: bool = False, position: c.Rope | None = None) -> Model:
    config = families.make(name, vocab=60, length=512, dim=32, depth=2, heads=4)
    stack = config.topology.stack
    attention = replace(stack.attention, pattern=pattern, kv_heads=kv, globals=own, position=position)
    made = replace(config, topology=replace(config.topology, stack=replace(stack, attention=attention)))
    return loud(build(made, seed=0))


STREAMS = {
    "plain": lambda: Tokens(ids(2, 150)),
    "padded": lambda: Tokens(ids(2, 150), document=torch.tensor([[1] * 100 + [0] * 50, [0] * 7 + [1] * 143]).int()),
    "packed": lambda: Tokens(
        ids(2, 150), document=torch.tensor([[1] * 60 + [2] * 90, [1] * 3 + [2] * 80 + [0] * 67]).int()
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("pattern", "own", "kv"),
    [
        (c.Window(5, 5), False, 0), (c.Window(7, 0), False, 2), (c.Window(7, 0, globals=2), False, 1),
        (c.Window(3, 9, globals=1), False, 0), (c.Window(4, 4, globals=3), True, 2),
    ],
)  # fmt: skip
def test_bands_are_the_whole_mask(pattern: c.Window, own: bool, kv: int, stream: str) -> None:
    """Computed in bands, and with all scores at once (as a recorder wants them): the same numbers."""
    model, tokens = windowed("bert", pattern, kv=kv, own=own), STREAMS[stream]()
    record = Recorder()
    banded, whole = model.hidden(tokens), model.hidden(tokens, record=record)
    real = torch.ones_like(tokens.ids, dtype=torch.bool) if tokens.document is None else tokens.document > 0
    assert difference(banded[real], whole[real]) < 2e-5
    weights = record.weights["", 0, "self"]
    assert weights.shape == (2, 4, 150, 150)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert (weights.transpose(1, 2)[real][:, 0] > 0).sum(-1).max() <= 150


@torch.no_grad()
def test_bands_with_rotary_positions() -> None:
    model, tokens = windowed("bert", c.Window(6, 6), position=c.Rope()), STREAMS["packed"]()
    real = tokens.document > 0
    assert difference(model.hidden(tokens)[real], model.hidden(tokens, record=Recorder())[real]) < 2e-5


def test_the_cost_of_a_window_is_linear_in_the_length() -> None:
    """Counted, not timed: products and the largest tensor. Twice the length, twice of each."""
    from torch.utils.flop_counter import FlopCounterMode

    model = windowed("longformer", c.Window(8, 8, globals=1), own=True)
    full = windowed("bert", c.Window(8, 8))
    config = replace(full.config.topology.stack.attention, pattern=c.Full())

    def cost(made: Model, length: int) -> tuple[int, int]:
        seen = Largest()
        with FlopCounterMode(display=False) as counter, seen:
            made.hidden(Tokens(ids(1, length), document=torch.ones(1, length, dtype=torch.int32)))
        return counter.get_total_flops(), seen.most

    (flops, most), (twice, double) = cost(model, 256), cost(model, 512)
    assert twice < 2.1 * flops and double < 2.1 * most
    stack = full.config.topology.stack
    whole = build(
        replace(full.config, topology=replace(full.config.topology, stack=replace(stack, attention=config))), seed=0
    )
    (flops, most), (twice, double) = cost(whole, 256), cost(whole, 512)
    assert double > 3.5 * most, "the control: attention to all grows with the square"


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.most = max(self.most, value.numel())
        return out


def test_matrices_of_their_own_need_a_window() -> None:
    for pattern in (c.Full(), c.Window(4, 0)):
        with pytest.raises(RecipeError, match="Window that sees both ways"):
            windowed("bert", pattern, own=True)


def test_a_longformer_of_our_own_is_written(tmp_path: Path) -> None:
    config = families.make(
        "longformer", vocab=60, length=64, dim=32, depth=2, heads=4,
        options={"window": 8, "globals": 0, "segments": 1, "offset": 2},
    )  # fmt: skip
    model = loud(build(config, seed=0))
    save_hf(model, tmp_path / "hf")
    theirs = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert difference(model(ids(2, 40)).logits, theirs(ids(2, 40)).logits) < CLOSE
