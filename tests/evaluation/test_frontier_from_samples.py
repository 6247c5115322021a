"""Points and the tilted frontier against the exact ones of a finite world."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import Estimate, Point, evaluate, points, tilted_frontier
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
    with pytest.raises(LabError, match="rewards contains nan"):
        tilted_frontier(torch.full((2, 2), float("nan")), [1.0])
    with pytest.raises(LabError, match="beta"):
        tilted_frontier(torch.zeros(2, 5), [0.0])


class Noted:
    """A policy that writes down the seeds of its generators."""

    device = torch.device("cpu")

    def __init__(self):
        self.seeds = []

    def sample(self, prompts, number, generator):
        self.seeds.append(generator.initial_seed())
        return WORLD.reference.sample(prompts, number, generator)

    def log_prob(self, prompts, responses):
        return WORLD.reference.log_prob(prompts, responses)


def test_blocks_of_prompts_have_random_numbers_of_their_own_and_policies_the_same():
    one, other = Noted(), Noted()
    prompts = WORLD.draw_prompts(6, torch.Generator().manual_seed(0))
    points({"one": one, "other": other}, WORLD.reference, WORLD.reward, prompts, 2, batch_size=2)
    assert len(set(one.seeds)) == 3 and one.seeds == other.seeds


def test_a_point_s_interval_has_the_level_that_is_asked():
    """z at 50% is 0.6745, at 95% 1.9600."""
    point = Point("p", Estimate(1.0, 0.1), Estimate(2.0, 0.2))
    assert (point.row(0.5)["kl_low"], point.row(0.5)["reward_high"]) == pytest.approx((0.93255, 2.1349), abs=1e-4)
    assert (point.row()["kl_high"], point.row()["reward_low"]) == pytest.approx((1.1960, 1.6080), abs=1e-4)


def test_the_tilted_numbers_of_two_samples_by_hand():
    """Rewards 0 and l = log 3 at β = 1: weights 1 and 3, of mean one ½ and 3/2. Mean reward ¾ l, and its bias: the
    samples move it by −⅜ l and ⅜ l, so that the covariance of means with the weights, n − 1 = 1, is
    ½ (⅜ l ½ + ⅜ l ½) = 3/16 l, which is added. log Z = log 2 + ½ Var = log 2 + ½ · ½ (¼ + ¼) = log 2 + ⅛. With rewards
    2 l at β = 2 all is the same in units of the reward."""
    log3 = math.log(3)
    for beta in (1.0, 2.0):
        (found,) = tilted_frontier(beta * torch.tensor([[0.0, log3], [log3, 0.0]]), [beta])
        assert found.reward.mean == pytest.approx(beta * (0.75 + 0.1875) * log3)
        assert found.kl.mean == pytest.approx((0.75 + 0.1875) * log3 - (math.log(2) + 0.125))
        assert found.effective == pytest.approx(4 / (0.25 + 2.25)) and not found.trusted


@pytest.mark.parametrize(("few", "trusted"), [(0, True), (1, True), (2, False)])
def test_the_frontier_is_trusted_while_at_most_a_twentieth_of_the_prompts_has_too_few(few, trusted):
    """20 prompts of 30 samples: with equal rewards all 30 count, with one huge reward one does."""
    rewards = torch.zeros(20, 30)
    rewards[:few, 0] = 100.0
    assert tilted_frontier(rewards, [1.0])[0].trusted is trusted
