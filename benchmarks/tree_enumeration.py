"""log π(y|x) of every sequence of a tree under a small transformer: shared prefixes once, against each sequence alone.

The tree has V = 8 and L = 4: 4,096 sequences with 585 prefixes between them; the model is a GPT-2 of 2 layers of 64.
The plain ways run the Hugging Face model on rows of prompt + sequence and take log-softmax and gather of all its
logits: in one batch of all rows, in batches of 256, and, for the first 256 sequences, one row at a time. All ways
take turns in one run, without gradients, and their values are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.response_tree import ResponseTree


def plain(policy: TreeTransformerPolicy, prompt: Tokens, responses: Tensor, batch: int) -> Tensor:
    """(K,) the textbook way: rows of prompt + sequence, all logits, log-softmax, gather, sum."""
    out = []
    for ids in responses.split(batch):
        rows = torch.cat([prompt.ids.expand(len(ids), -1), ids], -1)
        logits = policy.model(rows, attention_mask=torch.ones_like(rows)).logits
        log_p = logits[:, prompt.shape[-1] - 1 : -1, : policy.tree.vocab_size].log_softmax(-1)
        out.append(log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1).sum(-1))
    return torch.cat(out)


def timed(way: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of one call, and what it found."""
    start = time.perf_counter()
    found = way()
    return time.perf_counter() - start, found


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> float:
    """Time all ways in turn, print medians and their ratios; returns the ratio to batches of 256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--times", type=int, default=9, help="calls of each way")
    parser.add_argument("--alone", type=int, default=256, help="sequences that are scored one row at a time")
    parser.add_argument("--threads", type=int, default=1, help="layers of 64 gain nothing from more")
    parser.add_argument("--quick", action="store_true", help="a tree of 64 sequences, one call of each way")
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
        way()  # the first call pays for loading
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.times):
        found = {}
        # The order turns round every time, so that no way always finds the memory warm.
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            took, found[name] = timed(ways[name][0])
            seconds[name].append(took * ways[name][1])
        difference = max(float((found["enumerate"][: len(v)] - v).abs().max()) for v in found.values())
        if difference > 1e-4:
            raise SystemExit(f"The ways differ by {difference:.1e} nats.")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    prefixes = sum(nodes for nodes, _ in tree.shapes)
    print(
        f"{number:,} sequences (V = {args.vocab_size}, L = {args.depth}), {prefixes:,} prefixes, GPT-2 of 2 × 64, "
        f"threads: {args.threads}, median of {args.times}, values equal to {difference:.0e} nats"
    )
    for name, taken in medians.items():
        ratio = taken / medians["enumerate"]
        scaled = f"   ({alone} sequences, scaled to {number:,})" if ways[name][1] != 1 else ""
        print(f"  {name:<18} {1e3 * taken:10.1f} ms   {ratio:7.1f}× enumerate's time{scaled}")
    return medians["batches of 256"] / medians["enumerate"]


if __name__ == "__main__":
    main()
