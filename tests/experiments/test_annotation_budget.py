"""Question 10: quick runs on each scale, and the pieces against independent calculations."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.annotation_budget import run as annotation_budget
from rlhf_lab.experiments.claims.annotation_budget.run import EXPERIMENT, PARTS, STRATEGIES
from rlhf_lab.experiments.claims.annotation_budget.settings import TEXT_COMPARED, AnnotationBudget
from rlhf_lab.intervals import Interval
from rlhf_lab.training import seeded

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    return runner.experiment_run(
        EXPERIMENT, AnnotationBudget(scale="bandit", quick=True, progress=False, out=tmp_path_factory.mktemp("budget"))
    )


def check_report(found):
    """Every number is finite, and every panel has its labels."""
    for name, number in found.verdict.numbers.items():
        assert all(map(math.isfinite, number if isinstance(number, Interval) else [number])), name
    axes = EXPERIMENT.figure(found.settings, found.summary, found.runs).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def test_a_quick_run_on_the_bandit_has_every_part(bandit):
    assert set(bandit.runs["part"]) == set(PARTS)
    check_report(bandit)


def test_without_demonstrations_the_split_does_not_depend_on_their_price(bandit):
    rows = bandit.runs[(bandit.runs["part"] == "split") & (bandit.runs["share"] == 0)]
    assert (rows.groupby(["seed", "pairs"])["log_regret"].nunique() == 1).all()


def test_the_class_has_no_better_policy_than_its_best(bandit):
    rows = bandit.runs[(bandit.runs["part"] == "learners") & bandit.runs["learner"].str.startswith("limited")]
    assert (rows["regret"] >= rows["floor"] - 0.02).all()  # of several starts, not all


@pytest.mark.slow
def test_a_quick_run_on_the_tree():
    found = runner.experiment_run(EXPERIMENT, AnnotationBudget(scale="tree", quick=True, progress=False))
    check_report(found)
    assert found.verdict.numbers["structured_factor"].mean > 0


@pytest.mark.slow
def test_a_quick_run_on_the_small_model_spends_the_same_money_every_time():
    settings = AnnotationBudget(scale="small", quick=True, progress=False, seeds=2)
    found = runner.experiment_run(EXPERIMENT, settings)
    check_report(found)
    spent = found.runs[found.runs["part"] != "none"]
    assert set(spent["part"]) == set(STRATEGIES)
    assert (spent["money"] <= settings.money + 1e-9).all()
    # What is left over is less than a label with its samples, and labels on equal responses, which are not paid.
    assert (spent["money"] > 0.7 * settings.money).all()
    assert ((spent["objective"] - spent["reward"] + settings.beta * spent["kl"]).abs() < 1e-6).all()


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        ({}, "answered"),
        ({"limit_ratio": (1.2, 1.5)}, "answered"),  # no, the closed form does not predict the regret
        ({"limit_ratio": (1.0, 1.2)}, "inconclusive"),
        ({"active": (1.1, 1.3)}, "inconclusive"),
        ({"active": (1.3, 1.5)}, "answered"),
        ({"reference": (1.2, 1.5)}, "inconclusive"),
    ],
)
def test_the_question_is_answered_where_its_three_comparisons_are_decided(bandit, intervals, outcome):
    settings, summary = bandit.settings, bandit.summary.copy()
    known = {"limit_ratio": (0.98, 1.02), "active": (1.0, 1.1), "reference": (3.0, 4.0)} | intervals
    last = summary["labels"].isin([settings.limit_totals[-1], settings.totals[-1]])
    for name, (low, high) in known.items():
        what, pairs = ("limit_ratio", "design") if name == "limit_ratio" else ("label_ratio", name)
        rows = last & (summary["what"] == what) & (summary["pairs"] == pairs)
        summary.loc[rows, ["value", "value_low", "value_high"]] = (low + high) / 2, low, high
    assert EXPERIMENT.decide(settings, summary, bandit.runs).outcome == outcome


@pytest.mark.parametrize(
    ("gains", "spread", "outcome"),
    [((0.5, -0.5, 0.5), 0.1, "answered"), ((0.0, 0.5, 0.5), 0.01, "answered"), ((0.0, 0.5, 0.5), 0.3, "inconclusive")],
)
def test_on_a_language_model_differences_and_ties_are_answers(gains, spread, outcome):
    settings, rows = AnnotationBudget(scale="small"), []
    for seed in range(6):
        for key in ("none", *STRATEGIES):
            gain = dict(zip(TEXT_COMPARED, gains, strict=True)).get(key, 0.0) + spread * (-1) ** seed * (
                key != "random"
            )
            rows.append({"seed": seed, "part": key, "objective": gain, "reward": 1.0, "kl": 1.0, "labels": 9})
    runs = pd.DataFrame(rows)
    assert EXPERIMENT.decide(settings, annotation_budget.summarise(settings, runs), runs).outcome == outcome


def test_settings_are_settled_and_bad_ones_refused():
    full = EXPERIMENT.settings(scale="bandit")
    assert full.seeds * full.worlds >= 20 and full.beta == 0.3 and full.arms == 10
    assert full.totals[-1] == full.labels and full.limit_totals[-1] == full.limit_labels
    for bad in ({"beta": 0.0}, {"labels": 3}, {"price_demonstration": 0.0}, {"arms": 2}, {"runs": -1}):
        with pytest.raises(LabError):
            AnnotationBudget(**bad)


def test_demonstrations_have_the_information_that_monte_carlo_finds():
    """400 runs of 3,000 demonstrations and 3,000 labels: N · regret within 4 standard errors of the closed form."""
    world = label_budget.random_worlds(1, 4, 0.5, 3)
    demo = exact.optimal_policy(world.log_ref, world.reward, 1.5)
    what = label_budget.Purchase(3000, 3000, demo_beta=1.5, pairs="sft")
    lost = label_budget.purchase_regret(world, what, 400, seeded(11), prior=30.0)[:, 0]
    number = torch.tensor(3000.0)
    want = float(label_budget.regret_limit(world, number, number, 1.5, bradley_terry.pair_distribution(demo))[0])
    assert abs(float(lost.mean()) - want) < 4 * float(lost.std()) / math.sqrt(400) + 0.02 * want


def test_the_price_of_labels_alone_is_the_price_of_a_label():
    world = label_budget.random_worlds(3, 5, 0.7, 4)
    mu = world.design("uniform")
    got = label_budget.regret_limit(world, torch.tensor(0.0), torch.tensor(1.0), 1.0, mu)
    torch.testing.assert_close(got, exact.label_price(world.log_ref, world.reward, 0.7, mu))


def test_limited_policies_reach_the_optimum_of_their_objectives():
    """By reward: no small step in the weights raises J. By DPO with all features: the table's own maximum."""
    world = label_budget.random_worlds(2, 5, 0.5, 5)
    features = torch.randn(2, 5, 2, dtype=torch.float64, generator=seeded(12))
    best = label_budget.fit_class_to_reward(world.log_ref, features, world.reward, 0.5)
    value = exact.objective(best, world.log_ref, world.reward, 0.5)
    for step in 0.05 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64):
        moved = (best + features @ step).log_softmax(-1)
        assert (exact.objective(moved, world.log_ref, world.reward, 0.5) < value).all()
    wins = torch.randint(1, 20, (2, 5, 5), generator=seeded(13)).double()
    every = torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    direct = label_budget.fit_class_to_labels(world.log_ref, every, wins, 0.5, prior=3.0)
    table = exact.optimal_policy(world.log_ref, bradley_terry.fit_rewards(wins, 3.0)[0], 0.5)
    torch.testing.assert_close(direct, table, atol=1e-4, rtol=0)


def test_the_features_of_the_tree_span_its_reward():
    """Least squares of the tree's reward on tokens by place and neighbours leaves nothing."""
    world, _ = annotation_budget._world(dataclasses.replace(AnnotationBudget(scale="tree"), tokens=3), 0)
    from rlhf_lab.response_tree import ResponseTree

    features = annotation_budget._bigrams(ResponseTree(3, 3))
    features = torch.cat([features, torch.ones(27, 1, dtype=torch.float64)], -1)
    fitted = features @ torch.linalg.lstsq(features, world.reward[0].unsqueeze(-1), driver="gelsd").solution
    torch.testing.assert_close(fitted[:, 0], world.reward[0], atol=1e-8, rtol=0)
