"""The soft-value recursion, sums along paths and conditionals, against loops over every response.

The independent way lists responses with itertools and applies the definitions to each: π*(y|x) ∝ π_ref(y|x)
exp(r(x, y)/β) over whole responses, V(s) = β log E_ref[exp(reward still to come/β) | s].
"""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.response_tree import ResponseTree

BETAS = [1e-3, 0.1, 0.5, 10.0, 1e3]


def paths(vocab: int, depth: int, has_end: bool) -> list[tuple[int, ...]]:
    """Every response, those that end early first, as `ResponseTree` documents."""
    words = range(vocab - has_end)
    early = [(*head, vocab - 1) for n in range(depth - 1) for head in itertools.product(words, repeat=n)]
    full = [(*head, last) for head in itertools.product(words, repeat=depth - 1) for last in range(vocab)]
    return early * has_end + full


def entry(tables, x: int, y: tuple[int, ...], t: int, base: int) -> float:
    """The number of token y_t after y_<t; the prefix's row is y_<t read as a number in base c."""
    row = 0
    for token in y[:t]:
        row = row * base + token
    return tables[t][x, row, y[t]].item()


def random_tables(vocab, depth, has_end, seed, prompts=2, holes=False):
    """(log_ref, reward) of one tree. With holes, some next tokens have no mass."""
    g = torch.Generator().manual_seed(seed)
    shapes = ResponseTree(vocab, depth, has_end).shapes
    logits = [torch.randn(prompts, *s, dtype=torch.float64, generator=g) for s in shapes]
    if holes:
        for table in logits:
            bare = torch.rand(table.shape, generator=g) < 0.3
            bare[..., 0] = False
            table.masked_fill_(bare, -math.inf)
    reward = [torch.randn(prompts, *s, dtype=torch.float64, generator=g) for s in shapes]
    return [table.log_softmax(-1) for table in logits], reward


cases = st.tuples(st.integers(2, 4), st.integers(1, 4), st.booleans(), st.integers(0, 2**31))


