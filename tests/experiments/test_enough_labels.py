"""Claim 1: the table's fit, its limit, the rule, and quick runs of every scale."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.enough_labels.report import slopes
from rlhf_lab.experiments.claims.enough_labels.run import (
    EXPERIMENT,
    EnoughLabels,
    fit_tables,
    limit,
    table_world,
    win_counts,
)
from rlhf_lab.intervals import Interval
from rlhf_lab.training import Training, seeded


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_newtons_method_ends_where_the_dpo_algorithm_ends(scale):
    """The same labels as pairs through `dpo` with L-BFGS, another optimiser on another form of the loss."""
    world = table_world(scale, 3)
    pairs = world.preferences(4000, seeded(0, 1))
    counts = win_counts(world, pairs, (4000,))
    # A label each way for every pair, so that the optimum is finite for certain.
    size = world.tree.num_responses
    counts += ~torch.eye(size, dtype=torch.bool)
    row, winner, loser = counts[0].nonzero(as_tuple=True)
    every, both = world.tree.responses, torch.stack([winner, loser], -1)
    listed = Pairs(world.prompts[row], Tokens(every.ids[both], every.mask[both]), counts[0, row, winner, loser])
    policy = world.reference.copy()
    dpo(policy, world.reference, listed, DPO(beta=0.5), Training(5, len(listed), optimizer="lbfgs", progress=False))
    ours = fit_tables(world.log_ref(), counts[0], 0.5)
    assert ours.exp() == pytest.approx(world.log_probs(policy).exp(), abs=1e-6)


def test_population_weights_fit_the_optimal_policy_itself():
    """Counts in proportion to π_ref π_ref p are infinitely many labels; DPO's optimum there is π* (equation 7)."""
    world = table_world("bandit", 1)
    log_ref, reward = world.log_ref(), world.rewards()
    joint = (log_ref.unsqueeze(-1) + log_ref.unsqueeze(-2)).exp() * exact.preference(reward)
    joint = joint * ~torch.eye(10, dtype=torch.bool)
    fitted = fit_tables(log_ref, joint, 0.5)
    assert exact.kl(fitted, world.optimal(0.5)).max() < 1e-10


def test_counts_of_nested_labels_add_up_and_name_the_winner():
    world = table_world("tree", 0)
    pairs = world.preferences(500, seeded(2, 1))
    counts = win_counts(world, pairs, (100, 500))
    assert counts.sum((-1, -2, -3)).tolist() == [100, 500] and (counts[1] >= counts[0]).all()
    gold = world.rewards()
    won = (counts[1] * (gold.unsqueeze(-1) - gold.unsqueeze(-2)).sign()).sum()
    assert won > 0, "the better response wins more often than it loses"


def test_without_a_finite_optimum_the_policy_is_finite_and_at_the_edge():
    wins = torch.zeros(3, 3, dtype=torch.float64)
    wins[0, 1] = wins[1, 0] = wins[0, 2] = 5  # the third response has never won
    log_p = fit_tables(torch.full((3,), -math.log(3), dtype=torch.float64), wins, 1.0)
    assert torch.isfinite(log_p).all() and log_p[2].exp() < 1e-4
    assert log_p[0].item() == pytest.approx(log_p[1].item(), abs=1e-3), "a draw between the first two"


def test_the_limit_counts_the_labels_that_each_prompt_really_gets():
    """Two prompts, one with a nearly certain answer: equal pairs are drawn again, so it gets few of the labels. The
    share that `preferences` gives is counted and put into the sum in place of the formula's."""
    from rlhf_lab.worlds import bandit

    log_ref = torch.tensor([[0.9, 0.05, 0.05], [0.3, 0.3, 0.4]], dtype=torch.float64).log()
    world = bandit.make(log_ref, torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, -1.0]], dtype=torch.float64))
    counts = win_counts(world, world.preferences(200_000, seeded(0, 9)), (200_000,))[0]
    share = counts.sum((-1, -2)) / counts.sum()
    prices = exact.label_price(world.log_ref(), world.rewards(), 0.5, counts / counts.sum((-1, -2), keepdim=True))
    assert limit(world, 0.5) == pytest.approx((prices / share).mean().item(), rel=0.03)


