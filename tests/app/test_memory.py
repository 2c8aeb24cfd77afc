"""What is freed goes back to the system, whatever still lies beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PATTERN = """
import ctypes, sys
import psutil
from app import memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "kept flat":
    memory.keep_flat()
libc.free(libc.malloc(30 * 2**20))  # after this glibc puts 10 MB on the heap by itself
before = psutil.Process().memory_info().rss
large, pins = [], []
for _ in range(20):
    large.append(libc.malloc(10 * 2**20))
    ctypes.memset(large[-1], 1, 10 * 2**20)
    pins.append(libc.malloc(1000))  # holds together what lies below it
for place in large:
    libc.free(place)
print(psutil.Process().memory_info().rss - before)
"""


def held(how: str) -> int:
    """Bytes more than before after all large pieces were freed."""
    done = subprocess.run([sys.executable, "-c", PATTERN, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_arrays_leave_the_process_when_they_are_freed() -> None:
    assert held("as it is") > 100 * 2**20 > 10 * 2**20 > held("kept flat")
