"""`TreeTransformerPolicy`: the walk over prefixes against forward passes with shared prompts and with separate rows."""

import contextlib

import pytest
import scipy.stats
import torch
from pretend_gpu import pretended_gpu
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.response_tree import ResponseTree

KINDS = ["gpt2", "gpt_neox"]
TREES = [ResponseTree(4, 3), ResponseTree(4, 3, has_end=True)]
each = [pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("tree", TREES, ids=["plain", "with end"])]


def each_kind_and_tree(test):
    return each[0](each[1](test))


def policy_of(kind: str, tree: ResponseTree, prompts: int = 2, wide: float = 0.3) -> TreeTransformerPolicy:
    """Weights wide enough that the next-token probabilities differ by factors, not by a few per cent."""
    policy = TreeTransformerPolicy(tree, prompts, kind, layers=2, width=16, heads=2, seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(wide * torch.randn(p.shape, generator=g))
    return policy


def batch_of(tree: ResponseTree, group: int = 6, seed: int = 3) -> tuple[Tokens, Tokens]:
    """Prompts 1, 0, 1 and random responses with repeats, so that prefixes are shared within and across rows."""
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(tree.num_responses, (3, group), generator=g)
    every = tree.responses
    return tree.prompts(2)[torch.tensor([1, 0, 1])], Tokens(every.ids[index], every.mask[index])


def plain_way(policy: TreeTransformerPolicy, prompts: Tokens, responses: Tokens, temperature: float = 1.0):
    """Each prompt + response alone through the Hugging Face model, all logits, cut to the tree's V ids."""
    rows = []
    for x, ys in zip(prompts.tolist(), responses.tolist(), strict=True):
        for y in ys:
            logits = policy.model(torch.tensor([x + y])).logits[0, :, : policy.tree.vocab_size] / temperature
            log_p = logits.log_softmax(-1)
            values = [log_p[len(x) + t - 1, token] for t, token in enumerate(y)]
            rows.append(torch.stack([*values, *[torch.zeros(())] * (responses.shape[-1] - len(y))]))
    return torch.stack(rows).view(responses.shape)


def shared_prefix(policy: TreeTransformerPolicy, prompts: Tokens, responses: Tokens, temperature: float = 1.0):
    return LanguageModelPolicy.token_log_probs(policy, prompts, responses, temperature)


def places_computed(policy: TreeTransformerPolicy) -> list[int]:
    """A list to which every later forward pass of the body adds the number of its tokens."""
    places: list[int] = []
    body_of(policy.model).register_forward_pre_hook(
        lambda module, args, kwargs: places.append(args[0].numel()), with_kwargs=True
    )
    return places


@each_kind_and_tree
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("other_way", [plain_way, shared_prefix])
def test_token_log_probs_and_gradients_equal_the_other_ways(kind, tree, temperature, other_way):
    policy = policy_of(kind, tree)
    prompts, responses = batch_of(tree)
    ours = policy.token_log_probs(prompts, responses, temperature)
    theirs = other_way(policy, prompts, responses, temperature)
    assert ours.shape == responses.shape and (ours[~responses.mask] == 0).all()
    assert (ours - theirs).abs().max() < 1e-4
    # A random weight for each token, so that no error can cancel in the sum.
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    wrt = list(policy.parameters())
    one = torch.autograd.grad((ours * weight).sum(), wrt)
    two = torch.autograd.grad((theirs * weight).sum(), wrt)
    largest = max(float(g.abs().max()) for g in two)
    assert largest > 1e-2, "the gradient is not trivially zero"
    assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) < 1e-5 * max(largest, 1)


@each_kind_and_tree
def test_enumerate_is_log_prob_of_every_response_and_sums_to_one(kind, tree):
    policy, prompts = policy_of(kind, tree), tree.prompts(2)
    responses, log_p = policy.enumerate(prompts)
    assert log_p.shape == (2, tree.num_responses)
    assert (log_p - plain_way(policy, prompts, responses).sum(-1)).abs().max() < 1e-4
    assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-5
    assert torch.equal(tree.index(responses), torch.arange(tree.num_responses).expand(2, -1))


