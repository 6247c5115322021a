"""Benchmark of log π(y|x) of every sequence of a token tree: shared prefixes against separate sequences.

The tree has V = 8 and L = 4, which gives 4,096 sequences with 585 prefixes. The model is a GPT-2 of 2 layers of width
64. The other variants run the Hugging Face model on rows of prompt + sequence, with log-softmax and gather of all
logits: in one batch, in batches of 256, and, for the first 256 sequences, one row at a time. All variants alternate in
one run without gradients, and their values are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.response_tree import ResponseTree


def plain(policy: TreeTransformerPolicy, prompt: Tokens, responses: Tensor, batch: int) -> Tensor:
    """log π(y|x), of shape (K,), the simple way: rows of prompt + sequence, all logits, log-softmax, gather, sum."""
    out = []
    for ids in responses.split(batch):
        rows = torch.cat([prompt.ids.expand(len(ids), -1), ids], -1)
        logits = policy.model(rows, attention_mask=torch.ones_like(rows)).logits
        log_p = logits[:, prompt.shape[-1] - 1 : -1, : policy.tree.vocab_size].log_softmax(-1)
        out.append(log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1).sum(-1))
    return torch.cat(out)


def timed(way: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> float:
    """Time all variants alternately, and print the medians and their ratios. Returns the ratio to batches of 256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--times", type=int, default=9, help="calls of each variant")
    parser.add_argument("--alone", type=int, default=256, help="sequences that are scored one row at a time")
    parser.add_argument("--threads", type=int, default=1, help="more threads do not help layers of width 64")
    parser.add_argument("--quick", action="store_true", help="a tree of 64 sequences, one call of each variant")
    args = parser.parse_args(arguments)
    if args.quick:
        args.depth, args.times, args.alone = 2, 1, 16
    torch.set_num_threads(args.threads)
    tree = ResponseTree(args.vocab_size, args.depth)
    policy = TreeTransformerPolicy(tree, num_prompts=1, layers=2, width=64, heads=2).eval()
    prompt, responses = tree.prompts(1), tree.responses.ids
    number, alone = len(responses), min(args.alone, len(responses))
    ways: dict[str, tuple[Callable[[], Tensor], float]] = {
        "enumerate": (lambda: policy.enumerate(prompt)[1][0], 1.0),
        "one batch of all": (lambda: plain(policy, prompt, responses, number), 1.0),
        "batches of 256": (lambda: plain(policy, prompt, responses, 256), 1.0),
        "one at a time": (lambda: plain(policy, prompt, responses[:alone], 1), number / alone),
    }
    for way, _ in ways.values():
        way()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.times):
        found = {}
        # The order is reversed every time, so that no variant always finds warm memory.
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            took, found[name] = timed(ways[name][0])
            seconds[name].append(took * ways[name][1])
        difference = max(float((found["enumerate"][: len(v)] - v).abs().max()) for v in found.values())
        if difference > 1e-4:
            raise SystemExit(f"The variants differ by {difference:.1e} nats.")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    prefixes = sum(nodes for nodes, _ in tree.shapes)
    print(
        f"{number:,} sequences (V = {args.vocab_size}, L = {args.depth}), {prefixes:,} prefixes, GPT-2 of 2 × 64, "
        f"threads: {args.threads}, median of {args.times}, values equal to {difference:.0e} nats"
    )
    table = pd.DataFrame({"ms": medians}) * 1e3
    table["ratio"] = table["ms"] / table["ms"]["enumerate"]
    print(table.to_string(float_format="{:,.1f}".format))
    if alone < number:
        print(f"  {alone} sequences were scored one at a time, and their time was scaled to {number:,}.")
    return medians["batches of 256"] / medians["enumerate"]


if __name__ == "__main__":
    main()
