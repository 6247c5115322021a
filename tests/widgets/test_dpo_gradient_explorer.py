"""DPO's loss and its gradient weight: the pictures' numbers against autograd, and a picture for every state."""

import json
import math

import pytest
import torch

from rlhf_lab import losses
from rlhf_lab.errors import LabError
from rlhf_lab.widgets.dpo_gradient import (
    dpo_gradient_explorer,
    dpo_gradient_picture,
    dpo_loss_explorer,
    dpo_loss_picture,
)


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


@pytest.mark.parametrize(("beta", "chosen", "rejected"), [(0.5, 0.0, 0.0), (0.1, -3.0, 2.0), (1.0, 1.5, -0.25)])
def test_the_tangent_touches_the_loss_with_the_slope_that_autograd_computes(beta, chosen, rejected):
    margin = torch.tensor(beta * (chosen - rejected), dtype=torch.float64, requires_grad=True)
    loss = torch.log1p(torch.exp(-margin))  # −log σ, written differently
    loss.backward()
    picture = dpo_loss_picture(beta, chosen, rejected)
    tangent = next(layer for layer in picture.panels[0].layers if getattr(layer, "label", "") == "tangent")
    (x0, x1), (y0, y1) = tangent.x[[0, -1]].tolist(), tangent.y[[0, -1]].tolist()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(margin.grad.item())
    assert y0 + margin.grad.item() * (margin.item() - x0) == pytest.approx(loss.item())
    shown = numbers(picture)
    assert shown["loss"] == pytest.approx(loss.item())
    assert shown["weight"] == pytest.approx(-margin.grad.item()) == pytest.approx(1 - shown["σ(βΔ)"])
    assert shown["βΔ"] == pytest.approx(margin.item()) == pytest.approx(beta * shown["Δ"])


def test_every_state_of_the_loss_is_inside_its_panels():
    states = dpo_loss_explorer(beta=0.5, chosen=0.3, rejected=-1.25).states(stops=5)
    for picture in states["pictures"]:
        assert not picture["failed"] and "nan" not in picture["text"]
        for panel in picture["panels"]:
            assert [layer["kind"] for layer in panel["layers"]].count("points") == 2
            for layer in panel["layers"]:
                assert panel["x"]["low"] <= min(layer["x"]) <= max(layer["x"]) <= panel["x"]["high"]
                assert panel["y"]["low"] - 1e-9 <= min(layer["y"]) <= max(layer["y"]) <= panel["y"]["high"]


def test_the_loss_s_explorer_opens_at_the_values_it_is_given():
    assert dpo_loss_explorer(beta=0.3, chosen=0.7, rejected=-1.1).values == {
        "beta": 0.3,
        "chosen": 0.7,
        "rejected": -1.1,
    }
