"""Roads of ever harder optimisation against a reward model, on finite worlds and on text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lab import exact
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_finite
from rlhf_lab.experiments import compare, setup_text
from rlhf_lab.experiments.compare import Compare, Run
from rlhf_lab.experiments.setup_text import Plan, TextRun, bench, measure
from rlhf_lab.experiments.step_recorder import Watch, watching
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    from rlhf_lab.experiments.claims.over_optimisation.run import OverOptimisation


WORLD = "summaries"
"""BestConfig before any run: its gold weighs facts against words and against inventions, so a reward model that has
learned one side of the bargain can be led past the best. On sentiment more is nearly always better."""
TRAINED = {"ppo": "PPO", "dpo": "DPO", "rso": "RSO"}
KEYS = {"ppo": "ppo", "dpo": "dpo", "rso": "rso-rso-sample-rank"}
FEATURES = 8


BETAS = tuple(float(b) for b in np.logspace(1.0, -2.0, 31))
"""β of the optimum's road, from hardly tilted to nearly greedy."""


def sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, …, `most`: the n of best of n."""
    found = sorted({n for k in range(20) for n in (2**k, 3 * 2 ** max(k - 1, 0))} | {most})
    return [n for n in found if n <= most]


class PartReward(nn.Module):
    """r(x, y) = Σ_t Φ[x, t, y_t] · w[x]: a reward model that sees features of single tokens, and nothing else."""

    def __init__(self, world: FiniteWorld, features: Tensor) -> None:
        """`features`: (X, L, V, F)."""
        super().__init__()
        self.world, self.features = world, features
        self.weight = nn.Parameter(torch.zeros(len(features), features.shape[-1], dtype=torch.float64))

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores (B, G)."""
        rows = self.world.tree.prompt_index(prompts)
        places = torch.arange(responses.shape[-1])
        seen = self.features[rows[:, None, None], places, responses.ids]
        return torch.einsum("bgtf,bf->bg", seen, self.weight[rows])


def make_world(scale: str, seed: int) -> tuple[FiniteWorld, Tensor]:
    """A seed's world, and the features (X, L, V, F) that the limited reward model sees.

    Bandit: 2 prompts × 64 arms, gold of unit variance, four fifths of its standard deviation linear in 8 features of
    the arm. Tree: tokens at their places, where gold has bigrams too.
    """
    if scale == "tree":
        world = token_tree.random(8, 4, 1, seed)
        return world, torch.eye(32, dtype=torch.float64).reshape(1, 4, 8, 32)
    generator = seeded(seed, Stream.OVER_OPTIMISATION_WORLD)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    features = normal(2, 64, FEATURES)
    linear = (features * normal(2, 1, FEATURES)).sum(-1)
    linear = linear / linear.std(-1, keepdim=True)
    return bandit.make(normal(2, 64), 0.8 * linear + 0.6 * normal(2, 64)), features.unsqueeze(1)


@dataclass(eq=False)
class _Road(Run):
    """A seed's run whose fresh policies are followed."""

    watch: Watch | None = field(default=None, kw_only=True)

    def fresh(self) -> Policy:
        policy = super().fresh()
        if self.watch is not None:
            self.watch.follow(policy)
        return policy


@dataclass(eq=False)
class _TextRoad(TextRun):
    """The same on a language model."""

    watch: Watch | None = field(default=None, kw_only=True)

    def fresh(self) -> Policy:
        policy = super().fresh()
        if self.watch is not None:
            self.watch.follow(policy)
        return policy


@lru_cache(maxsize=8)
def _exact_run(settings: OverOptimisation, seed: int, labels: int, kind: str) -> _Road:
    world, features = make_world(settings.scale, seed)
    given = Compare(
        world="tree" if settings.scale == "tree" else "bandit", policy="table", beta=settings.beta, labels=labels,
        noise=settings.noise if kind == "noisy" else 0.0, steps=settings.reward_steps, learning_rate=settings.rate,
        batch_size=2048, progress=False,
    )  # fmt: skip
    run = _Road(given, world, seed)
    run.PROMPTS = settings.prompts
    if kind == "limited":
        model = PartReward(world, features)
        reward_model(model, run.pairs, RewardModel(), run.training(22))
        run.reward = model.requires_grad_(False)  # in the place of the table: `Run.reward` is fitted when first asked
    else:
        assert run.reward is not None
    # From here on `steps` are those of the methods.
    run.settings = replace(given, steps=settings.steps)
    return run


@lru_cache(maxsize=4)
def _text_run(settings: OverOptimisation, seed: int, labels: int) -> _TextRoad:
    plan = Plan(
        labels=labels, prompts=settings.prompts, beta=settings.beta, steps=settings.steps, rate=settings.rate,
        reward_steps=settings.reward_steps, test_prompts=settings.test_prompts, test_samples=settings.test_samples,
    )  # fmt: skip
    run = _TextRoad(bench(settings.scale, WORLD), plan, seed)
    assert run.reward is not None  # fitted here: whoever asks for it first may be within `no_grad`
    return run


def _place(run: Run, log_policy: Tensor) -> dict[str, float]:
    log_ref = run.world.log_ref()
    gained = log_policy.exp() - log_ref.exp()
    return {
        "kl": exact.kl(log_policy, log_ref).mean().item(),
        "gold": (gained * run.world.rewards()).sum(-1).mean().item(),
        "proxy": (gained * run.learned_rewards).sum(-1).mean().item(),
    }


