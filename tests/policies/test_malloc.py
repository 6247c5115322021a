"""Keeping freed memory: the process really keeps it, and whoever has said otherwise is left alone."""

import os
import platform
import subprocess
import sys

import pytest

FREED = """
import ctypes, sys
from rlhf_lab.policies.transformer.malloc import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
size, places = 12 << 20, [None] * 10
for _ in range(3):
    for i in range(10):
        places[i] = libc.malloc(size)
        libc.memset(places[i], 1, size)
    for i in reversed(range(10)):
        libc.free(places[i])
print(int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20)
"""
"""Says whether malloc was told, and how many MiB the process still has after ten blocks of 12 MiB were freed."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")


def told(code: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD", "RLHF_LAB_"))}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | environment
    )
    return out.stdout.split()


@glibc
def test_what_is_freed_stays_with_the_process():
    """120 MiB taken and freed, three times. glibc by itself gives back all but twice the largest block freed so far,
    24 MiB; told to keep it, nothing. Both processes have the same rest, whatever Python and torch take."""
    said, left = told(FREED)
    assert said == "True"
    said, without = told(FREED, RLHF_LAB_KEEP_MEMORY="0")
    assert said == "False"
    assert int(left) - int(without) > 80


@glibc
@pytest.mark.parametrize(
    "name, value",
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_a_user_s_own_setting_of_malloc_wins(name, value):
    code = "from rlhf_lab.policies.transformer.malloc import keep_freed_memory; print(keep_freed_memory())"
    assert told(code, **{name: value}) == ["False"]
