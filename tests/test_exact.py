"""`rlhf_lab.exact`: Z, π*, KL, J, regret, the frontier and preferences, against mpmath and their identities.

mpmath with 60 digits is the independent way: it holds exp(1e14) without a trick, so the oracles below are the
definitions, written down. best-of-n and the filter are in test_best_of_n_and_filter.py, labels in test_label_value.py.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import exact
from rlhf_lab.errors import LabError

F64 = torch.float64
EPS = 2.3e-16
INF = math.inf

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# The definitions, in mpmath.


def mp_tilted(log_ref, reward, beta):
    """log π_ref + r/β of the supported responses, by index."""
    return {
        i: mpmath.mpf(a) + mpmath.mpf(r) / mpmath.mpf(beta)
        for i, (a, r) in enumerate(zip(log_ref, reward, strict=True))
        if a > -INF
    }


def mp_log_sum(terms):
    top = max(terms)
    return top + mpmath.log(mpmath.fsum(mpmath.exp(x - top) for x in terms))


def mp_log_partition(log_ref, reward, beta):
    return mp_log_sum(list(mp_tilted(log_ref, reward, beta).values()))


def mp_optimal(log_ref, reward, beta):
    """log π*, a list of mpf with -inf where the reference has no mass."""
    tilted = mp_tilted(log_ref, reward, beta)
    total = mp_log_sum(list(tilted.values()))
    return [tilted[i] - total if i in tilted else mpmath.mpf("-inf") for i in range(len(log_ref))]


def mp_kl(log_p, log_q):
    terms = []
    for a, b in zip(log_p, log_q, strict=True):
        if a > -INF:
            terms.append(mpmath.exp(a) * (mpmath.mpf(a) - mpmath.mpf(b)))
    return mpmath.fsum(terms)


def mp_objective(log_policy, log_ref, reward, beta):
    gain = mpmath.fsum(mpmath.exp(a) * mpmath.mpf(r) for a, r in zip(log_policy, reward, strict=True) if a > -INF)
    return gain - mpmath.mpf(beta) * mp_kl(log_policy, log_ref)


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


# Problems, ordinary and extreme.


@st.composite
def problems(draw, size=6.0, holes=True, span=1e6, exponents=8.0):
    """(log_ref, reward, beta, log_policy) of one prompt; the policy stays within the reference's support."""
    k = draw(st.integers(1, 6))
    supported = [True] + [draw(st.booleans()) or not holes for _ in range(k - 1)]
    rewards = st.one_of(
        st.floats(-3, 3),
        st.floats(-span, span),
        st.sampled_from([0.0, 1.0, -span, span]),
    )
    reward = [draw(rewards) for _ in range(k)]
    beta = 10.0 ** draw(st.floats(-exponents, exponents))
    logs = []
    for _ in range(2):
        logits = [draw(st.floats(-size, size)) if s else -INF for s in supported]
        logs.append(torch.tensor(logits, dtype=F64).log_softmax(-1))
    return logs[0], torch.tensor(reward, dtype=F64), beta, logs[1]


def magnitude(x):
    """The largest finite absolute value."""
    x = x[torch.isfinite(x)]
    return x.abs().max().item() if len(x) else 0.0


