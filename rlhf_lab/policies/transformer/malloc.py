"""Freed memory is kept for the next tensor: on Linux the C library else gives it back at once, and fetches it anew.

glibc returns what is free at the end of its heap to the system as soon as some dozens of MB lie there. While a language
model samples, tensors of that size come and go at every token, and each new one is mapped in page by page;
`benchmarks/allocator.py` prints what keeping them saves. The two numbers below are glibc's own, see `man mallopt`;
nothing is computed differently. A process so keeps up to 2 GiB of what it once used. Blocks above 32 MB are given back
at once, as ever.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers for the two settings (malloc.h)."""
KEPT = 2**31 - 1
"""Bytes that may lie free at the end of the heap; the most that the interface can be told."""
LARGE = 32 * 2**20
"""Blocks above it are mapped one by one; the most that glibc allows."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc, once in a process, to keep what is freed. Says whether it was told.

    It isn't where there is another C library, where another allocator is preloaded, where the user has set malloc's
    behaviour by the environment (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_), or where
    RLHF_LAB_KEEP_MEMORY is 0.
    """
    if os.environ.get("RLHF_LAB_KEEP_MEMORY") == "0":
        return False
    said = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
    if any(os.environ.get(name) for name in said) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(
        libc.mallopt(setting, number) == 1 for setting, number in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, LARGE))
    )
