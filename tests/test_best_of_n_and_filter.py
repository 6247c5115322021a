"""Best-of-n, soft best-of-n and ReST's filter against enumeration, mpmath and their limits.

`exact.best_of_n` and `exact.soft_best_of_n` are compared with every one of the K^n draws, `exact.filtered` with
conditioning.
"""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import exact, sampling
from rlhf_lab.errors import LabError

F64 = torch.float64
INF = math.inf


def brute_best_of_n(p, reward, n):
    """Probability that each response wins, summed over all K^n ordered draws; tied draws win equally often."""
    won = np.zeros(len(p))
    for draws in itertools.product(range(len(p)), repeat=n):
        chance = math.prod(p[i] for i in draws)
        best = max(reward[i] for i in draws)
        winners = [i for i in draws if reward[i] == best]
        for i in winners:
            won[i] += chance / len(winners)
    return won


def mp_best_of_n(p, reward, n):
    """log of π_ref(i)/mass(level) · (F^n − F₋^n), with 60 digits and then some for the subtraction."""
    with mpmath.workdps(400):
        p = [mpmath.mpf(x) for x in p]
        total = mpmath.fsum(p)
        result = []
        for i, r in enumerate(reward):
            if p[i] == 0:
                result.append(-INF)
                continue
            at = mpmath.fsum(q for q, s in zip(p, reward, strict=True) if s == r) / total
            below = mpmath.fsum(q for q, s in zip(p, reward, strict=True) if s < r) / total
            win = mpmath.power(below + at, n) - mpmath.power(below, n)
            result.append(float(mpmath.log(p[i] / total / at * win)))
        return result


@st.composite
def references(draw, largest=5):
    """(p, reward): a reference with now and then a response of no mass, rewards on few levels so that ties come."""
    k = draw(st.integers(1, largest))
    mass = [draw(st.integers(1, 9))] + [draw(st.integers(0, 9)) for _ in range(k - 1)]
    reward = [float(draw(st.integers(-2, 2))) for _ in range(k)]
    return np.array(mass) / sum(mass), reward


def as_tensors(p, reward, dtype=F64):
    return torch.tensor(p, dtype=dtype).log(), torch.tensor(reward, dtype=dtype)


def test_best_of_two_by_hand():
    """π_ref = (½, ¼, ¼), rewards 0, 1, 1. Both draws miss the good level with chance ¼, so it wins ¾, in halves."""
    log_ref, reward = as_tensors([0.5, 0.25, 0.25], [0.0, 1.0, 1.0])
    assert exact.best_of_n(log_ref, reward, 2).exp().tolist() == pytest.approx([0.25, 0.375, 0.375])


@given(references(), st.integers(1, 4))
def test_best_of_n_agrees_with_every_one_of_the_draws(problem, n):
    p, reward = problem
    found = exact.best_of_n(*as_tensors(p, reward), n)
    assert not torch.isnan(found).any()
    np.testing.assert_allclose(found.exp().numpy(), brute_best_of_n(p, reward, n), rtol=1e-10, atol=1e-14)
    assert torch.equal(found == -INF, torch.tensor(p == 0))


@given(references(), st.integers(1, 4))
def test_best_of_n_in_float32_agrees_with_every_one_of_the_draws(problem, n):
    p, reward = problem
    found = exact.best_of_n(*as_tensors(p, reward, torch.float32), n)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.exp().numpy(), brute_best_of_n(p, reward, n), rtol=2e-5, atol=1e-6)


@given(references())
def test_best_of_one_is_the_reference(problem):
    log_ref, reward = as_tensors(*problem)
    torch.testing.assert_close(exact.best_of_n(log_ref, reward, 1), log_ref, rtol=1e-10, atol=1e-12)


@given(references(), st.sampled_from([2, 10, 1000, 10**6, 10**12]))
def test_best_of_many_agrees_with_mpmath_to_the_last_logarithm(problem, n):
    p, reward = problem
    found = exact.best_of_n(*as_tensors(p, reward), n)
    # Rounding the reference once (1e-16 of each mass) moves n·log F by n·1e-16: no way can do better.
    slack = 1e-10 + n * 1e-15
    for value, truth in zip(found.tolist(), mp_best_of_n(p, reward, n), strict=True):
        assert value == pytest.approx(truth, rel=1e-10, abs=slack)


