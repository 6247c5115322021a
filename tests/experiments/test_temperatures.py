"""Claim 3: sharpened policies, exact win rates, every outcome of the rule, and a quick run on each scale."""

import itertools
import math

import pandas as pd
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.temperatures import run as claim
from rlhf_lab.experiments.claims.temperatures.report import PARTS, comparisons, decide, figure
from rlhf_lab.experiments.claims.temperatures.settings import Temperatures
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.intervals import Interval
from rlhf_lab.training import seeded
from rlhf_lab.worlds import token_tree


def _tables(world):
    return [table.detach() for table in world.reference.log_tables()]


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1.0])
def test_a_sharpened_table_is_what_sampling_at_that_temperature_draws(temperature):
    """Against `log_prob(…, temperature)`, which divides the logits itself."""
    world = token_tree.random(3, 3, 2, seed=1)
    asked = world.reference.log_prob(world.prompts, world.responses, temperature)
    assert torch.allclose(claim.sharpened(_tables(world), temperature), asked, atol=1e-12)


def test_temperature_0_is_the_greedy_response_and_the_limit_of_small_ones():
    world = token_tree.random(3, 3, 2, seed=1)
    greedy = claim.sharpened(_tables(world), 0.0).exp()
    drawn = world.reference.sample(world.prompts, 1, seeded(0), top_k=1)
    assert torch.equal(greedy.argmax(-1), world.tree.index(drawn)[:, 0])
    assert torch.allclose(greedy, claim.sharpened(_tables(world), 1e-3).exp(), atol=1e-6)


def test_win_rates_are_sums_over_all_pairs_ties_half():
    """By a double loop over responses, with rewards that tie."""
    log_ref = torch.randn(2, 6, dtype=torch.float64, generator=seeded(3)).log_softmax(-1)
    reward = torch.tensor([[1.0, 0, 1, 2, 0, 3], [0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    found = claim.chance_to_win(log_ref, reward)
    for x, y in itertools.product(range(2), range(6)):
        chances = log_ref[x].exp()
        wanted = sum(
            chances[z] * (1.0 if reward[x, y] > reward[x, z] else 0.5 if reward[x, y] == reward[x, z] else 0.0)
            for z in range(6)
        )
        assert found[x, y] == pytest.approx(float(wanted))


SETTINGS = Temperatures()


def _runs(dpo, ppo, best, spread=0.0):
    """Rates at temperature 0 and 1 of DPO and PPO, best-of-n's best, the same in each of 4 seeds but for `spread`."""
    rows = []
    for seed in range(4):
        noise = spread * (1 if seed % 2 else -1)
        for t in SETTINGS.temperatures:
            rates = {"dpo": dpo[0] + t * (dpo[1] - dpo[0]) + noise * (1 + t), "ppo": ppo[0] + t * (ppo[1] - ppo[0])}
            rates |= {"reference": 0.4, "sft": 0.45, "best-of-8": best - 0.1, "best-of-128": best - 0.1 * (1 - t)}
            rows += [
                {"seed": seed, "method": m, "temperature": t, "gold_wins": w, "reward": w} for m, w in rates.items()
            ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("runs", "outcome", "signs"),
    [
        (_runs((0.62, 0.6), (0.57, 0.4), 0.6), "supported", "+++"),
        (_runs((0.62, 0.6), (0.57, 0.4), 0.7), "partly supported", "++-"),
        (_runs((0.5, 0.2), (0.57, 0.4), 0.7), "not supported", "---"),
        (_runs((0.55, 0.45), (0.55, 0.45), 0.56, spread=0.2), "inconclusive", "000"),
    ],
)
def test_each_outcome_of_the_rule_from_runs_that_call_for_it(runs, outcome, signs):
    verdict = decide(SETTINGS, claim.summarise_runs(SETTINGS, runs), runs)
    assert verdict.outcome == outcome
    for name, sign in zip(PARTS, signs, strict=True):
        part = verdict.numbers[name]
        assert sign == ("+" if part.above else "-" if part.below else "0"), name


def test_the_parts_are_the_differences_that_were_put_in():
    """DPO .62 → .60, PPO .57 → .40, best-of-128 .60 at temperature 1: +5, 15 and +2 points."""
    runs = _runs((0.62, 0.6), (0.57, 0.4), 0.6)
    found = comparisons(SETTINGS, runs, "gold_wins")
    assert [found[name].mean for name in PARTS] == pytest.approx([0.05, 0.15, 0.02])
    best = {"best_temperature_ppo": 0, "best_temperature_dpo": 0, "best_n": 128, "best_temperature_best_of_n": 1}
    assert found.items() >= best.items()


def test_two_methods_tie_where_the_interval_of_their_difference_is_narrow_and_contains_zero():
    """Differences of ±0.1 points are ties, which contradict "more often"; those of ±20 points leave the parts open."""
    tied = _runs((0.55, 0.45), (0.55, 0.45), 0.55, spread=0.001)
    verdict = decide(SETTINGS, claim.summarise_runs(SETTINGS, tied), tied)
    assert verdict.outcome == "not supported"
    assert not any(verdict.numbers[name].above or verdict.numbers[name].below for name in PARTS)


def test_the_best_cell_of_a_seed_is_found_on_the_other_seeds():
    """Seed 0 alone is high at temperature 1. The other seeds take 1 because of it, and seed 0 itself takes 0."""
    runs = _runs((0.6, 0.5), (0.5, 0.5), 0.4)
    lucky = (runs["seed"] == 0) & (runs["method"] == "ppo") & (runs["temperature"] == 1)
    runs["gold_wins"] = runs["gold_wins"].mask(lucky, 0.9)
    found = comparisons(SETTINGS, runs, "gold_wins")
    assert found["lead_over_ppo"].mean == pytest.approx(0.1) and found["best_temperature_ppo"] == 1


def _checked(found):
    for name, number in found.verdict.numbers.items():
        assert math.isfinite(number.mean if isinstance(number, Interval) else number), name
    for ax in figure(found.settings, found.summary, found.runs).axes:
        assert ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel()
    assert set(found.search["seed"]).isdisjoint(found.runs["seed"])


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_a_quick_run_where_the_reference_at_1_ties_with_itself(scale, tmp_path):
    settings = Temperatures(scale=scale, quick=True, out=tmp_path, progress=False)
    found = experiment_run(claim.EXPERIMENT, settings)
    table = found.runs.set_index(["method", "temperature"])["gold_wins"]
    assert table["reference", 1.0].to_numpy() == pytest.approx(0.5)
    assert table["best-of-8", 0.0].to_numpy() == pytest.approx(table["reference", 0.0].to_numpy())
    assert found.runs["gold_wins"].between(0, 1).all()
    _checked(found)


@pytest.mark.slow
def test_a_quick_run_on_text_asks_gold_and_judge_at_every_temperature(tmp_path):
    settings = Temperatures(scale="small", quick=True, out=tmp_path, progress=False)
    found = experiment_run(claim.EXPERIMENT, settings)
    assert found.runs[["gold_wins", "judge_wins"]].notna().all(axis=None)
    assert (found.runs.groupby(["method", "temperature"]).size() == 2).all()
    # At temperature 0 there is one response, however many are sampled.
    cold = found.runs[found.runs["temperature"] == 0].set_index(["seed", "method"])["gold_wins"]
    assert all(cold[seed, "best-of-2"] == cold[seed, "reference"] for seed in range(2))
    _checked(found)


def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(LabError, match="increase from 0 to 1"):
        Temperatures(temperatures=(1.0, 0.0))
    with pytest.raises(LabError, match="each at least 2"):
        Temperatures(best_of=(1,))
