"""Tables as policies, rewards and critics: against loops over every response, autograd and finite differences."""

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.tabular import TabularPolicy, TabularReward
from rlhf_lab.policies.transformer.token_sampling import sample_index
from rlhf_lab.response_tree import ResponseTree

F64 = torch.float64
TREES = [ResponseTree(5, 1), ResponseTree(3, 3), ResponseTree(3, 3, has_end=True)]
each_tree = pytest.mark.parametrize("tree", TREES, ids=["bandit", "tree", "tree with end"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tables(tree: ResponseTree, prompts: int = 2, seed: int = 0) -> list[torch.Tensor]:
    g = seeded(seed)
    return [torch.randn(prompts, *shape, dtype=F64, generator=g) for shape in tree.shapes]


def every(tree: ResponseTree, prompts: int = 2) -> tuple[Tokens, Tokens]:
    ids, mask = tree.responses.ids, tree.responses.mask
    return tree.prompts(prompts), Tokens(ids.expand(prompts, -1, -1), mask.expand(prompts, -1, -1))


def by_hand(tree: ResponseTree, logits: list[torch.Tensor], x: int, y: list[int], temperature: float = 1.0):
    """log π(y_t|x, y_<t) of each token in plain Python: the row of a prefix is its number in base c."""
    out, row = [], 0
    for t, token in enumerate(y):
        numbers = [v / temperature for v in logits[t][x, row].tolist()]
        top = max(numbers)
        out.append(numbers[token] - top - math.log(sum(math.exp(v - top) for v in numbers)))
        row = row * tree.branching + token
    return out


@each_tree
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_token_log_probs_are_those_of_plain_python(tree, temperature):
    logits = tables(tree)
    prompts, responses = every(tree)
    found = TabularPolicy(tree, logits).token_log_probs(prompts, responses, temperature)
    assert found.shape == responses.shape
    assert (found[~responses.mask] == 0).all()
    for x in range(2):
        for i, y in enumerate(tree.responses.tolist()):
            expected = by_hand(tree, logits, x, y, temperature)
            assert found[x, i, : len(y)].tolist() == pytest.approx(expected, abs=1e-12)


@each_tree
def test_a_small_batch_is_normalised_like_a_large_one(tree):
    """Few responses take another road through the table than many; a prompt may come twice, in any order."""
    policy = TabularPolicy(tree, tables(tree))
    prompts, responses = every(tree)
    all_of_them = policy.log_prob(prompts, responses)
    last = tree.num_responses - 1
    some = policy.log_prob(prompts[torch.tensor([1])], responses[torch.tensor([1])].take(torch.tensor([[last, 0]])))
    assert torch.allclose(some, all_of_them[1, [last, 0]].unsqueeze(0), rtol=0, atol=1e-14)
    order = torch.tensor([1, 0, 1])
    assert torch.allclose(policy.log_prob(prompts[order], responses[order]), all_of_them[order], rtol=0, atol=1e-14)


@each_tree
def test_enumerate_gives_log_prob_of_every_response_and_sums_to_one(tree):
    policy = TabularPolicy(tree, tables(tree))
    prompts, responses = every(tree)
    listed, log_p = policy.enumerate(prompts)
    assert torch.equal(listed.ids, responses.ids) and torch.equal(listed.mask, responses.mask)
    assert torch.allclose(log_p, policy.log_prob(prompts, responses), rtol=0, atol=1e-13)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(2, dtype=F64), rtol=0, atol=1e-13)


@each_tree
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_enumerated_probabilities(tree, temperature):
    """40,000 draws for each prompt, chi-square at a fixed seed. At a temperature, every token's logits are divided
    by it, so the probabilities are those of token_log_probs at that temperature."""
    number, policy = 40_000, TabularPolicy(tree, tables(tree, seed=3))
    prompts, responses = every(tree)
    drawn = policy.sample(prompts, number, seeded(4), temperature)
    index = tree.index(drawn)
    expected = policy.log_prob(prompts, responses, temperature).exp().detach()
    for x in range(2):
        counts = index[x].bincount(minlength=tree.num_responses)
        assert scipy.stats.chisquare(counts.numpy(), (number * expected[x]).numpy()).pvalue > 1e-3


def test_samples_of_one_prompt_do_not_depend_on_each_other():
    """Two fair coins in one call: both heads a quarter of the time."""
    tree = ResponseTree(2, 1)
    ids = TabularPolicy.uniform(tree, 1).sample(tree.prompts(1).repeat(20_000), 2, seeded(1)).ids[..., 0]
    counts = (2 * ids[:, 0] + ids[:, 1]).bincount(minlength=4)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_samples_are_a_function_of_the_generator_alone():
    tree = TREES[2]
    policy, prompts = TabularPolicy(tree, tables(tree)), tree.prompts(2)
    before = torch.get_rng_state()
    one, same, other = (policy.sample(prompts, 50, seeded(s)).ids for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_barred_token_is_never_drawn_and_its_neighbours_keep_their_shares():
    tree = ResponseTree(4, 1)
    logits = torch.tensor([[[-math.inf, 0.0, -math.inf, math.log(3.0)]]], dtype=F64)
    ids = TabularPolicy(tree, [logits]).sample(tree.prompts(1), 40_000, seeded(2)).ids.flatten()
    counts = ids.bincount(minlength=4)
    assert counts[0] == counts[2] == 0
    assert scipy.stats.chisquare(counts[[1, 3]].numpy(), [10_000, 30_000]).pvalue > 1e-3


def test_draw_inverts_the_distribution_function():
    """The index is the number of partial sums ≤ u: worked out with numpy's searchsorted on the same uniforms.
    Rows need not sum to one."""
    p = torch.rand(1000, 7, dtype=F64, generator=seeded(1))
    p[:, 0] = 0
    found = sample_index(p, seeded(5))
    u = torch.rand(1000, dtype=F64, generator=seeded(5))
    cdf = p.cumsum(-1) / p.sum(-1, keepdim=True)
    assert torch.equal(found, torch.searchsorted(cdf, u.unsqueeze(-1), right=True).squeeze(-1))


@pytest.mark.parametrize("row", [[math.nan, 1.0], [0.0, 0.0]])
def test_draw_refuses_rows_without_a_distribution(row):
    with pytest.raises(LabError, match="contains nan or sums to 0"):
        sample_index(torch.tensor([[0.5, 0.5], row]))


@each_tree
def test_gradient_of_log_prob_is_one_hot_minus_probabilities_along_the_path(tree):
    """∂ log π(y|x)/∂θ[s] = e_{y_t} − π(·|s) for prefixes s of y, zero elsewhere; for a sum over two responses with
    weights of their own."""
    logits = tables(tree)
    policy = TabularPolicy(tree, logits)
    chosen = [tree.responses.tolist()[0], tree.responses.tolist()[-1]]
    prompts = tree.prompts(2)[torch.tensor([1])]
    (policy.log_prob(prompts, Tokens.from_lists([chosen])) * torch.tensor([[2.0, -3.0]])).sum().backward()
    expected = [torch.zeros_like(table) for table in logits]
    for weight, y in zip((2.0, -3.0), chosen, strict=True):
        row = 0
        for t, token in enumerate(y):
            expected[t][1, row] -= weight * logits[t][1, row].softmax(-1)
            expected[t][1, row, token] += weight
            row = row * tree.branching + token
    for found, wanted in zip(policy.parameters(), expected, strict=True):
        assert (found.grad - wanted).abs().max() < 1e-12


class LogProb(torch.nn.Module):
    """log_prob as a module's forward, which functional_call needs."""

    def __init__(self, policy: TabularPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, prompts: Tokens, responses: Tokens) -> torch.Tensor:
        return self.policy.log_prob(prompts, responses)


def test_gradients_pass_finite_differences_in_both_roads():
    """All responses at once (the whole table is normalised), and a few (only the rows in the batch)."""
    tree = TREES[2]
    prompts, responses = every(tree)
    module = LogProb(TabularPolicy(tree, tables(tree)))
    names = [name for name, _ in module.named_parameters()]
    for batch in (responses, responses.take(torch.tensor([[0, 4], [5, 1]]))):

        def log_prob(*logits, batch=batch):
            return torch.func.functional_call(module, dict(zip(names, logits, strict=True)), (prompts, batch))

        assert torch.autograd.gradcheck(log_prob, [t.requires_grad_() for t in tables(tree)])


@given(st.integers(0, 2**31), st.sampled_from(TREES))
def test_from_log_probs_inverts_enumerate(seed, tree):
    """Any distribution over responses is a table's, those with empty places too."""
    g = seeded(seed)
    logits = torch.randn(2, tree.num_responses, dtype=F64, generator=g)
    bare = torch.rand(logits.shape, generator=g) < 0.3
    bare[:, 0] = False
    log_p = logits.masked_fill(bare, -math.inf).log_softmax(-1)
    found = TabularPolicy.from_log_probs(tree, log_p).enumerate(tree.prompts(2))[1]
    assert torch.equal(found == -math.inf, bare)
    assert (found - log_p)[~bare].abs().max() < 1e-12


def test_uniform_gives_every_token_the_same_chance():
    """1/3 a token: 1/3 for the end at once, 1/9 and 1/27 for longer ones."""
    tree = TREES[2]
    log_p = TabularPolicy.uniform(tree, 1).enumerate(tree.prompts(1))[1][0]
    expected = [3.0 ** -len(y) for y in tree.responses.tolist()]
    assert log_p.exp().tolist() == pytest.approx(expected)


@each_tree
def test_a_new_critic_from_a_reward_model_expects_that_reward_of_this_policy(tree):
    """V(x, s) = E_π[Σ of the rewards of the tokens after s | s], by a loop over the responses that begin with s."""
    policy = TabularPolicy(tree, tables(tree, seed=1))
    reward = TabularReward(tree, tables(tree, seed=2))
    prompts, responses = every(tree)
    values = policy.new_critic(reward)(prompts, responses)
    token_p = policy.token_log_probs(prompts, responses).exp().detach()
    token_r = reward.table(prompts, responses).detach()
    lists = tree.responses.tolist()
    for x, (i, y) in itertools.product(range(2), enumerate(lists)):
        for t in range(len(y)):
            expected = 0.0
            for j, other in enumerate(lists):
                if other[:t] == y[:t] and len(other) > t:
                    expected += (token_p[x, j, t : len(other)].prod() * token_r[x, j, t : len(other)].sum()).item()
            assert values[x, i, t].item() == pytest.approx(expected, abs=1e-12)
    assert (values[~responses.mask] == 0).all()
    assert all(p.requires_grad for p in policy.new_critic(reward).parameters())


@each_tree
def test_a_new_critic_without_a_reward_model_and_a_new_reward_model_are_zero_and_trainable(tree):
    policy, (prompts, responses) = TabularPolicy(tree, tables(tree)), every(tree)
    critic, reward = policy.new_critic(), policy.new_reward_model()
    assert (critic(prompts, responses) == 0).all() and critic(prompts, responses).shape == responses.shape
    assert (reward(prompts, responses) == 0).all() and reward(prompts, responses).shape == responses.shape[:2]
    assert all(p.requires_grad for p in [*critic.parameters(), *reward.parameters()])


@each_tree
def test_reward_enumerate_is_the_reward_of_every_response(tree):
    reward, (prompts, responses) = TabularReward(tree, tables(tree)), every(tree)
    assert torch.allclose(reward.enumerate(prompts), reward(prompts, responses), rtol=0, atol=1e-13)


def test_copies_share_no_weight_and_frozen_ones_take_no_gradient():
    tree = TREES[1]
    policy = TabularPolicy(tree, tables(tree))
    frozen, twin = policy.frozen(), policy.frozen().copy()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0).mul_(2.0)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in twin.parameters())
    for kept in (frozen, twin):
        assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), tables(tree), strict=True))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, t: TabularPolicy(t, tables(t)[:-1]), "do not fit a tree"),
        (lambda p, t: TabularPolicy(t, [torch.zeros(2 + d, *s) for d, s in enumerate(t.shapes)]), "do not fit a tree"),
        (lambda p, t: p.log_prob(t.prompts(3), every(t, 3)[1]), "Prompt 2 is not in the table, which has 2"),
        (lambda p, t: p.sample(t.prompts(3), 1), "Prompt 2 is not in the table, which has 2"),
        (lambda p, t: p.enumerate(t.prompts(3)), "Prompt 2 is not in the table, which has 2"),
        (lambda p, t: p.sample(Tokens.full(torch.tensor([[0]])), 1), "is a response token"),
        (lambda p, t: p.log_prob(t.prompts(1), Tokens.from_lists([[[0, 1]]])), "shorter than 3 tokens"),
        (lambda p, t: p.log_prob(*every(t), temperature=0.0), "temperature must be"),
        (lambda p, t: p.sample(t.prompts(2), 1, temperature=-1.0), "temperature must be"),
    ],
)
def test_bad_input_gets_one_error_that_names_it(call, message):
    tree = TREES[1]
    with pytest.raises(LabError, match=message):
        call(TabularPolicy(tree, tables(tree)), tree)


