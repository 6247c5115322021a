"""Benchmark of one training step against TRL on the same rows: DPO, SFT, reward model, KTO, GRPO, RLOO; and PPO.

    python benchmarks/trl_step.py --method sft --peer-venv DIR

A step is everything between two batches of data: forward and backward pass, clipping, AdamW, and sampling for the
methods that sample. DPO, SFT, the reward model and KTO get rows with the lengths of TL;DR or AnthropicHH. GRPO, RLOO
and PPO sample 8 responses of 32 tokens to prompts of 300, with a reward that costs nothing, and pass over them once
(`--epochs`). TRL 1.16 has no PPO trainer, so a step of PPO is compared with one of GRPO on as many samples.

This side calls the package's functions, as `rlhf-lab train` does. Only the loop is replaced, by one that waits before
each step. Model, rows, batch, precision, optimizer, learning rate, clipping, β and temperature are the same on both
sides, and reference log-probabilities of given data are computed before the first step. `trl_peer.py` lists TRL's
settings. TRL is installed in a separate environment, which is created at the first run or given by `--peer-venv`.

Both libraries run in processes that wait between steps, so their steps alternate and never overlap. The output contains
the median seconds, their ratio, peak memory, and the fraction of the machine's matrix-product rate that the step
reaches. This is the number of operations that the step needs (`shapes.step_flops`), divided by its time and the rate.
The last line is the row of the table in docs/benchmarks.md. With `--clock cpu --threads 1` the times and the rate are
those of the processor's work for the process, which other work on the machine changes less.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from shapes import BATCH, PROMPT, SAMPLES, TOKENS, Lengths, gpt2, method_rows, step_flops
from torch import Tensor
from trl_peer import CLOCKS, add_options, peak, wait

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.grpo_rloo import Group, group
from rlhf_lab.algorithms.kto import KTO, kto
from rlhf_lab.algorithms.labelled_responses import LabelledResponses, mismatched
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Loop, Training

HERE = Path(__file__).parent
PEER = ["torch", "transformers", "trl==1.16.*", "datasets"]
MODULES = {"reward": "reward_model", "grpo": "grpo_rloo", "rloo": "grpo_rloo"}
"""Names of the modules in `rlhf_lab.algorithms` that are not those of the methods."""
NAMES = {"reward": "Reward model"}
Rows = list[tuple[list[int], list[list[int]]]]


class TimedLoop(Loop):
    """The package's loop, with the rows in their order. It waits before each step, and prints its numbers after it."""

    lengths: ClassVar[Lengths]
    method: ClassVar[str]
    epochs: ClassVar[int]
    clock: ClassVar[str]

    def rows(self, number: int) -> Tensor:
        """The rows of the current step."""
        self._rows = torch.arange(self.done * self.training.batch_size, (self.done + 1) * self.training.batch_size)
        return self._rows

    def __iter__(self) -> Iterator[tuple[int, torch.Generator]]:
        square, size, clock = torch.randn(2048, 2048), self.training.batch_size, CLOCKS[self.clock]
        for step, generator in super().__iter__():
            wait()
            start = clock()
            yield step, generator
            seconds, memory = clock() - start, peak()
            start = clock()
            square @ square
            rate = 2 * 2048**3 / (clock() - start)
            needed = step_flops(self.method, self.lengths[step * size : (step + 1) * size], self.epochs)
            print(seconds, memory, rate, needed, flush=True)


def labelled_of(rows: Rows) -> LabelledResponses:
    """The rows of KTO: those with even numbers are desirable."""
    desirable = torch.tensor([[number % 2 == 0] for number in range(len(rows))])
    return LabelledResponses(
        Tokens.from_lists([x for x, _ in rows]), Tokens.from_lists([y for _, y in rows]), desirable
    )


