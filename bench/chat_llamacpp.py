"""SmolLM2 as weft chats with it, beside llama.cpp on the same file: ids, greedy answers to twenty prompts, and speed.

    pip install llama-cpp-python        (it is built from source: ten to twenty minutes)
    python bench/chat_llamacpp.py [--tokens 32] [--json]

llama.cpp rounds activations to 8 bits in blocks of 32 before it multiplies them with quantised weights; weft multiplies
the dequantised weights in float32. So the two models' logits differ everywhere by that noise, which is measured here at
every step where both have read the same ids: the spread of (llama.cpp - weft), over the tokens that weft finds
likeliest. Where two answers part, each side prefers its own token; what parted them is noise if the gap between the two
tokens is no more than NOISE spreads of a difference of two logits. A gap above that is a fault, and the exit code 1.

The noise could hide a fault that moves all logits alike, so it is held against a bound of its own (SPREAD), and against
a control: weft with one weight matrix of thirty blocks rounded to 4 bits once more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from chat_parity import PROMPTS

from weft.convert.pretrained import find
from weft.convert.text import open_text
from weft.core.view import Tokens
from weft.generate.template import ChatTemplate

LIKELY = 100  # tokens whose logits are compared at each step
NOISE = 2.0  # spreads of a difference
EXACT = 1e-3  # logits: between weft with its cache and without
SPREAD = 0.5  # logits: more than rounding activations has ever given here
THREADS = 2


@dataclass
class Row:
    """One prompt. part: the first step at which the answers differ; gap: by how much weft, without its cache, finds its
    own next token likelier than llama.cpp's (below 0: its cache led it astray)."""

    prompt: str
    answer: str
    ids: bool  # whether llama.cpp's own tokenizer gives the ids that weft's template does, control tokens apart
    same: bool
    spread: float
    part: int | None = None
    gap: float = 0.0

    @property
    def explained(self) -> bool:
        return self.ids and (self.same or -EXACT <= self.gap <= NOISE * 2**0.5 * self.spread)


class Theirs:
    """llama.cpp, fed ids: greedy answers with the logits of every step."""

    def __init__(self, path: str) -> None:
        try:
            from llama_cpp import Llama
        except ModuleNotFoundError:
            raise SystemExit(
                "llama.cpp is not installed: pip install llama-cpp-python (it is built from source)"
            ) from None
        self.model = Llama(model_path=path, n_ctx=512, n_threads=THREADS, logits_all=True, verbose=False)

    def ids(self, text: str) -> list[int]:
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T,V) of a whole text."""
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])

    def answer(self, ids: list[int], tokens: int, ends: tuple[int, ...]) -> tuple[list[int], float]:
        """Greedy ids, and seconds for each token after the first."""
        self.model.reset()
        self.model.eval(ids)
        found: list[int] = []
        began = time.perf_counter()
        while len(found) < tokens:
            token = int(np.argmax(self.model.scores[self.model.n_tokens - 1]))
            if token in ends:
                break
            found.append(token)
            self.model.eval([token])
        return found, (time.perf_counter() - began) / max(len(found), 1)


class Ours:
    """weft, fed ids."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        return self.model.logits(self.model.hidden(Tokens(torch.tensor([ids]))))[0].float().numpy()

    @torch.no_grad()
    def answer(self, ids: list[int], tokens: int, ends: tuple[int, ...]) -> tuple[list[int], float]:
        cache = self.model.cache("growing")
        hidden = self.model.hidden(Tokens(torch.tensor([ids])), None, cache)
        found: list[int] = []
        began = time.perf_counter()
        while len(found) < tokens:
            token = int(self.model.logits(hidden[:, -1]).argmax())
            if token in ends:
                break
            found.append(token)
            hidden = self.model.hidden(Tokens(torch.tensor([[token]])), None, cache)
        return found, (time.perf_counter() - began) / max(len(found), 1)


def spread(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of (theirs - ours), its mean over each step's likeliest tokens taken away: (T,V) twice -> logits."""
    likely = np.argsort(-ours, 1)[:, :LIKELY]
    apart = np.take_along_axis(theirs - ours, likely, 1)
    return float((apart - apart.mean(1, keepdims=True)).std())


def compared(prompt: str, ids: list[int], ours: Ours, theirs: Theirs, words, tokens: int) -> tuple[Row, float, float]:
    """A row, and both sides' seconds for a token."""
    mine, slow = ours.answer(ids, tokens, words.saved.ends)
    found, fast = theirs.answer(ids, tokens, words.saved.ends)
    part = next((i for i, (a, b) in enumerate(zip(mine, found, strict=False)) if a != b), None)
    if part is None and len(mine) != len(found):
        part = min(len(mine), len(found))  # one of them ended
    shared = ids + (mine if part is None else mine[:part])
    own, other = ours.logits(shared), theirs.logits(shared)
    laid = theirs.ids(words.template.text([{"role": "user", "content": prompt}]))
    spells = any(token in prompt for token in words.saved.codec.control.values())  # there a control token, here a text
    row = Row(prompt, words.saved.codec.decode(mine), spells or laid == ids, part is None, spread(own, other), part)
    if part is not None:
        rest = max(words.saved.ends, key=lambda end: own[-1, end])  # of an answer that ended
        here, there = (one[part] if part < len(one) else rest for one in (mine, found))
        row.gap = float(own[-1, here] - own[-1, there])
        if own[-1, here] < own[-1].max() - EXACT:
            row.gap = -float("inf")
    return row, slow, fast


@dataclass
class Words:
    template: ChatTemplate
    saved: object


def coarser(model: torch.nn.Module) -> None:
    """Round one matrix of each block to 4 bits once more: the control."""
    for name, weight in model.named_parameters():
        if name.endswith("ffn.down.weight"):
            scale = weight.detach().abs().amax(1, keepdim=True) / 7
            weight.data = (weight.detach() / scale).round() * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    opened, theirs = open_text("smollm2"), Theirs(str(find("smollm2")))
    words, ours = Words(ChatTemplate(opened.tokenizer), opened.tokenizer), Ours(opened.model)
    rows, slow, fast, seen = [], [], [], []
    for prompt in PROMPTS:
        ids = words.template.ids([{"role": "user", "content": prompt}]).tolist()
        row, one, two = compared(prompt, ids, ours, theirs, words, options.tokens)
        rows.append(row)
        slow.append(one)
        fast.append(two)
        seen.append((ids, theirs.logits(ids)))
        if not options.json:
            told = "same" if row.same else f"parts at token {row.part}, gap {row.gap:.3f}"
            print(f"{told:<32} noise {row.spread:.3f}  {prompt!r} -> {row.answer!r}", flush=True)
    coarser(opened.model)
    control = statistics.median(spread(ours.logits(ids), logits) for ids, logits in seen)
    noise = statistics.median(row.spread for row in rows)
    bad = [row for row in rows if not row.explained or row.spread > SPREAD]
    failed = bool(bad) or control < 1.5 * noise
    if options.json:
        print(json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=1))
        raise SystemExit(failed)
    print(
        f"{sum(row.same for row in rows)} of {len(rows)} answers are the same, {sum(row.ids for row in rows)} prompts "
        f"have the same ids; {len(bad)} differ by more than noise\n"
        f"noise {noise:.3f} logits; control, one matrix of each block rounded once more: {control:.3f}\n"
        f"a token takes {statistics.median(slow) * 1e3:.1f} ms here, {statistics.median(fast) * 1e3:.1f} ms there: "
        f"{statistics.median(a / b for a, b in zip(slow, fast, strict=True)):.2f} times as long"
    )
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