@given(st.lists(st.floats(-300, 0), min_size=2, max_size=5), st.sampled_from([1, 2, 64, 10**6]))
def test_responses_the_reference_hardly_gives_keep_their_logarithm(logits, n):
    """Masses down to e⁻³⁰⁰: the smallest must come out as a logarithm, not as log 0."""
    log_ref = torch.tensor([0.0, *logits], dtype=F64).log_softmax(-1)
    for order in (1, -1):
        reward = torch.arange(len(log_ref), dtype=F64) * order
        with mpmath.workdps(400):
            p = [mpmath.exp(x) for x in log_ref.tolist()]
        found = exact.best_of_n(log_ref, reward, n)
        truth = mp_best_of_n(p, reward.tolist(), n)
        for value, true in zip(found.tolist(), truth, strict=True):
            assert value == pytest.approx(true, rel=1e-9, abs=1e-9 + n * 1e-15)


@given(references(), st.sampled_from([1, 2, 3, 8, 64, 10**6]))
def test_the_kl_of_best_of_n_is_within_its_bound(problem, n):
    """KL ≤ log n − (n − 1)/n, the value for continuous rewards; ties and finite sets only lower it."""
    log_ref, reward = as_tensors(*problem)
    best = exact.best_of_n(log_ref, reward, n)
    assert exact.kl(best, log_ref).item() <= math.log(n) - (n - 1) / n + 1e-9


def test_the_bound_is_nearly_reached_by_many_responses_without_ties():
    """So the bound above is the right one: with 10,000 equal responses and n = 4 it holds to 1e-3."""
    log_ref = torch.full((10_000,), -math.log(10_000), dtype=F64)
    reward = torch.arange(10_000, dtype=F64)
    bound = math.log(4) - 3 / 4
    assert exact.kl(exact.best_of_n(log_ref, reward, 4), log_ref).item() == pytest.approx(bound, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 64, 10**6, 10**9])
def test_no_nan_for_large_sets_large_n_and_extreme_rewards(dtype, n):
    generator = torch.Generator().manual_seed(0)
    log_ref = (4 * torch.randn(3, 1000, dtype=dtype, generator=generator)).log_softmax(-1)
    reward = 1e6 * torch.randn(3, 1000, dtype=dtype, generator=generator).clamp(-1, 1)
    found = exact.best_of_n(log_ref, reward, n)
    assert found.dtype == dtype
    assert not torch.isnan(found).any()
    assert (found <= 1e-3).all()
    torch.testing.assert_close(
        found.double().logsumexp(-1), torch.zeros(3, dtype=F64), rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-7
    )


@given(references(), st.sampled_from([2, 5, 100]))
def test_only_the_order_of_the_rewards_matters(problem, n):
    log_ref, reward = as_tensors(*problem)
    changed = torch.exp(3 * reward) - 7
    torch.testing.assert_close(exact.best_of_n(log_ref, reward, n), exact.best_of_n(log_ref, changed, n))


@given(references())
def test_more_draws_earn_more_and_none_beats_the_frontier(problem):
    log_ref, reward = as_tensors(*problem)
    betas = torch.logspace(-1, 1, 7, dtype=F64)
    divergence, gain = exact.frontier(log_ref, reward, betas)
    earned = -INF
    for n in (1, 2, 4, 16):
        best = exact.best_of_n(log_ref, reward, n)
        more = (best.exp() * reward).sum()
        assert more >= earned - 1e-12
        earned = more
        # Every tangent of the frontier lies above: J of any policy is at most J of the optimum.
        assert (earned - betas * exact.kl(best, log_ref) <= gain - betas * divergence + 1e-9).all()


