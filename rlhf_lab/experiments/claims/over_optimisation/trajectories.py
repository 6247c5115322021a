"""Trajectories of ever stronger optimisation against a reward model, on finite worlds and on text."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lab import exact
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_finite
from rlhf_lab.experiments.claims.over_optimisation.settings import OverOptimisation
from rlhf_lab.experiments.methods import train
from rlhf_lab.experiments.runner import JobSpec
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularReward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

WORLD = "summaries"
"""It was chosen before any run. Its gold reward weighs facts against words and against inventions, so optimising a
reward model that has learned only one side can go too far. On sentiment more is nearly always better."""
TRAJECTORY, POINT = "road", "place"
"""Columns of the saved rows: the name of a trajectory, and the number of a point on it, from 0 at π_ref."""
TRAINED = {"ppo": "ppo", "dpo": "dpo", "rso": "rso-rso-sample-rank"}
"""The methods that are recorded while they train, with their keys in the table of methods."""
FEATURES = 8
"""Features of an arm of the bandit."""
WITH_FEATURES = ("limited", "extrapolating")
"""Kinds of reward models that are linear in features. The others are tables."""
SATURATING = ("saturating", "extrapolating")
"""Kinds that are fitted in a world whose gold reward saturates."""
BETAS = tuple(float(b) for b in np.logspace(1.0, -2.0, 31))
"""β along the trajectory of the optimum, from nearly π_ref to nearly greedy."""


def sizes(most: int) -> list[int]:
    """Return the values of n of best-of-n: 1, 2, 3, 4, 6, 8, 12, …, `most`."""
    found = sorted({n for k in range(20) for n in (2**k, 3 * 2 ** max(k - 1, 0))} | {most})
    return [n for n in found if n <= most]


class PartReward(nn.Module):
    """r(x, y) = Σ_t Φ[x, t, y_t] · w[x]: a reward model that is linear in features of single tokens."""

    def __init__(self, world: FiniteWorld, features: Tensor) -> None:
        """Start with weights of zero; `features` is (X, L, V, F)."""
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
    """The world of a seed, and the features (X, L, V, F) of the limited reward model.

    The bandit has 2 prompts × 64 arms. Its gold reward has unit variance, and four fifths of its standard deviation
    are linear in 8 features of the arm. On the tree the features are tokens at their places, and the gold reward also
    has bigrams.
    """
    if scale == "tree":
        return random_world("tree", seed), torch.eye(32, dtype=torch.float64).reshape(1, 4, 8, 32)
    generator = seeded(seed, Stream.OVER_OPTIMISATION_WORLD)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    features = normal(2, 64, FEATURES)
    linear = (features * normal(2, 1, FEATURES)).sum(-1)
    linear = linear / linear.std(-1, keepdim=True)
    return bandit.make(normal(2, 64), 0.8 * linear + 0.6 * normal(2, 64)), features.unsqueeze(1)


def saturating_world(scale: str, seed: int) -> tuple[FiniteWorld, Tensor]:
    """A world whose gold reward saturates in every feature, r*(y) = Σ_f w_f (1 − exp(−φ_f(y))), and its features.

    On the bandit (2 prompts × 256 arms) the 8 features of an arm are exponential. On the tree they count how often each
    token occurs, so the first use of a token counts most. A reward model that is linear in φ is nearly right on usual
    responses and extrapolates to responses with much of one feature. The gold reward has unit variance.

    Returns:
        the world, and the features of each token at each position, (X, L, V, F).
    """
    generator = seeded(seed, Stream.OVER_OPTIMISATION_WORLD, 1)
    if scale == "tree":
        world = random_world("tree", seed)
        features = torch.eye(8, dtype=torch.float64).expand(1, 4, 8, 8)
        amount = torch.nn.functional.one_hot(world.tree.responses.ids, 8).sum(1).double().unsqueeze(0)
    else:
        amount = -torch.rand(2, 256, FEATURES, dtype=torch.float64, generator=generator).log()
        features = amount.unsqueeze(1)
    weights = torch.randn(len(amount), 1, amount.shape[-1], dtype=torch.float64, generator=generator)
    gold = (weights * (1 - (-amount).exp())).sum(-1)
    gold = gold / gold.std(-1, keepdim=True)
    if scale == "tree":
        return token_tree.make(world.tree, world.reference, token_tree.sequence_reward(world.tree, gold)), features
    return bandit.make(torch.randn(gold.shape, dtype=torch.float64, generator=generator), gold), features


@lru_cache(maxsize=8)
def _exact_setup(settings: OverOptimisation, seed: int, labels: int, kind: str) -> ExactSetup:
    world, features = (saturating_world if kind in SATURATING else make_world)(settings.scale, seed)
    budget = SetupBudget(
        labels=labels, noise=settings.noise if kind == "noisy" else 0.0, prompts=settings.prompts, beta=settings.beta,
        steps=settings.steps, batch_size=2048, learning_rate=settings.rate, reward_steps=settings.reward_steps,
    )  # fmt: skip
    setup = ExactSetup(world, budget, seed)
    if kind in WITH_FEATURES:
        model = PartReward(world, features)
        training = setup.training(Stream.REWARD_MODEL, steps=settings.reward_steps)
        reward_model(model, setup.pairs, RewardModel(), training)
        with torch.no_grad():  # PPO's critic needs a table
            scores = model(world.prompts, world.responses)
        tables = token_tree.sequence_reward(world.tree, scores)
        setup.reward_model = TabularReward(world.tree, tables).requires_grad_(False)
    return setup


@lru_cache(maxsize=4)
def _text_setup(settings: OverOptimisation, seed: int, labels: int) -> TextSetup:
    setup = set_up(
        settings.scale, seed, WORLD, labels=labels, prompts=settings.prompts, beta=settings.beta, steps=settings.steps,
        learning_rate=settings.rate, reward_steps=settings.reward_steps, test_prompts=settings.test_prompts,
        test_samples=settings.test_samples,
    )  # fmt: skip
    assert isinstance(setup, TextSetup)
    return setup


def _position(setup: ExactSetup, log_policy: Tensor) -> dict[str, float]:
    """KL, and the gains in gold and proxy reward over π_ref."""
    log_ref = setup.world.log_ref()
    gained = log_policy.exp() - log_ref.exp()
    return {
        "kl": exact.kl(log_policy, log_ref).mean().item(),
        "gold": (gained * setup.world.rewards()).sum(-1).mean().item(),
        "proxy": (gained * setup.learned_rewards).sum(-1).mean().item(),
    }


def exact_trajectories(settings: OverOptimisation, seed: int, labels: int, kind: str) -> list[dict[str, Any]]:
    """Exact KL, proxy and gold reward of the proxy's optimum as β falls, and of best-of-n as n grows."""
    setup = _exact_setup(settings, seed, labels, kind)
    log_ref, learned = setup.world.log_ref(), setup.learned_rewards
    optima = [(math.inf, log_ref), *((beta, exact.optimal_policy(log_ref, learned, beta)) for beta in BETAS)]
    best_of_n = [(n, exact.best_of_n(log_ref, learned, n)) for n in sizes(settings.most)]
    return [
        {TRAJECTORY: name, POINT: point, "pressure": pressure, **_position(setup, log_policy)}
        for name, policies in (("optimum", optima), ("best-of-n", best_of_n))
        for point, (pressure, log_policy) in enumerate(policies)
    ]


