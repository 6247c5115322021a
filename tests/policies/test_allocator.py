"""Keeping freed memory: the process really faults less, and whoever has said otherwise is left alone."""

import os
import platform
import subprocess
import sys

import pytest

FREE_AND_TAKE = """
import resource, torch
from rlhf_lab.policies.allocator import keep_freed_memory
told = keep_freed_memory()
def work():
    for _ in range(20):
        held = [torch.ones(3 << 20) for _ in range(6)]  # 12 MiB each
        del held
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")


def told(code: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD", "RLHF_LAB_"))}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | environment
    )
    return out.stdout.split()


@glibc
def test_what_is_freed_is_taken_again_without_a_page_fault():
    """20 rounds of six tensors of 3,072 pages each, 368,640 pages. glibc's own thresholds, which have risen to what one
    of them took, give back the most of it after each round; told to keep it, next to nothing is fetched again."""
    said, faults = told(FREE_AND_TAKE)
    assert said == "True" and int(faults) < 3_000
    said, faults = told(FREE_AND_TAKE, RLHF_LAB_KEEP_MEMORY="0")
    assert said == "False" and int(faults) > 50_000


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
    code = "from rlhf_lab.policies.allocator import keep_freed_memory; print(keep_freed_memory())"
    assert told(code, **{name: value}) == ["False"]