def exact_roads(settings: OverOptimisation, seed: int, labels: int, kind: str) -> list[dict[str, Any]]:
    """Where the proxy's optimum and best of n pass as they press harder: exact KL, proxy and gold reward."""
    run = _exact_run(settings, seed, labels, kind)
    log_ref, learned = run.world.log_ref(), run.learned_rewards
    rows: list[dict[str, Any]] = [{"road": "optimum", "place": 0, "pressure": math.inf, **_place(run, log_ref)}]
    rows += [
        {"road": "optimum", "place": i, "pressure": b, **_place(run, exact.optimal_policy(log_ref, learned, b))}
        for i, b in enumerate(BETAS, 1)
    ]
    rows += [
        {"road": "best-of-n", "place": i, "pressure": n, **_place(run, exact.best_of_n(log_ref, learned, n))}
        for i, n in enumerate(sizes(settings.most))
    ]
    return rows


def _every(total: int, places: int) -> set[int]:
    return {round(total * i / places) for i in range(places + 1)}


def trained_exactly(settings: OverOptimisation, seed: int, labels: int, method: str) -> list[dict[str, Any]]:
    """Where a method's policy passes while it trains, measured exactly at places along the way."""
    run = _exact_run(settings, seed, labels, "full")
    rows: list[dict[str, Any]] = []
    epochs = 4 if method == "ppo" else 1  # `compare`'s PPO takes four optimiser steps a round
    wanted = _every(settings.steps * epochs, settings.places)

    def see(policy: Policy, steps: int) -> None:
        if steps in wanted:
            here = _place(run, run.world.log_probs(policy))
            rows.append({"road": method, "place": len(rows), "pressure": steps // epochs, **here})

    with watching(see) as watch:
        run.watch = watch
        try:
            compare.METHODS[KEYS[method]].run(run)
        finally:
            run.watch = None
    return rows


def trained_on_text(settings: OverOptimisation, seed: int, labels: int, method: str) -> list[dict[str, Any]]:
    """The same for a language model, measured by samples."""
    run = _text_run(settings, seed, labels)
    reward = run.reward
    rows: list[dict[str, Any]] = []
    # `language`'s PPO shares a fit's optimiser steps out in rounds of two; half the steps, for a round costs more.
    steps = max(settings.steps // 2, 2) if method == "ppo" else settings.steps
    wanted = _every(steps, settings.places)

    def see(policy: Policy, done: int) -> None:
        if done in wanted:
            seen = measure(run, policy, proxy=reward, beta=settings.beta)
            rows.append(
                {"road": method, "place": len(rows), "pressure": done, "kl": seen["kl"], "gold": seen["reward"],
                 "proxy": seen["proxy"], "tokens": seen["tokens"], "distinct": seen["distinct_2"]}
            )  # fmt: skip

    with watching(see) as watch:
        run.watch = watch
        try:
            # The rate does not fall: the road goes on as fast as it began.
            training = run.training(60, steps=steps, schedule="constant")
            setup_text.METHODS[KEYS[method]](run, settings.beta, training)
        finally:
            run.watch = None
    return _from_start(rows)


def _from_start(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gold and proxy as gains over the road's first place, which is π_ref on the same prompts."""
    first = dict(rows[0])
    for row in rows:
        row["gold"], row["proxy"] = row["gold"] - first["gold"], row["proxy"] - first["proxy"]
    return rows


@torch.no_grad()
def best_of_n_on_text(settings: OverOptimisation, seed: int) -> list[dict[str, Any]]:
    """Every reward model picks among the same samples of π_ref; means over all choices of n among them."""
    runs = {n: _text_run(settings, seed, n) for n in (settings.labels[0], settings.labels[-1])}
    made = runs[settings.labels[0]].bench
    x = made.world.prompts(made.tokenizer, "test", settings.test_prompts)
    parts: list[tuple[Tensor, dict[int, Tensor]]] = []
    for start in range(0, len(x), 16):
        rows = x[start : start + 16]
        y = made.reference.sample(
            rows, settings.most, seeded(seed, Stream.OVER_OPTIMISATION_BEST_OF_N, start, device=made.reference.device)
        )
        scores = {n: check_finite(one.reward(rows, y), "reward").double().cpu() for n, one in runs.items()}
        parts.append((made.gold(rows, y).cpu(), scores))
    gold = torch.cat([part[0] for part in parts])
    out: list[dict[str, Any]] = []
    for n_labels in runs:
        proxy = torch.cat([part[1][n_labels] for part in parts])
        rows_here = []
        for place, n in enumerate(sizes(settings.most)):
            rows_here.append(
                {"road": "best-of-n", "labels": n_labels, "place": place, "pressure": n,
                 "kl": math.log(n) - (n - 1) / n, "gold": best_of_subsets(proxy, gold, n),
                 "proxy": best_of_subsets(proxy, proxy, n)}
            )  # fmt: skip
        out += _from_start(rows_here)
    return out


def best_of_subsets(scores: Tensor, values: Tensor, n: int) -> float:
    """Mean of `values` at the highest of n of the G scores, over all choices of n of a row, and over rows.

    With the row in rising order the k-th (from 1) is the highest of C(k−1, n−1) of C(G, n) choices: the estimator
    without bias of best of n's reward from G ≥ n samples. Ties fall as they lie.

    Args:
        scores: (B, G).
        values: (B, G).
        n: 1 to G.
    """
    width = scores.shape[1]
    if not 1 <= n <= width:
        raise LabError(f"n must be between 1 and the {width} samples, not {n}.")
    order = scores.argsort(-1)
    total = math.comb(width, n)
    weight = torch.tensor([math.comb(k, n - 1) / total for k in range(width)], dtype=torch.float64)
    return float((values.double().gather(1, order) * weight).sum(-1).mean())
