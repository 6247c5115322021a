"""The slope γ of RSO's loss: moments against autograd, the best γ by hand, the gradient against all pairs."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError


def world(seed=0, prompts=2, responses=7):
    generator = torch.Generator().manual_seed(seed)
    log_ref, gold, noise = torch.randn(3, prompts, responses, dtype=torch.float64, generator=generator)
    return log_ref.log_softmax(-1), gold, gold + 0.7 * noise


def test_moments_are_the_derivatives_of_reward_kl_and_objective():
    """d E[r]/dt = Cov, d KL/dt = t Var and d J/dt = Cov − β t Var at t = 1/γ, by autograd through the softmax."""
    log_ref, gold, learned = world()
    t = torch.tensor(1 / 0.3, dtype=torch.float64, requires_grad=True)
    log_policy = (log_ref + t * learned).log_softmax(-1)
    reward = (log_policy.exp() * gold).sum()
    kl = (log_policy.exp() * (log_policy - log_ref)).sum()
    covariance, variance = (one.sum().item() for one in exact.slope_moments(log_ref, learned, gold, 0.3))
    by_reward, by_kl = (torch.autograd.grad(one, t, retain_graph=True)[0].item() for one in (reward, kl))
    assert covariance == pytest.approx(by_reward)
    assert variance / 0.3 == pytest.approx(by_kl)


def test_the_best_gamma_of_a_perfect_reward_model_is_beta():
    log_ref, gold, _ = world()
    assert exact.best_slope(log_ref, gold, gold, 0.4).item() == pytest.approx(0.4, rel=1e-4)


def test_the_best_gamma_of_two_responses_by_hand():
    """The limit has the logit gap d_φ/γ beside π_ref's, π* has d/β. They agree at γ = β d_φ/d."""
    log_ref = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    learned, gold = torch.tensor([[0.0, 3.0]]).double(), torch.tensor([[0.0, 1.2]]).double()
    assert exact.best_slope(log_ref, learned, gold, 0.5).item() == pytest.approx(0.5 * 3.0 / 1.2, rel=1e-4)


def test_at_the_best_gamma_the_slope_of_the_objective_is_zero():
    """Cov(r, r_φ) = (β/γ) Var(r_φ), summed over prompts. With this noise γ exceeds β."""
    log_ref, gold, learned = world(3)
    gamma = exact.best_slope(log_ref, learned, gold, 0.5).item()
    covariance, variance = (one.sum().item() for one in exact.slope_moments(log_ref, learned, gold, gamma))
    assert gamma > 0.5 and covariance == pytest.approx(0.5 / gamma * variance, rel=1e-3)


def test_independent_noise_of_the_same_variance_doubles_the_best_gamma():
    """On 4,000 equally likely responses Var(r_φ) is 2 and Cov is 1, so γ = 2 β up to sampling error."""
    generator = torch.Generator().manual_seed(1)
    gold, noise = torch.randn(2, 1, 4000, dtype=torch.float64, generator=generator)
    log_ref = torch.full((1, 4000), -math.log(4000), dtype=torch.float64)
    assert exact.best_slope(log_ref, gold + noise, gold, 2.0).item() == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("labels", ["sampled", "hard"])
def test_the_gradient_is_that_of_the_loss_over_all_pairs(labels):
    """Enumeration: Σ μ(i) μ(j) [−p log σ(γ Δ) − (1 − p) log σ(−γ Δ)] by autograd; two rewards tie."""
    log_ref, gold, reward = world(prompts=1)
    reward[0, 3] = reward[0, 5]
    h = (0.6 * gold).requires_grad_()
    mu, gamma, loss = log_ref.exp()[0], 0.7, 0.0
    for i in range(7):
        for j in range(7):
            gap = (reward[0, i] - reward[0, j]).item()
            p = 1 / (1 + math.exp(-gap)) if labels == "sampled" else 0.5 * (1 + (gap > 0) - (gap < 0))
            inside = gamma * (h[0, i] - h[0, j])
            loss = loss - mu[i] * mu[j] * (p * inside.sigmoid().log() + (1 - p) * (-inside).sigmoid().log())
    expected = torch.autograd.grad(loss, h)[0]
    means = exact.label_means(log_ref, reward, labels)
    assert torch.allclose(exact.pair_gradient(h.detach(), log_ref, means, gamma), expected)


def test_the_limit_is_stationary_for_every_source_and_gamma_only_scales_the_first_step():
    log_ref, gold, learned = world()
    for source in (log_ref, exact.optimal_policy(log_ref, gold, 0.5)):
        means = exact.label_means(source, learned)
        assert exact.pair_gradient(learned / 0.05, source, means, 0.05).abs().max() < 1e-12
        first, other = (exact.pair_gradient(torch.zeros_like(gold), source, means, g) for g in (0.05, 0.5))
        assert torch.allclose(10 * first, other) and other.abs().max() > 1e-3


def test_with_hard_labels_the_best_response_is_pushed_up_at_any_distance():
    log_ref, _, learned = world()
    means = exact.label_means(log_ref, learned, "hard")
    best = learned.argmax(-1, keepdim=True)
    for scale in (0.0, 1.0, 20.0):
        assert (exact.pair_gradient(scale * learned, log_ref, means, 0.5).gather(-1, best) < 0).all()


def test_more_responses_than_one_block_and_an_unknown_kind_of_label():
    generator = torch.Generator().manual_seed(2)
    reward = torch.randn(1, 1100, dtype=torch.float64, generator=generator)
    log_source = torch.randn(1, 1100, dtype=torch.float64, generator=generator).log_softmax(-1)
    expected = torch.sigmoid(reward[0, :, None] - reward[0]) @ log_source.exp()[0]
    assert torch.allclose(exact.label_means(log_source, reward)[0], expected)
    with pytest.raises(LabError, match="loud"):
        exact.label_means(log_source, reward, "loud")
