"""Closed forms of drifting rewards against brute force, simulation and `exact.label_price`."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.worlds import nonstationary
from rlhf_lab.worlds.nonstationary import nonstationary_bandit

torch.set_num_threads(1)


def test_the_price_of_a_table_is_the_label_price():
    """The linear model with a full basis is a table: another file, another algorithm, the same number."""
    at = nonstationary_bandit(3, 6, seed=2)
    mass = at.log_ref.exp()
    pairs = mass.unsqueeze(-1) * mass.unsqueeze(-2) * (1 - torch.eye(6))
    pairs = pairs / pairs.sum((-1, -2), keepdim=True)
    expected = exact.label_price(at.log_ref, at.first, 0.5, pairs)
    torch.testing.assert_close(
        exact.drift.price(nonstationary.basis(torch.eye(6)), at.log_ref, at.first, 0.5), expected
    )


def test_being_late_costs_the_drift_cost_times_the_squared_angle():
    at = nonstationary_bandit(3, 6, seed=2)
    angle = 1e-3
    late = exact.optimal_policy(at.log_ref, nonstationary.turned(at.first, at.other, -angle), at.beta)
    lost = exact.regret(late, at.log_ref, at.first, at.beta)
    cost = exact.drift.drift_cost(at.log_ref, at.first, at.velocity(0), at.beta)
    torch.testing.assert_close(lost / angle**2, cost, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("window", "every"), [(1, 1), (8, 1), (5, 4)])
def test_a_windows_cost_is_estimation_and_the_mean_squared_age(window, every):
    """Ages by hand: labels 1 … W rounds old at the fit, the fit 0 … k − 1 rounds old when used."""
    mean = sum(range(1, window + 1)) / window
    squares = [(mean + a) ** 2 for a in range(every)]
    expected = 30 / (7 * window) + 0.01 * sum(squares) / every
    assert exact.drift.window_regret(30, 0.01, 7, window, every) == pytest.approx(expected)


def test_the_best_window_is_the_least_of_a_fine_grid_and_infinite_without_drift():
    for every in (1, 6):
        best = exact.drift.best_window(30, 0.002, 50, every)
        grid = torch.linspace(0.5, 60, 20_001, dtype=torch.float64).tolist()
        by_hand = min(grid, key=lambda w: exact.drift.window_regret(30, 0.002, 50, w, every))
        assert best == pytest.approx(by_hand, abs=5e-3)
    assert exact.drift.best_window(30, 0.0, 50) == math.inf


def test_fading_labels_at_their_best_lose_as_much_as_the_best_window_when_both_are_long():
    """τ = 1/(1 − λ): P/(2nτ) + Dτ² is least at (P/4nD)^⅓, W at (2P/nD)^⅓; both lose 1.5 (P/n)^⅔ (D/2)^⅓."""
    drift = 1e-9
    fading = min(exact.drift.forgetting_regret(30, drift, 50, 1 - 1 / tau) for tau in range(10, 3000))
    window = exact.drift.window_regret(30, drift, 50, exact.drift.best_window(30, drift, 50))
    assert fading == pytest.approx(window, rel=0.01)


def test_the_best_rhythm_is_the_least_of_all_whole_windows_and_rhythms():
    for cost in (0.0, 0.3, 20.0):
        found = exact.drift.best_rhythm(30, 0.002, 50, cost)
        every = {
            (w, k): exact.drift.window_regret(30, 0.002, 50, w, k) + cost / k
            for w in range(1, 40)
            for k in range(1, 60)
        }
        assert found[2] == pytest.approx(min(every.values())) and every[found[:2]] == pytest.approx(found[2])
    with pytest.raises(LabError, match="no best rhythm"):
        exact.drift.best_rhythm(30, 0.0, 50, 1.0)


def test_at_the_break_even_drift_both_lose_alike_and_on_either_side_they_do_not():
    def gap(drift, labels):
        kept = exact.drift.best_deployed(30, drift, labels, 24)
        return exact.drift.once_regret(30, drift, labels, 24) - exact.drift.deployed_regret(30, drift, labels, 24, kept)

    for labels in (20, 200):
        even = exact.drift.break_even(30, labels, 24)
        assert gap(even, labels) == pytest.approx(0, abs=1e-9)
        assert gap(0.9 * even, labels) < 0 < gap(1.1 * even, labels)
    assert exact.drift.break_even(30, 20, 24) == pytest.approx(10 * exact.drift.break_even(30, 200, 24))


def test_labels_bought_once_cost_their_price_and_the_mean_square_of_the_rounds_since():
    """P = 6, D = ½, n = 2, T = 3: 6/(2·3) + ½ (1 + 4 + 9)/3."""
    assert exact.drift.once_regret(6.0, 0.5, 2, 3) == pytest.approx(1 + 7 / 3)
