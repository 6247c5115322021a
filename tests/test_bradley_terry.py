"""Bradley–Terry fits against autograd, closed forms and DPO itself; Ford's condition by hand; simulated labels."""

import math

import pytest
import torch

from rlhf_lab import exact, losses
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.bradley_terry import (
    Demonstrations,
    draw_labels,
    draw_wins,
    expected_wins,
    fit_features,
    fit_listed,
    fit_rewards,
    has_finite_optimum,
    maximum_likelihood,
    pair_distribution,
    win_counts,
)
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
REWARD = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64)


def random_wins(*shape, seed=0):
    return torch.randint(0, 9, shape, generator=seeded(seed)).double()


def log_posterior(rewards, wins, prior, shown=None):
    """The objective of the fit, written out pair by pair."""
    total = -rewards.square().sum() / (2 * prior**2)
    for i in range(len(rewards)):
        for j in range(len(rewards)):
            if i != j:
                total = total + wins[i, j] * torch.nn.functional.logsigmoid(rewards[i] - rewards[j])
    if shown is not None:
        total = total + (shown.counts * (shown.log_base + rewards / shown.beta).log_softmax(-1)).sum()
    return total


@pytest.mark.parametrize("with_demonstrations", [False, True])
def test_the_fit_is_a_maximum_and_its_curvature_is_autograds_hessian(with_demonstrations):
    wins = random_wins(4, 4)
    base = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    shown = (
        Demonstrations(torch.tensor([3.0, 0, 5, 1], dtype=torch.float64), base, 0.7) if with_demonstrations else None
    )
    rewards, curvature = fit_rewards(wins, 2.0, shown)
    at = rewards.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_posterior(at, wins, 2.0, shown), at)
    assert slope.abs().max() < 1e-3  # nats per unit, where the curvature is above 0.25: within 0.004 of the maximum
    hessian = torch.autograd.functional.hessian(lambda r: -log_posterior(r, wins, 2.0, shown), rewards)
    torch.testing.assert_close(curvature, hessian, atol=1e-3, rtol=1e-3)


def test_the_fit_of_separable_labels_is_finite_and_batches_are_independent():
    wins = torch.zeros(2, 3, 3, dtype=torch.float64)
    wins[0, 0, 1] = wins[0, 1, 2] = 500.0
    wins[1, 2, 0] = 1.0
    both, _ = fit_rewards(wins, 3.0)
    assert torch.isfinite(both).all() and both[0, 0] > both[0, 1] > both[0, 2]
    torch.testing.assert_close(fit_rewards(wins[1], 3.0)[0], both[1], atol=1e-5, rtol=1e-5)


def test_demonstrations_far_from_the_base_are_fitted_all_the_same():
    """A response that π_0 gives once in a million, demonstrated five times by a careful demonstrator: from r = 0 the
    likelihood is flat, and a whole Newton step would lead far beyond the maximum. There the slope must be 0."""
    base = torch.tensor([1e-6, 0.5, 0.5 - 1e-6], dtype=torch.float64).log()
    shown = Demonstrations(torch.tensor([5.0, 0, 0], dtype=torch.float64), base, 0.1)
    wins = torch.zeros(3, 3, dtype=torch.float64)
    rewards, _ = fit_rewards(wins, 3.0, shown)
    at = rewards.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_posterior(at, wins, 3.0, shown), at)
    assert slope.abs().max() < 1e-3 and rewards[0] > 1.0


def test_two_responses_are_fitted_by_the_log_odds_of_their_wins():
    # 30 wins against 10: r̂_1 − r̂_2 = log 3, split evenly about 0.
    wins = torch.tensor([[0.0, 30.0], [10.0, 0.0]])
    assert maximum_likelihood(wins).tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-5)


def test_the_gradient_of_the_likelihood_vanishes_at_the_fit_by_autograd():
    wins = draw_wins(REWARD, pair_distribution(REF), (500, 3000), seeded(1))
    r = maximum_likelihood(wins, ridge=1e-12).requires_grad_(True)
    margin = r.unsqueeze(-1) - r.unsqueeze(-2)
    loss = -(wins * torch.nn.functional.logsigmoid(margin)).sum((-1, -2)) / wins.sum((-1, -2))
    (slope,) = torch.autograd.grad(loss.sum(), r)
    assert slope.abs().max() < 1e-9


def test_the_fit_of_expected_wins_is_the_true_reward_and_noise_shrinks_it():
    mu = pair_distribution(REF)
    centred = REWARD - REWARD.mean()
    assert torch.allclose(maximum_likelihood(expected_wins(REWARD, mu), ridge=1e-10), centred, atol=1e-6)
    noisy = maximum_likelihood(expected_wins(REWARD, mu, 0.2))
    assert noisy.diff().abs().sum() < 0.8 * centred.diff().abs().sum()
    assert (noisy.argsort() == centred.argsort()).all()