def random_problem(seed, *shape, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    log_ref, reward, log_policy = (torch.randn(*shape, dtype=F64, generator=generator) for _ in range(3))
    return log_ref.log_softmax(-1).to(dtype), reward.to(dtype), log_policy.log_softmax(-1).to(dtype)


# Values.


def test_a_problem_worked_by_hand():
    """π_ref = (½, ¼, ¼), r = (0, log 2, log 4), β = 1: Z = ½ + ½ + 1 = 2, π* = (¼, ¼, ½).

    J(π*) = log Z = log 2. J(π_ref) = E[r] = ¼ log 2 + ¼ log 4 = ¾ log 2, so its regret is ¼ log 2.
    """
    log_ref = torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()
    reward = torch.tensor([1.0, 2.0, 4.0], dtype=F64).log()
    log_star = exact.optimal_policy(log_ref, reward, 1.0)
    assert log_star.exp().tolist() == pytest.approx([0.25, 0.25, 0.5], rel=1e-12)
    assert exact.log_partition(log_ref, reward, 1.0).item() == pytest.approx(math.log(2), rel=1e-12)
    assert exact.objective(log_star, log_ref, reward, 1.0).item() == pytest.approx(math.log(2), rel=1e-12)
    assert exact.objective(log_ref, log_ref, reward, 1.0).item() == pytest.approx(0.75 * math.log(2))
    assert exact.regret(log_ref, log_ref, reward, 1.0).item() == pytest.approx(0.25 * math.log(2))
    assert exact.implicit_reward(log_star, log_ref, 1.0).tolist() == pytest.approx(
        [-math.log(2), 0.0, math.log(2)], abs=1e-12
    )


def test_kl_by_hand_and_where_a_policy_has_no_mass():
    """KL((½, ½, 0)‖(¼, ¼, ½)) = log 2; the other way round the first has no mass where the second has: inf."""
    p, q = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log(), torch.tensor([0.25, 0.25, 0.5], dtype=F64).log()
    assert exact.kl(p, q).item() == pytest.approx(math.log(2), rel=1e-12)
    assert exact.kl(q, p).item() == INF
    assert exact.kl(p, p).item() == 0.0
    assert exact.kl(q, q).item() == 0.0


@given(problems())
def test_the_optimal_policy_agrees_with_mpmath_over_all_betas_and_rewards(problem):
    log_ref, reward, beta, _ = problem
    found = exact.optimal_policy(log_ref, reward, beta)
    assert not torch.isnan(found).any()
    truth = mp_optimal(log_ref.tolist(), reward.tolist(), beta)
    for value, true in zip(found.tolist(), truth, strict=True):
        assert value == pytest.approx(float(true), rel=1e-12, abs=1e-12)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@given(problems())
def test_the_log_partition_agrees_with_mpmath_over_all_betas_and_rewards(problem):
    log_ref, reward, beta, _ = problem
    truth = float(mp_log_partition(log_ref.tolist(), reward.tolist(), beta))
    scale = 1 + magnitude(reward) / beta + magnitude(log_ref)
    assert exact.log_partition(log_ref, reward, beta).item() == pytest.approx(truth, abs=8 * EPS * scale)


@given(problems())
def test_the_objective_agrees_with_mpmath_over_all_betas_and_rewards(problem):
    log_ref, reward, beta, log_policy = problem
    truth = float(mp_objective(log_policy.tolist(), log_ref.tolist(), reward.tolist(), beta))
    scale = magnitude(reward) + beta * (1 + magnitude(log_ref) + magnitude(log_policy))
    assert exact.objective(log_policy, log_ref, reward, beta).item() == pytest.approx(truth, abs=30 * EPS * scale)


@given(problems())
def test_regret_agrees_with_mpmath_over_all_betas_and_rewards(problem):
    log_ref, reward, beta, log_policy = problem
    star = mp_optimal(log_ref.tolist(), reward.tolist(), beta)
    truth = float(mpmath.mpf(beta) * mp_kl(log_policy.tolist(), star))
    scale = magnitude(reward) + beta * (1 + magnitude(log_ref) + magnitude(log_policy))
    found = exact.regret(log_policy, log_ref, reward, beta).item()
    assert found == pytest.approx(truth, abs=30 * EPS * scale)


@given(problems())
def test_kl_agrees_with_mpmath_both_ways(problem):
    log_ref, _, _, log_policy = problem
    for p, q in ((log_ref, log_policy), (log_policy, log_ref)):
        scale = 1 + magnitude(p) + magnitude(q)
        truth = float(mp_kl(p.tolist(), q.tolist()))
        assert exact.kl(p, q).item() == pytest.approx(truth, abs=20 * EPS * scale)


def test_close_rewards_far_from_zero_keep_their_difference():
    """r = 1e6 and 1e6 − 2⁻³⁰ at β = 1e-8: the gap is 2⁻³⁰/1e-8 = 0.0931 nats, lost if r/β is formed first.

    Each r/β is 1e14, where doubles are 1/64 apart.
    """
    reward = torch.tensor([1e6, 1e6 - 2**-30, -1e6], dtype=F64)
    log_ref = torch.full((3,), -math.log(3), dtype=F64)
    log_star = exact.optimal_policy(log_ref, reward, 1e-8)
    assert (log_star[0] - log_star[1]).item() == pytest.approx(2**-30 / 1e-8, rel=1e-9)


@given(problems(), st.sampled_from([torch.float32, torch.float64]))
def test_nothing_is_nan_in_either_type_forward_or_backward(problem, dtype):
    log_ref, reward, beta, log_policy = problem
    log_ref, reward, log_policy = (x.to(dtype).detach().requires_grad_() for x in (log_ref, reward, log_policy))
    values = {
        "log_partition": exact.log_partition(log_ref, reward, beta),
        "optimal_policy": exact.optimal_policy(log_ref, reward, beta),
        "implicit_reward": exact.implicit_reward(log_policy, log_ref, beta),
        "kl": exact.kl(log_policy, log_ref),
        "objective": exact.objective(log_policy, log_ref, reward, beta),
        "regret": exact.regret(log_policy, log_ref, reward, beta),
        "frontier": torch.stack(exact.frontier(log_ref, reward, torch.tensor([beta, 1.0], dtype=dtype))),
        "preference": exact.preference(reward),
    }
    for name, value in values.items():
        assert value.dtype == dtype, name
        assert not torch.isnan(value).any(), name
        finite = torch.where(torch.isfinite(value), value, 0.0).sum()
        for slope in torch.autograd.grad(finite, (log_ref, reward, log_policy), allow_unused=True):
            assert slope is None or not torch.isnan(slope).any(), f"gradient of {name}"


@both_types
def test_a_policy_that_hardly_leaves_the_support_has_infinite_kl_not_nan(dtype):
    """p = e⁻¹⁰⁰⁰ underflows to 0 and log p − log q is +inf: 0·inf must not become NaN. It is a mass, so inf."""
    log_p = torch.tensor([0.0, -1000.0], dtype=dtype)
    log_q = torch.tensor([0.0, -INF], dtype=dtype)
    assert exact.kl(log_p, log_q).item() == INF
    reward = torch.zeros(2, dtype=dtype)
    assert exact.objective(log_p, log_q, reward, 0.5).item() == -INF
    assert exact.regret(log_p, log_q, reward, 0.5).item() == INF


@both_types
def test_float32_agrees_with_float64(dtype):
    log_ref, reward, log_policy = random_problem(0, 4, 7, dtype=torch.float32)
    wide = (log_ref.double(), reward.double(), log_policy.double())
    for function in (
        lambda a, r, p: exact.log_partition(a, r, 0.5),
        lambda a, r, p: exact.optimal_policy(a, r, 0.5),
        lambda a, r, p: exact.implicit_reward(p, a, 0.5),
        lambda a, r, p: exact.kl(p, a),
        lambda a, r, p: exact.objective(p, a, r, 0.5),
        lambda a, r, p: exact.regret(p, a, r, 0.5),
        lambda a, r, p: exact.preference(r),
    ):
        narrow = function(log_ref.to(dtype), reward.to(dtype), log_policy.to(dtype))
        assert narrow.dtype == dtype
        torch.testing.assert_close(narrow.double(), function(*wide), rtol=1e-5, atol=1e-6)


def test_no_mass_in_the_reference_is_no_mass_in_the_optimum_however_great_the_reward():
    log_ref = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()
    reward = torch.tensor([0.0, 1.0, 1e6], dtype=F64)
    with_hole = exact.optimal_policy(log_ref, reward, 1e-3)
    assert with_hole[2].item() == -INF
    torch.testing.assert_close(with_hole[:2], exact.optimal_policy(log_ref[:2], reward[:2], 1e-3))
    assert exact.log_partition(log_ref, reward, 1e-3).item() == pytest.approx(1000 + math.log(0.5))
    assert exact.regret(log_ref, log_ref, reward, 1.0).item() == pytest.approx(
        exact.regret(log_ref[:2], log_ref[:2], reward[:2], 1.0).item()
    )
    outside = torch.tensor([0.25, 0.25, 0.5], dtype=F64).log()
    assert exact.objective(outside, log_ref, reward, 1.0).item() == -INF
    assert exact.regret(outside, log_ref, reward, 1.0).item() == INF


# Leading axes.


def test_leading_axes_are_many_problems_at_once():
    log_ref, reward, log_policy = random_problem(1, 2, 3, 5)
    log_ref = log_ref.clone()
    log_ref[1, 2] = torch.tensor([0.1, 0.0, 0.4, 0.0, 0.5], dtype=F64).log()
    log_policy[1, 2] = torch.tensor([0.3, 0.0, 0.4, 0.0, 0.3], dtype=F64).log()
    beta, betas = 0.7, torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    functions = {
        "log_partition": (lambda a, r, p: exact.log_partition(a, r, beta), (2, 3)),
        "optimal_policy": (lambda a, r, p: exact.optimal_policy(a, r, beta), (2, 3, 5)),
        "implicit_reward": (lambda a, r, p: exact.implicit_reward(p, a, beta), (2, 3, 5)),
        "kl": (lambda a, r, p: exact.kl(p, a), (2, 3)),
        "objective": (lambda a, r, p: exact.objective(p, a, r, beta), (2, 3)),
        "regret": (lambda a, r, p: exact.regret(p, a, r, beta), (2, 3)),
        "frontier kl": (lambda a, r, p: exact.frontier(a, r, betas)[0], (2, 3, 3)),
        "frontier reward": (lambda a, r, p: exact.frontier(a, r, betas)[1], (2, 3, 3)),
        "preference": (lambda a, r, p: exact.preference(r), (2, 3, 5, 5)),
    }
    for name, (function, shape) in functions.items():
        together = function(log_ref, reward, log_policy)
        assert together.shape == shape, name
        for i in range(2):
            for j in range(3):
                alone = function(log_ref[i, j], reward[i, j], log_policy[i, j])
                torch.testing.assert_close(together[i, j], alone, msg=name)


def test_one_reference_serves_many_rewards():
    log_ref, _, _ = random_problem(2, 4)
    _, reward, _ = random_problem(3, 6, 4)
    together = exact.optimal_policy(log_ref, reward, 0.3)
    assert together.shape == (6, 4)
    for row, r in zip(together, reward, strict=True):
        torch.testing.assert_close(row, exact.optimal_policy(log_ref, r, 0.3))


# Identities.


@given(problems(span=20, exponents=1.5))
def test_regret_is_the_difference_of_two_objectives(problem):
    log_ref, reward, beta, log_policy = problem
    log_star = exact.optimal_policy(log_ref, reward, beta)
    best = exact.objective(log_star, log_ref, reward, beta)
    difference = best - exact.objective(log_policy, log_ref, reward, beta)
    regret = exact.regret(log_policy, log_ref, reward, beta)
    torch.testing.assert_close(regret, difference, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(regret, beta * exact.kl(log_policy, log_star), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(best, beta * exact.log_partition(log_ref, reward, beta), rtol=1e-9, atol=1e-10)
    assert regret >= -1e-10
    assert exact.regret(log_star, log_ref, reward, beta).abs() <= 1e-10


@given(problems(span=20, exponents=1.5), st.sampled_from([-1e6, -1.0, 0.5, 1e6]))
def test_the_optimum_does_not_see_a_function_of_the_prompt(problem, constant):
    """The tolerance is what adding and taking off `constant` itself rounds away."""
    log_ref, reward, beta, _ = problem
    moved = exact.optimal_policy(log_ref, reward + constant, beta)
    slack = 1e-10 + 4 * EPS * (abs(constant) + 20) / beta
    torch.testing.assert_close(moved, exact.optimal_policy(log_ref, reward, beta), rtol=0, atol=slack)
    shift = exact.log_partition(log_ref, reward + constant, beta) - exact.log_partition(log_ref, reward, beta)
    assert shift.item() == pytest.approx(constant / beta, abs=4 * slack)


@given(problems(span=20, exponents=1.5))
def test_only_reward_over_beta_matters_to_the_optimum(problem):
    log_ref, reward, beta, _ = problem
    torch.testing.assert_close(
        exact.optimal_policy(log_ref, reward, beta),
        exact.optimal_policy(log_ref, 4 * reward, 4 * beta),
        rtol=1e-12,
        atol=1e-12,
    )


@given(problems(span=20, exponents=1.5, holes=False))
def test_the_implicit_reward_of_the_optimum_is_the_reward_up_to_beta_log_z(problem):
    log_ref, reward, beta, _ = problem
    implicit = exact.implicit_reward(exact.optimal_policy(log_ref, reward, beta), log_ref, beta)
    constant = beta * exact.log_partition(log_ref, reward, beta)
    torch.testing.assert_close(reward - implicit, constant.expand_as(reward), rtol=1e-9, atol=1e-9)


@given(problems(holes=False))
def test_every_policy_is_optimal_for_its_implicit_reward(problem):
    """The reparameterisation that makes DPO: π = π*(r̂_π), with log Z = 0."""
    log_ref, _, beta, log_policy = problem
    implicit = exact.implicit_reward(log_policy, log_ref, beta)
    torch.testing.assert_close(exact.optimal_policy(log_ref, implicit, beta), log_policy, rtol=1e-10, atol=1e-10)
    assert exact.log_partition(log_ref, implicit, beta).abs().item() <= 1e-10


def test_the_implicit_reward_is_known_only_where_the_reference_has_mass():
    log_ref = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()
    log_policy = torch.tensor([0.25, 0.75, 0.0], dtype=F64).log()
    implicit = exact.implicit_reward(log_policy, log_ref, 2.0)
    assert not torch.isnan(implicit).any()
    assert implicit[:2].tolist() == pytest.approx([2 * math.log(0.5), 2 * math.log(1.5)])


@given(problems())
def test_preferences_are_probabilities_that_answer_each_other(problem):
    reward = problem[1]
    p = exact.preference(reward)
    assert ((p >= 0) & (p <= 1)).all()
    torch.testing.assert_close(p + p.T, torch.ones_like(p))
    assert (p.diagonal() == 0.5).all()
    for i in range(len(reward)):
        for j in range(len(reward)):
            truth = 1 / (1 + mpmath.exp(mpmath.mpf(reward[j].item()) - mpmath.mpf(reward[i].item())))
            # The gap of two rewards is rounded once, to EPS·|gap|, before the exponential.
            gap = abs(reward[i] - reward[j]).item()
            assert p[i, j].item() == pytest.approx(float(truth), rel=1e-12 + 2 * EPS * gap, abs=1e-300)


# The frontier.


@given(problems(span=20, exponents=1.5))
def test_the_frontier_is_the_kl_and_reward_of_the_optimum_at_each_beta(problem):
    log_ref, reward, _, _ = problem
    betas = torch.tensor([3.0, 0.1, 1.0], dtype=F64)
    divergence, gain = exact.frontier(log_ref, reward, betas)
    assert divergence.shape == gain.shape == (3,)
    for i, beta in enumerate(betas.tolist()):
        star = mp_optimal(log_ref.tolist(), reward.tolist(), beta)
        assert divergence[i].item() == pytest.approx(float(mp_kl(star, log_ref.tolist())), rel=1e-9, abs=1e-12)
        expected = mpmath.fsum(mpmath.exp(a) * r for a, r in zip(star, reward.tolist(), strict=True))
        assert gain[i].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-10)


@given(problems(span=5))
def test_along_the_frontier_reward_and_kl_fall_as_beta_grows(problem):
    log_ref, reward, _, _ = problem
    divergence, gain = exact.frontier(log_ref, reward, torch.logspace(-3, 3, 40, dtype=F64))
    assert (divergence.diff() <= 1e-12).all()
    assert (gain.diff() <= 1e-11).all()


def test_the_frontier_runs_from_the_best_response_to_the_reference():
    """β → 0: all mass on the best, KL = −log π_ref(best). β → ∞: the reference itself."""
    log_ref, reward, _ = random_problem(4, 6)
    divergence, gain = exact.frontier(log_ref, reward, torch.tensor([1e-8, 1e8], dtype=F64))
    best = reward.argmax()
    assert gain.tolist() == pytest.approx([reward[best].item(), (log_ref.exp() * reward).sum().item()])
    assert divergence.tolist() == pytest.approx([-log_ref[best].item(), 0.0], abs=1e-12)


@given(problems(span=5, holes=False))
def test_no_policy_with_the_same_kl_has_more_reward_than_the_frontier(problem):
    """β is found by bisection so that π*_β has the policy's KL; past the frontier's end the best reward bounds."""
    log_ref, reward, _, log_policy = problem
    spent = exact.kl(log_policy, log_ref).item()
    earned = (log_policy.exp() * reward).sum().item()

    def at(beta):
        divergence, gain = exact.frontier(log_ref, reward, torch.tensor([beta], dtype=F64))
        return divergence.item(), gain.item()

    low, high = 1e-6, 1e6
    if at(low)[0] <= spent:
        assert earned <= reward.max().item() + 1e-9
        return
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if at(middle)[0] > spent else (low, middle)
    assert at(low)[1] >= earned - 1e-7


@given(problems(span=5, holes=False))
def test_every_policy_lies_below_every_tangent_of_the_frontier(problem):
    """The same claim by duality: E_π[r] − β KL(π) is nowhere more than at π*_β."""
    log_ref, reward, _, log_policy = problem
    betas = torch.logspace(-2, 2, 9, dtype=F64)
    divergence, gain = exact.frontier(log_ref, reward, betas)
    spent, earned = exact.kl(log_policy, log_ref), (log_policy.exp() * reward).sum()
    assert (earned - betas * spent <= gain - betas * divergence + 1e-9).all()


# Derivatives.


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_gradients_agree_with_finite_differences(shape):
    """Policies enter as softmax of free logits, so that a step keeps them normalised."""
    generator = torch.Generator().manual_seed(5)
    a, r, p = (torch.randn(*shape, dtype=F64, generator=generator).requires_grad_() for _ in range(3))
    betas = torch.tensor([0.4, 2.0], dtype=F64)
    functions = {
        "log_partition": lambda a, r, p: exact.log_partition(a.log_softmax(-1), r, 0.7),
        "optimal_policy": lambda a, r, p: exact.optimal_policy(a.log_softmax(-1), r, 0.7),
        "implicit_reward": lambda a, r, p: exact.implicit_reward(p.log_softmax(-1), a.log_softmax(-1), 0.7),
        "kl": lambda a, r, p: exact.kl(p.log_softmax(-1), a.log_softmax(-1)),
        "objective": lambda a, r, p: exact.objective(p.log_softmax(-1), a.log_softmax(-1), r, 0.7),
        "regret": lambda a, r, p: exact.regret(p.log_softmax(-1), a.log_softmax(-1), r, 0.7),
        "frontier": lambda a, r, p: exact.frontier(a.log_softmax(-1), r, betas),
        "preference": lambda a, r, p: exact.preference(r),
    }
    for name, function in functions.items():
        assert torch.autograd.gradcheck(function, (a, r, p)), name


@given(problems())
def test_the_derivative_of_the_log_partition_is_the_optimum_over_beta(problem):
    log_ref, reward, beta, _ = problem
    reward = reward.clone().requires_grad_()
    (slope,) = torch.autograd.grad(exact.log_partition(log_ref, reward, beta), reward)
    star = exact.optimal_policy(log_ref, reward.detach(), beta).exp()
    torch.testing.assert_close(slope, star / beta, rtol=1e-10, atol=1e-12 / beta)


def test_the_second_derivative_of_the_log_partition_is_the_covariance_over_beta_squared():
    """∂² log Z/∂r² = (diag π* − π*π*ᵀ)/β², with one response out of the reference's support."""
    log_ref = torch.tensor([0.2, 0.5, 0.0, 0.3], dtype=F64).log()
    reward = torch.tensor([1.0, -0.5, 0.3, 0.2], dtype=F64)
    hessian = torch.autograd.functional.hessian(lambda r: exact.log_partition(log_ref, r, 0.6), reward)
    star = np.array([0.2, 0.5, 0.0, 0.3]) * np.exp(reward.numpy() / 0.6)
    star /= star.sum()
    np.testing.assert_allclose(hessian.numpy(), (np.diag(star) - np.outer(star, star)) / 0.36, rtol=1e-10, atol=1e-14)


def test_at_the_optimum_the_objective_is_flat_and_elsewhere_it_is_not():
    log_ref, reward, log_policy = random_problem(6, 5)
    for logits, flat in ((exact.optimal_policy(log_ref, reward, 0.5), True), (log_policy, False)):
        logits = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(exact.objective(logits.log_softmax(-1), log_ref, reward, 0.5), logits)
        assert (slope.abs().max() < 1e-12) == flat


# Bad input.

UNIFORM = torch.full((3,), -math.log(3), dtype=F64)
ZEROS = torch.zeros(3, dtype=F64)

with_beta = {
    "log_partition": lambda beta: exact.log_partition(UNIFORM, ZEROS, beta),
    "optimal_policy": lambda beta: exact.optimal_policy(UNIFORM, ZEROS, beta),
    "implicit_reward": lambda beta: exact.implicit_reward(UNIFORM, UNIFORM, beta),
    "objective": lambda beta: exact.objective(UNIFORM, UNIFORM, ZEROS, beta),
    "regret": lambda beta: exact.regret(UNIFORM, UNIFORM, ZEROS, beta),
    "frontier": lambda beta: exact.frontier(UNIFORM, ZEROS, torch.tensor([1.0, beta], dtype=F64)),
}
with_log_ref = {
    "log_partition": lambda log_ref: exact.log_partition(log_ref, ZEROS, 1.0),
    "optimal_policy": lambda log_ref: exact.optimal_policy(log_ref, ZEROS, 1.0),
    "objective": lambda log_ref: exact.objective(UNIFORM, log_ref, ZEROS, 1.0),
    "regret": lambda log_ref: exact.regret(UNIFORM, log_ref, ZEROS, 1.0),
    "frontier": lambda log_ref: exact.frontier(log_ref, ZEROS, torch.tensor([1.0], dtype=F64)),
}
with_log_policy = {
    "objective": lambda log_policy: exact.objective(log_policy, UNIFORM, ZEROS, 1.0),
    "regret": lambda log_policy: exact.regret(log_policy, UNIFORM, ZEROS, 1.0),
}
with_reward = {
    "log_partition": lambda reward: exact.log_partition(UNIFORM, reward, 1.0),
    "optimal_policy": lambda reward: exact.optimal_policy(UNIFORM, reward, 1.0),
    "objective": lambda reward: exact.objective(UNIFORM, UNIFORM, reward, 1.0),
    "regret": lambda reward: exact.regret(UNIFORM, UNIFORM, reward, 1.0),
    "frontier": lambda reward: exact.frontier(UNIFORM, reward, torch.tensor([1.0], dtype=F64)),
    "preference": exact.preference,
}


@pytest.mark.parametrize("name", with_beta)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, INF])
def test_beta_must_be_above_zero(name, beta):
    with pytest.raises(LabError, match="beta"):
        with_beta[name](beta)


