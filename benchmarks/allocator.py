"""What it saves on a CPU that freed memory is kept for the next tensor (`rlhf_lab/policies/transformer/malloc.py`).

Two processes take turns, one with RLHF_LAB_KEEP_MEMORY=0: first at DPO steps, then two others at sampling (GPT-2 of
6 × 384). Printed: median seconds and page faults of both, peak memory, and the ratio of the seconds. glibc's own
thresholds rise with what a process has freed before, so that a process that does both gains less.
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
    """One contender: at each line of its input a step or a sample; prints seconds, page faults, and its peak in MB."""
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
    """Let both take turns, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=6, help="turns of each; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", choices=["step", "sample"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run is not None:
        run(args.run, args.threads)
        return
    for what, said in WORK.items():
        kept, back = compare([sys.executable, __file__, "--run", what, "--threads", str(args.threads)], args.times)
        print(
            f"{said}, medians of {max(args.times - 1, 1)}: kept {kept[0]:.2f} s, {kept[1]:,.0f} page faults, peak "
            f"{kept[2]:.0f} MB; given back {back[0]:.2f} s, {back[1]:,.0f}, {back[2]:.0f} MB: ratio "
            f"{back[0] / kept[0]:.2f}×"
        )


def compare(command: list[str], times: int) -> list[list[float]]:
    """Let two processes take turns; for each, kept first, the medians of its numbers."""
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
