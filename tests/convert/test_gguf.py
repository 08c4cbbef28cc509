"""GGUF: numbers to the last bit, hostile files refused at no cost, and models in and out."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf as theirs
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize, quantize
from tokenizers.implementations import ByteLevelBPETokenizer

import weft
from weft.convert import tokenizer
from weft.convert.gguf import write
from weft.convert.gguf.llama import load_gguf, straight, turned
from weft.convert.gguf.read import read
from weft.convert.gguf.types import KINDS, NAMED, dequantise, quantise
from weft.convert.text import of_run
from weft.errors import ConvertError

# ------------------------------------------------------------------------------------------------ numbers


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_numbers_as_the_reference_reads_them(name: str) -> None:
    kind = getattr(theirs.GGMLQuantizationType, name)
    raw = quantize(floats(6, 320), kind)
    wanted = dequantize(raw, kind).reshape(-1)
    found = dequantise(raw.view(np.uint8).reshape(-1), NAMED[name])
    assert found.dtype == np.float32 and np.array_equal(found, wanted)


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0"])
def test_numbers_as_the_reference_writes_them(name: str) -> None:
    values = floats(6, 320)
    values[0, :32] = 0
    kind = getattr(theirs.GGMLQuantizationType, name)
    assert np.array_equal(quantise(values, NAMED[name]), quantize(values, kind).view(np.uint8).reshape(-1))


def slow_q4_k(block: bytes) -> list[float]:
    """ggml's dequantize_row_q4_K and get_scale_min_k4, number by number."""
    d, m = np.frombuffer(block[:4], "<f2").astype(np.float32)
    scales, qs, out = block[4:16], block[16:], []
    for group in range(8):
        if group < 4:
            scale, offset = scales[group] & 63, scales[group + 4] & 63
        else:
            scale = (scales[group + 4] & 0xF) | ((scales[group - 4] >> 6) << 4)
            offset = (scales[group + 4] >> 4) | ((scales[group] >> 6) << 4)
        for place in range(32):
            byte = qs[group // 2 * 32 + place]
            out.append(
                d * np.float32(scale) * np.float32(byte >> 4 if group % 2 else byte & 0xF) - m * np.float32(offset)
            )
    return out


def slow_q6_k(block: bytes) -> list[float]:
    """ggml's dequantize_row_q6_K, number by number."""
    ql, qh, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8)
    d = np.frombuffer(block[208:], "<f2").astype(np.float32)[0]
    out = np.zeros(256, np.float32)
    for half in range(2):
        for place in range(32):
            low, high, side = ql[half * 64 :], qh[half * 32 + place], place // 16
            four = [
                (low[place] & 0xF) | ((high & 3) << 4),
                (low[place + 32] & 0xF) | (((high >> 2) & 3) << 4),
                (low[place] >> 4) | (((high >> 4) & 3) << 4),
                (low[place + 32] >> 4) | (((high >> 6) & 3) << 4),
            ]
            for part, q in enumerate(four):
                scale = d * np.float32(scales[half * 8 + side + 2 * part])
                out[half * 128 + part * 32 + place] = scale * np.float32(q - 32)
    return out.tolist()


@pytest.mark.parametrize(("name", "slow"), [("Q4_K", slow_q4_k), ("Q6_K", slow_q6_k)])
def test_numbers_of_larger_blocks(name: str, slow) -> None:
    kind, random = NAMED[name], np.random.default_rng(1)
    blocks = random.integers(0, 256, (5, kind.bytes), np.uint8)
    half = random.standard_normal((5, 2)).astype("<f2").view(np.uint8)  # scales that are numbers
    at = slice(0, 4) if name == "Q4_K" else slice(208, 210)
    blocks[:, at] = half[:, : at.stop - at.start]
    wanted = [number for block in blocks for number in slow(block.tobytes())]
    assert np.array_equal(dequantise(blocks.reshape(-1), kind), np.array(wanted, np.float32))


