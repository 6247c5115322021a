"""`exact.label_price`, `exact.optimal_pair_design` and `exact.d_optimal_pair_design`.

Three independent ways: the formula tr(Σ I⁺)/(2β) with numpy's pseudo-inverse; the same in mpmath where doubles
have no digits left; and a simulation that draws labels, fits Bradley–Terry by maximum likelihood and looks at
the regret of the policy it plugs them into.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from rlhf_lab import exact
from rlhf_lab.errors import LabError

F64 = torch.float64
INF = math.inf


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of inverses of small matrices: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numpy_star(log_ref, reward, beta):
    e = np.asarray(log_ref) + np.asarray(reward) / beta
    e = np.exp(e - e.max())
    return e / e.sum()


def numpy_information(reward, mu):
    """The Fisher information of one label, as a Laplacian."""
    reward, mu = np.asarray(reward), np.asarray(mu)
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    edges = (mu + mu.T) * p * (1 - p)
    np.fill_diagonal(edges, 0.0)
    return np.diag(edges.sum(1)) - edges


def numpy_price(log_ref, reward, beta, mu):
    star = numpy_star(log_ref, reward, beta)
    sigma = np.diag(star) - np.outer(star, star)
    return np.trace(sigma @ np.linalg.pinv(numpy_information(reward, mu), rcond=1e-12)) / (2 * beta)


def mp_price(log_ref, reward, beta, mu):
    """Σ_{i<j} π*_i π*_j R_ij / (2β), R_ij the effective resistance; all in mpmath, for a connected graph."""
    with mpmath.workdps(120):
        k = len(reward)
        e = [mpmath.exp(mpmath.mpf(a) + mpmath.mpf(r) / mpmath.mpf(beta)) for a, r in zip(log_ref, reward, strict=True)]
        star = [x / mpmath.fsum(e) for x in e]
        laplacian = mpmath.matrix(k, k)
        for i in range(k):
            for j in range(k):
                if i != j:
                    gap = mpmath.mpf(reward[i]) - mpmath.mpf(reward[j])
                    p = 1 / (1 + mpmath.exp(-gap))
                    w = (mpmath.mpf(mu[i][j]) + mpmath.mpf(mu[j][i])) * p * (1 / (1 + mpmath.exp(gap)))
                    laplacian[i, j] -= w
                    laplacian[i, i] += w
        inverse = (laplacian[: k - 1, : k - 1]) ** -1  # grounded at the last response

        def at(i, j):
            return inverse[i, j] if i < k - 1 and j < k - 1 else mpmath.mpf(0)

        return mpmath.fsum(
            star[i] * star[j] * (at(i, i) + at(j, j) - 2 * at(i, j)) for i in range(k) for j in range(i)
        ) / (2 * mpmath.mpf(beta))


def uniform_pairs(k):
    return (1 - torch.eye(k, dtype=F64)) / (k * (k - 1))


def product_pairs(log_p):
    """Two independent draws from a policy, drawn again until they differ."""
    mu = log_p.exp().unsqueeze(-1) * log_p.exp().unsqueeze(-2)
    mu = mu * (1 - torch.eye(mu.shape[-1], dtype=F64))
    return mu / mu.sum((-1, -2), keepdim=True)


def random_problem(seed, *shape, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    log_ref, reward = (torch.randn(*shape, dtype=F64, generator=generator) for _ in range(2))
    return log_ref.log_softmax(-1).to(dtype), reward.to(dtype)


def random_weights(seed, *shape):
    """Asymmetric, and with labels thrown away on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.rand(*shape, shape[-1], dtype=F64, generator=generator)
    return mu / mu.sum((-1, -2), keepdim=True)


# The price: by hand, by formula, by simulation.


def test_two_equal_responses_by_hand():
    """p(1−p) = ¼ and every label is on the one pair, so Var(r̂_1 − r̂_2) = 4/N; Σ's share is ¼: ¼·4/(2β) = 1/(2β)."""
    log_ref, reward = torch.full((2,), math.log(0.5), dtype=F64), torch.zeros(2, dtype=F64)
    for mu in ([[0, 0.5], [0.5, 0]], [[0, 1], [0, 0]], [[0, 0.2], [0.8, 0]]):
        price = exact.label_price(log_ref, reward, 0.25, torch.tensor(mu, dtype=F64))
        assert price.item() == pytest.approx(2.0, rel=1e-12)