def lengths_of(method: str, rows: Rows, tokens: int = TOKENS) -> Lengths:
    """The numbers of tokens that `step_flops` needs; `tokens` is the length of a sampled response."""
    if method in ("grpo", "rloo", "ppo"):
        return [(len(x), [tokens] * SAMPLES) for x, _ in rows]
    given = [(len(x), [len(y) for y in responses]) for x, responses in rows]
    if method == "kto":
        other = mismatched(labelled_of(rows))
        assert other is not None
        given = [(p, [*own, int(n)]) for (p, own), n in zip(given, other.lengths[:, 0], strict=True)]
    return given


def even_ids(prompts: Tokens, responses: Tokens) -> Tensor:
    """The reward: the fraction of even ids in a response."""
    return ((responses.ids % 2 == 0) & responses.mask).sum(-1) / responses.lengths


def train(method: str, policy: LanguageModelPolicy, rows: Rows, training: Training, epochs: int = 1) -> None:
    """Train `policy` on the rows with the package's function."""
    prompts, size = Tokens.from_lists([x for x, _ in rows]), training.batch_size

    @torch.no_grad()
    def log_ref(responses: Tokens) -> Tensor:  # before training, so the policy is the reference
        starts = range(0, len(prompts), size)
        return torch.cat([policy.log_prob(prompts[i : i + size], responses[i : i + size]) for i in starts])

    if method in ("grpo", "rloo"):
        kind: Any = method
        settings = Group(kind=kind, beta=0.1, samples=SAMPLES, epochs=epochs)
        group(policy, policy.frozen(), even_ids, prompts, settings, training)
    elif method == "ppo":
        reference, critic = policy.frozen(), policy.new_critic()
        ppo(policy, reference, even_ids, critic, prompts, PPO(beta=0.1, samples=SAMPLES, epochs=epochs), training)
    elif method == "kto":
        kto(policy, policy, labelled_of(rows), KTO(beta=0.1), training, reference_log_probs=log_ref)
    else:
        responses = Tokens.from_lists([y for _, y in rows])
        if method == "sft":
            sft(policy, prompts, responses, training)
        elif method == "reward":
            reward_model(policy.new_reward_model(), Pairs(prompts, responses), RewardModel(prior=0.0), training)
        else:
            known = log_ref(responses)
            dpo(policy, None, Pairs(prompts, responses), DPO(beta=0.1), training, reference_log_probs=known)


def run_lab(args: argparse.Namespace) -> None:
    """Run this package's steps, with a loop that waits."""
    torch.set_num_threads(args.threads)
    rows = method_rows(args.method, args.shape, args.steps * args.batch)
    TimedLoop.method, TimedLoop.epochs, TimedLoop.clock = args.method, args.epochs, args.clock
    TimedLoop.lengths = lengths_of(args.method, rows)
    module = importlib.import_module(f"rlhf_lab.algorithms.{MODULES.get(args.method, args.method)}")
    setattr(module, "Loop", TimedLoop)  # noqa: B010
    samples = args.method in ("grpo", "rloo", "ppo")
    policy = LanguageModelPolicy(gpt2(), end_token=None if samples else 0, max_new_tokens=TOKENS)
    training = Training(
        steps=args.steps, batch_size=args.batch, learning_rate=1e-5, optimizer="adamw", max_grad_norm=1.0,
        precision=args.precision, progress=False,
    )  # fmt: skip
    train(args.method, policy, rows, training, args.epochs)


def peer_python(folder: Path | None) -> Path:
    """The Python of an environment with TRL, which is created in the user's cache if none is given."""
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_lab" / "trl-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"Making an environment for TRL in {folder} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "-c", str(HERE.parent / "constraints.txt"), *PEER]
        subprocess.run(command, check=True)
    return python


