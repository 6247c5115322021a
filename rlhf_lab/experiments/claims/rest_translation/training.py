"""ReST, its other losses and PPO on translation, trained and measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact, preferences
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, pick_pairs
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.compare import Compare, Run
from rlhf_lab.experiments.setup_text import Plan, TextRun, bench, measure
from rlhf_lab.experiments.step_recorder import watching
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    from rlhf_lab.experiments.claims.rest_translation.run import ReSTTranslation


WORLD = "translation"
LOSSES = {"weighted": "cloning weighted by exp(r/β)", "raft": "cloning of the best of a prompt", "dpo": "DPO"}
"""What takes the filter's place on the same grown samples."""
FRONTIER = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of the last limit's KL at which π* of the reward model is drawn."""


def step_name(number: int) -> str:
    """How Improve step `number` of the first Grow is called in tables: G for Grow, I for Improve."""
    return f"G1 I{number}"


def last_step(settings: ReSTTranslation) -> tuple[str, str]:
    """The names of the last condition of each Grow."""
    return step_name(len(settings.thresholds) - 1), f"G2 I{len(settings.second)}"


@dataclass(eq=False)
class Grown:
    """One seed: its run, the first grown set, and r_φ on it."""

    settings: ReSTTranslation
    run: Run | TextRun

    @property
    def reference(self) -> Policy:
        """π_ref."""
        return self.run.world.reference if isinstance(self.run, Run) else self.run.bench.reference

    @property
    def world(self) -> FiniteWorld | None:
        """The finite world, where there is one."""
        return self.run.world if isinstance(self.run, Run) else None

    def training(self, steps: int, stream: int, **changes: Any) -> Training:
        """Of one fit."""
        given = self.settings
        return replace(
            self.run.training(stream), steps=steps, batch_size=given.batch, learning_rate=given.rate, progress=False,
            **changes,
        )  # fmt: skip

    @cached_property
    @torch.no_grad()
    def samples(self) -> tuple[Tokens, Tensor]:
        """The first Grow step's responses (N, G, T), those that `rest` draws too, and r_φ of each, (N, G)."""
        # The generator of `rest`'s first block of its first Grow step.
        generator = seeded(self.training(1, 40).seed, Stream.REST_GROW, 0, device=self.reference.device)
        y = self.reference.sample(self.run.prompts, self.settings.samples, generator)
        return y, self.run.reward(self.run.prompts, y).double().cpu()

    @cached_property
    @torch.no_grad()
    def original(self) -> tuple[Tokens, Tokens]:
        """SFT data: targets of the text world; on a finite world what they teach, draws of π_ref."""
        x = self.run.prompts
        if isinstance(self.run, Run):
            return x, self.reference.sample(x, 1, seeded(self.run.seed, Stream.SFT_TARGETS))
        prompts, targets = self.run.bench.world.sft(self.run.bench.tokenizer, "train", 2048)
        places = {key: i for i, key in enumerate(_keys(prompts))}
        return x, targets[torch.tensor([places[key] for key in _keys(x)])]

    @cached_property
    @torch.no_grad()
    def range(self) -> tuple[float, float]:
        """The lowest and the highest r_φ of the first grown set with the original data."""
        every = torch.cat(
            [self.above(*self.original).flatten(), self.above(self.run.prompts, self.samples[0]).flatten()]
        )
        return float(every.min()), float(every.max())

    @cached_property
    def baseline(self) -> dict[tuple[int, ...], float]:
        """Mean r_φ of the first grown responses to each prompt, by the prompt's tokens."""
        found: dict[tuple[int, ...], list[float]] = {}
        for key, row in zip(_keys(self.run.prompts), self.samples[1].tolist(), strict=True):
            found.setdefault(key, []).extend(row)
        return {key: sum(row) / len(row) for key, row in found.items()}

    @torch.no_grad()
    def above(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """r_φ less its mean among π_ref's responses to the prompt, (B, G): labels do not tell a prompt's constant."""
        scores = self.run.reward(prompts, responses).double()
        base = torch.tensor([self.baseline[key] for key in _keys(prompts)], dtype=torch.float64)
        return scores - base.unsqueeze(-1).to(scores.device)

    @torch.no_grad()
    def scaled(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """r_φ on the scale of the thresholds, (B, G)."""
        low, high = self.range
        return unit_interval(self.above(prompts, responses), low, high)


def _keys(prompts: Tokens) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in prompts.tolist()]


@lru_cache(maxsize=2)
def grown_of(settings: ReSTTranslation, seed: int) -> Grown:
    """A seed's world, its reward model and what was grown from it, on any scale."""
    if settings.scale in runner.EXACT_SCALES:
        tree = settings.scale == "tree"
        world = token_tree.random(8, 4, 1, seed) if tree else bandit.random(4, 10, seed)
        given = Compare(
            world="tree" if tree else "bandit", policy="table", beta=settings.beta, labels=max(settings.labels, 8),
            steps=settings.reward_steps, learning_rate=0.05, batch_size=4096, progress=False,
        )  # fmt: skip
        run = Run(given, world, seed)
        run.PROMPTS = settings.prompts
        return _fitted(Grown(settings, run))
    plan = Plan(
        labels=settings.labels, prompts=settings.prompts, beta=settings.beta, rate=settings.rate,
        reward_steps=settings.reward_steps, test_prompts=settings.test_prompts, test_samples=settings.test_samples,
    )  # fmt: skip
    return _fitted(Grown(settings, TextRun(bench(settings.scale, WORLD), plan, seed)))


def _fitted(grown: Grown) -> Grown:
    """The same, its reward model fitted: whoever asks for it first may be within `no_grad`."""
    assert grown.run.reward is not None
    return grown


def untrained_rows(grown: Grown) -> list[dict[str, Any]]:
    """Rows of what is not trained by ReST's losses: the reference, best of n and, where it is exact, π*."""
    settings = grown.settings
    rows = [{"condition": "BC", "samples": 0, **_numbers(grown, grown.reference)}]
    if grown.world is not None:
        learned = _learned(grown)
        log_ref = grown.world.log_ref()
        chosen = exact.best_of_n(log_ref, learned, settings.best_of)
        rows.append({"condition": "best-of-n", "samples": 0, **_numbers(grown, chosen)})
        best = exact.optimal_policy(log_ref, learned, settings.beta)
        rows.append({"condition": "optimum", "samples": 0, **_numbers(grown, best)})
    else:
        rows.append({"condition": "best-of-n", "samples": 0, **_numbers(grown, _BestOf(grown, settings.best_of))})
    return rows + _limits(grown)


def rest_rows(grown: Grown) -> list[dict[str, Any]]:
    """Rows of ReST itself, one after every Improve step."""
    settings, rows = grown.settings, []
    # The scale is set once, by `Grown.range`; τ = 0 lets everything through, the lowest score too.
    thresholds = tuple(tau if tau > 0 else -1e9 for tau in settings.thresholds)
    kept: list[float] = []

    def see(policy: Policy, steps: int) -> None:
        if steps and steps % settings.steps == 0:
            rows.append(_numbers(grown, policy))

    own = ReST(samples=settings.samples, thresholds=thresholds, scale="none")
    given = (grown.scaled, grown.run.prompts)
    with watching(see) as watch:
        policy = grown.run.fresh()
        watch.follow(policy)
        history = rest(policy, *given, own, grown.training(settings.steps, 40), grown.original)
        kept += [next(row["kept"] for row in history if row["improve"] == i) for i in range(len(thresholds))]
        # The policy has moved, and with it the range of what it writes: the second Grow's scale is its own.
        again = replace(own, thresholds=settings.second, scale="minmax")
        history = rest(
            policy, grown.above, grown.run.prompts, again, grown.training(settings.steps, 43), grown.original
        )
        kept += [next(row["kept"] for row in history if row["improve"] == i) for i in range(len(settings.second))]
    names = [step_name(i) for i in range(len(thresholds))] + [f"G2 I{i + 1}" for i in range(len(settings.second))]
    each = settings.prompts * settings.samples
    return [
        {"condition": name, "samples": each * (2 if name.startswith("G2") else 1), "kept": share, **row}
        for name, share, row in zip(names, kept, rows, strict=True)
    ]


def other_rows(part: str) -> Callable[[Grown], list[dict[str, Any]]]:
    """Another loss on the samples of the first Grow, with the optimiser steps of all its Improve steps."""

    def fit(grown: Grown) -> list[dict[str, Any]]:
        settings, (y, scores) = grown.settings, grown.samples
        generator = seeded(grown.run.seed, Stream.OTHER_LOSS)
        policy, x = grown.run.fresh(), grown.run.prompts
        training = grown.training(settings.steps * len(settings.thresholds), 45)
        if part == "dpo":
            pairs, _ = pick_pairs(x, y.to("cpu"), preferences.make_pairs(scores, generator))
            # A pair is two responses: half as many pairs in a step are as many responses.
            training = replace(training, batch_size=max(settings.batch // 2, 1))
            dpo(policy, grown.reference, pairs, DPO(beta=settings.beta), training)
        else:
            if part == "raft":
                taken = best_of(scores, generator)
            else:
                # Drawn again in proportion to exp(r/β): equally weighted cloning of these is weighted cloning of all.
                taken = torch.multinomial((scores / settings.beta).softmax(-1), settings.samples, True,
                                          generator=generator)  # fmt: skip
            targets = y.take(taken)
            sft(policy, x.repeat(taken.shape[1]), targets.reshape(taken.numel(), 1), training)
        return [{"condition": part, "samples": scores.numel(), **_numbers(grown, policy)}]

    return fit


def ppo_rows(grown: Grown) -> list[dict[str, Any]]:
    """Online RL: as many responses pass through the optimiser as in ReST's first Grow and all its Improve steps."""
    settings, reward, policy = grown.settings, grown.run.reward, grown.run.fresh()
    if isinstance(grown.run, TextRun):
        critic = grown.reference.new_critic(reward.requires_grad_(True))
        reward.requires_grad_(False)
        x, own = grown.run.prompts, PPO(beta=settings.beta, samples=4, epochs=2)
    else:
        critic = policy.new_critic(reward)
        x = grown.run.world.prompts
        own = PPO(beta=settings.beta, samples=256 // len(x), epochs=2)
    passes = settings.steps * len(settings.thresholds) * settings.batch
    asked = min(16, len(x))
    rounds = max(passes // (asked * own.samples * own.epochs), 1)
    if grown.world is not None:
        # A table's step costs little by its width: a round for every optimiser step of ReST's, and more samples.
        rounds = settings.steps * len(settings.thresholds)
    ppo(policy, grown.reference, reward, critic, x, own, replace(grown.training(rounds, 46), batch_size=asked))
    return [{"condition": "ppo", "samples": rounds * asked * own.samples, **_numbers(grown, policy)}]


class _BestOf(Policy):
    """Of n draws of π_ref the one that r_φ likes best; its log-probability is not known."""

    def __init__(self, grown: Grown, number: int) -> None:
        super().__init__()
        self.grown, self.number = grown, number

    @property
    def device(self) -> torch.device:
        return self.grown.reference.device

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        y = self.grown.reference.sample(prompts, num_samples * self.number, generator, temperature, top_k)
        scores = self.grown.run.reward(prompts, y).cpu().reshape(len(prompts) * num_samples, self.number)
        place = best_of(scores.double(), seeded(0)).reshape(len(prompts), num_samples)
        return y.take(place + self.number * torch.arange(num_samples))

    def log_prob(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        return torch.full(responses.shape[:2], float("nan"), device=self.device)


def _learned(grown: Grown) -> Tensor:
    assert isinstance(grown.run, Run)
    return grown.run.learned_rewards


def _numbers(grown: Grown, policy: Policy | Tensor) -> dict[str, Any]:
    """Where a policy stands: proxy r_φ, gold r*, KL; exact, or from its answers to the test prompts."""
    settings = grown.settings
    if isinstance(grown.run, TextRun):
        assert isinstance(policy, Policy)
        seen = measure(grown.run, policy, proxy=grown.run.reward, beta=settings.beta)
        names = {"proxy": "proxy", "reward": "gold", "kl": "kl", "bleu": "bleu", "exact": "right",
                 "distinct_2": "distinct"}  # fmt: skip
        out = {name: seen[key] for key, name in names.items()}
        if isinstance(policy, _BestOf):
            out["kl"] = math.log(policy.number) - (policy.number - 1) / policy.number
        return out
    world, learned = grown.run.world, _learned(grown)
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
    """Where cloning above each threshold in turn ends, log-probabilities (X, K) after each.

    π_ref conditioned on r > τ; a prompt none of whose responses passes learns nothing in that step and stays where it
    was. At τ = 0 all pass. A second Grow at the same or lower thresholds would change nothing: who has passed passes.
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

    Of all policies with this mean KL it has the most reward. Beyond the largest KL of any π*, the greedy one.
    """
    low, high = -9.0, 30.0  # log β; KL falls in it
    for _ in range(7):
        grid = torch.linspace(low, high, 65, dtype=torch.float64)
        spent, _ = exact.frontier(log_ref, reward, grid.exp())
        above = int((spent.mean(0) > kl).sum())  # a prefix of the grid
        low, high = float(grid[max(above - 1, 0)]), float(grid[min(above, 64)])
    return exact.optimal_policy(log_ref, reward, math.exp(high))


def at_equal_kl(log_ref: Tensor, reward: Tensor, kl: float) -> float:
    """The most E[reward], mean over prompts, that a policy with this KL to π_ref can have."""
    return float((equal_kl(log_ref, reward, max(kl, 0.0)).exp() * reward).sum(-1).mean())


def _limits(grown: Grown) -> list[dict[str, Any]]:
    """The filter's limit at each threshold, and how much more the optimum of the same reward has at its KL."""
    settings = grown.settings
    low, high = grown.range
    if grown.world is not None:
        log_ref, learned, x = grown.world.log_ref(), _learned(grown), grown.world.prompts
    else:
        learned, x = grown.samples[1], grown.run.prompts
        log_ref = torch.full_like(learned, -math.log(learned.shape[1]))
    base = torch.tensor([grown.baseline[key] for key in _keys(x)], dtype=torch.float64)
    scaled = unit_interval(learned - base.unsqueeze(-1), low, high)
    gold = None if grown.world is not None else grown.run.bench.gold(x, grown.samples[0]).cpu()  # type: ignore[union-attr]

    def stand(log_policy: Tensor) -> dict[str, Any]:
        if gold is None:
            return _numbers(grown, log_policy)
        spent = exact.kl(log_policy, log_ref).mean().item()
        proxy = (log_policy.exp() * learned).sum(-1).mean().item()
        gap = at_equal_kl(log_ref, learned, spent) - proxy
        return {"proxy": proxy, "kl": spent, "gap": gap, "gold": (log_policy.exp() * gold).sum(-1).mean().item()}

    rows = []
    for tau, log_policy in zip(
        settings.thresholds, filter_limit(log_ref, scaled, settings.thresholds), strict=True
    ):  # fmt: skip
        rows.append({"condition": f"limit {tau:g}", "samples": 0, **stand(log_policy)})
    spent = exact.kl(log_policy, log_ref).mean().item()
    for share in FRONTIER:
        best = equal_kl(log_ref, learned, share * spent)
        rows.append({"condition": f"frontier {share:g}", "samples": 0, **stand(best)})
    return rows