@given(cases)
def test_path_sums_add_the_tables_along_every_response(case):
    """A Python sum over the tokens of each response."""
    vocab, depth, has_end, _ = case
    _, tables = random_tables(*case)
    expected = [
        [sum(entry(tables, x, y, t, vocab - has_end) for t in range(len(y))) for y in paths(vocab, depth, has_end)]
        for x in range(2)
    ]
    assert torch.allclose(exact.path_sums(tables), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@given(cases, st.sampled_from(BETAS), st.booleans())
def test_soft_values_multiply_to_the_enumerated_optimal_policy(case, beta, holes):
    """log π*(y|x) = Σ_t log π*(y_t|y_<t) against exact.optimal_policy over the listed responses, to 1e-10; and
    V at the root against β log Z. Responses without reference mass have none under π* either."""
    vocab, depth, has_end, _ = case
    log_ref, reward = random_tables(*case, holes=holes)
    every = paths(vocab, depth, has_end)
    base = vocab - has_end

    def total(tables):
        rows = [[sum(entry(tables, x, y, t, base) for t in range(len(y))) for y in every] for x in range(2)]
        return torch.tensor(rows, dtype=torch.float64)

    values, log_policy = exact.soft_values(log_ref, reward, beta)
    expected = exact.optimal_policy(total(log_ref), total(reward), beta)
    found = total(log_policy)
    assert torch.equal(found == -math.inf, expected == -math.inf)
    supported = expected > -math.inf
    assert (found - expected)[supported].abs().max() < 1e-10
    log_z = exact.log_partition(total(log_ref), total(reward), beta)
    assert values[0].shape == (2, 1)
    assert torch.allclose(values[0][:, 0], beta * log_z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("has_end", [False, True])
def test_value_of_every_prefix_is_the_soft_value_of_what_may_follow(beta, has_end):
    """V(s) = β log Σ_{y ⊃ s} π_ref(y|s) exp(Σ_{t ≥ |s|} r_t / β), in mpmath with 60 digits."""
    vocab, depth = 3, 3
    base = vocab - has_end
    log_ref, reward = random_tables(vocab, depth, has_end, seed=5, prompts=1, holes=True)
    values, _ = exact.soft_values(log_ref, reward, beta)
    for length in range(depth):
        for row, prefix in enumerate(itertools.product(range(base), repeat=length)):
            with mpmath.workdps(60):
                total = mpmath.mpf(0)
                for y in paths(vocab, depth, has_end):
                    if y[:length] != prefix or len(y) == length:
                        continue
                    steps = range(length, len(y))
                    log_p = sum(entry(log_ref, 0, y, t, base) for t in steps)
                    gain = mpmath.fsum(entry(reward, 0, y, t, base) for t in steps)
                    total += mpmath.exp(mpmath.mpf(log_p)) * mpmath.exp(gain / beta)
                expected = float(beta * mpmath.log(total))
            assert values[length][0, row].item() == pytest.approx(expected, rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("has_end", [False, True])
def test_gradient_of_the_root_value_is_how_often_the_optimal_policy_takes_each_token(has_end):
    """∂ β log Z / ∂r(s, a) = P_{π*}(s, a): the probability, under the enumerated π*, of responses through (s, a)."""
    vocab, depth, beta = 3, 3, 0.5
    base = vocab - has_end
    log_ref, reward = random_tables(vocab, depth, has_end, seed=3, prompts=1)
    reward = [r.requires_grad_() for r in reward]
    values, _ = exact.soft_values(log_ref, reward, beta)
    found = torch.autograd.grad(values[0].sum(), reward)
    star = exact.optimal_policy(exact.path_sums(log_ref), exact.path_sums(reward).detach(), beta).exp()[0]
    expected = [torch.zeros_like(r) for r in reward]
    for y, p in zip(paths(vocab, depth, has_end), star.tolist(), strict=True):
        for t in range(len(y)):
            row = 0
            for token in y[:t]:
                row = row * base + token
            expected[t][0, row, y[t]] += p
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_soft_values_take_rewards_of_a_million_and_the_smallest_beta_without_overflow():
    """exp(1e6 / 1e-8) is far beyond any float: V must be the best reachable sum, which is the limit for β → 0."""
    log_ref, reward = random_tables(3, 3, False, seed=7)
    reward = [r * 1e6 / 3 for r in reward]
    values, log_policy = exact.soft_values(log_ref, reward, 1e-8)
    assert torch.allclose(values[0][:, 0], exact.path_sums(reward).amax(-1), rtol=1e-12)
    assert not any(table.isnan().any() for table in log_policy)


@pytest.mark.parametrize("huge", [1e6, 1e300])
def test_a_token_that_the_reference_cannot_give_has_no_part_however_large_its_reward(huge):
    """π_ref = (½, ½, 0) and r = β (0, log 3, huge): π* = (¼, ¾, 0) and V = β log(½ + ½ · 3) = β log 2.

    With β = 1e-9, huge/β overflows for the larger number and leaves no digit of the other rewards for the smaller.
    """
    beta = 1e-9
    log_ref = torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64).log()
    reward = torch.tensor([[[0.0, beta * math.log(3), huge]]], dtype=torch.float64)
    (value,), (log_policy,) = exact.soft_values([log_ref], [reward], beta)
    assert value.item() == pytest.approx(beta * math.log(2))
    assert log_policy.exp().flatten().tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_in_float32_the_recursion_stays_float32_and_close_to_float64():
    log_ref, reward = random_tables(4, 3, True, seed=1)
    values, log_policy = exact.soft_values([t.float() for t in log_ref], [t.float() for t in reward], 0.5)
    doubles, _ = exact.soft_values(log_ref, reward, 0.5)
    assert values[0].dtype == log_policy[0].dtype == torch.float32
    assert torch.allclose(values[0].double(), doubles[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ref, r: (ref, r[:-1], 0.5), "log_ref has 3 depths and reward 2"),
        (lambda ref, r: ([], [], 0.5), "log_ref has 0 depths"),
        (lambda ref, r: (ref, r, 0.0), "beta must be"),
        (lambda ref, r: (ref, r, math.nan), "beta must be"),
        (lambda ref, r: ([ref[0], ref[1] * 2, ref[2]], r, 0.5), "log_ref at depth 1 are not log-probabilities"),
        (lambda ref, r: (ref, [r[0], r[1], r[2] / 0], 0.5), "reward at depth 2 contains"),
        (lambda ref, r: (ref, [r[0] * math.nan, *r[1:]], 0.5), "reward at depth 0 contains nan"),
        (lambda ref, r: (ref, [r[0], r[1][:, :2], r[2]], 0.5), "Tables of depth 1"),
        (lambda ref, r: ([ref[0], ref[2]], [r[0], r[2]], 0.5), "do not belong to one tree"),
    ],
)
def test_what_is_no_tree_of_log_probabilities_and_rewards_is_refused(change, message):
    with pytest.raises(LabError, match=message):
        exact.soft_values(*change(*random_tables(3, 3, False, seed=2)))


def test_prefix_tables_undo_path_sums_where_two_tokens_end_a_response():
    """Tokens 2 and 3 of 4 end a response: leaves 2, 3, then the two prefixes' four tokens each.

    By hand: .1 and .2 end at the root, and its other tokens have .1 + .05 · 3 = .25 and .15 · 3 = .45.
    """
    p = torch.tensor([[0.1, 0.2, 0.1, 0.05, 0.05, 0.05, 0.15, 0.15, 0.15, 0.0]], dtype=torch.float64)
    root, second = exact.prefix_tables(p.log(), [(1, 4), (2, 4)])
    assert root.exp().flatten().tolist() == pytest.approx([0.25, 0.45, 0.1, 0.2])
    assert second.exp().flatten().tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2, 1 / 3, 1 / 3, 1 / 3, 0.0])
    torch.testing.assert_close(exact.path_sums([root, second]).exp(), p)


@given(cases, st.booleans())
def test_prefix_tables_are_the_conditionals_of_the_distribution(case, holes):
    """log p(a|s) = log Σ_{y ⊃ s·a} p(y) − log Σ_{y ⊃ s} p(y), summed over the listed responses, wherever the prefix
    has mass; a row of a prefix without mass is uniform. And path_sums takes them back to the distribution."""
    vocab, depth, has_end, seed = case
    base, every = vocab - has_end, paths(vocab, depth, has_end)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, len(every), dtype=torch.float64, generator=g)
    if holes:
        bare = torch.rand(logits.shape, generator=g) < 0.7
        bare[:, seed % len(every)] = False
        logits = logits.masked_fill(bare, -math.inf)
    log_p = logits.log_softmax(-1)
    p = dict(zip(every, log_p[0].exp().tolist(), strict=True))
    tables = exact.prefix_tables(log_p, ResponseTree(vocab, depth, has_end).shapes)
    for length in range(depth):
        for row, prefix in enumerate(itertools.product(range(base), repeat=length)):
            mass = sum(q for y, q in p.items() if y[:length] == prefix)
            for a in range(vocab):
                through = sum(q for y, q in p.items() if y[: length + 1] == (*prefix, a))
                expected = through / mass if mass > 0 else 1 / vocab
                assert tables[length][0, row, a].exp().item() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(exact.path_sums(tables).exp(), log_p.exp(), rtol=0, atol=1e-14)
