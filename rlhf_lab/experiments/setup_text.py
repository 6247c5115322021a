"""Set-ups on a language model: a text world with its reference policy, and everything that the methods of a seed share.

A `TextTask` is one text world with one reference policy. A `TextSetup` is one seed of it: its own labels (two responses
of π_ref to each prompt, one Bradley–Terry label each) and its own reward model, fitted to them. Rewards are measured
in logits of a label, r* = gold / unit. Then r* differs by about 1 between two responses of π_ref, as on the exact
scales, and β means the same on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from rlhf_lab import evaluation
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation.judges import Judge
from rlhf_lab.experiments.setup import Setup, SetupBudget
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import rounding, wins
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import text

UNITS = {"sentiment": 0.7, "summaries": 0.25, "dialogue": 0.5, "translation": 0.15}
"""Difference of gold reward that is one logit of a label. It is about the standard deviation of the gold reward among
the responses of π_ref to one prompt (0.74, 0.24, 0.48 and 0.14 on validation prompts), rounded."""
SFT_STEPS = 300
"""Optimiser steps of SFT on the world's targets for a model that does not ship; the result is the reference policy."""
BUDGET = SetupBudget(
    labels=512, prompts=128, steps=60, batch_size=16, learning_rate=3e-4, max_grad_norm=1.0, reward_steps=120,
    reward_rate=1e-3,
)  # fmt: skip
"""The usual budget on a language model."""


@dataclass(frozen=True, eq=False)
class TextTask:
    """One text world with its reference policy.

    Attributes:
        world: prompts, targets and the gold reward.
        reference: π_ref, frozen.
        tokenizer: of the reference policy.
        unit: difference of gold reward that is one logit of a label.
    """

    world: text.TextWorld
    reference: Policy
    tokenizer: Any
    unit: float

    @cached_property
    def pool(self) -> Tokens:
        """The first 2,048 prompts of the training split, tokenised once. Every seed draws its prompts from these."""
        return self.world.prompts(self.tokenizer, "train", 2048)

    def gold(self, prompts: Tokens, responses: Tokens) -> torch.Tensor:
        """r* = gold / unit of each response, (B, G), float64."""
        return self.world.reward(self.tokenizer)(prompts, responses).double() / self.unit


@lru_cache(maxsize=2)
def text_task(scale: str, world: str) -> TextTask:
    """The task of a scale and a text world.

    Args:
        scale: "small" for the shipped lab-gpt2. Any other name is a model, which is first fitted to the targets.
        world: which text world.

    Raises:
        LabError: an unknown world; a model that cannot be loaded.
    """
    from rlhf_lab.policies.end_tokens import find_end_tokens
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.policies.loading import SHIPPED, load_language_model, pick_device, show_progress_bars

    if world not in UNITS:
        raise LabError(f"There is no text world '{world}'; there are {', '.join(UNITS)}.")
    show_progress_bars(False)
    name = "lab-gpt2" if scale == "small" else scale
    # The small model always runs on the CPU, so that its results come from the same kind of machine everywhere.
    place = "cpu" if scale == "small" else str(pick_device("auto"))
    model, tokenizer = load_language_model(name, device=place, dtype=torch.float32)
    made = text.load(world)
    # A third more than the longest of 512 targets: tokenising all ten thousand targets would take seconds.
    longest = made.sft(tokenizer, "train", 512)[1].shape[-1] * 4 // 3
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], max_new_tokens=longest, tokenizer=tokenizer, end_tokens=ends)
    if name not in SHIPPED:
        training = Training(steps=SFT_STEPS, batch_size=16, learning_rate=5e-5, warmup=20, progress=False)
        sft(policy, *made.sft(tokenizer, "train"), training)
    return TextTask(made, policy.frozen(), tokenizer, UNITS[world])


