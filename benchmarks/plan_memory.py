"""Memory of two DPO steps: what `rlhf-lab plan` predicts beside what the system counts (VmHWM), in MiB.

Each row is run in processes of its own (tests/commands/peak_memory.py), `--times` times with every tensor above 256 KiB
mapped on its own, which is what tensors need, and as often with glibc's heap as it is by default, which also holds what
lies free between them. One thread; Linux alone. The rows of 12 × 768 are as large as GPT-2 124M, but for 1,105 ids.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rlhf_lab.commands.needs import METHODS, Load, Shape, memory

SCRIPT = Path(__file__).parents[1] / "tests" / "commands" / "peak_memory.py"
ROWS = [
    ((6, 384), 4, 300, 34, ""),
    ((6, 384), 4, 32, 256, ""),
    ((6, 384), 8, 300, 34, "parts"),
    ((6, 384), 8, 300, 34, "checkpointing"),
    ((12, 768), 8, 300, 34, "parts"),
    ((12, 768), 8, 300, 34, "checkpointing"),
]


def counted(words: list[str], **settings: str) -> float:
    """MiB that the steps took beyond the process and its libraries."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", **settings},
    )  # fmt: skip
    process, peak = map(int, done.stdout.split())
    return (peak - process) / 2**20


def main() -> None:
    """Run each row, and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=1, help="processes of each kind for a row")
    times = parser.parse_args().times
    if sys.platform != "linux":
        sys.exit("Only Linux tells a process's peak in /proc: nothing measured.")
    print("model      pairs       tokens                   predicted      tensors      with the heap's gaps")
    for (layers, hidden), rows, prompt, response, flag in ROWS:
        load = Load(
            Shape("gpt2", layers, hidden, hidden // 64, 49152, 1024), METHODS["dpo"], rows, prompt, response,
            accumulate=2 if flag == "parts" else 1, checkpointing=flag == "checkpointing",
        )  # fmt: skip
        words = [*map(str, (rows, prompt, response)), *filter(None, [flag, "large" if layers == 12 else ""])]
        tensors = [counted(words, MALLOC_MMAP_THRESHOLD_="262144") for _ in range(times)]
        heap = [counted(words) for _ in range(times)]
        print(
            f"{layers:>2} × {hidden}   {rows}   {prompt:>3} + {response:<3}  {flag:<13}"
            f"{sum(memory(load, 0).values()) / 2**20:>18,.0f}"
            f"   {min(tensors):,.0f} to {max(tensors):,.0f}   {min(heap):,.0f} to {max(heap):,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