@each_kind_and_tree
def test_enumerate_has_the_gradient_of_log_prob(kind, tree):
    """Of E_π[w] for a weight of each response's own: by enumeration and by log_prob over the listed responses."""
    policy, prompts = policy_of(kind, tree), tree.prompts(2)
    weight = torch.randn(2, tree.num_responses, generator=torch.Generator().manual_seed(5))
    responses, log_p = policy.enumerate(prompts)
    wrt = list(policy.parameters())
    one = torch.autograd.grad((log_p.exp() * weight).sum(), wrt)
    two = torch.autograd.grad((policy.log_prob(prompts, responses).exp() * weight).sum(), wrt)
    assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) < 1e-5


@each_kind_and_tree
def test_enumerating_computes_every_prefix_of_every_prompt_once(kind, tree):
    """Tokens run through the body = prompts × Σ_t c^t prefixes (the empty one is the prompt's own token)."""
    policy = policy_of(kind, tree)
    places = places_computed(policy)
    policy.enumerate(tree.prompts(2))
    assert places == [2 * tree.branching**t for t in range(tree.depth)]
    places.clear()
    policy.enumerate(tree.prompts(2)[torch.tensor([1, 0, 1, 1])])
    assert sum(places) == 2 * sum(tree.branching**t for t in range(tree.depth)), "a prompt listed twice runs once"


@each_kind_and_tree
def test_scoring_computes_each_distinct_prefix_of_the_batch_once(kind, tree):
    """The distinct (prompt, y_<t) of the batch, counted with a set."""
    policy = policy_of(kind, tree)
    prompts, responses = batch_of(tree, group=9)
    prefixes = {
        (*x, *y[:t])
        for x, ys in zip(prompts.tolist(), responses.tolist(), strict=True)
        for y in ys
        for t in range(len(y))
    }
    places = places_computed(policy)
    policy.token_log_probs(prompts, responses)
    assert sum(places) == len(prefixes) < int(responses.mask.sum())


@each_kind_and_tree
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_enumerated_probabilities(kind, tree, temperature):
    """40,000 draws for each prompt, chi-square at a fixed seed."""
    number, policy, prompts = 40_000, policy_of(kind, tree), tree.prompts(2)
    every = tree.responses
    responses = Tokens(every.ids.expand(2, -1, -1), every.mask.expand(2, -1, -1))
    with torch.no_grad():
        p = policy.log_prob(prompts, responses, temperature).double().exp()
    index = tree.index(policy.sample(prompts, number, torch.Generator().manual_seed(6), temperature))
    for x in range(2):
        few = p[x] * number < 5
        counts = index[x].bincount(minlength=tree.num_responses).double()
        counts = torch.cat([counts[~few], counts[few].sum().view(1)])
        expected = torch.cat([p[x][~few], p[x][few].sum().view(1)])
        keep = expected > 0
        wanted = expected[keep] / expected[keep].sum() * number
        assert scipy.stats.chisquare(counts[keep].numpy(), wanted.numpy()).pvalue > 1e-3


