"""The explorer of ReST's filter: every state, and its numbers against the definitions."""

import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.widgets.rest_filter import (
    curves_of,
    filter_limit,
    rest_filter_explorer,
    rest_filter_picture,
    scaled,
)

torch.set_num_threads(1)

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
R = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64)
NAMES = ["a", "b", "c", "d"]


def shown(threshold: float, beta: float = 0.5):
    return rest_filter_picture(P.log(), R, scaled(R), threshold, beta, NAMES)


def test_scores_run_from_zero_to_one_over_all_prompts_together():
    """(r − (−1)) / (3 − (−1)) by hand: the second prompt's best is 0.5, and a bar above it drops the whole prompt."""
    reward = torch.tensor([[-1.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    assert scaled(reward).tolist() == [[0.0, 1.0], [0.25, 0.5]]
    log_ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert filter_limit(log_ref, scaled(reward)[1], 0.6)[1] is False


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [0.4, 0.3, 0.2, 0.1]),  # everything, the lowest score too
        (0.1, [0.0, 0.5, 1 / 3, 1 / 6]),  # without a: divided by 0.6
        (0.25, [0.0, 0.0, 2 / 3, 1 / 3]),  # b's score is exactly 0.25, and the filter is strict
        (0.9, [0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_the_filters_bars_are_those_worked_by_hand(threshold, expected):
    bars = {layer.style: layer.height.tolist() for layer in shown(threshold).panels[0].layers}
    assert bars["rest"] == pytest.approx(expected, abs=1e-12)
    assert bars["reference"] == pytest.approx(P.tolist())


def test_its_numbers_are_those_of_the_definitions():
    """π_τ = (0, 0, ⅔, ⅓): E[r] = 7/6; each ratio to the reference is 1/0.3, so KL = log(10/3)."""
    numbers = {n.symbol: n.value for n in shown(0.5).numbers}
    assert numbers["P(score > τ)"] == pytest.approx(0.3)
    assert numbers["E[r] of π_τ"] == pytest.approx(7 / 6)
    assert numbers["KL(π_τ‖π_ref)"] == pytest.approx(math.log(10 / 3))
    # Regret by its definition: J(π*) = β log Z, J(π_τ) = 7/6 − β log(10/3).
    log_z = math.log(sum(p * math.exp(r / 0.5) for p, r in zip(P.tolist(), R.tolist(), strict=True)))
    assert numbers["regret"] == pytest.approx(0.5 * log_z - (7 / 6 - 0.5 * math.log(10 / 3)))


@pytest.mark.parametrize(("threshold", "share"), [(0.0, 1.0), (0.1, 0.6), (0.25, 0.3), (0.75, 0.1), (1.0, 0.0)])
def test_the_share_that_passes_leaves_out_scores_at_the_threshold(threshold, share):
    """Scores 0, ¼, ¾ and 1 with probabilities .4, .3, .2 and .1: only scores above τ count, and at τ = 0 all do."""
    assert {n.symbol: n.value for n in shown(threshold).numbers}["P(score > τ)"] == pytest.approx(share)


def test_no_threshold_and_no_n_lies_above_the_frontier_and_none_reaches_pi_star():
    (kl, reward), every_tau, every_n = curves_of(P.log(), R, scaled(R))
    order = kl.argsort()
    for costs, gains in (every_tau, every_n):
        for cost, gain in zip(costs.tolist(), gains.tolist(), strict=True):
            at = torch.searchsorted(kl[order], cost).clamp(max=len(kl) - 1)
            assert gain <= float(reward[order][at]) + 1e-6
    for threshold in (0.0, 0.1, 0.5, 0.9):
        assert {n.symbol: n.value for n in shown(threshold).numbers}["regret"] > 0.05


def test_a_prompt_of_which_nothing_passes_stays_at_the_reference_and_the_words_say_so():
    reward = torch.tensor([[0.0, 1.0], [0.0, 0.4]], dtype=torch.float64)
    log_ref = torch.tensor([[0.5, 0.5], [0.7, 0.3]], dtype=torch.float64).log()
    explorer = rest_filter_explorer(log_ref, reward, ["a", "b"], threshold=0.5)
    explorer.inputs["prompt"].value = 1
    assert "no response of this prompt" in explorer.text
    assert explorer.chart.picture["panels"][0]["layers"][1]["height"] == pytest.approx([0.7, 0.3])


def test_every_combination_of_the_controls_gives_a_picture():
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(3, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    log_ref[2] = torch.tensor([0.0, 0, 0.5, 0.5, 0], dtype=torch.float64).log()  # no mass on three of them
    reward = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    reward[1] = 0.3  # all alike
    explorer = rest_filter_explorer(log_ref, reward, list("abcde"), prompts=["x", "y", "z"])
    states = explorer.states(stops=6)
    assert len(states["pictures"]) == math.prod(len(c["names"]) for c in states["controls"])
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2
        assert "nan" not in picture["text"] and "inf" not in picture["text"]
        for layer in picture["panels"][0]["layers"]:
            assert sum(layer["height"]) == pytest.approx(1, abs=1e-5)
    json.dumps(states, allow_nan=False)


def test_raising_the_threshold_moves_the_filters_point_to_the_best_response():
    explorer = rest_filter_explorer(P.log(), R, NAMES)
    explorer.inputs["threshold"].value = 0.99
    point = explorer.chart.picture["panels"][1]["layers"][-1]
    assert (point["x"][0], point["y"][0]) == pytest.approx((-math.log(0.1), 1.5), rel=1e-5)


def test_a_very_small_price_puts_pi_star_where_the_highest_threshold_leads():
    """β → 0 is the one price at which the two agree."""
    limit, _ = filter_limit(P.log(), scaled(R), 0.99)
    star = exact.optimal_policy(P.log(), R, 0.01)
    assert limit.exp().tolist() == pytest.approx(star.exp().tolist(), abs=1e-9)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(LabError, match="4 responses"):
        rest_filter_explorer(P.log(), R, ["a", "b"])
    with pytest.raises(LabError, match="1 prompt and 4 responses, but the names are those of 2 prompts"):
        rest_filter_explorer(P.log(), R, NAMES, prompts=["x", "y"])
