"""Large data: memory, and seconds from the start of `rlhf-lab train` to its first optimiser step.

By default the data are pairs of random words, with lengths like those of AnthropicHH. SFT trains on the chosen
responses. The first run tokenises the pairs, and the second one reads the stored ids. Each run is a process with
`--steps 2`. The goal for the second run is a million pairs in less than 2 GB and less than 60 s. The benchmark needs
Linux, because it reads the peak memory from /proc. The peak includes the mapped files, whose memory the system can use
for something else at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "is",
    "that",
    "it",
    "you",
    "not",
    "with",
    "have",
    "can",
    "about",
    "from",
    "more",
]
MEDIANS, SPREAD = (480, 190), 0.8
"""Median characters of a prompt and of a response, and the standard deviation of their logarithm."""
CHILD = """
import re, sys, time
start = time.perf_counter()
from rlhf_lab.cli.main import main
from rlhf_lab.training.loop import Loop
update, seen = Loop.update, []
def timed(self, *a, **k):
    update(self, *a, **k)
    seen.append(time.perf_counter() - start)
Loop.update = timed
main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
anonymous = int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
print("measured", seen[0], peak, anonymous)
"""


def write_pairs(path: Path, number: int) -> None:
    """Write pairs of random words, with lengths drawn from log-normal distributions."""
    generator = np.random.default_rng(0)
    text = " ".join(generator.choice(WORDS, 200_000))
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, number, 10_000):
            rows = min(10_000, number - start)
            sizes = np.exp(generator.normal(np.log([MEDIANS[0], *[MEDIANS[1]] * 2]), SPREAD, (rows, 3)))
            places = generator.integers(len(text) - 20_000, size=(rows, 3))
            for i, (size, place) in enumerate(zip(sizes.clip(8, 10_000).astype(int), places, strict=True)):
                prompt, *both = (text[p : p + n] for n, p in zip(size, place, strict=True))
                row = {"prompt": f"{start + i} {prompt}", "chosen": f" {both[0]} yes", "rejected": f" {both[1]} no"}
                file.write(json.dumps(row) + "\n")


def run(method: str, data: Path, out: Path, cache: Path, model: str) -> tuple[float, float, float, float]:
    """Return the seconds of a command, the seconds to its first step, and its peak and final memory in GiB."""
    words = ["train", method, "--model", model, "--data", str(data), "--out", str(out), "--steps", "2"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words, "--batch-size", "4", "--no-progress"],
        capture_output=True, text=True, check=False, env={**os.environ, "RLHF_LAB_CACHE": str(cache)},
    )  # fmt: skip
    if "measured" not in done.stdout:
        sys.exit(done.stderr)
    first, peak, anonymous = map(float, done.stdout.split("measured")[1].split())
    return time.perf_counter() - start, first, peak, anonymous


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=("dpo", "kto", "sft", "reward-model"), default="dpo")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--data", type=Path, help="a file of pairs in place of random words")
    parser.add_argument("--model", default="lab-gpt2")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("Only Linux reports the peak memory of a process in /proc, so nothing is measured.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = given.data or folder / "pairs.jsonl"
        if given.data is None:
            write_pairs(data, given.pairs)
        table = []
        for what in ("first run", "ids stored"):
            table.append(
                [what, *run(given.method, data, folder / what.replace(" ", "-"), folder / "cache", given.model)]
            )
        stored = sum(file.stat().st_size for file in (folder / "cache" / "tokens").rglob("*") if file.is_file())
        print(f"{data.stat().st_size / 1e6:,.0f} MB of text, {stored / 1e6:,.0f} MB of stored ids")
    columns = ["run", "whole command, s", "first step, s", "peak memory, GiB", "of it not files, at the end, GiB"]
    print(pd.DataFrame(table, columns=columns).to_string(index=False, float_format="{:,.1f}".format))


if __name__ == "__main__":
    main()
