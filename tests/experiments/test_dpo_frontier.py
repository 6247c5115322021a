"""Claim 2: the envelope, the comparison at equal KL, every outcome of the rule, and a quick run on each scale."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.dpo_frontier import frontiers
from rlhf_lab.experiments.claims.dpo_frontier.report import figure
from rlhf_lab.experiments.claims.dpo_frontier.run import EXPERIMENT
from rlhf_lab.experiments.claims.dpo_frontier.settings import DECISIVE, DPOFrontier
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.experiments.verdicts import side


@pytest.mark.parametrize("seed", range(5))
def test_the_envelope_is_the_best_mixture_of_two_points(seed):
    """By brute force: the most reward among all mixtures of two points whose mean KL keeps to the budget."""
    generator = np.random.default_rng(seed)
    kl, reward = np.append(0, generator.exponential(size=6)), np.append(0, generator.normal(size=6))
    budgets = np.linspace(0, kl.max(), 7)
    share = np.linspace(0, 1, 4001)
    for budget, found in zip(budgets, frontiers.envelope(kl, reward, budgets), strict=True):
        best = -np.inf
        for i, j in itertools.product(range(7), range(7)):
            fits = share * kl[i] + (1 - share) * kl[j] <= budget + 1e-12
            mixed = share * reward[i] + (1 - share) * reward[j]
            best = max(best, mixed[fits].max(initial=-np.inf))
        assert found == pytest.approx(best, abs=2e-3)
        assert found >= best - 1e-9


def test_nothing_is_said_beyond_the_farthest_point_and_a_sampled_kl_below_0_counts_as_0():
    assert np.isnan(frontiers.envelope([0, 1], [0, 1], [1.1])).all()
    assert frontiers.envelope([0, -0.02, 1], [0, 0.3, 1], [0.0])[0] == 0.3


def test_a_mixture_has_the_mean_reward_and_at_most_the_mean_kl():
    """What makes the envelope reachable: KL(aπ + (1−a)π'‖π_ref) ≤ a KL(π) + (1−a) KL(π')."""
    generator = torch.Generator().manual_seed(0)
    one, two, ref = torch.randn(3, 6, dtype=torch.float64, generator=generator).log_softmax(-1)
    mixed = (0.3 * one.exp() + 0.7 * two.exp()).log()
    assert exact.kl(mixed, ref) <= 0.3 * exact.kl(one, ref) + 0.7 * exact.kl(two, ref)


def _runs(lead, spread=0.0, seeds=4):
    """Runs in which both methods reach KL 1 at rewards √KL, DPO with lead(KL) more."""
    rows = []
    for seed in range(seeds):
        level = 5.0 * seed  # of the seed's world: it must not matter
        rows.append({"seed": seed, "method": "reference", "beta": 0.0, "look": 0, "kl": 0.0, "reward": level})
        noise = spread * (1 if seed % 2 else -1)
        for look, kl in enumerate(np.linspace(0.1, 1, 10) ** 2):
            best = {"seed": seed, "look": look, "kl": kl}
            rows.append(best | {"method": "optimal", "beta": 0.0, "reward": level + 3 * kl**0.5})
            for method in frontiers.METHODS:
                more = lead(kl) + noise if method == "dpo" else 0.0
                rows.append(best | {"method": method, "beta": 1.0, "reward": level + kl**0.5 + more})
    return pd.DataFrame(rows).assign(trusted=1)


@pytest.mark.parametrize(
    ("lead", "spread", "outcome", "signs"),
    [
        (lambda kl: 0.2 * kl**0.5, 0.0, "supported", [1, 1, 1]),
        (lambda kl: -0.2 * kl**0.5, 0.0, "not supported", [-1, -1, -1]),
        (lambda kl: 0.3 * (kl**0.5 - 0.6), 0.0, "partly supported", [-1, 1, 1]),
        (lambda kl: 0.05, 0.4, "inconclusive", [0, 0, 0]),
    ],
)
def test_each_outcome_of_the_rule_from_runs_that_call_for_it(lead, spread, outcome, signs):
    settings, runs = DPOFrontier(), _runs(lead, spread)
    verdict = EXPERIMENT.decide(settings, frontiers.summarise_runs(settings, runs), runs)
    assert verdict.outcome == outcome
    assert [side(verdict.numbers[f"lead_ppo_{place}"]) for place in DECISIVE] == signs


def test_numbers_compare_frontiers_at_the_same_budget():
    """Made-up runs to KL 1, with rewards √KL, DPO 0.25 KL more and the best policy 3 √KL: shares are 5/12 and 1/3."""
    runs = _runs(lambda kl: 0.25 * kl)
    numbers = EXPERIMENT.decide(DPOFrontier(), frontiers.summarise_runs(DPOFrontier(), runs), runs).numbers
    assert numbers["budget_9"] == pytest.approx(1) and numbers["budget_6"] == pytest.approx(4 / 9)
    assert numbers["lead_ppo_9"] == numbers["lead_ppo_gold_9"] == pytest.approx((0.25, 0.25, 0.25))
    assert numbers["share_dpo_9"] == pytest.approx(1.25 / 3) and numbers["share_ppo_9"] == pytest.approx(1 / 3)
    assert numbers["gold_effect_6"].mean == pytest.approx(0) and numbers["first_kl_ppo"].mean == pytest.approx(0.01)
    # The first budget, 1/81, is larger than the first KL, 0.01, so no frontier there is a mixture with π_ref.
    assert numbers["mixture_budgets"] == 0


def test_the_lead_is_taken_at_equal_kl_whatever_the_levels_of_the_seeds_worlds():
    """At the largest budget, KL = 1, DPO's lead is the constructed 0.25 exactly, with an interval of no width."""
    runs = _runs(lambda kl: 0.25 * kl)
    summary = frontiers.summarise_runs(DPOFrontier(), runs)
    last = summary[(summary["what"] == "budget") & (summary["method"] == "ppo")].iloc[-1]
    assert last["kl"] == pytest.approx(1)
    assert [last["lead"], last["lead_low"], last["lead_high"]] == pytest.approx([0.25] * 3)