def test_a_chain_of_comparisons_by_hand():
    """Responses 0 and 1 are compared only through 2, where the reference has no mass: variances 4/½ + 4/½ = 16.

    π* = (½, ½, 0), so the price is ¼·16/(2β) = 2/β.
    """
    log_ref = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()
    mu = torch.tensor([[0, 0, 0.5], [0, 0, 0], [0, 0.5, 0]], dtype=F64)
    assert exact.label_price(log_ref, torch.zeros(3, dtype=F64), 0.5, mu).item() == pytest.approx(4.0)


@given(st.integers(2, 8), st.floats(0.2, 5), st.integers(0, 10**6))
def test_the_price_agrees_with_numpys_pseudo_inverse(k, beta, seed):
    log_ref, reward = random_problem(seed, k)
    mu = random_weights(seed, k)
    price = exact.label_price(log_ref, reward, beta, mu)
    assert price.item() == pytest.approx(numpy_price(log_ref, reward, beta, mu), rel=1e-8)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    "reward",
    [
        [0.0, 20.0, 21.0, -15.0],
        [40.0, 0.0, 0.5],
        [0.0, 0.0, 60.0, 60.0, 120.0],
    ],
    ids=str,
)
def test_the_price_keeps_its_digits_where_some_labels_are_all_but_certain(reward, beta):
    """A gap of 40 leaves p(1 − p) = 4e-18 beside ¼: the Laplacian is singular in doubles, the price is not."""
    k = len(reward)
    log_ref = torch.full((k,), -math.log(k), dtype=F64)
    mu = uniform_pairs(k)
    truth = float(mp_price(log_ref.tolist(), reward, beta, mu.tolist()))
    price = exact.label_price(log_ref, torch.tensor(reward, dtype=F64), beta, mu)
    assert price.item() == pytest.approx(truth, rel=1e-6)


def simulated_regret(log_ref, reward, beta, mu, labels, runs, seed):
    """Regret of `runs` policies, each plugged in from a Bradley–Terry fit by Newton to `labels` labels."""
    rng = np.random.default_rng(seed)
    k = len(reward)
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    asked = rng.multinomial(labels, mu.ravel(), size=runs).reshape(runs, k, k)
    first = rng.binomial(asked, p)
    won = first + np.swapaxes(asked - first, 1, 2)
    off = 1 - np.eye(k)
    won = won * off
    met = won + np.swapaxes(won, 1, 2)
    fit = np.zeros((runs, k))
    for _ in range(12):
        q = 1 / (1 + np.exp(fit[:, None, :] - fit[:, :, None]))
        slope = (won - met * q).sum(-1)
        edges = met * q * (1 - q)
        curve = -edges + np.einsum("rij,kj->rik", edges, np.ones((k, k))) * np.eye(k)
        step = np.linalg.solve(curve + 1.0, slope[..., None])[..., 0]  # the ones fix the free constant
        fit += step
    assert np.abs(step).max() < 1e-8, "Newton has not converged"
    log_hat = log_ref + fit / beta
    log_hat -= np.log(np.exp(log_hat).sum(-1, keepdims=True))
    log_star = np.log(numpy_star(log_ref, reward, beta))
    return beta * (np.exp(log_hat) * (log_hat - log_star)).sum(-1)


@pytest.mark.parametrize("draw", ["uniform", "asymmetric, some wasted", "best"])
def test_the_price_is_n_times_the_regret_of_a_simulation(draw):
    """Six arms, β = 0.5, N = 40,000 labels, 3,000 runs.

    The allowance: the price is the first term of an expansion in (r̂ − r)/β; the next is smaller by its mean
    square, E|r̂ − r|²/β² = tr(I⁺)/(Nβ²), here about one percent. To that, four standard errors of the mean.
    """
    beta, labels, runs = 0.5, 40_000, 3_000
    log_ref, reward = random_problem(11, 6)
    mu = {
        "uniform": uniform_pairs(6),
        "asymmetric, some wasted": random_weights(3, 6),
        "best": exact.optimal_pair_design(log_ref, reward, beta),
    }[draw]
    price = exact.label_price(log_ref, reward, beta, mu).item()
    mu = mu.numpy() / mu.numpy().sum()
    found = labels * simulated_regret(log_ref.numpy(), reward.numpy(), beta, mu, labels, runs, seed=0)
    error = found.std() / math.sqrt(runs)
    next_term = np.trace(np.linalg.pinv(numpy_information(reward, mu))) / (labels * beta**2)
    assert next_term < 0.05
    assert error < 0.03 * price
    assert abs(found.mean() - price) < 4 * error + next_term * price


