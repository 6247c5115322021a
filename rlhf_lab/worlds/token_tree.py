"""Rung 2: every sequence of up to L tokens over V, a million and more, and still an exact π*.

Rewards are tables on the prefixes, so that π* comes two ways: by enumeration of all responses, and by the
soft-value recursion (`exact.soft_values`), which must agree.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

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
    """r(x, y) = Σ_t w[x, t, y_t], as one table a depth.

    Args:
        tree: the response set.
        per_token: w, (X, L, V); or (X, V) for the same w at every place.
    """
    if per_token.ndim == 2:
        per_token = per_token.unsqueeze(1).expand(-1, tree.depth, -1)
    return [per_token[:, t, None, :].expand(-1, nodes, -1).clone() for t, (nodes, _) in enumerate(tree.shapes)]


def ngram_reward(tree: ResponseTree, weights: Tensor) -> list[Tensor]:
    """r(x, y) = Σ_t w[x, y_{t−n+1}, …, y_t] over all full windows, as one table a depth.

    Args:
        tree: the response set.
        weights: (X, V, …, V) with n axes of V: n = 2 is a bigram reward.
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


def sequence_reward(tree: ResponseTree, per_response: Tensor) -> list[Tensor]:
    """A reward of the whole response, (X, K) in the tree's order, put on each response's last token."""
    if per_response.ndim != 2 or per_response.shape[1] != tree.num_responses:
        raise LabError(
            f"per_response must be (X, {tree.num_responses}), one number a response, not {tuple(per_response.shape)}."
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
    """A token-tree world from a reference policy that can enumerate, and reward tables (sums of the above)."""
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
    """A random tree; by default the 4,096-sequence one.

    Args:
        vocab_size: V.
        depth: L.
        num_prompts: X.
        seed: of the rewards and of the table that is the default reference.
        reward: additive by token and place, by bigram, both (equal parts), or by whole sequence.
        reward_scale: standard deviation of the reward over uniformly drawn responses, in each prompt.
        has_end: whether the last token ends a response early.
        reference: a policy over this tree that can enumerate; default a table of normal logits.
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
    """A hand-made tree to read aloud: three words and a full stop, up to three tokens, a bigram reward.

    The labeller likes "thank you", dislikes the same word twice, and likes to see the sentence ended.
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


def million(seed: int = 0) -> FiniteWorld:
    """V = 8, L = 7: 2,097,152 responses, and an exact π* in a second."""
    return random(8, 7, seed=seed)


def optimal_by_recursion(world: FiniteWorld, beta: float) -> tuple[TabularPolicy, Tensor]:
    """π* token by token, never listing a response: the policy, and log Z(x), (X,).

    Needs a reference that is a table (or one that can give `log_tables`). Agrees with `FiniteWorld.optimal`.
    """
    beta = check_beta(beta)
    reference: Any = world.reference
    with torch.no_grad():
        tables = reference.log_tables() if isinstance(reference, TabularPolicy) else reference.log_tables(world.prompts)
    tables = [table.double().log_softmax(-1) for table in tables]
    values, log_policy = soft_values(tables, list(world.reward.table.tables), beta)
    return TabularPolicy(world.tree, log_policy).frozen(), values[0].squeeze(-1) / beta