def test_dpo_trained_on_the_same_labels_reaches_the_policy_of_the_fit():
    beta = 0.5
    world = bandit.make(REF.unsqueeze(0), REWARD.unsqueeze(0))
    wins = draw_wins(REWARD, pair_distribution(REF), (400,), seeded(5))[0]
    winner, loser = wins.nonzero(as_tuple=True)
    ids = torch.stack([winner, loser], -1).unsqueeze(-1)
    pairs = Pairs(world.prompts.repeat(len(winner)), Tokens.full(ids), wins[winner, loser])
    policy = world.reference.copy()
    dpo(
        policy,
        world.reference,
        pairs,
        DPO(beta=beta),
        Training(steps=10, batch_size=100, optimizer="lbfgs", progress=False),
    )
    hat = exact.optimal_policy(REF, maximum_likelihood(wins), beta)
    assert exact.kl(world.log_probs(policy)[0], hat) < 1e-8


def test_cdpo_and_robust_dpo_are_the_same_fit_on_other_tables():
    # Against a plain minimisation of the losses themselves, by L-BFGS on r̂ (β = 1, flat reference).
    wins = draw_wins(REWARD, pair_distribution(REF), (2000,), seeded(2), noise=0.1)[0]
    e = 0.1
    tables = {
        "cdpo": ((1 - e) * wins + e * wins.T, lambda c, r: losses.dpo(c, r, 1.0, e)),
        "robust": (((1 - e) * wins - e * wins.T) / (1 - 2 * e), lambda c, r: losses.robust_dpo(c, r, 1.0, e)),
    }
    for table, loss in tables.values():
        r = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [r], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def step(r=r, search=search, loss=loss):
            search.zero_grad()
            c, l_ = torch.broadcast_tensors(r.unsqueeze(-1), r.unsqueeze(-2))
            value = (wins * loss(c, l_)).sum() / wins.sum()
            value.backward()
            return value

        search.step(step)
        assert torch.allclose(maximum_likelihood(table, ridge=1e-10), (r - r.mean()).detach(), atol=1e-5)


def test_larger_data_sets_contain_the_smaller_ones_and_labels_follow_bradley_terry():
    mu = pair_distribution(REF)
    wins = draw_wins(REWARD, mu, (100, 20_000), seeded(0))
    assert wins.sum((-1, -2)).tolist() == [100, 20_000] and bool((wins[1] >= wins[0]).all())
    # Each share is a mean of 20,000 draws: within five standard errors of its expectation.
    want = expected_wins(REWARD, mu)
    assert ((wins[1] / 20_000 - want).abs() < 5 * (want * (1 - want) / 20_000).sqrt() + 1e-12).all()


def test_noise_flips_as_many_labels_as_it_says_and_none_without_it():
    """The same draws with and without noise: 20,000 labels, of which 0.2 ± 5 standard errors (0.014) are flipped."""
    mu = pair_distribution(REF)
    clean, noisy = (draw_labels(REWARD, mu, 20_000, seeded(0), noise) for noise in (0.0, 0.2))
    flipped = clean[0] != noisy[0]
    assert abs(flipped.double().mean().item() - 0.2) < 0.014
    assert torch.equal(clean[0][flipped], noisy[1][flipped]) and torch.equal(clean[1][~flipped], noisy[1][~flipped])


def test_labels_that_decide_nothing_leave_the_reference():
    wins = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert maximum_likelihood(wins).abs().max() < 1e-9


def test_a_finite_optimum_needs_a_cycle_of_wins():
    """Ford 1957. i > j alone: no. Both ways: yes. A cycle of three: yes. Two pairs that no label joins: no."""
    one = torch.zeros(2, 2)
    one[0, 1] = 3
    assert not has_finite_optimum(one) and has_finite_optimum(one + one.T)
    cycle = torch.zeros(3, 3)
    cycle[0, 1] = cycle[1, 2] = cycle[2, 0] = 1
    assert has_finite_optimum(cycle) and not has_finite_optimum(cycle.triu())
    apart = torch.block_diag(one + one.T, one + one.T)
    assert not has_finite_optimum(apart)


def test_wins_are_followed_however_long_their_cycle_is():
    """Of nine responses each has beaten the next, the last the first; without that one label there is no optimum."""
    cycle = torch.zeros(9, 9)
    cycle[torch.arange(9), (torch.arange(9) + 1) % 9] = 1
    assert has_finite_optimum(cycle)
    cycle[8, 0] = 0
    assert not has_finite_optimum(cycle)


def test_pairs_of_a_policy_are_two_draws_with_equal_ones_drawn_again_however_sure_it_is():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    want = torch.outer(p, p) * (1 - torch.eye(3))
    torch.testing.assert_close(pair_distribution(p.log()), want / want.sum())
    sure = torch.tensor([0.0, -800.0, -801.0], dtype=torch.float64).log_softmax(-1)
    got = pair_distribution(sure)
    assert float(got[0, 1] / got[0, 2]) == pytest.approx(math.e) and float(got.sum()) == pytest.approx(1.0)


