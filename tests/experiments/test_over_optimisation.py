"""Claim 7: best of subsets against enumeration, turns on made-up trajectories, outcomes of the rule, quick runs."""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.over_optimisation import report
from rlhf_lab.experiments.claims.over_optimisation import run as claim
from rlhf_lab.experiments.claims.over_optimisation.report import METHODS, decide, figure, peak_shifts
from rlhf_lab.experiments.claims.over_optimisation.settings import OverOptimisation
from rlhf_lab.experiments.claims.over_optimisation.trajectories import (
    PartReward,
    _exact_setup,
    _position,
    _text_setup,
    best_of_subsets,
    make_world,
    saturating_world,
)
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.experiments.statistics import mean_of
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

SCALES = ("bandit", pytest.param("tree", marks=pytest.mark.slow), pytest.param("small", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One quick run a scale."""
    made = {}

    def get(scale):
        if scale not in made:
            settings = OverOptimisation(scale=scale, quick=True, out=tmp_path_factory.mktemp(scale), progress=False)
            made[scale] = experiment_run(claim.EXPERIMENT, settings)
        return made[scale]

    return get


def trajectory(gold, proxy=None, seeds=6, noise=0.0, kl=None) -> pd.DataFrame:
    """Rows of one trajectory, with the same shape for every seed, and noise."""
    generator = np.random.default_rng(0)
    proxy = proxy if proxy is not None else list(range(len(gold)))
    kl = kl if kl is not None else [float(i) for i in range(len(gold))]
    return pd.DataFrame(
        [
            {"seed": s, "place": i, "kl": kl[i], "gold": g + noise * generator.normal(), "proxy": p + 0.001 * s}
            for s in range(seeds)
            for i, (g, p) in enumerate(zip(gold, proxy, strict=True))
        ]
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_subsets_is_the_mean_over_all_choices(n):
    """All choices of n of five samples, listed."""
    generator = seeded(3)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    values = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    listed = [
        values[row, max(choice, key=lambda i: scores[row, i])].item()
        for row in range(4)
        for choice in combinations(range(5), n)
    ]
    assert best_of_subsets(scores, values, n) == pytest.approx(np.mean(listed))


@pytest.mark.slow
def test_best_of_n_on_text_runs_before_any_other_job_and_agrees_with_scores_of_all_samples():
    """It scores equal responses once. At n = G the estimate is the gold reward of the best of all samples."""
    settings = OverOptimisation(scale="small", quick=True, most=64, most_prompts=1, progress=False)
    rows = claim.run(settings, {"seed": 5, "method": "best-of-n", "labels": 0, "kind": "full"}, {})
    setup = _text_setup(settings, 5, settings.labels[0])
    prompt = setup.task.world.prompts(setup.task.tokenizer, "test", 1)
    with torch.no_grad():
        y = setup.reference.sample(prompt, 64, seeded(5, Stream.OVER_OPTIMISATION_BEST_OF_N, 0))
        scores, gold = setup.reward_model(prompt, y), setup.gold(prompt, y)
    last = [row for row in rows if row["labels"] == settings.labels[0]][-1]
    assert last["pressure"] == 64
    assert last["gold"] == pytest.approx((gold[0, scores.argmax()] - gold.mean()).item(), abs=1e-5)
    assert last["proxy"] == pytest.approx((scores.max() - scores.mean()).item(), abs=1e-4)


def test_best_of_subsets_needs_enough_samples():
    """Best of six cannot be computed from five samples."""
    with pytest.raises(LabError):
        best_of_subsets(torch.zeros(1, 5), torch.zeros(1, 5), 6)


def turn(rows, most=None):
    """The turn of one trajectory whose own maximum of the proxy is the largest, or `most`."""
    best = rows.groupby("seed")["proxy"].max()
    found = report.turn(rows, best if most is None else best * 0 + most)
    return found, report.sign(found, mean_of(found["fall"]))


def test_a_trajectory_that_rises_and_falls_turns_and_one_that_only_rises_stays():
    """By hand: gold 0, 1, 2, 1, the fall is 1; and gold that ends at its highest falls by 0."""
    there, sign = turn(trajectory([0, 1, 2, 1], noise=0.01))
    assert sign == 1 and there["fall"].mean() == pytest.approx(1, abs=0.05)
    assert there["peak"][0] == pytest.approx(2**0.5) and there["gain"][0] == pytest.approx(2, abs=0.05)
    stays, sign = turn(trajectory([0, 1, 2, 3], noise=0.01))
    assert sign == -1 and abs(stays["fall"].mean()) < 0.05


def test_a_fall_of_gold_with_the_proxy_is_no_turn_and_a_trajectory_far_from_the_maximum_decides_nothing():
    """A proxy that falls too was not optimised. One that ends at 3 of 4 is open, and at 3 of 3.2 it is not."""
    assert turn(trajectory([0, 1, 2, 1], proxy=[0, 3, 4, 2], noise=0.01))[1] == 0
    assert turn(trajectory([0, 1, 2, 3], noise=0.01), most=4)[1] == 0
    there, sign = turn(trajectory([0, 1, 2, 3], noise=0.01), most=3.2)
    assert sign == -1 and there["reach"][0] == pytest.approx(3 / 3.2, abs=0.01)


def test_on_noise_alone_the_cross_fitted_fall_is_centred_at_zero():
    """Gold is flat. The peak of the same seed would always be above its end, but the peak of the other seeds is not."""
    falls, biased = [], []
    for s in range(40):
        rows = trajectory([0.0] * 10, seeds=5)
        rows["gold"] = np.random.default_rng(s).normal(size=len(rows))
        falls.append(turn(rows)[0]["fall"].mean())
        table = rows.pivot(index="seed", columns="place", values="gold").to_numpy()
        biased.append((table.max(1) - table[:, -1]).mean())
    error = np.std(falls, ddof=1) / np.sqrt(len(falls))
    assert abs(np.mean(falls)) < 3 * error
    assert np.mean(biased) > 10 * error


def made_up(shapes, kind="extrapolating", noise=0.01):
    """Rows of both methods of the rule with few and with many labels; `shapes` has a gold reward for each."""
    parts = []
    for labels, shape in zip((8, 16), shapes, strict=True):
        for name, gold in zip(METHODS, (shape, shape, [0, 1, 2], [0, 1, 2]), strict=True):
            rows = trajectory(gold, kl=[0.0, 1.0, 4.0], noise=noise)
            parts.append(rows.assign(road=name, kind=kind, labels=labels, pressure=rows["place"]))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("few", "many", "noise", "expected"),
    [
        ([0, 2, 1], [0, 1, 2], 0.01, "supported"),  # both turn, and with many labels the peak is at the end
        ([0, 2, 1], [0, 2, 1], 0.01, "partly supported"),  # the peak does not move
        ([0, 1, 2], [0, 1, 2], 0.01, "not supported"),  # both stay high at the maximum of the proxy
        ([0, 1, 2], [0, 2, 1], 0.01, "not supported"),  # the peak comes earlier with many labels
        ([0, 1, 1], [0, 1, 1], 3.0, "inconclusive"),
    ],
)
def test_the_rule_gives_every_outcome_it_names(few, many, noise, expected):
    rows, settings = made_up((few, many), noise=noise), OverOptimisation(labels=(8, 16))
    assert decide(settings, claim.summarise_rows(settings, rows), rows).outcome == expected


def test_the_shift_of_the_peak_compares_the_peaks_of_each_seed():
    """By hand: with few labels gold is highest at KL 1, with many at KL 4: √KL is larger by 1."""
    shifts = peak_shifts(OverOptimisation(labels=(8, 16)), made_up(([0, 2, 1], [0, 1, 2])))
    assert shifts == pytest.approx(np.ones(6))


@pytest.mark.parametrize("scale", SCALES)
def test_a_quick_run_ends_in_a_verdict_with_finite_numbers_and_a_picture(found, scale):
    """Every trajectory begins at π_ref with no gain, and the picture names its axes."""
    result = found(scale)
    three = (result.settings, result.summary, result.runs)
    assert set(METHODS) <= set(result.runs["road"])
    start = result.runs[result.runs["place"] == 0]
    assert start[["gold", "proxy"]].abs().max().max() < 1e-9 and start["kl"].abs().max() < 1e-4
    assert result.verdict.outcome in ("supported", "partly supported", "not supported", "inconclusive")
    for name, number in result.verdict.numbers.items():
        assert np.isfinite(number).all(), name
    for axes in figure(*three).axes:
        assert axes.get_title(loc="left") and axes.get_xlabel() and "[" in axes.get_ylabel()


@pytest.mark.parametrize("scale", SCALES[:2])
def test_the_proxy_of_the_optimum_never_falls_along_its_trajectory(found, scale):
    """E[r_φ] under π_ref exp(r_φ/β)/Z falls in β: its derivative in 1/β is a variance."""
    rows = found(scale).runs
    for _, part in rows[rows["road"] == "optimum"].groupby(["seed", "kind", "labels"]):
        part = part.sort_values("place")
        assert (part["proxy"].diff().dropna() > -1e-9).all() and (part["kl"].diff().dropna() > -1e-9).all()


@pytest.mark.parametrize("scale", SCALES[:2])
def test_no_trajectory_has_more_proxy_than_the_optimum_with_its_kl(found, scale):
    """The optimum is the frontier of the proxy. Best-of-n and trained policies are on it or below."""
    rows = found(scale).runs
    for (_, _), part in rows[rows["kind"] == "full"].groupby(["seed", "labels"]):
        best = part[part["road"] == "optimum"].sort_values("kl")
        for _, other in part[part["road"] != "optimum"].iterrows():
            # Between two places of the concave frontier the chord lies below: a little slack for the spacing of β.
            if other["kl"] < best["kl"].max():
                bound = np.interp(other["kl"], best["kl"], best["proxy"])
                assert other["proxy"] <= bound + 0.02 * max(best["proxy"].max(), 0.1)


def test_the_limited_reward_model_sees_only_its_features():
    """On the tree it is additive: fitted to gold by least squares it leaves the bigrams over; features fit shapes."""
    world, features = make_world("tree", 0)
    model = PartReward(world, features)
    with torch.no_grad():
        model.weight.copy_(torch.arange(32, dtype=torch.float64).reshape(1, 32))
        scores = model(world.prompts, world.responses)
    ids = world.responses.ids[0, 77]
    assert scores[0, 77].item() == sum(8 * t + int(v) for t, v in enumerate(ids))


def test_the_bandits_gold_is_mostly_linear_in_the_features():
    """0.8² of the variance is the linear part's: R² of the regression is near 0.64, and below 1."""
    found = []
    for seed in range(6):
        world, features = make_world("bandit", seed)
        for x in range(2):
            design = torch.cat([features[x, 0], torch.ones(64, 1, dtype=torch.float64)], 1)
            gold = world.rewards()[x]
            rest = gold - design @ torch.linalg.lstsq(design, gold.unsqueeze(-1)).solution.squeeze(-1)
            found.append(1 - (rest.var() / gold.var()).item())
    assert 0.5 < np.mean(found) < 0.85


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_the_gold_reward_saturates_in_each_feature_and_has_unit_variance(scale):
    """r* is linear in 1 − exp(−φ), exactly, and not in φ. On the tree φ counts the tokens of a response."""
    world, features = saturating_world(scale, 3)
    gold, places = world.rewards(), torch.arange(world.tree.depth)
    amount = features[:, places, world.tree.responses.ids].sum(-2)
    assert gold.std(-1) == pytest.approx([1.0] * len(gold))
    for x in range(len(gold)):

        def left(design, gold=gold[x]):
            design = torch.cat([design, torch.ones(len(design), 1, dtype=torch.float64)], 1)
            rest = gold - design @ torch.linalg.pinv(design) @ gold
            return float(rest.var())

        assert left(1 - (-amount[x]).exp()) < 1e-20 < 0.02 < left(amount[x])
    if scale == "tree":
        assert (amount.sum(-1) == 4).all()


def test_best_of_n_on_the_bandit_is_the_exact_one(found):
    """One row recomputed from the run's own reward model."""
    result = found("bandit")
    setup = _exact_setup(result.settings, 0, result.settings.labels[0], "full")
    row = result.runs.query("road == 'best-of-n' and seed == 0 and kind == 'full' and pressure == 8").iloc[0]
    policy = exact.best_of_n(setup.world.log_ref(), setup.learned_rewards, 8)
    assert row["kl"] == pytest.approx(exact.kl(policy, setup.world.log_ref()).mean().item())


def test_a_place_s_gold_proxy_and_kl_are_those_worked_by_hand():
    """π_ref = (½, ½) and π = (¼, ¾) move a quarter of the mass to the second response.

    Gold (0, 1) then gains ¼, and the proxy (3, 0) loses ¾. The KL is ¼ log ½ + ¾ log 1½.
    """
    ref, gold, proxy = (torch.tensor([row], dtype=torch.float64) for row in ([0.5, 0.5], [0.0, 1.0], [3.0, 0.0]))
    setup = SimpleNamespace(world=SimpleNamespace(log_ref=ref.log, rewards=lambda: gold), learned_rewards=proxy)
    here = _position(setup, torch.tensor([[0.25, 0.75]], dtype=torch.float64).log())
    assert here == pytest.approx({"gold": 0.25, "proxy": -0.75, "kl": 0.25 * math.log(0.5) + 0.75 * math.log(1.5)})


def test_only_the_noisy_reward_model_learns_from_flipped_labels():
    """The labels of the seed are sampled again, with the settings' noise for "noisy", without noise for "full"."""
    settings = OverOptimisation(scale="bandit", quick=True, noise=0.25, reward_steps=1, progress=False)
    noisy, full = (_exact_setup(settings, 3, 200, kind) for kind in ("noisy", "full"))
    again = {noise: full.world.preferences(200, seeded(3, 20), noise=noise).responses.ids for noise in (0.0, 0.25)}
    assert torch.equal(noisy.pairs.responses.ids, again[0.25])
    assert torch.equal(full.pairs.responses.ids, again[0.0])
    assert not torch.equal(again[0.25], again[0.0])


def test_bad_settings_are_refused():
    """Labels that fall, noise of a half, more places than steps."""
    for bad in ({"labels": (200, 50)}, {"labels": (50,)}, {"noise": 0.5}, {"places": 500}):
        with pytest.raises(LabError):
            OverOptimisation(**bad)
