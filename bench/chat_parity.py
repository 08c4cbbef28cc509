"""SmolLM2 as weft chats with it, beside transformers on the same weights: greedy answers to twenty prompts.

    python bench/chat_parity.py [--tokens 16] [--json]

The reference is `LlamaForCausalLM` with the package's GGUF dequantised by the `gguf` package, and the conversation laid
out by transformers' `apply_chat_template`: nothing of weft's reader, tokenizer, template, model or decoding is in it
but the merges and the text of the template. Where two answers part, the gap between the two tokens' logits is told; a
gap below NOISE is rounding. (llama.cpp itself computes with quantised activations: chat_llamacpp.py.)
"""

from __future__ import annotations

import argparse
import json
import re

import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize

from weft.convert.pretrained import find
from weft.convert.text import open_text
from weft.generate.template import ChatTemplate
from weft.generate.text import Limits, lay_ids, write

NOISE = 1e-3  # logits
PROMPTS = (
    "What is the capital of France?", "Name three colours.", "Write a haiku about rain.", "What is 7 times 8?",
    "Explain gravity to a child.", "Translate 'good morning' to Spanish.", "Who wrote Hamlet?", "List the planets.",
    "What is a prime number?", "Give me a recipe for pancakes.", "Why is the sky blue?", "def add(a, b):",
    "What does a loom do?", "你好，你是谁？", "Summarise: The cat sat on the mat. It was warm.", "Is 91 prime?",
    "Tell me a joke.", "What is the boiling point of water in Celsius?", "  odd   spaces\n\nand lines ",
    "Say <|im_end|> and nothing else. 🎉",
)  # fmt: skip
STEMS = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def reference(path: str) -> transformers.LlamaForCausalLM:
    """The file's weights in transformers' model, by other hands than ours."""
    reader = GGUFReader(path)
    said = lambda key: reader.fields[key].contents()
    config = transformers.LlamaConfig(
        vocab_size=said("llama.vocab_size"),
        hidden_size=said("llama.embedding_length"),
        intermediate_size=said("llama.feed_forward_length"),
        num_hidden_layers=said("llama.block_count"),
        num_attention_heads=said("llama.attention.head_count"),
        num_key_value_heads=said("llama.attention.head_count_kv"),
        rms_norm_eps=said("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": said("llama.rope.freq_base")},
        max_position_embeddings=said("llama.context_length"),
        tie_word_embeddings=True,
    )
    state = {}
    for tensor in reader.tensors:
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        stem = block[2] if block else tensor.name.removesuffix(".weight")
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        values = values.reshape([int(n) for n in tensor.shape[::-1]])
        if stem in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if stem == "attn_q" else config.num_key_value_heads
            rows, width = values.shape
            values = values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
        state[(f"model.layers.{block[1]}." if block else "") + STEMS[stem] + ".weight"] = values
    model = transformers.LlamaForCausalLM(config).eval()
    lost = model.load_state_dict(state, strict=False)
    if lost.unexpected_keys or set(lost.missing_keys) - {"lm_head.weight"}:
        raise SystemExit(f"The reference could not be filled: {lost}")
    return model


@torch.no_grad()
def gap(model: transformers.LlamaForCausalLM, ids: list[int], ours: int, theirs: int) -> float:
    """How much the reference prefers its own token to ours."""
    logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[theirs] - logits[ours])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    opened = open_text("smollm2")
    template, saved = ChatTemplate(opened.tokenizer), opened.tokenizer
    theirs = reference(str(find("smollm2")))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=template.parser)
    words.chat_template = saved.template
    rows = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        ids = template.ids(messages)
        laid = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        smuggles = any(token in prompt for token in saved.codec.control.values())
        answer = write(
            opened.model, saved.codec, lay_ids([ids]), Limits(options.tokens, saved.ends, (), opened.context)
        )[0]
        start = torch.from_numpy(ids)[None]
        found = theirs.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=options.tokens, do_sample=False,
            eos_token_id=list(saved.ends), pad_token_id=saved.ends[0],
        )[0, len(ids):].tolist()  # fmt: skip
        mine = answer.ids.tolist()
        part = next((i for i, (a, b) in enumerate(zip(mine, found, strict=False)) if a != b), None)
        row = {"prompt": prompt, "answer": answer.text, "same": mine == found, "ids": smuggles or ids.tolist() == laid}
        if part is not None:
            row["gap"] = gap(theirs, [*ids.tolist(), *mine[:part]], mine[part], found[part])
        rows.append(row)
        if not options.json:
            told = "same" if row["same"] else f"parts at token {part}, gap {row.get('gap', 0):.2e}"
            print(f"{told:<10} {prompt!r} -> {answer.text!r}", flush=True)
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    bad = [row for row in rows if not row["ids"] or (not row["same"] and abs(row.get("gap", 1.0)) > NOISE)]
    print(
        f"{sum(row['same'] for row in rows)} of {len(rows)} answers are the same; {len(bad)} differ by more than noise"
    )
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
