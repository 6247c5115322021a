"""`rlhf_lab.losses` against numbers worked by hand, autograd, mpmath and the expectations they promise."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import losses
from rlhf_lab.errors import LabError

F64 = torch.float64
ordinary = st.floats(-20, 20, allow_nan=False)
betas = st.floats(0.01, 5)
extreme = st.sampled_from([-1e6, -1e3, -1.0, 0.0, 1.0, 1e3, 1e6])


def t(*values, dtype=F64, grad=False):
    x = torch.tensor(values if len(values) > 1 else values[0], dtype=dtype)
    return x.requires_grad_() if grad else x


def neg_log_sigmoid(x):
    with mpmath.workdps(50):
        return float(mpmath.log1p(mpmath.exp(-mpmath.mpf(x))))


# Every loss as a function of the two inputs, with ordinary settings.
PAIRWISE = {
    "dpo": lambda c, r: losses.dpo(c, r, 0.3),
    "cdpo": lambda c, r: losses.dpo(c, r, 0.3, label_smoothing=0.1),
    "robust_dpo": lambda c, r: losses.robust_dpo(c, r, 0.3, 0.1),
    "ipo": lambda c, r: losses.ipo(c, r, 0.3),
    "hinge_norm": lambda c, r: losses.hinge_norm(c, r, 0.3),
    "hinge": lambda c, r: losses.hinge(c, r, 0.3),
    "bradley_terry": losses.bradley_terry,
}
every_loss = pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE.keys())


# Worked by hand. Throughout Δ = 1.5 − (−0.5) = 2.


def test_dpo_by_hand():
    """β = 0.5, βΔ = 1: −log σ(1) = log(1 + e⁻¹) = 0.313262."""
    assert losses.dpo(t(1.5), t(-0.5), 0.5).item() == pytest.approx(0.3132616875182228, rel=1e-12)


def test_dpo_of_equal_ratios_is_log_two():
    """A policy that is still the reference pays log 2 whatever β."""
    for beta in (0.01, 1.0, 100.0):
        assert losses.dpo(t(0.0), t(0.0), beta).item() == pytest.approx(math.log(2), rel=1e-12)


def test_conservative_dpo_by_hand():
    """ε = 0.1, βΔ = 1: 0.9·log(1 + e⁻¹) + 0.1·log(1 + e) = 0.9·0.313262 + 0.1·1.313262 = 0.413262."""
    value = losses.dpo(t(1.5), t(-0.5), 0.5, label_smoothing=0.1).item()
    assert value == pytest.approx(0.4132616875182228, rel=1e-12)


def test_robust_dpo_by_hand():
    """ε = 0.1, βΔ = 1: (0.9·0.313262 − 0.1·1.313262) / 0.8 = (0.281936 − 0.131326)/0.8 = 0.188262."""
    value = losses.robust_dpo(t(1.5), t(-0.5), 0.5, 0.1).item()
    assert value == pytest.approx(0.1882616875182228, rel=1e-12)


def test_ipo_by_hand():
    """τ = 0.4, 1/(2τ) = 1.25: (2 − 1.25)² = 0.5625."""
    assert losses.ipo(t(1.5), t(-0.5), 0.4).item() == pytest.approx(0.5625, rel=1e-12)


def test_hinge_losses_by_hand():
    """γ = 0.3: 1 − 0.3·2 = 0.4; turned round 1 + 0.6 = 1.6; γ = 1: 1 − 2 < 0, so 0."""
    for loss in (losses.hinge_norm, losses.hinge):
        assert loss(t(1.5), t(-0.5), 0.3).item() == pytest.approx(0.4, rel=1e-12)
        assert loss(t(-0.5), t(1.5), 0.3).item() == pytest.approx(1.6, rel=1e-12)
        assert loss(t(1.5), t(-0.5), 1.0).item() == 0.0


def test_bradley_terry_by_hand():
    """−log σ(2) = log(1 + e⁻²) = 0.126928."""
    assert losses.bradley_terry(t(1.5), t(-0.5)).item() == pytest.approx(0.1269280110429725, rel=1e-12)


def test_dpo_gradient_weight_by_hand():
    """β = 0.5, βΔ = 1: σ(−1) = 0.268941, the weight of a pair already ordered rightly."""
    assert losses.dpo_gradient_weight(t(1.5), t(-0.5), 0.5).item() == pytest.approx(0.2689414213699951, rel=1e-12)


# Identities.


@given(ordinary, ordinary, betas)
def test_dpo_is_the_bradley_terry_loss_of_the_implicit_rewards(c, r, beta):
    value = losses.dpo(t(c), t(r), beta).item()
    assert value == pytest.approx(losses.bradley_terry(t(beta * c), t(beta * r)).item(), rel=1e-9, abs=1e-12)
    assert value == pytest.approx(neg_log_sigmoid(beta * (c - r)), rel=1e-9, abs=1e-12)


@given(ordinary, ordinary, betas)
def test_the_gradient_of_dpo_is_minus_beta_times_its_weight(c, r, beta):
    """Rafailov et al. 2023, section 4: ∇L = −β σ(r̂_l − r̂_w) [∇log π(y_w) − ∇log π(y_l)]."""
    chosen, rejected = t(c, grad=True), t(r, grad=True)
    to_chosen, to_rejected = torch.autograd.grad(losses.dpo(chosen, rejected, beta), (chosen, rejected))
    weight = losses.dpo_gradient_weight(t(c), t(r), beta).item()
    assert 0 <= weight <= 1
    assert to_chosen.item() == pytest.approx(-beta * weight, rel=1e-9, abs=1e-14)
    assert to_rejected.item() == pytest.approx(beta * weight, rel=1e-9, abs=1e-14)


@given(ordinary, ordinary, betas, st.floats(0, 0.49))
def test_label_smoothing_mixes_the_loss_with_that_of_the_turned_pair(c, r, beta, eps):
    right, turned = losses.dpo(t(c), t(r), beta).item(), losses.dpo(t(r), t(c), beta).item()
    smoothed = losses.dpo(t(c), t(r), beta, label_smoothing=eps).item()
    assert smoothed == pytest.approx((1 - eps) * right + eps * turned, rel=1e-9, abs=1e-12)
    robust = losses.robust_dpo(t(c), t(r), beta, eps).item()
    scale = (right + turned) / (1 - 2 * eps)
    assert robust == pytest.approx(((1 - eps) * right - eps * turned) / (1 - 2 * eps), abs=1e-12 * (1 + scale))


@given(ordinary, ordinary, betas, st.floats(0, 0.45))
def test_robust_dpo_expected_over_flipped_labels_is_the_clean_loss(c, r, beta, eps):
    """Chowdhury et al. 2024: unbiased under flips of rate ε. The conservative loss is not."""
    clean = losses.dpo(t(c), t(r), beta).item()
    expected = (1 - eps) * losses.robust_dpo(t(c), t(r), beta, eps) + eps * losses.robust_dpo(t(r), t(c), beta, eps)
    assert expected.item() == pytest.approx(clean, abs=1e-10 * (1 + beta * abs(c - r)) / (1 - 2 * eps))


def test_conservative_dpo_is_not_unbiased_under_flips():
    """The promise above can fail: at ε = 0.2, βΔ = 1 cDPO expects 2ε(1−ε)·1 = 0.32 above the clean loss."""
    c, r, eps = t(1.5), t(-0.5), 0.2
    smoothed = (1 - eps) * losses.dpo(c, r, 0.5, eps) + eps * losses.dpo(r, c, 0.5, eps)
    assert (smoothed - losses.dpo(c, r, 0.5)).item() == pytest.approx(0.32, rel=1e-9)


@given(st.floats(-1, 1), st.floats(-1, 1), betas)
def test_without_noise_the_three_sigmoid_losses_are_one(c, r, beta):
    plain = losses.dpo(t(c), t(r), beta).item()
    assert losses.dpo(t(c), t(r), beta, 0.0).item() == plain
    assert losses.robust_dpo(t(c), t(r), beta, 0.0).item() == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_conservative_dpo_is_least_where_the_model_believes_the_noise(eps):
    """cDPO's minimum: σ(βΔ) = 1 − ε. Robust DPO has no such minimum; it falls on past that point."""
    beta = 0.5
    delta = math.log((1 - eps) / eps) / beta
    chosen = t(delta, grad=True)
    (slope,) = torch.autograd.grad(losses.dpo(chosen, t(0.0), beta, label_smoothing=eps), chosen)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)
    (slope,) = torch.autograd.grad(losses.robust_dpo(chosen, t(0.0), beta, eps), chosen)
    assert slope.item() < -1e-3


