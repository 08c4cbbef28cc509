"""Original Whisper files, their vocabulary, Whisper's own mel, decoding and subtitles."""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.convert import whisper
from weft.convert.hf import save_hf
from weft.convert.load import read
from weft.convert.whisper import halves, load_whisper
from weft.core.stream import stream
from weft.errors import ConvertError, RecipeError
from weft.generate.beam import Beams
from weft.generate.text import Limits, lay_ids, write
from weft.generate.transcribe import TEMPERATURES, Heard, Segment, Transcriber, Transcript, clock, repetition
from weft.modalities.audio import RATE, mel_filters, whisper_mel
from weft.modalities.text import TextCodec

transformers = pytest.importorskip("transformers")


def original(path: Path, **changes: object) -> dict[str, torch.Tensor]:
    """A tiny model as OpenAI's code saves one: half precision, sinusoids in a buffer."""
    dims = {
        "n_mels": 6, "n_vocab": 60, "n_audio_ctx": 9, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 1,
        "n_text_ctx": 20, "n_text_state": 32, "n_text_head": 4, "n_text_layer": 1,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = (torch.randn(*shape, generator=generator) * 0.2).half()

    def block(side: str, *names: str) -> None:
        for name in names:
            for part in ("query", "key", "value", "out"):
                add(f"{side}.blocks.0.{name}.{part}.weight", 32, 32)
                if part != "key":
                    add(f"{side}.blocks.0.{name}.{part}.bias", 32)
            add(f"{side}.blocks.0.{name}_ln.weight", 32)
            add(f"{side}.blocks.0.{name}_ln.bias", 32)
        add(f"{side}.blocks.0.mlp.0.weight", 128, 32)
        add(f"{side}.blocks.0.mlp.0.bias", 128)
        add(f"{side}.blocks.0.mlp.2.weight", 32, 128)
        add(f"{side}.blocks.0.mlp.2.bias", 32)
        for norm in ("mlp_ln",):
            add(f"{side}.blocks.0.{norm}.weight", 32)
            add(f"{side}.blocks.0.{norm}.bias", 32)

    for name, size in (("conv1", 6), ("conv2", 32)):
        add(f"encoder.{name}.weight", 32, size, 3)
        add(f"encoder.{name}.bias", 32)
    block("encoder", "attn")
    block("decoder", "attn", "cross_attn")
    for name in ("encoder.ln_post", "decoder.ln"):
        add(f"{name}.weight", 32)
        add(f"{name}.bias", 32)
    add("decoder.token_embedding.weight", 60, 32)
    add("decoder.positional_embedding", 20, 32)
    config = transformers.WhisperConfig(d_model=32, max_source_positions=9, encoder_attention_heads=4)
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    state["encoder.positional_embedding"] = WhisperEncoder(config).embed_positions.weight.detach().half()
    torch.save({"dims": {**dims, **changes}, "model_state_dict": state}, path)
    return state


@torch.no_grad()
def test_an_original_file_is_the_reference_model(tmp_path: Path) -> None:
    original(tmp_path / "tiny.pt")
    imported = load_whisper(tmp_path / "tiny.pt")
    ours = imported.model()
    save_hf(ours, tmp_path / "hf", imported.raw)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    frames, ids = torch.randn(2, 6, 18), torch.randint(0, 60, (2, 5))
    wanted = theirs(input_features=frames, decoder_input_ids=ids).logits
    assert (ours(input_features=frames, decoder_input_ids=ids).logits - wanted).abs().max() < 1e-4
    assert read(tmp_path / "tiny.pt").config == imported.config


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(b"no zip at all")
    with pytest.raises(ConvertError, match="not a zip"):
        load_whisper(path)
    state = original(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvertError, match="cannot be read"):
        load_whisper(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ConvertError, match="larger than the file"):
        load_whisper(path)
    torch.save({"dims": {"n_mels": -1}, "model_state_dict": state}, path)
    with pytest.raises(ConvertError, match="n_vocab"):
        load_whisper(path)
    torch.save({"dims": print, "model_state_dict": state}, path)
    with pytest.raises(ConvertError, match="cannot be read"):
        load_whisper(path)
    original(path, n_text_layer=10**6)
    with pytest.raises(ConvertError, match="more layers"):
        load_whisper(path)


def generating() -> tuple[torch.nn.Module, object, torch.Tensor]:
    """A random Whisper that does not stop at once, ours and theirs, and its frames."""
    import tempfile

    from weft.convert.hf import load_hf

    config = transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=6, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=9,
        max_target_positions=30, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_hf(folder).model()
    return theirs, ours, torch.randn(2, 6, 18, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 3])
