"""Benchmark of rejection sampling: the vectorised `rejection_sample` against the loop printed in the RSO paper.

It selects 8 of 64 candidates for each of 10,000 prompts. Three loops are timed: `algorithm_1` as printed in the paper,
`algorithm_1` with its faults fixed (which has the distribution of `rejection_sample`), and the printed loop with
Python's random numbers, because drawing single numbers from torch is slow.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch

from rlhf_lab.sampling import algorithm_1, rejection_sample


def printed_loop(rewards: list[list[float]], num_samples: int, beta: float, seed: int) -> list[list[int]]:
    """Algorithm 1 of RSO (Liu et al. 2023) on lists: scan in order, with one maximum per pass."""
    draw = random.Random(seed).random
    accepted = []
    for row in rewards:
        left, chosen = list(range(len(row))), list[int]()
        while len(chosen) < num_samples:
            best = max(row[i] for i in left)
            rejected = []
            for i in left:
                if len(chosen) < num_samples and draw() < math.exp((row[i] - best) / beta):
                    chosen.append(i)
                else:
                    rejected.append(i)
            left = rejected
        accepted.append(chosen)
    return accepted


def seconds(way: Callable[[], object], times: int = 1) -> float:
    """Median wall time of `times` calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        way()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Time each variant and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.5, help="the paper's 0.5; rewards are standard normal")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(args.prompts, args.candidates, generator=generator)
    k, beta = args.samples, args.beta

    rejection_sample(rewards[:10], k, beta, generator)  # warm-up
    fast = seconds(lambda: rejection_sample(rewards, k, beta, generator), times=5)
    slow = {
        "algorithm_1, as printed": seconds(
            lambda: algorithm_1(rewards, k, beta, generator, shuffle=False, maximum="pass")
        ),
        "algorithm_1, fixed": seconds(lambda: algorithm_1(rewards, k, beta, generator)),
        "printed loop, Python's random": seconds(lambda: printed_loop(rewards.tolist(), k, beta, seed=0)),
    }
    print(
        f"{args.prompts:,} prompts × {args.candidates} candidates → {k}, beta {beta:g}, "
        f"{torch.get_num_threads()} threads"
    )
    table = pd.DataFrame({"seconds": {"rejection_sample (median of 5)": fast, **slow}})
    table["ratio"] = table["seconds"] / fast
    print(table.to_string(formatters={"seconds": "{:.4f}".format, "ratio": "{:.1f}×".format}))


if __name__ == "__main__":
    main()