def test_leading_axes_are_many_problems_at_once():
    generator = torch.Generator().manual_seed(1)
    log_ref = torch.randn(2, 3, 5, dtype=F64, generator=generator).log_softmax(-1)
    log_ref[0, 1] = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25], dtype=F64).log()
    reward = torch.randint(-2, 3, (2, 3, 5), generator=generator).double()
    threshold = torch.where(log_ref > -INF, reward, -INF).amax(-1, keepdim=True) - 0.5
    best, kept = exact.best_of_n(log_ref, reward, 3), exact.filtered(log_ref, reward, threshold)
    one_reference = exact.best_of_n(log_ref[0, 0], reward, 3)
    assert best.shape == kept.shape == one_reference.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(best[i, j], exact.best_of_n(log_ref[i, j], reward[i, j], 3))
            torch.testing.assert_close(kept[i, j], exact.filtered(log_ref[i, j], reward[i, j], threshold[i, j].item()))
            torch.testing.assert_close(one_reference[i, j], exact.best_of_n(log_ref[0, 0], reward[i, j], 3))


def inclusion(weights, accepted):
    """The probability that each of some candidates is among `accepted` draws without replacement, summed by order."""
    found = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), accepted):
        chance = 1.0
        for place, i in enumerate(order):  # a difference of weights of very different size would be imprecise
            chance *= weights[i] / math.fsum(w for j, w in enumerate(weights) if j not in order[:place])
        found[list(order)] += chance
    return found


def brute_soft_best_of_n(p, reward, beta, n, accepted):
    """Probability of each response among the accepted ones, summed over all K^n ordered draws."""
    share = np.zeros(len(p))
    for draws in itertools.product(range(len(p)), repeat=n):
        chance = math.prod(p[i] for i in draws)
        if chance:
            among = inclusion([math.exp(reward[i] / beta) for i in draws], accepted) / accepted
            np.add.at(share, list(draws), chance * among)
    return share


def test_soft_best_of_two_by_hand():
    """π_ref = (½, ½), r/β = (0, log 3): of two different candidates the second wins with ¾, so it has ¼ + ½ · ¾."""
    log_ref, reward = as_tensors([0.5, 0.5], [0.0, math.log(3)])
    assert exact.soft_best_of_n(log_ref, reward, 1.0, 2).exp().tolist() == pytest.approx([0.375, 0.625], abs=1e-14)


@given(references(largest=3), st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2), (4, 1), (4, 3)]), st.floats(0.2, 5))
def test_what_rso_accepts_agrees_with_every_one_of_the_draws(problem, numbers, beta):
    p, reward = problem
    found = exact.soft_best_of_n(*as_tensors(p, reward), beta, *numbers)
    brute = brute_soft_best_of_n(p, reward, beta, *numbers)
    np.testing.assert_allclose(found.exp().numpy(), brute, rtol=1e-11, atol=1e-15)
    assert torch.equal(found == -INF, torch.tensor(p == 0))


@given(references(), st.sampled_from([1e-3, 0.05, 1.0, 1e4]))
def test_soft_best_of_two_agrees_with_mpmath_at_any_beta(problem, beta):
    """The sum over both candidates, 2 π_i Σ_j π_j w_i/(w_i + w_j), with weights down to exp(−4000)."""
    p, reward = problem
    found = exact.soft_best_of_n(*as_tensors(p, reward), beta, 2)
    with mpmath.workdps(30):
        w = [mpmath.exp(mpmath.mpf(r) / beta) for r in reward]
        for i, value in enumerate(found.tolist()):
            if p[i]:
                share = mpmath.fsum(q * w[i] / (w[i] + v) for q, v in zip(p, w, strict=True))
                assert value == pytest.approx(float(mpmath.log(2 * p[i] * share)), rel=1e-11, abs=1e-12)


