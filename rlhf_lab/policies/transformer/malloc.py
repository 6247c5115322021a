"""A setting of glibc's malloc with which freed memory is reused, which makes sampling on a CPU faster.

On Linux, glibc returns freed memory at the end of its heap to the system as soon as it exceeds some dozens of MB. While
a language model samples, tensors of that size are allocated and freed for every token, and the system maps each new one
page by page. With this setting a process retains up to 2 GiB of freed memory. Blocks above 32 MiB are still returned
immediately. `benchmarks/allocator.py` measures the difference. `man mallopt` describes the two options.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the two options (malloc.h)."""
TRIM_BYTES = 2**31 - 1
"""Free bytes at the end of the heap that are not returned to the system; the maximum of the interface."""
MMAP_BYTES = 32 * 2**20
"""Size of a block above which it is mapped separately; the maximum that glibc allows."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to retain freed memory, once in a process.

    Nothing is changed if the C library is not glibc, if another allocator is preloaded (LD_PRELOAD), if the user has
    configured malloc by the environment (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_), or if
    RLHF_LAB_KEEP_MEMORY is 0.

    Returns:
        Whether the setting was made.
    """
    if os.environ.get("RLHF_LAB_KEEP_MEMORY") == "0":
        return False
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
    if any(os.environ.get(name) for name in variables) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(
        libc.mallopt(option, number) == 1
        for option, number in ((TRIM_THRESHOLD, TRIM_BYTES), (MMAP_THRESHOLD, MMAP_BYTES))
    )
