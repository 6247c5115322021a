"""Set-ups of claim 8, how each method is trained there, and the time, samples and memory that it uses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from rlhf_lab import exact
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import methods
from rlhf_lab.experiments.claims.cost.settings import Cost
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup, SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

TRAINED = ("sft", "dpo", "ppo", "rso-rso-sample-rank", "raft", "rest", "online")
"""Methods that train a policy. Best-of-n trains nothing; its cost arises at every answer."""
BEST_OF = 8
"""On text the reward to reach is halfway to that of the best of this many responses."""


@dataclass(eq=False)
class CostSetup:
    """One seed on one scale: its set-up, and the reward that every method has to reach.

    Attributes:
        settings: of the experiment.
        seed: of labels, samples and fits. The world is the same for all seeds.
        split: of the prompts on which a language model is evaluated.
    """

    settings: Cost
    seed: int
    split: str = "test"

    @cached_property
    def setup(self) -> Setup:
        """Labels, prompts, reference policy and reward model."""
        s = self.settings
        sizes: dict[str, Any] = {
            "labels": s.labels, "prompts": s.prompts, "beta": s.beta, "steps": s.steps, "max_grad_norm": 1.0,
            "reward_steps": s.reward_steps, "reward_batch_size": s.responses // 2,
            "reward_rate": {"bandit": 0.05, "tree": 0.003}.get(s.scale, 1e-3),
            "test_prompts": s.test_prompts, "test_samples": s.test_samples,
        }  # fmt: skip
        if s.exact:
            world = random_world(s.scale, 0, "table" if s.scale == "bandit" else "gpt2")
            return ExactSetup(world, SetupBudget(**sizes), self.seed)
        return set_up(s.scale, self.seed, s.world, **sizes)

    @cached_property
    def fitted(self) -> tuple[nn.Module, float]:
        """Return r_φ, frozen, and the processor time of its fit in seconds."""
        _ = self.setup.pairs  # these are labelled before the clock starts
        begin = time.process_time()
        return self.setup.reward_model, time.process_time() - begin

    def evaluate(self, policy: Policy) -> dict[str, float]:
        """Return gold reward, KL and J: exact, or estimated on the prompts of the split."""
        found = self.setup.evaluate(policy, self.split)
        return {name: found[name] for name in ("reward", "kl", "objective")}

    @cached_property
    def best_of(self) -> dict[int, float]:
        """Return the gold reward of the best of n by r_φ, for n = 1, 2, 4, …, 2 · `BEST_OF`."""
        model, _ = self.fitted
        sizes = [2**k for k in range(int(math.log2(2 * BEST_OF)) + 1)]
        setup = self.setup
        if isinstance(setup, ExactSetup):
            log_ref, gold = setup.world.log_ref(), setup.world.rewards()
            learned = setup.learned_rewards
            return {n: (exact.best_of_n(log_ref, learned, n).exp() * gold).sum(-1).mean().item() for n in sizes}
        assert isinstance(setup, TextSetup)
        task = setup.task
        x = task.world.prompts(task.tokenizer, self.split, self.settings.test_prompts)
        with torch.no_grad():
            y = task.reference.sample(x, 2 * BEST_OF, seeded(self.seed, Stream.BEST_OF_N, device=task.reference.device))
            score, gold = model(x, y).double().cpu(), task.gold(x, y)
        out = {}
        for n in sizes:  # disjoint groups of n, so that every response is used for each n
            best = score.view(len(x), -1, n).argmax(-1, keepdim=True)
            out[n] = gold.view(len(x), -1, n).gather(-1, best).mean().item()
        return out

    @cached_property
    def level(self) -> tuple[float, float]:
        """Return the reward of π_ref and the level to reach: halfway to that of π*, on text to that of best-of-8."""
        if isinstance(self.setup, ExactSetup):
            start = self.evaluate(self.setup.reference)["reward"]
            log_star = self.setup.world.optimal(self.settings.beta)
            top = (log_star.exp() * self.setup.world.rewards()).sum(-1).mean().item()
        else:
            start, top = self.best_of[1], self.best_of[BEST_OF]
        return start, start + (top - start) / 2


# ------------------------------------------------------------------------------------------------------------ methods

RESPONSES_PER_ROW = {"sft": 1, "dpo": 2, "ppo": 4, "rso-rso-sample-rank": 2, "raft": 1, "rest": 1, "online": 2}
"""How many responses one row of a batch holds: a pair has two, and a prompt of PPO has four."""


def train(method: str, shared: CostSetup, policy: Policy, rate: float, meter: Meter) -> None:
    """Train `policy` in place with as many optimiser steps, and as many responses in each, as every other method."""
    if method not in TRAINED:
        raise LabError(f"cost has no method {method!r}. It trains {', '.join(TRAINED)}.")
    setup, many, steps = shared.setup, shared.settings.responses, shared.settings.steps

    def collect(now: Policy, number: int, generator: torch.Generator) -> Pairs:
        # A finite world samples more responses than it labels. Only the two responses of each label are counted.
        with meter.uncounted():
            fresh = setup.collect(now, number, generator)
        meter.samples += 2 * number
        return fresh

    changes: dict[str, dict[str, Any]] = {
        "ppo": {"samples": 4, "epochs": 2, "prompts": setup.prompts},
        "rso-rso-sample-rank": {"candidates": 32, "sampling_batch_size": max(many // 32, 1)},
        "raft": {"sampling_batch_size": max(many // 8, 1)},
        "rest": {"thresholds": (0.0, 0.7), "sampling_batch_size": max(many // 8, 1)},
        "online": {"rounds": min(4, steps), "collect": collect},
    }
    batch = many // RESPONSES_PER_ROW[method]
    training = setup.training(METHODS[method].stream, batch_size=batch, learning_rate=rate)
    methods.train(method, setup, training, policy, **changes.get(method, {}))


class Meter:
    """Counts sampled responses and processor time in seconds, except where it is paused."""

    def __init__(self, *policies: Policy) -> None:
        self.policies, self.samples, self._counting = policies, 0, True
        self._begin, self._spent = 0.0, 0.0

    def __enter__(self) -> Meter:
        for policy in self.policies:
            policy.__dict__["sample"] = self._counted(policy.sample)
        self._begin = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        for policy in self.policies:
            policy.__dict__.pop("sample", None)

    def _counted(self, usual: Callable[..., Tokens]) -> Callable[..., Tokens]:
        def sample(*args: Any, **kwargs: Any) -> Tokens:
            responses = usual(*args, **kwargs)
            if self._counting:
                self.samples += responses.shape[0] * responses.shape[1]
            return responses

        return sample

    @property
    def seconds(self) -> float:
        """Processor time since the beginning, without the evaluations."""
        return time.process_time() - self._begin - self._spent

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count the responses sampled within the context."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Count neither the responses sampled nor the seconds spent within the context."""
        begin = time.process_time()
        with self.uncounted():
            yield
        self._spent += time.process_time() - begin


def held_bytes(shared: CostSetup, method: str) -> int:
    """Bytes of weights, gradients, Adam's moments and frozen networks at the largest stage of a method.

    There are four numbers for each weight that is trained and one for each that is frozen. A method with a reward model
    had to fit it first, which holds four numbers for each of its weights and nothing else.
    """
    reference, needs = shared.setup.reference, METHODS[method]
    policy, scorer = size_of(reference), size_of(reference.new_reward_model())
    trained = policy + (size_of(reference.new_critic()) if needs.critic else 0)
    stage = 4 * trained + (policy if needs.reference else 0) + (scorer if needs.reward_model else 0)
    return max(stage, 4 * scorer if needs.reward_model else 0)


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
