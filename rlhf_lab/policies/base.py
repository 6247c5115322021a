"""What every policy answers, from a table of three arms to Pythia.

`log_prob(prompts, responses)` gives log π(y|x) as (B, G); `token_log_probs` the same before the sum, (B, G, T);
`sample(prompts, num_samples)` draws responses (B, G, T). Finite policies also answer `enumerate`.
"""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens

P = TypeVar("P", bound="Policy")


class Policy(nn.Module):
    """π_θ(y|x) under the (B, G) rule. Subclasses write `token_log_probs` and `sample`."""

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """log π(y_t | x, y_<t) for every response token.

        Args:
            prompts: (B, P).
            responses: (B, G, T).
            temperature: the logits are divided by it, as they were when the responses were sampled.

        Returns:
            (B, G, T) in nats, 0 where `responses.mask` is False.
        """
        raise NotImplementedError

    def log_prob(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """log π(y|x), summed over the response's tokens, shape (B, G), in nats."""
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
        """Draw responses, the mask including the end token. They lie on the device of the prompts.

        Args:
            prompts: (B, P).
            num_samples: G, at least 1.
            generator: where the randomness comes from; it may live on another device than the policy.
            temperature: divides the logits, > 0.
            top_k: only the k likeliest tokens can be drawn (ties with the k-th too); None for all. The responses
                then no longer follow the π that `log_prob` speaks of.

        Returns:
            (B, G, T).
        """
        raise NotImplementedError

    def copy(self: P) -> P:
        """A trainable copy that shares no weight with this policy."""
        twin = copy.deepcopy(self)
        twin.requires_grad_(True)
        return twin

    def frozen(self: P) -> P:
        """A copy for use as the reference: no gradient, in eval mode (no dropout)."""
        twin = copy.deepcopy(self)
        twin.requires_grad_(False)
        return twin.eval()

    def new_reward_model(self) -> nn.Module:
        """A fresh r_φ over the same responses, `(prompts, responses) → (B, G)`."""
        raise NotImplementedError

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """A fresh V over the same prefixes, `(prompts, responses) → (B, G, T)`.

        The value at place t is the one *before* token t is chosen. Where it can, the critic starts from
        `reward_model`.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device


@runtime_checkable
class Reward(Protocol):
    """Anything that scores responses: a gold reward of a world, or a learned r_φ."""

    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores of shape (B, G)."""
        ...
