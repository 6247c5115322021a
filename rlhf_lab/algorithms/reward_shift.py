r"""The reward shift δ of BCO as a running mean of implicit rewards.

    δ_t = Σ_{s≤t} d^{t−s} m_s / Σ_{s≤t} d^{t−s},   m_s = mean of (r̂_w + r̂_l)/2 over the batch of step s

Jung et al. 2024 estimate δ = (E[r̂_w] + E[r̂_l])/2 by a moving average. d = 1 gives all batches the same weight, which is
the running mean of TRL's `BCOTrainer`. d < 1 is an exponential moving average. It is divided by the sum of its weights,
so it does not start near 0, and d = 0 is the mean of the present batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RewardShift(nn.Module):
    """δ of BCO. Its sums are buffers, so a checkpoint of the training contains them.

    Attributes:
        decay: d in [0, 1].
        total: Σ d^{t−s} m_s, a float64 scalar in units of reward.
        weight: Σ d^{t−s}, a float64 scalar; 0 before the first step.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float, device: torch.device | str = "cpu") -> None:
        """Create a shift that has seen no batch.

        Args:
            decay: d in [0, 1].
            device: that of the rewards.
        """
        super().__init__()
        self.decay = decay
        for name in ("total", "weight"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=device))

    @torch.no_grad()
    def update(self, mean: Tensor) -> Tensor:
        """Add the mean of a batch, and return δ.

        Args:
            mean: m of the present step, a scalar.
        """
        self.total.mul_(self.decay).add_(mean)
        self.weight.mul_(self.decay).add_(1)
        return self.value

    @property
    def value(self) -> Tensor:
        """δ, a scalar. It is 0 before the first step, when the policy usually is the reference."""
        return self.total / self.weight.clamp(min=torch.finfo(torch.float64).tiny)
