"""Set-ups on finite worlds, the bandit and the token tree, where every policy is evaluated exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.setup import Setup, SetupBudget
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

PolicyClass = Literal["table", "gpt2", "gpt_neox"]


def random_world(scale: str, seed: int, architecture: PolicyClass = "table") -> FiniteWorld:
    """The random world of an exact scale.

    Args:
        scale: bandit (4 prompts × 10 arms) or tree (the 4,096 sequences of 4 tokens over 8).
        seed: of the world.
        architecture: of the reference policy on the tree; a bandit's is a table.
    """
    if scale == "bandit":
        return bandit.random(4, 10, seed)
    reference = None
    if architecture != "table":
        from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
        from rlhf_lab.response_tree import ResponseTree

        reference = TreeTransformerPolicy(ResponseTree(8, 4), 1, architecture, seed=seed)
    return token_tree.random(8, 4, 1, seed, reference=reference)


@dataclass(eq=False)
class ExactSetup(Setup):
    """One seed on a finite world.

    Attributes:
        world: prompts, every response, π_ref and the gold reward.
        budget: see `Setup`.
        seed: see `Setup`.
    """

    world: FiniteWorld
    budget: SetupBudget
    seed: int

    @property
    def reference(self) -> Policy:
        """π_ref, frozen."""
        return self.world.reference

    @cached_property
    def prompts(self) -> Tokens:
        """The prompts that sampling methods answer, drawn with repeats."""
        return self.world.draw_prompts(self.budget.prompts, seeded(self.seed, Stream.PROMPTS))

    @cached_property
    def learned_rewards(self) -> Tensor:
        """r_φ of every response, (X, K)."""
        model = self.reward_model
        with torch.no_grad():
            scores: Tensor = model(self.world.prompts, self.world.responses).double().cpu()
        return scores

    @property
    def method_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """PPO answers every prompt of the world in each round.

        A round has 256 responses for a table and 64 for a transformer: its critic reads the responses of a prompt as
        one row, whose cost grows with the square of their number.
        """
        responses = 256 if isinstance(self.reference, TabularPolicy) else 64
        samples = max(responses // self.world.num_prompts, 1)
        return {"ppo": {"samples": samples, "prompts": self.world.prompts}}

    def collect(self, policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """See `Setup.collect`."""
        return self.world.preferences(number, generator, policy=policy, noise=self.budget.noise)

    def gold(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """See `Setup.gold`."""
        scores: Tensor = self.world.reward(prompts, responses).double()
        return scores

    def evaluate(self, policy: Policy | Tensor, split: str = "test") -> dict[str, float]:
        """Exact `reward`, `kl`, `objective`, `regret` and `kl_to_optimal`, means over prompts.

        Args:
            policy: a policy, or its log-probabilities, (X, K).
            split: has no effect, since a finite world has no splits.
        """
        return asdict(evaluate(policy, self.world, self.budget.beta))