def test_the_price_is_the_second_derivative_of_the_regret_against_the_fits_covariance():
    """tr(H C)/2 with H the Hessian of r̂ ↦ regret(π*(r̂)) at r̂ = r by autograd, and C the inverse information."""
    log_ref, reward = random_problem(5, 5)
    mu, beta = random_weights(5, 5), 0.7
    hessian = torch.autograd.functional.hessian(
        lambda r: exact.regret(exact.optimal_policy(log_ref, r, beta), log_ref, reward, beta), reward
    )
    covariance = np.linalg.pinv(numpy_information(reward, mu))
    truth = np.trace(hessian.numpy() @ covariance) / 2
    assert exact.label_price(log_ref, reward, beta, mu).item() == pytest.approx(truth, rel=1e-9)


# Invariances.


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(-100, 100))
def test_what_the_price_does_not_see(k, seed, constant):
    """A constant in the reward; which response of a pair is named first; the order of the responses."""
    log_ref, reward = random_problem(seed, k)
    mu = random_weights(seed, k)
    price = exact.label_price(log_ref, reward, 0.5, mu)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    for other in (
        exact.label_price(log_ref, reward + constant, 0.5, mu),
        exact.label_price(log_ref, reward, 0.5, mu.T),
        exact.label_price(log_ref, reward, 0.5, (mu + mu.T) / 2),
        exact.label_price(log_ref[order], reward[order], 0.5, mu[order][:, order]),
    ):
        torch.testing.assert_close(other, price, rtol=1e-8, atol=0)


@given(st.integers(2, 6), st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_labels_thrown_away_raise_the_price_in_proportion(k, seed, wasted):
    """A share f of the labels spent on (i, i) teaches nothing: the price is that of the rest over 1 − f."""
    log_ref, reward = random_problem(seed, k)
    useful = uniform_pairs(k)
    mixed = (1 - wasted) * useful + wasted * torch.eye(k, dtype=F64) / k
    torch.testing.assert_close(
        exact.label_price(log_ref, reward, 0.5, mixed),
        exact.label_price(log_ref, reward, 0.5, useful) / (1 - wasted),
        rtol=1e-9,
        atol=0,
    )


def test_the_price_is_convex_in_the_weights():
    log_ref, reward = random_problem(8, 5)
    for seed in range(20):
        a, b = random_weights(seed, 5), random_weights(seed + 100, 5)
        between = exact.label_price(log_ref, reward, 0.5, (a + b) / 2)
        ends = [exact.label_price(log_ref, reward, 0.5, mu) for mu in (a, b)]
        assert between <= sum(ends) / 2 + 1e-9


def test_a_policy_that_is_sure_already_needs_no_labels():
    """At tiny β, π* sits on one response whatever small errors the rewards have."""
    log_ref, reward = random_problem(9, 4)
    assert exact.label_price(log_ref, reward, 1e-8, uniform_pairs(4)).item() == 0.0


# Who must be compared.


def two_islands():
    mu = torch.zeros(4, 4, dtype=F64)
    mu[0, 1], mu[2, 3] = 0.5, 0.5
    return mu


def test_responses_that_no_chain_of_comparisons_joins_cost_infinitely_much():
    log_ref, reward = random_problem(10, 4)
    assert exact.label_price(log_ref, reward, 0.5, two_islands()).item() == INF
    only_the_diagonal = torch.eye(4, dtype=F64) / 4
    assert exact.label_price(log_ref, reward, 0.5, only_the_diagonal).item() == INF
    one_left_out = torch.zeros(4, 4, dtype=F64)
    one_left_out[:3, :3] = uniform_pairs(3)
    assert exact.label_price(log_ref, reward, 0.5, one_left_out).item() == INF


def test_islands_that_the_policy_does_not_need_cost_nothing_more():
    """With no mass on 2 and 3 only the pair (0, 1) counts, and it has half the labels: twice its price alone."""
    log_ref = torch.tensor([0.3, 0.7, 0.0, 0.0], dtype=F64).log()
    reward = torch.tensor([0.5, -0.5, 2.0, 1.0], dtype=F64)
    price = exact.label_price(log_ref, reward, 0.5, two_islands())
    alone = exact.label_price(log_ref[:2], reward[:2], 0.5, uniform_pairs(2))
    torch.testing.assert_close(price, 2 * alone)


def test_a_single_response_has_nothing_to_learn():
    one = torch.zeros(1, dtype=F64)
    assert exact.label_price(one, one, 0.5, torch.ones(1, 1, dtype=F64)).item() == 0.0


# Shapes, types, gradients.


def test_leading_axes_are_many_problems_at_once():
    log_ref, reward = random_problem(12, 2, 3, 4)
    log_ref = log_ref.clone()
    log_ref[0, 0] = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=F64).log()
    mu = random_weights(12, 2, 3, 4)
    mu[0, 0] = mu[1, 1] = two_islands()
    together = exact.label_price(log_ref, reward, 0.5, mu)
    shared = exact.label_price(log_ref, reward, 0.5, mu[0, 1])
    many_designs = exact.label_price(log_ref[0, 1], reward[0, 1], 0.5, mu)
    design = exact.optimal_pair_design(log_ref, reward, 0.5)
    assert together.shape == shared.shape == many_designs.shape == (2, 3)
    assert design.shape == (2, 3, 4, 4)
    assert together[1, 1].item() == INF and math.isfinite(together[0, 0].item())
    for i in range(2):
        for j in range(3):
            one = (log_ref[i, j], reward[i, j], 0.5)
            torch.testing.assert_close(together[i, j], exact.label_price(*one, mu[i, j]))
            torch.testing.assert_close(shared[i, j], exact.label_price(*one, mu[0, 1]))
            torch.testing.assert_close(
                many_designs[i, j], exact.label_price(log_ref[0, 1], reward[0, 1], 0.5, mu[i, j])
            )
            alone = exact.optimal_pair_design(*one)
            torch.testing.assert_close(
                exact.label_price(*one, design[i, j]), exact.label_price(*one, alone), rtol=3e-4, atol=0
            )


