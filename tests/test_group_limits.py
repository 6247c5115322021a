"""Limits of GRPO on a bandit, against the gradient of the library's loss over every group."""

import itertools
import math

import pytest
import torch

from rlhf_lab import exact, losses
from rlhf_lab.algorithms.grpo_rloo import Group, group_loss
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import bandit

WORLD = bandit.random(1, 3, seed=2)
BETA, SIZE = 0.5, 3


@pytest.mark.parametrize("divide", [False, True])
def test_expected_advantage_is_the_mean_over_every_ordered_group(divide):
    """Two prompts; each of the K^G groups has its probability and `losses.group_advantages`."""
    world = bandit.random(2, 3, seed=4)
    log_p, reward = world.log_ref(), world.rewards()
    by = "population std" if divide else "nothing"
    wanted = torch.zeros_like(reward)
    for row in range(2):
        for others in itertools.product(range(3), repeat=SIZE - 1):
            p = log_p[row].exp()[list(others)].prod()
            for first in range(3):
                scores = reward[row, [first, *others]]
                wanted[row, first] += p * losses.group_advantages(scores, False, by)[0]
    found = exact.expected_advantage(log_p, reward, SIZE, divide)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    if not divide:
        mean = (log_p.exp() * reward).sum(-1, keepdim=True)
        torch.testing.assert_close(found, (SIZE - 1) / SIZE * (reward - mean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", ["k2", "k3"])
@pytest.mark.parametrize("divide", [False, True])
def test_expected_gradient_of_the_librarys_loss_is_zero_at_the_limit(divide, penalty):
    limit = exact.grpo_limit(WORLD.log_ref(), WORLD.rewards(), BETA, SIZE, divide, penalty)
    settings = Group("grpo", BETA, SIZE, penalty, divide_by_std=divide)

    def gradient(log_p):
        policy, total = TabularPolicy.from_log_probs(WORLD.tree, log_p), 0
        for drawn in itertools.product(range(3), repeat=SIZE):
            y = Tokens.from_lists([[[i] for i in drawn]])
            log_ref = WORLD.reference.token_log_probs(WORLD.prompts, y)
            score = WORLD.reward(WORLD.prompts, y)
            loss, _ = group_loss(policy, WORLD.prompts, y, score, log_ref, None, settings)
            total = total + log_p[0, list(drawn)].sum().exp() * torch.autograd.grad(loss, [*policy.parameters()])[0]
        return total.abs().max().item()

    assert gradient(limit) < 1e-9
    assert gradient(WORLD.optimal(BETA)) > 1e-3


def test_reverse_kl_optimum_has_its_form_and_no_policy_nearby_is_better():
    """π (c − r) = β π_ref with one c for all responses, also where β is small and the rewards are far apart."""
    for beta, scale in ((0.5, 1.0), (1e-3, 1.0), (50.0, 30.0)):
        world = bandit.random(3, 5, seed=1, reward_scale=scale)
        log_ref, reward = world.log_ref(), world.rewards()
        log_p = exact.reverse_kl_optimum(log_ref, reward, beta)
        c = reward + beta * (log_ref - log_p).exp()
        torch.testing.assert_close(c, c[:, :1].expand_as(c), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, dtype=torch.float64))

        def objective(log_q, log_ref=log_ref, reward=reward, beta=beta):
            return (log_q.exp() * reward).sum(-1) - beta * exact.kl(log_ref, log_q)

        for other in (log_ref, world.optimal(beta), (0.9 * log_p + 0.1 * log_ref).log_softmax(-1)):
            assert (objective(log_p) >= objective(other) - 1e-9).all()


def test_a_binary_reward_has_the_root_of_a_quadratic_as_its_limit():
    """π(correct) = βp/(c − 1) and π(wrong) = β(1 − p)/c sum to one at c = ((1 + β) + √((1 + β)² − 4β(1 − p)))/2."""
    p, beta = 0.2, 0.7
    log_ref = torch.tensor([p, 1 - p], dtype=torch.float64).log()
    found = exact.reverse_kl_optimum(log_ref, torch.tensor([1.0, 0.0], dtype=torch.float64), beta).exp()
    c = (1 + beta + math.sqrt((1 + beta) ** 2 - 4 * beta * (1 - p))) / 2
    assert found.tolist() == pytest.approx([beta * p / (c - 1), beta * (1 - p) / c], rel=1e-12)


def test_invalid_input_is_refused():
    ref, reward = WORLD.log_ref(), WORLD.rewards()
    empty = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    for make, words in (
        (lambda: exact.expected_advantage(ref, reward, 1), "at least 2"),
        (lambda: exact.expected_advantage(ref, reward, 5000), "too many to enumerate"),
        (lambda: exact.reverse_kl_optimum(ref, reward, 0.0), "beta"),
        (lambda: exact.reverse_kl_optimum(empty, reward, 1.0), "must be finite"),
    ):
        with pytest.raises(LabError, match=words):
            make()
