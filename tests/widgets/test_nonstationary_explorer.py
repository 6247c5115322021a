"""The explorer of a world that moves: every state, and its expectations against drawn labels."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.non_static import strategies as non_static
from rlhf_lab.widgets.nonstationary import KINDS, Motion, expected_regrets, non_static_explorer, non_static_picture
from rlhf_lab.worlds import nonstationary
from rlhf_lab.worlds.nonstationary import nonstationary_bandit, nonstationary_tree

torch.set_num_threads(1)

PHI = nonstationary.basis(torch.eye(5))
AT = nonstationary_bandit(2, 5, seed=0, rounds=8)


def test_expected_regrets_are_those_of_drawn_labels():
    """Six draws of labels, 600 a round; late rounds, where labels are many: within 15% and five standard errors."""
    at = replace(AT, kind="drift", rate=0.1)
    expected = expected_regrets(Motion(at, PHI), 600, 4)
    runs = [non_static.deploy(at, PHI, 600, 4, seed, ("offline", "window", "online")) for seed in range(6)]
    for key, other in (("once", "offline"), ("again", "window"), ("own", "online")):
        drawn = torch.tensor([run[other][4:] for run in runs]).mean(1)
        wanted = float(expected[key][4:].mean())
        assert abs(float(drawn.mean()) - wanted) < 0.15 * wanted + 5 * float(drawn.std()) / 6**0.5


def test_without_labels_everyone_is_at_the_reference_and_with_many_still_rewards_are_learned():
    at = replace(AT, kind="none")
    none = expected_regrets(Motion(at, PHI), 1e-9, 3)
    start = at.regret(at.log_ref, 1)
    for values in none.values():
        assert values.tolist() == pytest.approx([start] * 8, rel=1e-6)
    many = expected_regrets(Motion(at, PHI), 1e8, 3)
    assert max(float(values.max()) for values in many.values()) < 1e-4


def test_with_endless_labels_fitting_once_loses_exactly_the_distance_to_the_moving_optimum():
    at = replace(AT, kind="drift", rate=0.15)
    found = expected_regrets(Motion(at, PHI), 1e9, 3)["once"]
    assert found.tolist() == pytest.approx([at.regret(at.optimal(0), t) for t in range(1, 9)], rel=1e-3)


def test_a_policy_fitted_every_third_round_stands_between():
    """Rounds 1, 4, 7 are fresh: there it equals the one fitted every round; in the others it is older."""
    at = replace(AT, kind="drift", rate=0.3)
    every, third = (expected_regrets(Motion(at, PHI), 1e6, 1, k)["again"] for k in (1, 3))
    assert third[[0, 3, 6]].tolist() == pytest.approx(every[[0, 3, 6]].tolist())
    assert (third[[1, 2, 4, 5, 7]] > every[[1, 2, 4, 5, 7]]).all()


def test_the_text_and_the_numbers_say_the_means_and_the_best_window():
    at = replace(AT, kind="drift", rate=0.1)
    motion = Motion(at, PHI)
    picture = non_static_picture(motion, 100, 4)
    numbers = {n.symbol: n.value for n in picture.numbers}
    expected = expected_regrets(motion, 100, 4)
    assert numbers["mean, fit once"] == pytest.approx(float(expected["once"].mean()))
    price = float(exact.drift.price(PHI, at.log_ref, at.first, at.beta).sum())
    late = float(exact.drift.drift_cost(at.log_ref, at.first, at.other, at.beta).mean())
    assert numbers["best W"] == pytest.approx(exact.drift.best_window(price, late * 0.01, 100))
    assert f"{float(expected['again'].mean()):.3f}" in picture.text and "0.80 rad" in picture.text


@pytest.mark.slow
def test_every_combination_of_the_controls_gives_a_picture_with_the_same_axes():
    explorer = non_static_explorer(AT, PHI, window=4)
    states = explorer.states(stops=3)
    assert len(states["pictures"]) == math.prod(len(c["names"]) for c in states["controls"])
    axes = []
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2
        assert "nan" not in picture["text"] and "inf" not in picture["text"]
        for panel in picture["panels"]:
            assert all(None not in layer["y"] for layer in panel["layers"])
        axes.append([(panel["y"], panel["x"]) for panel in picture["panels"]])
    assert all(one == axes[0] for one in axes)
    json.dumps(states, allow_nan=False)


def test_each_kind_of_change_is_named_in_the_text():
    explorer = non_static_explorer(AT, PHI, window=4)
    texts = {kind: explorer.picture(kind=kind).text.split(". ")[0] for kind in KINDS.values()}
    assert len(set(texts.values())) == len(KINDS)


def test_a_tree_is_too_large_and_numbers_below_one_are_refused():
    with pytest.raises(LabError, match="too many for this explorer"):
        non_static_explorer(nonstationary_tree(6, 4, 2))
    with pytest.raises(LabError, match="at least 1"):
        expected_regrets(Motion(AT, PHI), 10, 0)