@given(references(), st.sampled_from([2, 5, 100]))
def test_soft_best_of_n_at_a_tiny_beta_is_best_of_n(problem, n):
    """The levels of the rewards are 1 apart, so at β = 0.02 a lower one wins with a chance of n·exp(−50)."""
    log_ref, reward = as_tensors(*problem)
    soft = exact.soft_best_of_n(log_ref, reward, 0.02, n)
    torch.testing.assert_close(soft.exp(), exact.best_of_n(log_ref, reward, n).exp(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("accepted", [1, 4, 16])
def test_the_kl_to_the_optimum_falls_as_the_square_of_the_number_of_candidates(accepted):
    """At n = 100,000 n² KL(π‖π*) is ((k+1)/2)² Var_{π*}(π*/π_ref)/2, up to terms of relative size k²/n."""
    generator = torch.Generator().manual_seed(2)
    log_ref = torch.randn(10, dtype=F64, generator=generator).log_softmax(-1)
    reward, n = torch.randn(10, dtype=F64, generator=generator), 100_000
    star = exact.optimal_policy(log_ref, reward, 0.5)
    ratio, p = (star - log_ref).exp(), star.exp()
    variance = (p * ratio.square()).sum() - (p * ratio).sum().square()
    found = n**2 * exact.kl(exact.soft_best_of_n(log_ref, reward, 0.5, n, accepted), star)
    assert found.item() == pytest.approx(((accepted + 1) / 2) ** 2 * variance.item() / 2, rel=0.02)


@pytest.mark.parametrize(("n", "accepted"), [(1, 1), (64, 8), (64, 64), (1000, 40), (10**9, 1)])
def test_the_distribution_is_normalised_and_accepting_everything_is_the_reference(n, accepted):
    generator = torch.Generator().manual_seed(0)
    log_ref = (2 * torch.randn(3, 200, dtype=F64, generator=generator)).log_softmax(-1)
    found = exact.soft_best_of_n(log_ref, 2 * torch.randn(3, 200, dtype=F64, generator=generator), 0.3, n, accepted)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)
    if accepted == n:
        torch.testing.assert_close(found, log_ref, rtol=0, atol=1e-12)


def test_the_sampler_of_rso_has_this_distribution():
    """3 of 6 candidates accepted, 40,000 times: each share within five standard errors of at most √(p(1 − p)/40,000).

    The three of one run are drawn without replacement, which makes the error smaller than that of independent ones.
    """
    p, reward = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64), torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=F64)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.multinomial(p, 6 * 40_000, replacement=True, generator=generator).view(-1, 6)
    kept = drawn.gather(-1, sampling.rejection_sample(reward[drawn], 3, 0.5, generator))
    share = torch.bincount(kept.flatten(), minlength=4) / kept.numel()
    truth = exact.soft_best_of_n(p.log(), reward, 0.5, 6, accepted=3).exp()
    assert ((share - truth).abs() < 5 * (truth * (1 - truth) / 40_000).sqrt()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 0}, "n must"), ({"accepted": 0}, "accepted"), ({"accepted": 5}, "Raise n"), ({"beta": 0.0}, "beta")],
)
def test_soft_best_of_n_refuses_numbers_out_of_range(changes, message):
    log_ref, reward = as_tensors([0.5, 0.5], [0.0, 1.0])
    with pytest.raises(LabError, match=message):
        exact.soft_best_of_n(log_ref, reward, **({"beta": 0.5, "n": 4} | changes))


