"""What a budget of labels buys: the parts of the simulation, by hand."""

import torch

from rlhf_lab.label_budget import FiniteWorlds, Purchase, fit_purchase, random_worlds, sft_policy
from rlhf_lab.training import seeded


def test_the_reference_counts_as_many_demonstrations_as_there_are_responses():
    """Two responses, π_0 even, shown 3 and 1 times: (3 + 1)/(4 + 2) and (1 + 1)/(4 + 2)."""
    found = sft_policy(torch.tensor([0.5, 0.5]).double().log(), torch.tensor([3.0, 1.0]).double())
    assert torch.allclose(found.exp(), torch.tensor([2 / 3, 1 / 3]).double())


def test_a_demonstrator_taken_for_twice_as_careless_has_twice_the_rewards():
    """log π_demo = log π_0 + r/β_demo says of the same demonstrations that r is twice as large where β_demo is assumed
    to be twice what it is. The prior is too wide to matter and every response is shown."""
    world = FiniteWorlds(torch.zeros(1, 3).double().log_softmax(-1), torch.tensor([[0.3, 0.0, -0.3]]).double(), 0.5)
    right, wrong = (
        fit_purchase(world, Purchase(300, 0, demo_beta=1.0, assumed=assumed), 1, seeded(0), prior=1000.0).rewards
        for assumed in (None, 2.0)
    )
    gaps = [rewards - rewards.mean(-1, keepdim=True) for rewards in (right, wrong)]
    assert gaps[0].abs().max() > 0.1 and torch.allclose(gaps[1], 2 * gaps[0], rtol=1e-3)


def test_runs_repeat_whole_sets_of_worlds_and_the_spread_scales_the_rewards():
    plain, wide = (random_worlds(3, 4, 0.5, 0, spread) for spread in (1.0, 2.5))
    assert torch.equal(wide.reward, 2.5 * plain.reward) and torch.equal(wide.log_ref, plain.log_ref)
    twice = plain.repeat(2)
    assert torch.equal(twice.reward, torch.cat([plain.reward, plain.reward]))
    assert torch.equal(twice.log_ref[3:], plain.log_ref)