@given(st.floats(0.01, 10))
def test_ipo_is_zero_and_flat_at_one_over_two_tau_and_nowhere_else(tau):
    chosen = t(1 / (2 * tau), grad=True)
    loss = losses.ipo(chosen, t(0.0), tau)
    assert loss.item() == pytest.approx(0.0, abs=1e-20)
    assert torch.autograd.grad(loss, chosen)[0].item() == pytest.approx(0.0, abs=1e-10)
    assert losses.ipo(t(1 / (2 * tau) + 1.0), t(0.0), tau).item() == pytest.approx(1.0, rel=1e-9)
    assert losses.ipo(t(1 / (2 * tau) - 1.0), t(0.0), tau).item() == pytest.approx(1.0, rel=1e-9)


@given(ordinary, ordinary, st.floats(0.01, 5))
def test_hinge_losses_stop_teaching_beyond_the_margin(c, r, gamma):
    for loss in (losses.hinge_norm, losses.hinge):
        chosen, rejected = t(c, grad=True), t(r, grad=True)
        value = loss(chosen, rejected, gamma)
        assert value.item() == pytest.approx(max(0.0, 1 - gamma * (c - r)), rel=1e-9, abs=1e-12)
        if abs(1 - gamma * (c - r)) > 1e-9:
            slope = torch.autograd.grad(value, chosen)[0].item()
            assert slope == pytest.approx(-gamma if gamma * (c - r) < 1 else 0.0)