def test_the_search_takes_the_rate_with_the_largest_mean_objective():
    rows = [
        {"seed": seed, "method": method, "rate": rate, "objective": value}
        for seed in (1000, 1001)
        for method in ("sft", "dpo", "ppo")
        for rate, value in ((0.1, seed - 1000.0), (0.2, 0.6 if method == "dpo" else 0.4))
    ]
    assert EXPERIMENT.select_best(DPOFrontier(), pd.DataFrame(rows)) == {"sft": 0.1, "dpo": 0.2, "ppo": 0.1}


def _checked(found):
    numbers = found.verdict.numbers.values()
    assert all(one == one for one in numbers) and "lead_ppo_9" in found.verdict.numbers
    for ax in figure(found.settings, found.summary, found.runs).axes:
        assert ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel()


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_a_quick_run_stays_below_the_exact_frontier_of_its_own_world(scale, tmp_path):
    settings = DPOFrontier(scale=scale, quick=True, out=tmp_path, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert set(found.search["seed"]).isdisjoint(found.runs["seed"])
    assert found.search.groupby("method")["rate"].nunique().nunique() == 1
    trained = found.runs[found.runs["method"].isin(frontiers.METHODS)]
    assert (trained.groupby(["seed", "method", "beta"]).size() == settings.evaluations).all()
    for seed, part in trained.groupby("seed"):
        best = found.runs[(found.runs["seed"] == seed) & (found.runs["method"] == "optimal")].sort_values("kl")
        # Between two points of a concave curve the line lies below it: by little, the curve has 41.
        assert (part["reward"] <= np.interp(part["kl"], best["kl"], best["reward"]) + 5e-3).all()
    _checked(found)


@pytest.mark.slow
def test_a_quick_run_on_text_measures_every_method_from_the_same_start(tmp_path):
    settings = DPOFrontier(scale="small", quick=True, out=tmp_path, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert set(found.runs["method"]) == {"reference", "optimal", *frontiers.METHODS}
    assert (found.runs[found.runs["method"] == "reference"]["kl"] == 0).all()
    assert found.runs["reward"].notna().all()
    _checked(found)


def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(LabError, match="8 evaluations"):
        DPOFrontier(steps=4, evaluations=8)
    with pytest.raises(LabError, match="beta"):
        DPOFrontier(betas=(0.5, -1.0))
    settings = DPOFrontier(scale="small")
    assert dataclasses.replace(settings, seeds=2).betas == settings.betas


def test_a_gain_is_taken_over_the_reference_of_the_same_seed():
    """References at 1 and 5, a method at 3 and 6: gains of 2 and 1."""
    rows = [(0, "reference", 1.0), (1, "reference", 5.0), (1, "dpo", 6.0), (0, "dpo", 3.0)]
    found = frontiers.gains(pd.DataFrame(rows, columns=["seed", "method", "reward"]))
    assert found["gain"].tolist() == [0.0, 0.0, 1.0, 2.0]
