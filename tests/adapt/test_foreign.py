"""From another library's directory: its ids, its chat template, an adapter that its own libraries read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import weft
from weft.arrows.chat import read
from weft.arrows.resolve import resolve
from weft.data.loader import Loader
from weft.run import Run

sys.path.insert(0, str(Path(__file__).parent.parent / "arrows"))
from test_chat import CHATML, foreign

transformers = pytest.importorskip("transformers")
QUICK = (
    "train.tokens=256", "train.length=128", "train.options.check=false", "train.options.compile=off",
    "train.options.dtype=float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as transformers saves it, with a tokenizer and a chat template, and conversations."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    codec = foreign()
    end = codec.tokenizer.token_to_id("<|im_end|>")
    config = transformers.LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=end,
        bos_token_id=258,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    codec.save(folder / "model" / "tokenizer.json")
    said = {"chat_template": CHATML, "eos_token": "<|im_end|>", "bos_token": "<s>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(said))
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]}
        for i in range(120)
    ]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    words = [f'model.source="{world / "model"}"', "model.lora.rank=4", *QUICK, "train.lr=0.02"]
    return weft.train(str(world / "talk.jsonl"), "messages ->", out=world / "run", steps=6, overrides=words)


def test_the_text_block_is_first_with_the_same_ids(run: Run) -> None:
    words = run.renderer.vocabulary
    assert words.block("text") == range(272) and words.block("special").start == 272
    assert words.end == foreign().tokenizer.token_to_id("<|im_end|>"), "a text ends as the source's did"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sample = run.renderer.render({"messages": talk}, 0)
    ids = [int(i) for span in sample.spans for i in span.ids]
    reference = transformers.AutoTokenizer.from_pretrained(run.recipe.model.source)
    assert ids == reference.apply_chat_template(talk, tokenize=True, return_dict=False)


def test_plan_shows_that_the_assistant_is_trained(world: Path) -> None:
    found = weft.plan(str(world / "talk.jsonl"), "messages ->", overrides=[f'model.source="{world / "model"}"', *QUICK])
    assert "assistant⏎ «it is" in found.samples[0] and "<|im_end|>»" in found.samples[0], found.samples[0]


def test_two_questions_to_one_conversation_share_it(world: Path) -> None:
    reply = {"role": "assistant", "content": "it is"}
    said = [[{"role": "user", "content": f"say {i} " * 4}, reply] for i in range(60)]
    rows = [{"chat": turns, "short": f"no {i}", "mood": ("glad", "sad")[i % 2]} for i, turns in enumerate(said)]
    arrows = ("chat:messages -> short:text", "chat:messages -> mood:label")
    words = [f'model.source="{world / "model"}"', *QUICK]
    both = weft.train(rows, *arrows, out=world / "both", steps=2, overrides=words)
    loader = Loader(
        both.table, both.renderer, arrows=both.arrows, recipe=both.recipe, split=both.split,
        resolutions=[resolve(arrow, both.renderer.columns, "decoder") for arrow in both.arrows],
    )  # fmt: skip
    documents = [doc for rows in loader.round(0).step(0) for row in rows for doc in row]
    assert any(len(doc.samples) == 2 for doc in documents), "the conversation stands once, both answers behind it"


def test_it_learns_and_answers(run: Run) -> None:
    steps = run.metrics("step")
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    values = weft.predict(run, "messages ->", {"messages": "say 3"})
    assert isinstance(values[0], str) and "<|im" not in values[0]
    results = weft.evaluate(run, limit=5, say=lambda text: None)
    assert results[0]["metric"] == "bits per token"


def test_the_adapter_is_read_by_peft_on_the_source(run: Run, world: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install --no-deps peft accelerate")
    from weft.core.view import Tokens

    ids = torch.arange(40, 80)[None]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(world / "model")
        theirs = peft.PeftModel.from_pretrained(base, run.path / "adapter").eval()
        with torch.no_grad():
            there = theirs(ids).logits
    model = run.model()
    with torch.no_grad():
        ours = model.logits(model.hidden(Tokens(ids)))[..., :272]
    torch.testing.assert_close(ours, there, atol=1e-4, rtol=1e-4)


def test_merged_it_is_a_directory_that_transformers_reads(run: Run, tmp_path: Path) -> None:
    folder = weft.export(run, tmp_path / "out", merge=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40, 80)[None]
    with torch.no_grad():
        there, model = theirs(ids).logits, run.model()
        from weft.core.view import Tokens

        ours = model.logits(model.hidden(Tokens(ids)))
    torch.testing.assert_close(ours, there, atol=1e-4, rtol=1e-4)
    assert read("x")[0].role == "user"
