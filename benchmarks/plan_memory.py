"""Memory of two DPO steps: what `rlhf-lab plan` predicts beside what the system counts (VmHWM), in MiB.

Each row is run in processes of its own (tests/cli/peak_memory.py), `--times` times with every tensor above 256 KiB
mapped on its own, which is what tensors need, and as often with glibc's heap as a run has it, which also holds what
lies free between them. One thread; Linux alone. The rows of 12 × 768 are as large as GPT-2 124M, but for 1,105 ids.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "tests" / "commands" / "peak_memory.py"
ROWS = ["4 300 34", "4 32 256", "8 300 34 parts", "8 300 34 checkpointing"]
ROWS += ["8 300 34 parts large", "8 300 34 checkpointing large"]


def counted(row: str, **settings: str) -> tuple[float, float]:
    """MiB predicted for the steps, and MiB that they took beyond the process and its libraries."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *row.split()],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", **settings},
    )  # fmt: skip
    predicted, taken = (int(word) / 2**20 for word in done.stdout.split())
    return predicted, taken


def main() -> None:
    """Run each row, and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=1, help="processes of each kind for a row")
    times = parser.parse_args().times
    if sys.platform != "linux":
        sys.exit("Only Linux tells a process's peak in /proc: nothing measured.")
    print(f"{'pairs, prompt, response':<32}{'predicted':>10}      tensors      with the heap's gaps")
    for row in ROWS:
        predicted, tensors = zip(*(counted(row, MALLOC_MMAP_THRESHOLD_="262144") for _ in range(times)), strict=True)
        heap = [counted(row)[1] for _ in range(times)]
        print(
            f"{row:<32}{predicted[0]:>10,.0f}"
            f"   {min(tensors):,.0f} to {max(tensors):,.0f}   {min(heap):,.0f} to {max(heap):,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
