"""Why pairs from π_r should help: exact identities of the design, its fits against independent ones, its rule."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rso_why import run as rso_why
from rlhf_lab.experiments.claims.rso_why.linear_classes import draw_pairs, every_pair, exact_seed, fit, token_class
from rlhf_lab.experiments.claims.rso_why.report import effects
from rlhf_lab.experiments.claims.rso_why.run import DIRECT, EXPERIMENT, RSOWhy
from rlhf_lab.experiments.rso_common import rso_setup
from rlhf_lab.experiments.runner import experiment_run


@pytest.fixture(scope="module")
def bandit():
    return experiment_run(EXPERIMENT, RSOWhy(scale="bandit", quick=True, progress=False))


def _table(found):
    return found.summary.set_index(["policy", "condition"])["regret"]


def test_endless_gold_labels_bring_a_table_to_the_optimum_and_a_limited_policy_not(bandit):
    regret = _table(bandit)
    assert regret["full", "gold ref inf"] == pytest.approx(0, abs=1e-12)
    assert regret["full", "gold star inf"] == pytest.approx(0, abs=1e-12)
    assert regret["limited", "gold ref inf"] > 0.01


def test_endless_labels_of_a_table_reward_model_lead_back_to_direct(bandit):
    """The same class and prior: DPO's fit of the labels is the reward model's, so r_φ's π* is direct's policy."""
    runs = bandit.runs[bandit.runs["policy"] == "full"].pivot(index="seed", columns="condition", values="regret")
    assert runs["rm ref inf"].to_numpy() == pytest.approx(runs[DIRECT].to_numpy(), abs=1e-6)


def test_effects_add_up(bandit):
    """direct → sft-sample-rank → rso-sample-rank; and the second step is capacity + statistics."""
    found = effects(bandit.settings, bandit.runs)
    runs = bandit.runs.pivot(index="seed", columns=["policy", "condition"], values="objective")
    for policy in ("full", "limited"):
        way = (runs[policy, "rm r M"] - runs[policy, DIRECT]).mean()
        assert found["more_labels"][policy].mean + found["pi_r_pairs"][policy].mean == pytest.approx(way)
    parts = found["capacity"]["limited"].mean + found["statistics"]["limited"].mean
    assert parts == pytest.approx(found["pi_r_pairs"]["limited"].mean)
    # A full policy's limit knows nothing of the pairs: statistics is all of it.
    assert found["statistics"]["full"].mean == pytest.approx(found["pi_r_pairs"]["full"].mean)


def test_a_fit_is_the_maximum_that_another_optimiser_finds(bandit):
    """The same posterior written down in numpy and given to scipy's BFGS."""
    made = exact_seed(bandit.settings, 0)
    functions, pairs = made.classes["limited"], made.labels
    matrix = torch.stack([functions.values(one) for one in torch.eye(functions.size, dtype=torch.float64)], -1)
    rows = (matrix[pairs.prompt, pairs.first] - matrix[pairs.prompt, pairs.second]).numpy()
    wins = pairs.wins.numpy()

    def loss(theta):
        gap = rows @ theta
        return np.mean(np.logaddexp(0, -gap) + (1 - wins) * gap) + 0.5 * theta @ theta / len(wins)

    other = matrix.numpy() @ minimize(loss, np.zeros(functions.size), tol=1e-10).x
    assert np.allclose(fit(functions, pairs).numpy(), other, atol=1e-4)


def test_every_pair_is_the_limit_of_many_drawn_ones(bandit):
    """The share of labels 1 on drawn pairs of one prompt, against its probability, within four standard errors."""
    made = exact_seed(bandit.settings, 0)
    drawn = draw_pairs(made.source("star"), made.world.rewards(), 40_000, torch.Generator().manual_seed(1), False)
    assert len(drawn.wins) == 40_000 and (drawn.first != drawn.second).all()
    gap = made.world.rewards()[drawn.prompt, drawn.first] - made.world.rewards()[drawn.prompt, drawn.second]
    chance = gap.sigmoid()
    error = (chance * (1 - chance)).mean().sqrt() / 200
    assert abs((drawn.wins - chance).mean()) < 4 * error
    every = every_pair(made.source("star"), made.world.rewards())
    assert every.weight.sum() == pytest.approx(1)
    # The drawn pairs' mean squared gap is the listed ones', prompts weighed alike.
    p = made.source("star").exp()
    same = 1 - p.square().sum(-1)
    r = made.world.rewards()
    spread = 2 * ((p * r.square()).sum(-1) - (p * r).sum(-1).square())
    assert gap.square().mean().item() == pytest.approx((spread / same).mean().item(), rel=0.05)


def test_endless_pairs_are_as_frequent_as_both_their_responses_together():
    """Two prompts by hand. p = (.5, .3, .2) gives the pairs .15, .10 and .06, and q = (.8, .1, .1) .08, .08 and .01.

    Each is divided by the sum .48, and its first response wins with probability σ(r_first − r_second).
    """
    p = torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], dtype=torch.float64)
    reward = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    found = every_pair(p.log(), reward)
    assert (found.weight * 0.48).tolist() == pytest.approx([0.15, 0.10, 0.06, 0.08, 0.08, 0.01])
    chances = [1 / (1 + np.exp(-gap)) for gap in (-1, -3, -2, 2, 2, 0)]
    assert found.wins.tolist() == pytest.approx(chances)
    assert list(zip(found.prompt.tolist(), found.first.tolist(), found.second.tolist(), strict=True)) == [
        (x, i, j) for x in (0, 1) for i, j in ((0, 1), (0, 2), (1, 2))
    ]