@dataclass(eq=False)
class TextSetup(Setup):
    """One seed on a language model.

    Attributes:
        task: text world and reference policy.
        budget: see `Setup`.
        seed: see `Setup`.
    """

    task: TextTask
    budget: SetupBudget
    seed: int

    @property
    def reference(self) -> Policy:
        """π_ref, frozen."""
        return self.task.reference

    @cached_property
    def prompts(self) -> Tokens:
        """The prompts that sampling methods answer, drawn from the training split by this seed."""
        every = self.task.pool
        order = torch.randperm(len(every), generator=seeded(self.seed, Stream.PROMPTS))
        return every[order[: self.budget.prompts]]

    @property
    def method_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Fewer responses than on finite worlds, where sampling is cheap."""
        return {"ppo": {"samples": 4, "epochs": 2}, "rso-rso-sample-rank": {"candidates": 32}}

    def collect(self, policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """See `Setup.collect`."""
        task = self.task
        return task.world.preferences(
            policy, task.tokenizer, "train", number, generator, task.unit, self.budget.noise, progress=False
        )[0]

    def gold(self, prompts: Tokens, responses: Tokens) -> torch.Tensor:
        """See `Setup.gold`."""
        return self.task.gold(prompts, responses)

    @torch.no_grad()
    def evaluate(
        self,
        policy: Policy,
        split: str = "test",
        temperature: float = 1.0,
        proxy: Reward | None = None,
        judge: Judge | None = None,
        beta: float | None = None,
        first: int = 0,
    ) -> dict[str, float]:
        """Estimate a policy's numbers on some prompts of a split, each a mean over prompts and responses.

        The samples depend on the seed of the set-up. Compare conditions within a seed, and give intervals over seeds.

        Args:
            policy: what was trained.
            split: test for results, validation for searches.
            temperature: of sampling; 0 is the likeliest token each time.
            proxy: a reward model that also scores the responses; None for none.
            judge: compares each response with the target; None for none.
            beta: of J; None for the budget's.
            first: number of the first prompt. Where it depends on the seed, intervals over seeds contain the error of
                the prompts.

        Returns:
            gold (raw), reward (r* = gold / unit), kl (k1, nats; at temperature 1 only, else NaN), objective
            (reward − β kl), gold_wins (share preferred to the target by gold, ties half), tokens, distinct_2 (share of
            different word pairs among a prompt's responses); of translations also bleu, chrf and exact; with `proxy`:
            proxy and proxy_wins; with `judge`: judge_wins.
        """
        task, budget = self.task, self.budget
        last = first + budget.test_prompts
        prompts = task.world.prompts(task.tokenizer, split, last)[first:]
        examples = task.world.examples(split, last)[first:]
        targets = [example.target for example in examples]
        asked = [example.prompt for example in examples]
        samples = 1 if temperature == 0 else budget.test_samples
        generator = seeded(self.seed, Stream.TEST_RESPONSES, device=policy.device)
        y = draw(policy, prompts, samples, temperature, generator)
        texts = [task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in y.tolist()]
        flat = [one for ones in texts for one in ones]
        again = [prompt for prompt in asked for _ in range(samples)]
        gold = torch.tensor(task.world.gold(again, flat), dtype=torch.float64).view(len(asked), samples)
        wanted = torch.tensor(task.world.gold(asked, targets), dtype=torch.float64).unsqueeze(-1)
        out = {
            "gold": gold.mean().item(),
            "reward": gold.mean().item() / task.unit,
            "kl": float("nan"),
            "gold_wins": _wins(gold, wanted),
            "tokens": y.mask.sum(-1).double().mean().item(),
            "distinct_2": sum(_distinct_2(ones) for ones in texts) / len(texts),
        }
        if isinstance(task.world, text.Translation):
            out |= task.world.corpus(again, flat)
        if temperature == 1:
            k1 = policy.log_prob(prompts, y) - task.reference.log_prob(prompts, y)
            out["kl"] = k1.double().mean().item()
        out["objective"] = out["reward"] - (budget.beta if beta is None else beta) * out["kl"]
        if proxy is not None:
            score = proxy(prompts, y).cpu()
            answers = task.world.sft(task.tokenizer, split, last)[1][first:]
            out |= {"proxy": score.double().mean().item(), "proxy_wins": _wins(score, proxy(prompts, answers).cpu())}
        if judge is not None:
            found = evaluation.win_rate(asked, texts, targets, judge)
            out["judge_wins"] = found.mean
        return out


def draw(policy: Policy, prompts: Tokens, number: int, temperature: float, generator: torch.Generator) -> Tokens:
    """Sample `number` responses to each prompt; temperature 0 gives one response, of the likeliest tokens."""
    if temperature == 0:
        return policy.sample(prompts, 1, generator, top_k=1)
    return policy.sample(prompts, number, generator, temperature)


def _wins(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of wins, ties half. Scores are sums of parts, so the largest of them bounds their rounding errors."""
    largest = max(ours.abs().amax().item(), theirs.abs().amax().item())
    return wins(ours, theirs, rounding(largest, ours)).double().mean().item()


def _distinct_2(texts: list[str]) -> float:
    pairs = [pair for one in texts for pair in zip(one.split(), one.split()[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
