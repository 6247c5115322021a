"""RSO's β, γ and ranking as an experiment: quick runs on each scale, known limits, its rule's outcomes."""

import math

import pandas as pd
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rso_hyperparameters.run import EXPERIMENT
from rlhf_lab.experiments.claims.rso_hyperparameters.settings import SFT, Condition, RSOHyperparameters
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.intervals import Interval


@pytest.fixture(scope="module")
def bandit():
    return experiment_run(EXPERIMENT, RSOHyperparameters(scale="bandit", quick=True, progress=False))


def test_every_condition_is_run_once_a_seed(bandit):
    assert set(bandit.runs["condition"]) == {one.key for one in bandit.settings.conditions}
    assert (bandit.runs.groupby("condition").size() == 2).all()


def test_the_limit_goes_further_the_smaller_gamma(bandit):
    """π_ref exp(r_φ/γ) goes the further, the smaller γ is."""
    table = bandit.summary.set_index("condition")
    kl = [table.loc[Condition(0.5, gamma).key, "limit_kl"] for gamma in bandit.settings.slopes]
    assert kl == sorted(kl, reverse=True)


def test_the_limit_does_not_depend_on_the_sampler(bandit):
    table = bandit.summary.set_index("condition")
    limits = [table.loc[Condition(beta, 0.5).key, "limit_objective"] for beta in bandit.settings.samplers]
    assert max(limits) == pytest.approx(min(limits), abs=1e-12)


def test_a_tournament_has_seven_pairs_where_a_first_round_has_four(bandit):
    """Of 8 responses; pairs of equal ones are dropped, so at most 7 and 4 a prompt, and the tournament more of them."""
    table, rows = bandit.summary.set_index("condition"), bandit.settings.rankings
    for kind, most in (("sft-8", (4, 7)), ("rso-8", (4, 7)), ("sft-64", (32, 63))):
        first, tournament = (table.loc[rows[f"{kind} {p}"].key, "pairs"] for p in ("first-round", "tournament"))
        assert first <= most[0] * bandit.settings.prompts and tournament <= most[1] * bandit.settings.prompts
        assert tournament > first


def test_numbers_are_there_and_panels_have_titles(bandit):
    three = (bandit.settings, bandit.summary, bandit.runs)
    means = [one.mean if isinstance(one, Interval) else one for one in bandit.verdict.numbers.values()]
    assert not any(math.isnan(one) for one in means)
    assert bandit.verdict.numbers["wins_rso_8_first_round"] == bandit.verdict.numbers["wins_beta_0.5"]
    axes = EXPERIMENT.figure(*three).axes
    assert len(axes) == 6 and all(ax.get_ylabel() for ax in axes)
    assert all(ax.get_title(loc="left") for ax in axes[:3])


def test_the_tree_runs_too():
    settings = RSOHyperparameters(scale="tree", quick=True, prompts=20, betas=(0.5,), gammas=(0.5,), progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert (found.runs["regret"] > 0).all()


@pytest.mark.slow
def test_a_language_model_runs_and_is_set_beside_the_paper():
    settings = RSOHyperparameters(
        scale="small", quick=True, seeds=2, betas=(0.5,), gammas=(0.5,), labels=8, candidates=16, test_prompts=2,
        progress=False,
    )  # fmt: skip
    found = experiment_run(EXPERIMENT, settings)
    table = found.summary.set_index("condition")
    key = settings.rankings["sft-64 tournament"].key
    assert table.loc[key, "paper_judge_wins"] == pytest.approx(0.7108)
    assert found.runs["judge_wins"].between(0, 1).all()


def test_without_any_pair_the_policy_stays_where_it_is():
    """At β = 0 the top 8 of 64 draws of one prompt are often one arm alone: no pair, so π_ref itself."""
    settings = RSOHyperparameters(
        scale="bandit", quick=True, prompts=1, betas=(0.0,), gammas=(0.5,), seeds=6, progress=False
    )
    found = experiment_run(EXPERIMENT, settings)
    none = found.runs[found.runs["pairs"] == 0]
    assert len(none) > 0 and none["kl"].to_numpy() == pytest.approx(0, abs=1e-12)


def _made(settings, wins, proxy):
    rows = []
    for seed in range(3):
        for number, one in enumerate(settings.conditions):
            shake = 0.0001 * (seed - 1) * (number + 1)
            row = {"seed": seed, "condition": one.key, "pairs": 100}
            row |= dict.fromkeys(("objective", "kl", "regret", "reward", "gold_wins"), 0.0)
            row |= dict.fromkeys(("limit_kl", "limit_judge_wins", "limit_objective"), 0.0)
            rows.append({**row, "judge_wins": wins(one) + shake, "proxy_wins": proxy(one) + shake})
    return pd.DataFrame(rows)


def _wins(inside=0.1, steep=0.1):
    def value(one):
        if one.gamma == 0.05:
            return 0.6 + steep
        return 0.6 if one.beta == 0.5 else 0.6 - inside

    return value


def _proxy(tournament=0.1):
    return lambda one: 0.7 + (tournament if one.pairing == "tournament" else 0.0)


@pytest.mark.parametrize(
    ("wins", "proxy", "outcome"),
    [
        (_wins(), _proxy(), "supported"),
        (_wins(steep=-0.1), _proxy(), "partly supported"),
        (_wins(), _proxy(-0.1), "partly supported"),
        (_wins(inside=-0.1), _proxy(), "not supported"),
        (_wins(inside=0.0, steep=0.0), _proxy(-0.1), "not supported"),
        (_wins(inside=0.0, steep=0.0), _proxy(0.0), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_tables(wins, proxy, outcome):
    settings = RSOHyperparameters(scale="bandit", quick=True)
    runs = _made(settings, wins, proxy)
    assert EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs).outcome == outcome


def test_what_the_rule_compares_is_always_run():
    settings = RSOHyperparameters(scale="bandit", betas=(1.0,), gammas=(1.0,))
    assert settings.samplers == (0.0, 0.5, 1.0, SFT) and settings.slopes == (0.05, 0.5, 1.0)
    assert len({one.key for one in settings.conditions}) == len(settings.conditions)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"candidates": 48}, "candidates"),
        ({"gammas": (-1.0,)}, "gammas"),
        ({"scale": "small", "task": "poems"}, "poems"),
    ],
)
def test_bad_settings_are_refused(changes, part):
    with pytest.raises(LabError, match=part):
        RSOHyperparameters(**changes)