def test_simulation_meets_the_closed_form():
    """One world of three arms, 400 sets of 3,000 labels: the mean of N · regret within four standard errors of it."""
    from rlhf_lab.worlds import bandit

    world = bandit.random(1, 3, 5)
    chance = world.log_ref().exp()[0]
    joint = torch.outer(chance, chance) * ~torch.eye(3, dtype=torch.bool)
    joint = joint / joint.sum() * exact.preference(world.rewards()[0])
    drawn = torch.multinomial(2 * joint.flatten() / 2, 400 * 3000, True, generator=seeded(1, 1)).view(400, 3000)
    wins = torch.nn.functional.one_hot(drawn, 9).sum(1).view(400, 3, 3).double()
    fitted = fit_tables(world.log_ref().expand(400, 3), wins, 0.5)
    scaled = 3000 * exact.regret(fitted, world.log_ref().expand(400, 3), world.rewards().expand(400, 3), 0.5)
    error = scaled.std() / 20
    assert abs(scaled.mean().item() - limit(world, 0.5)) < 4 * error
    assert error < 0.1 * limit(world, 0.5), "the interval is narrow enough to say something"


@pytest.mark.parametrize(
    "scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow), pytest.param("small", marks=pytest.mark.slow)]
)
def test_a_quick_run_of_each_scale_ends_in_a_verdict_and_a_picture(scale, tmp_path):
    settings = EnoughLabels(scale=scale, quick=True, progress=False, out=tmp_path)
    found = runner.experiment_run(EXPERIMENT, settings)
    runner.save(EXPERIMENT, found, tmp_path)
    assert (found.runs["regret"] > -0.5).all() and found.verdict.outcome
    assert all(math.isfinite(one.mean) for one in found.verdict.numbers.values() if isinstance(one, Interval))
    for axes in EXPERIMENT.figure(settings, found.summary, found.runs).axes:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    assert (tmp_path / "result.json").is_file() and (tmp_path / "figure.png").stat().st_size > 10_000


def tables(regrets, ratios, settings, seeds=6):
    """Made-up rows of tables, with a little spread between seeds."""
    rows = []
    for seed in range(seeds):
        wobble = 1 + 0.02 * (seed - (seeds - 1) / 2)
        for n, regret, ratio in zip(settings.labels, regrets, ratios, strict=True):
            rows.append(
                {"seed": seed, "kind": "table", "labels": n, "when": "end", "regret": regret * wobble, "left": 0.1,
                 "limit": 1 / n, "ratio": ratio * wobble, "finite": 1.0}
            )  # fmt: skip
    return rows


def verdict(settings, rows):
    runs = pd.DataFrame(rows)
    return EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)


@pytest.mark.parametrize(
    "regrets, ratios, outcome",
    [
        ((1, 0.1, 0.01), (1, 1, 1), "supported"),
        ((1, 0.1, 0.05), (1, 1, 1), "partly supported"),  # too slow at the end
        ((1, 0.1, 0.001), (1, 1, 1), "partly supported"),  # too fast
        ((1, 0.1, 0.01), (1, 1, 1.5), "partly supported"),  # beside its limit
        ((0.01, 0.1, 1), (1, 1, 1.5), "not supported"),
    ],
)
def test_the_rule_on_the_bandit_can_say_everything_it_names(regrets, ratios, outcome):
    settings = EnoughLabels(labels=(100, 1000, 10_000))
    assert verdict(settings, tables(regrets, ratios, settings)).outcome == outcome


def test_a_ratio_near_the_margin_leaves_its_part_open():
    """Ratios of 1.1 ± 5% and slopes of −1.1: neither interval lies within or outside the margin."""
    settings = EnoughLabels(labels=(100, 1000, 10_000))
    rows = tables((1, 0.1, 0.1 * 10**-1.1), (1, 1, 1.1), settings)
    for row in rows:
        row["regret"] *= 1 + 0.02 * (row["labels"] == 10_000) * (-1) ** row["seed"]
    assert verdict(settings, rows).outcome == "inconclusive"


