"""KL estimators: values and gradients against closed forms, and a picture for every combination of the controls."""

import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import draw
from rlhf_lab.widgets.kl_estimators import (
    divergence_gradient,
    drifted,
    expected_loss_gradient,
    kl_estimators_explorer,
    kl_gradients_picture,
    kl_values_picture,
    moments,
)

torch.set_num_threads(1)

PI = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REF = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, -1.5], dtype=torch.float64)
NAMES = ["first", "second", "third"]


def by_hand(name: str) -> tuple[float, float]:
    """Mean and standard deviation under PI with `math` alone."""
    formula = {"k1": lambda k: k, "k2": lambda k: k * k / 2, "k3": lambda k: math.exp(-k) - 1 + k}[name]
    values = [formula(math.log(p / q)) for p, q in zip(PI.tolist(), REF.tolist(), strict=True)]
    mean = sum(p * v for p, v in zip(PI.tolist(), values, strict=True))
    return mean, math.sqrt(sum(p * (v - mean) ** 2 for p, v in zip(PI.tolist(), values, strict=True)))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_mean_and_spread_of_each_estimator_are_those_worked_by_hand(name):
    assert moments(PI.log(), REF.log(), name) == pytest.approx(by_hand(name))


def test_k1_and_k3_average_to_the_kl_of_the_worked_example_and_k2_does_not():
    """KL((.7, .2, .1)‖(.3, .3, .4)) = 0.3734."""
    assert moments(PI.log(), REF.log(), "k1")[0] == pytest.approx(0.3734, abs=5e-5)
    assert moments(PI.log(), REF.log(), "k3")[0] == pytest.approx(0.3734, abs=5e-5)
    assert abs(moments(PI.log(), REF.log(), "k2")[0] - 0.3734) > 5e-3


def test_gradients_as_losses_are_nothing_the_kl_and_the_other_kl():
    """Closed forms for a table of logits: ∇KL(π‖ref) = π (k − KL), ∇KL(ref‖π) = π − ref."""
    k = PI.log() - REF.log()
    forward = PI * (k - (PI * k).sum())
    back = PI - REF
    assert torch.allclose(divergence_gradient(PI.log(), REF.log()), forward, atol=1e-12)
    assert torch.allclose(divergence_gradient(PI.log(), REF.log(), True), back, atol=1e-12)
    for name, want in (("k1", torch.zeros(3).double()), ("k2", forward), ("k3", back)):
        assert torch.allclose(expected_loss_gradient(PI.log(), REF.log(), name), want, atol=1e-12), name
    assert (forward - back).abs().max() > 0.05


def test_the_drift_leads_from_the_reference_to_the_optimum():
    assert torch.allclose(drifted(REF.log(), REWARD, 0.0).exp(), REF)
    assert torch.allclose(drifted(REF.log(), REWARD, 2.0), exact.optimal_policy(REF.log(), REWARD, 0.5))


def test_the_values_picture_shows_exact_means_with_intervals_and_one_draw():
    picture = kl_values_picture(PI.log(), REF.log(), 64, 3, NAMES)
    layers = picture.panels[1].layers
    assert layers[0].at == pytest.approx(exact.kl(PI.log(), REF.log()).item())
    for layer, name in zip(layers[1:4], ("k1", "k2", "k3"), strict=True):
        mean, spread = by_hand(name)
        assert layer.y[0] == pytest.approx(mean)
        assert layer.high[0] - layer.low[0] == pytest.approx(2 * 1.96 * spread / 8)
    assert layers[4].y != kl_values_picture(PI.log(), REF.log(), 64, 4, NAMES).panels[1].layers[4].y


def test_draws_fall_into_the_interval_as_often_as_it_says():
    """200 seeds, k1 of 64 draws; the interval is exact up to normality. Binomial(200, .95): 4 sd = 12.3."""
    mean, spread = by_hand("k1")
    inside = 0
    for seed in range(200):
        got = kl_values_picture(PI.log(), REF.log(), 64, seed, NAMES).panels[1].layers[4].y[0]
        inside += abs(got - mean) < 1.96 * spread / 8
    assert abs(inside - 190) <= 12.3


def test_the_gradients_picture_puts_the_points_on_their_bars():
    bars_1, bars_2, point_1, point_2, point_3 = kl_gradients_picture(PI.log(), REF.log(), NAMES).panels[1].layers
    assert torch.allclose(point_2.y, bars_1.height) and torch.allclose(point_3.y, bars_2.height)
    assert point_1.y.abs().max() < 1e-12


def test_every_combination_of_the_controls_gives_a_picture():
    explorer = kl_estimators_explorer(REF.log(), REWARD * 20, NAMES)
    states = explorer.states(stops=3)
    assert len(states["pictures"]) == math.prod(len(control["names"]) for control in states["controls"])
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2
        assert "nan" not in picture["text"] and "inf" not in picture["text"]
    json.dumps(states, allow_nan=False)


def test_moving_each_control_changes_the_picture_and_both_views_can_be_drawn():
    explorer = kl_estimators_explorer(REF.log(), REWARD, NAMES)
    for name, value in {"drift": -1.5, "samples": 4, "seed": 5, "view": "gradient"}.items():
        before = explorer.chart.picture
        explorer.inputs[name].value = value
        assert explorer.chart.picture != before, name
    for view in ("value", "gradient"):
        assert len(draw(explorer.picture(view=view)).axes) == 2


def test_what_makes_no_sense_is_refused():
    with pytest.raises(LabError, match="K names"):
        kl_estimators_explorer(REF.log(), REWARD, NAMES[:2])
    with pytest.raises(LabError, match="must be finite"):
        kl_estimators_explorer(torch.tensor([0.5, 0.5, 0.0]).double().log(), REWARD, NAMES)
