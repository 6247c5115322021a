"""`rlhf_lab.sampling`: both samplers against the exact probabilities of every ordered outcome.

Four candidates, two of them accepted, is twelve ordered outcomes with known probabilities; thousands of prompts
with the same rewards are that many draws. The chi-square test asks p > 1e-4 at a fixed seed, and each claim has
a twin below that is false and must come out below 1e-4, or the test would have no power.
"""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from rlhf_lab import sampling
from rlhf_lab.errors import LabError

F64 = torch.float64
INF = math.inf
REWARDS = (0.3, -0.4, 1.0, 0.1)

samplers = pytest.mark.parametrize(
    "sampler, draws",
    [(sampling.rejection_sample, 40_000), (sampling.algorithm_1, 4_000)],
    ids=["rejection_sample", "algorithm_1"],
)
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ordered_outcomes(rewards, number, beta):
    """P of each ordered outcome of drawing `number` without replacement with weights exp(r/β), by enumeration."""
    result = {}
    for outcome in itertools.permutations(range(len(rewards)), number):
        left, chance = list(range(len(rewards))), 1.0
        for i in outcome:
            top = max(rewards[j] for j in left)
            if beta == 0:
                weight = {j: float(rewards[j] == top) for j in left}
            else:
                weight = {j: math.exp((rewards[j] - top) / beta) for j in left}
            chance *= weight[i] / sum(weight.values())
            left.remove(i)
        result[outcome] = chance
    return result


def p_value(found, truth):
    """Chi-square p-value of the rows of `found` (N, m) against `truth`; 0 where what cannot be has come."""
    counts = dict.fromkeys(truth, 0)
    for row in found.tolist():
        counts[tuple(row)] += 1
    if any(counts[o] for o, p in truth.items() if p == 0):
        return 0.0
    possible = [o for o, p in truth.items() if p > 0]
    if len(possible) == 1:
        return 1.0
    expected = [truth[o] * len(found) for o in possible]
    assert min(expected) > 5, "too few draws for a chi-square test"
    return chisquare([counts[o] for o in possible], expected, sum_check=False).pvalue


def draw(sampler, rewards, number, beta, draws, dtype=F64, seed=0, **options):
    """(draws, number) samples of one prompt, as that many equal prompts."""
    many = torch.tensor(rewards, dtype=dtype).expand(draws, -1)
    return sampler(many, number, beta, generator=seeded(seed), **options)


# In distribution.


@samplers
@both_types
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_samples_are_draws_without_replacement_with_weights_exp_r_over_beta(sampler, draws, dtype, beta):
    found = draw(sampler, REWARDS, 2, beta, draws, dtype)
    assert p_value(found, ordered_outcomes(REWARDS, 2, beta)) > 1e-4


@samplers
def test_the_test_above_sees_a_wrong_beta(sampler, draws):
    """0.4 or 0.65 in place of 0.5."""
    found = draw(sampler, REWARDS, 2, 0.5, draws)
    for wrong in (0.4, 0.65):
        assert p_value(found, ordered_outcomes(REWARDS, 2, wrong)) < 1e-4


@samplers
def test_the_first_sample_is_a_draw_from_the_tilted_candidates(sampler, draws):
    """With π_ref uniform over the candidates the first accepted is a draw from softmax(r/β)."""
    found = draw(sampler, REWARDS, 1, 0.5, draws)
    weight = [math.exp(r / 0.5) for r in REWARDS]
    assert p_value(found, {(i,): w / sum(weight) for i, w in enumerate(weight)}) > 1e-4


@samplers
def test_at_infinite_beta_every_ordered_outcome_is_as_likely(sampler, draws):
    found = draw(sampler, REWARDS, 2, INF, draws)
    assert p_value(found, dict.fromkeys(itertools.permutations(range(4), 2), 1 / 12)) > 1e-4


@samplers
@both_types
def test_at_beta_zero_the_best_are_taken_and_ties_are_drawn_by_lot(sampler, draws, dtype):
    """Rewards 1, 2, 1, 1: first always the 2, then each 1 in a third of the draws."""
    rewards = (1.0, 2.0, 1.0, 1.0)
    truth = ordered_outcomes(rewards, 2, 0.0)
    assert truth[1, 0] == pytest.approx(1 / 3)
    found = draw(sampler, rewards, 2, 0.0, draws, dtype)
    assert p_value(found, truth) > 1e-4
    all_alike = draw(sampler, (5.0,) * 4, 2, 0.0, draws, dtype)
    assert p_value(all_alike, dict.fromkeys(itertools.permutations(range(4), 2), 1 / 12)) > 1e-4


