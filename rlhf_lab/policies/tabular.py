r"""Policies, values and rewards that are tables: one row of logits for every prompt and prefix.

    log π(y|x) = Σ_t log softmax(θ[x, y_<t])_{y_t}

On a bandit the tree has depth one and this is the softmax over a row of K logits. A table can be any policy, so
where it fails to reach π* the method is to blame, not the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.exact import path_sums, prefix_tables
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.transformer.token_sampling import check_top_k, keep_top_k, sample_index
from rlhf_lab.response_tree import ResponseTree


class PrefixTable(nn.Module):
    """One trainable table a depth, (X, c^t, V), and the look-up of a batch of responses in it."""

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """Tables of the tree's shapes; they are copied.

        Raises:
            LabError: tables of other shapes.
        """
        super().__init__()
        found, wanted = [tuple(t.shape[1:]) for t in tables], tree.shapes
        if found != wanted or len({t.shape[0] for t in tables}) != 1:
            raise LabError(f"Tables of shapes {[tuple(t.shape) for t in tables]} do not fit a tree of (X, *) {wanted}.")
        self.tree = tree
        self.tables = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tables])

    @property
    def num_prompts(self) -> int:
        """X: how many prompts the table has rows for."""
        return self.tables[0].shape[0]

    def rows(self, prompts: Tokens) -> Tensor:
        """The row of each prompt, (B,)."""
        index = self.tree.prompt_index(prompts)
        if len(index) and int(index.max()) >= self.num_prompts:
            raise LabError(f"Prompt {int(index.max())} is unknown to a table of {self.num_prompts} prompts.")
        return index

    def forward(self, prompts: Tokens, responses: Tokens, log_softmax: bool = False, scale: float = 1.0) -> Tensor:
        """The entry of every token, (B, G, T), 0 where the mask is False. Optionally of log_softmax(table/scale)."""
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
    """π_θ as a table of logits on every prefix of the tree, for every prompt."""

    def __init__(self, tree: ResponseTree, logits: Sequence[Tensor]) -> None:
        """A policy with these logits.

        Args:
            tree: the response set.
            logits: one table a depth, (X, c^t, V); for a bandit a list of one, (X, 1, K). `-inf` bars a token.

        Raises:
            LabError: tables of other shapes.
        """
        super().__init__()
        self.tree = tree
        self.logits = PrefixTable(tree, logits)

    @classmethod
    def from_log_probs(cls, tree: ResponseTree, log_p: Tensor) -> TabularPolicy:
        """The policy with these log-probabilities of whole responses, (X, K): π*, for one."""
        return cls(tree, prefix_tables(log_p, tree.shapes))

    @classmethod
    def uniform(cls, tree: ResponseTree, num_prompts: int) -> TabularPolicy:
        """Every token equally likely everywhere."""
        return cls(tree, [torch.zeros(num_prompts, *shape, dtype=torch.float64) for shape in tree.shapes])

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """See `Policy.token_log_probs`."""
        check_positive(temperature, "temperature")
        return self.logits(prompts, responses, log_softmax=True, scale=temperature)

    def log_tables(self) -> list[Tensor]:
        """log π(a|s), one table a depth, (X, c^t, V)."""
        return [table.log_softmax(-1) for table in self.logits.tables]

    def enumerate(self, prompts: Tokens) -> tuple[Tokens, Tensor]:
        """Every response, (B, K, L), and its log-probability, (B, K)."""
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
        """See `Policy.sample`."""
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
        """A learned reward of zeros, with an entry for every prefix and token."""
        return TabularReward(self.tree, [torch.zeros_like(t) for t in self.logits.tables])

    def new_critic(self, reward_model: nn.Module | None = None) -> TabularCritic:
        """V of every prefix: zeros, or what `reward_model` expects of this policy's responses from there on."""
        if reward_model is None:
            return TabularCritic(self.tree, [torch.zeros_like(t[..., :1]) for t in self.logits.tables])
        assert isinstance(reward_model, TabularReward)
        values = state_values(self.log_tables(), list(reward_model.table.tables))
        return TabularCritic(self.tree, [v.unsqueeze(-1) for v in values])


def state_values(log_policy: Sequence[Tensor], reward: Sequence[Tensor]) -> list[Tensor]:
    """V_π(s) = E_π[reward still to come | s] of every prefix, (X, c^t) a depth, by backward induction."""
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
    """r(x, y) = Σ_t table[x, y_<t, y_t]: gold rewards of finite worlds, and learned ones.

    With an entry for every prefix it can be any reward; siblings share the entries of their common prefix, so a
    learned one knows something of a response that it has never seen.
    """

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """Tables as in `PrefixTable`."""
        super().__init__()
        self.tree = tree
        self.table = PrefixTable(tree, tables)

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores (B, G)."""
        return self.table(prompts, responses).sum(-1)

    def enumerate(self, prompts: Tokens) -> Tensor:
        """Scores of every response, (B, K)."""
        rows = self.table.rows(prompts)
        return path_sums([table[rows] for table in self.table.tables])

    def frozen(self) -> TabularReward:
        """A copy without gradients, for use as a gold reward."""
        return TabularReward(self.tree, list(self.table.tables)).requires_grad_(False)


class TabularCritic(nn.Module):
    """V(x, y_<t) as a table, (X, c^t, 1) a depth."""

    def __init__(self, tree: ResponseTree, tables: Sequence[Tensor]) -> None:
        """Tables of shape (X, c^t, 1)."""
        super().__init__()
        self.tree = tree
        self.tables = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in tables])

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """The value before each token is chosen, (B, G, T), 0 where the mask is False."""
        rows = self.tree.prompt_index(prompts).unsqueeze(-1)
        nodes = self.tree.nodes(responses)
        length = min(responses.shape[-1], self.tree.depth)
        values = torch.stack([self.tables[t][rows, nodes[..., t], 0] for t in range(length)], -1)
        values = torch.nn.functional.pad(values, (0, responses.shape[-1] - length))
        return torch.where(responses.mask, values, 0.0)
