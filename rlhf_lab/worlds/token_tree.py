"""Token trees: finite worlds whose responses are all sequences of up to L tokens, with an exact π*.

There may be more than a million responses. The rewards are tables with one number for each prefix and next token.
Therefore π* can be computed in two ways that must agree, by enumeration of all responses and by the soft-value
recursion (`exact.soft_values`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.exact import soft_values
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularPolicy, TabularReward
from rlhf_lab.randomness import Stream
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import seeded
from rlhf_lab.worlds.finite_world import FiniteWorld

RewardKind = Literal["additive", "ngram", "additive+ngram", "sequence"]


def additive_reward(tree: ResponseTree, per_token: Tensor) -> list[Tensor]:
    """The reward r(x, y) = Σ_t w[x, t, y_t], as one table per depth.

    Args:
        tree: the response set.
        per_token: w, (X, L, V), or (X, V) for the same w at every position.
    """
    if per_token.ndim == 2:
        per_token = per_token.unsqueeze(1).expand(-1, tree.depth, -1)
    return [per_token[:, t, None, :].expand(-1, nodes, -1).clone() for t, (nodes, _) in enumerate(tree.shapes)]


def ngram_reward(tree: ResponseTree, weights: Tensor) -> list[Tensor]:
    """The reward r(x, y) = Σ_t w[x, y_{t−n+1}, …, y_t] over all windows of n tokens, as one table per depth.

    Args:
        tree: the response set.
        weights: w, (X, V, …, V) with n axes of size V. With n = 2 it is a bigram reward.
    """
    n, base = weights.ndim - 1, tree.branching
    if n < 1 or weights.shape[1:] != (tree.vocab_size,) * n:
        raise LabError(f"n-gram weights must be (X, V, …, V) with V = {tree.vocab_size}, not {tuple(weights.shape)}.")
    tables = []
    for t, (nodes, tokens) in enumerate(tree.shapes):
        if t < n - 1:
            tables.append(weights.new_zeros(len(weights), nodes, tokens))
            continue
        node = torch.arange(nodes)
        window = [(node // base**back) % base for back in range(n - 2, -1, -1)]
        tables.append(weights[:, *window] if n > 1 else weights.unsqueeze(1).expand(-1, nodes, -1).clone())
    return tables


def unigrams(tree: ResponseTree) -> Tensor:
    """The token at each position as features of the responses, (K, L·V), in which additive rewards are linear."""
    return one_hot(tree.responses.ids, tree.vocab_size).double().flatten(1)


def bigrams(tree: ResponseTree) -> Tensor:
    """How often each pair of neighbouring tokens occurs, (K, V²). Bigram rewards are linear in these features."""
    ids, size = tree.responses.ids, tree.vocab_size
    return one_hot(ids[:, :-1] * size + ids[:, 1:], size**2).sum(1).double()


def sequence_reward(tree: ResponseTree, per_response: Tensor) -> list[Tensor]:
    """A reward of the whole response, as tables in which the last token of each response has its reward.

    Args:
        tree: the response set.
        per_response: the reward of each response in the tree's order, (X, K).
    """
    if per_response.ndim != 2 or per_response.shape[1] != tree.num_responses:
        raise LabError(
            f"per_response must be (X, {tree.num_responses}), one number per response, not {tuple(per_response.shape)}."
        )
    tables, start = [], 0
    for t, (nodes, tokens) in enumerate(tree.shapes):
        if t + 1 == tree.depth:
            tables.append(per_response[:, start:].reshape(-1, nodes, tokens))
        else:
            table = per_response.new_zeros(len(per_response), nodes, tokens)
            if tree.has_end:
                table[..., -1] = per_response[:, start : start + nodes]
                start += nodes
            tables.append(table)
    return tables


def make(
    tree: ResponseTree,
    reference: Policy,
    reward_tables: list[Tensor],
    name: str = "token tree",
    prompt_names: list[str] | None = None,
    token_names: list[str] | None = None,
) -> FiniteWorld:
    """Make a token-tree world of given parts.

    Args:
        tree: the response set.
        reference: π_ref, a policy that can enumerate its responses.
        reward_tables: one table per depth, as the functions above return, or sums of such tables.
        name: name for titles and files.
        prompt_names: X names for display.
        token_names: V names for display.
    """
    for depth, table in enumerate(reward_tables):
        if not torch.isfinite(table).all():
            raise LabError(f"The reward table of depth {depth} is not finite.")
    gold = TabularReward(tree, [t.double() for t in reward_tables]).frozen()
    prompts = reward_tables[0].shape[0]
    return FiniteWorld(name, tree, reference.frozen(), gold, prompts, prompt_names or [], token_names or [])


def random(
    vocab_size: int = 8,
    depth: int = 4,
    num_prompts: int = 1,
    seed: int = 0,
    reward: RewardKind = "additive+ngram",
    reward_scale: float = 1.0,
    has_end: bool = False,
    reference: Policy | None = None,
) -> FiniteWorld:
    """Make a random token tree, by default with 4,096 responses.

    Args:
        vocab_size: V.
        depth: L.
        num_prompts: X.
        seed: seed of the rewards and of the default reference.
        reward: "additive" over tokens and positions, "ngram" for bigrams, the sum of both with equal weights, or
            "sequence" for an independent reward of each response.
        reward_scale: standard deviation of the reward over uniformly drawn responses, for each prompt.
        has_end: whether the last token of the vocabulary ends a response early.
        reference: a policy on this tree that can enumerate its responses; by default a table of normal logits.
    """
    tree = ResponseTree(vocab_size, depth, has_end)
    generator = seeded(seed, Stream.TREE_WORLD)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    kinds = {
        "additive": lambda: additive_reward(tree, normal(num_prompts, depth, vocab_size)),
        "ngram": lambda: ngram_reward(tree, normal(num_prompts, vocab_size, vocab_size)),
        "sequence": lambda: sequence_reward(tree, normal(num_prompts, tree.num_responses)),
    }
    if reward not in (*kinds, "additive+ngram"):
        raise LabError(f"reward must be one of {[*kinds, 'additive+ngram']}, not {reward!r}.")
    tables = [
        sum(parts[1:], parts[0])
        for parts in zip(*(kinds[kind]() for kind in reward.split("+")), strict=True)
    ]  # fmt: skip
    spread = exact.path_sums(tables).std(-1, correction=0).clamp(min=1e-12)
    tables = [table * (reward_scale / spread)[:, None, None] for table in tables]
    if reference is None:
        reference = TabularPolicy(tree, [normal(num_prompts, *shape) for shape in tree.shapes])
    name = f"token tree, V = {vocab_size}, L = {depth}, seed {seed}"
    return make(tree, reference, tables, name)


def lecture() -> FiniteWorld:
    """Make a small example by hand: three words and a full stop, up to three tokens, and a bigram reward.

    The labeller prefers "thank you" and a full stop at the end, and dislikes repeated words.
    """
    names = ["thank", "you", "please", "."]
    tree = ResponseTree(4, 3, has_end=True)
    bigram = torch.tensor(
        [[-1.0, 1.0, -0.5, 0.0], [0.0, -1.0, 0.0, 0.5], [0.0, 0.5, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    first = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64).log()
    later = torch.tensor([0.2, 0.2, 0.2, 0.4], dtype=torch.float64).log()
    logits = [(first if t == 0 else later).expand(1, *shape).clone() for t, shape in enumerate(tree.shapes)]
    tables = ngram_reward(tree, bigram.unsqueeze(0))
    return make(tree, TabularPolicy(tree, logits), tables, "lecture tree", ["Reply politely."], names)


def million() -> FiniteWorld:
    """Make a random tree with V = 8 and L = 7, which has 2,097,152 responses."""
    return random(8, 7, seed=0)


def optimal_by_recursion(world: FiniteWorld, beta: float) -> tuple[TabularPolicy, Tensor]:
    """Compute π* token by token, without enumeration of the responses. It agrees with `FiniteWorld.optimal`.

    Args:
        world: a token tree whose reference policy has `log_tables`.
        beta: β > 0.

    Returns:
        the policy π*, and log Z(x), (X,).
    """
    beta = check_beta(beta)
    reference: Any = world.reference
    with torch.no_grad():
        tables = reference.log_tables() if isinstance(reference, TabularPolicy) else reference.log_tables(world.prompts)
    tables = [table.double().log_softmax(-1) for table in tables]
    values, log_policy = soft_values(tables, list(world.reward.table.tables), beta)
    return TabularPolicy(world.tree, log_policy).frozen(), values[0].squeeze(-1) / beta
