"""Spending one sum of money on a language model: the strategies of `annotation-budget` on the scale "small".

Each strategy spends all of the money: what it does not pay for demonstrations, samples and training steps it has for
preference labels. A demonstration is a draw from π_demo ∝ π_ref exp(r*/β_demo), by rejection from π_ref's responses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from rlhf_lab import sampling
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.setup_text import TextRun
from rlhf_lab.policies.base import Policy
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

CHUNK = 64
"""Prompts answered at a time."""


@dataclass(frozen=True)
class Prices:
    """What things cost, in units of one preference label."""

    demonstration: float
    preference: float
    sample: float
    step: float


@dataclass
class Spent:
    """A strategy's bill as it grows."""

    demonstrations: int = 0
    labels: int = 0
    samples: int = 0
    steps: int = 0

    def money(self, prices: Prices) -> float:
        """What it came to."""
        return (
            self.demonstrations * prices.demonstration
            + self.labels * prices.preference
            + self.samples * prices.sample
            + self.steps * prices.step
        )


@dataclass
class Purse:
    """One seed's run of one strategy: the run, the prices, the money, and what was spent."""

    run: TextRun
    prices: Prices
    budget: float
    spent: Spent
    beta: float
    first_prompt: int = 0

    def labels_left(self, samples_each: float, steps: int = 0, samples: int = 0) -> int:
        """Labels that the rest of the money buys, when each takes so many samples and so much is still to be paid."""
        rest = self.budget - self.spent.money(self.prices) - steps * self.prices.step - samples * self.prices.sample
        number = int(rest / (self.prices.preference + samples_each * self.prices.sample))
        if number < 8:
            raise LabError(f"The money ({self.budget:g}) buys no labels beside samples and training steps; raise it.")
        return number

    def next_prompts(self, number: int) -> Tokens:
        """The next prompts of the training split, each used once."""
        every = self.run.bench.pool
        rows = (torch.arange(number) + self.first_prompt).remainder(len(every))
        self.first_prompt += number
        order = torch.randperm(len(every), generator=seeded(self.run.seed, Stream.STRATEGY_PROMPTS))
        return every[order[rows]]

    def candidates(self, policy: Policy, prompts: Tokens, number: int, stream: int) -> list[tuple[Tokens, Tokens]]:
        """(prompts, `number` responses to each) in chunks."""
        generator = seeded(self.run.seed, Stream.STRATEGY_RESPONSES, stream, device=policy.device)
        parts = torch.arange(len(prompts)).split(CHUNK)
        self.spent.samples += len(prompts) * number
        return [(prompts[p].trim(), policy.sample(prompts[p].trim(), number, generator).to("cpu")) for p in parts]

    def label(self, drawn: list[tuple[Tokens, Tokens]], places: list[torch.Tensor], stream: int) -> Pairs:
        """Labels on the responses at `places`, (B, 2) each. Equal responses are not shown, and not paid."""
        generator, parts = seeded(self.run.seed, Stream.STRATEGY_LABELS, stream), []
        for (prompts, responses), pair in zip(drawn, places, strict=True):
            both = responses.take(pair)
            score = self.run.bench.gold(prompts, both)
            first = sample_preferences(score[:, 0], score[:, 1], generator)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            parts.append(pick_pairs(prompts, both, index)[0])
        pairs = cat_pairs([part for part in parts if len(part)])
        self.spent.labels += len(pairs)
        return pairs

    def random_pairs(self, policy: Policy, number: int, stream: int) -> Pairs:
        """`number` labels on two draws each."""
        drawn = self.candidates(policy, self.next_prompts(number), 2, stream)
        return self.label(drawn, [torch.tensor([[0, 1]]).expand(len(p), 2) for p, _ in drawn], stream)

    def fit_dpo(self, policy: Policy, pairs: Pairs, stream: int, steps: int) -> Policy:
        """DPO from where `policy` is, against the reference of the objective."""
        dpo(policy, self.run.bench.reference, pairs, DPO(beta=self.beta), self.run.training(stream, steps=steps))
        self.spent.steps += steps
        return policy

    def fit_reward(self, pairs: Pairs, stream: int) -> nn.Module:
        """A reward model; another `stream`, another order of the batches and another start of the head."""
        plan = self.run.plan
        model = self.run.bench.reference.new_reward_model()
        training = self.run.training(stream, steps=plan.reward_steps, learning_rate=plan.reward_rate)
        reward_model(model, pairs, RewardModel(), training)
        self.spent.steps += plan.reward_steps
        return model.requires_grad_(False)


def random(purse: Purse) -> Policy:
    """All money for labels on two draws from π_ref; DPO."""
    run = purse.run
    pairs = purse.random_pairs(run.bench.reference, purse.labels_left(2, run.plan.steps), 1)
    return purse.fit_dpo(run.fresh(), pairs, 2, run.plan.steps)