@pytest.mark.parametrize("name", with_log_ref)
@pytest.mark.parametrize("bad", [[1.0, 2.0, 3.0], [0.2, 0.3, 0.5], [-INF] * 3, [math.nan, 0.0, 0.0]], ids=str)
def test_a_reference_that_does_not_sum_to_one_is_refused_by_name(name, bad):
    with pytest.raises(LabError, match="log_ref"):
        with_log_ref[name](torch.tensor(bad, dtype=F64))


@pytest.mark.parametrize("name", with_log_policy)
@pytest.mark.parametrize("bad", [[1.0, 2.0, 3.0], [0.2, 0.3, 0.5], [math.nan, 0.0, 0.0]], ids=str)
def test_a_policy_that_does_not_sum_to_one_is_refused_by_name(name, bad):
    with pytest.raises(LabError, match="log_policy"):
        with_log_policy[name](torch.tensor(bad, dtype=F64))


def test_kl_refuses_what_does_not_sum_to_one_by_name():
    with pytest.raises(LabError, match="log_p"):
        exact.kl(torch.zeros(3, dtype=F64), UNIFORM)
    with pytest.raises(LabError, match="log_q"):
        exact.kl(UNIFORM, torch.zeros(3, dtype=F64))


def test_the_implicit_reward_refuses_a_policy_with_mass_where_the_reference_has_none():
    """β log(½/0) is infinite: no finite reward makes (½, ½) optimal beside a reference of (1, 0)."""
    half, one = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.5], [1.0, 0.0]))
    with pytest.raises(LabError, match="mass on a response where log_ref is -inf"):
        exact.implicit_reward(half, one, 1.0)


