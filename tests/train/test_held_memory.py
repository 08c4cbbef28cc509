"""Freed memory is held between steps, where glibc would hand it back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from weft.train.machine import held_memory, used_memory
work = lambda: [torch.ones(16 << 20) for _ in range(2)]  # 64 MB each
def faults():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
cpu = torch.device("cpu")
with held_memory(cpu):
    held = faults()
    inside = used_memory(cpu)
print(plain, held, inside - used_memory(cpu))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's"
)
def test_large_blocks_are_not_mapped_anew() -> None:
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    plain, held, returned = map(int, ran.stdout.split())
    assert 5 * held < plain, f"{held} page faults held, {plain} as the allocator does it"
    assert returned > 100 << 20, f"of the two blocks of 64 MB {returned >> 20} MB went back at the end"
