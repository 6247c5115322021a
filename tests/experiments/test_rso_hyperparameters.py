"""RSO's β, γ and ranking as an experiment: quick runs on each scale, known limits, its rule's outcomes."""

import math
from dataclasses import asdict, replace

import pandas as pd
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rso_hyperparameters.run import EXPERIMENT
from rlhf_lab.experiments.claims.rso_hyperparameters.settings import Condition, RSOHyperparameters
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.intervals import Interval


@pytest.fixture(scope="module")
def bandit():
    return experiment_run(EXPERIMENT, RSOHyperparameters(scale="bandit", quick=True, progress=False))


def test_every_condition_is_run_once_a_seed(bandit):
    assert set(bandit.runs["condition"]) == {one.key for one in bandit.settings.conditions}
    assert (bandit.runs.groupby("condition").size() == 2).all()


def test_the_limit_goes_further_the_smaller_gamma_and_does_not_depend_on_the_sampler(bandit):
    """π_ref exp(r_φ/γ) goes the further, the smaller γ is."""
    table, settings = bandit.summary.set_index("condition"), bandit.settings
    cell = settings.gamma_cell
    kl = [table.loc[Condition(0.5, replace(cell, gamma=gamma)).key, "limit_kl"] for gamma in settings.slopes]
    assert kl == sorted(kl, reverse=True)
    limits = [table.loc[Condition(beta, cell).key, "limit_objective"] for beta in settings.samplers]
    assert max(limits) == pytest.approx(min(limits), abs=1e-12)


def run_one(settings, condition, seed=0):
    return EXPERIMENT.run(settings, {"seed": seed, "condition": condition.key}, {})[0]


def test_a_tournament_has_seven_pairs_where_a_first_round_has_four():
    """Of 8 responses; pairs of equal ones are dropped, so at most 7 and 4 a prompt, and the tournament more of them."""
    settings = RSOHyperparameters(scale="bandit", quick=True, pairs=10_000, progress=False)
    pairs = {name: run_one(settings, condition)["pairs"] for name, condition in settings.rankings.items()}
    for kind, most in (("sft-8", (4, 7)), ("rso-8", (4, 7)), ("sft-64", (32, 63))):
        first, tournament = pairs[f"{kind} first-round"], pairs[f"{kind} tournament"]
        assert first <= most[0] * settings.prompts and tournament <= most[1] * settings.prompts
        assert tournament > first


def test_numbers_are_there_and_panels_have_titles(bandit):
    three = (bandit.settings, bandit.summary, bandit.runs)
    means = [one.mean if isinstance(one, Interval) else one for one in bandit.verdict.numbers.values()]
    assert not any(math.isnan(one) for one in means)
    assert bandit.verdict.numbers["judge_rso_8_first_round"] == bandit.verdict.numbers["judge_beta_0.5_paper"]
    axes = EXPERIMENT.figure(*three).axes
    assert len(axes) == 6 and all(ax.get_title(loc="left") for ax in axes)


@pytest.mark.slow
def test_the_tree_runs_too():
    settings = RSOHyperparameters(scale="tree", quick=True, seeds=1, prompts=20, candidates=16, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert (found.runs["regret"] > 0).all()


@pytest.mark.slow
def test_a_language_model_runs_and_is_set_beside_the_paper():
    settings = RSOHyperparameters(
        scale="small", quick=True, seeds=1, betas=(0.0, 0.5), gammas=(0.5,), candidates=16, test_prompts=2,
        progress=False,
    )  # fmt: skip
    found = experiment_run(EXPERIMENT, settings)
    table = found.summary.set_index("condition")
    key = settings.rankings["sft-64 tournament"].key
    assert table.loc[key, "paper_judge_wins"] == pytest.approx(0.7108)
    assert found.runs["judge_wins"].between(0, 1).all()


def test_without_any_pair_the_policy_stays_where_it_is():
    """At β = 0 the top 8 of 64 draws of one prompt are often one arm alone: no pair, so π_ref itself."""
    settings = RSOHyperparameters(scale="bandit", quick=True, prompts=1, progress=False)
    best = Condition(0.0, settings.design[0])
    rows = [run_one(settings, best, seed) for seed in range(6)]
    none = [row["kl"] for row in rows if row["pairs"] == 0]
    assert none and none == pytest.approx([0] * len(none), abs=1e-12)


def _made(settings, proxy):
    rows = []
    for seed in range(3):
        for number, one in enumerate(settings.conditions):
            row = {"seed": seed, "condition": one.key, "beta": str(one.beta), "pairs": 100}
            row |= {"accepted": one.accepted, "pairing": one.pairing, **asdict(one.cell)}
            row |= dict.fromkeys(("objective", "kl", "regret", "reward", "gold_wins", "judge_wins"), 0.0)
            row |= dict.fromkeys(("limit_kl", "limit_judge_wins", "limit_objective"), 0.0)
            rows.append({**row, "proxy_wins": proxy(one) + 0.0001 * (seed - 1) * (number + 1)})
    return pd.DataFrame(rows)


def _proxy(top=0.1, weak=0.1, slope=0.1):
    """Wins at β = 0.5 minus those at β = 0 and at β = 5 in the paper's cell, and at γ = 0.05 minus those at γ = 0.5."""

    def value(one):
        if one.cell.length == "long":
            return 0.6 + slope * (one.cell.gamma == 0.05 and one.cell.ranks == "sampled")
        return 0.6 - {0.0: top, 5.0: weak}.get(one.beta, 0.0)

    return value


@pytest.mark.parametrize(
    ("proxy", "outcome"),
    [
        (_proxy(), "supported"),
        (_proxy(weak=0.0), "supported"),
        (_proxy(-0.1, -0.1, -0.1), "not supported"),
        (_proxy(slope=-0.1), "partly supported"),
        (_proxy(0.0, 0.0), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_tables(proxy, outcome):
    settings = RSOHyperparameters(scale="bandit", quick=True)
    runs = _made(settings, proxy)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert [*verdict.numbers][:3] == ["beta_over_0", "beta_over_5", "small_gamma"]


def test_what_the_rule_compares_is_always_run():
    settings = RSOHyperparameters(scale="small", betas=(0.0, 1.0), gammas=(1.0,))
    assert settings.samplers == (0.0, 0.5, 1.0) and settings.slopes == (0.05, 0.5, 1.0)
    assert len({one.key for one in settings.conditions}) == len(settings.conditions)
    assert len(settings.design) == 2 and settings.gamma_cell in settings.design
    assert len(RSOHyperparameters().design) == 8 and math.isinf(settings.rankings["sft-8 first-round"].beta)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"candidates": 48}, "candidates"),
        ({"gammas": (-1.0,)}, "gammas"),
        ({"few_labels": 9000}, "few_labels"),
        ({"paper_gamma": 0.5}, "paper_gamma"),
        ({"scale": "small", "task": "poems"}, "poems"),
    ],
)
def test_bad_settings_are_refused(changes, part):
    with pytest.raises(LabError, match=part):
        RSOHyperparameters(**changes)
