"""What the methods of an experiment share, on any scale: reference policy, labels, reward model, prompts, budget, seed.

A set-up is one seed of one experiment. Every method that learns from preferences gets the same labelled pairs, every
method that needs a reward gets the same reward model, fitted to those pairs, and every method gets the same prompts
and as many optimiser steps. `setup_exact.ExactSetup` is a set-up on a finite world, `setup_text.TextSetup` one on a
language model. Both follow the (B, G) rule, so `methods.train` runs on either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded


@dataclass(frozen=True)
class SetupBudget:
    """What every method of a set-up may use. One budget serves all methods of an experiment."""

    labels: int = 2000
    """Preference labels."""
    noise: float = 0.0
    """Probability that a label is flipped."""
    prompts: int = 500
    """Prompts that a sampling method answers."""
    beta: float = 0.5
    """β of the objective, in logits of a label per nat."""
    steps: int = 150
    """Optimiser steps of every fit."""
    batch_size: int = 4096
    """Pairs or responses in a step."""
    learning_rate: float = 0.05
    """Learning rate of every fit."""
    max_grad_norm: float | None = None
    """Largest norm of a gradient; None does not clip."""
    reward_steps: int | None = None
    """Optimiser steps of the reward model; None for `steps`."""
    reward_batch_size: int | None = None
    """Pairs in a step of the reward model; None for `batch_size`."""
    reward_rate: float | None = None
    """Learning rate of the reward model; None for `learning_rate`."""
    test_prompts: int = 128
    """Text: test prompts that every policy answers when it is evaluated."""
    test_samples: int = 4
    """Text: responses to each of them."""
    progress: bool = False
    """Show a progress bar for every fit."""


class Setup(ABC):
    """One seed of an experiment, from which any method trains a policy.

    Attributes:
        budget: how much of everything the methods get.
        seed: of the labels, the prompts, the reward model and the fits.
    """

    budget: SetupBudget
    seed: int

    @property
    @abstractmethod
    def reference(self) -> Policy:
        """π_ref, frozen."""

    @property
    @abstractmethod
    def prompts(self) -> Tokens:
        """The prompts that sampling methods answer."""

    @property
    def method_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings of methods that differ on this scale from those of `methods.METHODS`, by the method's key."""
        return {}

    @abstractmethod
    def collect(self, policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """Label pairs of the policy's own responses by the gold reward.

        Args:
            policy: samples two responses for each label.
            number: how many labels. On text fewer come back, since equal responses are not labelled.
            generator: source of randomness.
        """

    @abstractmethod
    def gold(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """r* of each response, (B, G), float64, in logits of a label."""

    @abstractmethod
    def evaluate(self, policy: Policy, split: str = "test") -> dict[str, float]:
        """Gold reward, KL to π_ref and objective of a policy, and more where the scale has more.

        Args:
            policy: what was trained.
            split: whose prompts are answered on text; "validation" for searches. A finite world has no splits.

        Returns:
            at least `reward`, `kl` and `objective`.
        """

    @cached_property
    def pairs(self) -> Pairs:
        """The labelled pairs of the seed: two responses of π_ref and one Bradley–Terry label each."""
        generator = seeded(self.seed, Stream.LABELS, device=self.reference.device)
        return self.collect(self.reference, self.budget.labels, generator)

    @cached_property
    def reward_model(self) -> nn.Module:
        """r_φ, fitted to the labelled pairs and frozen."""
        return self.fit_reward_model(self.pairs, Stream.REWARD_MODEL)

    @torch.enable_grad()
    def fit_reward_model(self, pairs: Pairs, stream: int) -> nn.Module:
        """Fit a new reward model to `pairs`; `stream` keeps its random numbers apart from those of other fits.

        Gradients are enabled, because the first use of `reward_model` may be within `torch.no_grad`.
        """
        budget, model = self.budget, self.reference.new_reward_model()
        training = self.training(
            stream,
            steps=budget.reward_steps or budget.steps,
            batch_size=budget.reward_batch_size or budget.batch_size,
            learning_rate=budget.reward_rate or budget.learning_rate,
        )
        reward_model(model, pairs, RewardModel(), training)
        return model.requires_grad_(False)

    def training(self, stream: int, **changes: Any) -> Training:
        """Settings of one fit.

        Args:
            stream: keeps the random numbers of the fits of one seed apart.
            **changes: fields of `Training` that differ from the budget.
        """
        budget = self.budget
        usual = Training(
            steps=budget.steps,
            batch_size=budget.batch_size,
            learning_rate=budget.learning_rate,
            max_grad_norm=budget.max_grad_norm,
            seed=1000 * self.seed + stream,
            progress=budget.progress,
        )
        return replace(usual, **changes)

    def new_policy(self) -> Policy:
        """A trainable policy that equals π_ref."""
        return self.reference.copy()
