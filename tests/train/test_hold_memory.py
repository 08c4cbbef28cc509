"""Freed memory is held between steps, where glibc would hand it back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from weft.train.machine import give_back, hold_memory
if sys.argv[1] == "held":
    hold_memory(torch.device("cpu"))
work = lambda: [torch.ones(16 << 20) for _ in range(2)]  # 64 MB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="another allocator than glibc's"
)
def test_large_blocks_are_not_mapped_anew() -> None:
    def faults(how: str) -> int:
        ran = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
        return int(ran.stdout)

    held, plain = faults("held"), faults("plain")
    assert 5 * held < plain, f"{held} page faults held, {plain} as the allocator does it"