def test_float32_agrees_with_float64():
    log_ref, reward = random_problem(13, 5, dtype=torch.float32)
    mu = random_weights(13, 5).float()
    price = exact.label_price(log_ref, reward, 0.5, mu)
    assert price.dtype == torch.float32
    wide = exact.label_price(log_ref.double(), reward.double(), 0.5, mu.double())
    torch.testing.assert_close(price.double(), wide, rtol=1e-4, atol=0)


def test_gradients_agree_with_finite_differences():
    log_ref, reward = random_problem(14, 4)
    logits, reward = log_ref.clone().requires_grad_(), reward.requires_grad_()
    raw = random_weights(14, 4).log().requires_grad_()

    def price(a, r, w):
        return exact.label_price(a.log_softmax(-1), r, 0.5, w.flatten().softmax(0).view(4, 4))

    assert torch.autograd.gradcheck(price, (logits, reward, raw))


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([-1e6, -1e3, -30.0, 0.0, 0.5, 30.0, 1e3, 1e6]), min_size=1, max_size=5),
    st.floats(-8, 8),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 4),
)
def test_no_nan_and_no_foreign_error_at_extremes(reward, exponent, dtype, hole):
    """Finite or +inf, forward and backward: labels may cost more than doubles hold, but never nan."""
    k = len(reward)
    logits = torch.zeros(k, dtype=dtype)
    if k > 1:
        logits[hole % k] = -INF
    reward = torch.tensor(reward, dtype=dtype, requires_grad=True)
    mu = uniform_pairs(k).to(dtype) if k > 1 else torch.ones(1, 1, dtype=dtype)
    mu.requires_grad_()
    price = exact.label_price(logits.log_softmax(-1), reward, 10.0**exponent, mu)
    assert not torch.isnan(price).any() and price >= 0
    if torch.isfinite(price):
        for slope in torch.autograd.grad(price, (reward, mu)):
            assert not torch.isnan(slope).any()


# The best design.