@each_kind_and_tree
def test_sampling_computes_a_shared_prefix_once_and_depends_on_the_generator_alone(kind, tree):
    policy, prompts = policy_of(kind, tree), tree.prompts(2)
    places = places_computed(policy)
    before = torch.get_rng_state()
    one, same, other = (policy.sample(prompts, 300, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.ids, same.ids) and torch.equal(one.mask, same.mask)
    assert not torch.equal(one.ids, other.ids)
    assert max(places) <= 2 * tree.branching ** (tree.depth - 1), "600 samples cost no more than the whole tree"
    tree.check(one)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_a_function_of_the_seed_and_construction_leaves_the_global_generator_alone(kind):
    tree = TREES[0]
    before = torch.get_rng_state()
    one, same, other = (TreeTransformerPolicy(tree, 2, kind, 1, 8, 2, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # whatever the state of the global generator
    again = TreeTransformerPolicy(tree, 2, kind, 1, 8, 2, seed=3)
    for twin in (same, again):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), twin.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_leaves_the_model_in_the_mode_it_was_in_and_drops_nothing_out(kind):
    tree = TREES[0]
    policy = policy_of(kind, tree)
    prompts, responses = batch_of(tree)
    policy.train()
    first, second = (policy.token_log_probs(prompts, responses) for _ in range(2))
    assert torch.equal(first, second) and policy.model.training


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_copy_share_no_weight_and_the_frozen_one_takes_no_gradient(kind):
    tree = TREES[0]
    policy = policy_of(kind, tree)
    frozen, twin = policy.frozen(), policy.copy()
    expected = policy.enumerate(tree.prompts(2))[1].detach()
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.5)
    assert not torch.allclose(policy.enumerate(tree.prompts(2))[1], expected)
    for kept in (frozen, twin):
        assert torch.equal(kept.enumerate(tree.prompts(2))[1], expected)
    assert not frozen.enumerate(tree.prompts(2))[1].requires_grad
    assert all(p.requires_grad for p in twin.parameters())


def test_a_tree_of_depth_one_is_a_bandit():
    tree = ResponseTree(5, 1)
    policy = policy_of("gpt2", tree, prompts=3)
    responses, log_p = policy.enumerate(tree.prompts(3))
    assert log_p.shape == (3, 5) and (log_p.exp().sum(-1) - 1).abs().max() < 1e-6
    assert policy.sample(tree.prompts(3), 4, torch.Generator().manual_seed(0)).shape == (3, 4, 1)
    assert (log_p - plain_way(policy, tree.prompts(3), responses).sum(-1)).abs().max() < 1e-5


def test_responses_padded_wider_than_the_tree_is_deep_pass():
    tree = TREES[1]
    policy = policy_of("gpt2", tree)
    prompts, responses = batch_of(tree)
    wide = policy.token_log_probs(prompts, responses.pad_to(6))
    assert wide.shape[-1] == 6
    assert torch.equal(wide[..., :3], policy.token_log_probs(prompts, responses)) and (wide[..., 3:] == 0).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, t: TreeTransformerPolicy(t, 2, "llama"), "architecture must be 'gpt2' or 'gpt_neox'"),
        (lambda p, t: p.enumerate(t.prompts(3)), "Prompt 2 is unknown to the model, which has 2 prompts"),
        (lambda p, t: p.sample(t.prompts(3), 1), "Prompt 2 is unknown to the model, which has 2 prompts"),
        (lambda p, t: p.log_prob(t.prompts(3), Tokens(*[x[:3, None] for x in (t.responses.ids, t.responses.mask)])),
         "Prompt 2 is unknown to the model, which has 2 prompts"),
        (lambda p, t: p.enumerate(Tokens.full(torch.tensor([[1]]))), "is a response token"),
        (lambda p, t: p.log_prob(t.prompts(1), Tokens.from_lists([[[0, 1]]])), "shorter than 3 tokens"),
        (lambda p, t: p.log_prob(t.prompts(1), Tokens.from_lists([[[0, 1, 4]]])), "outside 0 … 3"),
        (lambda p, t: p.sample(t.prompts(2), 1, temperature=0.0), "temperature must be"),
        (lambda p, t: p.sample(t.prompts(2), 0), "num_samples must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_error_that_names_it(call, message):
    tree = TREES[0]
    with pytest.raises(LabError, match=message):
        call(policy_of("gpt2", tree), tree)


@each_kind_and_tree
def test_on_a_gpu_draws_lie_with_the_prompts_and_numbers_are_those_of_the_cpu(kind, tree):
    """Pretended where there is none. The generator is the CPU's, as in the commands; prompts are wherever they are."""
    policy, (prompts, responses) = policy_of(kind, tree), batch_of(tree)
    expected = policy.token_log_probs(prompts, responses), policy.enumerate(prompts)[1]
    drawn = policy.sample(prompts, 5, torch.Generator().manual_seed(0))
    with contextlib.nullcontext("cuda:0") if torch.cuda.is_available() else pretended_gpu() as device:
        policy.to(device)
        found = policy.token_log_probs(prompts, responses), policy.enumerate(prompts)[1]
        assert {f.device.type for f in found} == {"cuda"}
        for f, e in zip(found, expected, strict=True):
            assert torch.allclose(f.cpu(), e, atol=1e-4)
        here = policy.sample(prompts, 5, torch.Generator().manual_seed(0))
        there = policy.sample(prompts.to(torch.device(device)), 5, torch.Generator().manual_seed(0))
        assert here.ids.device.type == "cpu" and there.ids.device.type == "cuda"
        assert torch.equal(here.ids, drawn.ids) and torch.equal(there.ids.cpu(), drawn.ids)
