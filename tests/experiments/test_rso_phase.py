"""The phase diagram of pairs from π_r: its worlds and fits against independent ones, its rule, and a quick run."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from rlhf_lab import exact, losses
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rso_phase.misfit import (
    KINDS,
    LinearWorld,
    dpo_limit,
    least_squares,
    linear_world,
    regrets,
    sources,
    stacked,
)
from rlhf_lab.experiments.claims.rso_phase.run import EXPERIMENT
from rlhf_lab.experiments.claims.rso_phase.settings import RSOPhase
from rlhf_lab.experiments.runner import experiment_run

F64 = torch.float64


@pytest.mark.parametrize("scale", ["bandit", "tree"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_has_unit_variance_and_the_asked_share_lies_outside_the_class(scale, kind):
    """The share is 1 − R² of a least-squares fit with numpy."""
    world = linear_world(scale, 3)
    design = np.column_stack([world.basis.numpy(), np.ones(len(world.basis))])
    for share in (0.03, 0.5):
        reward = world.reward(kind, share).numpy()
        assert reward.var() == pytest.approx(1)
        left = reward - design @ np.linalg.lstsq(design, reward, rcond=None)[0]
        assert left.var() == pytest.approx(share, rel=1e-6)


def test_a_saturating_reward_rises_ever_more_slowly_and_an_accelerating_one_ever_faster():
    world = linear_world("bandit", 0)
    order = world.linear.argsort()
    for kind, sign in (("saturating", -1), ("accelerating", 1)):
        slopes = world.reward(kind, 0.3)[order].diff() / world.linear[order].diff()
        assert (slopes > 0).all() and (sign * slopes.diff() > 0).all()


def test_the_limit_is_the_minimum_of_dpo_s_loss_over_all_pairs():
    """The expected DPO loss of a log-linear policy, written with `losses.dpo` and given to scipy."""
    world = linear_world("bandit", 1, responses=6, features=2)
    beta, reward = 0.5, world.reward("noise", 0.4)
    log_sources = sources(world.log_ref, reward, beta)
    found = dpo_limit(world.basis, log_sources, reward.expand_as(log_sources))
    wins = torch.sigmoid(reward.unsqueeze(-1) - reward)
    for log_source, f in zip(log_sources, found, strict=True):
        pairs = log_source.exp().unsqueeze(-1) * log_source.exp()
        pairs = pairs.fill_diagonal_(0) / pairs.fill_diagonal_(0).sum()

        def loss(theta, pairs=pairs):
            weights = torch.tensor(theta, dtype=F64, requires_grad=True)
            ratio = (world.log_ref + world.basis @ weights / beta).log_softmax(-1) - world.log_ref
            value = (pairs * wins * losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), beta)).sum()
            return value.item(), torch.autograd.grad(value, weights)[0].numpy()

        best = minimize(loss, np.zeros(2), jac=True, options={"gtol": 1e-12}).x
        np.testing.assert_allclose(f.numpy(), world.basis.numpy() @ best, atol=1e-6)


def test_the_mixture_gives_every_response_half_of_both_probabilities():
    world = linear_world("bandit", 0)
    reward = world.reward("noise", 0.1)
    ref, star, mixture = sources(world.log_ref, reward, 0.5).exp()
    torch.testing.assert_close(mixture, (ref + star) / 2)
    torch.testing.assert_close(star.log(), exact.optimal_policy(world.log_ref, reward, 0.5))


def test_a_class_that_can_represent_everything_reaches_the_optimum_from_all_sources():
    world = linear_world("bandit", 2, responses=8, features=7)
    reward = torch.randn(8, dtype=F64, generator=torch.Generator().manual_seed(0))
    found, second = regrets(world, reward, 0.5)
    assert found.max() < 1e-9 and second.max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_order_approximation_is_the_limit_of_weak_rewards(kind):
    """With rewards of a hundredth the labels are near ½ and the errors small, so the two regrets agree to 3%.

    With rewards of unit variance and noise they do not.
    """
    world = linear_world("bandit", 4)
    reward = world.reward(kind, 0.3)
    weak, second = regrets(world, reward / 100, 0.5)
    torch.testing.assert_close(weak, second, rtol=0.03, atol=0)
    strong, second = regrets(world, reward, 0.2)
    assert (strong / second - 1).abs().max() > 0.2


def test_least_squares_leaves_an_error_that_is_orthogonal_to_the_class_under_the_source():
    world = linear_world("bandit", 5)
    reward = world.reward("noise", 0.3)
    error = least_squares(world.basis, world.log_ref, reward) - reward
    weighted = world.log_ref.exp() * error
    assert (world.basis.T @ weighted).abs().max() < 1e-10 and weighted.sum().abs() < 1e-10


def test_stacked_worlds_give_the_numbers_of_each():
    worlds = [linear_world("bandit", seed, responses=12) for seed in range(3)]
    many = stacked(worlds)
    for kind in KINDS:
        found = regrets(many, many.reward(kind, 0.2), 0.5)
        for i, world in enumerate(worlds):
            for one, all_of_them in zip(regrets(world, world.reward(kind, 0.2), 0.5), found, strict=True):
                torch.testing.assert_close(all_of_them[:, i], one, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow)])
def test_a_quick_run_fills_the_map_and_draws_it(scale):
    settings = RSOPhase(scale=scale, quick=True, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert len(found.runs) == 3 * 3 * 4 and len(found.summary) == 2 * 3 * 4
    assert (found.runs["outside"] - found.runs["share"]).abs().max() < 1e-6
    assert found.verdict.numbers["cells"] == 4
    axes = EXPERIMENT.figure(settings, found.summary, found.runs).axes
    assert [ax.get_title(loc="left") for ax in axes[:3]] == [f"{kind}: pairs from π_r" for kind in KINDS]


def _made(noise, saturating, accelerating):
    """Rows with these mean log ratios in the rule's cell, and with the opposite ones in all other cells."""
    rows = []
    for seed in range(5):
        for kind, gain in zip(KINDS, (noise, saturating, accelerating), strict=True):
            for share in (0.1, 0.6):
                for beta in (0.5, 2.0):
                    change = (gain if (share, beta) == (0.1, 0.5) else -gain) + 0.01 * (seed - 2)
                    rows.append(
                        {
                            "seed": seed, "kind": kind, "share": share, "beta": beta, "regret_ref": 0.2,
                            "regret_r": 0.2 * math.exp(change), "regret_mixture": 0.2, "second_order": -0.5,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((-0.3, -0.4, -0.5), "supported"),
        ((0.3, -0.4, 0.0), "partly supported"),
        ((0.3, 0.0, 0.0), "not supported"),
        ((0.3, 0.4, 0.5), "not supported"),
        ((0.0, 0.0, 0.0), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_rows(gains, outcome):
    settings, runs = RSOPhase(quick=True), _made(*gains)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["r_noise"].mean == pytest.approx(math.expm1(gains[0]))
    assert verdict.numbers["map_r_saturating_0.6_2"].mean == pytest.approx(math.expm1(-gains[1]))
    assert verdict.numbers["lower_r_noise"] == (3 if gains[0] > 0 else 1 if gains[0] < 0 else 0)


@pytest.mark.parametrize("changes", [{"shares": (0.3,)}, {"betas": (1.0,)}, {"shares": (0.1, 1.0)}])
def test_a_map_without_the_rule_s_cell_is_refused(changes):
    with pytest.raises(LabError, match="shares must be below 1"):
        RSOPhase(**changes)


def test_a_world_is_a_dataclass_of_tensors_of_one_size():
    world = linear_world("tree", 0)
    assert isinstance(world, LinearWorld) and world.basis.shape == (256, 12)  # 4 places with 4 − 1 free numbers each
    torch.testing.assert_close(world.basis.T @ world.basis, torch.eye(12, dtype=F64))
