"""Bandit worlds: the numbers they were made of, seeds, the lecture's instance, refusals."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.worlds import bandit


def test_a_bandit_answers_with_the_numbers_it_was_made_of():
    log_ref = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    reward = torch.tensor([[1.0, -1.0, 0.0], [2.0, 3.0, 4.0]], dtype=torch.float64)
    world = bandit.make(log_ref, reward, "name", ["p", "q"], ["a", "b", "c"])
    assert torch.allclose(world.log_ref(), log_ref, rtol=0, atol=1e-15)
    assert torch.equal(world.rewards(), reward)
    assert world.tree.depth == 1 and world.num_prompts == 2
    assert world.prompts.tolist() == [[3], [4]]
    assert world.responses.tolist() == [[[0], [1], [2]]] * 2
    assert world.response_names() == ["a", "b", "c"]


def test_logits_are_normalised_and_arms_without_mass_are_kept():
    world = bandit.make(torch.tensor([[3.0, -math.inf, 3.0]]), torch.zeros(1, 3))
    assert torch.allclose(world.log_ref().exp(), torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64))


def test_names_default_to_numbers():
    world = bandit.make(torch.zeros(1, 3), torch.zeros(1, 3))
    assert world.response_names() == ["0", "1", "2"]


@pytest.mark.parametrize("beta", [0.1, 0.5, 10.0])
def test_optimal_policy_of_a_bandit_is_the_textbook_formula(beta):
    """π* = π_ref exp(r/β) / Z in numpy, shifted by the largest exponent."""
    world = bandit.random(3, 7, seed=4)
    tilted = world.log_ref().numpy() + world.rewards().numpy() / beta
    weights = np.exp(tilted - tilted.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True)
    assert np.abs(world.optimal(beta).exp().numpy() - expected).max() < 1e-13


def test_random_bandits_are_functions_of_their_seed():
    one, same, other = bandit.random(seed=1), bandit.random(seed=1), bandit.random(seed=2)
    assert torch.equal(one.rewards(), same.rewards()) and torch.equal(one.log_ref(), same.log_ref())
    assert not torch.equal(one.rewards(), other.rewards()) and not torch.equal(one.log_ref(), other.log_ref())


def test_random_bandits_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    bandit.random(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_rewards_are_normal_with_the_scale_asked_for():
    """40,000 draws: the standard deviation lies within 5 s.e. (σ/√(2N)) of 3, the mean within 5 σ/√N of 0; and
    reference and reward are not correlated."""
    world = bandit.random(4, 10_000, seed=0, reward_scale=3.0)
    reward, log_ref = world.rewards().flatten().numpy(), world.log_ref().flatten().numpy()
    assert abs(reward.std() - 3) < 5 * 3 / math.sqrt(80_000)
    assert abs(reward.mean()) < 5 * 3 / math.sqrt(40_000)
    assert abs(np.corrcoef(reward, log_ref)[0, 1]) < 5 / math.sqrt(40_000)


def test_the_lecture_bandit_has_names_for_all_and_a_reference_that_disagrees_with_the_reward():
    world = bandit.lecture()
    assert len(world.prompt_names) == world.num_prompts
    assert len(world.response_names()) == world.tree.num_responses
    assert torch.allclose(world.log_ref().exp().sum(-1), torch.ones(2, dtype=torch.float64))
    assert (world.log_ref().argmax(-1) != world.rewards().argmax(-1)).all()


@pytest.mark.parametrize(
    "log_ref, reward, message",
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"\(2, 3\) and reward \(2, 4\) must both be"),
        (torch.zeros(3), torch.zeros(3), "must both be"),
        (torch.zeros(1, 2), torch.tensor([[0.0, math.inf]]), "reward must be finite"),
        (torch.zeros(1, 2), torch.tensor([[0.0, math.nan]]), "reward must be finite"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "log_ref contains nan"),
        (torch.tensor([[-math.inf, -math.inf]]), torch.zeros(1, 2), "log_ref contains nan"),
    ],
)
def test_numbers_that_make_no_bandit_are_refused(log_ref, reward, message):
    with pytest.raises(LabError, match=message):
        bandit.make(log_ref, reward)


@pytest.mark.parametrize("prompts, arms", [(0, 3), (2, 1)])
def test_a_bandit_without_a_choice_is_refused(prompts, arms):
    with pytest.raises(LabError, match="at least one prompt and two arms"):
        bandit.random(prompts, arms)
