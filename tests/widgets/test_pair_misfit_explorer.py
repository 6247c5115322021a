"""The explorer of pairs from π_r for a restricted policy: its numbers against the limits computed world by world."""

import math

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.rso_phase.misfit import KINDS, linear_world, regrets
from rlhf_lab.figures.picture import Points
from rlhf_lab.widgets.pair_misfit import BETAS, pair_misfit_explorer, pair_misfit_picture

SMALL = {"worlds": 3, "responses": 8}


@pytest.mark.parametrize("kind", ["noise", "saturating"])
def test_the_ratio_is_the_geometric_mean_over_the_worlds(kind):
    picture = pair_misfit_picture(kind, 0.3, 0.5, **SMALL)
    logs = []
    for seed in range(3):
        world = linear_world("bandit", seed, 8)
        ref, r, half = regrets(world, world.reward(kind, 0.3), 0.5)[0].log().tolist()
        logs.append((r - ref, half - ref))
    numbers = {one.symbol: one.value for one in picture.numbers}
    assert numbers["regret, π_r / π_ref"] == pytest.approx(math.exp(sum(r for r, _ in logs) / 3), rel=1e-6)
    assert numbers["regret, half / π_ref"] == pytest.approx(math.exp(sum(h for _, h in logs) / 3), rel=1e-6)
    assert numbers["lower end"] < numbers["regret, π_r / π_ref"] < numbers["upper end"]


def test_the_fits_agree_with_the_reward_in_the_mean_under_the_optimum():
    picture = pair_misfit_picture("noise", 0.3, 0.5, **SMALL)
    world = linear_world("bandit", 0, 8)
    star = (world.log_ref + world.reward("noise", 0.3) / 0.5).softmax(-1)
    points = [layer for layer in picture.panels[0].layers if isinstance(layer, Points)]
    assert len(points) == 2
    for one in points:
        assert float(star @ (torch.as_tensor(one.y) - torch.as_tensor(one.x))) == pytest.approx(0, abs=1e-9)


def test_the_mark_lies_on_the_curve_and_its_words_follow_the_interval():
    picture = pair_misfit_picture("accelerating", 0.1, BETAS[4], **SMALL)
    layers = picture.panels[1].layers
    curve = next(layer for layer in layers if getattr(layer, "label", "") == "from π_r")
    mark = next(layer for layer in layers if isinstance(layer, Points) and layer.big)
    assert mark.y[0] == pytest.approx(float(curve.y[4]))
    upper = {one.symbol: one.value for one in picture.numbers}["upper end"]
    assert ("lower the regret" in picture.text) == (upper < 1)


def test_the_explorer_moves_and_refuses_bad_input():
    explorer = pair_misfit_explorer()
    before = explorer.text
    explorer.inputs["kind"].value = "saturating"
    assert explorer.text != before and "saturates" in explorer.text
    assert explorer.picture(kind="quadratic").failed
    with pytest.raises(LabError, match="share in"):
        pair_misfit_picture("noise", 1.0, 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [BETAS[0], 0.5, BETAS[-1]])
def test_every_fit_is_drawn_inside_the_axes(kind, beta):
    panel = pair_misfit_picture(kind, 0.3, beta, **SMALL).panels[0]
    for one in panel.layers:
        if isinstance(one, Points):
            assert panel.y.low < min(one.y) and max(one.y) < panel.y.high
