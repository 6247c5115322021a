"""The explorer of all trajectories: every state, and its regrets against `exact`."""

import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.trajectories import Trajectory
from rlhf_lab.widgets.trajectories import along, recorded_world, trajectories_explorer, trajectories_picture

torch.set_num_threads(1)

REF = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
REWARD = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, -0.5]], dtype=torch.float64)


def road(method: str, seed: int, strengths: list[float]) -> Trajectory:
    """A road whose places are π_ref tilted more and more."""
    policies = [(REF + s * REWARD).log_softmax(-1) for s in strengths]
    kl = torch.stack([exact.kl(p, REF).mean() for p in policies])
    reward = torch.stack([(p.exp() * REWARD).sum(-1).mean() for p in policies])
    return Trajectory(method, seed, kl, reward, policies[-1])


WALKED = [road("dpo", 0, [0.0, 0.5, 1.0]), road("dpo", 1, [0.0, 0.7, 1.4]), road("raft", 0, [0.0, 2.0, 4.0])]


def test_half_way_between_two_places_is_their_middle():
    values = torch.tensor([0.0, 1.0, 3.0])
    assert [along(values, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0, 2.0, 3.0]
    assert along(torch.tensor([2.0]), 0.7) == 2.0


def test_a_scene_averages_the_seeds_of_each_method():
    shown = recorded_world(REF, REWARD, WALKED, 0.5)
    assert list(shown.trajectories) == ["dpo", "raft"]
    assert torch.allclose(shown.trajectories["dpo"][0], (WALKED[0].kl + WALKED[1].kl) / 2)


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
def test_the_regret_of_an_end_is_that_of_its_policy(beta):
    """Read off the place on the map on one side, β KL(π‖π*) of the policy itself on the other."""
    shown = recorded_world(REF, REWARD, [WALKED[2]], 0.5)
    picture = trajectories_picture(shown, 100, beta)
    stick = picture.panels[1].layers[0]
    assert stick.y[0] == pytest.approx(exact.regret(WALKED[2].end, REF, REWARD, beta).mean().item(), abs=1e-10)


def test_at_zero_percent_every_method_stands_at_the_reference():
    picture = trajectories_picture(recorded_world(REF, REWARD, WALKED, 0.5), 0, 0.5)
    points = {layer.style: layer for layer in picture.panels[0].layers if type(layer).__name__ == "Points"}
    assert points["dpo"].x == [0.0] and points["raft"].y == pytest.approx(points["reference"].y)


def test_beta_moves_the_star_along_the_frontier_and_leaves_the_methods():
    explorer = trajectories_explorer({"one": recorded_world(REF, REWARD, WALKED, 0.5)})
    before = explorer.chart.picture["panels"][0]["layers"]
    explorer.inputs["beta"].value = 2.0
    after = explorer.chart.picture["panels"][0]["layers"]
    log_star = exact.optimal_policy(REF, REWARD, 2.0)
    assert after[-1]["x"][0] == pytest.approx(exact.kl(log_star, REF).mean().item(), rel=1e-4)
    assert after[-1] != before[-1] and after[:-1] == before[:-1]


def test_every_combination_of_the_controls_gives_a_picture():
    worlds = {
        "one": recorded_world(REF, REWARD, WALKED, 0.5),
        "two": recorded_world(REF[:1], REWARD[:1], WALKED[:1], 1.0),
    }
    states = trajectories_explorer(worlds).states(stops=6)
    assert len(states["pictures"]) == math.prod(len(c["names"]) for c in states["controls"])
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2 and "nan" not in picture["text"]
    json.dumps(states, allow_nan=False)


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(LabError, match="no trajectory"):
        recorded_world(REF, REWARD, [], 0.5)
    with pytest.raises(LabError, match=r"lengths \[2, 3\]"):
        recorded_world(REF, REWARD, [WALKED[0], road("dpo", 1, [0.0, 1.0])], 0.5)
    with pytest.raises(LabError, match="worlds is empty"):
        trajectories_explorer({})