def test_responses_padded_wider_than_the_tree_is_deep_pass():
    """Padding beyond the depth counts for nothing."""
    tree = TREES[2]
    policy, (prompts, responses) = TabularPolicy(tree, tables(tree)), every(tree)
    wide = policy.token_log_probs(prompts, responses.pad_to(5))
    assert wide.shape[-1] == 5 and (wide[..., 3:] == 0).all()
    assert torch.equal(wide[..., :3], policy.token_log_probs(prompts, responses))
    assert policy.new_critic()(prompts, responses.pad_to(5)).shape == wide.shape


@each_tree
def test_one_response_at_a_temperature_is_that_of_plain_python(tree):
    """A batch of one normalises its own rows of the table and no others: its temperature divides all the same."""
    logits, last = tables(tree), tree.responses.tolist()[-1]
    prompt = tree.prompts(2)[torch.tensor([1])]
    found = TabularPolicy(tree, logits).token_log_probs(prompt, Tokens.from_lists([[last]]), 0.5)
    assert found[0, 0, : len(last)].tolist() == pytest.approx(by_hand(tree, logits, 1, last, 0.5), abs=1e-12)


@each_tree
def test_enumeration_is_of_the_prompts_that_are_asked_in_their_order(tree):
    """Rows of an enumeration of prompts 1, 0, 1 are those of prompts 1, 0 and 1 alone, of policy and reward."""
    policy, reward = TabularPolicy(tree, tables(tree)), TabularReward(tree, tables(tree, seed=1))
    order, whole = torch.tensor([1, 0, 1]), tree.prompts(2)
    assert torch.equal(policy.enumerate(whole[order])[1], policy.enumerate(whole)[1][order])
    assert torch.equal(reward.enumerate(whole[order]), reward.enumerate(whole)[order])


def test_a_frozen_policy_is_in_eval_mode_without_gradients_and_a_copy_trains_weights_of_its_own():
    """Parts that drop something, where a subclass has them, must not in a reference."""
    policy = TabularPolicy(TREES[0], tables(TREES[0]))
    policy.dropout = torch.nn.Dropout(0.5)
    frozen, copied = policy.frozen(), policy.copy()
    assert not frozen.dropout.training and not any(weight.requires_grad for weight in frozen.parameters())
    assert torch.equal(frozen.dropout(torch.ones(64)), torch.ones(64)) and policy.dropout.training
    with torch.no_grad():
        next(copied.parameters()).add_(1.0)
    assert all(weight.requires_grad for weight in copied.parameters())
    assert not torch.equal(next(copied.parameters()), next(policy.parameters()))
    assert torch.equal(next(frozen.parameters()), next(policy.parameters()))