@pytest.mark.parametrize("stopped, outcome", [(0.1, "supported"), (1, "partly supported"), (3, "partly supported")])
def test_the_rule_on_the_tree_asks_the_transformer_too(stopped, outcome):
    settings = EnoughLabels(scale="tree", labels=(100, 1000, 10_000), net_labels=(100, 1000))
    rows = tables((1, 0.1, 0.01), (1, 1, 1), settings)
    for seed in range(4):
        for n, when, regret in [(100, "end", 1), (100, "stopped", 1), (1000, "end", 1), (1000, "stopped", stopped)]:
            numbers = {"regret": regret + 0.02 * seed * n / 1000, "left": 1, "loss": 0.6, "held_out": 0.6}
            rows.append({"seed": seed, "kind": "transformer", "labels": n, "when": when, **numbers})
        fresh = settings.steps * settings.batch
        rows.append({"seed": seed, "kind": "fresh", "labels": fresh, "when": "end", "regret": 0.1, "left": 1})
    assert verdict(settings, rows).outcome == outcome


@pytest.mark.parametrize(
    "first, last, outcome",
    [
        ((0.2, 1.0, 0.8, 1), (1.0, 0.2, 0.05, 1), "supported"),
        ((0.2, 1.0, 0.8, 1), (1.0, 0.4, 0.3, 1), "partly supported"),  # much is left
        ((0.2, 1.0, 0.8, 1), (1.0, 0.2, 0.05, 0), "partly supported"),  # not trusted
        ((0.2, 1.0, 0.8, 1), (1.0, 1.0, 0.8, 1), "partly supported"),  # the estimate does not fall
        ((1.0, 1.0, 0.8, 1), (0.2, 1.0, 0.8, 1), "not supported"),
        ((0.2, 1.0, 0.8, 1), (0.2, 1.0, 0.8, 0), "inconclusive"),
    ],
)
def test_the_rule_on_text_can_say_everything_it_names(first, last, outcome):
    settings = EnoughLabels(scale="small", labels=(64, 512))
    rows = []
    for seed in range(4):
        wobble = 1 + 0.02 * seed
        for n, (j, regret, left, trusted) in zip(settings.labels, (first, last), strict=True):
            rows.append(
                {"seed": seed, "kind": "text", "labels": n, "when": "end", "objective": j * wobble, "gain": j,
                 "gold": j, "reward": j, "kl": 1.0, "regret": regret * wobble, "left": left * wobble, "effective": 30.0,
                 "trusted": trusted}
            )  # fmt: skip
    assert verdict(settings, rows).outcome == outcome


def test_the_slope_of_a_power_law_is_its_exponent():
    settings = EnoughLabels(labels=(100, 1000, 3000, 10_000))
    rows = tables([5, 1000**-0.7, 3000**-0.7, 10_000**-0.7], [1] * 4, settings)
    assert slopes(settings, pd.DataFrame(rows)) == pytest.approx(np.full(6, -0.7))


def test_settings_that_make_no_course_are_refused():
    for wrong in ({"labels": (100,)}, {"labels": (1000, 100)}, {"labels": (3, 100)}, {"beta": -1.0}):
        with pytest.raises(LabError):
            EnoughLabels(**wrong)
    with pytest.raises(LabError, match="Raise net_seeds to at least 1"):
        EnoughLabels(scale="tree", net_seeds=0)


def test_full_settings_are_settled_and_jobs_are_in_the_order_of_seeds():
    for scale in ("bandit", "tree", "small"):
        settings = EnoughLabels(scale=scale)
        seeds = [(job["kind"] != "table", job["seed"]) for job in EXPERIMENT.jobs(settings)]
        assert settings.seeds > 0 and settings.beta > 0 and seeds == sorted(seeds)


def test_the_first_labels_are_counted_and_the_winner_stands_in_the_row():
    """Two labels 0 > 1, then three 2 > 0, of one prompt of a bandit."""
    world = table_world("bandit", 0)
    both = torch.tensor([[0, 1]] * 2 + [[2, 0]] * 3)
    pairs = Pairs(world.prompts[torch.zeros(5, dtype=torch.long)], Tokens.full(both.unsqueeze(-1)))
    first, all_of_them = win_counts(world, pairs, (2, 5))
    assert first[0, 0, 1] == 2 == first.sum()
    assert (all_of_them[0, 0, 1], all_of_them[0, 2, 0], all_of_them.sum()) == (2, 3, 5)
