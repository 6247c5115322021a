"""Memory of two DPO steps: the prediction of `rlhf-lab plan` and the peak that the system reports (VmHWM), in MiB.

Each row runs in separate processes (tests/cli/peak_memory.py), `--times` times in each of two settings. In the first,
every tensor above 256 KiB has its own memory mapping, which gives the need of the tensors. In the second, glibc's heap
is used as in normal runs, which also counts gaps between tensors. The benchmark uses one thread and needs Linux. The
models of 12 × 768 are as large as GPT-2 124M, except that their vocabulary has 1,105 tokens.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[1] / "tests" / "cli" / "peak_memory.py"
ROWS = ["4 300 34", "4 32 256", "8 300 34 parts", "8 300 34 checkpointing"]
ROWS += ["8 300 34 parts large", "8 300 34 checkpointing large"]


def counted(row: str, **settings: str) -> tuple[float, float]:
    """The predicted MiB of the steps, and the MiB that they used beyond the process and its libraries."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *row.split()],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", **settings},
    )  # fmt: skip
    predicted, taken = (int(word) / 2**20 for word in done.stdout.split())
    return predicted, taken


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=1, help="processes per row and setting")
    times = parser.parse_args().times
    if sys.platform != "linux":
        sys.exit("Only Linux reports the peak memory of a process in /proc, so nothing is measured.")
    table = []
    for row in ROWS:
        predicted, tensors = zip(*(counted(row, MALLOC_MMAP_THRESHOLD_="262144") for _ in range(times)), strict=True)
        heap = [counted(row)[1] for _ in range(times)]
        table.append([row, predicted[0], min(tensors), max(tensors), min(heap), max(heap)])
    columns = [
        "pairs, prompt, response",
        "predicted",
        "tensors, min",
        "tensors, max",
        "with gaps, min",
        "with gaps, max",
    ]
    print(pd.DataFrame(table, columns=columns).to_string(index=False, float_format="{:,.0f}".format))


if __name__ == "__main__":
    main()
