"""`evaluate` against plain numpy, `estimate` against `evaluate`."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import Estimate, estimate, evaluate, mean_interval
from rlhf_lab.evaluation.sampled import over_prompts
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import bandit, token_tree


def other_policy(world, seed: int = 5) -> TabularPolicy:
    g = torch.Generator().manual_seed(seed)
    shapes = world.tree.shapes
    return TabularPolicy(
        world.tree, [torch.randn(world.num_prompts, *s, dtype=torch.float64, generator=g) for s in shapes]
    )


def by_numpy(log_policy, log_ref, reward, beta):
    """The definitions, prompt by prompt; J(π*) through π* itself, not through log Z."""
    numbers = []
    for lp, lr, r in zip(log_policy, log_ref, reward, strict=True):
        p = np.exp(lp)
        gain, kl = (p * r).sum(), (p * (lp - lr)).sum()
        weights = np.exp(lr) * np.exp((r - r.max()) / beta)
        star = weights / weights.sum()
        best = (star * r).sum() - beta * (star * (np.log(star) - lr)).sum()
        kl_star = (p * (lp - np.log(star))).sum()
        numbers.append([gain, kl, gain - beta * kl, best - (gain - beta * kl), kl_star])
    return np.mean(numbers, 0)


WORLDS = [bandit.random(4, 6, seed=2), token_tree.random(3, 3, 2, seed=2, has_end=True)]


@pytest.mark.parametrize("world", WORLDS, ids=["bandit", "tree"])
@pytest.mark.parametrize("beta", [0.2, 0.5, 5.0])
def test_exact_numbers_are_those_of_plain_numpy(world, beta):
    policy = other_policy(world)
    log_policy = policy.enumerate(world.prompts)[1].detach()
    expected = by_numpy(*(t.numpy() for t in (log_policy, world.log_ref(), world.rewards())), beta)
    for found in (evaluate(policy, world, beta), evaluate(log_policy, world, beta)):
        numbers = [found.reward, found.kl, found.objective, found.regret, found.kl_to_optimal]
        assert numbers == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("world", WORLDS, ids=["bandit", "tree"])
def test_the_optimal_policy_has_no_regret_and_the_reference_no_kl(world):
    """Any other policy has regret: J is strictly concave."""
    best = evaluate(world.optimal(0.5), world, 0.5)
    assert abs(best.regret) < 1e-12 and abs(best.kl_to_optimal) < 1e-12 and best.kl > 0
    reference = evaluate(world.reference, world, 0.5)
    assert abs(reference.kl) < 1e-12 and reference.objective == pytest.approx(reference.reward)
    assert best.objective == pytest.approx(reference.objective + reference.regret)
    assert min(reference.regret, evaluate(other_policy(world), world, 0.5).regret) > 0


def test_evaluate_refuses_a_beta_of_zero_and_logits_that_are_not_normalised():
    world = WORLDS[0]
    with pytest.raises(LabError, match="beta must be"):
        evaluate(world.reference, world, 0.0)
    with pytest.raises(LabError, match="not log-probabilities"):
        evaluate(world.log_ref() + 1, world, 0.5)


@pytest.mark.parametrize("world", WORLDS, ids=["bandit", "tree"])
def test_estimates_lie_within_their_errors_of_the_exact_numbers(world):
    """2,000 prompts drawn at random, 8 samples each: every estimate within 4.5 of its standard errors."""
    policy, beta = other_policy(world), 0.5
    g = torch.Generator().manual_seed(7)
    found = estimate(policy, world.reference, world.reward, world.draw_prompts(2000, g), beta, 8, g)
    exact = evaluate(policy, world, beta)
    for name in ("reward", "kl", "objective"):
        value = getattr(found, name)
        assert 0 < value.error < 0.1
        assert abs(value.mean - getattr(exact, name)) < 4.5 * value.error


def test_the_error_is_the_spread_of_repeated_estimates():
    """200 estimates over 100 prompts each: the mean of their squared errors against the variance of their means,
    which is known to a relative √(2/199) ≈ 0.1 (one standard error)."""
    world = WORLDS[0]
    policy, found = other_policy(world), []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        sampled = estimate(policy, world.reference, world.reward, world.draw_prompts(100, g), 0.5, 2, g)
        found.append((sampled.objective.mean, sampled.objective.error))
    means, errors = np.array(found).T
    assert (errors**2).mean() / means.var(ddof=1) == pytest.approx(1, abs=0.4)


def test_estimates_are_a_function_of_the_generator_and_hold_no_gradient():
    world = WORLDS[0]
    policy = other_policy(world)
    args = (policy, world.reference, world.reward, world.prompts, 0.5, 4)
    before = torch.get_rng_state()
    one, same = (estimate(*args, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == same and torch.equal(torch.get_rng_state(), before)
    assert isinstance(one.reward.mean, float)


def test_one_prompt_leaves_no_standard_error():
    world = WORLDS[0]
    with pytest.raises(LabError, match="at least two prompts"):
        estimate(world.reference, world.reference, world.reward, world.prompts[0], 0.5)
    with pytest.raises(LabError, match="beta must be"):
        estimate(world.reference, world.reference, world.reward, world.prompts, math.nan)


def test_an_estimate_prints_its_error():
    assert str(Estimate(1.23456, 0.0321)) == "1.235 ± 0.032"


def test_a_ratio_s_error_is_that_of_the_delta_method_by_hand():
    """Values 2, 4 over weights 1, 3: 6/4. Prompts move it by (2 − 1.5)/4 and (4 − 4.5)/4; error √(2·(1/64 + 1/64))."""
    found = over_prompts(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]))
    assert (found.mean, found.freedom) == (1.5, 1) and found.error == pytest.approx(0.25)
    plain = over_prompts(torch.tensor([[1.0, 3.0], [2.0, 4.0], [9.0, 5.0]]))
    assert plain.mean == 4 and plain.error == pytest.approx(np.std([2, 3, 7], ddof=1) / 3**0.5)
    with pytest.raises(LabError, match="weights are zero"):
        over_prompts(torch.zeros(2), torch.zeros(2))


def test_intervals_of_few_prompts_are_student_s():
    """t(0.975) with 3 degrees of freedom is 3.182, the normal's is 1.960."""
    assert Estimate(1.0, 0.1, 3).interval() == pytest.approx((1 - 0.3182, 1 + 0.3182), abs=1e-4)
    assert Estimate(1.0, 0.1).interval() == pytest.approx((1 - 0.1960, 1 + 0.1960), abs=1e-4)
    assert Estimate(1.0, 0.1).scaled(-2) == Estimate(-2.0, 0.2)


def test_a_scaled_estimate_keeps_its_degrees_of_freedom():
    assert Estimate(1.0, 0.1, 3).scaled(-2) == Estimate(-2.0, 0.2, 3)


@pytest.mark.parametrize(("level", "t"), [(0.95, 3.18245), (0.8, 1.63774)])
def test_the_interval_of_runs_is_student_s_by_hand(level, t):
    """1, 2, 3, 4: mean 2.5, variance 5/3 with n − 1, standard error √(5/12); t with 3 degrees of freedom at 0.975 and
    at 0.9, from a table. One run has no interval."""
    half = t * (5 / 12) ** 0.5
    assert mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), level) == pytest.approx(
        (2.5, 2.5 - half, 2.5 + half), abs=1e-5
    )
    mean, low, high = mean_interval(np.array([7.0]))
    assert mean == 7.0 and math.isnan(low) and math.isnan(high)
