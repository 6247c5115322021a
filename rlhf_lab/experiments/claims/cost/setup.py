"""What the methods of the experiment on cost share, how each is trained, and what it spends and holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments import setup_text
from rlhf_lab.experiments.compare import Compare
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded

if TYPE_CHECKING:
    from rlhf_lab.experiments.claims.cost.run import Cost


TRAINED = ("sft", "dpo", "ppo", "rso-rso-sample-rank", "raft", "rest", "online")
"""Methods that train a policy; best-of-n pays when it answers."""
BEST_OF = 8


@dataclass(frozen=True)
class Parts:
    """What a method holds in memory at its largest stage, beside the policy it trains."""

    critic: bool = False
    """A second network that is trained."""
    reference: bool = False
    reward: bool = False
    """A frozen reward model, fitted before."""
    draws: bool = False
    """Whether it draws responses while it trains."""

    @property
    def networks(self) -> int:
        """How many networks that is, the policy included."""
        return 1 + self.critic + self.reference + self.reward


PARTS = {
    "sft": Parts(),
    "dpo": Parts(reference=True),
    "ppo": Parts(critic=True, reference=True, reward=True, draws=True),
    "rso-rso-sample-rank": Parts(reference=True, reward=True, draws=True),
    "raft": Parts(reward=True, draws=True),
    "rest": Parts(reward=True, draws=True),
    "online": Parts(reference=True, draws=True),
}


# ----------------------------------------------------------------------------------------- what a seed's methods share


@dataclass(eq=False)
class Ground:
    """One seed on one scale."""

    settings: Cost
    seed: int
    split: str = "test"

    @cached_property
    def _world(self) -> Any:
        return Compare(world="bandit" if self.settings.scale == "bandit" else "tree").make_world()

    @cached_property
    def _text(self) -> setup_text.TextRun:
        s = self.settings
        plan = setup_text.Plan(labels=s.labels, prompts=s.prompts, beta=s.beta)
        return setup_text.TextRun(setup_text.bench(s.scale, s.world), plan, self.seed)

    @property
    def on_text(self) -> bool:
        """Whether the scale is a language model."""
        return self.settings.scale not in EXACT_SCALES

    @property
    def reference(self) -> Policy:
        """π_ref, frozen."""
        return self._text.bench.reference if self.on_text else self._world.reference

    @cached_property
    def pairs(self) -> Pairs:
        """The labelled pairs."""
        return (
            self._text.pairs
            if self.on_text
            else self._world.preferences(self.settings.labels, seeded(self.seed, Stream.LABELS))
        )

    @cached_property
    def prompts(self) -> Tokens:
        """Prompts for methods that sample."""
        if self.on_text:
            return self._text.prompts
        return self._world.draw_prompts(self.settings.prompts, seeded(self.seed, Stream.PROMPTS))

    def collect(self, policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """`number` labels of the policy's own responses."""
        if not self.on_text:
            return self._world.preferences(number, generator, policy=policy)
        made = self._text.bench
        return made.world.preferences(policy, made.tokenizer, "train", number, generator, made.unit, progress=False)[0]

    @cached_property
    def fitted(self) -> tuple[nn.Module, float]:
        """r_φ, frozen, and the seconds of its fit."""
        pairs, begin = self.pairs, time.process_time()
        model, s = self.reference.new_reward_model(), self.settings
        rate = {"bandit": 0.05, "tree": 0.003}.get(s.scale, 1e-3)
        training = self.training(22, s.reward_steps, s.responses // 2, rate)
        reward_model(model, pairs, RewardModel(), training)
        return model.requires_grad_(False), time.process_time() - begin

    def training(self, stream: int, steps: int, batch: int, rate: float) -> Training:
        """Settings of one fit."""
        return Training(
            steps=steps, batch_size=batch, learning_rate=rate, max_grad_norm=1.0,
            seed=1000 * self.seed + stream, progress=False,
        )  # fmt: skip

    @torch.no_grad()
    def score(self, policy: Policy) -> dict[str, float]:
        """Gold reward, KL and J: exact, or from samples of the split's prompts."""
        if not self.on_text:
            found = evaluate(policy, self._world, self.settings.beta)
            return {"reward": found.reward, "kl": found.kl, "objective": found.objective}
        run, s = self._text, self.settings
        run.plan = replace(run.plan, test_prompts=s.test_prompts, test_samples=s.test_samples)
        found_text = setup_text.measure(run, policy, split=self.split)
        return {name: found_text[name] for name in ("reward", "kl", "objective")}

    @cached_property
    def best_of(self) -> dict[int, float]:
        """Gold reward of the best of n by r_φ, for n = 1, 2, 4, …, 2 · `BEST_OF`."""
        model, _ = self.fitted
        sizes = [2**k for k in range(int(math.log2(2 * BEST_OF)) + 1)]
        if not self.on_text:
            world = self._world
            with torch.no_grad():
                learned = model(world.prompts, world.responses).double().cpu()
            log_ref, gold = world.log_ref(), world.rewards()
            return {n: (exact.best_of_n(log_ref, learned, n).exp() * gold).sum(-1).mean().item() for n in sizes}
        made = self._text.bench
        x = made.world.prompts(made.tokenizer, self.split, self.settings.test_prompts)
        with torch.no_grad():
            y = made.reference.sample(x, 2 * BEST_OF, seeded(self.seed, Stream.BEST_OF_N, device=made.reference.device))
            score, gold = model(x, y).double().cpu(), made.gold(x, y)
        out = {}
        for n in sizes:  # disjoint groups of n: every draw is used for each n
            best = score.view(len(x), -1, n).argmax(-1, keepdim=True)
            out[n] = gold.view(len(x), -1, n).gather(-1, best).mean().item()
        return out

    @cached_property
    def level(self) -> tuple[float, float]:
        """The reward of π_ref and the level: halfway to π*'s reward, on text halfway to best-of-8's."""
        if self.on_text:
            start, top = self.best_of[1], self.best_of[BEST_OF]
        else:
            start = self.score(self.reference)["reward"]
            log_star = self._world.optimal(self.settings.beta)
            top = (log_star.exp() * self._world.rewards()).sum(-1).mean().item()
        return start, start + (top - start) / 2


# ------------------------------------------------------------------------------------------------------------ methods


def train(method: str, ground: Ground, policy: Policy, model: nn.Module | None, rate: float, meter: Meter) -> None:
    """Train `policy` in place by `method`: the same number of optimiser steps, and of responses in each, for all."""
    s = ground.settings
    steps, many, beta, reference = s.steps, s.responses, s.beta, ground.reference

    def fit(stream: int, batch: int, number: int = steps) -> Training:
        return ground.training(stream, max(number, 1), batch, rate)

    if method == "sft":
        pairs = ground.pairs
        sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), fit(1, many))
    elif method == "dpo":
        dpo(policy, reference, ground.pairs, DPO(beta=beta), fit(3, many // 2))
    elif method == "ppo":
        assert model is not None
        critic = reference.new_critic(model.requires_grad_(True))
        model.requires_grad_(False)
        settings = PPO(beta=beta, samples=4, epochs=2)
        ppo(policy, reference, model, critic, ground.prompts, settings, fit(2, many // 4, steps // 2))
    elif method == "rso-rso-sample-rank":
        assert model is not None
        rso = RSO(beta=beta, candidates=32, accepted=8, sampling_batch_size=max(many // 32, 1))
        pairs, _ = make_pairs(reference, model, ground.prompts, rso, 1000 * ground.seed + 10)
        dpo(policy, reference, pairs, DPO(beta=beta), fit(10, many // 2))
    elif method == "raft":
        assert model is not None
        raft(policy, model, ground.prompts, RAFT(best_of=8, sampling_batch_size=max(many // 8, 1)), fit(7, many))
    elif method == "rest":
        assert model is not None
        thresholds = (0.0, 0.7)
        rest_settings = ReST(samples=8, thresholds=thresholds, sampling_batch_size=max(many // 8, 1))
        rest(policy, model, ground.prompts, rest_settings, fit(8, many, steps // len(thresholds)))
    elif method == "online":

        def collect(now: Policy, number: int, generator: torch.Generator) -> Pairs:
            # A finite world draws more than it labels, all at once; two responses a label is what is needed.
            with meter.uncounted():
                fresh = ground.collect(now, number, generator)
            meter.samples += 2 * number
            return fresh

        rounds = min(4, steps)
        online(
            policy, reference, collect, DPO(beta=beta), Online(rounds=rounds, labels=s.labels),
            fit(9, many // 2, steps // rounds),
        )  # fmt: skip
    else:
        raise LabError(f"cost knows no method {method!r}; it trains {', '.join(TRAINED)}.")


class Meter:
    """Counts responses drawn and the processor's seconds, and stops its clock where it is told to."""

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
            drawn = usual(*args, **kwargs)
            if self._counting:
                self.samples += drawn.shape[0] * drawn.shape[1]
            return drawn

        return sample

    @property
    def seconds(self) -> float:
        """Of the processor, since the beginning, without the evaluations."""
        return time.process_time() - self._begin - self._spent

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Draws within it do not count."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Neither draws nor seconds within it count."""
        begin = time.process_time()
        with self.uncounted():
            yield
        self._spent += time.process_time() - begin


def held_bytes(ground: Ground, method: str, model: nn.Module | None = None) -> int:
    """Bytes of weights, gradients, Adam's moments and frozen networks at a method's largest stage.

    Four numbers for each weight that is trained, one for each that is frozen. A method with a reward model had to fit
    it first, which holds four for each of its weights and nothing else.
    """
    policy, parts = size_of(ground.reference), PARTS[method]
    scorer = size_of(model if model is not None else ground.reference.new_reward_model())
    trained = policy + (size_of(ground.reference.new_critic()) if parts.critic else 0)
    stage = 4 * trained + (policy if parts.reference else 0) + (scorer if parts.reward else 0)
    return max(stage, 4 * scorer if parts.reward else 0)


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
