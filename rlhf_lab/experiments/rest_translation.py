"""Claim 6: ReST on translation. Improve steps and a second Grow raise the reward; and where the filter ends.

Every condition of a seed has the same labels, reward model, prompts and grown samples of π_ref. The limit of the
filter, π_ref conditioned on r > τ, is set beside the optimum of the same reward that spends as much KL: on the exact
rungs over all responses, on a language model over the grown samples, taken as all responses there are.
"""

from __future__ import annotations

import math
import re
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
from rlhf_lab.checks import LabError, check_beta
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments import experiment
from rlhf_lab.experiments.compare import Compare, Run
from rlhf_lab.experiments.experiment import Chosen, Experiment, Job, Settings, Verdict
from rlhf_lab.experiments.language import Plan, TextRun, bench, measure
from rlhf_lab.experiments.statistics import Interval, difference, mean_interval, summarise
from rlhf_lab.experiments.watch import watching
from rlhf_lab.figures import style
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.world import World

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WORLD = "translation"
LOSSES = {"weighted": "cloning weighted by exp(r/β)", "raft": "cloning of the best of a prompt", "dpo": "DPO"}
"""What takes the filter's place on the same grown samples."""
FRONTIER = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of the last limit's KL at which π* of the reward model is drawn."""


@dataclass(frozen=True)
class ReSTTranslation(Settings):
    """ReST step by step, beside other losses, online RL, best of n, and its own limit."""

    beta: float = 0.5
    """β of online RL, of the weighted losses and of regret, in the labeller's unit."""
    labels: int = 0
    """Preference labels under the reward model. 0: 500; tree 4,000; a language model 512."""
    prompts: int = 0
    """Prompts that are answered in a Grow step. 0: 500; a language model 64."""
    samples: int = 16
    """Responses to each."""
    thresholds: tuple[float, ...] = (0.0, 0.7, 0.8, 0.9, 0.95)
    """τ after the first Grow, on [0, 1] by the range of the first grown set; the first takes everything."""
    second: tuple[float, ...] = (0.8, 0.9, 0.95)
    """τ after the second Grow, on [0, 1] by the range of the second grown set."""
    steps: int = 0
    """Optimiser steps of one Improve step. 0: 60; a language model 16. Other losses get those of all Improve steps."""
    batch: int = 0
    """Responses in an optimiser step. 0: 2,048; a language model 32."""
    rate: float = 0.0
    """Learning rate of every fit; ReST halves it from one Improve step to the next. 0: 0.05; a language model 3e-4."""
    best_of: int = 8
    """n of best-of-n at test time."""
    reward_steps: int = 0
    """Optimiser steps of the reward model. 0: 150; a language model 80."""
    test_prompts: int = 0
    """Test prompts of a language model. 0: 96."""
    test_samples: int = 4
    """Responses to each."""

    def __post_init__(self) -> None:
        exactly = self.rung in experiment.EXACT_RUNGS
        tree, quick = self.rung == "tree", self.quick
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 20 if self.rung == "bandit" else 5 if tree else 3,
            "labels": (200 if exactly else 32) if quick else (4000 if tree else 500) if exactly else 512,
            "prompts": (50 if exactly else 8) if quick else 500 if exactly else 64,
            "steps": (5 if exactly else 1) if quick else 60 if exactly else 16,
            "batch": 2048 if exactly else 8 if quick else 32,
            "rate": 0.05 if exactly else 3e-4,
            "reward_steps": (20 if exactly else 2) if quick else 150 if exactly else 80,
            "test_prompts": 8 if quick else 96,
        }
        if quick and not exactly and self.samples == 16:
            defaults["samples"] = 4
            object.__setattr__(self, "samples", 0)
            object.__setattr__(self, "test_samples", 2)
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        if self.samples < 2 or self.samples % 2:
            raise LabError(f"samples must be even and at least 2, not {self.samples}: DPO pairs them.")
        for name in ("labels", "prompts", "steps", "batch", "reward_steps", "test_prompts", "test_samples", "best_of"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("thresholds", "second"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or not 0 <= values[0] <= values[-1] < 1:
                raise LabError(f"{name} must rise from 0 or more to less than 1, not {values}.")
        if len(self.thresholds) < 2 or self.thresholds[0] > 0:
            raise LabError(f"thresholds must begin with 0 and have an Improve step after it, not {self.thresholds}.")


def _step(number: int) -> str:
    return f"G1 I{number}"


def _last(settings: ReSTTranslation) -> tuple[str, str]:
    """The names of the last condition of each Grow."""
    return _step(len(settings.thresholds) - 1), f"G2 I{len(settings.second)}"


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
    def world(self) -> World | None:
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
        generator = seeded(self.training(1, 40).seed, 3, 0, device=self.reference.device)
        y = self.reference.sample(self.run.prompts, self.settings.samples, generator)
        return y, self.run.reward(self.run.prompts, y).double().cpu()

    @cached_property
    @torch.no_grad()
    def original(self) -> tuple[Tokens, Tokens]:
        """SFT data: targets of the text world; on a finite world what they teach, draws of π_ref."""
        x = self.run.prompts
        if isinstance(self.run, Run):
            return x, self.reference.sample(x, 1, seeded(self.run.seed, 42))
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
        return (self.above(prompts, responses) - low) / max(high - low, 1e-12)


def _keys(prompts: Tokens) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in prompts.tolist()]


@lru_cache(maxsize=2)
def _grown(settings: ReSTTranslation, seed: int) -> Grown:
    if settings.rung in experiment.EXACT_RUNGS:
        tree = settings.rung == "tree"
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
    return _fitted(Grown(settings, TextRun(bench(settings.rung, WORLD), plan, seed)))


def _fitted(grown: Grown) -> Grown:
    """The same, its reward model fitted: whoever asks for it first may be within `no_grad`."""
    assert grown.run.reward is not None
    return grown


def jobs(settings: ReSTTranslation) -> list[Job]:
    """Per seed: the untrained, ReST with all its steps, every other loss, online RL."""
    parts = ("untrained", "rest", *LOSSES, "ppo")
    return [{"seed": seed, "part": part} for seed in range(settings.seeds) for part in parts]


def run(settings: ReSTTranslation, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    """The rows of one seed and part."""
    grown = _grown(replace(settings, out=None, workers=1, progress=False), job["seed"])
    return {"untrained": _untrained, "rest": _rest, "ppo": _ppo}.get(job["part"], _other(job["part"]))(grown)


def _untrained(grown: Grown) -> list[dict[str, Any]]:
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


def _rest(grown: Grown) -> list[dict[str, Any]]:
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
    names = [_step(i) for i in range(len(thresholds))] + [f"G2 I{i + 1}" for i in range(len(settings.second))]
    each = settings.prompts * settings.samples
    return [
        {"condition": name, "samples": each * (2 if name.startswith("G2") else 1), "kept": share, **row}
        for name, share, row in zip(names, kept, rows, strict=True)
    ]


def _other(part: str) -> Callable[[Grown], list[dict[str, Any]]]:
    """Another loss on the samples of the first Grow, with the optimiser steps of all its Improve steps."""

    def fit(grown: Grown) -> list[dict[str, Any]]:
        settings, (y, scores) = grown.settings, grown.samples
        generator = seeded(grown.run.seed, 44)
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


def _ppo(grown: Grown) -> list[dict[str, Any]]:
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
            passes = ((scaled > tau) & (log_ref > -torch.inf)).any(-1)
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
    scaled = (learned - base.unsqueeze(-1) - low) / max(high - low, 1e-12)
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


def summarise_rows(settings: ReSTTranslation, rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and each condition's gain over π_ref on the same prompts, paired within the seed."""
    rows = with_gains(rows)
    names = ["proxy", "gold", "proxy_gain", "gold_gain", "kl", "gap", "gold_gap", "regret", "bleu", "right", "distinct",
             "kept", "samples"]  # fmt: skip
    return summarise(rows, "condition", [name for name in names if name in rows.columns])


def with_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `proxy_gain` and `gold_gain`, each over where its own seed and its own prompts began."""
    rows = rows.copy()
    limit = rows["condition"].str.match("limit|frontier")
    for name in ("proxy", "gold"):
        base = rows[rows["condition"] == "BC"].set_index("seed")[name]
        begun = rows[rows["condition"] == "limit 0"].set_index("seed")[name]
        start = rows["seed"].map(base).where(~limit, rows["seed"].map(begun))
        rows[f"{name}_gain"] = rows[name] - start
    return rows


@dataclass(frozen=True)
class Part:
    """One part of the claim: differences in the proxy, and the same in gold."""

    says: str
    proxy: list[Interval]
    gold: list[Interval]
    proxy_alone: bool = True
    """Whether a fall in gold would count against it."""

    @property
    def status(self) -> str:
        """holds, on the proxy alone, refuted, or open."""
        if any(one.below for one in self.proxy):
            return "refuted"
        if not all(one.above for one in self.proxy):
            return "open"
        return "on the proxy alone" if self.proxy_alone and any(one.below for one in self.gold) else "holds"


def parts(settings: ReSTTranslation, rows: pd.DataFrame) -> dict[str, Part]:
    """The parts of the claim, from the rows."""
    first, second = _last(settings)
    own = [row for row in rows["condition"].unique() if not row.startswith(("limit", "frontier"))]
    trained = rows[rows["condition"].isin(own)]

    def gap(one: str, other: str, metric: str) -> Interval:
        return difference(trained, "condition", one, other, metric)

    def part(says: str, *both: tuple[str, str]) -> Part:
        return Part(says, [gap(*two, "proxy") for two in both], [gap(*two, "gold") for two in both])

    end = rows[rows["condition"] == f"limit {settings.thresholds[-1]:g}"]["gap"]
    missing = Interval(*mean_interval(end.to_numpy()))
    return {
        "improve": part("Improve steps raise the reward", (first, _step(0))),
        "grow": part("a second Grow raises it further", (second, first)),
        "loss": part("cloning above the threshold beats the other losses", *((first, name) for name in LOSSES)),
        "online": part("ReST beats online RL", (second, "ppo")),
        "limit": Part("the filter's limit has less than π* has at the same KL", [missing], [missing], False),
    }


def outcome(found: dict[str, str]) -> str:
    """The rule, from the parts' statuses by name."""
    if found["improve"] == "refuted":
        return "does not hold"
    if found["improve"] == "open":
        return "not decided"
    if all(status == "holds" for status in found.values()):
        return "holds"
    others = [status for name, status in found.items() if name != "improve"]
    if found["improve"] == "holds" and all(status in ("holds", "open") for status in others):
        # Nothing speaks against it; the claim as a whole is not shown either.
        return "holds when" if any(status == "holds" for status in others) else "not decided"
    return "holds when"


def judge(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """The verdict, and every part's differences."""
    found = parts(settings, rows)
    verdict = outcome({name: part.status for name, part in found.items()})
    words = {"holds": "Shown", "on the proxy alone": "Shown for the proxy, while gold fell", "refuted": "Refuted",
             "open": "Not decided"}  # fmt: skip
    said = []
    for status, word in words.items():
        here = [f"{part.says} ({'; '.join(map(str, part.proxy))})" for part in found.values() if part.status == status]
        if here:
            said.append(f"{word}: {', '.join(here)}.")
    return Verdict(verdict, " ".join(said) + " In brackets: differences in r_φ, paired within seeds.")  # type: ignore[arg-type]


def _order(settings: ReSTTranslation) -> list[str]:
    return ["BC", *(_step(i) for i in range(len(settings.thresholds))),
            *(f"G2 I{i + 1}" for i in range(len(settings.second)))]  # fmt: skip


def _error(row: Any, metric: str) -> list[list[float]]:
    return [
        [max(float(row[metric] - row[f"{metric}_low"]), 0.0) if row[f"{metric}_low"] == row[f"{metric}_low"] else 0.0],
        [
            max(float(row[f"{metric}_high"] - row[metric]), 0.0)
            if row[f"{metric}_high"] == row[f"{metric}_high"]
            else 0.0
        ],
    ]


def figure(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Reward step by step; and what the KL bought, beside the filter's limit and π*."""
    table: Any = summary.set_index("condition")
    drawing, (left, middle) = style.subplots(1, 2, width=13.5, height=5.4)
    with style.use():
        names = _order(settings)
        others = [*LOSSES, "ppo", "best-of-n"]
        keys = {"weighted": "reward", "raft": "raft", "dpo": "dpo", "ppo": "ppo", "best-of-n": "best-of-n"}
        for metric, filled, word in (("proxy_gain", True, "r_φ, the reward that is filtered"),
                                     ("gold_gain", False, "gold reward r*")):  # fmt: skip
            shift = -0.08 if filled else 0.08
            mean = [float(table.loc[name, metric]) for name in names]
            sides = [_error(table.loc[name], metric) for name in names]
            colour = style.colour("rest")
            left.errorbar(
                [i + shift for i in range(len(names))], mean,
                yerr=[[s[0][0] for s in sides], [s[1][0] for s in sides]], color=colour, marker=style.of("rest").marker,
                mfc=colour if filled else "white", mec=colour, ls="-" if filled else "--", elinewidth=1.4,
                label=f"ReST: {word}",
            )  # fmt: skip
            for place, name in enumerate(others, len(names)):
                look = style.of(keys[name])
                left.errorbar(
                    [place + shift], [float(table.loc[name, metric])], yerr=_error(table.loc[name], metric),
                    color=look.light, marker=look.marker, mfc=look.light if filled else "white", mec=look.light,
                    mew=2 if look.marker in style.OPEN_MARKERS else 1, ls="none", elinewidth=1.4,
                )  # fmt: skip
        left.axhline(0, color="#999999", lw=1)
        left.axvline(len(names) - 0.5, color="#CCCCCC", lw=1)
        labels = {"weighted": "exp(r/β)", "raft": "RAFT", "dpo": "DPO", "ppo": "PPO",
                  "best-of-n": f"best of {settings.best_of}"}  # fmt: skip
        left.set_xticks(range(len(names) + len(others)), names + [labels[name] for name in others], rotation=50,
                        ha="right")  # fmt: skip
        left.set(title="Reward, step by step", xlabel="ReST's steps; other losses; online RL; test time",
                 ylabel="gain over π_ref [logits of a label]")  # fmt: skip
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.22 * (high - low))
        left.legend(loc="upper left")

        limits = [f"limit {tau:g}" for tau in settings.thresholds]
        kl = [float(table.loc[name, "kl"]) for name in limits]
        gain = [float(table.loc[name, "proxy_gain"]) for name in limits]
        best = [f"frontier {share:g}" for share in FRONTIER]
        where = "" if settings.rung in experiment.EXACT_RUNGS else " (grown samples)"
        middle.plot(
            [float(table.loc[name, "kl"]) for name in best], [float(table.loc[name, "proxy_gain"]) for name in best],
            color=style.colour("optimal"), label=f"π* of r_φ{where}",
        )  # fmt: skip
        middle.errorbar(
            kl, gain, yerr=[[_error(table.loc[name], "proxy_gain")[i][0] for name in limits] for i in (0, 1)],
            color=style.colour("rest"), ls="none", marker="o", mfc="white", label=f"limit of the filter{where}",
        )  # fmt: skip
        middle.plot([float(table.loc[n, "kl"]) for n in names], [float(table.loc[n, "proxy_gain"]) for n in names],
                    color=style.colour("rest"), marker=style.of("rest").marker, label="ReST as trained")  # fmt: skip
        for name in others:
            look = style.of(keys[name])
            middle.errorbar(
                [float(table.loc[name, "kl"])], [float(table.loc[name, "proxy_gain"])],
                yerr=_error(table.loc[name], "proxy_gain"), color=look.light, marker=look.marker, ls="none",
                mew=2 if look.marker in style.OPEN_MARKERS else 1, ms=9, label=labels[name],
            )  # fmt: skip
        middle.set(title="What the KL bought", xlabel="KL(π‖π_ref) [nats]",
                   ylabel="gain of r_φ over π_ref [logits of a label]")  # fmt: skip
        middle.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing


def words(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    table: Any = summary.set_index("condition")
    first, second = _last(settings)

    def gains(name: str) -> str:
        return f"{table.loc[name, 'proxy_gain']:+.2f} and {table.loc[name, 'gold_gain']:+.2f}"

    last = f"limit {settings.thresholds[-1]:g}"
    return _minus(
        f"Gains over π_ref in logits of a label, proxy and gold: everything grown, cloned, {gains(_step(0))}; after "
        f"the last Improve step {gains(first)}; after a second Grow {gains(second)}. Weighted cloning "
        f"{gains('weighted')}, RAFT {gains('raft')}, DPO {gains('dpo')}, PPO {gains('ppo')}, best of "
        f"{settings.best_of} {gains('best-of-n')}. The filter's limit at τ = {settings.thresholds[-1]:g} spends "
        f"{table.loc[last, 'kl']:.2f} nats and gains {table.loc[last, 'proxy_gain']:.2f} of r_φ; π* of r_φ gains "
        f"{table.loc[last, 'gap']:.2f} more at that KL."
    )


def text(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What was found."""
    table: Any = summary.set_index("condition")
    found = parts(settings, rows)
    first, second = _last(settings)
    exactly = settings.rung in experiment.EXACT_RUNGS
    last = f"limit {settings.thresholds[-1]:g}"
    gold = found["improve"].gold[0]
    went = {"holds": "rose", "on the proxy alone": "rose", "refuted": "fell", "open": "cannot be told to have moved"}

    gaps = {tau: float(table.loc[f"limit {tau:g}", "gap"]) for tau in settings.thresholds}
    widest = max(gaps.items(), key=lambda item: item[1])
    said = [
        f"From cloning all that was grown to the last Improve step r_φ {went[found['improve'].status]}: "
        f"{found['improve'].proxy[0]}; gold {_moved(gold)} ({gold}).",
        f"The last filter let {100 * table.loc[first, 'kept']:.2g}% of the data through.",
        f"The second Grow with its {len(settings.second)} Improve steps added {found['grow'].proxy[0]} of r_φ and "
        f"{found['grow'].gold[0]} of gold. In the limit of data and steps it could add nothing unless a threshold "
        f"rose: what has passed a filter passes it again. What a second Grow adds, it adds because the first one's fit "
        f"stopped short of its limit.",
        "Against ReST's last Improve step, on the same grown samples with as many optimiser steps: "
        + "; ".join(
            f"{LOSSES[name]} {_against(one)} ({one}, KL {table.loc[name, 'kl']:.2f} against "
            f"{table.loc[first, 'kl']:.2f} nats)"
            for name, one in zip(LOSSES, found["loss"].proxy, strict=True)
        )
        + ". Differences are ReST's r_φ less the other's.",
        f"Against PPO ({table.loc['ppo', 'samples']:,.0f} samples, KL {table.loc['ppo', 'kl']:.2f} nats) the whole of "
        f"ReST ({table.loc[second, 'samples']:,.0f} samples, KL {table.loc[second, 'kl']:.2f} nats) is at "
        f"{found['online'].proxy[0]} of r_φ and {found['online'].gold[0]} of gold.",
        f"The filter's limit at τ = {settings.thresholds[-1]:g} is not π*: it spends {table.loc[last, 'kl']:.2f} nats "
        f"for a gain of {table.loc[last, 'proxy_gain']:.2f}, and π* of the same reward has "
        f"{found['limit'].proxy[0]} more for them, because above the threshold the filter keeps π_ref's proportions, "
        f"however much better one response is. The gap was widest, {widest[1]:.3f}, at τ = {widest[0]:g}.",
    ]
    if exactly:
        said.append(
            f"Exactly, under gold and at β = {settings.beta:g}, regret is {table.loc['BC', 'regret']:.3f} for π_ref, "
            f"{table.loc[last, 'regret']:.3f} for that limit, {table.loc[second, 'regret']:.3f} for ReST as trained, "
            f"{table.loc['weighted', 'regret']:.3f} for weighted cloning, whose limit is π* of r_φ, and "
            f"{table.loc['optimum', 'regret']:.3f} for that optimum itself, all of it the reward model's error."
        )
    else:
        said.append(
            f"Corpus BLEU was {table.loc['BC', 'bleu']:.1f} for π_ref, {table.loc[first, 'bleu']:.1f} after the last "
            f"Improve step, {table.loc[second, 'bleu']:.1f} after the second Grow, {table.loc['ppo', 'bleu']:.1f} for "
            f"PPO and {table.loc['best-of-n', 'bleu']:.1f} for the best of {settings.best_of}; different word pairs "
            f"among a prompt's responses went from {table.loc['BC', 'distinct']:.2f} to "
            f"{table.loc[second, 'distinct']:.2f}. The limit is taken over the grown samples of the training prompts, "
            f"everything else on test prompts."
        )
    return _minus(" ".join(said))


def _minus(said: str) -> str:
    return re.sub(r"-(?=\d)", "−", said)


def _moved(one: Interval) -> str:
    return "rose" if one.above else "fell" if one.below else "cannot be told to have moved"


def _against(one: Interval) -> str:
    return "is behind" if one.above else "is ahead" if one.below else "is not told apart"


EXPERIMENT = Experiment(
    number=6,
    name="rest-translation",
    title="ReST: Improve steps under rising thresholds raise the reward, a second Grow raises it further",
    says=(
        "On IWSLT translation the reward rises from 70.9 (behaviour cloning) to 71.9 with one Grow, to 77.8 with four "
        "Improve steps, and to 83.1 with a second Grow and three more; online RL reaches 71.6. Behaviour cloning is "
        "the best loss of those tried. Nothing is said of what the filter converges to."
    ),
    source=(
        "Gulcehre et al. 2023, Reinforced Self-Training (ReST) for Language Modeling, Algorithm 1 and section 4; "
        "lecture, Reinforced Self-Training, Experiments, Task: Translation."
    ),
    asks=(
        "Small: translation from Velu, π_ref in the place of behaviour cloning, a reward model fitted to preference "
        "labels in the place of the learned metric, chrF against every right translation as gold. Bandit and tree: "
        "random worlds, one a seed, tables, all exact. On one grown set: cloning of everything, four Improve steps, a "
        "second Grow with three, and in the filter's place cloning weighted by exp(r/β), cloning of each prompt's "
        "best, and DPO; beside them PPO and best of n at test time. Steps and rate are the same for all; none was "
        "tuned. The first data stay in the mix, filtered too. r_φ is counted from its mean over the grown responses to "
        "a prompt, for labels do not tell a prompt's constant."
    ),
    rule=(
        "Five parts, each by differences in r_φ paired within seeds. (1) The last Improve step is above cloning all. "
        "(2) The second Grow's end is above the first's. (3) The last Improve step is above every other loss. (4) The "
        "second Grow's end is above PPO's. (5) The limit of the last filter is below π* of the same reward at the same "
        "KL. A part is shown if all its 95% intervals lie above zero, refuted if one lies below, else not decided; (1) "
        "to (4) are shown on the proxy alone where an interval of gold lies below zero. The claim holds if all five "
        "are shown; does not hold if (1) is refuted; is not decided if (1) is not, or if no other part is either; "
        "else it holds for the parts named."
    ),
    settings=ReSTTranslation,
    rungs=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    judge=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: ReSTTranslation) -> None:
    """The command `rlhf-lab experiment rest-translation`."""
    experiment.main(EXPERIMENT, settings)
