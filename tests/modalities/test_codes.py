"""Codecs: few codes that bring pictures and sounds back, the same on every training, whatever the items."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from weft.errors import DataError, RecipeError, RunError
from weft.modalities import codes
from weft.modalities.codes import AudioCodec, ImageCodec, usage
from weft.modalities.quantize import Codebook
from weft.recipe import AudioRecipe, ImageRecipe

IMAGES = ImageRecipe(size=32, codes=16, codebook=64)
LAYOUT_1 = {  # three means of what is decoded, then ids
    "image": [119.762, 148.833, 101.792, 8, 8, 8, 8, 8, 2, 14, 8, 14, 2, 2, 8, 3, 14, 0, 8],
    "audio": [3.812, 3.457, 4.727, 7, 2, 2, 2, 2, 2, 1, 13, 13, 2, 13, 13, 13, 13, 13, 13, 13, 9],
}
SOUNDS = AudioRecipe(mels=20, hop=4, codebook=32)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """A coloured bar on white."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        picture = np.full((32, 32, 3), 255, np.uint8)
        top, left = draw.integers(0, 20, 2)
        picture[top : top + 12, left : left + 8] = [(255, 0, 0), (0, 0, 255)][draw.integers(2)]
        made.append(picture)
    return made


def sounds(count: int, seed: int = 0) -> list[np.ndarray]:
    """Bands that rise and fall, of 9 to 40 frames."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        centre = 10 + 8 * np.sin(np.arange(draw.integers(9, 40)) / draw.integers(3, 9))[:, None]
        made.append((np.exp(-((np.arange(20) - centre) ** 2) / 8) * 1.6 - 1).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def image_codec():
    return ImageCodec.train(pictures(120), IMAGES, seed=1, steps=120)


@pytest.fixture(scope="module")
def audio_codec():
    return AudioCodec.train(sounds(60), SOUNDS, seed=1, steps=120)


def test_pictures_come_back(image_codec) -> None:
    codec, report = image_codec
    assert report.error < 0.4 * report.baseline
    assert (report.items, report.held) == (108, 12)
    assert 0 < report.used <= 1 and 1 <= report.perplexity <= codec.size == 64
    new = pictures(8, seed=9)
    ids = codec.encode(new)
    assert all(one.shape == (16,) and one.dtype == np.int64 and one.min() >= 0 and one.max() < 64 for one in ids)
    back = codec.decode(ids)
    assert all(one.shape == (32, 32, 3) and one.dtype == np.uint8 for one in back)
    errors = [[np.abs(a.astype(int) - b).mean() for b in back] for a in new]
    assert np.argmin(errors, axis=1).tolist() == list(range(8)), "each is nearest to its own reconstruction"


def test_sounds_come_back(audio_codec) -> None:
    codec, report = audio_codec
    assert report.error < 0.5 * report.baseline
    new = sounds(6, seed=9)
    ids = codec.encode(new)
    assert [len(one) for one in ids] == [-(-len(mel) // 4) for mel in new]
    back = codec.decode(ids)
    for mel, there in zip(new, back, strict=True):
        assert there.shape == (-(-len(mel) // 4) * 4, 20) and there.dtype == np.float32
        assert np.abs(there[: len(mel)] - mel).mean() < 0.5 * np.abs(mel - mel.mean(0)).mean()
        assert there.min() >= -1


def test_company_does_not_change_a_code(audio_codec) -> None:
    """What a sound is padded with in a batch must not leak into its codes (rounding may tip a tie, padding may not)."""
    codec, _ = audio_codec
    short, long = sounds(1, seed=3)[0][:9], np.concatenate(sounds(9, seed=4))
    beside = codec.encode([short, long])
    np.testing.assert_array_equal(beside[0], codec.encode([short])[0])
    np.testing.assert_array_equal(beside[1], codec.encode([long])[0])
    np.testing.assert_allclose(codec.decode(beside)[0], codec.decode(beside[:1])[0], atol=1e-4)


def test_training_repeats_its_bits_and_leaves_the_callers_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, told = ImageCodec.train(pictures(12), IMAGES, seed=3, steps=25)
    assert torch.equal(torch.rand(3), expected)
    second, again = ImageCodec.train(pictures(12), IMAGES, seed=3, steps=25)
    other, _ = ImageCodec.train(pictures(12), IMAGES, seed=4, steps=25)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    assert not torch.equal(first.network.codebook.codes, other.network.codebook.codes)
    assert (told.error, told.used) == (again.error, again.used)


def test_few_items_of_odd_sizes_will_do() -> None:
    odd = [np.zeros((5, 90, 3), np.uint8), np.full((7, 7, 3), 200, np.uint8), pictures(1)[0]]
    codec, report = ImageCodec.train(odd, IMAGES, steps=12)
    assert (report.items, report.held) == (3, 0)
    assert [one.shape for one in codec.decode(codec.encode(odd))] == [(32, 32, 3)] * 3
    codec, report = AudioCodec.train([sounds(1)[0][:1]], SOUNDS, steps=12)
    assert report.items == 1
    assert codec.decode(codec.encode([sounds(1)[0]]))[0].shape[1] == 20
    assert ImageCodec.train(odd[:1], IMAGES, steps=3)[1].items == 1


def test_progress_is_told_step_by_step() -> None:
    seen: list[tuple[int, int]] = []
    ImageCodec.train(pictures(4), IMAGES, steps=5, progress=lambda step, steps, loss: seen.append((step, steps)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_save_and_load(image_codec, audio_codec, tmp_path) -> None:
    for name, (codec, _), items in (("image", image_codec, pictures(5, 7)), ("audio", audio_codec, sounds(5, 7))):
        codec.save(tmp_path / name)
        loaded = type(codec).load(tmp_path / name)
        assert loaded.size == codec.size and loaded.settings == codec.settings
        ids = codec.encode(items)
        for one, there, back, same in zip(
            ids, loaded.encode(items), codec.decode(ids), loaded.decode(ids), strict=True
        ):
            np.testing.assert_array_equal(one, there)
            np.testing.assert_array_equal(back, same)
    with pytest.raises(RunError, match="for image lies there; one for audio was expected"):
        AudioCodec.load(tmp_path / "image")
    with pytest.raises(RunError, match="absent"):
        ImageCodec.load(tmp_path / "absent")
    weights = tmp_path / "image" / "codec.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match="not a readable codec"):
        ImageCodec.load(tmp_path / "image")


def test_codes_of_another_layout_are_refused(image_codec, tmp_path) -> None:
    image_codec[0].save(tmp_path)
    told = json.loads((tmp_path / "codec.json").read_text())
    assert told["layout"] == codes.LAYOUT
    (tmp_path / "codec.json").write_text(json.dumps({**told, "layout": codes.LAYOUT + 1}))
    with pytest.raises(RunError, match=rf"layout {codes.LAYOUT + 1}, this weft reads layout {codes.LAYOUT}.*noise"):
        ImageCodec.load(tmp_path)


@pytest.mark.parametrize("kind", [ImageCodec, AudioCodec])
def test_the_layout_is_what_it_was(kind) -> None:
    """The same weights mean the same codes and the same pictures and sounds. Does this fail? Then codes.LAYOUT goes up,
    and so do the numbers here: runs of before would decode to noise.
    """
    config = codes.CodecConfig(48, 4, 16) if kind is ImageCodec else codes.CodecConfig(40, 0, 16)
    settings = {"size": 16, "codes": 16} if kind is ImageCodec else {"hop": 2, "mels": 20}
    network = codes.Network(config)
    draw = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.3)
    codec = kind(config, settings, network)
    back = codec.decode([np.arange(16)])[0].astype(np.float64)
    ids = codec.encode([pictures(1)[0] if kind is ImageCodec else sounds(1)[0]])[0]
    assert codes.LAYOUT == 1
    found = [back.mean(), back[3].mean(), back[:, 2].mean(), *ids]
    assert found == pytest.approx(LAYOUT_1[kind.kind], rel=0.02), found


def test_errors_say_what_came(image_codec, audio_codec) -> None:
    image, audio = image_codec[0], audio_codec[0]
    with pytest.raises(DataError, match="image 1 has 3 codes; 16 were expected"):
        image.decode([np.zeros(16, int), np.zeros(3, int)])
    with pytest.raises(DataError, match="codes 0 to 64; 0 to 63 was expected"):
        image.decode([np.array([0] * 15 + [64])])
    with pytest.raises(DataError, match="whole numbers"):
        audio.decode([np.array([0.5])])
    with pytest.raises(DataError, match="at least one"):
        audio.decode([np.array([], int)])
    with pytest.raises(DataError, match=r"sound 0 has shape \(4, 80\)"):
        audio.encode([np.zeros((4, 80), np.float32)])
    for train, settings in ((ImageCodec.train, IMAGES), (AudioCodec.train, SOUNDS)):
        with pytest.raises(DataError, match="at least one"):
            train([], settings)
    with pytest.raises(RecipeError, match=r"image\.codes is 50"):
        ImageCodec.train(pictures(1), ImageRecipe(size=32, codes=50))
    with pytest.raises(RecipeError, match=r"audio\.hop is 0"):
        AudioCodec.train(sounds(1), AudioRecipe(mels=20, hop=0))
    with pytest.raises(RecipeError, match="codebook of 1"):
        ImageCodec.train(pictures(1), ImageRecipe(size=32, codes=16, codebook=1))
    assert image.encode([]) == [] and audio.decode([]) == []


def test_codebook_finds_clusters_and_revives_the_dead() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=draw) * 5
    z = centres.repeat_interleave(50, 0) + 0.01 * torch.randn(400, 4, generator=draw)
    book = Codebook(16, 4)
    book.start(z, 400, draw)
    assert (book(book.nearest(z)) - z).abs().max() < 0.1, "sixteen codes cover eight clusters"
    book.codes[:8] = 100.0  # so far off that nothing is ever nearest
    book.uses[:8] = 0
    before = book.codes[:8].clone()
    ids = book.follow(z, draw)
    assert not torch.isin(ids, torch.arange(8)).any()
    assert (book.codes[:8] != before).all() and book.codes.abs().max() < 50
    few = Codebook(16, 4)
    few.start(z[:3], 3, draw)
    assert torch.isfinite(few.codes).all()


def test_usage_of_known_codes() -> None:
    used, perplexity = usage([np.array([0, 1]), np.array([2, 3])], 8)
    assert used == 0.5 and perplexity == pytest.approx(4)
    assert usage([np.array([5, 5, 5])], 8) == (1 / 8, pytest.approx(1))


def test_a_quiet_area_keeps_one_code_and_a_clear_step_gets_its_own() -> None:
    """Three codes alike and one far away: a dither among the three is said as one, the far one is not lost."""
    book = Codebook(4, 1)
    book.codes.copy_(torch.tensor([[0.0], [0.1], [0.2], [5.0]]))
    book.error.fill_(0.01)
    z = torch.tensor([[0.0, 0.1, 0.02, 0.19], [0.1, 0.0, 5.0, 0.1]]).view(1, 2, 4, 1)
    assert book.nearest(z.view(-1, 1)).tolist() == [0, 1, 0, 2, 1, 0, 3, 1]
    assert book.steady(z, 4.0).flatten().tolist() == [0, 0, 0, 0, 0, 0, 3, 0]
    assert book.steady(z, 0.0).flatten().tolist() == [0, 1, 0, 2, 1, 0, 3, 1], "control: no slack, the nearest"
    assert book.steady(z[:, :1], 4.0).flatten().tolist() == [0, 0, 0, 0]
    assert book.steady(z[:, :1], 1.5).flatten().tolist() == [0, 0, 0, 2], "kept only within the slack"


def test_the_upper_neighbour_counts_and_two_alike_count_once() -> None:
    book = Codebook(3, 1)
    book.codes.copy_(torch.tensor([[0.0], [1.0], [3.0]]))
    book.error.fill_(1.0)
    column = torch.tensor([0.0, 0.8]).view(1, 2, 1, 1)
    assert book.steady(column, 1.0).flatten().tolist() == [0, 0]
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).view(1, 2, 2, 1)  # left and above both say 0, at a distance of 1
    assert book.steady(square, 0.9).flatten().tolist() == [0, 0, 0, 1]


def test_pictures_are_said_steadily_and_come_back_nearly_as_well(image_codec) -> None:
    codec, _ = image_codec
    new = pictures(30, seed=11)
    slack, codec.network.slack = codec.network.slack, 0.0
    nearest = codec.encode(new)
    codec.network.slack = slack
    steady = codec.encode(new)
    runs = lambda many: np.mean([(one.reshape(4, 4)[:, 1:] == one.reshape(4, 4)[:, :-1]).mean() for one in many])
    pairs = lambda many: zip(new, codec.decode(many), strict=True)
    error = lambda many: np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs(many)])
    assert slack > 0 and float(codec.network.codebook.error) > 0
    assert any((a != b).any() for a, b in zip(steady, nearest, strict=True)), "or this test shows nothing"
    assert runs(steady) > runs(nearest) and error(steady) < 1.3 * error(nearest)
