"""What is freed is given back: without it the heap would keep the gaps between what is still there."""

import os
import platform
import subprocess
import sys

import pytest

from reformer_core import heap

SCRIPT = """
import os, sys, torch
from reformer_core.heap import map_large_tensors

def megabytes(count):
    return torch.ones(count << 20, dtype=torch.uint8)

if sys.argv[1] == "mapped":
    map_large_tensors()
megabytes(30)  # freed at once: from now on glibc, left alone, keeps blocks up to this size in the heap
large, between = [], []
for _ in range(20):
    large.append(megabytes(8))
    between.append(torch.ones(100_000))
del large
with open("/proc/self/statm") as statm:
    print(int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def held_bytes(how: str) -> int:
    """Memory of a process that has freed 160 MiB of tensors, with smaller ones between them."""
    command, environment = [sys.executable, "-c", SCRIPT, how], {"PATH": os.environ["PATH"]}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mends glibc's heap")
def test_freed_tensors_are_given_back() -> None:
    assert held_bytes("left alone") - held_bytes("mapped") > 100 << 20


def test_the_users_own_size_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: pytest.fail("nothing is to be set"))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    heap.map_large_tensors()
