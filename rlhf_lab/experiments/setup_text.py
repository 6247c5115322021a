"""What experiments on a language model share: the bench, a seed's labels and reward model, methods, the measure.

A bench is one text world with one reference. A seed draws its own labels (two responses of π_ref to each prompt, one
Bradley–Terry label each) and fits its own reward model to them; every method then gets the same labels or the same
reward model, the same prompts, as many optimiser steps. Rewards are counted in the labeller's unit: r* = gold / unit,
so that r* differs by about 1 between two responses of π_ref, as on the exact scales, and β means the same on both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from rlhf_lab import evaluation
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, Source, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation.judges import Judge
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import rounding, wins
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import text

UNITS = {"sentiment": 0.7, "summaries": 0.25, "dialogue": 0.5, "translation": 0.15}
"""Gold reward that is one logit of a label: about its standard deviation among π_ref's responses to one prompt
(measured on validation prompts, 0.74, 0.24, 0.48, 0.14, and rounded)."""
SFT_STEPS = 300
"""Steps of SFT that a model which does not ship gets on the world's targets, before it is the reference."""


@dataclass(frozen=True, eq=False)
class Bench:
    """One text world with its reference."""

    world: text.TextWorld
    reference: Policy
    """π_ref, frozen."""
    tokenizer: Any
    unit: float
    """Gold reward that is one logit of a label."""

    @cached_property
    def pool(self) -> Tokens:
        """The first 2,048 prompts of the training split, tokenised once; seeds draw theirs from these."""
        return self.world.prompts(self.tokenizer, "train", 2048)

    def gold(self, prompts: Tokens, responses: Tokens) -> torch.Tensor:
        """r* = gold / unit of each response, (B, G), float64."""
        return self.world.reward(self.tokenizer)(prompts, responses).double() / self.unit


@lru_cache(maxsize=2)
def bench(scale: str, world: str, device: str = "auto") -> Bench:
    """The bench of a scale: `small` is the shipped lab-gpt2, any other name a model fitted to the targets first.

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
    # The small model is at home on one core: numbers of a result come from the same kind of machine everywhere.
    place = "cpu" if scale == "small" else str(pick_device(device))
    model, tokenizer = load_language_model(name, device=place, dtype=torch.float32)
    made = text.load(world)
    # Room for the longest of some hundred targets and a third more: tokenising all ten thousand takes seconds.
    room = made.sft(tokenizer, "train", 512)[1].shape[-1] * 4 // 3
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], max_new_tokens=room, tokenizer=tokenizer, end_tokens=ends)
    if name not in SHIPPED:
        training = Training(steps=SFT_STEPS, batch_size=16, learning_rate=5e-5, warmup=20, progress=False)
        sft(policy, *made.sft(tokenizer, "train"), training)
    return Bench(made, policy.frozen(), tokenizer, UNITS[world])


@dataclass(frozen=True)
class Plan:
    """How much of everything. One plan serves all methods of an experiment."""

    labels: int = 512
    """Preference labels."""
    noise: float = 0.0
    """Probability that a label is turned round."""
    prompts: int = 128
    """Prompts that a sampling method answers."""
    beta: float = 0.5
    """β of the objective, in the labeller's unit."""
    steps: int = 60
    """Optimiser steps of every fit."""
    batch: int = 16
    """Pairs (or responses) in a step."""
    rate: float = 3e-4
    """Learning rate of every fit, where a search has chosen no other."""
    reward_steps: int = 120
    """Optimiser steps of the reward model."""
    reward_rate: float = 1e-3
    """Its learning rate."""
    test_prompts: int = 128
    """Test prompts that every policy answers in the end."""
    test_samples: int = 4
    """Responses to each."""


@dataclass(eq=False)
class TextRun:
    """One seed: what its methods share."""

    bench: Bench
    plan: Plan
    seed: int

    @cached_property
    def pairs(self) -> Pairs:
        """The labelled pairs: two responses of π_ref to each prompt of the training split."""
        pairs, _ = self.bench.world.preferences(
            self.bench.reference,
            self.bench.tokenizer,
            "train",
            self.plan.labels,
            seeded(self.seed, Stream.LABELS, device=self.bench.reference.device),
            beta_label=self.bench.unit,
            noise=self.plan.noise,
            progress=False,
        )
        return pairs

    @cached_property
    def prompts(self) -> Tokens:
        """Prompts for methods that sample, drawn from the training split by this seed."""
        every = self.bench.pool
        order = torch.randperm(len(every), generator=seeded(self.seed, Stream.PROMPTS))
        return every[order[: self.plan.prompts]]

    @cached_property
    def reward(self) -> nn.Module:
        """r_φ, fitted to the labelled pairs, in the labeller's unit up to a constant a prompt."""
        return fit_reward(self, self.pairs, 22)

    def training(self, stream: int, **changes: Any) -> Training:
        """Settings of one fit; `stream` keeps the fits' random numbers apart."""
        plan = self.plan
        usual = Training(
            steps=plan.steps,
            batch_size=plan.batch,
            learning_rate=plan.rate,
            max_grad_norm=1.0,
            seed=1000 * self.seed + stream,
            progress=False,
        )
        return replace(usual, **changes)

    def fresh(self) -> Policy:
        """A trainable policy at the reference."""
        return self.bench.reference.copy()


