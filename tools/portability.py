"""Run the tests on this machine with the instruction sets of other processors.

    python tools/portability.py [pytest's flags and files]        or: make portability TEST_FLAGS="-x -k kl"

Another processor has other vector instructions, so it adds numbers in another order and its last digits differ. A test
that depends on them passes on one machine and fails on the next. This command runs the tests under several settings,
one after another:

- x86: with SSE instructions only, and with AVX2 only, each on one thread. Environment variables tell the libraries
  (torch, MKL, oneDNN) not to use further instructions. MKL may ignore its variable on AMD.
- every processor: all its instructions, with two threads and with a fixed order of Python's sets.
- other processors than x86 (Arm): torch without vector instructions, on one thread. Nothing else can be varied there.

It cannot imitate another operating system, another Python or another processor's libraries: the workflow in .github
runs the tests on those. The setting with two threads takes twice as long as `make test`, each of the others as long.
Without files the tests are all of `make test`.

The exit status is 0 if all settings passed, 1 otherwise. The output ends with a summary.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
QUIET = {
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
NOTEBOOKS = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/notebooks/sanitize.cfg"]
TWO_CORES = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
# Two processes of two threads each would wait for each other on two cores, and need many times as long.
ONE_PROCESS = ["-n", "1", "--dist", "loadfile", "--no-loadscope-reorder"]
EVERYTHING = ["notebooks", "tests"]


def settings(machine: str) -> dict[str, dict[str, str]]:
    """Name and environment variables of each setting for the processor type that `platform.machine()` returns."""
    two = {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "0"}
    if machine.lower() in ("x86_64", "amd64", "i686"):
        return {
            "SSE only, one thread": {
                "OMP_NUM_THREADS": "1",
                "ATEN_CPU_CAPABILITY": "default",
                "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                "ONEDNN_MAX_CPU_ISA": "SSE41",
            },
            "AVX2, one thread": {
                "OMP_NUM_THREADS": "1",
                "ATEN_CPU_CAPABILITY": "avx2",
                "MKL_ENABLE_INSTRUCTIONS": "AVX2",
                "ONEDNN_MAX_CPU_ISA": "AVX2",
            },
            "this processor, two threads": two,
        }
    return {
        "no vector instructions in torch, one thread": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
        "this processor, two threads": two,
    }


def command(flags: list[str], threads: int) -> list[str]:
    """The command of `make test` with `flags` added. If `flags` name files, only these are tested.

    Args:
        flags: pytest's flags and files.
        threads: how many threads torch uses. With one, two processes share the tests; with two, one process runs them.
    """
    files = [flag for flag in flags if (REPO / flag.split("::")[0]).exists()]
    processes = TWO_CORES if threads == 1 else ONE_PROCESS
    return [
        sys.executable, "-m", "pytest", "-q", *processes, *NOTEBOOKS, "-m", "not slow", *flags,
        *([] if files else EVERYTHING),
    ]  # fmt: skip


def summary(output: str) -> str:
    """pytest's last line of counts without colours and bars, or a sentence if there is none."""
    found = re.findall(r"^=*\s*(.*\b\d+ (?:passed|failed|errors?|deselected)\b.*?)\s*=*$", output, re.M)
    return re.sub(r"\x1b\[[0-9;]*m", "", found[-1]) if found else "pytest ended without a result"


def run(name: str, variables: dict[str, str], flags: list[str]) -> tuple[bool, str]:
    """Run the tests once and print the failures. Returns whether all passed, and a line of the summary."""
    print(f"== {name}: {' '.join(f'{key}={value}' for key, value in variables.items())}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        command(flags, int(variables["OMP_NUM_THREADS"])), cwd=REPO, env=os.environ | QUIET | variables,
        capture_output=True, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(line, flush=True)
    said = summary(done.stdout)
    if done.returncode not in (0, 1):
        print(done.stdout[-3000:] + done.stderr[-3000:], flush=True)
    line = f"{'passed' if done.returncode == 0 else 'FAILED'}  {name}: {said} ({time.perf_counter() - start:.0f} s)"
    print(line, flush=True)
    return done.returncode == 0, line


def main(flags: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    flags = sys.argv[1:] if flags is None else flags
    if flags[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    results = [run(name, variables, flags) for name, variables in settings(platform.machine()).items()]
    print("\nSummary")
    for _, line in results:
        print(line)
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