def slopes(log_ref, reward, beta, mu):
    """−∂price/∂μ of each unordered pair, by the formula c_ij bᵀ I⁺ Σ I⁺ b/(2β) and numpy's pseudo-inverse."""
    star = numpy_star(log_ref, reward, beta)
    inverse = np.linalg.pinv(numpy_information(reward, mu), rcond=1e-12)
    middle = inverse @ (np.diag(star) - np.outer(star, star)) @ inverse
    reward = np.asarray(reward)
    p = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    spread = np.diag(middle)[:, None] + np.diag(middle)[None, :] - 2 * middle
    return p * (1 - p) * spread / (2 * beta)


def price_towards_each_pair(log_ref, reward, beta, mu, step):
    """The price after moving a share `step` of all labels onto one pair, for each pair in turn."""
    k = len(reward)
    moved = []
    for i in range(k):
        for j in range(i + 1, k):
            one = torch.zeros(k, k, dtype=F64)
            one[i, j] = one[j, i] = 0.5
            moved.append((1 - step) * mu + step * one)
    return exact.label_price(log_ref, reward, beta, torch.stack(moved))


def assert_is_a_design(mu):
    k = mu.shape[-1]
    assert (mu >= 0).all()
    assert torch.equal(mu, mu.transpose(-1, -2))
    assert (mu.diagonal(dim1=-2, dim2=-1) == 0).all()
    torch.testing.assert_close(mu.sum((-1, -2)), torch.ones(mu.shape[:-2], dtype=mu.dtype), rtol=0, atol=1e-12)
    assert k > 1


def test_two_responses_leave_one_design():
    log_ref, reward = random_problem(15, 2)
    mu = exact.optimal_pair_design(log_ref, reward, 0.5)
    assert mu.tolist() == [[0.0, 0.5], [0.5, 0.0]]


def test_responses_that_are_all_alike_are_compared_all_alike():
    """By symmetry and convexity the uniform design is best; its price for K alike is (K − 1)²/(K β).

    Each pair has 2/(K(K−1)) of the labels at p(1 − p) = ¼, so I = (2/(K(K−1)))·¼·(K·1 − 11ᵀ) has eigenvalue
    1/(2(K−1)) on what Σ = (1 − 11ᵀ/K)/K sees: tr = (K−1)/K · 2(K−1), halved and over β.
    """
    for k in (3, 5):
        log_ref, reward = torch.full((k,), -math.log(k), dtype=F64), torch.zeros(k, dtype=F64)
        mu = exact.optimal_pair_design(log_ref, reward, 0.5)
        price = exact.label_price(log_ref, reward, 0.5, mu).item()
        assert price == pytest.approx((k - 1) ** 2 / (k * 0.5), rel=1e-4)
        torch.testing.assert_close(mu, uniform_pairs(k), rtol=0.05, atol=0)


@settings(max_examples=20)
@given(st.integers(2, 8), st.sampled_from([0.3, 0.5, 1.0, 2.0]), st.integers(0, 10**6))
def test_the_design_carries_its_certificate(k, beta, seed):
    """Kiefer and Wolfowitz: a design is best exactly when no pair's slope exceeds the price.

    The slope is taken twice: by a difference of prices after moving a millionth of all labels onto the pair,
    and by the formula in numpy. 2e-4 is twice the tolerance the design promises.
    """
    log_ref, reward = random_problem(seed, k)
    mu = exact.optimal_pair_design(log_ref, reward, beta)
    assert_is_a_design(mu)
    price = exact.label_price(log_ref, reward, beta, mu)
    step = 1e-6
    gained = (price - price_towards_each_pair(log_ref, reward, beta, mu, step)) / step
    assert (gained <= 2e-4 * price + 1e-9 * price / step).all()
    assert slopes(log_ref, reward, beta, mu).max() <= price.item() * (1 + 2e-4)


def test_the_certificate_fails_for_a_design_that_is_not_best():
    """Uniform pairs on an uneven problem: some pair gains visibly more than it costs, both ways of looking."""
    log_ref, reward = random_problem(16, 5)
    mu = uniform_pairs(5)
    price = exact.label_price(log_ref, reward, 0.5, mu)
    gained = (price - price_towards_each_pair(log_ref, reward, 0.5, mu, 1e-6)) / 1e-6
    assert gained.max() > 0.1 * price
    assert slopes(log_ref, reward, 0.5, mu).max() > 1.1 * price.item()


