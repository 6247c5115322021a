"""Claim 8: what is counted is what was spent, the rule, and quick runs of every scale."""

import math
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.cost import memory as cost_memory
from rlhf_lab.experiments.claims.cost import run as cost
from rlhf_lab.experiments.claims.cost.report import decide, decisive, leads
from rlhf_lab.experiments.claims.cost.run import EXPERIMENT
from rlhf_lab.experiments.claims.cost.settings import Cost
from rlhf_lab.experiments.claims.cost.setup import TRAINED, CostSetup, Meter, held_bytes, train
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.setup import SetupBudget
from rlhf_lab.experiments.setup_text import TextSetup


@pytest.mark.parametrize(
    "scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow), pytest.param("small", marks=pytest.mark.slow)]
)
def test_a_quick_run_of_each_scale_ends_in_a_verdict_and_a_picture(scale, tmp_path, monkeypatch):
    """Memory is made up here, PPO's the larger: each measurement starts a process, and one test below does that."""
    held = {"dpo": 100.0, "ppo": 150.0}
    made_up_memory = {
        m: {"when": "memory", "libraries": 200.0, "peak": 200 + own, "own": own} for m, own in held.items()
    }
    monkeypatch.setattr(
        cost, "measure", lambda settings, seed, method: made_up_memory[method] | {"own": held[method] + seed}
    )
    settings = Cost(scale=scale, quick=True, progress=False, out=tmp_path)
    found = runner.experiment_run(EXPERIMENT, settings)
    runner.save(EXPERIMENT, found, tmp_path)
    assert set(found.best_config) == set(TRAINED) and set(found.best_config.values()) <= set(settings.rates)
    assert len(found.search) == len(TRAINED) * len(settings.rates) and (found.search["seed"] >= 1000).all()
    end = found.runs[found.runs["when"] == "end"].set_index(["seed", "method"])
    drawn = {m: set(end.xs(m, level="method")["samples"]) for m in TRAINED}
    assert drawn["sft"] == drawn["dpo"] == {0}
    # By the settings alone: PPO draws R in each of steps / 2 rounds, RSO 32 a prompt, RAFT and ReST 8.
    assert drawn["ppo"] == {settings.responses * (settings.steps // 2)}
    assert drawn["rso-rso-sample-rank"] == {32 * settings.prompts}
    assert drawn["raft"] == drawn["rest"] == {8 * settings.prompts}
    assert drawn["online"] == {2 * settings.labels}
    assert (end["step"].drop("best-of-n", level="method") == settings.steps).all(), "as many optimiser steps for all"
    numbers = found.verdict.numbers
    assert numbers["samples_ppo"].mean == settings.responses * (settings.steps // 2) and numbers["networks_ppo"] == 4
    assert all(one == one for one in numbers.values()) and {"lead_rso", "spread_dpo", "level"} <= set(numbers)
    for axes in EXPERIMENT.figure(settings, found.summary, found.runs).axes:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    memory = found.runs[found.runs["when"] == "memory"]
    if scale == "small":
        # By hand: the geometric mean of 100/150 and 101/151.
        ratio = math.sqrt(100 / 150 * 101 / 151)
        assert set(memory["method"]) == {"dpo", "ppo"} and decisive(found.runs)["memory_ratio"].mean == pytest.approx(
            ratio
        )
    else:
        assert memory.empty


@pytest.mark.skipif(sys.platform != "linux", reason="the system keeps no account of the peak")
@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    """ReST needs scores that differ; weights, gradients, moments and states of a million weights are tens of MiB."""
    found = cost_memory.measure(Cost(scale="small", quick=True), 0, "rest")
    assert 20 < found["own"] == pytest.approx(found["peak"] - found["libraries"])


def test_bytes_held_are_counted_by_hand():
    """A table of 4 × 10 doubles: 320 bytes. Trained: 4 numbers each; frozen: 1. PPO's critic: 4 doubles more."""
    shared = CostSetup(Cost(quick=True), 0)
    assert held_bytes(shared, "sft") == 4 * 320
    assert held_bytes(shared, "dpo") == held_bytes(shared, "online") == 5 * 320
    assert held_bytes(shared, "ppo") == 4 * (320 + 32) + 2 * 320
    assert held_bytes(shared, "rso-rso-sample-rank") == 6 * 320
    assert [METHODS[m].networks for m in ("sft", "dpo", "ppo")] == [1, 2, 4]


def test_the_level_lies_halfway_to_the_optimum():
    shared = CostSetup(Cost(quick=True), 0)
    world = shared.setup.world
    start = (world.log_ref().exp() * world.rewards()).sum(-1).mean().item()
    top = (world.optimal(0.5).exp() * world.rewards()).sum(-1).mean().item()
    assert shared.level == pytest.approx((start, (start + top) / 2))
    assert shared.best_of[1] == pytest.approx(start), "the best of one is the reference"


def test_the_best_of_n_on_text_is_the_gold_reward_of_each_group_s_highest_score():
    """Two prompts with 16 made-up samples each, in groups of n that lie side by side, with `max` over lists."""
    scores = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    gold = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, y = Tokens.full(torch.zeros(2, 1, dtype=torch.long)), Tokens.full(torch.zeros(2, 16, 1, dtype=torch.long))
    task = SimpleNamespace(
        world=SimpleNamespace(prompts=lambda *_: x),
        tokenizer=None,
        reference=SimpleNamespace(device="cpu", sample=lambda *_: y),
        gold=lambda *_: gold,
    )
    shared = CostSetup(Cost(scale="small", quick=True), 0)
    vars(shared).update(setup=TextSetup(task, SetupBudget(), 0), fitted=(lambda *_: scores, 0.0))
    assert list(shared.best_of) == [1, 2, 4, 8, 16]
    for n, value in shared.best_of.items():
        best = [
            max(zip(s[i : i + n], g[i : i + n], strict=True))[1]
            for s, g in zip(scores.tolist(), gold.tolist(), strict=True)
            for i in range(0, 16, n)
        ]
        assert value == pytest.approx(sum(best) / len(best))


def test_the_meter_counts_draws_and_stops_where_it_is_told_to():
    shared = CostSetup(Cost(quick=True), 0)
    policy = shared.setup.reference
    with Meter(policy) as meter:
        policy.sample(shared.setup.world.prompts, 3)
        with meter.uncounted():
            policy.sample(shared.setup.world.prompts, 5)
        before = meter.seconds
        with meter.stopped():
            policy.sample(shared.setup.world.prompts, 5)
            begin = time.process_time()
            while time.process_time() - begin < 0.05:
                torch.ones(10).sum()
        assert meter.samples == 4 * 3 and 0 <= meter.seconds - before < 0.05
    assert "sample" not in policy.__dict__, "the policy is left as it was"


def made_up(objectives, memory=None, drawn=0):
    """Rows of six seeds: J of each method with a little noise that differs from method to method."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for seed in range(6):
        for place, method in enumerate((*TRAINED, "best-of-n")):
            j = objectives.get(method, 0.0) + 0.01 * torch.randn((), generator=generator).item()
            samples = {"dpo": drawn, "sft": 0}.get(method, 100)
            numbers = {"reward": 1.0, "kl": 1.0, "objective": j, "seconds": 1.0 + place, "samples": samples, "step": 10}
            reach = {"reached": 1, "to_seconds": 1.0, "to_samples": 5, "to_steps": 5, "level": 0.5, "start": 0.0}
            size = {"held": {"dpo": 5.0, "ppo": 9.0}.get(method, 4.0), "networks": 2, "an_answer": 1}
            rows.append({"seed": seed, "method": method, "when": "end", **numbers, **reach, **size})
        for place, (method, own) in enumerate((memory or {}).items()):
            wobble = 1.05 if (seed + place) % 2 else 0.95  # so that equal memories give ratios on both sides of 1
            rows.append(
                {"seed": seed, "method": method, "when": "memory", "own": own * wobble, "peak": 500, "libraries": 1}
            )
    return pd.DataFrame(rows)


_RSO = "rso-rso-sample-rank"
MIXED = {"dpo": 0.5, "ppo": 0.0, _RSO: 1.0}


@pytest.mark.parametrize(
    "runs, outcome",
    [
        (made_up(MIXED), "supported"),
        (made_up({"dpo": 0.5, "ppo": 1.0}, {"dpo": 100, "ppo": 200}), "supported"),
        (made_up({"dpo": 2.0}), "partly supported"),  # above both
        (made_up({"dpo": -2.0}), "partly supported"),  # below both
        (made_up({}), "partly supported"),  # nothing apart
        (made_up(MIXED, {"dpo": 200, "ppo": 200}), "partly supported"),
        (made_up({}, {"dpo": 300, "ppo": 200}, drawn=50), "not supported"),
    ],
)
def test_the_rule_can_say_everything_it_names(runs, outcome):
    """Sampling is counted, so the first part is never open, and no outcome is "inconclusive"."""
    settings = Cost()
    found = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert found.outcome == outcome
    assert found.thresholds["memory_ratio"] == 0.9


def test_differences_are_paired_within_the_seed_and_ratios_are_geometric():
    runs = made_up(MIXED, {"dpo": 100, "ppo": 200})
    gaps, found = leads(runs), decisive(runs)
    assert set(gaps) == set(TRAINED) - {"dpo"} and gaps["ppo"].above and gaps[_RSO].below
    assert found["memory_ratio"].mean == pytest.approx(0.5, rel=0.1)
    exact_share = decisive(made_up(MIXED))["memory_ratio"]
    assert exact_share == pytest.approx([5 / 9] * 3)


def test_costs_are_means_over_the_seeds_that_got_there():
    runs = made_up(MIXED)
    lost = (runs["method"] == "dpo") & (runs["seed"] > 0)
    runs.loc[lost, ["to_seconds", "to_samples", "to_steps"]] = math.nan
    runs.loc[lost, "reached"] = 0
    runs.loc[runs["method"] == "sft", ["to_seconds", "to_samples", "to_steps"]] = math.nan
    runs.loc[runs["method"] == "sft", "reached"] = 0
    summary = EXPERIMENT.summarise(Cost(seeds=6), runs)
    numbers = decide(Cost(seeds=6), summary, runs).numbers
    assert numbers["to_seconds_dpo"].mean == 1.0 and (numbers["reached_dpo"], numbers["reached_ppo"]) == (1, 6)
    assert numbers["reached_sft"] == 0 and "to_seconds_sft" not in numbers


def test_bad_settings_are_refused():
    for wrong in ({"responses": 12}, {"labels": 3}, {"rates": (-1.0,)}, {"beta": 0.0}):
        with pytest.raises(LabError):
            Cost(**wrong)


def test_an_unknown_method_is_named():
    shared = CostSetup(Cost(quick=True), 0)
    with pytest.raises(LabError, match="no method 'drp'"):
        train("drp", shared, shared.setup.new_policy(), 0.1, Meter())
