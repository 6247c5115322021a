"""Rejection sampling's explorer, without a browser."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Bars, Curve, Points
from rlhf_lab.widgets.rejection import STEPS, Darts, acceptance, darts, rejection_explorer, rejection_picture
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)

WORLD = bandit.lecture()
SFT, REWARD = WORLD.log_ref(), WORLD.rewards()
NAMES = WORLD.response_names()


def explorer():
    return rejection_explorer(SFT, REWARD, NAMES, WORLD.prompt_names)


def layer(picture, panel, kind, label):
    return next(one for one in picture.panels[panel].layers if isinstance(one, kind) and one.label == label)


def test_every_combination_of_the_controls_gives_a_picture():
    states = explorer().states(stops=5)
    assert len(states["pictures"]) >= 5 * 5 * 5 * 2
    assert not any(picture["failed"] for picture in states["pictures"])


def test_the_envelope_is_m_times_pi_sft_touches_pi_r_and_never_lies_under_it():
    for beta in (0.05, 0.5, 20.0):
        picture = rejection_picture(SFT[0], REWARD[0], beta, darts(0), 1, NAMES)
        over = torch.tensor(layer(picture, 0, Curve, "M·π_sft").y.tolist()).reshape(4, 4)[:, 1]
        under = torch.tensor(layer(picture, 0, Curve, "π_r").y.tolist()).reshape(4, 4)[:, 1]
        # By definition: the least m with m π_sft ≥ π_r everywhere.
        ratio = exact.optimal_policy(SFT[0], REWARD[0], beta).exp() / SFT[0].exp()
        torch.testing.assert_close(over.double(), ratio.max() * SFT[0].exp(), rtol=1e-5, atol=0)
        assert (over - under).min().abs() < 1e-5 and (over >= under - 1e-6).all()


def test_a_dart_under_pi_r_is_accepted_and_one_above_it_is_rejected():
    picture = rejection_picture(SFT[0], REWARD[0], 0.5, darts(3), STEPS, NAMES)
    target = exact.optimal_policy(SFT[0], REWARD[0], 0.5).exp()
    for label, below in (("accepted", True), ("rejected", False)):
        points = layer(picture, 0, Points, label)
        column = torch.as_tensor(points.x).round().long()
        assert len(column) > 5
        assert ((torch.as_tensor(points.y) < target[column]) == below).all()


def test_one_draw_worked_by_hand():
    # π_sft = .4 .3 .2 .1, so offer 0.75 falls on the third response; its reward is 0.5 below the best, so at β = 0.5
    # its acceptance is exp(−1) = 0.3679: u = 0.36 is accepted, u = 0.37 is not.
    for u, taken in ((0.36, 1), (0.37, 0)):
        row = torch.full((STEPS,), u, dtype=torch.float64)
        thrown = Darts(torch.full_like(row, 0.75), row, torch.full_like(row, 0.5))
        picture = rejection_picture(SFT[0], REWARD[0], 0.5, thrown, 1, NAMES)
        numbers = {number.symbol: number.value for number in picture.numbers}
        assert numbers["acceptance"] == pytest.approx(math.exp(-1), abs=1e-12)
        assert numbers["accepted"] == taken
        assert "a short answer" in picture.text and ("accepted" if taken else "rejected") in picture.text


def test_what_is_accepted_over_all_seeds_follows_pi_r():
    counts = torch.zeros(4, dtype=torch.float64)
    for seed in range(60):
        picture = rejection_picture(SFT[1], REWARD[1], 1.0, darts(seed), STEPS, NAMES)
        number = picture.numbers[-1].value
        counts += torch.as_tensor(layer(picture, 1, Bars, "accepted").height) * number
    expected = exact.optimal_policy(SFT[1], REWARD[1], 1.0).exp() * counts.sum()
    # Chi-square with 3 degrees of freedom: 16.3 is passed once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_beta_moves_the_curves_and_not_the_draws():
    one, other = (rejection_picture(SFT[0], REWARD[0], beta, darts(0), 40, NAMES) for beta in (0.2, 5.0))

    def columns(picture):
        points = [layer(picture, 0, Points, label) for label in ("accepted", "rejected")]
        return sorted(x for p in points for x in torch.as_tensor(p.x).tolist())

    assert columns(one) == columns(other)
    assert one.numbers[-1].value < other.numbers[-1].value


def test_a_response_that_cannot_be_drawn_does_not_set_the_maximum():
    log_sft = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    chance = acceptance(log_sft, torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64), 1.0)
    torch.testing.assert_close(chance, torch.tensor([math.exp(-1), 1.0, 0.0], dtype=torch.float64))


def test_names_that_do_not_match_and_steps_out_of_range_are_refused():
    with pytest.raises(LabError, match="those of 1 prompt and"):
        rejection_explorer(SFT, REWARD, NAMES, ["one"])
    with pytest.raises(LabError, match="step"):
        rejection_picture(SFT[0], REWARD[0], 0.5, darts(0), 0, NAMES)