def test_a_fit_to_a_list_is_at_rest_where_autograds_gradient_is_zero():
    """40 labelled pairs with weights, s² = ½: the gradient of Σ w log σ(δ·θ) − |θ|² vanishes."""
    differences = torch.randn(40, 3, dtype=torch.float64, generator=seeded(1))
    for weights in torch.rand(4, 40, dtype=torch.float64, generator=seeded(2)):
        theta = fit_listed(differences, weights, 0.5**0.5).requires_grad_(True)
        loss = -(weights * torch.nn.functional.logsigmoid(differences @ theta)).sum() + theta.square().sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        assert gradient.abs().max() < 1e-6
        again = fit_listed(differences, weights, 0.5**0.5, start=theta.detach() + 3)
        torch.testing.assert_close(again, theta.detach(), atol=1e-7, rtol=0)


def test_a_table_of_wins_and_the_list_of_its_labels_give_the_same_weights_of_features():
    """Two tables with features of their own. Every entry of a table is one row of the list, with its count as weight.

    The gradient of the log-posterior, written out pair by pair, vanishes too, so that the two are not wrong alike.
    """
    wins = random_wins(2, 5, 5, seed=3) * ~torch.eye(5, dtype=torch.bool)
    features = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded(4))
    found = fit_features(features, wins, 1.5, tolerance=1e-16)
    winner, loser = (~torch.eye(5, dtype=torch.bool)).nonzero(as_tuple=True)
    for phi, table, weight in zip(features, wins, found, strict=True):
        listed = fit_listed(phi[winner] - phi[loser], table[winner, loser], 1.5, tolerance=1e-16)
        torch.testing.assert_close(weight, listed, atol=1e-9, rtol=0)
        at = weight.clone().requires_grad_()
        value = log_posterior(phi @ at, table, math.inf) - at.square().sum() / (2 * 1.5**2)
        (slope,) = torch.autograd.grad(value, at)
        assert slope.abs().max() < 1e-7


def test_wins_are_counted_by_hand():
    """Labels 0 ≻ 1, 0 ≻ 1, 2 ≻ 0 of prompt 1 and 1 ≻ 2 of prompt 0, in this order."""
    winner, loser, prompt = torch.tensor([[0, 0, 2, 1], [1, 1, 0, 2], [1, 1, 1, 0]])
    assert win_counts(winner, loser, 3).tolist() == [[0, 2, 0], [0, 0, 1], [1, 0, 0]]
    nested = win_counts(winner, loser, 3, (1, 4), prompt, 2)
    assert nested.shape == (2, 2, 3, 3)
    assert nested[0].nonzero().tolist() == [[1, 0, 1]]
    assert nested[1, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert nested[1, 1].tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_without_a_finite_optimum_the_ridge_or_the_steps_bound_the_rewards():
    """Response 1 never won. With a ridge, the slope σ(−gap) equals ridge · r at the fit.

    Without one, a Newton step adds σ(−gap)/(σ(gap) σ(−gap)) = 1 + e^{−gap} to the gap.
    """
    wins = torch.tensor([[0.0, 7.0], [0.0, 0.0]])
    r = maximum_likelihood(wins)
    assert float(torch.sigmoid(r[1] - r[0])) == pytest.approx(1e-6 * float(r[0]), rel=1e-4)
    far = maximum_likelihood(wins, ridge=0.0, max_steps=6, tolerance=0.0)
    gap = 0.0
    for _ in range(6):
        gap += 1 + math.exp(-gap)
    assert (far[0] - far[1]).item() == pytest.approx(gap)


def test_a_negative_entry_is_fitted_as_far_as_the_ridge_lets_it():
    """Wins (1.2, −0.2) of two responses: the slope −(−0.2) + … tends to 0.2, and 0.2 = ridge · r far from zero.

    Robust DPO makes such tables of clean labels. Newton's steps must not be limited to 1 there.
    """
    r = maximum_likelihood(torch.tensor([[0.0, 1.2], [-0.2, 0.0]]), ridge=1e-3)
    assert r.tolist() == pytest.approx([200.0, -200.0])


def test_tables_that_are_not_wins_are_refused():
    with pytest.raises(LabError, match="must not be negative"):
        fit_rewards(-torch.ones(3, 3))
    with pytest.raises(LabError, match="K, K"):
        fit_rewards(torch.ones(3, 2))
    with pytest.raises(LabError, match="K, K"):
        maximum_likelihood(torch.ones(3, 2))
    with pytest.raises(LabError, match="at least one label"):
        maximum_likelihood(torch.zeros(3, 3))
    with pytest.raises(LabError, match="negative"):
        maximum_likelihood(torch.tensor([[0.0, 1.0], [-3.0, 5.0]]))
    with pytest.raises(LabError, match="prior"):
        fit_listed(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 0.0)
    with pytest.raises(LabError, match="at least one label"):
        draw_wins(REWARD, pair_distribution(REF), (0,), seeded(0))
    with pytest.raises(LabError, match="noise"):
        draw_wins(REWARD, pair_distribution(REF), (10,), seeded(0), noise=0.7)
