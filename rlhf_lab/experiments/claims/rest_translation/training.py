"""Set-ups of the experiment on ReST: ReST, other losses on its data, and PPO, trained and evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact, preferences
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, pick_pairs
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.claims.rest_translation.settings import FRONTIER, ReSTTranslation
from rlhf_lab.experiments.methods import BestOf, train
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import seeded

WORLD = "translation"


@dataclass(eq=False)
class ReSTSetup:
    """One seed: its set-up, the samples of the first Grow step, and r_φ of each.

    Attributes:
        settings: of the experiment.
        setup: labels, reward model, prompts and reference policy.
    """

    settings: ReSTTranslation
    setup: Setup

    @cached_property
    def samples(self) -> tuple[Tokens, Tensor]:
        """The responses of the first Grow step (N, G, T), which `rest` samples too, and r_φ of each, (N, G)."""
        setup = self.setup
        # The generator of the first block of the first Grow step in `rest`.
        seed = setup.training(Stream.REST_FIRST_GROW).seed
        generator = seeded(seed, Stream.REST_GROW, 0, device=setup.reference.device)
        y = setup.reference.sample(setup.prompts, self.settings.samples, generator)
        return y, setup.reward_model(setup.prompts, y).double().cpu()

    @cached_property
    def original(self) -> tuple[Tokens, Tokens]:
        """SFT data: the targets of a text world, or samples of π_ref on a finite world, which has no targets."""
        setup, x = self.setup, self.setup.prompts
        if isinstance(setup, ExactSetup):
            return x, setup.reference.sample(x, 1, seeded(setup.seed, Stream.SFT_TARGETS))
        assert isinstance(setup, TextSetup)
        prompts, targets = setup.task.world.sft(setup.task.tokenizer, "train", 2048)
        places = {key: i for i, key in enumerate(_keys(prompts))}
        return x, targets[torch.tensor([places[key] for key in _keys(x)])]

    @cached_property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest r_φ among the samples of the first Grow step and the SFT data."""
        grown = self.above(self.setup.prompts, self.samples[0])
        every = torch.cat([self.above(*self.original).flatten(), grown.flatten()])
        return float(every.min()), float(every.max())

    @cached_property
    def baseline(self) -> dict[tuple[int, ...], float]:
        """Mean r_φ of the first Grow step's responses to each prompt, by the tokens of the prompt."""
        found: dict[tuple[int, ...], list[float]] = {}
        for key, row in zip(_keys(self.setup.prompts), self.samples[1].tolist(), strict=True):
            found.setdefault(key, []).extend(row)
        return {key: sum(row) / len(row) for key, row in found.items()}

    def above(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """r_φ less its mean over π_ref's responses to the prompt, (B, G).

        Preference labels determine r_φ only up to a constant for each prompt.
        """
        scores: Tensor = self.setup.reward_model(prompts, responses).double()
        base = torch.tensor([self.baseline[key] for key in _keys(prompts)], dtype=torch.float64)
        return scores - base.unsqueeze(-1).to(scores.device)

    def scaled(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """r_φ on the scale of the thresholds, (B, G)."""
        low, high = self.range
        return unit_interval(self.above(prompts, responses), low, high)


def _keys(prompts: Tokens) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in prompts.tolist()]


@lru_cache(maxsize=2)
def rest_setup(settings: ReSTTranslation, seed: int) -> ReSTSetup:
    """Make the set-up of one seed, on any scale; its reward model is fitted to the preference labels."""
    reward_model = {"reward_rate": 0.05, "reward_batch_size": 4096} if settings.exact else {"reward_batch_size": 16}
    setup = set_up(
        settings.scale, seed, WORLD, labels=settings.labels, prompts=settings.prompts, beta=settings.beta,
        batch_size=settings.batch, learning_rate=settings.rate, reward_steps=settings.reward_steps,
        test_prompts=settings.test_prompts, test_samples=settings.test_samples, **reward_model,
    )  # fmt: skip
    return ReSTSetup(settings, setup)


def untrained_rows(shared: ReSTSetup) -> list[dict[str, Any]]:
    """Rows of what no loss trains: the reference policy, best-of-n and, where it is exact, π* of the reward model."""
    settings, setup = shared.settings, shared.setup
    policies: dict[str, Policy | Tensor] = {"BC": setup.reference}
    if isinstance(setup, ExactSetup):
        log_ref, learned = setup.world.log_ref(), setup.learned_rewards
        policies["best-of-n"] = exact.best_of_n(log_ref, learned, settings.best_of)
        policies["optimum"] = exact.optimal_policy(log_ref, learned, settings.beta)
    else:
        policies["best-of-n"] = BestOf(setup.reference, setup.reward_model, settings.best_of)
    rows = [{"condition": name, "samples": 0, **_numbers(shared, policy)} for name, policy in policies.items()]
    return rows + _limits(shared)


def rest_rows(shared: ReSTSetup) -> list[dict[str, Any]]:
    """Rows of ReST itself, one after every Improve step."""
    settings, setup, rows = shared.settings, shared.setup, []
    # `ReSTSetup.range` sets the scale once. At τ = 0 every response passes, that with the lowest score too.
    thresholds = tuple(tau if tau > 0 else -1e9 for tau in settings.thresholds)
    passed: list[float] = []

    def see(policy: Policy, steps: int) -> None:
        if steps and steps % settings.steps == 0:
            rows.append(_numbers(shared, policy))

    first = ReST(samples=settings.samples, thresholds=thresholds, scale="none")
    # The policy has moved, and with it the range of its responses' scores, so the second Grow step has another scale.
    second = replace(first, thresholds=settings.second, scale="minmax")
    policy = setup.new_policy()
    with record(see, policy):
        for method, reward, stream in (
            (first, shared.scaled, Stream.REST_FIRST_GROW),
            (second, shared.above, Stream.REST_SECOND_GROW),
        ):
            training = setup.training(stream, steps=settings.steps)
            history = rest(policy, reward, setup.prompts, method, training, shared.original)
            passed += {row["improve"]: row["kept"] for row in history}.values()
    names = settings.first_names + settings.second_names
    each = settings.prompts * settings.samples
    return [
        {"condition": name, "samples": each * (2 if name.startswith("G2") else 1), "kept": share, **row}
        for name, share, row in zip(names, passed, rows, strict=True)
    ]


def other_rows(shared: ReSTSetup, loss: str) -> list[dict[str, Any]]:
    """Train another loss on the samples of the first Grow step, with the optimiser steps of all its Improve steps."""
    settings, setup, (y, scores) = shared.settings, shared.setup, shared.samples
    generator = seeded(setup.seed, Stream.OTHER_LOSS)
    policy, x = setup.new_policy(), setup.prompts
    training = setup.training(Stream.OTHER_LOSS_FIT, steps=settings.steps * len(settings.thresholds))
    if loss == "dpo":
        pairs, _ = pick_pairs(x, y.to("cpu"), preferences.make_pairs(scores, generator))
        # A pair has two responses, so half as many pairs in a step are as many responses.
        training = replace(training, batch_size=max(settings.batch // 2, 1))
        dpo(policy, setup.reference, pairs, DPO(beta=settings.beta), training)
    else:
        if loss == "raft":
            taken = best_of(scores, generator)
        else:
            # Resampled in proportion to exp(r/β): SFT on these is SFT on all responses with these weights.
            weights = (scores / settings.beta).softmax(-1)
            taken = torch.multinomial(weights, settings.samples, replacement=True, generator=generator)
        sft(policy, x.repeat(taken.shape[1]), y.take(taken).reshape(taken.numel(), 1), training)
    return [{"condition": loss, "samples": scores.numel(), **_numbers(shared, policy)}]


def ppo_rows(shared: ReSTSetup) -> list[dict[str, Any]]:
    """Train PPO with as many responses in the optimiser as in the Improve steps of ReST's first Grow step."""
    settings, setup = shared.settings, shared.setup
    steps = settings.steps * len(settings.thresholds)
    if isinstance(setup, ExactSetup):
        # On a table a large batch costs little: PPO has a round for every optimiser step of ReST, and more samples.
        rounds, prompts = steps, min(16, setup.world.num_prompts)
    else:
        prompts = min(16, len(setup.prompts))
        rounds = max(steps * settings.batch // (prompts * 4 * 2), 1)  # four responses to a prompt, two epochs
    training = setup.training(Stream.PPO_FIT, steps=rounds, batch_size=prompts)
    trained = train("ppo", setup, training, stages=1, epochs=2)
    assert isinstance(trained.policy, Policy)
    return [{"condition": "ppo", "samples": trained.samples, **_numbers(shared, trained.policy)}]


def _numbers(shared: ReSTSetup, policy: Policy | Tensor) -> dict[str, Any]:
    """Proxy r_φ, gold r* and KL of a policy, exact or estimated from its answers to the test prompts."""
    settings, setup = shared.settings, shared.setup
    if isinstance(setup, TextSetup):
        assert isinstance(policy, Policy)
        seen = setup.evaluate(policy, proxy=setup.reward_model)
        names = {"proxy": "proxy", "reward": "gold", "kl": "kl", "bleu": "bleu", "exact": "right",
                 "distinct_2": "distinct"}  # fmt: skip
        out = {name: seen[key] for key, name in names.items()}
        if isinstance(policy, BestOf):
            out["kl"] = math.log(policy.n) - (policy.n - 1) / policy.n
        return out
    assert isinstance(setup, ExactSetup)
    world, learned = setup.world, setup.learned_rewards
    log_policy = policy if isinstance(policy, Tensor) else world.log_probs(policy)
    found = evaluate(log_policy, world, settings.beta)
    proxy = (log_policy.exp() * learned).sum(-1).mean().item()
    log_ref = world.log_ref()
    return {
        "proxy": proxy,
        "gold": found.reward,
        "kl": found.kl,
        "regret": found.regret,
        "gap": at_equal_kl(log_ref, learned, found.kl) - proxy,
        "gold_gap": at_equal_kl(log_ref, world.rewards(), found.kl) - found.reward,
    }


def filter_limit(log_ref: Tensor, scaled: Tensor, thresholds: tuple[float, ...]) -> list[Tensor]:
    """What SFT above each threshold in order converges to, log-probabilities (X, K) after each.

    It is π_ref conditioned on r > τ. A prompt none of whose responses passes learns nothing in that step. At τ = 0 all
    responses pass. A second Grow at the same or lower thresholds would change nothing, since all its samples pass.
    """
    now, out = log_ref, []
    for tau in thresholds:
        if tau > 0:
            passes = ((wins(scaled, tau) == 1) & (log_ref > -torch.inf)).any(-1)
            reached = exact.filtered(log_ref, torch.where(passes.unsqueeze(-1), scaled, tau + 1.0), tau)
            now = torch.where(passes.unsqueeze(-1), reached, now)
        out.append(now)
    return out


def equal_kl(log_ref: Tensor, reward: Tensor, kl: float) -> Tensor:
    """log π* (X, K) of `reward` at the β at which its KL to π_ref, mean over prompts, is `kl`.

    Of all policies with this mean KL it has the highest reward. Beyond the largest KL of any π* it is the greedy one.
    """
    low, high = -9.0, 30.0  # log β; KL falls in it
    for _ in range(7):
        grid = torch.linspace(low, high, 65, dtype=torch.float64)
        spent, _ = exact.frontier(log_ref, reward, grid.exp())
        above = int((spent.mean(0) > kl).sum())  # a prefix of the grid
        low, high = float(grid[max(above - 1, 0)]), float(grid[min(above, 64)])
    return exact.optimal_policy(log_ref, reward, math.exp(high))


def at_equal_kl(log_ref: Tensor, reward: Tensor, kl: float) -> float:
    """The maximum of E[reward], mean over prompts, of a policy with this KL to π_ref."""
    return float((equal_kl(log_ref, reward, max(kl, 0.0)).exp() * reward).sum(-1).mean())


def _limits(shared: ReSTSetup) -> list[dict[str, Any]]:
    """The filter's limit at each threshold, and by how much the optimum of the same reward is higher at its KL.

    On a language model the samples of the first Grow step are taken for all responses that there are.
    """
    settings, setup = shared.settings, shared.setup
    if isinstance(setup, ExactSetup):
        x, y = setup.world.prompts, setup.world.responses
        log_ref, learned = setup.world.log_ref(), setup.learned_rewards
    else:
        x, (y, learned) = setup.prompts, shared.samples
        log_ref = torch.full_like(learned, -math.log(learned.shape[1]))
        gold = setup.gold(x, y).cpu()

    def position(log_policy: Tensor) -> dict[str, Any]:
        if isinstance(setup, ExactSetup):
            return _numbers(shared, log_policy)
        kl = exact.kl(log_policy, log_ref).mean().item()
        proxy = (log_policy.exp() * learned).sum(-1).mean().item()
        gap = at_equal_kl(log_ref, learned, kl) - proxy
        return {"proxy": proxy, "kl": kl, "gap": gap, "gold": (log_policy.exp() * gold).sum(-1).mean().item()}

    limits = filter_limit(log_ref, shared.scaled(x, y).cpu(), settings.thresholds)
    policies = {f"limit {tau:g}": limit for tau, limit in zip(settings.thresholds, limits, strict=True)}
    kl = exact.kl(limits[-1], log_ref).mean().item()
    policies |= {f"frontier {share:g}": equal_kl(log_ref, learned, share * kl) for share in FRONTIER}
    return [{"condition": name, "samples": 0, **position(log_policy)} for name, log_policy in policies.items()]