@samplers
@both_types
@pytest.mark.parametrize("beta", [1e-8, 1e-14])
def test_ties_are_drawn_by_lot_however_far_rewards_over_beta_reach(sampler, draws, dtype, beta):
    """r/β of 1e14 and beyond has no digits left for noise of size one; position must not decide instead."""
    for rewards in ((1e6, -1e6, -1e6, -1e6), (1e6, 1e6, -1e6, -1e6), (-1e6,) * 4):
        found = draw(sampler, rewards, 2, beta, draws, dtype)
        assert p_value(found, ordered_outcomes(rewards, 2, 0.0)) > 1e-4


@samplers
@both_types
def test_only_differences_of_rewards_matter_far_from_zero(sampler, draws, dtype):
    """Rewards near 1e6 a sixteenth apart (exact in float32) at β = 1/16: weights e, 1, 1, e⁻¹."""
    rewards = (1e6, 1e6 - 1 / 16, 1e6 - 1 / 16, 1e6 - 1 / 8)
    found = draw(sampler, rewards, 2, 1 / 16, draws, dtype)
    assert p_value(found, ordered_outcomes(rewards, 2, 1 / 16)) > 1e-4


@samplers
def test_prompts_of_one_batch_are_drawn_apart_from_each_other(sampler, draws):
    """Two prompts beside each other: the joint outcomes of their firsts are products."""
    many = torch.tensor([REWARDS[:3], REWARDS[1:]], dtype=F64).repeat(draws // 2, 1)
    first = sampler(many, 1, 1.0, generator=seeded()).view(-1, 2)
    a, b = (ordered_outcomes(r, 1, 1.0) for r in (REWARDS[:3], REWARDS[1:]))
    assert p_value(first, {(i, j): a[i,] * b[j,] for i in range(3) for j in range(3)}) > 1e-4


def test_the_two_samplers_agree_with_each_other_on_many_candidates():
    """Eight random rewards, three accepted: how often each candidate is among them, as a 2 × 8 table."""
    from scipy.stats import chi2_contingency

    rewards = torch.randn(8, dtype=F64, generator=seeded(3))
    fast = draw(sampling.rejection_sample, rewards.tolist(), 3, 0.7, 4_000)
    slow = draw(sampling.algorithm_1, rewards.tolist(), 3, 0.7, 4_000, seed=1)
    for place in range(3):
        table = [x[:, place].bincount(minlength=8).tolist() for x in (fast, slow)]
        assert chi2_contingency(table).pvalue > 1e-4


def test_the_printed_loop_is_seen_to_depend_on_the_order_of_candidates():
    """Algorithm 1 as printed scans in order and stops early: equal rewards come out 0, 1 and nothing else."""
    options = {"shuffle": False, "maximum": "pass"}
    found = draw(sampling.algorithm_1, (1.0,) * 4, 2, 0.5, 200, **options)
    assert (found == torch.tensor([0, 1])).all()
    uneven = draw(sampling.algorithm_1, REWARDS, 2, 0.5, 4_000, **options)
    assert p_value(uneven, ordered_outcomes(REWARDS, 2, 0.5)) < 1e-4


def test_a_maximum_that_is_not_known_is_refused_and_not_read_as_the_printed_one():
    with pytest.raises(LabError, match="maximum must be 'remaining' or 'pass', not 'typo'"):
        sampling.algorithm_1(torch.zeros(1, 3), 1, 0.5, maximum="typo")


# Shapes, types, seeds.


@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_samples_are_distinct_candidates_of_their_own_row(batch, group, data):
    number = data.draw(st.integers(1, group))
    beta = data.draw(st.sampled_from([0.0, 1e-8, 0.5, 1e8, INF]))
    span = data.draw(st.sampled_from([0.0, 1.0, 1e6]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    rewards = (span * torch.randn(batch, group, generator=seeded(group)).clamp(-1, 1)).to(dtype)
    for sampler in (sampling.rejection_sample, sampling.algorithm_1):
        found = sampler(rewards, number, beta, generator=seeded())
        assert found.shape == (batch, number) and found.dtype == torch.long
        assert ((found >= 0) & (found < group)).all()
        assert all(len(set(row)) == number for row in found.tolist())
        if beta == 0:
            best = rewards.sort(-1, descending=True).values[:, :number]
            torch.testing.assert_close(rewards.gather(1, found), best, rtol=0, atol=0)


@samplers
@pytest.mark.parametrize("beta", [0.0, 0.5, INF])
def test_the_generator_alone_decides(sampler, draws, beta):
    """Same seed, same samples; another seed, others; the global generator neither read nor moved."""
    rewards = torch.zeros(50, 6)
    before = torch.get_rng_state()
    first = sampler(rewards, 3, beta, generator=seeded(1))
    torch.manual_seed(5)
    again = sampler(rewards, 3, beta, generator=seeded(1))
    torch.set_rng_state(before)
    assert torch.equal(first, again)
    assert not torch.equal(first, sampler(rewards, 3, beta, generator=seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)


@samplers
def test_without_a_generator_it_samples_too(sampler, draws):
    assert sampler(torch.zeros(3, 4), 2, 0.5).shape == (3, 2)


@samplers
def test_rewards_are_left_as_they_were_and_carry_no_gradient_on(sampler, draws):
    rewards = torch.tensor([REWARDS], dtype=F64, requires_grad=True)
    found = sampler(rewards, 2, 0.5, generator=seeded())
    assert not found.requires_grad
    assert tuple(rewards[0].tolist()) == REWARDS


# Bad input.


@samplers
def test_more_samples_than_candidates_are_refused_at_once(sampler, draws):
    """The paper's loop would never end here."""
    with pytest.raises(LabError, match=r"4 candidates.*5 distinct"):
        sampler(torch.zeros(2, 4), 5, 0.5)


@samplers
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_rewards_that_are_not_finite_are_refused_by_place(sampler, draws, bad):
    rewards = torch.zeros(2, 4)
    rewards[1, 2] = bad
    with pytest.raises(LabError, match=r"rewards.*\(1, 2\)"):
        sampler(rewards, 2, 0.5)


@samplers
@pytest.mark.parametrize("beta", [-1.0, -1e-9, math.nan, -INF, "half", None])
def test_a_beta_below_zero_is_refused_by_name(sampler, draws, beta):
    with pytest.raises(LabError, match="beta"):
        sampler(torch.zeros(2, 4), 2, beta)
    with pytest.raises(LabError, match="beta"):
        sampling.acceptance_rate(torch.full((4,), -math.log(4)), torch.zeros(4), beta)


@samplers
@pytest.mark.parametrize("number", [0, -1, 1.5, math.nan, INF, "two", None])
def test_a_number_of_samples_that_is_none_is_refused_by_name(sampler, draws, number):
    with pytest.raises(LabError, match="num_samples"):
        sampler(torch.zeros(2, 4), number, 0.5)


@samplers
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()], ids=str)
def test_rewards_without_the_two_axes_are_refused(sampler, draws, shape):
    with pytest.raises(LabError, match="rewards"):
        sampler(torch.zeros(shape), 1, 0.5)


@samplers
def test_what_is_no_floating_tensor_is_refused(sampler, draws):
    with pytest.raises(LabError, match="rewards"):
        sampler([[0.0, 1.0]], 1, 0.5)
    with pytest.raises(LabError, match="rewards"):
        sampler(torch.zeros(2, 3, dtype=torch.long), 1, 0.5)


# The acceptance rate.


def test_the_acceptance_rate_by_hand():
    """π_ref = (½, ¼, ¼), r = (0, −log 2, −log 4) at β = 1: ½·1 + ¼·½ + ¼·¼ = 11/16."""
    log_ref = torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()
    reward = -torch.tensor([1.0, 2.0, 4.0], dtype=F64).log()
    assert sampling.acceptance_rate(log_ref, reward, 1.0).item() == pytest.approx(11 / 16, rel=1e-12)


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(-1e6, 1e6) | st.floats(-2, 2)), min_size=1, max_size=6),
    st.floats(-8, 8),
    st.integers(0, 5),
)
def test_the_acceptance_rate_agrees_with_mpmath(rows, exponent, hole):
    beta = 10.0**exponent
    logits = torch.tensor([a for a, _ in rows], dtype=F64)
    if len(rows) > 1:
        logits[hole % len(rows)] = -INF
    log_ref, reward = logits.log_softmax(-1), torch.tensor([r for _, r in rows], dtype=F64)
    best = max(r for a, r in zip(log_ref.tolist(), reward.tolist(), strict=True) if a > -INF)
    with mpmath.workdps(50):
        truth = mpmath.fsum(
            mpmath.exp(mpmath.mpf(a) + (mpmath.mpf(r) - best) / beta)
            for a, r in zip(log_ref.tolist(), reward.tolist(), strict=True)
            if a > -INF
        )
    rate = sampling.acceptance_rate(log_ref, reward, beta)
    assert rate.item() == pytest.approx(float(truth), rel=1e-9)
    assert 0 < rate <= 1


