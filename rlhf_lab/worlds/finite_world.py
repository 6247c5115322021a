"""Finite worlds: prompts, a reference policy and a gold reward on an enumerated set of responses, with an exact π*."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact, preferences
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularReward
from rlhf_lab.response_tree import ResponseTree


@dataclass(eq=False)
class FiniteWorld:
    """Prompts, responses, a reference policy and a gold reward.

    Attributes:
        name: name for titles and files.
        tree: the response set. That of a bandit has depth one.
        reference: π_ref, frozen, with a method `enumerate`. It is the SFT policy of the lecture.
        reward: the gold reward r*, which decides the preference labels and is hidden from the methods.
        num_prompts: X. Prompts are equally likely.
        prompt_names: the names of prompts for display; may be empty.
        token_names: the names of response tokens for display; may be empty.
    """

    name: str
    tree: ResponseTree
    reference: Policy
    reward: TabularReward
    num_prompts: int
    prompt_names: list[str] = field(default_factory=list)
    token_names: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> Tokens:
        """Every prompt once, (X, 1)."""
        return self.tree.prompts(self.num_prompts)

    @property
    def responses(self) -> Tokens:
        """Every response to every prompt, (X, K, L)."""
        every = self.tree.responses
        lead = (self.num_prompts, *every.shape)
        return Tokens(every.ids.expand(lead), every.mask.expand(lead))

    def response_names(self) -> list[str]:
        """Every response as text, made of the token names, or of numbers if there are no names."""
        names = self.token_names or [str(i) for i in range(self.tree.vocab_size)]
        return [" ".join(names[i] for i in ids) for ids in self.tree.responses.tolist()]

    @torch.no_grad()
    def log_ref(self) -> Tensor:
        """log π_ref(y|x) of every response, (X, K), float64."""
        return self.log_probs(self.reference)

    @torch.no_grad()
    def log_probs(self, policy: Policy) -> Tensor:
        """log π(y|x) of every response, (X, K), float64, normalised to its precision."""
        listing: Any = getattr(policy, "enumerate", None)
        if listing is None:
            raise LabError(
                f"{type(policy).__name__} cannot enumerate its responses. A finite world needs a policy that can."
            )
        log_probs: Tensor = listing(self.prompts)[1]
        return log_probs.double().log_softmax(-1).cpu()

    @torch.no_grad()
    def rewards(self) -> Tensor:
        """r*(x, y) of every response, (X, K), float64."""
        return self.reward.enumerate(self.prompts).double()

    def optimal(self, beta: float) -> Tensor:
        """log π*(y|x) of every response, (X, K). See `exact.optimal_policy`."""
        return exact.optimal_policy(self.log_ref(), self.rewards(), beta)

    def draw_prompts(self, number: int, generator: torch.Generator | None = None) -> Tokens:
        """Draw `number` prompts with replacement, (number, 1)."""
        return self.prompts[torch.randint(self.num_prompts, (number,), generator=generator)]

    def preferences(
        self,
        number: int,
        generator: torch.Generator | None = None,
        policy: Policy | None = None,
        noise: float = 0.0,
        labels: preferences.Labels = "sampled",
    ) -> Pairs:
        """Draw labelled pairs: a random prompt, two responses of a policy, and a label by the gold reward.

        Pairs of equal responses are drawn again.

        Args:
            number: how many pairs.
            generator: source of randomness.
            policy: the policy from which responses are drawn; the reference by default, as in the lecture's
                D = {(x, y_w, y_l)}.
            noise: ε, see `preferences.sample_preferences`.
            labels: see `preferences.sample_preferences`.

        Returns:
            `number` pairs.

        Raises:
            LabError: the policy almost always gives the same response twice.
        """
        policy = policy or self.reference
        parts: list[Pairs] = []
        have = 0
        for _ in range(100):
            prompts = self.draw_prompts(number - have + 8, generator)
            # All responses to a prompt are sampled in one call, with B = X.
            counts = torch.bincount(self.tree.prompt_index(prompts), minlength=self.num_prompts)
            most = int(counts.max())
            drawn = policy.sample(self.prompts, 2 * most, generator).to("cpu")
            wanted = torch.arange(most) < counts.unsqueeze(-1)
            rows, column = wanted.nonzero(as_tuple=True)
            both = drawn.reshape(self.num_prompts, most, 2)
            answers = Tokens(both.ids[rows, column], both.mask[rows, column])
            asked = self.prompts[rows]
            scores = self.reward(asked, answers).detach()
            first = preferences.sample_preferences(scores[:, 0], scores[:, 1], generator, labels, noise)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            pairs, _ = pick_pairs(asked, answers, index)
            pairs = pairs[torch.randperm(len(pairs), generator=generator)]
            parts.append(pairs[: number - have])
            have += len(parts[-1])
            if have == number:
                return cat_pairs(parts)
        raise LabError(
            f"The policy gave the same response twice almost every time ({have} of {number} pairs after 100 rounds), "
            f"so there is nothing to compare. Raise beta, or sample at a higher temperature."
        )

    def all_pairs(self, policy: Policy | None = None) -> Pairs:
        """Return every ordered pair of different responses, weighted by its probability.

        The weight of (y_w, y_l) is proportional to μ(y_w) μ(y_l) p(y_w ≻ y_l), where μ is `policy`, by default the
        reference. The result corresponds to infinitely many labels. It has X·K·(K−1) pairs.

        Raises:
            LabError: more than five million pairs.
        """
        responses = self.tree.num_responses
        if self.num_prompts * responses * (responses - 1) > 5_000_000:
            raise LabError(f"{responses} responses make too many pairs. Use world.preferences(number) instead.")
        log_mu = self.log_probs(policy or self.reference)
        joint = (log_mu.unsqueeze(-1) + log_mu.unsqueeze(-2)).exp() * exact.preference(self.rewards())
        winner, loser = (~torch.eye(responses, dtype=torch.bool)).nonzero(as_tuple=True)
        every = self.tree.responses
        both = Tokens(
            torch.stack([every.ids[winner], every.ids[loser]], 1),
            torch.stack([every.mask[winner], every.mask[loser]], 1),
        )
        times = (self.num_prompts, 1, 1)
        weight = joint[:, winner, loser]
        return Pairs(
            self.prompts.repeat(len(winner)),
            Tokens(both.ids.repeat(times), both.mask.repeat(times)),
            (weight / weight.sum()).flatten(),
        )
