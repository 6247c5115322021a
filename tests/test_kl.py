"""`rlhf_lab.kl`: what the three estimators estimate, and what their gradients estimate, by enumeration.

Every expectation here is a finite sum over the K responses, so nothing is sampled and nothing is approximate.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import kl
from rlhf_lab.errors import LabError

F64 = torch.float64
PI = torch.tensor([0.7, 0.2, 0.1], dtype=F64)
REF = torch.tensor([0.3, 0.3, 0.4], dtype=F64)

logits = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6)


def distributions(rows):
    """Two log-distributions from pairs of logits."""
    both = torch.tensor(rows, dtype=F64).log_softmax(0)
    return both[:, 0], both[:, 1]


def exact(log_p, log_q):
    """KL(p‖q) in numpy."""
    p, q = log_p.exp().numpy(), log_q.exp().numpy()
    return float(np.sum(p * np.log(p / q)))


def expected(estimator, log_policy, log_ref):
    """E_π of the estimator's value."""
    return (log_policy.exp() * estimator(log_policy, log_ref)).sum().item()


def expected_gradient(estimator, theta, log_ref):
    """E over y ~ π_θ of ∇_θ estimator(y), the samples held fixed as in a loss: (K,) in the logits θ."""
    theta = theta.clone().requires_grad_()
    log_policy = theta.log_softmax(0)
    weight = log_policy.detach().exp()
    return torch.autograd.grad((weight * estimator(log_policy, log_ref)).sum(), theta)[0]


def gradient_of(divergence, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(divergence(theta.log_softmax(0)), theta)[0]


def test_the_check_of_the_notes():
    """0.7·log(7/3) + 0.2·log(2/3) + 0.1·log(1/4) = 0.59311 − 0.08109 − 0.13863 = 0.37339."""
    by_hand = 0.7 * math.log(7 / 3) + 0.2 * math.log(2 / 3) + 0.1 * math.log(1 / 4)
    assert by_hand == pytest.approx(0.3734, abs=5e-5)
    assert expected(kl.k1, PI.log(), REF.log()) == pytest.approx(by_hand, rel=1e-12)
    assert expected(kl.k3, PI.log(), REF.log()) == pytest.approx(by_hand, rel=1e-12)


def test_k2_is_biased_in_the_check_of_the_notes():
    """½[0.7·log²(7/3) + 0.2·log²(2/3) + 0.1·log²(1/4)] = ½[0.50254 + 0.03288 + 0.19218] = 0.36380."""
    value = expected(kl.k2, PI.log(), REF.log())
    assert value == pytest.approx(0.36380, abs=1e-5)
    assert abs(value - 0.37339) > 0.009


def test_values_by_hand_and_with_the_right_sign():
    """One response with π = 0.7, π_ref = 0.3: k = log(7/3) = 0.847298.

    k2 = k²/2 = 0.358957; k3 = 3/7 − 1 + k = 0.275869. With k turned round they would be −0.847298, the same
    0.358957, and 7/3 − 1 − k = 0.486036: k1 would pay for drift.
    """
    policy, ref = PI.log()[:1], REF.log()[:1]
    assert kl.k1(policy, ref).item() == pytest.approx(0.8472978603872037, rel=1e-12)
    assert kl.k2(policy, ref).item() == pytest.approx(0.35895683, rel=1e-7)
    assert kl.k3(policy, ref).item() == pytest.approx(0.27586929, rel=1e-7)


def test_turning_k_round_is_seen():
    """The sign error: E[k1] becomes −KL, so drift is paid; E[k3] becomes Σ π²/π_ref − 1 − KL, no KL at all.

    Σ π²/π_ref = 0.49/0.3 + 0.04/0.3 + 0.01/0.4 = 1.791667, so the turned k3 has mean 0.418281, 12% too much.
    """
    policy, ref = PI.log(), REF.log()
    assert (PI * kl.k1(ref, policy)).sum().item() == pytest.approx(-0.3733860445, rel=1e-9)
    turned = (PI * kl.k3(ref, policy)).sum().item()
    assert turned == pytest.approx(0.49 / 0.3 + 0.04 / 0.3 + 0.01 / 0.4 - 1 - 0.3733860445, rel=1e-9)
    assert turned > 1.1 * exact(policy, ref)


@given(logits)
def test_k1_and_k3_are_unbiased(rows):
    log_policy, log_ref = distributions(rows)
    truth = exact(log_policy, log_ref)
    assert expected(kl.k1, log_policy, log_ref) == pytest.approx(truth, rel=1e-9, abs=1e-12)
    assert expected(kl.k3, log_policy, log_ref) == pytest.approx(truth, rel=1e-9, abs=1e-12)


@given(logits)
def test_k2_and_k3_are_never_negative(rows):
    log_policy, log_ref = distributions(rows)
    assert (kl.k2(log_policy, log_ref) >= 0).all()
    assert (kl.k3(log_policy, log_ref) >= -1e-15).all()


def test_near_the_reference_all_three_agree_to_second_order():
    """With π = π_ref + ε·d the KL is of order ε², and E[k2] differs from it by O(ε³)."""
    direction = torch.tensor([1.0, -0.4, -0.6], dtype=F64)
    errors = []
    for eps in (1e-2, 1e-3):
        log_policy = (REF + eps * direction).log()
        truth = exact(log_policy, REF.log())
        errors.append(abs(expected(kl.k2, log_policy, REF.log()) - truth))
        assert errors[-1] < 0.1 * truth
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.1)


