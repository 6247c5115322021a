"""Benchmark of log π(y|x) of preference pairs, forward and backward: shared prompts against padded rows.

The padded variant writes each prompt + response into a separate row, pads all rows to the longest, and computes logits
at every position. This package computes a pair's prompt once, and logits only where a response token is predicted. The
pairs have the lengths of TL;DR (prompts of about 300 tokens, responses of about 34). The model is a GPT-2 of 6 layers
of width 384. Both variants alternate in one run, and their values and gradients are compared.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy

VOCAB = 49_152


def tldr_shaped(count: int, seed: int) -> tuple[Tokens, Tokens]:
    """Random ids with TL;DR's lengths: prompts (B, P), responses (B, 2, T)."""
    draw = random.Random(seed)

    def sequence(mean: float, deviation: float, low: int, high: int) -> list[int]:
        length = min(max(int(draw.gauss(mean, deviation)), low), high)
        return [draw.randrange(500, VOCAB) for _ in range(length)]

    prompts = [sequence(300, 90, 120, 480) for _ in range(count)]
    responses = [[sequence(34, 12, 12, 60) for _ in range(2)] for _ in range(count)]
    return Tokens.from_lists(prompts), Tokens.from_lists(responses)


def plain(model: torch.nn.Module, prompts: Tokens, responses: Tokens) -> Tensor:
    """log π(y|x), of shape (B, 2), the simple way: 2B padded rows, all logits, log-softmax, gather, masked sum."""
    rows = [(x, x + y) for x, ys in zip(prompts.tolist(), responses.tolist(), strict=True) for y in ys]
    whole = Tokens.from_lists([row for _, row in rows])
    logits = model(whole.ids, attention_mask=whole.mask.long()).logits[:, :-1]
    log_p = logits.float().log_softmax(-1).gather(-1, whole.ids[:, 1:, None]).squeeze(-1)
    start = torch.tensor([len(x) for x, _ in rows])[:, None]
    place = torch.arange(1, whole.shape[1])[None]
    found: Tensor = (log_p * (whole.mask[:, 1:] & (place >= start))).sum(-1).view(len(prompts), 2)
    return found


def step(model: torch.nn.Module, log_prob: Callable[[], Tensor]) -> tuple[float, Tensor, Tensor]:
    """Run one forward and backward pass. Returns its seconds, its values, and one tensor of the gradient."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    values = log_prob()
    margin = values[:, 0] - values[:, 1]
    (-torch.nn.functional.logsigmoid(0.1 * margin)).mean().backward()
    seconds = time.perf_counter() - start
    gradient = model.get_parameter("transformer.wpe.weight").grad
    assert gradient is not None
    return seconds, values.detach(), gradient.clone()


def main(arguments: Sequence[str] | None = None) -> float:
    """Time both variants alternately, and print the medians and their ratio. Returns the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4, help="pairs per step")
    parser.add_argument("--times", type=int, default=5, help="steps of each variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one pair, one step of each variant")
    args = parser.parse_args(arguments)
    if args.quick:
        args.pairs, args.times = 1, 1
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=6, n_embd=384, n_head=6, n_positions=1024, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **attention,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=60)
    seconds: dict[str, list[float]] = {"plain": [], "shared prefix": []}
    for turn in range(args.times):
        prompts, responses = tldr_shaped(args.pairs, seed=turn)
        ways = {
            "plain": lambda p=prompts, r=responses: plain(model, p, r),
            "shared prefix": lambda p=prompts, r=responses: policy.log_prob(p, r),
        }
        found = {}
        # The order alternates, so that neither variant always finds warm memory.
        for name in sorted(ways, reverse=bool(turn % 2)):
            took, *found[name] = step(model, ways[name])
            seconds[name].append(took)
        value, gradient = (
            (a - b).abs().max().item() for a, b in zip(found["plain"], found["shared prefix"], strict=True)
        )
        if value > 5e-3 or gradient > 1e-4:
            raise SystemExit(
                f"The two variants differ by {value:.1e} in log-probabilities, {gradient:.1e} in gradients."
            )
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratio = medians["plain"] / medians["shared prefix"]
    print(
        f"(B, 2) log-probability, forward + backward, {args.pairs} TL;DR-shaped pairs, {args.threads} threads, "
        f"median of {args.times}: plain {medians['plain']:.2f} s, shared prefix {medians['shared prefix']:.2f} s, "
        f"ratio {ratio:.1f}"
    )
    print(f"  largest difference in the last turn: log-probabilities {value:.1e} nats, gradients {gradient:.1e}")
    return ratio


if __name__ == "__main__":
    main()