@pytest.mark.parametrize("n", [1, 2, 50])
def test_gradients_agree_with_finite_differences(n):
    logits = torch.tensor([0.3, -1.0, 0.2, 1.1], dtype=F64, requires_grad=True)
    reward = torch.tensor([0.0, 1.0, 1.0, -1.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda a: exact.best_of_n(a.log_softmax(-1), reward, n), logits)
    # The filter's -inf entries have no finite difference; its probabilities do.
    assert torch.autograd.gradcheck(lambda a: exact.filtered(a.log_softmax(-1), reward, -0.5).exp(), logits)
    assert torch.autograd.gradcheck(lambda a: exact.soft_best_of_n(a.log_softmax(-1), reward, 0.5, n), logits)


@given(references(), st.sampled_from([1, 3, 10**6]))
def test_gradients_are_never_nan(problem, n):
    log_ref, reward = as_tensors(*problem)
    log_ref.requires_grad_()
    lowest = reward[log_ref.detach() > -INF].min().item()
    every = (exact.best_of_n(log_ref, reward, n), exact.soft_best_of_n(log_ref, reward, 1e-3, n))
    for result in (*every, exact.filtered(log_ref, reward, lowest - 1)):
        (slope,) = torch.autograd.grad(result.exp().sum() + result[torch.isfinite(result)].sum(), log_ref)
        assert not torch.isnan(slope).any()


@pytest.mark.parametrize("n", [0, -1, 1.5, math.nan, INF, "two", None])
def test_n_must_be_a_whole_number_of_draws(n):
    log_ref, reward = as_tensors([0.5, 0.5], [0.0, 1.0])
    with pytest.raises(LabError, match="n must"):
        exact.best_of_n(log_ref, reward, n)


# The filter.


def test_the_filter_by_hand():
    """(0.1, 0.2, 0.3, 0.4) with rewards 0, 1, 2, 2 and τ = 0: the last three pass, 0.9 in all."""
    log_ref, reward = as_tensors([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 2.0, 2.0])
    found = exact.filtered(log_ref, reward, 0.0)
    assert found.exp().tolist() == pytest.approx([0, 2 / 9, 3 / 9, 4 / 9])
    assert found[0].item() == -INF


def test_the_best_reward_that_a_refusal_names_is_one_that_the_reference_can_give():
    """Rewards 0.5 and 3, the second without mass: 0.5 is the highest of which a threshold below lets samples pass."""
    log_ref, reward = as_tensors([1.0, 0.0], [0.5, 3.0])
    with pytest.raises(LabError, match="the best reward is 0.5 and the threshold 1 "):
        exact.filtered(log_ref, reward, 1.0)


@given(references(), st.floats(-2.5, 1.9))
def test_the_filter_is_the_reference_conditioned(problem, threshold):
    p, reward = problem
    passes = np.array(reward) > threshold
    log_ref, values = as_tensors(p, reward)
    if (p * passes).sum() == 0:
        with pytest.raises(LabError, match="threshold"):
            exact.filtered(log_ref, values, threshold)
    else:
        truth = p * passes / (p * passes).sum()
        np.testing.assert_allclose(exact.filtered(log_ref, values, threshold).exp(), truth, rtol=1e-12)


def test_a_reward_equal_to_the_threshold_does_not_pass():
    log_ref, reward = as_tensors([0.5, 0.5], [1.0, 2.0])
    assert exact.filtered(log_ref, reward, 1.0).exp().tolist() == [0.0, 1.0]
    with pytest.raises(LabError, match="threshold"):
        exact.filtered(log_ref, reward, 2.0)


def test_a_response_without_mass_does_not_save_the_filter():
    log_ref, reward = as_tensors([1.0, 0.0], [0.0, 5.0])
    with pytest.raises(LabError, match="threshold"):
        exact.filtered(log_ref, reward, 1.0)


def test_the_row_where_nothing_passes_is_named():
    log_ref = torch.full((2, 2), math.log(0.5), dtype=F64)
    reward = torch.tensor([[0.0, 1.0], [0.0, 0.25]], dtype=F64)
    with pytest.raises(LabError, match=r"index 1.*0\.25"):
        exact.filtered(log_ref, reward, 0.5)


def test_the_filters_kl_is_minus_the_log_of_what_passes():
    """Conditioning on an event A costs exactly −log π_ref(A) nats; here A has 0.3 + 0.4."""
    log_ref, reward = as_tensors([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 2.0, 3.0])
    kept = exact.filtered(log_ref, reward, 1.0)
    assert exact.kl(kept, log_ref).item() == pytest.approx(-math.log(0.7), rel=1e-12)


def test_bad_input_is_refused_by_name():
    log_ref, reward = as_tensors([0.5, 0.5], [0.0, 1.0])
    for function in (lambda a, r: exact.best_of_n(a, r, 2), lambda a, r: exact.filtered(a, r, -1.0)):
        with pytest.raises(LabError, match="log_ref"):
            function(torch.zeros(2, dtype=F64), reward)
        with pytest.raises(LabError, match=r"reward.*index 1"):
            function(log_ref, torch.tensor([0.0, math.nan], dtype=F64))
        with pytest.raises(LabError, match="reward"):
            function(log_ref, torch.zeros(3, dtype=F64))
        with pytest.raises(LabError, match="reward"):
            function(log_ref, [0.0, 1.0])
    with pytest.raises(LabError, match="threshold"):
        exact.filtered(log_ref, reward, math.nan)