@given(logits)
def test_the_expected_gradient_of_k1_is_zero(rows):
    """E_π[∇ log π] = 0: k1 in a loss does nothing on average, however right its value."""
    log_policy, log_ref = distributions(rows)
    gradient = expected_gradient(kl.k1, log_policy, log_ref)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@given(logits)
def test_the_expected_gradient_of_k2_is_that_of_the_kl_to_the_reference(rows):
    log_policy, log_ref = distributions(rows)
    truth = gradient_of(lambda lp: (lp.exp() * (lp - log_ref)).sum(), log_policy)
    torch.testing.assert_close(expected_gradient(kl.k2, log_policy, log_ref), truth, rtol=1e-9, atol=1e-12)


@given(logits)
def test_the_expected_gradient_of_k3_is_that_of_the_kl_from_the_reference(rows):
    log_policy, log_ref = distributions(rows)
    truth = gradient_of(lambda lp: (log_ref.exp() * (log_ref - lp)).sum(), log_policy)
    torch.testing.assert_close(expected_gradient(kl.k3, log_policy, log_ref), truth, rtol=1e-9, atol=1e-12)


def test_the_three_expected_gradients_are_three_things():
    """In the check's example: zero, π(k − KL), and π − π_ref, the last two worked by hand in the logits.

    π(k − KL): 0.7·(0.84730 − 0.37339), 0.2·(−0.40547 − 0.37339), 0.1·(−1.38629 − 0.37339).
    """
    theta, ref = PI.log(), REF.log()
    divergence = exact(theta, ref)
    by_hand = {
        "k1": [0.0, 0.0, 0.0],
        "k2": [
            0.7 * (math.log(7 / 3) - divergence),
            0.2 * (math.log(2 / 3) - divergence),
            0.1 * (math.log(1 / 4) - divergence),
        ],
        "k3": [0.4, -0.1, -0.3],
    }
    for name, numbers in by_hand.items():
        gradient = expected_gradient(getattr(kl, name), theta, ref)
        assert gradient.tolist() == pytest.approx(numbers, abs=1e-12), name


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 5)])
def test_one_value_per_sample_or_token_in_the_type_that_came(name, dtype, shape):
    value = getattr(kl, name)(torch.full(shape, -1.0, dtype=dtype), torch.full(shape, -2.0, dtype=dtype))
    assert value.shape == shape and value.dtype == dtype


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_gradients_agree_with_finite_differences(name):
    log_policy = torch.tensor([-0.5, -2.0, -3.0, -0.1], dtype=F64, requires_grad=True)
    log_ref = torch.tensor([-1.0, -1.0, -3.0, -4.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(kl, name), (log_policy, log_ref))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_at_extremes(name, dtype):
    """k3 of a token the policy hardly gives and the reference does overflows to infinity, never to NaN."""
    values = [-1e6, -1e3, -100.0, -1.0, 0.0]
    log_policy, log_ref = (
        torch.tensor(v, dtype=dtype) for v in zip(*((a, b) for a in values for b in values), strict=True)
    )
    assert not torch.isnan(getattr(kl, name)(log_policy, log_ref)).any()


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_bad_input_is_refused_by_name(name):
    estimator = getattr(kl, name)
    with pytest.raises(LabError, match=r"log_policy.*log_ref"):
        estimator(torch.zeros(3), torch.zeros(2))
    with pytest.raises(LabError, match="log_policy"):
        estimator(torch.zeros(2, dtype=torch.long), torch.zeros(2))
    with pytest.raises(LabError, match="log_ref"):
        estimator(torch.zeros(2), [0.0, 0.0])


def test_the_estimators_where_one_of_the_two_has_no_mass():
    """k = log π − log π_ref. k = −∞ (π cannot give y): k1 = −∞, k2 = k3 = +∞, since e^∞ outgrows ∞. k = +∞: all are +∞.
    The places beside it have finite values and gradients."""
    inf = torch.inf
    log_policy = torch.tensor([-inf, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    log_ref = torch.tensor([-1.0, -inf, -1.0], dtype=torch.float64)
    assert kl.k1(log_policy, log_ref).tolist() == [-inf, inf, -1.0]
    assert kl.k2(log_policy, log_ref).tolist() == [inf, inf, 0.5]
    found = kl.k3(log_policy, log_ref)
    assert found.tolist() == pytest.approx([inf, inf, math.e - 2])
    (gradient,) = torch.autograd.grad(found.sum(), log_policy)
    assert gradient[2].item() == pytest.approx(1 - math.e) and not gradient.isnan().any()


def test_k3_keeps_its_digits_where_policy_and_reference_are_nearly_equal():
    """k = 1e-6: k²/2 − k³/6 = 5e-13, of which e^{−k} − 1 + k in doubles would keep four digits."""
    k = torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    exact_value = [1e-12 / 2 - 1e-18 / 6, 1e-12 / 2 + 1e-18 / 6]
    assert kl.k3(k, torch.zeros_like(k)).tolist() == pytest.approx(exact_value, rel=1e-8, abs=0)