def test_many_blocks_are_turned_in_pieces() -> None:
    values = floats(1 << 13, 320)
    raw = quantise(values, NAMED["Q8_0"])
    one = dequantise(raw[: 34 * 7], NAMED["Q8_0"])
    assert np.array_equal(dequantise(raw, NAMED["Q8_0"])[: len(one)], one)


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with every type of entry and two tensors, by the reference's writer."""
    path = tmp_path / "small.gguf"
    writer = theirs.GGUFWriter(str(path), "llama")
    writer.add_string("a.text", "weft 织")
    writer.add_bool("a.bool", True)
    writer.add_float32("a.float", 0.5)
    writer.add_int32("a.int", -7)
    writer.add_uint64("a.long", 1 << 40)
    writer.add_array("a.texts", ["x", "", "yz"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("one", floats(4, 32))
    writer.add_tensor(
        "two", quantize(floats(3, 64), theirs.GGMLQuantizationType.Q8_0), raw_dtype=theirs.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_of_the_reference(small: Path) -> None:
    file = read(small)
    m = file.metadata
    assert (m["a.text"], m["a.bool"], m["a.float"], m["a.int"], m["a.long"]) == ("weft 织", True, 0.5, -7, 1 << 40)
    assert m["a.texts"] == ["x", "", "yz"] and m["a.numbers"].tolist() == [1, 2, 3]
    assert torch.equal(file.tensor("one"), torch.from_numpy(floats(4, 32)))
    assert file.tensor("two").shape == (3, 64) and file.kinds == {"F32": 1, "Q8_0": 1}
    with pytest.raises(ConvertError, match="no tensor 'three'"):
        file.tensor("three")


def header(tensors: int, entries: int, *rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(rest)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 60
HOSTILE = {
    "short": (b"GGUF", "24 or more"),
    "magic": (b"GGML" + bytes(40), "not a GGUF file"),
    "version": (header(0, 0, version=1), "version 1"),
    "big-endian": (header(0, 0, version=3 << 24), "big-endian"),
    "entries": (header(0, HUGE, bytes(25)), "entries"),
    "tensors": (header(HUGE, 0, bytes(25)), "tensors"),
    "long key": (header(0, 1, struct.pack("<Q", HUGE), bytes(17)), "bytes long"),
    "long text": (header(0, 1, text(b"k"), struct.pack("<IQ", 8, HUGE)), "would take"),
    "long array": (header(0, 1, text(b"k"), struct.pack("<IIQ", 9, 4, HUGE)), "would take"),
    "many texts": (header(0, 1, text(b"k"), struct.pack("<IIQ", 9, 8, HUGE)), "would take"),
    "array of arrays": (header(0, 1, text(b"k"), struct.pack("<IIQ", 9, 9, 1), bytes(20)), "array of type 9"),
    "type of an entry": (header(0, 1, text(b"k"), struct.pack("<I", 77), bytes(9)), "type 77"),
    "not UTF-8": (header(0, 1, text(b"\xff\xfe"), struct.pack("<II", 4, 1)), "UTF-8"),
    "twice": (header(0, 2, *[text(b"k") + struct.pack("<II", 4, 1)] * 2), "twice"),
    "axes": (header(1, 0, text(b"t"), struct.pack("<I", 9), bytes(90)), "9 axes"),
    "unknown type": (header(1, 0, info(b"t", (32,), 11, 0), bytes(400)), "type Q3_K, which weft does not read"),
    "strange type": (header(1, 0, info(b"t", (32,), 999, 0), bytes(400)), "number 999"),
    "empty": (header(1, 0, info(b"t", (0,), 0, 0), bytes(400)), "shape"),
    "half a block": (header(1, 0, info(b"t", (33,), 8, 0), bytes(400)), "multiple"),
    "overflow": (header(1, 0, info(b"t", (1 << 32, 1 << 32), 0, 0), bytes(400)), "past the file's"),
    "past the end": (header(1, 0, info(b"t", (1024,), 0, 0), bytes(400)), "past the file's"),
    "far offset": (header(1, 0, info(b"t", (8,), 0, 1 << 62), bytes(400)), "past the file's"),
    "off the alignment": (header(1, 0, info(b"t", (8,), 0, 4), bytes(400)), "alignment"),
    "overlap": (header(2, 0, info(b"t", (16,), 0, 0), info(b"u", (16,), 0, 32), bytes(400)), "overlap"),
    "one name": (header(2, 0, info(b"t", (8,), 0, 0), info(b"t", (8,), 0, 32), bytes(400)), "twice"),
    "alignment": (header(0, 1, text(b"general.alignment"), struct.pack("<II", 4, 7)), "power of two"),
    "long name": (header(1, 0, info(b"t" * 70, (8,), 0, 0), bytes(400)), "64 at most"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_no_cost(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    read_once(path)
    tracemalloc.start()
    with pytest.raises(ConvertError, match=message):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000, f"{peak:,} bytes for a file of {len(content)}"


def read_once(path: Path) -> None:
    """What a first call imports is no cost of the file."""
    with pytest.raises(ConvertError):
        read(path)


def test_a_file_cut_off_anywhere_is_refused(small: Path) -> None:
    whole = small.read_bytes()
    for length in [*range(0, 600, 7), len(whole) - 40]:
        small.write_bytes(whole[:length])
        with pytest.raises(ConvertError):
            read(small)


# ------------------------------------------------------------------------------------------------ models


def test_rows_are_turned_and_back() -> None:
    rows = torch.arange(24.0)[:, None].repeat(1, 3)
    assert torch.equal(straight(turned(rows, 2), 2), rows) and not torch.equal(turned(rows, 2), rows)


MODELS = {
    "llama": (transformers.LlamaConfig, {}),
    "llama3": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    ),
    "tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        ["a small text of words, and 中文"] * 4, 300, special_tokens=["<|end|>"], show_progress=False
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": "<|end|>", "chat_template": "{{ messages[0].content }}"}'
    )
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(name: str, words: Path, tmp_path: Path) -> None:
    kind, options = MODELS[name]
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
             "tie_word_embeddings": False}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**{**sizes, **options})).eval()
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    for path in words.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run = weft.import_model(folder, tmp_path / "run")
    path = weft.export(run, tmp_path / "model.gguf", to="gguf-f32")
    back = load_gguf(path)
    mine = run.model()
    for key, tensor in mine.state_dict().items():
        if key in back.state:
            assert torch.equal(back.state[key], tensor), key
    row = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = model(row).logits, back.model()(row).logits
    assert (wanted - found).abs().max() < 1e-4
    saved, before = tokenizer.of_gguf(read(path)), of_run(run)[0]
    assert saved.codec.encode("a text 中文 <|end|>").tolist() == before.codec.encode("a text 中文 <|end|>").tolist()
    assert saved.ends == before.ends and saved.template == before.template
    seen = {tensor.name: tensor for tensor in theirs.GGUFReader(path).tensors}
    assert set(seen) == set(read(path).infos), "the reference reads it"
    assert np.array_equal(seen["blk.0.ffn_up.weight"].data, model.state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_smaller_numbers_are_near(words: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                      num_attention_heads=4, num_key_value_heads=4)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    for path in words.iterdir():
        (tmp_path / "hf" / path.name).write_bytes(path.read_bytes())
    run = weft.import_model(tmp_path / "hf", tmp_path / "run")
    for to, share in (("gguf", 1e-3), ("gguf-q8_0", 0.01)):
        path = weft.export(run, tmp_path / to, to=to)
        found, wanted = load_gguf(path).state, run.model().state_dict()
        for key in found:
            assert (found[key] - wanted[key]).abs().max() <= share * wanted[key].abs().max(), key
    with pytest.raises(ConvertError, match="there already"):
        weft.export(run, tmp_path / "gguf", to="gguf")


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write.write(path, {"general.architecture": "mamba"}, {"token_embd.weight": (torch.ones(2, 4), KINDS[0])})
    with pytest.raises(ConvertError, match="'mamba' is not known"):
        weft.load(path)
