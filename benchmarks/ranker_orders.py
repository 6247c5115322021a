"""Accuracy of RSO's pairwise ranker when each training pair is shown in a random order, and when it is shown in both.

The pairs are sampled from the shipped model on a text world and labelled by the higher gold reward. The output
contains the accuracy on held-out pairs, where the ranker averages both orders. It is given after equal numbers of
steps, and for `both` also after half of them, which costs the same. The last lines give the difference to `random`,
paired within seeds, with its 95% interval.
"""

import argparse

import numpy as np
import torch

from rlhf_lab.algorithms.ranker import Ranker, ranker
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.evaluation.sampled import mean_interval
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import load_language_model
from rlhf_lab.rewards.ranker import PairwiseRanker
from rlhf_lab.rounding import wins
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import text


def accuracy(model: PairwiseRanker, pairs: Pairs) -> float:
    """The fraction of pairs whose better response is preferred; ties count half."""
    sides = [Tokens(pairs.responses.ids[:, i : i + 1], pairs.responses.mask[:, i : i + 1]) for i in (0, 1)]
    with torch.no_grad():
        return float(wins(model(pairs.prompts, *sides), 0.0).double().mean())


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", default="sentiment")
    parser.add_argument("--pairs", type=int, default=1000, help="training pairs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    language_model, tokenizer = load_language_model("lab-gpt2", "cpu")
    world = text.load(options.world)
    policy = LanguageModelPolicy(
        language_model, tokenizer.eos_token_id, world.max_response_tokens(tokenizer), len(tokenizer), tokenizer
    )
    runs = {"random": options.steps, "both": options.steps, "both, half the steps": options.steps // 2}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for seed in range(options.seeds):
        # The labels are almost noise-free: the better response nearly always wins.
        draw = (policy, tokenizer, "train", options.pairs + 400, seeded(seed), 1e-3, 0.0, False)
        pairs, _ = world.preferences(*draw)
        unseen, known = pairs[torch.arange(300)], pairs[torch.arange(300, len(pairs))]
        for name, steps in runs.items():
            model = PairwiseRanker(policy, tokenizer=tokenizer, seed=seed)
            training = Training(
                steps=steps,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                seed=seed,
                progress=False,
            )
            ranker(model, known, Ranker("both" if name.startswith("both") else "random"), training)
            found[name].append(accuracy(model, unseen))
            print(f"seed {seed}, {name:<21} {steps:>5} steps: {found[name][-1]:.1%}", flush=True)
    print(f"\nworld:{options.world}, {options.pairs} pairs, batches of {options.batch_size}, {options.seeds} seeds")
    for name, shares in found.items():
        print(f"orders {name:<21} {sum(shares) / len(shares):.1%}")
    for name in list(runs)[1:]:
        gain, low, high = mean_interval(100 * (np.array(found[name]) - np.array(found["random"])))
        print(f"{name} over random: {gain:+.1f} points [{low:+.1f}, {high:+.1f}]")


if __name__ == "__main__":
    main()