def test_the_acceptance_rate_at_its_two_limits():
    """β = 0: the mass of the best, tied ones together, of those that the reference can draw; β = ∞: all pass."""
    log_ref = torch.tensor([0.1, 0.2, 0.7, 0.0], dtype=F64).log()
    reward = torch.tensor([3.0, 3.0, 1.0, 9.0], dtype=F64)
    assert sampling.acceptance_rate(log_ref, reward, 0.0).item() == pytest.approx(0.3, rel=1e-12)
    assert sampling.acceptance_rate(log_ref, reward, 1e-8).item() == pytest.approx(0.3, rel=1e-12)
    assert sampling.acceptance_rate(log_ref, reward, INF).item() == pytest.approx(1.0, rel=1e-12)
    assert sampling.acceptance_rate(log_ref, reward, 1e8).item() == pytest.approx(1.0, rel=1e-7)


@both_types
def test_the_acceptance_rate_of_many_problems_at_once(dtype):
    log_ref = torch.randn(2, 3, 4, generator=seeded()).log_softmax(-1).to(dtype)
    reward = torch.randn(2, 3, 4, generator=seeded(1)).to(dtype)
    log_ref = log_ref - log_ref.logsumexp(-1, keepdim=True)
    for beta in (0.0, 0.5, INF):
        together = sampling.acceptance_rate(log_ref, reward, beta)
        assert together.shape == (2, 3) and together.dtype == dtype
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(together[i, j], sampling.acceptance_rate(log_ref[i, j], reward[i, j], beta))


