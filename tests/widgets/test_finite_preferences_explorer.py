"""DPO's exact optimum on finite labels: against DPO itself, against closed forms, and every control's picture."""

import itertools
import json
import math

import pytest
import torch

from rlhf_lab import bradley_terry, exact
from rlhf_lab.errors import LabError
from rlhf_lab.training import seeded
from rlhf_lab.widgets.finite_preferences import finite_preferences_explorer

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
REWARD = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64)
NAMES = ["a", "b", "c", "d"]


def explorer():
    return finite_preferences_explorer(REF, REWARD, NAMES)


def test_the_picture_shows_exact_numbers():
    picture = explorer().picture(number=1000.0, seed=3, beta=0.7)
    wins = bradley_terry.draw_wins(REWARD, bradley_terry.pair_distribution(REF), (30_000,), seeded(3))
    assert wins.sum() == 30_000
    bars = {layer.style: layer.height for layer in picture.panels[0].layers}
    assert torch.allclose(bars["optimal"], exact.optimal_policy(REF, REWARD, 0.7).exp())
    numbers = {n.symbol: n.value for n in picture.numbers}
    regret = exact.regret(bars["dpo"].log(), REF, REWARD, 0.7)
    assert numbers["regret"] == pytest.approx(float(regret), abs=1e-12)
    assert numbers["KL(π̂‖π*)"] == pytest.approx(numbers["regret"] / 0.7)
    price = exact.label_price(REF, REWARD, 0.7, bradley_terry.pair_distribution(REF))
    assert numbers["φ / N"] == pytest.approx(float(price) / 1000)
    assert numbers["regret at N → ∞"] == pytest.approx(0.0, abs=1e-9)


def test_the_road_in_the_picture_passes_through_the_point():
    picture = explorer().picture(number=1000.0, seed=3, noise=0.1)
    layers = {layer.style: layer for layer in picture.panels[1].layers}
    at = [float(x) for x in layers["dpo"].x].index(1000.0)
    assert float(layers["dpo"].y[at]) == pytest.approx(layers["policy"].y[0], rel=1e-6)


def test_every_combination_of_controls_gives_a_picture():
    shown = explorer()
    for number, seed, noise, beta in itertools.product((10.0, 57.0, 30_000.0), (0, 20), (0.0, 0.4), (0.05, 0.5, 5.0)):
        picture = shown.picture(number=number, seed=seed, noise=noise, beta=beta)
        assert not picture.failed and len(picture.panels) == 2 and "nan" not in picture.text
        for bars in picture.panels[0].layers:
            assert sum(bars.height.tolist()) == pytest.approx(1)
        assert all(math.isfinite(n.value) for n in picture.numbers)
    states = shown.states(stops=2)
    json.dumps(states, allow_nan=False)


def test_moving_a_control_moves_the_picture():
    shown = explorer()
    before = shown.text
    shown.inputs["number"].value = 3000.0
    assert shown.text != before and "3000 labels" in shown.text


def test_what_cannot_be_shown_is_refused_by_name():
    with pytest.raises(LabError, match="4"):
        finite_preferences_explorer(REF, REWARD, ["a"])
    with pytest.raises(LabError, match="-inf"):
        finite_preferences_explorer(torch.tensor([1.0, 0.0]).log(), torch.zeros(2), ["a", "b"])
