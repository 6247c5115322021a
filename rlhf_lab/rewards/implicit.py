r"""The implicit reward of a policy, β log π_θ(y|x)/π_ref(y|x), for which the policy is optimal (Rafailov et al. 2023).

It is determined up to a function of x, so only differences between responses to one prompt have a meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.base import Policy


class ImplicitReward(nn.Module):
    """β log π_θ/π_ref of a policy that DPO or a related loss has trained, as a frozen reward model.

    Attributes:
        policy: π_θ.
        reference: π_ref.
        beta: β > 0, which scales the reward and changes no order.
    """

    def __init__(self, policy: Policy, reference: Policy, beta: float) -> None:
        """Keep the arguments as attributes."""
        super().__init__()
        self.policy, self.reference, self.beta = policy, reference, beta

    @torch.no_grad()
    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Compute the rewards (B, G) of responses (B, G, T) to prompts (B, P)."""
        ours, theirs = (one.log_prob(prompts, responses) for one in (self.policy, self.reference))
        return self.beta * (ours - theirs)
