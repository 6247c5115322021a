"""`rejection_sample` (all prompts at once) against the paper's loop: 10,000 prompts × 64 candidates → 8 samples.

Every way is timed on all prompts, in one run. The loop is timed three times: `algorithm_1` as printed in the
paper, `algorithm_1` with its traps mended (the same distribution as `rejection_sample`), and the printed loop
with Python's own random numbers, lest the ratio measure the price of drawing one torch number at a time.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable

import torch

from rlhf_lab.sampling import algorithm_1, rejection_sample


def printed_loop(rewards: list[list[float]], num_samples: int, beta: float, seed: int) -> list[list[int]]:
    """Algorithm 1 of RSO (Liu et al. 2023) over plain lists: scan in order, one maximum a pass."""
    draw = random.Random(seed).random
    accepted = []
    for row in rewards:
        left, kept = list(range(len(row))), []
        while len(kept) < num_samples:
            best = max(row[i] for i in left)
            rejected = []
            for i in left:
                if len(kept) < num_samples and draw() < math.exp((row[i] - best) / beta):
                    kept.append(i)
                else:
                    rejected.append(i)
            left = rejected
        accepted.append(kept)
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
    """Print seconds of each way and the ratios of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.5, help="the paper's 0.5; rewards are standard normal")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(args.prompts, args.candidates, generator=generator)
    k, beta = args.samples, args.beta

    rejection_sample(rewards[:10], k, beta, generator)  # the first call pays for loading
    fast = seconds(lambda: rejection_sample(rewards, k, beta, generator), times=5)
    slow = {
        "algorithm_1, as printed": seconds(
            lambda: algorithm_1(rewards, k, beta, generator, shuffle=False, maximum="pass")
        ),
        "algorithm_1, mended": seconds(lambda: algorithm_1(rewards, k, beta, generator)),
        "printed loop, Python's random": seconds(lambda: printed_loop(rewards.tolist(), k, beta, seed=0)),
    }
    print(
        f"{args.prompts:,} prompts × {args.candidates} candidates → {k}, beta {beta:g}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"  {'rejection_sample':<30} {fast:9.4f} s   (median of 5)")
    for name, taken in slow.items():
        print(f"  {name:<30} {taken:9.4f} s   {taken / fast:8.1f}× rejection_sample's time")


if __name__ == "__main__":
    main()
