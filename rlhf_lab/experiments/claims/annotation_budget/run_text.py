"""Strategies with the same budget on a language model, for the experiment on annotation budgets.

Each strategy uses its whole budget. What remains after demonstrations, samples and training steps buys preference
labels. A demonstration is a sample of π_demo ∝ π_ref exp(r*/β_demo), by rejection from π_ref's responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from rlhf_lab import sampling
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens, cat, cat_pairs, pick_pairs
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.policies.base import Policy
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

CHUNK = 64
"""Number of prompts that are answered together."""


@dataclass
class BudgetTracker:
    """Buys data and training for one strategy and one seed, and records what has been used.

    Attributes:
        setup: the set-up of the seed.
        prices: the price of demonstrations, labels, samples and steps, each in preference labels.
        money: the budget of the strategy, in preference labels.
        used: how many demonstrations, labels, samples and steps have been used already.
        first_prompt: position of the first prompt that has not been used yet.
    """

    setup: TextSetup
    prices: Mapping[str, float]
    money: float
    used: Counter[str] = field(default_factory=Counter)
    first_prompt: int = 0

    @property
    def spent(self) -> float:
        """The cost of what has been used, in preference labels."""
        return sum(self.used[item] * price for item, price in self.prices.items())

    def labels_left(self, samples_each: float, steps: int = 0, samples: int = 0) -> int:
        """Return the number of labels that the remaining money buys.

        Args:
            samples_each: samples that each label needs.
            steps: optimiser steps that will be paid later.
            samples: samples that will be paid later.

        Raises:
            LabError: the money buys fewer than 8 labels.
        """
        rest = self.money - self.spent - steps * self.prices["steps"] - samples * self.prices["samples"]
        number = int(rest / (self.prices["labels"] + samples_each * self.prices["samples"]))
        if number < 8:
            raise LabError(
                f"A budget of {self.money:g} buys {max(number, 0)} labels after samples and training steps, but a "
                f"strategy needs 8. Raise money."
            )
        return number

    def next_prompts(self, number: int) -> Tokens:
        """Return the next prompts of the training split. Each prompt is used once until all have been used."""
        every = self.setup.task.pool
        rows = (torch.arange(number) + self.first_prompt).remainder(len(every))
        self.first_prompt += number
        order = torch.randperm(len(every), generator=seeded(self.setup.seed, Stream.STRATEGY_PROMPTS))
        return every[order[rows]]

    def candidates(self, policy: Policy, prompts: Tokens, number: int, stream: int) -> list[tuple[Tokens, Tokens]]:
        """Sample `number` responses to each prompt: (prompts, responses) in chunks."""
        generator = seeded(self.setup.seed, Stream.STRATEGY_RESPONSES, stream, device=policy.device)
        parts = torch.arange(len(prompts)).split(CHUNK)
        self.used["samples"] += len(prompts) * number
        return [(prompts[p].trim(), policy.sample(prompts[p].trim(), number, generator).to("cpu")) for p in parts]

    def label(self, drawn: list[tuple[Tokens, Tokens]], places: list[torch.Tensor], stream: int) -> Pairs:
        """Label the two responses of each prompt at `places`, (B, 2). Equal responses get no label and cost nothing."""
        generator, parts = seeded(self.setup.seed, Stream.STRATEGY_LABELS, stream), []
        for (prompts, responses), pair in zip(drawn, places, strict=True):
            both = responses.take(pair)
            score = self.setup.gold(prompts, both)
            first = sample_preferences(score[:, 0], score[:, 1], generator)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            parts.append(pick_pairs(prompts, both, index)[0])
        pairs = cat_pairs([part for part in parts if len(part)])
        self.used["labels"] += len(pairs)
        return pairs

    def random_pairs(self, policy: Policy, number: int, stream: int = Stream.FIRST_PURCHASE) -> Pairs:
        """Label two samples of the policy for each of `number` prompts."""
        drawn = self.candidates(policy, self.next_prompts(number), 2, stream)
        return self.label(drawn, [torch.tensor([[0, 1]]).expand(len(p), 2) for p, _ in drawn], stream)

    def fit_dpo(
        self, pairs: Pairs, stream: int = Stream.PURCHASE_FIT, steps: int | None = None, policy: Policy | None = None
    ) -> Policy:
        """Train `policy` (by default a new one at π_ref) by DPO for `steps` (by default all steps of a policy)."""
        policy = self.setup.new_policy() if policy is None else policy
        training = self.setup.training(stream, steps=self.steps if steps is None else steps)
        dpo(policy, self.setup.reference, pairs, DPO(beta=self.setup.budget.beta), training)
        self.used["steps"] += training.steps
        return policy

    def fit_reward(self, pairs: Pairs, stream: int = Stream.PURCHASE_REWARD) -> nn.Module:
        """Fit a reward model; `stream` determines the order of the batches."""
        self.used["steps"] += self.reward_steps
        return self.setup.fit_reward_model(pairs, stream)

    @property
    def steps(self) -> int:
        """Optimiser steps of a policy."""
        return self.setup.budget.steps

    @property
    def reward_steps(self) -> int:
        """Optimiser steps of a reward model."""
        return self.setup.budget.reward_steps or self.steps


def random(tracker: BudgetTracker) -> Policy:
    """Use the whole budget for labels of pairs of samples from π_ref, and train by DPO."""
    pairs = tracker.random_pairs(tracker.setup.reference, tracker.labels_left(2, tracker.steps))
    return tracker.fit_dpo(pairs)


def uncertain(tracker: BudgetTracker, candidates: int = 4) -> Policy:
    """Label random pairs first, then for each prompt the two of 4 samples on which two reward models differ most."""
    setup = tracker.setup
    number = tracker.labels_left(1 + candidates / 2, tracker.steps + 2 * tracker.reward_steps)
    first = tracker.random_pairs(setup.reference, number // 2)
    # Each model is fitted to one half of the labels, so they differ where the labels do not determine the reward.
    order = torch.randperm(len(first), generator=seeded(setup.seed, Stream.STRATEGY_HALVES))
    halves = enumerate(order.tensor_split(2))
    models = [tracker.fit_reward(first[half], Stream.PURCHASE_REWARD + i) for i, half in halves]
    prompts = tracker.next_prompts(number - number // 2)
    drawn = tracker.candidates(setup.reference, prompts, candidates, Stream.SECOND_PURCHASE)
    pairs, places = torch.combinations(torch.arange(candidates)), []
    for prompts, responses in drawn:
        apart = (models[0](prompts, responses) - models[1](prompts, responses)).cpu()
        places.append(pairs[apart[:, pairs].diff().squeeze(-1).abs().argmax(-1)])
    second = tracker.label(drawn, places, Stream.SECOND_PURCHASE)
    return tracker.fit_dpo(cat_pairs([first, second]))


def by_reward(tracker: BudgetTracker, candidates: int = 8) -> Policy:
    """Label random pairs first, then for each prompt two of 8 samples, accepted as samples from π_r."""
    setup = tracker.setup
    number = tracker.labels_left(1 + candidates / 2, tracker.steps + tracker.reward_steps)
    first = tracker.random_pairs(setup.reference, number // 2)
    model = tracker.fit_reward(first)
    prompts = tracker.next_prompts(number - number // 2)
    drawn = tracker.candidates(setup.reference, prompts, candidates, Stream.SECOND_PURCHASE)
    generator = seeded(setup.seed, Stream.STRATEGY_REJECTION)
    places = [sampling.rejection_sample(model(x, y).double(), 2, setup.budget.beta, generator) for x, y in drawn]
    second = tracker.label(drawn, places, Stream.SECOND_PURCHASE)
    return tracker.fit_dpo(cat_pairs([first, second]))


def in_rounds(tracker: BudgetTracker, rounds: int = 4) -> Policy:
    """Label samples of the current policy in 4 rounds, and after each round train by DPO on all labels."""
    policy = tracker.setup.new_policy()
    steps = max(tracker.steps // rounds, 1)
    labels = tracker.labels_left(2, steps * rounds)
    seen: list[Pairs] = []
    for turn in range(rounds):
        number = labels * (turn + 1) // rounds - labels * turn // rounds
        seen.append(tracker.random_pairs(policy, number, Stream.ROUND_PURCHASE + turn))
        tracker.fit_dpo(cat_pairs(seen), Stream.ROUND_FIT + turn, steps, policy)
    return policy


def reward_then_rso(tracker: BudgetTracker, prompts: int = 64, candidates: int = 16) -> Policy:
    """Fit a reward model to labels of random pairs, then train by DPO on pairs from π_r which the model labels."""
    setup = tracker.setup
    prompts = min(prompts, setup.budget.prompts)
    number = tracker.labels_left(2, tracker.steps + tracker.reward_steps, prompts * candidates)
    model = tracker.fit_reward(tracker.random_pairs(setup.reference, number))
    settings = RSO(beta=setup.budget.beta, candidates=candidates, accepted=8)
    seed = setup.training(Stream.PURCHASE_PAIRS).seed
    pairs, _ = make_pairs(setup.reference, model, tracker.next_prompts(prompts), settings, seed)
    tracker.used["samples"] += prompts * candidates
    return tracker.fit_dpo(pairs)


DEMO_BETA = 1.0
"""β of the simulated demonstrator, who samples from π_ref exp(r/β)/Z."""


def demonstrations_first(tracker: BudgetTracker, share: float = 0.5) -> Policy:
    """Use half of the budget for demonstrations for SFT, and the rest for labels of its samples for DPO."""
    setup = tracker.setup
    number = max(int(share * tracker.money / tracker.prices["demonstrations"]), 1)
    drawn = tracker.candidates(setup.reference, tracker.next_prompts(number), 16, Stream.DEMONSTRATION_PURCHASE)
    tracker.used["samples"] = 0  # these samples only simulate the demonstrator, so they cost nothing
    tracker.used["demonstrations"] = number
    generator = seeded(setup.seed, Stream.STRATEGY_DEMONSTRATIONS)
    targets = [y.take(sampling.rejection_sample(setup.gold(x, y), 1, DEMO_BETA, generator)) for x, y in drawn]
    policy, steps = setup.new_policy(), tracker.steps // 2
    sft(policy, cat([x for x, _ in drawn]), cat(targets), setup.training(Stream.LABEL_FIT, steps=steps))
    tracker.used["steps"] += steps
    pairs = tracker.random_pairs(policy, tracker.labels_left(2, tracker.steps - steps))
    return tracker.fit_dpo(pairs, steps=tracker.steps - steps, policy=policy)


class Strategy(NamedTuple):
    """A way to use the budget."""

    label: str
    """Its name in the picture."""
    style: str
    """The key of its style (`figures.style`)."""
    spend: Callable[[BudgetTracker], Policy]
    """Buys data and trains a policy on it."""


STRATEGIES = {
    "random": Strategy("DPO, pairs from π_ref", "dpo", random),
    "uncertain": Strategy("DPO, pairs on which models differ", "dpo-ipo", uncertain),
    "by-reward": Strategy("DPO, pairs accepted for π_r", "rso-direct", by_reward),
    "rounds-4": Strategy("DPO in 4 rounds", "online", in_rounds),
    "reward-rso": Strategy("reward model, then RSO", "rso-rso-sample-rank", reward_then_rso),
    "demonstrations": Strategy("half for demonstrations", "sft", demonstrations_first),
}
"""The strategies by key."""
