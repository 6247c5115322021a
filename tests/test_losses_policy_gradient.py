"""The losses of PPO, RLOO and GRPO: expected numbers are worked out by hand in each docstring."""

import math

import pytest
import torch

from rlhf_lab import losses

HALF = math.log(0.5)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_clipped_surrogate_by_hand():
    """ε = 0.2, ratios ½, 1, 3/2 with A = 2, then with A = −2; the loss is minus the smaller of two products.

    A = 2: min(1, 0.8·2) = 1; min(2, 2) = 2; min(3, 1.2·2) = 2.4.
    A = −2: min(−1, −1.6) = −1.6; −2; min(−3, −2.4) = −3.
    """
    log_ratio = tensor(0.5, 1.0, 1.5).log()
    torch.testing.assert_close(losses.clipped_surrogate(log_ratio, tensor(2.0), 0.2), tensor(-1.0, -2.0, -2.4))
    torch.testing.assert_close(losses.clipped_surrogate(log_ratio, tensor(-2.0), 0.2), tensor(1.6, 2.0, 3.0))


@pytest.mark.parametrize(
    "ratio, advantage, gradient",
    [(1.0, 3.0, -3.0), (0.5, 3.0, -1.5), (1.5, 3.0, 0.0), (0.5, -3.0, 0.0), (1.5, -3.0, 4.5)],
)
def test_the_clipped_surrogates_gradient_is_cut_only_where_the_policy_has_moved_far_enough_already(
    ratio, advantage, gradient
):
    """−∂(ρ A)/∂ log ρ = −ρ A where nothing is cut: at ρ = 1 it is −A, the gradient of REINFORCE."""
    log_ratio = tensor(math.log(ratio)).requires_grad_()
    losses.clipped_surrogate(log_ratio, tensor(advantage), 0.2).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(gradient)


def test_the_clipped_value_loss_by_hand():
    """ε = 0.5, R = 2, V_old = 0.

    V = 0.25 is within the clip: ½ (0.25 − 2)² = 1.53125. V = 1 is clipped to 0.5: ½ max(1, 1.5²) = 1.125, gradient 0.
    V = −1 is clipped to −0.5: ½ max(3², 2.5²) = 4.5, gradient V − R = −3.
    """
    value = tensor(0.25, 1.0, -1.0).requires_grad_()
    loss = losses.clipped_value_loss(value, torch.zeros_like(value), torch.full_like(value, 2.0), 0.5)
    torch.testing.assert_close(loss.detach(), tensor(1.53125, 1.125, 4.5))
    loss.sum().backward()
    torch.testing.assert_close(value.grad, tensor(-1.75, 0.0, -3.0))


def test_advantages_of_a_group_by_hand_in_every_convention():
    """Scores 0, 0, 1, 3: mean 1, differences −1, −1, 0, 2, sum of squares 6.

    Leave one out: 0 − 4/3, 0 − 4/3, 1 − 1, 3 − 1/3. Population: √(6/4). Sample: √(6/3) + 10⁻⁶.
    """
    scores, apart = tensor(0.0, 0.0, 1.0, 3.0), tensor(-1.0, -1.0, 0.0, 2.0)
    advantages = losses.group_advantages
    torch.testing.assert_close(advantages(scores, True), tensor(-4 / 3, -4 / 3, 0.0, 8 / 3))
    torch.testing.assert_close(advantages(scores, False), apart)
    torch.testing.assert_close(advantages(scores, False, "population std"), apart / math.sqrt(1.5))
    found = advantages(scores, False, "sample std")
    torch.testing.assert_close(found, apart / (math.sqrt(2.0) + 1e-6), rtol=1e-12, atol=0)
    assert found[3].item() == pytest.approx(1.4142125624, abs=1e-9)


def test_the_sample_convention_is_that_of_cs336():
    """Stanford CS336, assignment 5, section 7: (r − mean) / (std + 10⁻⁶), std with n − 1, in groups of four.

    Rewards 0.3, 0.5, 0.9, 0.7: mean 0.6, squares 0.09 + 0.01 + 0.09 + 0.01 = 0.2, std √(0.2/3) = 0.2581988897.
    One right answer of four: mean ¼, squares 3/16 + 9/16 = ¾, std ½: −0.5, −0.5, −0.5, 1.5.
    """
    found = losses.group_advantages(tensor(0.3, 0.5, 0.9, 0.7), False, "sample std")
    std = 0.2581988897 + 1e-6
    torch.testing.assert_close(found, tensor(-0.3, -0.1, 0.3, 0.1) / std, rtol=1e-9, atol=0)
    right = losses.group_advantages(tensor(0.0, 0.0, 0.0, 1.0), False, "sample std")
    torch.testing.assert_close(right, tensor(-0.5, -0.5, -0.5, 1.5), rtol=3e-6, atol=0)


@pytest.mark.parametrize("convention", ["nothing", "population std", "sample std"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_group_of_equal_scores_has_no_advantage(convention, leave_one_out):
    """In float32 10.1 less the mean of three times 10.1 is not 0; divided by the spread of such rests it would be 1."""
    scores = torch.full((3, 3), 10.1)
    assert (losses.group_advantages(scores, leave_one_out, convention) == 0).all()


def test_masked_and_weighted_means_by_hand():
    """(1 + 4)/2; (1·1 + 3·2)/4; weights of 0 alone give 0 and no NaN."""
    mask = torch.tensor([[True, False], [False, True]])
    assert losses.masked_mean(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), mask).item() == 2.5
    assert losses.weighted_mean(tensor(1.0, 2.0), tensor(1.0, 3.0)).item() == 1.75
    assert losses.weighted_mean(tensor(1.0, 2.0), None).item() == 1.5
    assert losses.weighted_mean(tensor(1.0, 2.0), tensor(0.0, 0.0)).item() == 0.0


def test_sft_is_the_negative_log_likelihood():
    assert losses.sft(tensor(HALF, 2 * HALF)).tolist() == [-HALF, -2 * HALF]
