"""Benchmark of the parts of a GRPO step: sampling, the reference, and the forward and backward pass.

    python benchmarks/grpo_phases.py

The model, the prompts and the settings are those of `trl_step.py --method grpo`. For each part the output contains the
median seconds and the fraction of the machine's matrix-product rate that the part reaches (`shapes.forward_flops`).
The last line is the rate of the product that samples the next token of all responses, the states times the vocabulary
matrix, which is a large part of sampling.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from shapes import BATCH, PROMPT, SAMPLES, TOKENS, VOCAB, WIDTH, forward_flops, gpt2, method_rows

from rlhf_lab.algorithms.grpo_rloo import Group, group_loss
from rlhf_lab.batch import Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy

REPEATS = 5


def main() -> None:
    """Run the parts of a step several times and print their medians."""
    torch.set_num_threads(2)
    policy = LanguageModelPolicy(gpt2(), end_token=None, max_new_tokens=TOKENS)
    prompts = Tokens.from_lists([prompt for prompt, _ in method_rows("grpo", "tldr", BATCH["grpo"])])
    needed = forward_flops([(PROMPT, [TOKENS] * SAMPLES)] * BATCH["grpo"])
    settings, score = Group(kind="grpo", beta=0.1, samples=SAMPLES), torch.rand(BATCH["grpo"], SAMPLES)
    square, vocabulary, states = (torch.randn(*size) for size in ((2048, 2048), (VOCAB, WIDTH), (score.numel(), WIDTH)))
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for seed in range(REPEATS + 1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            responses = timed("sampling", partial(policy.sample, prompts, SAMPLES, generator))
            log_ref = timed("reference", partial(policy.token_log_probs, prompts, responses))
        loss, _ = timed("forward pass", partial(group_loss, policy, prompts, responses, score, log_ref, None, settings))
        timed("backward pass", loss.backward)
        timed("matrix product", partial(torch.matmul, square, square))
        timed("next token", partial(torch.nn.functional.linear, states, vocabulary))
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    rate = 2 * 2048**3 / median["matrix product"]
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s (medians of {REPEATS})")
    for name, passes in (("sampling", 1), ("reference", 1), ("forward pass", 1), ("backward pass", 2)):
        print(f"{name}: {median[name]:.2f} s, {passes * needed / median[name] / rate:.0%} of this rate")
    print(f"next token: {2 * states.numel() * VOCAB / median['next token'] / rate:.0%} of this rate")


if __name__ == "__main__":
    main()
