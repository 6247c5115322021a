"""Benchmark of one DPO step (forward, backward, AdamW) against TRL's `DPOTrainer` on the same pairs.

TRL runs with its fastest settings here: precomputed reference log-probabilities, no gradient checkpointing, no logging.
It is installed in a separate environment, which is created at the first run or given by `--peer-venv`. Both libraries
run in processes that wait between steps, so their steps alternate and never overlap. The output contains the median
seconds, their ratio, peak memory, and the fraction of the machine's matrix-product rate that the step reaches.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shapes import gpt2, needed_flops, pairs

HERE = Path(__file__).parent
PEER = ["torch", "transformers", "trl==1.16.*", "datasets"]


def wait() -> None:
    """Announce that a step may begin, and wait for the permission."""
    print("ready", flush=True)
    sys.stdin.readline()


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_trl(shape: str, steps: int, batch: int, precision: str) -> None:
    """Run TRL's steps, in the environment in which it is installed."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import copy

    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    # Each word is one token, so texts correspond to ids.
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, 49_152)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")

    def text(ids: list[int]) -> str:
        return " " + " ".join(f"w{i}" for i in ids) + " "

    rows = [{"prompt": text(x), "chosen": text(c), "rejected": text(r)} for x, c, r in pairs(shape, steps * batch)]
    model = gpt2()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            print(time.perf_counter() - self.start, peak(), flush=True)

    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps, report_to=[],
        logging_steps=10_000, save_strategy="no", use_cpu=True, precompute_ref_log_probs=True,
        bf16=precision == "bf16", gradient_checkpointing=False, beta=0.1, learning_rate=1e-5,
        dataloader_pin_memory=False, seed=0, disable_tqdm=True,
    )  # fmt: skip
    DPOTrainer(
        model=model, ref_model=copy.deepcopy(model), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Clock()],
    ).train()  # fmt: skip


def run_lab(shape: str, steps: int, batch: int, precision: str) -> None:
    """Run this package's steps, with the loop and the loss of `rlhf-lab train dpo`."""
    from functools import partial

    import torch

    from rlhf_lab.algorithms.dpo import DPO, pair_loss, reference_log_probs
    from rlhf_lab.batch import Pairs, Tokens
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.training import Loop, Training

    rows = pairs(shape, steps * batch)
    data = Pairs(Tokens.from_lists([x for x, _, _ in rows]), Tokens.from_lists([[c, r] for _, c, r in rows]))
    policy = LanguageModelPolicy(gpt2(), end_token=0, max_new_tokens=64)
    known = reference_log_probs(policy, data, batch)
    lower = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    training = Training(
        steps=steps, batch_size=batch, learning_rate=1e-5, optimizer="adamw", max_grad_norm=1.0, progress=False
    )
    square = torch.randn(2048, 2048)
    loss = DPO(beta=0.1)

    def under(policy_: LanguageModelPolicy, chunk: Pairs, log_ref: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        with lower:
            return pair_loss(policy_, chunk, log_ref, loss)

    with Loop("dpo", policy, training, loss) as loop:
        for step, _ in loop:
            here = slice(step * batch, (step + 1) * batch)
            wait()
            start = time.perf_counter()
            loop.update(partial(under, policy, data[here].to(policy.device), known[here]))
            seconds, memory = time.perf_counter() - start, peak()
            start = time.perf_counter()
            square @ square
            rate = 2 * 2048**3 / (time.perf_counter() - start)
            print(seconds, memory, rate, needed_flops(rows[here]), flush=True)


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

    def __init__(self, python: Path | str, name: str, args: argparse.Namespace) -> None:
        command = [str(python), __file__, "--run", name, "--shape", args.shape, "--steps", str(args.steps)]
        command += ["--batch", str(args.batch), "--threads", str(args.threads), "--precision", args.precision]
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
        raise SystemExit("A process ended before its last step. Run it alone (--run) to see why.")

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


def _numbers(line: str) -> bool:
    try:
        return len([float(x) for x in line.split()]) >= 2
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> float:
    """Run both alternately and print the comparison. Returns the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tldr", choices=["tldr", "hh"])
    parser.add_argument("--steps", type=int, default=4, help="steps of each library; the first is not counted")
    parser.add_argument("--batch", type=int, default=4, help="pairs per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--peer-venv", type=Path, help="an environment with torch, transformers, trl and datasets")
    parser.add_argument("--alone", action="store_true", help="run this package only, without TRL")
    parser.add_argument("--run", choices=["trl", "lab"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run is not None:
        import torch

        torch.set_num_threads(args.threads)
        (run_trl if args.run == "trl" else run_lab)(args.shape, args.steps, args.batch, args.precision)
        return 0.0
    lab = Contender(sys.executable, "lab", args)
    both = [lab] if args.alone else [lab, Contender(peer_python(args.peer_venv), "trl", args)]
    for _ in range(args.steps):
        for contender in both:
            contender.step()
    seconds = [statistics.median(c.column(0)) for c in both]
    shares = [
        flops / took / rate for took, rate, flops in zip(lab.column(0), lab.column(2), lab.column(3), strict=True)
    ]
    print(
        f"DPO step, {args.batch} {args.shape}-shaped pairs, {args.precision}, {args.threads} threads, median of "
        f"{max(args.steps - 1, 1)}: lab {seconds[0]:.2f} s, peak memory {max(lab.column(1)):.0f} MB"
    )
    print(
        f"  required operations: {statistics.median(lab.column(3)) / 1e9:.0f} GFLOP per step at "
        f"{statistics.median(shares):.0%} of this machine's matrix-product rate "
        f"({statistics.median(lab.column(2)) / 1e9:.0f} GFLOP/s, measured after each step)"
    )
    if args.alone:
        return 0.0
    ratio = seconds[1] / seconds[0]
    memory = max(lab.column(1)) / max(both[1].column(1))
    print(f"  TRL {seconds[1]:.2f} s, {max(both[1].column(1)):.0f} MB: ratio {ratio:.1f}×, memory {memory:.2f}×")
    return ratio


if __name__ == "__main__":
    main()