class Contender:
    """A process that runs one step on demand."""

    def __init__(self, command: list[str], method: str, args: argparse.Namespace) -> None:
        command = [*command, "--method", method]
        for name in ("shape", "steps", "batch", "epochs", "threads", "precision", "clock"):
            command += [f"--{name}", str(getattr(args, name))]
        self.rows: list[list[float]] = []
        self.process = subprocess.Popen(
            command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def line(self, wanted: Callable[[str], bool]) -> str:
        """The next line of its output for which `wanted` is true."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted(line):
                return line
        command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
        raise SystemExit(f"A process ended before its last step. Run it alone in {HERE} to see why: {command}")

    def step(self) -> None:
        """Let it run a step, and record the numbers that it prints."""
        self.line(lambda line: line.strip() == "ready")
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rows.append([float(x) for x in self.line(_numbers).split()])

    def column(self, i: int) -> list[float]:
        """One number of every step except the first, which allocates memory."""
        return [row[i] for row in self.rows[1:] or self.rows]

    def share(self) -> float:
        """The median fraction of the matrix-product rate that the steps reach."""
        columns = zip(self.column(0), self.column(2), self.column(3), strict=True)
        return statistics.median([flops / took / rate for took, rate, flops in columns])


def _numbers(line: str) -> bool:
    try:
        return len([float(x) for x in line.split()]) >= 2
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> float:
    """Run both alternately and print the comparison. Returns the ratio of the medians, 1 with `--alone`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--peer-venv", type=Path, help="an environment with torch, transformers, trl and datasets")
    parser.add_argument("--alone", action="store_true", help="run this package's method only, without the comparison")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.batch = args.batch or BATCH[args.method]
    if args.run:
        run_lab(args)
        return 0.0
    mine = [sys.executable, __file__, "--run"]
    contenders = [Contender(mine, args.method, args)]
    if args.method == "ppo" and not args.alone:
        contenders.append(Contender(mine, "grpo", args))
    elif not args.alone:
        peer = [str(peer_python(args.peer_venv)), str(HERE / "trl_peer.py")]
        contenders.append(Contender(peer, args.method, args))
    for _ in range(args.steps):
        for contender in contenders:
            contender.step()
    report(contenders, args)
    seconds = [statistics.median(c.column(0)) for c in contenders]
    return seconds[-1] / seconds[0]


def report(contenders: list[Contender], args: argparse.Namespace) -> None:
    """Print the medians, the share of the matrix-product rate, and the row of the table in docs/benchmarks.md."""
    lab, *others = contenders
    seconds = [statistics.median(c.column(0)) for c in contenders]
    memory = [max(c.column(1)) for c in contenders]
    rate = f"{statistics.median(lab.column(2)) / 1e9:.0f}"
    what = f"{NAMES.get(args.method, args.method.upper())} step, {args.batch} "
    if args.method in ("grpo", "rloo", "ppo"):
        passes = f", {args.epochs} passes" if args.epochs > 1 else ""
        what += f"prompts of {PROMPT} with {SAMPLES} × {TOKENS} tokens each{passes}"
    else:
        shape = {"tldr": "TL;DR", "hh": "HH"}[args.shape]
        what += f"{shape}-shaped {'pairs' if args.method in ('dpo', 'reward') else 'responses'}"
    if args.precision != "fp32":
        what += f", {args.precision}"
    if args.clock == "cpu":
        what += f", processor seconds with {args.threads} thread{'s' * (args.threads > 1)}"
    counted = f"medians of {args.steps - 1}" if args.steps > 2 else "one step"
    print(f"{what}: {seconds[0]:.2f} s ({counted}), peak memory {memory[0]:,.0f} MB")
    print(
        f"  required operations: {statistics.median(lab.column(3)) / 1e9:.0f} GFLOP per step at {lab.share():.0%} of "
        f"this machine's matrix-product rate ({rate} GFLOP/s, measured after each step)"
    )
    if not others:
        return
    if args.method == "ppo":
        print(f"  GRPO on as many samples: {seconds[1]:.2f} s, so PPO takes {seconds[0] / seconds[1]:.2f}× that")
        return
    print(
        f"| {what} ({counted}) | {seconds[1]:.2f} s, {memory[1]:,.0f} MB | {seconds[0]:.2f} s, "
        f"{memory[0]:,.0f} MB | {seconds[1] / seconds[0]:.1f}× | {memory[0] / memory[1]:.2f}× | {rate} | "
        f"{100 * lab.share():.0f} % |"
    )


if __name__ == "__main__":
    main()
