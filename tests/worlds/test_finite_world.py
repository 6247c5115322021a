"""`FiniteWorld`: its preferences in distribution, against the probability of each pair, computed with loops."""

import math

import pytest
import scipy.stats
import torch

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import bandit, token_tree


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_tree():
    """Two prompts, 1 + 2 · 3 = 7 responses, one of which ends at once: small enough to list all pairs."""
    return token_tree.random(3, 2, 2, seed=3, has_end=True)


def population(world, policy=None, noise: float = 0.0) -> dict[tuple[int, int, int], float]:
    """P(x, y_w, y_l), by loops: x uniform, both responses from the policy, equal ones thrown away, then the label
    (1 − 2ε) σ(r_w − r_l) + ε."""
    mu = world.log_probs(policy or world.reference).exp().tolist()
    reward = world.rewards().tolist()
    out = {}
    for x in range(world.num_prompts):
        for w in range(world.tree.num_responses):
            for y in range(world.tree.num_responses):
                if w != y:
                    p = (1 - 2 * noise) / (1 + math.exp(reward[x][y] - reward[x][w])) + noise
                    # Either may have been drawn first.
                    out[x, w, y] = 2 * mu[x][w] * mu[x][y] * p
    total = sum(out.values())
    return {key: value / total for key, value in out.items()}


def counted(world, pairs) -> dict[tuple[int, int, int], int]:
    rows = world.tree.prompt_index(pairs.prompts).tolist()
    index = world.tree.index(pairs.responses).tolist()
    found: dict[tuple[int, int, int], int] = {}
    for x, (w, y) in zip(rows, index, strict=True):
        found[x, w, y] = found.get((x, w, y), 0) + 1
    return found


def p_value(found: dict, expected: dict, number: int) -> float:
    """Chi-square over all cells; those that expect fewer than five are put together."""
    assert found.keys() <= expected.keys()
    seen, wanted, few_seen, few_wanted = [], [], 0.0, 0.0
    for key, p in expected.items():
        if p * number < 5:
            few_seen, few_wanted = few_seen + found.get(key, 0), few_wanted + p * number
        else:
            seen.append(found.get(key, 0))
            wanted.append(p * number)
    if few_wanted >= 5:
        seen, wanted = [*seen, few_seen], [*wanted, few_wanted]
    scale = sum(seen) / sum(wanted)
    return float(scipy.stats.chisquare(seen, [w * scale for w in wanted]).pvalue)


@pytest.mark.parametrize("number", [1, 7, 500])
@pytest.mark.parametrize("world", [bandit.random(3, 4), small_tree()], ids=["bandit", "tree"])
def test_preferences_are_exactly_as_many_as_asked_and_never_between_equals(world, number):
    pairs = world.preferences(number, seeded(1))
    assert len(pairs) == number and pairs.weight is None
    index = world.tree.index(pairs.responses)
    assert (index[:, 0] != index[:, 1]).all()


def test_preferences_come_back_in_full_though_nearly_all_draws_are_equal():
    """A policy with 98% on one arm gives two different responses 4% of the time."""
    world = bandit.random(2, 3, seed=1)
    policy = TabularPolicy(world.tree, [torch.tensor([[[0.98, 0.01, 0.01]]] * 2, dtype=torch.float64).log()])
    pairs = world.preferences(300, seeded(), policy=policy)
    assert len(pairs) == 300
    index = world.tree.index(pairs.responses)
    assert (index[:, 0] != index[:, 1]).all()


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("source", ["reference", "another policy"])
def test_preferences_follow_the_policy_and_bradley_terry_with_noise(source, noise):
    """60,000 draws of (prompt, chosen, rejected) against the probability of each; at a fixed seed."""
    world, number = small_tree(), 60_000
    policy = None
    if source == "another policy":
        policy = TabularPolicy.from_log_probs(world.tree, world.optimal(0.7))
    pairs = world.preferences(number, seeded(2), policy=policy, noise=noise)
    assert p_value(counted(world, pairs), population(world, policy, noise), number) > 1e-3


def test_the_test_of_the_distribution_would_see_noise_that_is_not_there():
    """The same draws against labels without noise: the chi-square must reject, or the test above proves nothing."""
    world, number = small_tree(), 60_000
    pairs = world.preferences(number, seeded(2), noise=0.2)
    assert p_value(counted(world, pairs), population(world), number) < 1e-9


