"""Model directories of the hub's form: round trips through files, and every way that a file can lie."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from typer.testing import CliRunner

import weft
from weft import families
from weft.cli import app
from weft.convert.hf import load_hf, save_hf
from weft.convert.layouts import find
from weft.convert.transfer import keep
from weft.core.config import ModelConfig
from weft.core.view import Tokens
from weft.errors import ConvertError, RunError
from weft.model import Model, build

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOWER = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 24}  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 60, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                            "original_max_position_embeddings": 8}}  # fmt: skip
DIRECTORIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt2 body": ("GPT2Model", "GPT2Config", GPT),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TOWER, **YARN, "num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**TOWER, "num_key_value_heads": 2, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**TOWER, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**TOWER, "num_key_value_heads": 2, "head_dim": 12}),
    "bert": ("BertForMaskedLM", "BertConfig", TOWER),
    "bert body": ("BertModel", "BertConfig", TOWER),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**TOWER, "num_labels": 5, "pad_token_id": 1}),
    "distilbert": ("DistilBertForTokenClassification", "DistilBertConfig",
                   {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "num_labels": 3}),
    "electra": ("ElectraForPreTraining", "ElectraConfig", {**TOWER, "embedding_size": 16}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5 1.1": ("T5ForConditionalGeneration", "T5Config",
               {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}  # fmt: skip


def ids(*shape: int) -> Tensor:
    return torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(0))


def make(name: str) -> torch.nn.Module:
    architecture, config, fields = DIRECTORIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(getattr(transformers, config)(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if name == "t5 1.1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 32))
    return model.eval()


@torch.no_grad()
def answer(model: torch.nn.Module) -> Tensor:
    """Logits of one row, whoever's the model is."""
    more = (
        {"decoder_input_ids": ids(1, 5)} if "T5" in type(model).__name__ or kind_of(model) == "encoder-decoder" else {}
    )
    out = model(input_ids=ids(1, 12), **more)
    found = getattr(out, "logits", None)
    found = getattr(out, "hidden", getattr(out, "last_hidden_state", None)) if found is None else found
    return found[..., 0] if found.shape[-1] == 1 else found


def kind_of(model: torch.nn.Module) -> str:
    return model.kind if isinstance(model, Model) else ""


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    make("gpt2").save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", DIRECTORIES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB" if name in ("llama", "bert", "t5 1.1") else "5GB")
    read = load_hf(tmp_path / "theirs")
    mine = read.model()
    wanted = answer(theirs)
    assert torch.allclose(answer(mine), wanted, atol=1e-5)
    save_hf(mine, tmp_path / "mine", read.raw, shard_bytes=30_000 if name in ("gpt2", "qwen3") else 10**9)
    sharded = (tmp_path / "mine" / "model.safetensors.index.json").is_file()
    assert sharded == (name in ("gpt2", "qwen3"))
    again = type(theirs).from_pretrained(tmp_path / "mine").eval()
    assert torch.allclose(answer(again), wanted, atol=1e-6)
    kept, written = theirs.state_dict(), again.state_dict()
    assert kept.keys() == written.keys() and all(torch.equal(kept[n], written[n]) for n in kept)
    assert torch.equal(answer(load_hf(tmp_path / "mine").model()), answer(mine))
    before, after = config_of(tmp_path / "theirs"), config_of(tmp_path / "mine")
    changed = {n for n in before if n in after and before[n] != after[n]}
    assert changed <= {"tie_word_embeddings"}, changed


