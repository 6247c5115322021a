"""Points and the tilted frontier against the exact ones of a finite world."""

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.checks import LabError
from rlhf_lab.evaluation import evaluate, points, tilted_frontier
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import token_tree

WORLD = token_tree.random(5, 3, 3, seed=4)


def test_points_lie_within_their_errors_of_the_exact_numbers():
    optimal = TabularPolicy.from_log_probs(WORLD.tree, WORLD.optimal(0.5))
    prompts = WORLD.draw_prompts(600, torch.Generator().manual_seed(0))
    found = points({"reference": WORLD.reference, "optimal": optimal}, WORLD.reference, WORLD.reward, prompts)
    assert [p.name for p in found] == ["reference", "optimal"]
    assert found[0].kl.mean == 0 == found[0].kl.error
    enumerated = evaluate(optimal, WORLD, 0.5)
    for name in ("kl", "reward"):
        estimate = getattr(found[1], name)
        assert abs(estimate.mean - getattr(enumerated, name)) < 4 * estimate.error < 0.5
    row = found[1].row()
    assert row["method"] == "optimal" and row["kl_low"] < row["kl"] < row["kl_high"]
    assert row["reward_high"] - row["reward"] == pytest.approx(1.96 * found[1].reward.error, rel=0.01)


def test_the_tilted_frontier_is_the_exact_one_where_it_is_trusted_and_says_where_it_is_not():
    g = torch.Generator().manual_seed(1)
    rows = torch.arange(3).repeat(40)
    index = torch.multinomial(WORLD.log_ref()[rows].exp(), 500, True, generator=g)
    betas = [4.0, 2.0, 1.0, 0.6, 0.05]
    found = tilted_frontier(WORLD.rewards()[rows].gather(1, index), betas)
    assert [one.trusted for one in found] == [True, True, True, True, False]
    kls, rewards = exact.frontier(WORLD.log_ref(), WORLD.rewards(), torch.tensor(betas, dtype=torch.float64))
    for i, one in enumerate(found[:4]):
        # Three prompts, 40 times each: the spread between them is no error of the sampling, so use the latter alone.
        for name, value in (("kl", kls[:, i].mean()), ("reward", rewards[:, i].mean())):
            assert getattr(one, name).mean == pytest.approx(value.item(), abs=0.05)
    assert found[-1].effective < 50 and sorted(found, key=lambda one: one.kl.mean) == found


def test_bad_rewards_and_betas_are_named():
    with pytest.raises(LabError, match="two prompts"):
        tilted_frontier(torch.zeros(1, 5), [1.0])
    with pytest.raises(LabError, match="rewards holds nan"):
        tilted_frontier(torch.full((2, 2), float("nan")), [1.0])
    with pytest.raises(LabError, match="beta"):
        tilted_frontier(torch.zeros(2, 5), [0.0])