def test_the_implicit_reward_refuses_nan_by_name():
    bad = torch.tensor([math.nan, -1.0, -1.0], dtype=F64)
    with pytest.raises(LabError, match="log_policy"):
        exact.implicit_reward(bad, UNIFORM, 1.0)
    with pytest.raises(LabError, match="log_ref"):
        exact.implicit_reward(UNIFORM, bad, 1.0)


@pytest.mark.parametrize("name", with_reward)
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_a_reward_that_is_not_finite_is_refused_by_name_and_place(name, bad):
    with pytest.raises(LabError, match=r"reward.*index 1"):
        with_reward[name](torch.tensor([0.0, bad, 0.0], dtype=F64))


@pytest.mark.parametrize("name", [n for n in with_reward if n != "preference"])
@pytest.mark.parametrize("shape", [(1,), (4,), (2, 2), (0,), ()], ids=str)
def test_rewards_of_another_shape_are_refused_by_name(name, shape):
    with pytest.raises(LabError, match="reward"):
        with_reward[name](torch.zeros(shape, dtype=F64))


def test_policies_of_another_shape_are_refused_by_name():
    other = torch.full((2,), -math.log(2), dtype=F64)
    with pytest.raises(LabError, match=r"log_p.*log_q"):
        exact.kl(other, UNIFORM)
    with pytest.raises(LabError, match=r"log_policy.*log_ref"):
        exact.implicit_reward(other, UNIFORM, 1.0)
    for function in with_log_policy.values():
        with pytest.raises(LabError, match="log_policy"):
            function(other)


