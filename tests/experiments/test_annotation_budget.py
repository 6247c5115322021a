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
from rlhf_lab.experiments.claims.annotation_budget import run_text as budget_text
from rlhf_lab.experiments.claims.annotation_budget.run import EXPERIMENT, AnnotationBudget
from rlhf_lab.training import seeded

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    return runner.experiment_run(
        EXPERIMENT, AnnotationBudget(scale="bandit", quick=True, progress=False, out=tmp_path_factory.mktemp("budget"))
    )


def texts_and_figure(found):
    three = (found.settings, found.summary, found.runs)
    text, words = EXPERIMENT.text(*three), EXPERIMENT.words(*three)
    assert "nan" not in (text + words).lower() and len(words) > 100
    axes = EXPERIMENT.figure(*three).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)
    return text


def test_a_quick_run_on_the_bandit_has_every_part_and_can_be_told(bandit):
    assert set(bandit.runs["part"]) == set(annotation_budget.PARTS)
    assert bandit.verdict.outcome in ("supported", "partly supported", "not supported", "inconclusive")
    text = texts_and_figure(bandit)
    assert "Demonstrations" in text and "DPO or reward model first" in text


def test_without_demonstrations_the_split_does_not_depend_on_their_price(bandit):
    rows = bandit.runs[(bandit.runs["part"] == "split") & (bandit.runs["share"] == 0)]
    assert (rows.groupby(["seed", "pairs"])["log_regret"].nunique() == 1).all()


def test_the_class_has_no_better_policy_than_its_best(bandit):
    rows = bandit.runs[(bandit.runs["part"] == "learners") & bandit.runs["learner"].str.startswith("limited")]
    assert (rows["regret"] >= rows["floor"] - 0.02).all()  # of several starts, not all


def test_a_quick_run_on_the_tree():
    found = runner.experiment_run(EXPERIMENT, AnnotationBudget(scale="tree", quick=True, progress=False))
    assert "knows the reward's form" in texts_and_figure(found)


@pytest.mark.slow
def test_a_quick_run_on_the_small_model_spends_the_same_money_every_time():
    settings = AnnotationBudget(scale="small", quick=True, progress=False, seeds=2)
    found = runner.experiment_run(EXPERIMENT, settings)
    texts_and_figure(found)
    spent = found.runs[found.runs["part"] != "none"]
    assert set(spent["part"]) == set(budget_text.STRATEGIES)
    assert (spent["money"] <= settings.money + 1e-9).all()
    # What is left over is less than a label with its samples, and labels on equal responses, which are not paid.
    assert (spent["money"] > 0.7 * settings.money).all()
    assert ((spent["objective"] - spent["reward"] + settings.beta * spent["kl"]).abs() < 1e-6).all()


def made_up(limit=(0.98, 1.02), active_ratio=(1.0, 1.1), simulated=(0.9, 1.1)):
    settings = AnnotationBudget(scale="bandit")
    rows = [
        {"part": "limit", "what": "N regret / price", "pairs": pairs, "labels": settings.limit_totals[-1],
         "value": sum(limit) / 2, "value_low": limit[0], "value_high": limit[1]}
        for pairs in annotation_budget.LIMITS
    ]  # fmt: skip
    for pairs, what, (low, high) in (
        ("active", "labels / best design's", active_ratio),
        ("active", "regret / simulated design's", simulated),
        ("reference", "labels / best design's", (3.0, 5.0)),
    ):
        rows.append({"part": "sources", "what": what, "pairs": pairs, "labels": settings.totals[-1],
                     "value": (low + high) / 2, "value_low": low, "value_high": high})  # fmt: skip
    return settings, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "outcome"),
    [
        ({}, "supported"),
        ({"active_ratio": (1.1, 1.3)}, "inconclusive"),
        ({"active_ratio": (1.3, 1.5)}, "partly supported"),
        ({"simulated": (1.3, 1.5)}, "partly supported"),
        ({"limit": (1.01, 1.05)}, "partly supported"),
        ({"limit": (1.01, 1.05), "active_ratio": (1.1, 1.3)}, "inconclusive"),
        ({"limit": (0.8, 0.95), "active_ratio": (1.4, 1.5)}, "not supported"),
    ],
)
def test_the_rule_gives_each_outcome(table, outcome):
    settings, summary = made_up(**table)
    assert annotation_budget.judge(settings, summary, summary).outcome == outcome


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        ({"uncertain": (0.1, 0.3)}, "supported"),
        ({"uncertain": (0.1, 0.3), "reward-rso": (-0.3, -0.1)}, "partly supported"),
        ({"reward-rso": (-0.3, -0.1)}, "not supported"),
        ({}, "inconclusive"),
    ],
)
def test_the_rule_on_a_language_model_gives_each_outcome(intervals, outcome):
    settings = AnnotationBudget(scale="small")
    rows = []
    for key in budget_text.STRATEGIES:
        if key != "random":
            low, high = intervals.get(key, (-0.1, 0.1))
            rows.append({"part": key, "what": "over random pairs", "value": (low + high) / 2, "value_low": low,
                         "value_high": high})  # fmt: skip
    summary = pd.DataFrame(rows)
    assert annotation_budget.judge(settings, summary, summary).outcome == outcome


