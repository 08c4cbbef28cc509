"""Adapters in peft's files: both libraries compute the same from the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from weft.adapt import lora
from weft.adapt import peft as files
from weft.adapt.lora import Lora
from weft.convert.hf import load_hf
from weft.convert.layouts import find
from weft.core.view import Tokens
from weft.errors import ConvertError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="pip install --no-deps peft accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
IDS = torch.arange(3, 27).reshape(2, 12)


def reference(kind: str):
    """A tiny model of transformers."""
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).eval()


def ours(folder: Path):
    imported = load_hf(folder)
    return imported.model(), find(imported.raw).rules(imported.config)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(Tokens(IDS)))


def disturb(module: torch.nn.Module, word: str) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if word in name:
                p += 0.2 * torch.randn(p.shape, generator=generator)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    reference(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("target", [("all",), ("attn.qkv.q", "attn.qkv.v", "ffn.down")])
def test_what_weft_writes_peft_reads(kind, dora: bool, target, tmp_path: Path) -> None:
    name, folder = kind
    model, rules = ours(folder)
    lora.attach(model, Lora(4, 6.0, target, dora=dora))
    disturb(model, ".adapters.")
    files.save(model, tmp_path / "adapter", rules)
    theirs = peft.PeftModel.from_pretrained(reference(name), tmp_path / "adapter").eval()
    with torch.no_grad():
        there, base = theirs(IDS).logits, reference(name)(IDS).logits
    torch.testing.assert_close(logits(model), there, atol=1e-4, rtol=1e-4)
    assert (there - base).abs().max() > 1e-2, "the adapter was really read"
    again, _ = ours(folder)
    assert files.load(again, tmp_path / "adapter", rules) == {}
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    files.save(again, tmp_path / "twice", rules)
    third, _ = ours(folder)
    files.load(third, tmp_path / "twice", rules)
    torch.testing.assert_close(logits(third), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_what_peft_writes_weft_reads(kind, dora: bool, tmp_path: Path) -> None:
    name, folder = kind
    modules = ["q_proj", "v_proj", "up_proj"] if name == "llama" else ["c_attn", "c_fc"]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=modules, use_dora=dora, use_rslora=not dora, fan_in_fan_out=name == "gpt2",
        alpha_pattern={modules[0]: 7},
    )  # fmt: skip
    theirs = peft.get_peft_model(reference(name), config).eval()
    disturb(theirs, "lora_")
    theirs.save_pretrained(tmp_path / "adapter")
    model, rules = ours(folder)
    base = logits(model)
    files.load(model, tmp_path / "adapter", rules)
    with torch.no_grad():
        there = theirs(IDS).logits
    torch.testing.assert_close(logits(model), there, atol=1e-4, rtol=1e-4)
    assert (logits(model) - base).abs().max() > 1e-2
    lora.merge(model)
    torch.testing.assert_close(logits(model), there, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_base_stops(kind, tmp_path: Path) -> None:
    model, rules = ours(kind[1])
    lora.attach(model, Lora(2))
    files.save(model, tmp_path / "a", rules, digest="ab" * 32, source="theirs")
    again, _ = ours(kind[1])
    files.load(again, tmp_path / "a", rules, digests=["ab" * 32])
    with pytest.raises(ConvertError, match="another base: its weights hash to abababababab, these to cdcdcdcdcdcd"):
        files.load(again, tmp_path / "a", rules, digests=["cd" * 32])


def test_what_cannot_be_read_is_named(kind, tmp_path: Path) -> None:
    model, rules = ours(kind[1])
    lora.attach(model, Lora(2))
    folder = files.save(model, tmp_path / "a", rules)
    config = json.loads((folder / files.CONFIG).read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is 'all'"),
    ):
        (folder / files.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(ConvertError, match=message):
            files.load(ours(kind[1])[0], folder, rules)
    (folder / files.CONFIG).write_text(json.dumps(config))
    whole = (folder / files.WEIGHTS).read_bytes()
    (folder / files.WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(ConvertError):
        files.load(ours(kind[1])[0], folder, rules)
    with pytest.raises(ConvertError, match="holds no adapter"):
        files.load(model, tmp_path, rules)