def test_what_is_generated_is_the_references(width: int) -> None:
    from tokenizers import Tokenizer, models

    theirs, ours, frames = generating()
    codec = TextCodec(Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0")))
    prompts = lay_ids([np.array([1]), np.array([1])])
    prompts.source = stream(ours.body, sounds=frames)[0]
    got = write(ours, codec, prompts, Limits(12, (2,)), Beams(width) if width > 1 else None)
    super_generate = transformers.GenerationMixin.generate  # Whisper's own wraps it in windows
    wanted = super_generate(
        theirs, input_features=frames, max_new_tokens=12, num_beams=width, do_sample=False,
        decoder_input_ids=torch.ones(2, 1, dtype=torch.long),
    )  # fmt: skip
    for row, one in zip(wanted.tolist(), got, strict=True):
        ids = row[1:]
        ids = ids[: ids.index(2) + 1] if 2 in ids else ids
        assert [int(i) for i in one.ids] == ids


def test_the_mel_is_the_references() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    extract = transformers.WhisperFeatureExtractor(feature_size=80)
    wanted = extract(wave, sampling_rate=RATE, return_tensors="np").input_features[0]  # (80,3000)
    got = whisper_mel(wave, 80, pad=30 * RATE - len(wave)).T
    assert np.abs(got - wanted).max() < 1e-4


def test_the_filters_are_the_originals() -> None:
    try:
        path = Path(str(importlib.metadata.distribution("openai-whisper").locate_file("whisper/assets")))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package openai-whisper is not installed")
    with np.load(path / "mel_filters.npz", allow_pickle=False) as filters:
        for mels in (80, 128):
            assert np.abs(mel_filters(mels).numpy() - filters[f"mel_{mels}"]).max() < 1e-6


def test_merges_come_back_from_ranks() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}
    assert halves(b"abc", 4, ranks) == (b"ab", b"c")
    with pytest.raises(ConvertError, match="damaged"):
        halves(b"cba", 5, ranks)


def test_the_vocabulary_is_gpt2s_and_whispers() -> None:
    if whisper.vocabulary_file(51864) is None:
        with pytest.raises(ConvertError, match="pip install --no-deps openai-whisper"):
            whisper.vocabulary(51864)
        pytest.skip("the package openai-whisper is not installed")
    english = whisper.vocabulary(51864)
    assert english.encode("Hello world, naïve 42").ids == [15496, 995, 11, 41492, 5433]
    assert english.token_to_id("<|notimestamps|>") == 50362 and english.token_to_id("<|0.00|>") == 50363
    codec = TextCodec(english)
    assert 50256 not in codec.encode("<|endoftext|>"), "text never becomes a control token"


def test_subtitles() -> None:
    heard = Transcript((Segment(0.0, 2.5, "one"), Segment(61.25, 3600.0, "two")))
    assert heard.text == "one two" and clock(3661.5) == "01:01:01.500"
    assert heard.srt().splitlines()[:3] == ["1", "00:00:00,000 --> 00:00:02,500", "one"]
    assert heard.vtt().splitlines()[5:7] == ["00:01:01.250 --> 01:00:00.000", "two"]
    assert heard.as_dict()["segments"][1] == {"start": 61.25, "end": 3600.0, "text": "two"}