MADE = {
    "gpt": ("GPT2LMHeadModel", {}),
    "llama": ("LlamaForCausalLM", {"options": {"kv_heads": 2, "stretch": 8.0}}),
    "bert": ("BertForMaskedLM", {}),
    "bert labels": ("BertForSequenceClassification", {"labels": {"label:mood.of": 3}}),
    "t5": ("T5ForConditionalGeneration", {}),
    "llama mistral": ("MistralForCausalLM", {"options": {"window": 5, "kv_heads": 2}}),
    "llama qwen2": ("Qwen2ForCausalLM", {"options": {"biases": "qkv"}}),
    "llama qwen3": ("Qwen3ForCausalLM", {"options": {"qk_norm": True, "head_dim": 12}}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_model_made_here_is_read_there(name: str, tmp_path: Path) -> None:
    architecture, more = MADE[name]
    mine = build(families.make(name.split()[0], vocab=60, length=24, dim=32, depth=2, heads=4, **more), seed=0).eval()
    save_hf(mine, tmp_path / "out")
    assert config_of(tmp_path / "out")["architectures"] == [architecture]
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert torch.allclose(answer(theirs), answer(mine), atol=1e-5)


def test_what_a_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    make_one = lambda name, **more: build(families.make(name, vocab=60, length=24, dim=32, depth=1, heads=2, **more))
    with pytest.raises(ConvertError, match="No other library has models of the family 'weft'"):
        save_hf(make_one("weft"), tmp_path / "out")
    with pytest.raises(ConvertError, match=r"cannot say all of this model: topology.input.stems.image"):
        save_hf(make_one("gpt", stems={"image": 12}), tmp_path / "out")
    with pytest.raises(ConvertError, match="No architecture has these heads together: mood, pooler"):
        save_hf(
            make_one("bert", labels={"mood": 2}, language=True, options={"pretraining": "pooler"}), tmp_path / "out"
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").write_text("mine")
    with pytest.raises(ConvertError, match="not empty"):
        save_hf(make_one("gpt"), tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_half_precision_is_read_wide_and_can_be_written_narrow(tmp_path: Path) -> None:
    theirs = make("llama").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    read = load_hf(tmp_path / "theirs")
    assert {t.dtype for t in read.state.values()} == {torch.float32}
    save_hf(read.model(), tmp_path / "mine", read.raw, dtype=torch.bfloat16)
    assert config_of(tmp_path / "mine")["dtype"] == "bfloat16"
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("theirs", "mine"))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---------------------------------------------------------------------------------------------------- names


def test_tensors_that_do_not_fit_are_named(gpt2: Path) -> None:
    change_tensors(gpt2, lambda t: t.update({"transformer.h.1.extra": torch.zeros(3)}))
    with pytest.raises(ConvertError, match=r"surplus: transformer\.h\.1\.extra"):
        load_hf(gpt2)
    change_tensors(gpt2, lambda t: (t.pop("transformer.h.1.extra"), t.pop("transformer.h.0.ln_1.bias")))
    with pytest.raises(ConvertError, match=r"missing: transformer\.h\.0\.ln_1\.bias"):
        load_hf(gpt2)
    change_tensors(gpt2, lambda t: t.update({"transformer.h.0.ln_1.bias": torch.zeros(31)}))
    with pytest.raises(
        ConvertError, match=r"of another shape: transformer\.h\.0\.ln_1\.bias \(31,\) for body.* \(32,\)"
    ):
        load_hf(gpt2)


def test_pieces_of_another_size_are_named(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    name = "model.layers.0.self_attn.k_proj.weight"
    change_tensors(tmp_path, lambda t: t.update({name: t[name][:8].clone()}))
    with pytest.raises(ConvertError, match=r"q_proj\.weight \(32, 32\) \+ .*k_proj\.weight \(8, 32\)"):
        load_hf(tmp_path)


def test_a_tied_head_of_other_numbers_is_refused_and_an_equal_one_read(gpt2: Path) -> None:
    change_tensors(gpt2, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    load_hf(gpt2)
    change_tensors(gpt2, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ConvertError, match=r"lm_head.weight is tied .* by the config, but its numbers differ"):
        load_hf(gpt2)


def test_older_files_are_read(gpt2: Path, tmp_path: Path) -> None:
    """GPT-2's first files lack the prefix and carry masks; BERT's have gamma and beta, and heads of the pretraining."""

    def as_first(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)

    wanted = answer(load_hf(gpt2).model())
    change_tensors(gpt2, as_first)
    assert torch.equal(answer(load_hf(gpt2).model()), wanted)

    theirs = transformers.BertForPreTraining(transformers.BertConfig(**TOWER)).eval()
    theirs.save_pretrained(tmp_path / "bert")
    change_config(tmp_path / "bert", architectures=["BertForMaskedLM"])

    def as_published(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]

    change_tensors(tmp_path / "bert", as_published)
    with torch.no_grad():
        wanted = theirs(input_ids=ids(1, 12)).prediction_logits
    assert torch.allclose(answer(load_hf(tmp_path / "bert").model()), wanted, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- configs that lie


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHead"]}, r"'GPT2LMHead' is not known. Did you mean 'GPT2LMHeadModel'"),
        ({"architectures": None}, "names no architecture"),
        ({"n_layer": 10**6}, "has 1,000,000 layers, but the files hold 28 tensors"),
        ({"n_embd": -4}, "n_embd of the config.json is -4; expected a positive whole number"),
        ({"n_head": "4"}, "n_head of the config.json is '4'"),
        ({"vocab_size": True}, "vocab_size of the config.json is True"),
        ({"activation_function": "mish"}, "'mish'; weft has gelu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx of the config.json is True"),
        ({"vocab_size": 10**9}, r"of another shape: transformer.wte.weight \(60, 32\)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(gpt2: Path, fields: dict[str, Any], message: str) -> None:
    change_config(gpt2, **fields)
    with pytest.raises(ConvertError, match=message):
        load_hf(gpt2)


def test_choices_that_weft_has_not_are_named(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    for parameters, message in (
        ({"rope_type": "longrope", "rope_theta": 1e4}, "rope_type of the config.json is 'longrope'; weft has default"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "factor of the config.json is None"),
        ([1], "a table was expected"),
    ):
        change_config(tmp_path, rope_parameters=parameters)
        with pytest.raises(ConvertError, match=message):
            load_hf(tmp_path)
    make("qwen2").save_pretrained(tmp_path / "qwen")
    change_config(tmp_path / "qwen", use_sliding_window=True, sliding_window=4, max_window_layers=1, layer_types=None)
    with pytest.raises(ConvertError, match="Only some layers of this model have a sliding window"):
        load_hf(tmp_path / "qwen")


ODD = (None, True, -1, 0, 7, "x", [], [1], {}, {"x": 1}, 1e308, float("nan"), float("inf"), 2**70)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_whatever_a_config_holds_it_is_read_or_refused(name: str) -> None:
    """Every field, and every field of its rotation, with every odd value: a tree, or one message."""
    architecture, config, fields = DIRECTORIES[name]
    raw = getattr(transformers, config)(**fields).to_dict() | {"architectures": [architecture]}
    layout = find(raw)
    inner = raw.get("rope_parameters") or {}
    changes = [{key: value} for key in raw for value in ODD if key != "architectures"]
    changes += [{"rope_parameters": {**inner, key: value}} for key in inner for value in ODD]
    read = 0
    for change in changes:
        try:
            config_tree = layout.read({**raw, **change})
        except ConvertError:
            continue
        read += 1
        assert isinstance(config_tree, ModelConfig), change
    assert read > len(changes) // 3


def test_older_rope_fields_mean_the_same(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    wanted = answer(load_hf(tmp_path).model())
    said = config_of(tmp_path)["rope_parameters"]
    old = {"type": said["rope_type"], **{k: v for k, v in said.items() if k not in ("rope_type", "rope_theta")}}
    change_config(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=old)
    assert torch.equal(answer(load_hf(tmp_path).model()), wanted)


def test_nothing_in_a_directory_is_run(gpt2: Path) -> None:
    (gpt2 / "modeling_gpt2.py").write_text("raise SystemExit('it was run')")
    (gpt2 / "__init__.py").write_text("raise SystemExit('it was run')")
    change_config(gpt2, auto_map={"AutoModelForCausalLM": "modeling_gpt2.GPT2LMHeadModel"})
    before = set(sys.modules)
    load_hf(gpt2)
    assert not [name for name in set(sys.modules) - before if "modeling_gpt2" in name]


# ---------------------------------------------------------------------------------------------------- files that lie


def rewrite(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def one(**fields: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (one(), b"", None, "its tensors take 8 bytes, but 0 are there"),
        (one(), b"\0" * 9, None, "its tensors take 8 bytes, but 9 are there"),
        (one(), b"\0" * 8, 10**12, "its header claims 1,000,000,000,000 bytes"),
        (one(shape=[2**40, 2**20]), b"\0" * 8, None, "but its offsets give it 8"),
        (one(shape=[3]), b"\0" * 8, None, "takes 12 bytes, but its offsets give it 8"),
        (one(shape=[-2]), b"\0" * 8, None, "dtype, shape and data_offsets were expected"),
        (one(shape=[True]), b"\0" * 8, None, "dtype, shape and data_offsets were expected"),
        (one(data_offsets=[8, 0]), b"\0" * 8, None, "offsets give it -8"),
        (one(data_offsets=[8, 16]), b"\0" * 16, None, "starts at byte 8, but the one before ends at 0"),
        (one(dtype="F33"), b"\0" * 8, None, "dtype F33; known are F64"),
        ({**one(), "b": one()["a"]}, b"\0" * 8, None, "b starts at byte 0, but the one before ends at 8"),
        (b'{"a": {}, "a": {}}', b"", None, "a name stands twice"),
        (b"[" * 100_000, b"", None, "is no JSON"),
        (b"\xff\xfe", b"", None, "is no JSON"),
        ([], b"", None, "no table of tensors"),
        ({"a": 3}, b"", None, "is described by 3"),
    ],
)
def test_a_header_that_lies_is_refused(gpt2: Path, header: Any, data: bytes, length: int | None, message: str) -> None:
    rewrite(gpt2 / "model.safetensors", header, data, length)
    with pytest.raises(ConvertError, match=message):
        load_hf(gpt2)


def test_a_file_cut_off_is_refused(gpt2: Path) -> None:
    whole = (gpt2 / "model.safetensors").read_bytes()
    for length in (0, 5, 8, 100, len(whole) - 1):
        (gpt2 / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ConvertError):
            load_hf(gpt2)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    make("gpt2").save_pretrained(tmp_path / "m", max_shard_size="40KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    name, file = next(iter(good["weight_map"].items()))
    for changed, message in (
        ({**good["weight_map"], name: "../elsewhere.safetensors"}, "which is no file in"),
        ({**good["weight_map"], name: "gone.safetensors"}, "which is no file in"),
        ({n: f for n, f in good["weight_map"].items() if n != name}, f"do not hold the same tensors: {name}"),
        ({**good["weight_map"], "more": file}, "do not hold the same tensors: more"),
        (None, "no weight_map that can be read"),
    ):
        index.write_text(json.dumps({**good, "weight_map": changed}))
        with pytest.raises(ConvertError, match=message):
            load_hf(tmp_path / "m")


def test_a_directory_without_weights_says_what_was_expected(gpt2: Path, tmp_path: Path) -> None:
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ConvertError, match=r"00002.bin cannot be read: convert it to safetensors first"):
        load_hf(gpt2)
    with pytest.raises(ConvertError, match=r"holds no config.json"):
        load_hf(tmp_path)
    (gpt2 / "config.json").write_text("[1]")
    with pytest.raises(ConvertError, match="a JSON object was expected"):
        load_hf(gpt2)


class Evil:
    """What pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("it was run",)


def test_pickled_weights_are_read_and_hostile_ones_refused(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = answer(load_hf(gpt2).model())
    state = load_file(gpt2 / "model.safetensors")
    (gpt2 / "model.safetensors").unlink()
    torch.save(state, gpt2 / "pytorch_model.bin")
    assert torch.equal(answer(load_hf(gpt2).model()), wanted)
    wide = torch.zeros(1).expand(1 << 40)
    for content, message in (
        ({**state, "x": Evil()}, "cannot be read as torch's weights"),
        ({**state, "x": 3}, "holds other things than named tensors"),
        ([state], "holds other things than named tensors"),
        ({**state, "x": wide}, r"x \(1099511627776,\) is more than the bytes behind it"),
    ):
        torch.save(content, gpt2 / "pytorch_model.bin")
        with pytest.raises(ConvertError, match=message):
            load_hf(gpt2)
    with zipfile.ZipFile(gpt2 / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10**7)
    with pytest.raises(ConvertError, match="made to fill memory"):
        load_hf(gpt2)
    (gpt2 / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ConvertError, match="cannot be read as torch's weights"):
        load_hf(gpt2)
    assert "it was run" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- import and export


def words(count: int) -> Tokenizer:
    return Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))


def test_a_directory_becomes_a_run_and_a_directory_again(tmp_path: Path) -> None:
    """A sentence encoder's folder, with what sentence-transformers keeps beside the weights."""
    source = tmp_path / "minilm"
    theirs = make("bert body")
    theirs.save_pretrained(source)
    words(60).save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}", "eos_token": "w2"}))
    (source / "modules.json").write_text('[{"idx": 0}]')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    done = CliRunner().invoke(app, ["import", str(source), "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"run": str(tmp_path / "run")}
    told = json.loads((tmp_path / "run" / "source.json").read_text())
    assert told["architecture"] == "BertModel" and told["chat_template"] == "{{ messages }}"
    assert told["special"]["pad"] == [0] and told["config"] == config_of(source)
    run = weft.run.Run.open(tmp_path / "run")
    assert run.recipe.model.source == str(source) and run.recipe.model.family == "bert" and run.recipe.data == ""
    assert (tmp_path / "run" / "tokenizer.json").is_file()
    assert torch.allclose(answer(weft.load(tmp_path / "run")), answer(theirs), atol=1e-5)
    assert torch.equal(answer(weft.load(source)), answer(weft.load(tmp_path / "run")))
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "back"), "--to", "hf"])
    assert done.exit_code == 0, done.output
    again = transformers.BertModel.from_pretrained(tmp_path / "back").eval()
    assert torch.allclose(answer(again), answer(theirs), atol=1e-6)
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name


def test_what_a_source_says_elsewhere_is_written_where_a_directory_says_it(gpt2: Path, tmp_path: Path) -> None:
    """A GGUF has its tokenizer, template and special tokens in its header."""
    tokenizer = words(60)
    tokenizer.add_special_tokens(["w2"])
    told = {"chat_template": "{{ messages }}", "special": {"bos": [1], "eos": [2, 5]}, "tokenizer": tokenizer}
    run = keep(replace(load_hf(gpt2), files={}, **told), tmp_path / "run", "model.gguf")
    out = weft.export(run, tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    named = json.loads((out / "tokenizer_config.json").read_text())
    assert named["eos_token"] == "w2" and "bos_token" not in named, "1 is a plain word of this tokenizer"
    assert json.loads((out / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    again = load_hf(out)
    assert again.chat_template == "{{ messages }}" and again.special["eos"] == [2, 5]
    assert transformers.AutoTokenizer.from_pretrained(out).eos_token == "w2"


def test_what_cannot_be_imported_or_exported_is_said(gpt2: Path, tmp_path: Path) -> None:
    words(61).save(str(gpt2 / "tokenizer.json"))
    with pytest.raises(ConvertError, match="gives ids up to 60, but the model's table has 60 rows"):
        weft.import_model(gpt2, tmp_path / "run")
    (gpt2 / "tokenizer.json").unlink()
    weft.import_model(gpt2, tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        weft.import_model(gpt2, tmp_path / "run")
    with pytest.raises(ConvertError, match=r"cannot export to 'hff'. Did you mean 'hf'"):
        weft.export(tmp_path / "run", tmp_path / "out", to="hff")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "nothing"), "--out", str(tmp_path / "other")])
    assert done.exit_code == 2 and not (tmp_path / "other").exists()


def test_an_imported_model_predicts_with_a_cache(gpt2: Path) -> None:
    model, row = weft.load(gpt2), ids(1, 6)
    cache = model.cache()
    with torch.no_grad():
        steps = torch.cat([model.hidden(Tokens(row[:, i : i + 1]), cache=cache) for i in range(6)], 1)
        assert torch.allclose(steps, model.hidden(Tokens(row)), atol=1e-5)
