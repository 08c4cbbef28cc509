"""The same training step by weft and by transformers, side by side in one process; packed rows against padded ones.

    make bench            or            .venv/bin/python bench/train.py [--seconds 20] [--json]

Both train one Llama of about 14 M parameters on the same tokens with the same optimiser (AdamW, fused), clipping and
bf16 autocast. Each is run compiled and not, and the better one counts. The variants take turns, a few steps each, so
that a machine that slows down slows all of them; medians are compared, as ratios.

    6N      FLOP per token of a training step by the usual rule: 6 x parameters (tables included)
    matmul  the machine's own rate of bf16 products, measured in the same minute
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

VOCAB, DIM, DEPTH, HEADS, KV_HEADS, HIDDEN = 8192, 384, 7, 6, 2, 1024
ROWS, LENGTH = 8, 256
LR, CLIP = 3e-4, 1.0

Step = Callable[[], float]


@dataclass
class Variant:
    """One way to take a training step. `step` returns the loss; times are of whole steps, in seconds."""

    name: str
    peer: str
    step: Step
    parameters: int
    first: float = 0.0  # seconds of the first step: compiling
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second, by the median step."""
        return ROWS * LENGTH / statistics.median(self.times)


def data(device: torch.device) -> Tensor:
    """(B,T+1) ids that can be learnt a little: a random walk over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 5, (ROWS, LENGTH + 1), generator=generator)
    return (steps.cumsum(1) * 7 % VOCAB).to(device)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def weft_step(ids: Tensor, compiled: bool) -> tuple[Step, int]:
    """weft's objective on weft's Llama, by the calls that weft's own loop makes."""
    from weft import families
    from weft.core.view import Tokens
    from weft.data.batch import Batch
    from weft.model import build
    from weft.objectives import OBJECTIVES

    config = families.make(
        "llama", vocab=VOCAB, length=LENGTH, dim=DIM, depth=DEPTH, heads=HEADS,
        options={"kv_heads": KV_HEADS, "hidden": HIDDEN, "tied": True},
    )  # fmt: skip
    model = build(config, seed=0, device=ids.device)
    if compiled:
        for stack in model.stack_modules():
            stack.compile(dynamic=False)
    optimizer = optimizer_of(model)
    batch = Batch(Tokens(ids[:, :-1]), targets=ids[:, 1:].contiguous(), total=ROWS * LENGTH, real=ROWS * LENGTH)

    def step() -> float:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss, _ = OBJECTIVES["next"](model, batch)
        loss.backward()
        update(model, optimizer)
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def transformers_step(ids: Tensor, compiled: bool) -> tuple[Step, int]:
    """transformers' LlamaForCausalLM, by the calls that its documentation teaches."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=LENGTH, tie_word_embeddings=True, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(ids.device).train()
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = optimizer_of(model)
    forward = torch.compile(model) if compiled else model
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # shifted already, so both predict B x T tokens

    def step() -> float:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = forward(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        update(model, optimizer)
        return loss.item()

    return step, parameters


PEERS = {"weft": weft_step, "transformers": transformers_step}


def variants(device: torch.device, compile_too: bool) -> list[Variant]:
    """Each peer, plain and compiled, with its first step taken."""
    ids, out = data(device), []
    for peer, make in PEERS.items():
        for compiled in (False, True) if compile_too else (False,):
            step, parameters = make(ids, compiled)
            variant = Variant(f"{peer}, {'compiled' if compiled else 'eager'}", peer, step, parameters)
            began = time.perf_counter()
            step()
            wait(device)
            variant.first = time.perf_counter() - began
            step()
            out.append(variant)
    return out


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turns(found: list[Variant], seconds: float, device: torch.device, steps: int = 3) -> None:
    """`steps` of each, in turn, until each had about `seconds`."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(found):
        for variant in found:
            for _ in range(steps):
                start = time.perf_counter()
                variant.losses.append(variant.step())
                wait(device)
                variant.times.append(time.perf_counter() - start)