@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_general_optimiser_finds_no_better_design(k, seed):
    """SciPy's BFGS over the softmax of free logits, from five starts, on numpy's own formula."""
    log_ref, reward = random_problem(100 + seed, k)
    beta = 0.5
    above = np.triu_indices(k, 1)

    def weights(logits):
        w = np.exp(logits - logits.max())
        mu = np.zeros((k, k))
        mu[above] = w / w.sum() / 2
        return mu + mu.T

    rng = np.random.default_rng(seed)
    best = min(
        minimize(
            lambda z: numpy_price(log_ref, reward, beta, weights(z)),
            rng.normal(size=len(above[0])),
            method="BFGS",
        ).fun
        for _ in range(5)
    )
    found = numpy_price(log_ref, reward, beta, exact.optimal_pair_design(log_ref, reward, beta).numpy())
    assert found == pytest.approx(best, rel=1e-3)
    assert found <= best * (1 + 2e-4)


@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0, 2.0])
def test_no_usual_way_of_drawing_pairs_is_better(beta):
    """On 20 random ten-armed bandits: uniform, from the reference, and from π*."""
    log_ref, reward = random_problem(17, 20, 10)
    mu = exact.optimal_pair_design(log_ref, reward, beta)
    assert_is_a_design(mu)
    best = exact.label_price(log_ref, reward, beta, mu)
    star = exact.optimal_policy(log_ref, reward, beta)
    for name, usual in {
        "uniform": uniform_pairs(10),
        "reference": product_pairs(log_ref),
        "optimum": product_pairs(star),
    }.items():
        price = exact.label_price(log_ref, reward, beta, usual)
        assert (best <= price * (1 + 2e-4)).all(), name
        assert (price / best).median() > 1.05, f"{name}: the comparison could not have failed"


def test_a_response_the_policy_never_gives_is_still_worth_asking_about_between_two_far_apart():
    """r = 0 and 8, both in π*; 4 is not. The direct pair tells p(1 − p) = 3.4e-4 a label; by way of the middle
    each half tells 0.0177: 2·2/0.0177 = 227 against 1/3.4e-4 = 2,983 for one label in all. So the middle it is.
    """
    log_ref = torch.tensor([math.log(0.5), -INF, math.log(0.5)], dtype=F64)
    reward = torch.tensor([0.0, 4.0, 8.0], dtype=F64)
    mu = exact.optimal_pair_design(log_ref, reward, 10.0)
    assert_is_a_design(mu)
    direct, halves = mu[0, 2].item(), (2 * mu[0, 1].item(), 2 * mu[1, 2].item())
    assert direct < 1e-3
    assert halves == pytest.approx((0.5, 0.5), abs=1e-2)


def test_pairs_of_no_use_get_no_weight():
    """Response 2 has no mass and lies far below the other two: asking about it teaches nothing."""
    log_ref = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()
    reward = torch.tensor([0.0, 0.5, -10.0], dtype=F64)
    mu = exact.optimal_pair_design(log_ref, reward, 0.5)
    assert 2 * mu[0, 1].item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("beta", [1e-8, 1e-2, 1e2, 1e8])
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e6])
def test_the_design_is_a_design_or_one_clear_error_at_extremes(beta, scale):
    log_ref, reward = random_problem(18, 5)
    try:
        mu = exact.optimal_pair_design(log_ref, (scale * reward).clamp(-1e6, 1e6), beta)
    except LabError as error:
        assert "certif" in str(error)
    else:
        assert_is_a_design(mu)


def test_no_design_is_called_best_that_another_beats():
    """r = 0, 0, 60, 60, 120 at β = 1: the price is near Σ_i π*_i R_i4/2 with π*_i = e⁻⁶⁰ for i = 2, 3.

    Asking 2 against 4 nearly always and 2 against 3 now and then makes both resistances e⁶⁰, a price near 1;
    sharing the labels between (2, 4) and (3, 4) alone costs 2. Doubles cannot certify the first: an error will do.
    """
    log_ref = torch.full((5,), -math.log(5), dtype=F64)
    reward = torch.tensor([0.0, 0.0, 60.0, 60.0, 120.0], dtype=F64)
    good = torch.full((5, 5), 1e-4, dtype=F64).fill_diagonal_(0.0)
    good[2, 4] += 0.98
    good[2, 3] += 0.018
    good /= good.sum()
    reached = mp_price(log_ref.tolist(), reward.tolist(), 1.0, good.tolist())
    assert reached < 1.1
    try:
        mu = exact.optimal_pair_design(log_ref, reward, 1.0)
    except LabError as error:
        assert "certif" in str(error)
    else:
        assert mp_price(log_ref.tolist(), reward.tolist(), 1.0, mu.tolist()) <= reached * (1 + 2e-4)


