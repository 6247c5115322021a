"""RSO's fit with infinitely many pairs: how far a given number of optimiser steps takes a policy towards its limit."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.worlds.finite_world import FiniteWorld


def expected_fit(
    world: FiniteWorld, log_source: Tensor, reward: Tensor, gamma: float, labels: str, steps: int, rate: float
) -> Tensor:
    """Minimise the expected loss of sigmoid-norm by Adam with a linearly falling rate, starting at π_ref.

    This is `dpo` with a batch of infinitely many pairs, so that it has no sampling noise. With sampled labels it
    converges to `exact.optimal_policy(log_ref, reward, gamma)` for every source with full support.

    Args:
        world: the finite world, with a table as its reference policy.
        log_source: log-probabilities of the source of pairs, (X, K).
        reward: the reward that labels, (X, K).
        gamma: γ of the loss.
        labels: sampled or hard, see `exact.label_means`.
        steps: optimiser steps.
        rate: peak learning rate.

    Returns:
        log π of every response, (X, K).
    """
    policy, log_ref = world.reference.copy(), world.log_ref()
    means = exact.label_means(log_source, reward, labels)
    optimizer = torch.optim.Adam(policy.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        log_policy = policy.log_prob(world.prompts, world.responses)
        gradient = exact.pair_gradient(log_policy.detach().double() - log_ref, log_source, means, gamma)
        optimizer.zero_grad()
        log_policy.backward(gradient.to(log_policy.dtype) / world.num_prompts)
        optimizer.step()
    with torch.no_grad():
        return world.log_probs(policy)
