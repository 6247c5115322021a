"""Scores without spread teach nothing: advantages are exactly 0, and a constant reward leaves the policy in place."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.algorithms.grpo_rloo import Group, advantages, group, group_loss
from rlhf_lab.algorithms.ppo import PPO, ppo, whiten
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.rounding import centred, standardised, unit_interval
from rlhf_lab.training import Training
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.nonstationary import standard

CONSTANTS = (10.1, -0.1, 1e-3, 1e-30, 3e8, 0.0)
KINDS = (Group("grpo"), Group("grpo", divide_by_std=False), Group("rloo"), Group("rloo", divide_by_std=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", CONSTANTS)
def test_equal_scores_have_advantage_zero_at_every_magnitude(number, dtype):
    """For every group size, with scores that are the same bits and with one that is one unit off."""
    for size in range(2, 40):
        scores = torch.full((1, size), number, dtype=dtype)
        near = scores.clone()
        near[0, 0] = torch.nextafter(near[0, 0], torch.tensor(torch.inf, dtype=dtype)) if number else 0.0
        for settings in KINDS:
            assert (advantages(scores, settings) == 0).all() and (advantages(near, settings) == 0).all()
        assert (whiten(scores, torch.ones_like(scores, dtype=torch.bool)) == 0).all()
        assert (standard(near) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-3, 1.0, 1e20])
def test_true_differences_count_fully_at_every_magnitude(scale, dtype):
    """Scores (0, 0, 0, 4) · scale have the mean 1 and the standard deviation √3 (in units of the scale); GRPO's
    advantages are then (−1, −1, −1, 3)/√3 whatever the scale, as they are for 10.1 + small differences that the type
    represents, to the precision that is left."""
    score = torch.tensor([[0.0, 0.0, 0.0, 4.0]], dtype=dtype) * scale
    wanted = torch.tensor([[-1.0, -1.0, -1.0, 3.0]], dtype=dtype) / 3**0.5
    torch.testing.assert_close(advantages(score, Group("grpo")), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(advantages(score, Group("rloo")) / scale, wanted * 3**0.5 * 4 / 3, rtol=1e-5, atol=0)
    torch.testing.assert_close(whiten(score, score > -1), wanted, rtol=1e-5, atol=0)
    fine = 10.1 + 1e3 * torch.finfo(dtype).eps * torch.tensor([[0.0, 0.0, 0.0, 4.0]], dtype=dtype)
    torch.testing.assert_close(advantages(fine, Group("grpo")), wanted, rtol=1e-2, atol=0)


def test_one_group_without_spread_is_silent_beside_one_with_spread():
    """And what a caller knows to be rounding is not spread: 1e-3 apart, with a doubt of 2e-3, in the last row alone."""
    scores = torch.tensor([[10.1, 10.1, 10.1], [1.0, 2.0, 3.0], [5.0, 5.001, 5.0]])
    found = advantages(scores, Group("grpo"))
    assert (found[0] == 0).all() and found[1].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert found[2].abs().amax() > 1
    doubt = torch.tensor([[0.0], [0.0], [2e-3]])
    assert (standardised(scores, doubt)[2] == 0).all() and (centred(scores, doubt)[1] == scores[1] - 2).all()


def test_whitening_knows_what_its_advantages_are_differences_of():
    """10.1 − V for values V that are 10.1 up to a unit: of size 1e-6 and no spread, if the size of what was subtracted
    is given. Places outside the mask are 0 and do not count."""
    off = torch.tensor([9.5e-7, 0.0, -9.5e-7, 50.0])
    mask = torch.tensor([True, True, True, False])
    assert whiten(off, mask)[mask].abs().amax() > 1
    assert (whiten(off, mask, 4.8e-6) == 0).all()
    assert whiten(off, mask)[3] == 0


def constant(number: float, dtype=torch.float32):
    return lambda prompts, responses: torch.full(responses.shape[:-1], number, dtype=dtype)


TREE = token_tree.random(2, 3, 3, seed=1, has_end=True, reward="sequence")


@pytest.mark.parametrize("number", [10.1])
@pytest.mark.parametrize(
    "settings", [*KINDS, Group("grpo", penalty="k2"), Group("grpo", epochs=3, minibatches=2)], ids=str
)
def test_a_constant_reward_leaves_kl_at_zero_with_group_methods(settings, number):
    """Adam makes steps of full size of any gradient above 1e-8, so that one unit in the last place of 10.1 would be
    seen: in float32 without the rule KL is above 0.01 after these steps."""
    policy = TREE.reference.copy().float()
    reference = TREE.reference.copy().float().frozen()
    history = group(
        policy, reference, constant(number), TREE.prompts, settings,
        Training(steps=6, learning_rate=0.1, progress=False),
    )  # fmt: skip
    assert exact.kl(TREE.log_probs(policy).double(), TREE.log_ref()).abs().max() < 1e-6
    assert all(row["kl"] == pytest.approx(0, abs=1e-6) for row in history)
    moving = TREE.reference.copy().float()
    vary = lambda x, y: number + 0.1 * (y.ids[..., 0] == 0).float()  # noqa: E731
    group(moving, reference, vary, TREE.prompts, settings, Training(steps=6, learning_rate=0.1, progress=False))
    assert exact.kl(TREE.log_probs(moving).double(), TREE.log_ref()).min() > 1e-3, "a reward with spread must move it"


@pytest.mark.parametrize("by_std", [False, True])
def test_the_rounding_of_the_kl_in_the_reward_is_no_spread(by_std):
    """Four responses with score 0, whose float32 log-probabilities are −300 in all, one of them a unit (3e-5) off.

    A policy that is its reference up to rounding learns nothing. One that has drifted from it by 0.1 nats in one
    response does: with the penalty −β · 0.1 that response is below its group, and the gradient lowers it.
    """
    y = Tokens.full(torch.zeros(1, 4, 3, dtype=torch.long))
    log_ref = torch.full((1, 4, 3), -100.0)
    settings = Group("rloo", beta=1.0, divide_by_std=by_std)
    slopes = []
    for drift in (3e-5, 0.1):
        new = log_ref.clone()
        new[0, 1, 0] += drift
        assert new[0, 1, 0] != log_ref[0, 1, 0]
        new.requires_grad_()
        policy = SimpleNamespace(token_log_probs=lambda *_, new=new: new)
        loss, _ = group_loss(policy, y[:, 0], y, torch.zeros(1, 4), log_ref, None, settings)
        slopes.append(torch.autograd.grad(loss, new)[0][0, :, 0])
    assert (slopes[0] == 0).all()
    assert slopes[1][1] > 0 and (slopes[1][[0, 2, 3]] < 0).all()


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize("number", [10.1])
def test_a_constant_reward_leaves_kl_at_zero_with_ppo(number, whitened):
    """On a bandit, whose responses have one token: with λ < 1 a critic that does not know the reward yet makes tokens
    of a longer response differ, which is no matter of rounding. Without whitening the critic must know it already."""
    world = bandit.random(1, 5, seed=3)
    policy, critic = world.reference.copy().float(), world.reference.copy().float().new_critic()
    if not whitened:
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.fill_(number)
    ppo(
        policy, world.reference.copy().float().frozen(), constant(number), critic, world.prompts, PPO(whiten=whitened),
        Training(steps=6, learning_rate=0.1, progress=False),
    )  # fmt: skip
    assert exact.kl(world.log_probs(policy).double(), world.log_ref()).abs().max() < 1e-6


def test_rest_scales_a_constant_reward_to_zero_and_lets_nothing_above_a_threshold_pass():
    """min–max scaling of scores one unit apart would make 0 and 1 of them, and clone half of the samples."""
    up = torch.nextafter(torch.tensor(10.1), torch.tensor(20.0)).item()
    near = lambda x, y: torch.where(y.ids[..., 0] == 0, 10.1, up)  # noqa: E731
    policy = TREE.reference.copy()
    with pytest.raises(LabError, match=r"No sample passes the threshold 0.5: the best score is 0"):
        rest(policy, near, TREE.prompts, ReST(thresholds=(0.5,)), Training(steps=1, progress=False))
    values = torch.tensor([1e-14, 2e-14, 3e-14], dtype=torch.float64)
    assert unit_interval(values, 1e-14, 3e-14).tolist() == pytest.approx([0, 0.5, 1])
    assert (unit_interval(torch.tensor([10.1, up]), 10.1, up) == 0).all()
