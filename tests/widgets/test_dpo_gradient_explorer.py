"""DPO's gradient weight: the picture's numbers against autograd, and a picture for every state."""

import json
import math

import pytest
import torch

from rlhf_lab import losses
from rlhf_lab.errors import LabError
from rlhf_lab.widgets.dpo_gradient import dpo_gradient_explorer, dpo_gradient_picture


def numbers(picture):
    return {n.symbol: n.value for n in picture.numbers}


@pytest.mark.parametrize(("beta", "chosen", "rejected"), [(0.5, 0.0, 0.0), (0.1, -3.0, 2.0), (2.0, 1.5, -0.25)])
def test_the_pull_is_the_derivative_of_the_loss_by_autograd(beta, chosen, rejected):
    ratio = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    loss = losses.dpo(ratio[0], ratio[1], beta)
    loss.backward()
    shown = numbers(dpo_gradient_picture(beta, chosen, rejected))
    assert shown["loss"] == pytest.approx(loss.item())
    assert shown["β × weight"] == pytest.approx(-ratio.grad[0].item()) == pytest.approx(ratio.grad[1].item())
    # σ by hand.
    assert shown["weight"] == pytest.approx(1 / (1 + math.exp(beta * (chosen - rejected))))


def test_every_pair_starts_with_a_weight_of_one_half():
    assert numbers(dpo_gradient_picture(3.0, 0.0, 0.0))["weight"] == 0.5


def test_only_the_difference_of_the_log_ratios_counts():
    one, two = dpo_gradient_picture(0.7, 2.0, 1.0), dpo_gradient_picture(0.7, -4.0, -5.0)
    assert numbers(one) == pytest.approx(numbers(two))


def test_the_point_lies_on_both_curves():
    picture = dpo_gradient_picture(1.0, 1.0, 0.0)
    for panel in picture.panels:
        line = next(layer for layer in panel.layers if layer.style == "dpo")
        point = next(layer for layer in panel.layers if layer.style == "policy")
        nearest = (torch.as_tensor(line.x) - float(point.x[0])).abs().argmin()
        assert float(line.y[nearest]) == pytest.approx(float(point.y[0]), rel=0.05)


def test_every_combination_of_controls_gives_a_picture_and_one_direction_of_words():
    states = dpo_gradient_explorer().states(stops=5)
    assert len(states["pictures"]) == math.prod(len(c["names"]) for c in states["controls"])
    assert all(len(p["panels"]) == 2 and not p["failed"] and "nan" not in p["text"] for p in states["pictures"])
    json.dumps(states, allow_nan=False)
    assert "ranked incorrectly" in dpo_gradient_picture(0.5, -1.0, 1.0).text
    assert "ranked correctly" in dpo_gradient_picture(0.5, 1.0, -1.0).text


def test_moving_beta_moves_the_picture_and_a_bad_beta_is_refused():
    shown = dpo_gradient_explorer(chosen=2.0)
    before = shown.text
    shown.inputs["beta"].value = 5.0
    assert shown.text != before
    with pytest.raises(LabError, match="beta"):
        dpo_gradient_picture(0.0, 0.0, 0.0)