def trained(settings: OverOptimisation, job: JobSpec) -> list[dict[str, Any]]:
    """The trajectory of a method while it trains: exact on a finite world, and estimated from samples on text."""
    method, steps, epochs, training = job["method"], settings.steps, 1, None
    setup: ExactSetup | TextSetup
    if settings.exact:
        setup = _exact_setup(settings, job["seed"], job["labels"], job["kind"])
        if method == "ppo":
            epochs = 4  # PPO has as many rounds as the others have steps, of four steps each.
    else:
        setup = _text_setup(settings, job["seed"], job["labels"])
        if method == "ppo":
            steps = max(steps // 2, 2)  # A round of PPO is expensive, so it has half as many steps, two in each round.
        # The rate is constant, so that the policy moves as fast at the end as at the beginning.
        training = setup.training(Stream.TRAJECTORY_FIT, steps=steps, schedule="constant")
    wanted = {round(steps * epochs * i / settings.places) for i in range(settings.places + 1)}
    rows: list[dict[str, Any]] = []

    def see(policy: Policy, done: int) -> None:
        if done not in wanted:
            return
        if isinstance(setup, TextSetup):
            found = setup.evaluate(policy, proxy=setup.reward_model)
            names = {"kl": "kl", "gold": "reward", "proxy": "proxy", "tokens": "tokens", "distinct": "distinct_2"}
            here = {name: found[key] for name, key in names.items()}
        else:
            here = _position(setup, setup.world.log_probs(policy))
        rows.append({TRAJECTORY: method, POINT: len(rows), "pressure": done // epochs, **here})

    policy = setup.new_policy()
    with record(see, policy):
        train(TRAINED[method], setup, training, policy, stages=1 if settings.exact else None)
    return _from_start(rows)


def _from_start(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gold and proxy reward as gains over the first position, which is π_ref on the same prompts."""
    first = dict(rows[0])
    for row in rows:
        row["gold"], row["proxy"] = row["gold"] - first["gold"], row["proxy"] - first["proxy"]
    return rows


def best_of_n_on_text(settings: OverOptimisation, seed: int) -> list[dict[str, Any]]:
    """Best-of-n by the reward models of few and of many labels, which choose among the same samples of π_ref.

    The numbers are means over all choices of n among the samples. The KL is that of distinct rewards, an upper bound
    if samples repeat.
    """
    setups = {labels: _text_setup(settings, seed, labels) for labels in (settings.labels[0], settings.labels[-1])}
    task = setups[settings.labels[0]].task
    x = task.world.prompts(task.tokenizer, "test", settings.most_prompts)
    gold: list[Tensor] = []
    proxy: dict[int, list[Tensor]] = {labels: [] for labels in setups}
    for row in range(len(x)):
        prompt = x[row : row + 1]
        generator = seeded(seed, Stream.OVER_OPTIMISATION_BEST_OF_N, row, device=task.reference.device)
        y = task.reference.sample(prompt, settings.most, generator)
        # Equal responses are scored once.
        distinct, place = torch.cat([y.ids[0], y.mask[0].long()], -1).unique(dim=0, return_inverse=True)
        ids, mask = distinct.unsqueeze(0).chunk(2, -1)
        once = Tokens(ids, mask.bool())
        gold.append(task.gold(prompt, once).cpu()[:, place.cpu()])
        for labels, setup in setups.items():
            scores = check_finite(setup.reward_model(prompt, once), "reward").double()
            proxy[labels].append(scores[:, place].cpu())
    rows: list[dict[str, Any]] = []
    for labels in setups:
        score, value = torch.cat(proxy[labels]), torch.cat(gold)
        rows += _from_start([
            {TRAJECTORY: "best-of-n", "labels": labels, POINT: point, "pressure": n,
             "kl": math.log(n) - (n - 1) / n, "gold": best_of_subsets(score, value, n),
             "proxy": best_of_subsets(score, score, n)}
            for point, n in enumerate(sizes(settings.most))
        ])  # fmt: skip
    return rows


def best_of_subsets(scores: Tensor, values: Tensor, n: int) -> float:
    """Mean of `values` at the highest of n of the G scores, over all choices of n of a row, and over rows.

    In a row of rising order the k-th score (from 1) is the highest of C(k−1, n−1) of C(G, n) choices. This gives an
    unbiased estimate of the reward of best-of-n from G ≥ n samples. Of equal scores the later one counts as higher.

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