@pytest.mark.parametrize("bad", [[0.0, 0.0, 0.0], None, torch.zeros(3, dtype=torch.long)], ids=str)
def test_what_is_no_floating_tensor_is_refused_by_name(bad):
    for function in with_reward.values():
        with pytest.raises(LabError, match="reward"):
            function(bad)
    for function in with_log_ref.values():
        with pytest.raises(LabError, match="log_ref"):
            function(bad)
    for function in with_log_policy.values():
        with pytest.raises(LabError, match="log_policy"):
            function(bad)
    with pytest.raises(LabError, match="log_p"):
        exact.kl(bad, UNIFORM)
    with pytest.raises(LabError, match="log_q"):
        exact.kl(UNIFORM, bad)
    with pytest.raises(LabError, match="log_policy"):
        exact.implicit_reward(bad, UNIFORM, 1.0)
    with pytest.raises(LabError, match="log_ref"):
        exact.implicit_reward(UNIFORM, bad, 1.0)


@pytest.mark.parametrize("betas", [torch.ones(2, 2), torch.tensor([]), torch.tensor(1.0)], ids=str)
def test_the_frontier_needs_a_list_of_betas(betas):
    with pytest.raises(LabError, match="betas"):
        exact.frontier(UNIFORM, ZEROS, betas)


@pytest.mark.parametrize("beta", [0.5, 1e-3, 1e-300])
def test_a_response_that_the_reference_cannot_give_has_no_part_however_large_its_reward(beta):
    """(10³⁰⁸ − 2)/β overflows. π_ref is (½, ½, 0), so π* is that of the first two responses alone, whose log-odds are
    1/β, with −∞ for the third."""
    reward = torch.tensor([1.0, 2.0, 1e308], dtype=torch.float64, requires_grad=True)
    log_ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    found = exact.optimal_policy(log_ref, reward, beta)
    two = (reward.detach()[:2] / beta - 2 / beta).log_softmax(-1)
    assert found[:2].tolist() == pytest.approx(two.tolist()) and found[2] == -torch.inf
    (gradient,) = torch.autograd.grad(found[0], reward)
    assert not gradient.isnan().any() and gradient[2] == 0
    assert math.isfinite(exact.regret(log_ref, log_ref, reward.detach(), beta))
    tree, value = [log_ref.view(1, 1, 3)], [reward.detach().view(1, 1, 3)]
    assert exact.soft_values(tree, value, beta)[1][0].flatten().tolist() == found.tolist()
