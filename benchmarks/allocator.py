"""Benchmark of memory reuse on a CPU (`rlhf_lab/policies/transformer/malloc.py`): new tensors reuse freed memory.

Two processes alternate, one of them with RLHF_LAB_KEEP_MEMORY=0. They first run DPO steps, and then two other processes
sample (GPT-2 of 6 × 384). The output contains the median seconds and page faults of both, their peak memory, and the
ratio of the seconds. glibc raises its thresholds when a process frees memory, so a process that does both gains less.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from shapes import VOCAB, gpt2, pairs

WORK = {"step": "DPO step, 4 TL;DR-shaped pairs", "sample": "64 responses of 32 tokens to 300"}


def run(what: str, threads: int) -> None:
    """One process: for each input line, run a step or sample, and print seconds, page faults and peak memory in MB."""
    import torch

    from rlhf_lab.algorithms.dpo import DPO, pair_loss
    from rlhf_lab.batch import Pairs, Tokens
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    torch.set_num_threads(threads)
    policy = LanguageModelPolicy(gpt2(), end_token=None, max_new_tokens=32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)
    prompt = Tokens.full(torch.randint(500, VOCAB, (1, 300), generator=torch.Generator().manual_seed(0)))
    reference = torch.zeros(4, 2)

    def step(turn: int) -> None:
        rows = pairs("tldr", 4, turn)
        batch = Pairs(Tokens.from_lists([x for x, _, _ in rows]), Tokens.from_lists([[c, r] for _, c, r in rows]))
        loss, _ = pair_loss(policy, batch, reference, DPO(beta=0.1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def sample(turn: int) -> None:
        policy.sample(prompt, 64, torch.Generator().manual_seed(turn), 0.7)

    def measure(work: Callable[[int], None], turn: int) -> tuple[float, int]:
        start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work(turn)
        return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults

    for turn, _ in enumerate(sys.stdin):
        print(
            *measure({"step": step, "sample": sample}[what], turn),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both kinds of work and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=6, help="repetitions of each; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", choices=["step", "sample"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run is not None:
        run(args.run, args.threads)
        return
    for what, name in WORK.items():
        reused, freed = compare([sys.executable, __file__, "--run", what, "--threads", str(args.threads)], args.times)
        print(
            f"{name}, medians of {max(args.times - 1, 1)}: memory reused {reused[0]:.2f} s, {reused[1]:,.0f} page "
            f"faults, peak {reused[2]:.0f} MB; returned {freed[0]:.2f} s, {freed[1]:,.0f}, {freed[2]:.0f} MB; ratio "
            f"{freed[0] / reused[0]:.2f}×"
        )


def compare(command: list[str], times: int) -> list[list[float]]:
    """Run two processes alternately. Returns the medians of their numbers, first with memory reuse, then without."""
    both = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RLHF_LAB_KEEP_MEMORY": switch},
        )
        for switch in ("1", "0")
    ]  # fmt: skip
    rows: list[list[list[float]]] = [[], []]
    for _ in range(times):
        for process, taken in zip(both, rows, strict=True):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            taken.append([float(x) for x in process.stdout.readline().split()])
    for process in both:
        process.communicate()
    return [[statistics.median(column) for column in zip(*(taken[1:] or taken), strict=True)] for taken in rows]


if __name__ == "__main__":
    main()
