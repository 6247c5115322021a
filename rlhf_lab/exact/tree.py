r"""π* token by token: the soft-value recursion on a tree of prefixes.

    Q(s, a) = r(s, a) + V(s·a)          V(s) = β log Σ_a π_ref(a|s) exp(Q(s, a)/β)
    π*(a|s) = π_ref(a|s) exp((Q(s, a) − V(s))/β)

The product of π*(a|s) along a path is π*(y|x) of the whole response. V at the root is β log Z(x), so the sum over all
sequences is computed prefix by prefix. Levine 2018, section 2; Rafailov et al. 2024, "From r to Q*".

A table of depth t has shape (X, c^t, V). Its axes are the prompts, the prefixes of t tokens, and the next tokens. After
the first c tokens of the vocabulary a sequence continues; child a < c of node n is node n·c + a of the next depth. A
token a ≥ c ends the sequence, and so does every token of the last depth.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta, check_finite, check_log_distribution


def soft_values(log_ref: Sequence[Tensor], reward: Sequence[Tensor], beta: float) -> tuple[list[Tensor], list[Tensor]]:
    """Compute V of every prefix and log π* of every next token.

    Args:
        log_ref: log π_ref(a|s), one table (X, c^t, V) for each depth.
        reward: the reward of each token, finite, in tables of the same shapes. A reward of the whole sequence is a
            reward of its last token.
        beta: β > 0.

    Returns:
        values: V of every prefix, (X, c^t) for each depth. The first one is β log Z(x), (X, 1).
        log_policy: log π*(a|s), (X, c^t, V) for each depth.

    Raises:
        LabError: beta not above zero; tables that do not belong to one tree, are not normalised or not finite.
    """
    beta = check_beta(beta)
    if len(log_ref) != len(reward) or not log_ref:
        raise LabError(f"log_ref has {len(log_ref)} depths and reward {len(reward)}. Both need one table per depth.")
    values: list[Tensor] = []
    log_policy: list[Tensor] = []
    child: Tensor | None = None
    for depth in reversed(range(len(log_ref))):
        ref, r = log_ref[depth], reward[depth]
        if ref.shape != r.shape or ref.ndim != 3:
            raise LabError(
                f"Tables of depth {depth} must both be (X, prefixes, tokens), not {tuple(ref.shape)} and "
                f"{tuple(r.shape)}."
            )
        check_log_distribution(ref, f"log_ref at depth {depth}")
        check_finite(r, f"reward at depth {depth}")
        q = r
        if child is not None:
            going_on = _children(child, ref.shape, depth)
            q = r + torch.nn.functional.pad(going_on, (0, ref.shape[-1] - going_on.shape[-1]))
        best = torch.where(ref > -torch.inf, q, -torch.inf).detach().amax(-1, keepdim=True)
        q = torch.where(ref > -torch.inf, q, best)
        tilted = ref + (q - best) / beta
        total = tilted.logsumexp(-1, keepdim=True)
        child = (best + beta * total).squeeze(-1)
        values.insert(0, child)
        log_policy.insert(0, tilted - total)
    return values, log_policy


def _children(value: Tensor, shape: torch.Size, depth: int) -> Tensor:
    """V of the next depth, laid out as (X, c^t, c)."""
    prompts, nodes, tokens = shape
    branching, rest = divmod(value.shape[-1], nodes)
    if rest or value.shape[0] != prompts or not 1 <= branching <= tokens:
        raise LabError(
            f"Depth {depth} has {nodes} prefixes and {tokens} tokens, depth {depth + 1} has {value.shape[-1]} "
            f"prefixes. They do not belong to one tree."
        )
    return value.reshape(prompts, nodes, branching)


def path_sums(tables: Sequence[Tensor]) -> Tensor:
    """Sum the tables along every path, (X, K), with the responses in the order of `ResponseTree`.

    Tables of log π(a|s) give log π(y|x) of every response, and token rewards give its reward.
    """
    total = tables[0].new_zeros(tables[0].shape[0], 1)
    leaves = []
    for depth, table in enumerate(tables):
        joint = total.unsqueeze(-1) + table
        if depth + 1 == len(tables):
            leaves.append(joint.flatten(1))
            break
        branching = tables[depth + 1].shape[1] // table.shape[1]
        leaves += [joint[..., a] for a in range(branching, table.shape[-1])]
        total = joint[..., :branching].flatten(1)
    return torch.cat(leaves, -1)


def prefix_tables(log_p: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Compute the conditionals log p(a|s) of a distribution over whole responses; the inverse of `path_sums`.

    Args:
        log_p: (X, K), normalised, with the responses in the order of `ResponseTree`.
        shapes: (prefixes, tokens) of every depth.

    Returns:
        one table (X, c^t, V) for each depth. A prefix without mass gets a uniform row.
    """
    sizes = []
    for depth, (nodes, tokens) in enumerate(shapes):
        last = depth + 1 == len(shapes)
        branching = tokens if last else shapes[depth + 1][0] // nodes
        sizes += [nodes * tokens] if last else [nodes] * (tokens - branching)
    parts = list(log_p.split(sizes, -1))
    below = parts.pop()
    tables: list[Tensor] = []
    for depth in reversed(range(len(shapes))):
        nodes, tokens = shapes[depth]
        joint = below.reshape(len(log_p), nodes, -1)
        ended = [parts.pop() for _ in range(tokens - joint.shape[-1])]
        if ended:
            joint = torch.cat([joint, torch.stack(ended[::-1], -1)], -1)
        below = joint.logsumexp(-1)
        empty = (below == -torch.inf).unsqueeze(-1)
        table = torch.where(empty, 0.0, joint) - torch.where(empty, 0.0, below.unsqueeze(-1))
        tables.insert(0, table.log_softmax(-1))
    return tables