def matmul_rate(device: torch.device, seconds: float = 2.0) -> float:
    """FLOP per second of square bf16 products, the best of a few sizes."""
    best = 0.0
    for n in (1024, 2048, 4096):
        a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
        a @ b
        wait(device)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 3:
            a @ b
            wait(device)
            count += 1
        best = max(best, 2 * n**3 * count / (time.perf_counter() - began))
    return best


def memory(peer: str) -> float | None:
    """Bytes that a process of its own needs at most for a few steps, over what it has with its libraries loaded."""
    done = subprocess.run([sys.executable, __file__, "--memory-of", peer], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def measure_memory(peer: str) -> None:
    """The other side of `memory`: prints the number."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    import transformers  # noqa: F401  both carry both libraries, so that only the work differs

    import weft.model  # noqa: F401

    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step, _ = PEERS[peer](data(torch.device("cpu")), False)
    for _ in range(4):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="of measuring, for each variant")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument(
        "--no-rows", action="store_true", help="leave packed against padded out (it needs the demo's table)"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(arguments.memory_of)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device)
    found = variants(device, not arguments.no_compile)
    take_turns(found, arguments.seconds, device)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {device.type}",
        "torch": torch.__version__,
        "matmul_gflops": rate / 1e9,
        "variants": [told(v, rate) for v in found],
    }
    best = {peer: max(v.rate for v in found if v.peer == peer) for peer in PEERS}
    result["ratio"] = best["weft"] / best["transformers"]
    if device.type == "cpu":
        used = {peer: memory(peer) for peer in PEERS}
        result["memory"] = used
        result["memory_ratio"] = used["weft"] / used["transformers"] if all(used.values()) else None
    if not arguments.no_rows:
        from rows import packed_against_padded

        result["rows"] = packed_against_padded(device, arguments.seconds)
    print(json.dumps(result, indent=2)) if arguments.json else show(result)


def told(variant: Variant, matmul: float) -> dict:
    return {
        "name": variant.name,
        "peer": variant.peer,
        "parameters": variant.parameters,
        "tokens_per_second": variant.rate,
        "first_step": variant.first,
        "share_of_matmul": 6 * variant.parameters * variant.rate / matmul,
        "loss": variant.losses[-1],
        "steps": len(variant.times),
    }


def show(result: dict) -> None:
    print(f"\n{result['machine']}, torch {result['torch']}; bf16 matmul {result['matmul_gflops']:.0f} GFLOP/s")
    print(f"Llama, {result['variants'][0]['parameters'] / 1e6:.1f} M parameters, {ROWS} x {LENGTH} tokens a step\n")
    print(f"{'':26}{'tokens/s':>10}{'of matmul (6N)':>17}{'first step':>13}{'loss':>8}")
    for v in result["variants"]:
        print(
            f"{v['name']:26}{v['tokens_per_second']:>10,.0f}{v['share_of_matmul']:>16.0%}"
            f"{v['first_step']:>11.1f} s{v['loss']:>9.3f}"
        )
    print(f"\nweft / transformers, best of each: {result['ratio']:.2f}x tokens/s", end="")
    print(f", {result['memory_ratio']:.2f}x memory" if result.get("memory_ratio") else "")
    if rows := result.get("rows"):
        print("\nthe demo's rows through the demo's model, uncompiled; tokens of samples, padding not counted\n")
        print(f"{'':26}{'tokens/s':>10}{'rows/s':>10}{'padding':>10}{'packed is':>12}")
        for name in ("packed", "padded", "grouped"):
            way = rows[name]
            faster = f"{way['ratio']:>10.2f} x" if "ratio" in way else ""
            label = {"grouped": "padded, by length"}.get(name, name)
            print(
                f"{label:26}{way['tokens_per_second']:>10,.0f}{way['rows_per_second']:>10,.0f}{way['padding']:>10.0%}{faster}"
            )


if __name__ == "__main__":
    main()