def test_the_acceptance_rate_is_what_a_simulation_accepts():
    """100,000 draws from π_ref, each kept with chance exp((r − r_max)/β); within four standard errors."""
    log_ref = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64).log()
    reward = torch.tensor(REWARDS, dtype=F64)
    number, generator = 100_000, seeded(7)
    drawn = torch.multinomial(log_ref.exp(), number, replacement=True, generator=generator)
    uniform = torch.rand(number, dtype=F64, generator=generator)
    kept = (uniform < ((reward[drawn] - reward.max()) / 0.5).exp()).double().mean().item()
    rate = sampling.acceptance_rate(log_ref, reward, 0.5).item()
    assert abs(kept - rate) < 4 * math.sqrt(rate * (1 - rate) / number)


def test_the_acceptance_rate_refuses_bad_input_by_name():
    log_ref, reward = torch.full((4,), -math.log(4), dtype=F64), torch.zeros(4, dtype=F64)
    with pytest.raises(LabError, match="log_ref"):
        sampling.acceptance_rate(torch.zeros(4, dtype=F64), reward, 0.5)
    with pytest.raises(LabError, match="log_ref"):
        sampling.acceptance_rate([0.0], reward, 0.5)
    with pytest.raises(LabError, match=r"reward.*index 3"):
        sampling.acceptance_rate(log_ref, torch.tensor([0, 0, 0, math.nan], dtype=F64), 0.5)
    with pytest.raises(LabError, match="reward"):
        sampling.acceptance_rate(log_ref, torch.zeros(3, dtype=F64), 0.5)


def test_the_printed_loop_takes_its_maximum_once_a_pass():
    """Rewards 1, 0, 0 at β = 1, scanned in order. The first is accepted at once. Against its reward, the maximum of the
    pass, the second is accepted with e⁻¹; if not, the third is with e⁻¹; if not, the next pass begins with the second,
    now the best. So the third is there with (1 − e⁻¹) e⁻¹ = 0.2325. With the maximum taken afresh it never is.
    """
    rewards = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4000, 1)
    found = {
        maximum: sampling.algorithm_1(rewards, 2, 1.0, torch.Generator().manual_seed(0), shuffle=False, maximum=maximum)
        for maximum in ("pass", "remaining")
    }
    assert all((rows[:, 0] == 0).all() for rows in found.values())
    chance = (1 - math.exp(-1)) * math.exp(-1)
    assert abs((found["pass"][:, 1] == 2).double().mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)
    assert (found["remaining"][:, 1] == 1).all()


def test_the_acceptance_rate_is_a_probability_to_the_last_bit():
    """At β = ∞ it is the sum of the reference, which rounding leaves above 1 for some numbers of responses."""
    references = [torch.zeros(number).log_softmax(-1) for number in range(2, 100)]
    assert any(log_ref.exp().sum() > 1 for log_ref in references)
    for log_ref in references:
        assert sampling.acceptance_rate(log_ref, torch.zeros(len(log_ref)), math.inf) <= 1