def uncertain(purse: Purse, candidates: int = 4) -> Policy:
    """Half the labels at random; then, of 4 draws each, the two about which two reward models differ most."""
    run, plan = purse.run, purse.run.plan
    number = purse.labels_left(1 + candidates / 2, plan.steps + 2 * plan.reward_steps)
    first = purse.random_pairs(run.bench.reference, number // 2, 1)
    # Two halves of the labels, two models: what they agree on was in the labels, what they differ on was not.
    order = torch.randperm(len(first), generator=seeded(run.seed, Stream.STRATEGY_HALVES))
    models = [purse.fit_reward(first[half], 50 + i) for i, half in enumerate(order.tensor_split(2))]
    drawn = purse.candidates(run.bench.reference, purse.next_prompts(number - number // 2), candidates, 2)
    places = []
    for prompts, responses in drawn:
        with torch.no_grad():
            apart = models[0](prompts, responses) - models[1](prompts, responses)
        gap = (apart.unsqueeze(-1) - apart.unsqueeze(-2)).abs().triu(1).flatten(1).argmax(-1)
        low, high = gap // candidates, gap % candidates
        places.append(torch.stack([low, torch.where(high == low, (low + 1) % candidates, high)], -1))
    return purse.fit_dpo(run.fresh(), cat_pairs([first, purse.label(drawn, places, 2)]), 2, plan.steps)


def by_reward(purse: Purse, candidates: int = 8) -> Policy:
    """Half the labels at random; then labels on two of 8 draws, accepted as π_r would draw them (people as judges)."""
    run, plan = purse.run, purse.run.plan
    number = purse.labels_left(1 + candidates / 2, plan.steps + plan.reward_steps)
    first = purse.random_pairs(run.bench.reference, number // 2, 1)
    model = purse.fit_reward(first, 50)
    drawn = purse.candidates(run.bench.reference, purse.next_prompts(number - number // 2), candidates, 2)
    generator = seeded(run.seed, Stream.STRATEGY_REJECTION)
    with torch.no_grad():
        places = [sampling.rejection_sample(model(x, y).double(), 2, purse.beta, generator) for x, y in drawn]
    return purse.fit_dpo(run.fresh(), cat_pairs([first, purse.label(drawn, places, 2)]), 2, plan.steps)


def rounds(number: int) -> Callable[[Purse], Policy]:
    """Labels of the present policy's own draws, in so many rounds; DPO on all labels so far after each."""

    def spend(purse: Purse) -> Policy:
        run, policy = purse.run, purse.run.fresh()
        each = max(run.plan.steps // number, 1)
        labels = purse.labels_left(2, each * number)
        seen: list[Pairs] = []
        for turn in range(number):
            share = labels * (turn + 1) // number - labels * turn // number
            seen.append(purse.random_pairs(policy, share, 10 + turn))
            purse.fit_dpo(policy, cat_pairs(seen), 20 + turn, each)
        return policy

    return spend


def reward_then_rso(purse: Purse, prompts: int = 64, candidates: int = 16) -> Policy:
    """Labels at random, a reward model, then pairs of π_r that it labels for nothing; DPO's loss on those."""
    run, plan = purse.run, purse.run.plan
    prompts = min(prompts, plan.prompts)
    number = purse.labels_left(2, plan.steps + plan.reward_steps, prompts * candidates)
    model = purse.fit_reward(purse.random_pairs(run.bench.reference, number, 1), 50)
    settings = RSO(beta=purse.beta, candidates=candidates, accepted=8)
    pairs, _ = make_pairs(run.bench.reference, model, purse.next_prompts(prompts), settings, 1000 * run.seed + 45)
    purse.spent.samples += prompts * candidates
    return purse.fit_dpo(run.fresh(), pairs, 2, plan.steps)


def demonstrations_first(share: float, demo_beta: float = 1.0, candidates: int = 16) -> Callable[[Purse], Policy]:
    """That share of the money for demonstrations: SFT on them, then DPO from there with labels on its own draws."""

    def spend(purse: Purse) -> Policy:
        run, plan = purse.run, purse.run.plan
        number = max(int(share * purse.budget / purse.prices.demonstration), 1)
        before = purse.spent.samples
        drawn = purse.candidates(run.bench.reference, purse.next_prompts(number), candidates, 3)
        purse.spent.samples = before  # a demonstrator draws no samples: this is how we imitate one
        generator = seeded(run.seed, Stream.STRATEGY_DEMONSTRATIONS)
        shown: list[Pairs] = []
        for x, y in drawn:
            chosen = sampling.rejection_sample(run.bench.gold(x, y), 1, demo_beta, generator)
            # Written twice, as a pair, only to be joined over chunks of different length.
            shown.append(Pairs(x, y.take(chosen.expand(-1, 2))))
        both = cat_pairs(shown)
        purse.spent.demonstrations = number
        policy = run.fresh()
        targets = Tokens(both.responses.ids[:, :1], both.responses.mask[:, :1])
        half = plan.steps // 2
        sft(policy, both.prompts, targets, run.training(3, steps=half))
        purse.spent.steps += half
        pairs = purse.random_pairs(policy, purse.labels_left(2, plan.steps - half), 1)
        return purse.fit_dpo(policy, pairs, 2, plan.steps - half)

    return spend


STRATEGIES: dict[str, tuple[str, str, Callable[[Purse], Policy]]] = {
    "random": ("DPO, pairs of π_ref", "dpo", random),
    "uncertain": ("DPO, pairs two reward models differ on", "dpo-ipo", uncertain),
    "by-reward": ("DPO, pairs π_r would draw", "rso-direct", by_reward),
    "rounds-4": ("DPO, 4 rounds", "online", rounds(4)),
    "reward-rso": ("reward model, then RSO", "rso-rso-sample-rank", reward_then_rso),
    "demonstrations": ("half for demonstrations", "sft", demonstrations_first(0.5)),
}
"""Name in a table; key of the style; how the money is spent."""
