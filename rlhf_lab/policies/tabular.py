r"""Tabular policies, critics and rewards, with one row of logits for every prompt and prefix.

    log π(y|x) = Σ_t log softmax(θ[x, y_<t])_{y_t}

On a bandit the tree has depth one, and this is the softmax over a row of K logits. A table can represent every policy.
If training does not converge to π*, the reason is therefore the method and not the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive, count_of
from rlhf_lab.exact import path_sums, prefix_tables
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.transformer.token_sampling import check_top_k, keep_top_k, sample_index
from rlhf_lab.response_tree import ResponseTree


class PrefixTable(nn.Module):
    """One trainable table per depth, (X, c^t, V), and the look-up of a batch of responses in it."""

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """Copy the tables.

        Args:
            tree: the response set.
            tables: one per depth, (X, c^t, V).

        Raises:
            LabError: the shapes do not fit the tree.
        """
        super().__init__()
        found, wanted = [tuple(t.shape[1:]) for t in tables], tree.shapes
        if found != wanted or len({t.shape[0] for t in tables}) != 1:
            raise LabError(f"Tables of shapes {[tuple(t.shape) for t in tables]} do not fit a tree of (X, *) {wanted}.")
        self.tree = tree
        self.tables = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tables])

    @property
    def num_prompts(self) -> int:
        """X, the number of prompts."""
        return int(self.tables[0].shape[0])

    def rows(self, prompts: Tokens) -> Tensor:
        """The index of each prompt's row, (B,).

        Raises:
            LabError: the table has no row for a prompt.
        """
        index = self.tree.prompt_index(prompts)
        if len(index) and int(index.max()) >= self.num_prompts:
            raise LabError(
                f"Prompt {int(index.max())} is not in the table, which has {count_of(self.num_prompts, 'prompt')}."
            )
        return index

    def forward(self, prompts: Tokens, responses: Tokens, log_softmax: bool = False, scale: float = 1.0) -> Tensor:
        """Look up the entry of every token.

        Args:
            prompts: (B, 1).
            responses: (B, G, T).
            log_softmax: look up in log_softmax(table / scale) instead of in the table.
            scale: the temperature.

        Returns:
            (B, G, T), 0 where the mask is False.
        """
        self.tree.check(responses)
        rows = self.rows(prompts).unsqueeze(-1)
        nodes = self.tree.nodes(responses)
        out = []
        for t in range(min(responses.shape[-1], self.tree.depth)):
            table = self.tables[t]
            # Normalise the whole table or just the rows in the batch, whichever is less work.
            if log_softmax and responses.ids[..., t].numel() >= table[..., 0].numel():
                entries = (table / scale).log_softmax(-1)[rows, nodes[..., t], responses.ids[..., t]]
            elif log_softmax:
                entries = (table[rows, nodes[..., t]] / scale).log_softmax(-1)
                entries = entries.gather(-1, responses.ids[..., t : t + 1]).squeeze(-1)
            else:
                entries = table[rows, nodes[..., t], responses.ids[..., t]]
            out.append(torch.where(responses.mask[..., t], entries, 0.0))
        out += [torch.zeros_like(out[0])] * (responses.shape[-1] - len(out))
        return torch.stack(out, -1)


class TabularPolicy(Policy):
    """A policy π_θ whose parameters are a table of logits for every prompt and every prefix of the tree."""

    def __init__(self, tree: ResponseTree, logits: Sequence[Tensor]) -> None:
        """Create a policy with these logits.

        Args:
            tree: the response set.
            logits: one table per depth, (X, c^t, V); for a bandit one table, (X, 1, K). A token with the logit `-inf`
                has probability 0.

        Raises:
            LabError: the shapes do not fit the tree.
        """
        super().__init__()
        self.tree = tree
        self.logits = PrefixTable(tree, logits)

    @classmethod
    def from_log_probs(cls, tree: ResponseTree, log_p: Tensor) -> TabularPolicy:
        """Create the policy that has these log-probabilities of whole responses.

        Args:
            tree: the response set.
            log_p: (X, K), for example log π*.
        """
        return cls(tree, prefix_tables(log_p, tree.shapes))

    @classmethod
    def uniform(cls, tree: ResponseTree, num_prompts: int) -> TabularPolicy:
        """Create the policy in which all tokens are equally likely after every prefix."""
        return cls(tree, [torch.zeros(num_prompts, *shape, dtype=torch.float64) for shape in tree.shapes])

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y_t | x, y_<t); see `Policy.token_log_probs`."""
        check_positive(temperature, "temperature")
        values: Tensor = self.logits(prompts, responses, log_softmax=True, scale=temperature)
        return values

    def log_tables(self) -> list[Tensor]:
        """Log π(a|s), one table per depth, (X, c^t, V)."""
        return [table.log_softmax(-1) for table in self.logits.tables]

    def enumerate(self, prompts: Tokens) -> tuple[Tokens, Tensor]:
        """All responses, (B, K, L), and their log-probabilities, (B, K), for prompts (B, 1)."""
        rows = self.logits.rows(prompts)
        log_p = path_sums([table[rows].log_softmax(-1) for table in self.logits.tables])
        every = self.tree.responses
        lead = (len(prompts), *every.shape)
        return Tokens(every.ids.expand(lead), every.mask.expand(lead)), log_p

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """Sample responses; see `Policy.sample`."""
        check_positive(temperature, "temperature")
        check_top_k(top_k)
        rows = self.logits.rows(prompts).unsqueeze(-1)
        node = torch.zeros(len(prompts), num_samples, dtype=torch.long)
        going = torch.ones_like(node, dtype=torch.bool)
        ids, mask = [], []
        for table in self.logits.tables:
            token = sample_index((keep_top_k(table[rows, node], top_k) / temperature).softmax(-1), generator)
            ids.append(torch.where(going, token, 0))
            mask.append(going)
            going = going & (token < self.tree.branching)
            node = torch.where(going, node * self.tree.branching + token, 0)
        return Tokens(torch.stack(ids, -1), torch.stack(mask, -1))

    def new_reward_model(self) -> TabularReward:
        """Return a trainable reward of zeros, with an entry for every prefix and token."""
        return TabularReward(self.tree, [torch.zeros_like(t) for t in self.logits.tables])

    def new_critic(self, reward_model: nn.Module | None = None) -> TabularCritic:
        """Return a critic of zeros, or of the expected `reward_model` still to come under this policy."""
        if reward_model is None:
            return TabularCritic(self.tree, [torch.zeros_like(t[..., :1]) for t in self.logits.tables])
        assert isinstance(reward_model, TabularReward)
        values = state_values(self.log_tables(), list(reward_model.table.tables))
        return TabularCritic(self.tree, [v.unsqueeze(-1) for v in values])


