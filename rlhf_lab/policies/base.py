"""The interface of all policies and rewards, from a bandit with three arms to Pythia.

`log_prob(prompts, responses)` returns log π(y|x), (B, G). `token_log_probs` returns its terms by token, (B, G, T).
`sample(prompts, num_samples)` returns responses (B, G, T). Policies over a finite set of responses also have
`enumerate`, which returns all responses and their log-probabilities.
"""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens

P = TypeVar("P", bound="Policy")


class Policy(nn.Module):
    """A policy π_θ(y|x) under the (B, G) rule. Subclasses implement `token_log_probs` and `sample`."""

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y_t | x, y_<t) of every response token.

        Args:
            prompts: (B, P).
            responses: (B, G, T).
            temperature: the logits are divided by it, as they were when the responses were sampled.

        Returns:
            (B, G, T) in nats, 0 where `responses.mask` is False.
        """
        raise NotImplementedError

    def log_prob(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y|x), the sum over the response's tokens.

        Args:
            prompts: (B, P).
            responses: (B, G, T).
            temperature: as in `token_log_probs`.

        Returns:
            (B, G) in nats.
        """
        return self.token_log_probs(prompts, responses, temperature).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """Sample responses.

        Args:
            prompts: (B, P).
            num_samples: G, at least 1.
            generator: the source of randomness. Its device may differ from the policy's.
            temperature: the logits are divided by it, > 0.
            top_k: sample only from the k most likely tokens (and those as likely as the k-th); None for all. The
                distribution of the responses is then not the one that `log_prob` computes.

        Returns:
            (B, G, T) on the prompts' device. The mask includes the end token.
        """
        raise NotImplementedError

    def copy(self: P) -> P:
        """Return a trainable copy that shares no weights with this policy."""
        twin = copy.deepcopy(self)
        twin.requires_grad_(True)
        return twin

    def frozen(self: P) -> P:
        """Return a copy without gradients and in eval mode (no dropout), for use as the reference policy."""
        twin = copy.deepcopy(self)
        twin.requires_grad_(False)
        return twin.eval()

    def new_reward_model(self) -> nn.Module:
        """Return a new reward model r_φ for this policy's responses, `(prompts, responses) → (B, G)`."""
        raise NotImplementedError

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """Return a new critic V for this policy's responses, `(prompts, responses) → (B, G, T)`.

        Args:
            reward_model: the critic is initialised from it; None for a new critic.

        Returns:
            A module whose value at index t is that *before* token t is chosen.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device


@runtime_checkable
class Reward(Protocol):
    """A function that scores responses: the gold reward of a world, or a learned reward model r_φ."""

    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Return scores (B, G) of responses (B, G, T) to prompts (B, P)."""
        ...
