"""The explorer of the annotation budget, without a browser."""

import pytest
import torch

from rlhf_lab import exact, label_budget
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Bars, Curve, Points
from rlhf_lab.widgets.annotation_budget import (
    BETAS,
    SHARES,
    TOTALS,
    annotation_budget_explorer,
    annotation_budget_picture,
    simulated,
    split_curve,
)
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)

WORLD = bandit.lecture()
REF, REWARD = WORLD.log_ref(), WORLD.rewards()
NAMES = WORLD.response_names()


@pytest.fixture(scope="module")
def known():
    return simulated(REF, REWARD, 0.5, runs=30)


@pytest.mark.slow
def test_every_combination_of_the_controls_gives_a_picture():
    states = annotation_budget_explorer(REF, REWARD, NAMES, WORLD.prompt_names, runs=3).states(stops=3)
    assert len(states["pictures"]) == len(label_budget.PAIR_SOURCES) * len(BETAS) * len(TOTALS) * 3 * 2
    assert not any(picture["failed"] for picture in states["pictures"])


def test_bars_are_shares_of_the_labels_and_sum_to_one(known):
    for pairs in label_budget.PAIR_SOURCES:
        bars = [layer for layer in annotation_budget_picture(known[0], pairs, 3, 5.0, NAMES).panels[0].layers]
        assert all(isinstance(bar, Bars) for bar in bars)
        for bar in bars:
            assert float(torch.as_tensor(bar.height).sum()) == pytest.approx(1.0)


def test_the_numbers_are_the_closed_form_and_the_simulation(known):
    picture = annotation_budget_picture(known[1], "reference", 5, 5.0, NAMES)
    numbers = {number.symbol: number.value for number in picture.numbers}
    p = REF[1].exp()
    mu = torch.outer(p, p) * (1 - torch.eye(4))
    want = float(exact.label_price(REF[1], REWARD[1], 0.5, mu / mu.sum()))
    assert numbers["N"] == TOTALS[5] and numbers["formula"] == pytest.approx(want / TOTALS[5])
    assert numbers["regret"] == pytest.approx(float(known[1].regret["reference"][5]))
    # Thirty runs of 640 labels: the simulation is within a factor of two of the limit, surely.
    assert 0.5 < numbers["regret"] / numbers["formula"] < 2


def test_the_curve_of_the_split_is_the_price_of_a_label_at_one_end_and_has_its_minimum_marked(known):
    world = known[0].world
    curve = split_curve(world, "uniform", 320, 3.0)
    assert float(curve[0]) == pytest.approx(float(world.price("uniform")) / 320)
    split = annotation_budget_picture(known[0], "uniform", 4, 3.0, NAMES).panels[2]
    line, point = split.layers
    assert isinstance(line, Curve) and isinstance(point, Points)
    assert point.x[0] == float(SHARES[int(curve.argmin())])


def test_dearer_demonstrations_get_no_larger_share(known):
    shares = [
        {n.symbol: n.value for n in annotation_budget_picture(known[0], "reference", 4, ratio, NAMES).numbers}[
            "best share"
        ]
        for ratio in (0.5, 2.0, 8.0, 50.0)
    ]
    assert shares == sorted(shares, reverse=True)


def test_axes_do_not_move_with_the_controls(known):
    ends = {
        tuple(
            (panel.y.low, panel.y.high) for panel in annotation_budget_picture(known[0], pairs, step, 5.0, NAMES).panels
        )
        for pairs in label_budget.PAIR_SOURCES
        for step in (0, 7)
    }
    assert len(ends) == 1 and None not in next(iter(ends))[0]


def test_bad_sources_steps_prices_and_names_are_refused(known):
    for bad in (
        ("people", 3, 5.0, NAMES),
        ("active", 8, 5.0, NAMES),
        ("active", 3, 0.0, NAMES),
        ("active", 3, 5.0, []),
    ):
        with pytest.raises(LabError):
            annotation_budget_picture(known[0], *bad)
    with pytest.raises(LabError, match="those of 1 prompt and"):
        annotation_budget_explorer(REF, REWARD, NAMES, ["one"])
