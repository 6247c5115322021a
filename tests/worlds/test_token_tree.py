"""Token trees: rewards against a Python sum over tokens, π* by the recursion against π* by enumeration."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.policies.tabular import TabularPolicy, TabularReward
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.worlds import token_tree

BETAS = [1e-3, 0.1, 0.5, 10.0, 1e3]
KINDS = ["additive", "ngram", "additive+ngram", "sequence"]
ends = pytest.mark.parametrize("has_end", [False, True])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scores(tree: ResponseTree, tables: list[torch.Tensor]) -> torch.Tensor:
    """What the tables give every response, (X, K), by look-up: token by token, not by path_sums."""
    reward = TabularReward(tree, tables)
    number = tables[0].shape[0]
    every = tree.responses
    batch = type(every)(every.ids.expand(number, -1, -1), every.mask.expand(number, -1, -1))
    return reward(tree.prompts(number), batch).detach()


@ends
def test_additive_reward_is_the_sum_over_tokens(has_end):
    tree, weights = ResponseTree(4, 3, has_end), normal(2, 3, 4)
    expected = [
        [sum(weights[x, t, a].item() for t, a in enumerate(y)) for y in tree.responses.tolist()] for x in (0, 1)
    ]
    found = scores(tree, token_tree.additive_reward(tree, weights))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@ends
def test_additive_reward_without_a_place_axis_pays_the_same_everywhere(has_end):
    tree, weights = ResponseTree(3, 3, has_end), normal(1, 3)
    expected = [[sum(weights[0, a].item() for a in y) for y in tree.responses.tolist()]]
    found = scores(tree, token_tree.additive_reward(tree, weights))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@ends
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngram_reward_is_the_sum_over_all_full_windows(n, has_end):
    """The end token stands in a window like any other; responses shorter than n have no window."""
    tree, weights = ResponseTree(3, 3, has_end), normal(2, *[3] * n)
    expected = [
        [sum(weights[(x, *y[i : i + n])].item() for i in range(len(y) - n + 1)) for y in tree.responses.tolist()]
        for x in (0, 1)
    ]
    found = scores(tree, token_tree.ngram_reward(tree, weights))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@ends
def test_sequence_reward_is_the_number_of_each_response_paid_on_its_last_token(has_end):
    tree = ResponseTree(3, 3, has_end)
    per_response = normal(2, tree.num_responses)
    tables = token_tree.sequence_reward(tree, per_response)
    assert torch.equal(scores(tree, tables), per_response)
    for t, table in enumerate(tables[:-1]):
        assert (table[..., : tree.branching] == 0).all(), f"depth {t} pays before the response is over"


def test_weights_of_another_shape_are_refused():
    tree = ResponseTree(3, 2)
    with pytest.raises(LabError, match="n-gram weights"):
        token_tree.ngram_reward(tree, normal(1, 3, 4))
    with pytest.raises(LabError, match="n-gram weights"):
        token_tree.ngram_reward(tree, normal(3))
    with pytest.raises(LabError, match=r"per_response must be \(X, 9\)"):
        token_tree.sequence_reward(tree, normal(1, 8))


@ends
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", BETAS)
def test_optimal_policy_by_recursion_equals_the_one_by_enumeration(kind, beta, has_end):
    """log π* of every response to 1e-10 in float64, for each of three prompts; V at the root is β log Z."""
    world = token_tree.random(4, 4, 3, seed=1, reward=kind, has_end=has_end)
    policy, log_z = token_tree.optimal_by_recursion(world, beta)
    enumerated = exact.optimal_policy(world.log_ref(), world.rewards(), beta)
    assert (policy.enumerate(world.prompts)[1] - enumerated).abs().max() < 1e-10
    assert torch.allclose(log_z, exact.log_partition(world.log_ref(), world.rewards(), beta), rtol=1e-12, atol=1e-12)
    assert (world.optimal(beta) - enumerated).abs().max() < 1e-12


def test_recursion_bars_what_the_reference_bars():
    """Token 1 has no reference mass at the root: no response that begins with it has any under π*."""
    tree = ResponseTree(3, 2)
    logits = [normal(1, *shape, seed=t) for t, shape in enumerate(tree.shapes)]
    logits[0][..., 1] = -math.inf
    tables = token_tree.additive_reward(tree, normal(1, 2, 3))
    world = token_tree.make(tree, TabularPolicy(tree, logits), tables)
    policy, _ = token_tree.optimal_by_recursion(world, 0.5)
    found, expected = policy.enumerate(world.prompts)[1], world.optimal(0.5)
    begins = tree.responses.ids[:, 0] == 1
    assert (found[0, begins] == -math.inf).all() and (expected[0, begins] == -math.inf).all()
    assert (found - expected)[0, ~begins].abs().max() < 1e-10


def test_a_million_responses_have_one_optimal_policy_by_both_ways():
    """2,097,152 responses at β = 0.5, log π* to 1e-10."""
    world = token_tree.million()
    assert world.tree.num_responses == 2_097_152
    policy, log_z = token_tree.optimal_by_recursion(world, 0.5)
    log_ref, reward = world.log_ref(), world.rewards()
    enumerated = exact.optimal_policy(log_ref, reward, 0.5)
    assert (exact.path_sums(policy.log_tables()) - enumerated).abs().max() < 1e-10
    assert abs(log_z.item() - exact.log_partition(log_ref, reward, 0.5).item()) < 1e-10


@ends
@pytest.mark.parametrize("kind", KINDS)
def test_random_rewards_have_the_scale_asked_for_over_the_responses_of_each_prompt(kind, has_end):
    for scale in (1.0, 2.5):
        world = token_tree.random(4, 3, 3, seed=2, reward=kind, has_end=has_end, reward_scale=scale)
        found = scores(world.tree, list(world.reward.table.tables))
        assert torch.allclose(found.std(-1, correction=0), torch.full((3,), scale, dtype=torch.float64), rtol=1e-12)


def test_random_trees_are_functions_of_their_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (token_tree.random(3, 3, 2, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.rewards(), same.rewards()) and torch.equal(one.log_ref(), same.log_ref())
    assert not torch.equal(one.rewards(), other.rewards()) and not torch.equal(one.log_ref(), other.log_ref())
    assert not torch.equal(one.rewards()[0], one.rewards()[1]), "prompts differ"


def test_random_tree_takes_another_reference():
    """The reward stays that of the seed, so references can be compared on one world."""
    tree = ResponseTree(3, 2)
    world = token_tree.random(3, 2, seed=1, reference=TabularPolicy.uniform(tree, 1))
    assert torch.allclose(world.log_ref(), torch.full((1, 9), -math.log(9), dtype=torch.float64))
    assert torch.equal(world.rewards(), token_tree.random(3, 2, seed=1).rewards())


def test_an_unknown_reward_is_refused():
    with pytest.raises(LabError, match="reward must be one of"):
        token_tree.random(3, 2, reward="trigram")


def test_reward_tables_that_are_not_finite_are_refused_with_their_depth():
    tree = ResponseTree(3, 2)
    tables = token_tree.additive_reward(tree, normal(1, 2, 3))
    tables[1][0, 2, 1] = math.nan
    with pytest.raises(LabError, match="depth 1 is not finite"):
        token_tree.make(tree, TabularPolicy.uniform(tree, 1), tables)


def test_the_lecture_tree_pays_what_its_docstring_says():
    """thank you: +1 and the full stop after it +0.5; "thank thank" −1; with the stop after "thank" nothing."""
    world = token_tree.lecture()
    reward = dict(zip(world.response_names(), world.rewards()[0].tolist(), strict=True))
    assert reward["thank you ."] == 1.5
    assert reward["thank thank ."] == -1.0
    assert reward["thank ."] == 0.0
    assert reward["."] == 0.0
    assert reward["you you you"] == -2.0
    assert max(reward, key=reward.get) == "thank you ."
    assert len(world.prompt_names) == world.num_prompts == 1
    assert world.log_ref().exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_recursion_refuses_a_beta_of_zero():
    with pytest.raises(LabError, match="beta must be"):
        token_tree.optimal_by_recursion(token_tree.lecture(), 0.0)
