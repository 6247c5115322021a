"""Self-normalised estimates of the distance to π* against enumeration: coverage, bias, and when to refuse."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import Draws, Estimate, distance, distance_to_optimal, evaluate
from rlhf_lab.evaluation.importance import _verdict, covariance, weighted
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import bandit, token_tree

BANDIT = bandit.random(4, 10, seed=2)
TREE = token_tree.random(6, 4, 2, seed=1)


def halfway(world, beta):
    """A policy on the way from π_ref to π*, jittered, (X, K)."""
    g = torch.Generator().manual_seed(5)
    logits = 0.5 * world.optimal(beta) + 0.5 * world.log_ref()
    return (logits + 0.3 * torch.randn(logits.shape, dtype=torch.float64, generator=g)).log_softmax(-1)


def truth(world, log_policy, beta):
    """Exact log Z, KL(π‖π*), KL(π*‖π) and regret, by enumeration."""
    star = world.optimal(beta)
    forward = (log_policy.exp() * (log_policy - star)).sum(-1).mean().item()
    backward = (star.exp() * (star - log_policy)).sum(-1).mean().item()
    log_z = (world.log_ref() + world.rewards() / beta).logsumexp(-1).mean().item()
    return {"log_partition": log_z, "kl_to_optimal": forward, "kl_from_optimal": backward, "regret": beta * forward}


def draws(world, log_source, log_policy, number, seed) -> Draws:
    g = torch.Generator().manual_seed(seed)
    index = torch.multinomial(log_source.exp(), number, True, generator=g)
    return Draws(*(t.gather(1, index) for t in (world.rewards(), world.log_ref(), log_policy)))


def repeated(world, beta, number, source, runs=200):
    """`runs` independent estimates from fixed prompts."""
    log_policy = halfway(world, beta)
    out = []
    for seed in range(runs):
        ref = draws(world, world.log_ref(), log_policy, number, 2 * seed) if source != "policy" else None
        own = draws(world, log_policy, log_policy, number, 2 * seed + 1) if source != "reference" else None
        out.append(distance_to_optimal(beta, ref, own, "fixed"))
    return out, truth(world, log_policy, beta)


@pytest.mark.parametrize("source", ["reference", "policy", "both"])
@pytest.mark.parametrize(("world", "beta", "number"), [(BANDIT, 1.0, 256), (TREE, 1.0, 256)], ids=["bandit", "tree"])
def test_intervals_cover_the_exact_value_as_often_as_they_say(world, beta, number, source):
    """200 runs. At a true coverage of 95% fewer than 180 hits have a probability of 0.2% (binomial)."""
    found, exact_values = repeated(world, beta, number, source)
    assert all(one.trusted for one in found)
    for name, value in exact_values.items():
        hits = sum(low <= value <= high for low, high in (getattr(one, name).interval() for one in found))
        assert hits >= 180, (name, hits)


@pytest.mark.parametrize("world", [BANDIT, TREE], ids=["bandit", "tree"])
def test_the_leading_bias_is_taken_off(world):
    """Mean of 800 estimates against the exact value, within four standard errors of that mean; the plain estimate
    of log Z, log of the mean weight, is below it by about ½ Var(w)/n, more than four errors."""
    beta, number = 0.7, 32
    found, exact_values = repeated(world, beta, number, "reference", runs=800)
    values = torch.tensor([one.log_partition.mean for one in found])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - exact_values["log_partition"]) < 4 * error
    log_policy = halfway(world, beta)
    plain = torch.tensor([
        ((draws(world, world.log_ref(), log_policy, number, 2 * seed).rewards / beta).logsumexp(1) - math.log(number))
        .mean().item() for seed in range(800)
    ])  # fmt: skip
    assert plain.mean() < exact_values["log_partition"] - 4 * error


def test_where_beta_is_small_samples_of_the_reference_are_refused_and_rightly():
    """At β = 0.1 a few of the 1,296 responses carry Z; 256 samples hold 2.6 effective ones, and intervals miss."""
    found, exact_values = repeated(TREE, 0.1, 256, "reference", runs=50)
    assert not any(one.trusted for one in found)
    assert all("a few samples have nearly all the weight" in one.why and one.smallest < 10 for one in found)
    hits = sum(low <= exact_values["regret"] <= high for low, high in (one.regret.interval() for one in found))
    assert hits < 25
    # Samples of a policy that is half-way there are trusted at the same β, and cover.
    found, _ = repeated(TREE, 0.1, 256, "both", runs=50)
    hits = sum(low <= exact_values["regret"] <= high for low, high in (one.regret.interval() for one in found))
    assert all(one.trusted for one in found) and hits >= 42  # P(fewer at 95%) = 0.4%


def test_the_effective_sample_size_is_the_one_of_kong():
    """Weights exp(r/β) of 1, 1, 2, 4: (8)²/(1 + 1 + 4 + 16) = 64/22; equal log-probabilities leave no other weight."""
    rewards = torch.tensor([[1.0, 1.0, 2.0, 4.0]]).double().log()
    zero = torch.zeros_like(rewards)
    one = distance_to_optimal(1.0, Draws(rewards, zero, zero), prompts="fixed")
    assert one.effective == pytest.approx(64 / 22) and not one.trusted


def test_a_policy_that_is_the_optimum_has_no_distance_whatever_was_drawn():
    star = BANDIT.optimal(0.5)
    found = distance_to_optimal(0.5, from_policy=draws(BANDIT, star, star, 30, 0), prompts="fixed")
    assert abs(found.kl_to_optimal.mean) < 1e-12 and abs(found.kl_from_optimal.mean) < 1e-12
    assert found.effective == pytest.approx(30) and found.trusted and found.kl_to_optimal.error < 1e-12
    log_z = exact.log_partition(BANDIT.log_ref(), BANDIT.rewards(), 0.5).mean().item()
    assert found.log_partition.mean == pytest.approx(log_z)


def test_errors_over_drawn_prompts_hold_for_the_population_of_prompts():
    """40 prompts drawn from a bandit of 400; the target is the mean over the 400. 200 runs, as above."""
    world = bandit.random(400, 6, seed=9)
    log_policy, beta = halfway(world, 1.0), 1.0
    value, hits = truth(world, log_policy, beta)["regret"], 0
    table = {"rewards": world.rewards(), "log_ref": world.log_ref(), "log_policy": log_policy}
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        rows = torch.randint(400, (40,), generator=g)
        index = torch.multinomial(world.log_ref()[rows].exp(), 128, True, generator=g)
        found = distance_to_optimal(beta, Draws(**{k: t[rows].gather(1, index) for k, t in table.items()}))
        low, high = found.regret.interval()
        hits += low <= value <= high
    assert hits >= 180


def test_sampling_both_policies_of_a_world_gives_its_regret():
    """One run, over the world's own prompts: within four errors of what `evaluate` enumerates."""
    policy = TabularPolicy.from_log_probs(TREE.tree, halfway(TREE, 0.5))
    found = distance(policy, TREE.reference, TREE.reward, TREE.prompts, 0.5, 400, prompts_are="fixed")
    enumerated = evaluate(policy, TREE, 0.5)
    assert found.trusted and found.samples == 800
    assert abs(found.regret.mean - enumerated.regret) < 4 * found.regret.error < 0.1
    again = distance(policy, TREE.reference, TREE.reward, TREE.prompts, 0.5, 400, prompts_are="fixed")
    assert found == again and "Trusted" in str(found)


