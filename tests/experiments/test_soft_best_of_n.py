"""Claim 14, from best-of-n to π*: rows against closed forms, the rule on made-up rows, quick runs."""

import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.soft_best_of_n.run import EXPERIMENT, limit
from rlhf_lab.experiments.claims.soft_best_of_n.settings import SoftBestOfN
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.experiments.setup_exact import random_world


@pytest.fixture(scope="module")
def found():
    return experiment_run(EXPERIMENT, SoftBestOfN(quick=True, progress=False))


def test_one_draw_is_the_reference_for_every_method(found):
    first = found.runs[found.runs["draws"] == 1]
    assert first["left"].to_numpy() == pytest.approx(1.0) and first["kl"].abs().max() < 1e-12


def test_the_kl_tends_to_its_leading_term(found):
    """At 64 draws per response the terms of higher order are below a third of it in both worlds."""
    runs = found.runs[found.runs["method"].isin(["soft", "rso"]) & (found.runs["draws"] == 64)]
    assert (runs["kl_to_optimal"] / runs["limit"] - 1).abs().max() < 1 / 3


def test_the_leading_term_by_hand():
    """π_ref = (½, ½) and π* = (¼, ¾): the ratio is ½ or 3/2, its variance under π* is 3/16."""
    log_ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    log_star = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    assert limit(log_ref, log_star, 10, 1).item() == pytest.approx(3 / 16 / 200)
    assert limit(log_ref, log_star, 10, 3).item() == pytest.approx(4 * 3 / 16 / 200)


def test_rejection_sampling_needs_the_reciprocal_of_its_acceptance(found):
    world = random_world("bandit", 0)
    reward = world.rewards()
    accepted = (world.log_ref().exp() * ((reward - reward.amax(-1, keepdim=True)) / 0.5).exp()).sum(-1)
    row = found.runs[(found.runs["method"] == "rejection") & (found.runs["seed"] == 0)].iloc[0]
    assert row["draws"] == pytest.approx((1 / accepted).mean().item(), rel=1e-6)
    star = exact.optimal_policy(world.log_ref(), reward, 0.5)
    assert row["kl"] == pytest.approx(exact.kl(star, world.log_ref()).mean().item(), rel=1e-6)


@pytest.mark.slow
def test_the_tree_runs_too_and_its_picture_has_titles():
    settings = SoftBestOfN(scale="tree", quick=True, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    axes = EXPERIMENT.figure(settings, found.summary, found.runs).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def _made(slope, soft, rso):
    """Rows whose KL falls with this slope, and whose regrets at eight draws have these log ratios."""
    rows = []
    for seed in range(4):
        noise = 0.01 * (seed - 1.5)
        for n in (1, 8, 32, 64):
            regret = {"best-of-n": math.exp(-(soft + noise)), "soft": 1.0, "rso": math.exp(rso + noise)}
            if n >= 32:
                regret["soft"] = n ** (slope + noise)
            for method, value in regret.items():
                row = {"seed": seed, "method": method, "draws": n, "regret": value, "left": value, "limit": 1.0}
                rows.append(row | {"kl_to_optimal": value, "kl": 0.5, "reward": 0.0})
        rows.append({"seed": seed, "method": "rejection", "draws": 6.0, "regret": 0.0, "kl": 0.6, "reward": 1.0})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("numbers", "outcome"),
    [
        ((-2.0, -0.5, -0.5), "supported"),
        ((-2.0, 0.5, -0.5), "partly supported"),
        ((-0.5, 0.5, 0.0), "not supported"),
        ((-1.0, 0.0, 0.0), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_rows(numbers, outcome):
    settings, runs = SoftBestOfN(quick=True), _made(*numbers)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["slope"].mean == pytest.approx(numbers[0])
    assert verdict.numbers["soft_over_best"].mean == pytest.approx(math.exp(numbers[1]))
    assert verdict.numbers["rso_over_soft"].mean == pytest.approx(math.exp(numbers[2]))


@pytest.mark.parametrize("draws", [(1, 32, 64), (8, 32)])
def test_draws_need_the_compared_number_and_a_slope(draws):
    with pytest.raises(LabError, match="draws must contain 8"):
        SoftBestOfN(draws=draws)