def fit_reward(run: TextRun, pairs: Pairs, stream: int) -> nn.Module:
    """A reward model of `run`, fitted to `pairs`, frozen."""
    model = run.bench.reference.new_reward_model()
    training = run.training(stream, steps=run.plan.reward_steps, learning_rate=run.plan.reward_rate)
    reward_model(model, pairs, RewardModel(), training)
    return model.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method learned, and what it spent."""

    policy: Policy
    labels: int = 0
    samples: int = 0
    """Responses drawn for training."""
    seconds: float = 0.0
    """Of sampling and fitting, without labels and reward model, which all share."""


Trainer = Callable[[TextRun, float, Training], Trained]
"""(run, β, settings of the fit) → what came of it. The settings carry rate, steps and seed."""


def _timed(policy: Policy, begin: float, labels: int, samples: int) -> Trained:
    return Trained(policy, labels, samples, time.perf_counter() - begin)


def by_sft(run: TextRun, beta: float, training: Training) -> Trained:
    """SFT on the chosen responses. β plays no part."""
    begin, policy, pairs = time.perf_counter(), run.fresh(), run.pairs
    sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), training)
    return _timed(policy, begin, len(pairs), 0)


def by_dpo(loss: PairLoss = "sigmoid-norm") -> Trainer:
    """A pairwise loss on the labels themselves, slope γ = β (RSO's "direct")."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        pairs = run.pairs
        begin, policy = time.perf_counter(), run.fresh()
        dpo(policy, run.bench.reference, pairs, DPO(loss, beta), training)
        return _timed(policy, begin, len(pairs), 0)

    return train


def by_rso(source: Source = "rso-sample-rank", loss: PairLoss = "sigmoid-norm", **changes: Any) -> Trainer:
    """Pairs made with the reward model, then a pairwise loss. `changes`: other fields of `RSO`."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        drawn = {"candidates": 32} if source == "rso-sample-rank" else {}
        settings = RSO(**{"source": source, "loss": loss, "beta": beta, "accepted": 8, **drawn, **changes})
        reward = run.reward
        begin, policy = time.perf_counter(), run.fresh()
        pairs, _ = make_pairs(run.bench.reference, reward, run.prompts, settings, training.seed)
        dpo(policy, run.bench.reference, pairs, DPO(settings.loss, settings.gamma or beta), training)
        each = settings.candidates if source == "rso-sample-rank" else settings.accepted
        return _timed(policy, begin, len(run.pairs), each * len(run.prompts))

    return train


def by_raft(best_of: int = 8) -> Trainer:
    """SFT on the best of K. β plays no part."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        reward = run.reward
        begin, policy = time.perf_counter(), run.fresh()
        raft(policy, reward, run.prompts, RAFT(best_of=best_of), training)
        return _timed(policy, begin, len(run.pairs), best_of * len(run.prompts))

    return train


def by_rest(thresholds: tuple[float, ...] = (0.0, 0.7, 0.8), samples: int = 8, grows: int = 1) -> Trainer:
    """Grow and Improve; the steps are shared between the Improve steps. β plays no part."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        reward = run.reward
        begin, policy = time.perf_counter(), run.fresh()
        settings = ReST(samples=samples, thresholds=thresholds, grows=grows)
        each = replace(training, steps=max(training.steps // (grows * len(thresholds)), 1))
        rest(policy, reward, run.prompts, settings, each)
        return _timed(policy, begin, len(run.pairs), samples * grows * len(run.prompts))

    return train


def by_ppo(samples: int = 4, epochs: int = 2) -> Trainer:
    """PPO on the reward model; each round takes `epochs` optimiser steps, the steps of a fit in all."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        reward = run.reward
        critic = run.bench.reference.new_critic(reward.requires_grad_(True))
        reward.requires_grad_(False)
        begin, policy = time.perf_counter(), run.fresh()
        rounds = replace(training, steps=max(training.steps // epochs, 1))
        settings = PPO(beta=beta, samples=samples, epochs=epochs)
        ppo(policy, run.bench.reference, reward, critic, run.prompts, settings, rounds)
        drawn = rounds.steps * min(rounds.batch_size, len(run.prompts)) * samples
        return _timed(policy, begin, len(run.pairs), drawn)

    return train


def by_online(rounds: int = 4) -> Trainer:
    """DPO in rounds, on labels of the policy's own responses; as many labels in all."""

    def train(run: TextRun, beta: float, training: Training) -> Trained:
        begin, policy, made = time.perf_counter(), run.fresh(), run.bench

        def collect(now: Policy, number: int, generator: torch.Generator) -> Pairs:
            return made.world.preferences(
                now, made.tokenizer, "train", number, generator, made.unit, run.plan.noise, progress=False
            )[0]

        each = replace(training, steps=max(training.steps // rounds, 1))
        online(policy, made.reference, collect, DPO(beta=beta), Online(rounds=rounds, labels=run.plan.labels), each)
        return _timed(policy, begin, run.plan.labels, 2 * run.plan.labels)

    return train


METHODS: dict[str, Trainer] = {
    "sft": by_sft,
    "dpo": by_dpo(),
    "dpo-hinge-norm": by_dpo("hinge-norm"),
    "dpo-hinge": by_dpo("hinge"),
    "rso-sft-sample-rank": by_rso("sft-sample-rank"),
    "rso-rso-sample-rank": by_rso("rso-sample-rank"),
    "raft": by_raft(),
    "rest": by_rest(),
    "ppo": by_ppo(),
    "online": by_online(),
}
"""Methods in their usual settings, by the keys that `figures.style` knows."""


@torch.no_grad()
def measure(
    run: TextRun,
    policy: Policy,
    temperature: float = 1.0,
    split: str = "test",
    proxy: Reward | None = None,
    judge: Judge | None = None,
    beta: float | None = None,
) -> dict[str, float]:
    """A policy's numbers on the first prompts of a split, each a mean over prompts and responses.

    The draws depend on the run's seed. Compare conditions within a seed, and give intervals over seeds.

    Args:
        run: the seed.
        policy: what was trained.
        temperature: of sampling; 0 is the likeliest token each time.
        split: test for results, validation for searches.
        proxy: a reward model that scores too; None for none.
        judge: compares with the target as a third opinion; None for none.
        beta: of J; None for the plan's.

    Returns:
        gold (raw), reward (r* = gold / unit), kl (k1, nats; at temperature 1 only, else NaN), objective
        (reward − β kl), gold_wins (share preferred to the target by gold, ties half), tokens, distinct_2 (share of
        different word pairs among a prompt's responses); of translations also bleu, chrf and exact; with `proxy`:
        proxy and proxy_wins; with `judge`: judge_wins.
    """
    made, plan = run.bench, run.plan
    prompts = made.world.prompts(made.tokenizer, split, plan.test_prompts)
    examples = made.world.examples(split, plan.test_prompts)
    targets = [example.target for example in examples]
    asked = [example.prompt for example in examples]
    samples = 1 if temperature == 0 else plan.test_samples
    generator = seeded(run.seed, Stream.TEST_RESPONSES, device=policy.device)
    y = draw(policy, prompts, samples, temperature, generator)
    texts = [made.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in y.tolist()]
    flat = [one for ones in texts for one in ones]
    again = [prompt for prompt in asked for _ in range(samples)]
    gold = torch.tensor(made.world.gold(again, flat), dtype=torch.float64).view(len(asked), samples)
    wanted = torch.tensor(made.world.gold(asked, targets), dtype=torch.float64).unsqueeze(-1)
    out = {
        "gold": gold.mean().item(),
        "reward": gold.mean().item() / made.unit,
        "kl": float("nan"),
        "gold_wins": _wins(gold, wanted),
        "tokens": y.mask.sum(-1).double().mean().item(),
        "distinct_2": sum(_distinct_2(ones) for ones in texts) / len(texts),
    }
    if isinstance(made.world, text.Translation):
        out |= made.world.corpus(again, flat)
    if temperature == 1:
        k1 = policy.log_prob(prompts, y) - made.reference.log_prob(prompts, y)
        out["kl"] = k1.double().mean().item()
    out["objective"] = out["reward"] - (plan.beta if beta is None else beta) * out["kl"]
    if proxy is not None:
        score = proxy(prompts, y).cpu()
        _, answers = made.world.sft(made.tokenizer, split, plan.test_prompts)
        out |= {"proxy": score.double().mean().item(), "proxy_wins": _wins(score, proxy(prompts, answers).cpu())}
    if judge is not None:
        found = evaluation.win_rate(asked, texts, targets, judge)
        out["judge_wins"] = found.mean
    return out


def draw(policy: Policy, prompts: Tokens, number: int, temperature: float, generator: torch.Generator) -> Tokens:
    """`number` responses a prompt; temperature 0 takes the likeliest token each time (a single response)."""
    if temperature == 0:
        return policy.sample(prompts, 1, generator, top_k=1)
    return policy.sample(prompts, number, generator, temperature)


def _wins(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of wins, ties half. Scores are sums of parts: the largest of them says how far rounding may have gone."""
    largest = max(ours.abs().amax().item(), theirs.abs().amax().item())
    return wins(ours, theirs, rounding(largest, ours)).double().mean().item()


def _distinct_2(texts: list[str]) -> float:
    pairs = [pair for one in texts for pair in zip(one.split(), one.split()[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