# Bad input.


def test_bad_input_is_refused_by_name():
    log_ref, reward, mu = torch.full((3,), -math.log(3), dtype=F64), torch.zeros(3, dtype=F64), uniform_pairs(3)
    price, design = exact.label_price, exact.optimal_pair_design
    for beta in (0.0, -1.0, math.nan, INF):
        with pytest.raises(LabError, match="beta"):
            price(log_ref, reward, beta, mu)
        with pytest.raises(LabError, match="beta"):
            design(log_ref, reward, beta)
    for bad in (torch.zeros(3, dtype=F64), [0.0, 0.0, 0.0]):
        with pytest.raises(LabError, match="log_ref"):
            price(bad, reward, 0.5, mu)
        with pytest.raises(LabError, match="log_ref"):
            design(bad, reward, 0.5)
    for bad in (torch.tensor([0.0, math.nan, 0.0], dtype=F64), torch.zeros(2, dtype=F64), [0.0, 0.0, 0.0]):
        with pytest.raises(LabError, match="reward"):
            price(log_ref, bad, 0.5, mu)
        with pytest.raises(LabError, match="reward"):
            design(log_ref, bad, 0.5)


@pytest.mark.parametrize(
    "bad",
    [
        uniform_pairs(2),
        torch.full((3,), 1 / 3, dtype=F64),
        uniform_pairs(3) * 2,
        uniform_pairs(3) * 0.99,
        torch.zeros(3, 3, dtype=F64),
        torch.tensor([[0, 1.5, 0], [0, 0, -0.5], [0, 0, 0]], dtype=F64),
        torch.tensor([[0, math.nan, 0], [0, 0, 1], [0, 0, 0]], dtype=F64),
        torch.tensor([[0, INF, 0], [0, 0, 1], [0, 0, 0]], dtype=F64),
        [[0.0, 1.0, 0.0]] * 3,
        torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    ],
    ids=["two", "vector", "sum 2", "sum 0.99", "sum 0", "negative", "nan", "inf", "list", "integers"],
)
def test_weights_that_are_no_distribution_of_pairs_are_refused_by_name(bad):
    log_ref, reward = torch.full((3,), -math.log(3), dtype=F64), torch.zeros(3, dtype=F64)
    with pytest.raises(LabError, match="pair_weights"):
        exact.label_price(log_ref, reward, 0.5, bad)


def test_weights_whose_leading_axes_do_not_match_are_refused_by_name():
    log_ref, reward = random_problem(19, 2, 3)
    with pytest.raises(LabError, match="pair_weights"):
        exact.label_price(log_ref, reward, 0.5, uniform_pairs(3).expand(5, 3, 3))


def test_one_response_has_no_pair():
    one = torch.zeros(1, dtype=F64)
    with pytest.raises(LabError, match="two responses"):
        exact.optimal_pair_design(one, one, 0.5)


def test_the_d_optimal_design_meets_the_certificate_of_kiefer_and_wolfowitz():
    """Σ μ_ij c_ij R_ij = K − 1 for every design, and at the optimum no pair exceeds K − 1. R is by the pseudo-inverse.

    With equal rewards all pairs are alike, so the design is uniform.
    """
    reward = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = exact.d_optimal_pair_design(reward)
    gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    information = gap.exp() / (1 + gap.exp()) ** 2
    edges = 2 * weights * information
    inverse = torch.linalg.pinv(edges.sum(-1).diag_embed() - edges, hermitian=True)
    own = inverse.diagonal(dim1=-2, dim2=-1)
    variance = information * (own.unsqueeze(-1) + own.unsqueeze(-2) - 2 * inverse)
    assert (weights * variance).sum((-1, -2)) == pytest.approx(5.0) and variance.amax((-1, -2)).max() < 5 * 1.002
    even = exact.d_optimal_pair_design(torch.zeros(1, 4, dtype=torch.float64))[0]
    assert even[~torch.eye(4, dtype=torch.bool)] == pytest.approx(1 / 12)
