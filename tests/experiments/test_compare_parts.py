"""What the comparison gives to its methods: labels, seeds, β; and numbers of its table, by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.experiments import compare, methods
from rlhf_lab.experiments.compare import (
    HEADERS,
    Compare,
    Comparison,
    _plus_minus,
    exact_setup,
    frontier_of,
    train_compared,
)
from rlhf_lab.experiments.methods import METHODS, Method
from rlhf_lab.training import seeded

SETTINGS = Compare(seeds=1, steps=2, labels=40, noise=0.3, beta=0.7, methods=("dpo",), progress=False)
WORLD = SETTINGS.make_world()


def test_labels_are_drawn_by_number_seed_and_noise(monkeypatch):
    asked = []

    def preferences(number, generator, policy=None, noise=0.0):
        asked.append((number, generator.initial_seed(), policy, noise))

    monkeypatch.setattr(WORLD, "preferences", preferences)
    for seed in (0, 3):
        assert exact_setup(SETTINGS, WORLD, seed).pairs is None
    assert asked == [(40, seeded(seed, 20).initial_seed(), WORLD.reference, 0.3) for seed in (0, 3)]


def test_every_fit_of_every_seed_has_random_numbers_of_its_own():
    seeds = {exact_setup(SETTINGS, WORLD, seed).training(stream).seed for seed in range(3) for stream in range(1, 23)}
    assert len(seeds) == 3 * 22


@pytest.mark.parametrize("key", ["dpo", "dpo-ipo", "dpo-hinge-norm", "sft", "plug-in"])
def test_methods_learn_from_the_labels_at_the_comparison_s_beta(key, monkeypatch):
    """The pairwise losses at β = 0.7, SFT on the chosen responses; the plug-in knows the learned reward alone."""
    setup, seen = exact_setup(SETTINGS, WORLD, 0), []
    learned = torch.randn(4, 10, dtype=torch.float64, generator=seeded(1))
    setup.__dict__["learned_rewards"] = learned
    monkeypatch.setattr(methods, "dpo", lambda policy, ref, pairs, settings, *more: seen.append((pairs, settings)))
    monkeypatch.setattr(methods, "sft", lambda policy, prompts, responses, *more: seen.append(responses))
    out = train_compared(key, setup)
    if key == "plug-in":
        assert torch.allclose(out.policy, exact.optimal_policy(WORLD.log_ref(), learned, 0.7)) and not seen
    elif key == "sft":
        assert seen[0].ids.tolist() == setup.pairs.responses.ids[:, :1].tolist()
    else:
        (pairs, settings), loss = seen[0], {"dpo": "sigmoid-norm"}.get(key, key.removeprefix("dpo-"))
        assert pairs is setup.pairs and (settings.beta, settings.loss) == (0.7, loss)


@pytest.mark.parametrize(("key", "steps"), [("dpo", 12), ("ppo", 12), ("rest", 4), ("online", 6)])
def test_ppo_has_as_many_rounds_as_others_have_steps_and_a_round_of_online_dpo_half_as_many(key, steps, monkeypatch):
    seen = []
    entry = replace(METHODS[key], trainer=lambda setup, policy, beta, training, settings: seen.append(training) or 0)
    monkeypatch.setitem(METHODS, key, entry)
    train_compared(key, exact_setup(replace(SETTINGS, steps=12), WORLD, 0))
    assert seen[0].steps == steps


def test_the_frontier_runs_from_a_hundredth_to_a_hundred_times_beta():
    found = frontier_of(WORLD, 0.7)
    assert (found["beta"].iloc[0], found["beta"].iloc[-1], len(found)) == (pytest.approx(0.007), pytest.approx(70), 200)


def test_plus_minus_is_half_of_the_interval():
    row = pd.Series({"reward_low": 1.0, "reward_high": 1.5})
    assert _plus_minus(row, "reward") == " ± 0.2500"
    assert _plus_minus(pd.Series({"reward_low": 1.0, "reward_high": 1.0}), "reward") == ""


def test_a_comparison_of_two_seeds_trains_each_on_its_own_labels(monkeypatch):
    """Also where the first seed's row is there already: what the methods of a seed share is made anew for each."""
    seen = []

    def method(setup):
        seen.append(setup.seed)
        return setup.reference

    monkeypatch.setitem(METHODS, "dpo", Method("DPO", untrained=method))
    compare.compare(replace(SETTINGS, seeds=3))
    assert seen == [0, 1, 2]


def test_the_table_fits_into_a_hundred_columns_and_has_every_number_and_label_once():
    """Eight columns of estimates with intervals and the longest labels: in two blocks, each with the labels."""
    rows = [
        {"method": key, "label": method.label, "labels": 20_000, "samples": 1_234_567}
        | {metric: 10.0 + place for place, metric in enumerate(HEADERS)}
        | {
            f"{metric}_{side}": 10.0 + place + sign
            for place, metric in enumerate(HEADERS)
            for side, sign in (("low", -1), ("high", 1))
        }
        for key, method in METHODS.items()
    ]
    table = Comparison(Compare(progress=False), pd.DataFrame(), pd.DataFrame(rows), pd.DataFrame()).table()
    assert max(map(len, table.splitlines())) <= 100
    assert all(table.count(name) == 1 for name in ("E[r]", "KL to π_ref", "regret", "KL to π*", "samples"))
    assert table.count("13.0000 ± 1.0000") == table.count("1,234,567") == len(METHODS)