def test_bad_input_is_one_error_that_names_it():
    good = draws(BANDIT, BANDIT.log_ref(), BANDIT.log_ref(), 8, 0)
    with pytest.raises(LabError, match="Pass from_reference"):
        distance_to_optimal(1.0)
    with pytest.raises(LabError, match="beta"):
        distance_to_optimal(0.0, good)
    with pytest.raises(LabError, match="'drawn' or 'fixed'"):
        distance_to_optimal(1.0, good, prompts="all")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="4 and 2 prompts"):
        distance_to_optimal(1.0, good, Draws(good.rewards[:2], good.log_ref[:2], good.log_policy[:2]))
    with pytest.raises(LabError, match=r"all be \(B, G\)"):
        Draws(good.rewards, good.log_ref[:2], good.log_policy)
    with pytest.raises(LabError, match="log_policy contains -inf"):
        Draws(good.rewards, good.log_ref, torch.full_like(good.rewards, -math.inf))
    one = Draws(good.rewards[:1], good.log_ref[:1], good.log_policy[:1])
    with pytest.raises(LabError, match="at least two prompts"):
        distance_to_optimal(1.0, one)


def test_the_covariance_of_means_counts_spread_within_a_source_by_hand():
    """0, 2 and 10, 12: within a source the variance is 2, of the mean of four (2·2 + 2·2)/4² = ½. Taken as one source
    it is 104/3, of the mean a quarter of that."""
    u = torch.tensor([[0.0, 2.0, 10.0, 12.0]], dtype=torch.float64)
    assert covariance(u, u, [2, 2]).tolist() == pytest.approx([0.5])
    assert covariance(u, u, [4]).tolist() == pytest.approx([104 / 12])
    assert covariance(u, -3 * u, [2, 2]).tolist() == pytest.approx([-1.5])


def test_a_weighted_mean_of_two_samples_by_hand():
    """Values 0 and 1 with weights 1 and 3: ¾, and its bias: the samples move it by −⅜ and ⅜, the weights of mean one
    are ½ and 3/2, and the covariance of the two means is ½ (3/16 + 3/16) = 3/16. Kong: 4²/(1 + 9) = 1.6."""
    found = weighted(torch.tensor([[0.0, math.log(3)]]).double(), torch.tensor([[0.0, 1.0]]).double(), [2])
    assert found.mean.item() == pytest.approx(0.75 + 0.1875) and found.effective.item() == pytest.approx(1.6)
    assert found.moves[0].tolist() == pytest.approx([-0.375, 0.375])