def test_settings_are_settled_and_bad_ones_refused():
    full = EXPERIMENT.settings(scale="bandit")
    assert full.seeds * full.worlds >= 20 and full.beta == 0.3 and full.arms == 10
    assert full.totals[-1] == full.labels and full.limit_totals[-1] == full.limit_labels
    for bad in ({"beta": -1.0}, {"labels": 3}, {"price_demonstration": 0.0}, {"arms": 2}, {"runs": -1}):
        with pytest.raises(LabError):
            AnnotationBudget(**bad)


def test_demonstrations_have_the_information_that_monte_carlo_finds():
    """400 runs of 3,000 demonstrations and 3,000 labels: N · regret within 4 standard errors of the closed form."""
    world = label_budget.random_worlds(1, 4, 0.5, 3)
    demo = exact.optimal_policy(world.log_ref, world.reward, 1.5)
    what = label_budget.Purchase(3000, 3000, demo_beta=1.5, pairs="sft")
    lost = label_budget.buy(world, what, 400, seeded(11), prior=30.0)[:, 0]
    number = torch.tensor(3000.0)
    want = float(label_budget.price_of_both(world, number, number, 1.5, bradley_terry.pair_distribution(demo))[0])
    assert abs(float(lost.mean()) - want) < 4 * float(lost.std()) / math.sqrt(400) + 0.02 * want


def test_the_price_of_labels_alone_is_the_price_of_a_label():
    world = label_budget.random_worlds(3, 5, 0.7, 4)
    mu = world.design("uniform")
    got = label_budget.price_of_both(world, torch.tensor(0.0), torch.tensor(1.0), 1.0, mu)
    torch.testing.assert_close(got, exact.label_price(world.log_ref, world.reward, 0.7, mu))


def test_limited_policies_reach_the_optimum_of_their_objectives():
    """By reward: no small step in the weights raises J. By DPO with all features: the table's own maximum."""
    world = label_budget.random_worlds(2, 5, 0.5, 5)
    features = torch.randn(2, 5, 2, dtype=torch.float64, generator=seeded(12))
    best = label_budget.limited_by_reward(world.log_ref, features, world.reward, 0.5)
    value = exact.objective(best, world.log_ref, world.reward, 0.5)
    for step in 0.05 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64):
        moved = (best + features @ step).log_softmax(-1)
        assert (exact.objective(moved, world.log_ref, world.reward, 0.5) < value).all()
    wins = torch.randint(1, 20, (2, 5, 5), generator=seeded(13)).double()
    every = torch.eye(5, dtype=torch.float64).expand(2, -1, -1)
    direct = label_budget.limited_by_dpo(world.log_ref, every, wins, 0.5, prior=3.0)
    table = exact.optimal_policy(world.log_ref, bradley_terry.fit_rewards(wins, 3.0)[0], 0.5)
    torch.testing.assert_close(direct, table, atol=1e-4, rtol=0)


def test_the_features_of_the_tree_span_its_reward():
    """Least squares of the tree's reward on tokens by place and neighbours leaves nothing."""
    world, _ = annotation_budget._world(dataclasses.replace(AnnotationBudget(scale="tree"), tokens=3), 0)
    from rlhf_lab.response_tree import ResponseTree

    features = annotation_budget._bigrams(ResponseTree(3, 3).responses.ids)
    features = torch.cat([features, torch.ones(27, 1, dtype=torch.float64)], -1)
    fitted = features @ torch.linalg.lstsq(features, world.reward[0].unsqueeze(-1), driver="gelsd").solution
    torch.testing.assert_close(fitted[:, 0], world.reward[0], atol=1e-8, rtol=0)