def test_drawn_labels_are_ones_and_zeros_and_soft_ones_are_probabilities():
    """Of 2,000 drawn labels of one pair with r = (1, 0), σ(1) = 0.731 are ones, within four standard errors."""
    log_half, reward = (
        torch.full((1, 2), 0.5, dtype=torch.float64).log(),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
    )
    drawn, soft = (draw_pairs(log_half, reward, 2000, torch.Generator().manual_seed(0), s) for s in (False, True))
    chance = 1 / (1 + np.exp(-1))
    won = torch.where(soft.first == 0, chance, 1 - chance)
    assert soft.wins.tolist() == pytest.approx(won.tolist())
    assert set(drawn.wins.tolist()) == {0.0, 1.0}
    first = torch.where(drawn.first == 0, drawn.wins, 1 - drawn.wins).mean().item()
    assert abs(first - chance) < 4 * (chance * (1 - chance) / 2000) ** 0.5


def test_pairs_from_the_optimum_are_of_gold_and_those_of_pi_r_of_the_learned_reward(bandit):
    """log π_ref + r/β, less its log-sum-exp, with gold for "star" and with r_φ for "r"."""
    made = exact_seed(bandit.settings, 0)
    log_ref = made.world.log_ref()
    for name, reward in (("star", made.world.rewards()), ("r", made.learned)):
        tilted = log_ref + reward / bandit.settings.beta
        torch.testing.assert_close(made.source(name), tilted - tilted.logsumexp(-1, keepdim=True))
    assert torch.equal(made.source("ref"), log_ref)


def test_the_trees_limited_policy_cannot_say_what_two_tokens_do_together():
    made = exact_seed(RSOWhy(scale="tree", quick=True), 0)
    one, other = made.classes["limited"], token_class(made.world, bigrams=True)
    gold = made.world.rewards()[0]
    for functions, able in ((one, False), (other, True)):
        basis = torch.stack([functions.values(e)[0] for e in torch.eye(functions.size, dtype=torch.float64)], -1)
        basis = torch.cat([basis, torch.ones(len(basis), 1, dtype=torch.float64)], 1)
        left = gold - basis @ torch.linalg.lstsq(basis, gold.unsqueeze(-1), driver="gelsd").solution[:, 0]
        assert (left.abs().max() < 1e-6) == able


def test_the_expected_regret_is_the_label_price_divided_by_the_labels(bandit):
    """Pairs of π_ref, both responses drawn apart: by `exact.label_price`, with a quarter of the labels a prompt."""
    made = exact_seed(bandit.settings, 1)
    total = 0.0
    for log_ref, reward in zip(made.world.log_ref(), made.world.rewards(), strict=True):
        weights = torch.outer(log_ref.exp(), log_ref.exp()).fill_diagonal_(0)
        total += exact.label_price(log_ref, reward, 0.5, weights / weights.sum()).item()
    assert made.expected_regret("ref") == pytest.approx(total / 4 / (bandit.settings.labels / 4))


def test_numbers_are_finite_and_panels_have_titles(bandit):
    three = (bandit.settings, bandit.summary, bandit.runs)
    assert all(math.isfinite(one.mean) for one in bandit.verdict.numbers.values())
    axes = EXPERIMENT.figure(*three).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def test_the_tree_runs_too():
    settings = RSOWhy(scale="tree", quick=True, labels=60, soft_pairs=1000, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert _table(found)["full", "gold ref inf"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_a_language_model_runs_and_its_limited_policy_trains_biases_and_norms():
    settings = RSOWhy(scale="small", quick=True, labels=8, test_prompts=2, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert len(found.runs) == 2 * 2 * 5 and set(found.best_config) == {"full", "limited"}
    assert all(math.isfinite(one.mean) for one in found.verdict.numbers.values())
    policy = rso_why.limit(rso_setup(settings, settings.task, 0).setup.new_policy())
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert trained and all(p.ndim == 1 for p in trained)


def _made(full, limited):
    rows = []
    for seed in range(3):
        for policy, gain in (("full", full), ("limited", limited)):
            for condition in RSOWhy(scale="small").conditions:
                value = (gain if condition == "rm r M" else 0.0) + 0.001 * seed * (1 + len(condition))
                rows.append({"seed": seed, "policy": policy, "condition": condition, "objective": value})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("full", "limited", "outcome"),
    [
        (0.5, 0.5, "supported"),
        (0.0, 0.5, "partly supported"),
        (-0.5, 0.0, "not supported"),
        (-0.5, -0.5, "not supported"),
        (0.0, 0.0, "inconclusive"),
    ],
)
def test_the_rule_on_made_up_tables(full, limited, outcome):
    settings, runs = RSOWhy(scale="small"), _made(full, limited)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["capacity_limited"].mean == pytest.approx(limited - full)


def test_the_number_of_pairs_follows_from_other_settings_unless_it_is_given():
    assert RSOWhy(labels=100).pairs == 1000 and RSOWhy(labels=100, pairs=50).pairs == 50
    assert RSOWhy(scale="small", prompts=10, accepted=6).pairs == 30


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"labels": 4}, "labels"), ({"accepted": 3}, "accepted"), ({"scale": "small", "task": "poems"}, "poems")],
)
def test_bad_settings_are_refused(changes, part):
    with pytest.raises(LabError, match=part):
        RSOWhy(**changes)