def test_unequal_numbers_of_samples_are_weighted_by_their_mixture():
    """π_ref = (½, ½), π_θ = (¾, ¼). One draw of each response from π_ref, three and one from π_θ: in proportion to
    q = (2 π_ref + 4 π_θ)/6, so that the mean weight is Z exactly. The correction is half the variance of that mean,
    computed here by numpy within each source."""
    reward, ref = torch.tensor([0.3, -0.4]).double(), torch.tensor([0.5, 0.5]).double().log()
    policy = torch.tensor([0.75, 0.25]).double().log()

    def some(*rows: int) -> Draws:
        index = torch.tensor(rows)
        return Draws(reward[index][None], ref[index][None], policy[index][None])

    found = distance_to_optimal(1.0, some(0, 1), some(0, 0, 0, 1), "fixed")
    z = (ref.exp() * reward.exp()).sum()
    q = (2 * ref.exp() + 4 * policy.exp()) / 6
    w = (ref.exp() * reward.exp() / q / z).numpy()
    sources = [w[[0, 1]], w[[0, 0, 0, 1]]]
    variance = sum(len(s) * s.var(ddof=1) for s in sources) / 36
    assert found.log_partition.mean == pytest.approx(math.log(z) + variance / 2)
    assert found.log_partition.error == pytest.approx(variance**0.5)


def test_effective_samples_are_those_of_the_worse_of_the_two_weights():
    """No reward, so that the weights of π* are one and all four samples count; those of π_θ are 1, 1, 2, 4 in one
    prompt (Kong: 64/22) and even in the other."""
    policy = torch.tensor([[1.0, 1.0, 2.0, 4.0], [1.0] * 4]).double().log()
    found = distance_to_optimal(1.0, Draws(torch.zeros_like(policy), torch.zeros_like(policy), policy), prompts="fixed")
    assert found.smallest == pytest.approx(64 / 22) and found.effective == pytest.approx((64 / 22 + 4) / 2)


def test_errors_of_fixed_prompts_fall_with_their_number_and_are_log_z_s_where_the_policy_is_the_optimum():
    """Twice the same prompt: an error smaller by √2. Where π_θ = π*, g is log Z for every sample and only log Ẑ errs,
    in both directions of the KL and, times β, in the regret."""
    star, beta = BANDIT.optimal(0.7), 0.7
    one = draws(BANDIT, BANDIT.log_ref(), star, 64, 0)
    first = Draws(one.rewards[:1], one.log_ref[:1], one.log_policy[:1])
    twice = Draws(*(torch.cat([t, t]) for t in (first.rewards, first.log_ref, first.log_policy)))
    alone, both = (distance_to_optimal(beta, d, prompts="fixed") for d in (first, twice))
    error = alone.log_partition.error
    assert error > 0.01 and both.log_partition.error == pytest.approx(error / math.sqrt(2))
    assert both.kl_from_optimal.error == pytest.approx(alone.kl_from_optimal.error / math.sqrt(2))
    assert alone.kl_from_optimal.error == pytest.approx(error) == pytest.approx(alone.kl_to_optimal.error)
    assert alone.regret.error == pytest.approx(beta * error)


@pytest.mark.parametrize(
    ("few", "bias", "error", "trusted"),
    [(1, 0.0, 0.1, True), (2, 0.0, 0.1, False), (0, 0.05, 0.1, True), (0, 0.2, 0.1, False), (0, 0.01, 0.001, True)],
)
def test_what_is_trusted(few, bias, error, trusted):
    """At most a twentieth of 20 prompts below 20 effective samples; a correction of at most the error, or 0.02."""
    ess = torch.full((20,), 30.0)
    ess[:few] = 5.0
    said, why = _verdict(ess, torch.full((20,), bias), Estimate(1.0, error))
    assert said is trusted and ("correction" in why) is (bias > 0.1)


class Noted:
    """A policy that writes down the seeds of its generators."""

    device = torch.device("cpu")

    def __init__(self):
        self.seeds = []

    def sample(self, prompts, number, generator):
        self.seeds.append(generator.initial_seed())
        return TREE.reference.sample(prompts, number, generator)

    def log_prob(self, prompts, responses):
        return TREE.reference.log_prob(prompts, responses)


def test_every_block_of_either_policy_has_random_numbers_of_its_own():
    policy, reference = Noted(), Noted()
    distance(policy, reference, TREE.reward, TREE.draw_prompts(6), 1.0, 4, batch_size=2)
    assert len(policy.seeds) == len(reference.seeds) == 3 and len({*policy.seeds, *reference.seeds}) == 6