def state_values(log_policy: Sequence[Tensor], reward: Sequence[Tensor]) -> list[Tensor]:
    """Compute V_π(s) = E_π[reward still to come | s] of every prefix by backward induction.

    Args:
        log_policy: log π(a|s), one table per depth, (X, c^t, V).
        reward: the reward of each token, in tables of the same shapes.

    Returns:
        One table per depth, (X, c^t).
    """
    values: list[Tensor] = []
    below: Tensor | None = None
    for table, r in zip(reversed(log_policy), reversed(reward), strict=True):
        q = r.detach()
        if below is not None:
            on = below.reshape(*q.shape[:2], -1)
            q = q + torch.nn.functional.pad(on, (0, q.shape[-1] - on.shape[-1]))
        below = (table.detach().exp() * q).sum(-1)
        values.insert(0, below)
    return values


class TabularReward(nn.Module):
    """A reward r(x, y) = Σ_t table[x, y_<t, y_t], used as gold reward of finite worlds and as learned reward.

    With an entry for every prefix and token it can represent every reward. Responses with a common prefix share its
    entries, so that a learned reward generalises to responses that were not in the data.
    """

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """See `PrefixTable`."""
        super().__init__()
        self.tree = tree
        self.table = PrefixTable(tree, tables)

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Return scores (B, G) of responses (B, G, T)."""
        scores: Tensor = self.table(prompts, responses).sum(-1)
        return scores

    def enumerate(self, prompts: Tokens) -> Tensor:
        """Return the scores of all responses, (B, K)."""
        rows = self.table.rows(prompts)
        return path_sums([table[rows] for table in self.table.tables])

    def frozen(self) -> TabularReward:
        """Return a copy without gradients, for use as a gold reward."""
        return TabularReward(self.tree, list(self.table.tables)).requires_grad_(False)


class TabularCritic(nn.Module):
    """A critic V(x, y_<t), one table per depth, (X, c^t, 1)."""

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """Copy the tables.

        Args:
            tree: the response set.
            tables: one per depth, (X, c^t, 1).
        """
        super().__init__()
        self.tree = tree
        self.tables = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tables])

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Return the value before each token is chosen, (B, G, T), 0 where the mask is False."""
        rows = self.tree.prompt_index(prompts).unsqueeze(-1)
        nodes = self.tree.nodes(responses)
        length = min(responses.shape[-1], self.tree.depth)
        values = torch.stack([self.tables[t][rows, nodes[..., t], 0] for t in range(length)], -1)
        values = torch.nn.functional.pad(values, (0, responses.shape[-1] - length))
        return torch.where(responses.mask, values, 0.0)
