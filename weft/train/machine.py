"""What the machine has: which device, whether bfloat16 pays, how much memory is free and was used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator

import torch
from torch import nn

from weft.errors import RecipeError, nearest

GIVE_BACK = 25  # steps
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # constants of malloc.h
_MOST = 32 << 20  # bytes: DEFAULT_MMAP_THRESHOLD_MAX of glibc, more than which older ones refuse
UNKNOWN = 2 << 30  # bytes taken to be free where the machine does not say
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device() -> torch.device:
    """CUDA, else Apple's GPU, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(name: str, device: torch.device) -> str:
    """The recipe's `auto` as float32 or bfloat16: bfloat16 where the machine multiplies it faster."""
    if name not in ("auto", *DTYPES):
        raise RecipeError(f"train.options.dtype is {name!r}.{nearest(name, ('auto', *DTYPES))}")
    if name != "auto":
        return name
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()  # without these instructions bfloat16 on a processor is slower than float32
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    else:
        fast = device.type == "mps" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """The context in which forward passes run: weights and sums stay float32, products are of `dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def peak_memory(device: torch.device) -> int:
    """Most bytes used so far: of the device where it has its own memory, else of this process. 0: cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_memory(device: torch.device) -> int:
    """Bytes in use now. 0: cannot be told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak is the nearest thing that can be asked for
        return peak_memory(device)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken; where that cannot be told, half of what the machine has, or UNKNOWN."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no /proc, or a kernel before 3.14
        return _half_of_all()


def _half_of_all() -> int:
    """Bytes: half of what the machine has, or UNKNOWN."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others not these names
        return UNKNOWN


def told(memory: int) -> str:
    """Bytes for people."""
    return f"{memory / 2**30:.2g} GB" if memory else "memory unknown"


def describe(device: torch.device) -> str:
    """The machine in a few words, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return f"{platform.machine()} {device.type}, {cores}"


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled parts uncompiled for a while: a pass without gradients would be compiled a second time."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


@contextlib.contextmanager
def held_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next step, where the allocator would hand it back (glibc's, on Linux).

    Large blocks that are handed back are mapped anew by the next step: each of the demo's had 30,000 page faults and
    took a tenth longer. What is held too long goes back by `give_back`, and all of it at the end.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and device.type == "cpu" else None
    if option is None:  # other libraries of C have none
        yield
        return
    _ = option(_MMAP_THRESHOLD, 1 << 30) or option(_MMAP_THRESHOLD, _MOST)
    option(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:  # as glibc itself has it after large blocks came and went
        option(_MMAP_THRESHOLD, _MOST)
        option(_TRIM_THRESHOLD, 2 * _MOST)
        give_back(device)


def give_back(device: torch.device) -> None:
    """Return freed memory to the system, where the allocator keeps it (glibc's, on Linux).

    Tensors of ever new sizes leave holes that are never handed back: a run of the demo grew by 10 MB a step, past 4 GB;
    handed back every GIVE_BACK steps, at 80 ms a time, it stays near 2.
    """
    if device.type == "cpu" and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries of C have none
        if trim is not None:
            trim(0)