def test_hard_labels_choose_the_larger_gold_reward():
    world = bandit.random(3, 6, seed=2)
    pairs = world.preferences(500, seeded(3), labels="hard")
    scores = world.reward(pairs.prompts, pairs.responses)
    assert (scores[:, 0] > scores[:, 1]).all()


def test_preferences_are_a_function_of_the_generator_alone():
    world = small_tree()
    before = torch.get_rng_state()
    one, same, other = (world.preferences(64, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.prompts.ids, same.prompts.ids) and torch.equal(one.responses.ids, same.responses.ids)
    assert not torch.equal(one.responses.ids, other.responses.ids)


def test_the_first_pairs_are_not_of_the_first_prompts():
    """Rows are shuffled, so that the first half of a data set is a data set: of 4 prompts each has its fair share
    of the first 2,000 of 4,000 pairs."""
    world = bandit.make(torch.zeros(4, 3), torch.zeros(4, 3))
    pairs = world.preferences(4000, seeded(7))
    counts = world.tree.prompt_index(pairs.prompts)[:2000].bincount(minlength=4)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_policy_with_one_response_is_refused_with_the_mend():
    world = bandit.random(2, 3)
    table = torch.tensor([[[0.0, -math.inf, -math.inf]]] * 2, dtype=torch.float64)
    with pytest.raises(LabError, match=r"same response .*0 of 10 pairs.* nothing to compare"):
        world.preferences(10, seeded(), policy=TabularPolicy(world.tree, [table]))


def test_noise_out_of_range_is_refused():
    with pytest.raises(LabError, match="noise must lie in"):
        bandit.random(2, 3).preferences(10, seeded(), noise=0.7)


@pytest.mark.parametrize("source", ["reference", "another policy"])
@pytest.mark.parametrize("world", [bandit.random(3, 4), small_tree()], ids=["bandit", "tree"])
def test_all_pairs_are_weighted_by_their_population_probabilities(world, source):
    """Every ordered pair once, its weight the brute-force probability, all of them summing to one."""
    policy = TabularPolicy.from_log_probs(world.tree, world.optimal(0.7)) if source == "another policy" else None
    pairs = world.all_pairs(policy)
    expected = population(world, policy)
    rows = world.tree.prompt_index(pairs.prompts).tolist()
    index = world.tree.index(pairs.responses).tolist()
    found = {(x, w, y): p for x, (w, y), p in zip(rows, index, pairs.weight.tolist(), strict=True)}
    assert len(pairs) == len(found) == len(expected)
    assert found == {key: pytest.approx(expected[key], rel=1e-9) for key in found}


def test_too_many_pairs_to_list_are_refused_with_the_mend():
    """4,096 responses make 16,773,120 pairs."""
    with pytest.raises(LabError, match=r"4096 responses make too many pairs.*world.preferences"):
        token_tree.random().all_pairs()


def test_optimal_policy_needs_a_beta_above_zero():
    with pytest.raises(LabError, match="beta must be"):
        bandit.random(2, 3).optimal(-1.0)


def test_a_policy_that_cannot_enumerate_is_refused():
    with pytest.raises(LabError, match="Policy cannot enumerate"):
        bandit.random(2, 3).log_probs(Policy())


def test_drawn_prompts_are_uniform_and_prompts_of_the_world():
    world = bandit.random(5, 2)
    drawn = world.tree.prompt_index(world.draw_prompts(20_000, seeded(4)))
    assert scipy.stats.chisquare(drawn.bincount(minlength=5).numpy()).pvalue > 1e-3


def test_the_world_s_rewards_and_log_probabilities_are_those_of_its_parts_looked_up_one_by_one():
    world = small_tree()
    assert torch.allclose(world.rewards(), world.reward(world.prompts, world.responses), rtol=0, atol=1e-14)
    looked_up = world.reference.log_prob(world.prompts, world.responses)
    assert torch.allclose(world.log_ref(), looked_up, rtol=0, atol=1e-14)
    assert world.log_ref().dtype == torch.float64 and not world.log_ref().requires_grad


def test_the_gold_reward_and_the_reference_are_frozen():
    world = small_tree()
    assert not any(p.requires_grad for p in [*world.reward.parameters(), *world.reference.parameters()])


def test_a_batch_may_hold_a_prompt_twice():
    world = small_tree()
    twice = world.prompts[torch.tensor([1, 1, 0])]
    both = Tokens(world.responses.ids[[1, 1, 0]], world.responses.mask[[1, 1, 0]])
    assert torch.equal(world.reward(twice, both), world.rewards()[[1, 1, 0]])
