"""What the comparison hands to its methods: labels, seeds, β, and numbers of the table, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.experiments import compare
from rlhf_lab.experiments.compare import METHODS, Compare, Run, _plus_minus, frontier_of
from rlhf_lab.training import seeded

SETTINGS = Compare(seeds=1, steps=2, labels=40, noise=0.3, beta=0.7, methods=("dpo",), progress=False)
WORLD = SETTINGS.make_world()


def test_labels_are_drawn_by_number_seed_and_noise():
    asked = []

    class Noted:
        def preferences(self, number, generator, noise=0.0):
            asked.append((number, generator.initial_seed(), noise))

    for seed in (0, 3):
        assert Run(SETTINGS, Noted(), seed).pairs is None
    assert asked == [(40, seeded(seed, 20).initial_seed(), 0.3) for seed in (0, 3)]


def test_every_fit_of_every_seed_has_random_numbers_of_its_own():
    seeds = {Run(SETTINGS, WORLD, seed).training(stream).seed for seed in range(3) for stream in range(1, 23)}
    assert len(seeds) == 3 * 22


@pytest.mark.parametrize("key", ["dpo", "dpo-ipo", "dpo-hinge-norm", "sft", "plug-in"])
def test_methods_learn_from_the_labels_at_the_comparison_s_beta(key, monkeypatch):
    """The pairwise losses at β = 0.7, SFT on the chosen responses; the plug-in knows the learned reward alone."""
    run, seen = Run(SETTINGS, WORLD, 0), []
    learned = torch.randn(4, 10, dtype=torch.float64, generator=seeded(1))
    run.__dict__["learned_rewards"] = learned
    monkeypatch.setattr(compare, "dpo", lambda policy, ref, pairs, settings, *more: seen.append((pairs, settings)))
    monkeypatch.setattr(compare, "sft", lambda policy, prompts, responses, *more: seen.append(responses))
    out = METHODS[key].run(run)
    if key == "plug-in":
        assert torch.allclose(out.policy, exact.optimal_policy(WORLD.log_ref(), learned, 0.7)) and not seen
    elif key == "sft":
        assert seen[0].ids.tolist() == run.pairs.responses.ids[:, :1].tolist()
    else:
        (pairs, settings), loss = seen[0], {"dpo": "sigmoid-norm"}.get(key, key.removeprefix("dpo-"))
        assert pairs is run.pairs and (settings.beta, settings.loss) == (0.7, loss)


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

    def method(run):
        seen.append(run.seed)
        return compare.Outcome(run.world.reference)

    monkeypatch.setitem(compare.METHODS, "dpo", SimpleNamespace(run=method, exact=False, label="DPO"))
    compare.compare(replace(SETTINGS, seeds=3))
    assert seen == [0, 1, 2]
