"""Claim 6: the filter's limit against its definition, the samples of `rest`, every outcome, and quick runs."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rest_translation import run as claim
from rlhf_lab.experiments.claims.rest_translation.settings import ReSTTranslation
from rlhf_lab.experiments.claims.rest_translation.training import at_equal_kl, filter_limit, rest_rows, rest_setup
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.intervals import Interval
from rlhf_lab.training import seeded

SCALES = ("bandit", pytest.param("tree", marks=pytest.mark.slow), pytest.param("small", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One quick run a scale."""
    made = {}

    def get(scale):
        if scale not in made:
            out = tmp_path_factory.mktemp(scale)
            made[scale] = experiment_run(
                claim.EXPERIMENT, ReSTTranslation(scale=scale, quick=True, out=out, progress=False)
            )
        return made[scale]

    return get


def table(seed: int = 0, rows: int = 3, columns: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    log_ref = torch.randn(rows, columns, generator=generator, dtype=torch.float64).log_softmax(-1)
    return log_ref, torch.rand(rows, columns, generator=generator, dtype=torch.float64)


def test_the_limit_is_the_reference_conditioned_on_passing_and_a_prompt_with_none_stays():
    """By hand: the second prompt has no response above 0.8, so its last policy is the one of τ = 0.5."""
    log_ref = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
    scaled = torch.tensor([[0.9, 0.85, 0.1], [0.6, 0.7, 0.0]], dtype=torch.float64)
    start, middle, end = (one.exp() for one in filter_limit(log_ref, scaled, (0.0, 0.5, 0.8)))
    torch.testing.assert_close(start, log_ref.exp())
    expected = torch.tensor([[0.625, 0.375, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(end, expected)


def test_a_second_round_at_the_same_thresholds_changes_nothing_in_the_limit():
    """π(·|r > τ) conditioned on r > τ is itself."""
    log_ref, scaled = table()
    once = filter_limit(log_ref, scaled, (0.0, 0.3, 0.6))[-1]
    torch.testing.assert_close(filter_limit(once, scaled, (0.3, 0.6))[-1], once)


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0])
def test_the_most_reward_at_the_kl_of_an_optimum_is_its_own(beta):
    """No policy with the KL of π*_β has more reward than π*_β, and π*_β has that."""
    log_ref, reward = table(1)
    best = exact.optimal_policy(log_ref, reward, beta)
    kl = exact.kl(best, log_ref).mean().item()
    earned = (best.exp() * reward).sum(-1).mean().item()
    assert at_equal_kl(log_ref, reward, kl) == pytest.approx(earned, abs=1e-8)


def test_a_filter_has_less_than_the_optimum_with_its_kl():
    """Above the threshold the filter keeps π_ref's proportions: with two rewards above it, it is not π*."""
    log_ref, reward = table(2)
    policy = filter_limit(log_ref, reward, (0.0, 0.4))[-1]
    kl = exact.kl(policy, log_ref).mean().item()
    earned = (policy.exp() * reward).sum(-1).mean().item()
    assert at_equal_kl(log_ref, reward, kl) > earned + 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_a_quick_run_has_all_conditions_and_finite_numbers(found, scale):
    """All conditions are there, no number is NaN, and the picture names its axes."""
    result = found(scale)
    rows = result.runs
    assert {"BC", "G1 I0", "G1 I4", "G2 I3", "weighted", "raft", "dpo", "ppo", "best-of-n", "limit 0.95"} <= set(
        rows["condition"]
    )
    assert rows.groupby("condition")["seed"].nunique().eq(result.settings.seeds).all()
    for number in result.verdict.numbers.values():
        assert all(map(math.isfinite, number if isinstance(number, Interval) else [number]))
    for axes in claim.EXPERIMENT.figure(result.settings, result.summary, result.runs).axes:
        assert axes.get_title(loc="left") and axes.get_xlabel() and "[" in axes.get_ylabel()


@pytest.mark.parametrize("scale", SCALES[:2])
def test_on_exact_scales_nothing_beats_the_frontier_and_regret_is_by_kl(found, scale):
    """Gaps to the frontier of proxy and of gold are never negative; the proxy's optimum has none to its own.

    A KL that is zero but for rounding (1e-17) buys its square root in reward: the last bound is 1e-7.
    """
    rows = found(scale).runs
    assert (rows["gap"] > -1e-7).all() and (rows["gold_gap"] > -1e-7).all()
    assert rows.loc[rows["condition"] == "optimum", "gap"].abs().max() < 1e-7
    assert (rows.loc[rows["condition"] == "BC", ["kl", "gap", "gold_gap"]].abs() < 1e-7).all().all()


def test_the_shared_grown_set_is_the_one_that_rest_draws():
    """The share that passes the first filters, from `rest`'s history, is that of the samples the other losses get."""
    settings = ReSTTranslation(scale="bandit", quick=True, progress=False)
    shared = rest_setup(settings, 0)
    y, _ = shared.samples
    both = torch.cat([shared.scaled(shared.setup.prompts, y).flatten(), shared.scaled(*shared.original).flatten()])
    passed = {row["condition"]: row["kept"] for row in rest_rows(shared)}
    for number, tau in enumerate(settings.thresholds[1:], 1):
        assert passed[f"G1 I{number}"] == pytest.approx((both > tau).double().mean().item(), abs=1e-6)
    assert passed["G1 I0"] == 1


def test_scores_of_the_thresholds_do_not_know_a_prompts_constant():
    """A function of the prompt added to r_φ moves no scaled score."""
    settings = ReSTTranslation(scale="bandit", quick=True, progress=False, seeds=3)
    before, after = rest_setup.__wrapped__(settings, 0), rest_setup.__wrapped__(settings, 0)
    plain = before.scaled(before.setup.prompts, before.samples[0])
    with torch.no_grad():
        for tables in after.setup.reward_model.table.tables:
            tables += torch.arange(4.0, dtype=tables.dtype).reshape(4, 1, 1)
    torch.testing.assert_close(after.scaled(after.setup.prompts, after.samples[0]), plain)


def test_the_decision_reads_the_parts_from_rows():
    """Three seeds of a made-up world in which every part is true by a wide margin."""
    settings = ReSTTranslation(scale="bandit")
    values = {"BC": 0, "G1 I0": 1, "G1 I4": 5, "G2 I3": 8, "weighted": 3, "raft": 3, "dpo": 3, "ppo": 4, "best-of-n": 2}
    values |= {f"limit {tau:g}": 1 for tau in settings.thresholds}
    rows = [
        {"seed": seed, "condition": name, "proxy": value + 0.01 * seed * value, "gold": value + 0.01 * seed * value,
         "kl": value, "gap": tau_gap + 0.01 * seed, "kept": 0.5, "samples": 8}
        for seed in range(3)
        for name, value in values.items()
        for tau_gap in [2 if name == "limit 0.8" else 1]
    ]  # fmt: skip
    frame = pd.DataFrame(rows)

    def decided(frame):
        return claim.EXPERIMENT.decide(settings, claim.summarise_rows(settings, frame), frame)

    found = decided(frame)
    assert found.outcome == "supported"
    assert found.numbers["improve_proxy"].mean == pytest.approx(4.04)
    assert found.numbers["over_ppo_gold"].mean == pytest.approx(4.04)
    assert found.numbers["limit_gap"].mean == pytest.approx(1.01)
    assert (found.numbers["widest_gap"], found.numbers["widest_gap_threshold"]) == (pytest.approx(2.01), 0.8)

    def changed(condition, metric, value):
        return frame.assign(**{metric: frame[metric].where(frame["condition"] != condition, value)})

    noise = 40 * (-1.0) ** frame["seed"]
    falling = changed("G2 I3", "proxy", -9.0)
    assert decided(falling).outcome == "partly supported"  # the first Improve steps still raise it
    falling["proxy"] = falling["proxy"].mask(falling["condition"] == "G1 I4", -5.0)
    assert decided(falling.assign(seed=frame["seed"])).outcome == "not supported"
    open_ = frame.assign(proxy=frame["proxy"] + noise * frame["condition"].isin(["G1 I0", "G2 I3"]))
    assert decided(open_).outcome == "inconclusive"
    # The gold reward, the other losses and the limit do not decide.
    assert decided(changed("ppo", "gold", 100.0)).outcome == "supported"
    assert decided(changed("raft", "proxy", 100.0)).outcome == "supported"
    assert decided(changed("limit 0.95", "gap", -1.0)).outcome == "supported"


def test_bad_settings_are_refused():
    """Thresholds that fall, an odd number of samples, a negative β."""
    for bad in ({"thresholds": (0.0, 0.9, 0.7)}, {"samples": 3}, {"beta": -1.0}, {"second": (1.2,)}):
        with pytest.raises(LabError):
            ReSTTranslation(**bad)


@pytest.mark.slow
def test_best_of_n_on_text_picks_the_highest_of_each_n(found):
    """Its KL is the bound log n − (n−1)/n."""
    result = found("small")
    kl = result.runs.loc[result.runs["condition"] == "best-of-n", "kl"]
    n = result.settings.best_of
    assert kl.tolist() == pytest.approx([math.log(n) - (n - 1) / n] * len(kl))