@every_loss
def test_gradients_agree_with_finite_differences(loss):
    # Fixed points, none of them within reach of the hinge's corner.
    chosen = torch.tensor([-2.0, 0.1, 0.5, 3.0, 40.0], dtype=F64, requires_grad=True)
    rejected = torch.tensor([1.0, 0.3, -0.9, 2.0, -30.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


@every_loss
def test_only_the_difference_of_the_two_inputs_matters(loss):
    chosen, rejected = t(0.25, -1.5, 2.0), t(0.5, 0.75, -1.0)
    torch.testing.assert_close(loss(chosen + 8, rejected + 8), loss(chosen, rejected))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 4), (0,)])
def test_one_value_per_example_whatever_the_shape(loss, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2))
    value = loss(chosen, rejected)
    assert value.shape == shape and value.dtype == dtype
    for one, c, r in zip(value.flatten(), chosen.flatten(), rejected.flatten(), strict=True):
        torch.testing.assert_close(one, loss(c, r))


@given(extreme, extreme, st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1e-8, 0.1, 1.0, 1e8]))
def test_extremes_give_finite_values_and_finite_gradients(c, r, dtype, strength):
    for loss in (
        lambda a, b: losses.dpo(a, b, strength),
        lambda a, b: losses.dpo(a, b, strength, label_smoothing=0.3),
        lambda a, b: losses.robust_dpo(a, b, strength, 0.3),
        lambda a, b: losses.ipo(a, b, strength),
        lambda a, b: losses.hinge_norm(a, b, strength),
        lambda a, b: losses.hinge(a, b, strength),
        losses.bradley_terry,
        lambda a, b: losses.dpo_gradient_weight(a, b, strength),
    ):
        chosen, rejected = t(c, dtype=dtype, grad=True), t(r, dtype=dtype, grad=True)
        value = loss(chosen, rejected)
        assert torch.isfinite(value).all()
        for slope in torch.autograd.grad(value, (chosen, rejected)):
            assert torch.isfinite(slope).all()


@given(extreme, extreme)
def test_the_sigmoid_losses_keep_their_relative_precision_at_extremes(c, r):
    """At Δ = 2e6 the loss is 2e6, not infinity; at Δ = −40 of it, e⁻⁴⁰, not zero."""
    assert losses.bradley_terry(t(c), t(r)).item() == pytest.approx(neg_log_sigmoid(c - r), rel=1e-12)
    assert losses.dpo(t(c), t(r), 0.5).item() == pytest.approx(neg_log_sigmoid(0.5 * (c - r)), rel=1e-12)


def test_a_confident_pair_keeps_a_small_loss_instead_of_rounding_to_zero():
    """−log σ(40) = e⁻⁴⁰ to first order; computed as log(1 + e⁻⁴⁰) it would be 0."""
    assert losses.bradley_terry(t(40.0), t(0.0)).item() == pytest.approx(math.exp(-40), rel=1e-9)
    assert losses.dpo_gradient_weight(t(40.0), t(0.0), 1.0).item() == pytest.approx(math.exp(-40), rel=1e-9)


# Bad input.


@every_loss
def test_shapes_that_do_not_match_are_refused_by_name(loss):
    with pytest.raises(LabError, match=r"chosen.*\(3,\).*rejected.*\(2,\)"):
        loss(torch.zeros(3), torch.zeros(2))


def test_the_gradient_weight_refuses_shapes_that_do_not_match():
    with pytest.raises(LabError, match=r"chosen.*rejected"):
        losses.dpo_gradient_weight(torch.zeros(3), torch.zeros(2), 0.1)


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
def test_a_slope_that_is_not_positive_is_refused_by_name(bad):
    x = torch.zeros(2)
    with pytest.raises(LabError, match="beta"):
        losses.dpo(x, x, bad)
    with pytest.raises(LabError, match="beta"):
        losses.robust_dpo(x, x, bad, 0.1)
    with pytest.raises(LabError, match="beta"):
        losses.dpo_gradient_weight(x, x, bad)
    with pytest.raises(LabError, match="tau"):
        losses.ipo(x, x, bad)
    with pytest.raises(LabError, match="gamma"):
        losses.hinge_norm(x, x, bad)
    with pytest.raises(LabError, match="gamma"):
        losses.hinge(x, x, bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_flip_rate_that_is_no_rate_is_refused_by_name(bad):
    x = torch.zeros(2)
    with pytest.raises(LabError, match="label_smoothing"):
        losses.dpo(x, x, 0.1, label_smoothing=bad)
    with pytest.raises(LabError, match="label_smoothing"):
        losses.robust_dpo(x, x, 0.1, bad)


def test_robust_dpo_refuses_labels_that_are_coin_flips():
    """At ε = 1/2 the loss divides by 1 − 2ε = 0: the labels say nothing."""
    with pytest.raises(LabError, match="label_smoothing"):
        losses.robust_dpo(torch.zeros(2), torch.zeros(2), 0.1, 0.5)


@every_loss
def test_integers_and_lists_are_refused(loss):
    with pytest.raises(LabError, match="chosen"):
        loss(torch.zeros(2, dtype=torch.long), torch.zeros(2))
    with pytest.raises(LabError, match="rejected"):
        loss(torch.zeros(2), [0.0, 0.0])