class TestRules:
    """Segments from tokens, and which tokens may come next."""

    @pytest.fixture
    def hear(self, tmp_path: Path) -> Transcriber:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        words = ["<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"]
        words += [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
        tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
        from weft import families
        from weft.model import build

        config = families.make(
            "whisper", vocab=tokenizer.get_vocab_size(), length=40, dim=16, depth=1, heads=2, stems={"audio": 12},
            options={"heard": True},
        )  # fmt: skip
        return Transcriber(build(config, seed=0), TextCodec(tokenizer), beams=2)

    def test_windows(self, hear: Transcriber) -> None:
        at = lambda seconds: hear.control.times + round(seconds / 0.02)
        word = lambda text: hear.codec.encode(text).tolist()
        ids = [at(0), *word(" one"), at(2), at(2.5), *word(" two"), at(4), at(4)]
        found, moved = hear._segments(ids, 100, 3000)
        assert [(s.start, s.end, s.text) for s in found] == [(1.0, 3.0, "one"), (3.5, 5.0, "two")] and moved == 400
        found, moved = hear._segments(ids[:-1], 100, 3000)
        assert len(found) == 2 and moved == 3000, "one time at the end: nothing is said after it"
        found, moved = hear._segments([at(0), *word(" one")], 0, 900)
        assert (found[0].end, moved) == (9.0, 900)

    def test_times_come_in_pairs_and_never_fall(self, hear: Transcriber) -> None:
        times, size = hear.control.times, hear.model.classes()

        def allowed(new: list[int]) -> torch.Tensor:
            logits = torch.zeros(size)
            logits[:times] = 20.0  # text is likelier than any time
            hear._rule(logits, new)
            return logits > -torch.inf

        first = allowed([])
        assert not first[:times].any() and first[times : times + 51].all() and not first[times + 51 :].any()
        assert not allowed([times])[times:].any(), "after the first time: text"
        assert not allowed([times, 5, times + 9])[: hear.control.end].any(), "after a second one: its twin, or the end"
        later = allowed([times, 5, times + 9, times + 9, 7])
        assert not later[times : times + 10].any() and later[times + 10 :].all()

    @torch.no_grad()
    def test_a_sound_of_several_windows(self, hear: Transcriber) -> None:
        wave = np.random.default_rng(0).normal(0, 0.1, 40 * RATE).astype(np.float32)
        heard = hear((wave, RATE))
        assert all(0 <= s.start <= s.end <= 60 for s in heard.segments)
        assert hear((wave, RATE)) == heard, "the same every time"

    def test_what_loops_or_is_unsure_is_tried_again_hotter(self, hear: Transcriber, monkeypatch) -> None:
        loop, plain = hear.codec.encode("and so on " * 20).tolist(), hear.codec.encode("a fox runs").tolist()
        asked: list[float] = []

        def window(*answers: Heard) -> Heard:
            asked.clear()
            monkeypatch.setattr(hear, "_try", lambda source, begin, t: asked.append(t) or answers[len(asked) - 1])
            return hear._window(torch.zeros(10, 6), [hear.control.start])

        good, looped = Heard(plain, -0.3, 0.0), Heard(loop, -0.1, 0.0)
        unsure, silent = Heard(plain, -1.4, 0.0), Heard(plain, -1.4, 0.9)
        assert window(good) is good and asked == [0.0]
        assert window(looped, unsure, good) is good and asked == [0.0, 0.2, 0.4]
        assert window(silent) is silent and asked == [0.0], "silence is an answer"
        assert window(*[looped] * 6) is looped and asked == list(TEMPERATURES), "the last one stands"
        assert repetition("and so on " * 20) > 2.4 > repetition("a fox runs") and repetition("") == 0

    @torch.no_grad()
    def test_draws_keep_the_rules_and_repeat(self, hear: Transcriber) -> None:
        mel = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (300, 6)).astype(np.float32))
        source = hear._source(mel)
        found = [hear._try(source, [hear.control.start], t) for t in (0.5, 0.5, 1.0)]
        assert found[0] == found[1] != found[2], "seeded by the temperature"
        for one in found:
            told = [i for i in one.ids if i >= hear.control.times]
            assert one.ids[0] >= hear.control.times and told == sorted(told) and one.likely < 0


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from weft.cli import write_down
    from weft.errors import ArrowError

    for arrow, words, format, error in (
        ("audio, text -> text", ["a.wav"], "text", ArrowError),
        ("audio -> text", [], "text", RecipeError),
        ("audio -> text", ["a.wav"], "doc", RecipeError),
        ("audio -> text", ["a.wav", "b.wav"], "srt", RecipeError),
        ("audio -> text", ["--sound", "a.wav"], "text", RecipeError),
    ):
        with pytest.raises(error):
            write_down(tmp_path, arrow, words, format, None)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConvertError, match="51864"):
        whisper.vocabulary(60)
