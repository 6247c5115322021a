r"""Training on one pair for each prompt, and the change of log π(y_w) that a gradient step predicts.

A step of gradient descent on a pair changes θ by η c (g_w − g_l), with g = ∇ log π(y) and c > 0 for every loss of the
margin log π(y_w) − log π(y_l). To first order log π(y_w) therefore changes by

    η c (‖g_w‖² − ⟨g_w, g_l⟩),

and falls exactly if ⟨g_w, g_l⟩ > ‖g_w‖². In a table of logits the tokens that both responses share have the same
gradient, which cancels. At the token where they part the difference is 1 − π(a_w) + π(a_l) > 0, and the later tokens
of y_w add to it. With a pair of its own a table can therefore only raise the chosen response. Shared parameters have
no such bound. With several pairs i the change of pair i is η Σ_j c_j ⟨g_w,i, g_w,j − g_l,j⟩.

Razin et al. 2024 measure the similarity of a pair by hidden embeddings h of the prefixes of both responses:

    CHES = ⟨Σ_k h(x, y_w,<k), Σ_k h(x, y_l,<k)⟩ − ‖Σ_k h(x, y_w,<k)‖²
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.bradley_terry import draw_labels, expected_wins, pair_distribution
from rlhf_lab.experiments.claims.chosen_probability.settings import ChosenProbability
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.randomness import Stream
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld


@dataclass(frozen=True, eq=False)
class PairSetup:
    """The world of a seed with one labelled pair for each prompt.

    Attributes:
        world: prompts, π_ref and the gold reward.
        embeddings: of each response to each prompt, (X, K, d): the features of the bandit's shared class, or the sum of
            the transformer's hidden embeddings of the prefixes of the response.
        chosen: the chosen response of each prompt, (X,).
        rejected: the rejected one, (X,).
    """

    world: FiniteWorld
    embeddings: Tensor
    chosen: Tensor
    rejected: Tensor

    def learner(self, policies: str) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """The parameters of a policy of the class `policies` at π_ref, and log π, (X, K), of their present values."""
        world, log_ref = self.world, self.world.log_ref()
        if policies == "shared" and world.tree.depth == 1:
            weight = torch.zeros(self.embeddings.shape[-1], dtype=torch.float64, requires_grad=True)
            return [weight], lambda: (log_ref + self.embeddings @ weight).log_softmax(-1)
        policy = TabularPolicy.from_log_probs(world.tree, log_ref) if policies == "table" else world.reference.copy()
        assert isinstance(policy, TabularPolicy | TreeTransformerPolicy)
        return [*policy.parameters()], lambda: policy.enumerate(world.prompts)[1]

    def pairs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The values of the chosen and of the rejected responses, (X,) each, from those of all responses (X, K)."""
        rows = torch.arange(len(values))
        return values[rows, self.chosen], values[rows, self.rejected]

    def train(self, policies: str, loss: str, settings: ChosenProbability) -> tuple[Tensor, int]:
        """Descend along the gradient until the mean margin is reached.

        A step has the length `settings.step`/‖∇ mean margin‖ (at π_ref), whatever the loss. The losses are thus
        compared by their directions and at the same margin, not by their learning rates.

        Returns:
            log π of every response, (X, K), and the number of steps.
        """
        parameters, log_policy_of = self.learner(policies)
        start = self.pairs(log_policy_of())
        unit = settings.step / _norm(torch.autograd.grad((start[0] - start[1]).mean(), parameters))
        reference = (start[0].detach(), start[1].detach())
        for number in range(settings.steps + 1):
            log_policy = log_policy_of()
            chosen, rejected = self.pairs(log_policy)
            margin = (chosen - rejected - reference[0] + reference[1]).mean()
            if margin >= settings.margin or number == settings.steps:
                break
            value = pair_loss(loss, settings, chosen, rejected, *reference, length=self.world.tree.depth).mean()
            gradient = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                for parameter, slope in zip(parameters, gradient, strict=True):
                    parameter -= unit / _norm(gradient) * slope
        return log_policy.detach().double().log_softmax(-1), number

    def gradients(self, policies: str) -> tuple[Tensor, Tensor]:
        """∇ log π of the chosen and of the rejected responses at π_ref, (X, P) each, float64."""
        parameters, log_policy_of = self.learner(policies)
        found = []
        for values in self.pairs(log_policy_of()):
            rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in values]
            found.append(torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).double())
        return found[0], found[1]

    def ches(self) -> Tensor:
        """The similarity of the responses of each pair by their embeddings, (X,)."""
        chosen, rejected = self.pairs(self.embeddings)
        return (chosen * rejected).sum(-1) - chosen.square().sum(-1)

    def shared_tokens(self) -> Tensor:
        """How many first tokens the responses of each pair share, (X,)."""
        ids = self.world.tree.responses.ids
        return (ids[self.chosen] == ids[self.rejected]).long().cumprod(-1).sum(-1)

    def change_to_optimum(self, beta: float) -> tuple[float, float]:
        """The mean of log π*/π_ref over chosen and over rejected responses of infinitely many pairs of π_ref.

        For chosen responses it is E[r(y_w)]/β − log Z, which is negative where β is small.
        """
        log_ref, reward = self.world.log_ref(), self.world.rewards()
        wins = expected_wins(reward, pair_distribution(log_ref))
        change = exact.optimal_policy(log_ref, reward, beta) - log_ref
        means = [(wins.sum(axis) / wins.sum((-1, -2)).unsqueeze(-1) * change).sum(-1).mean() for axis in (-1, -2)]
        return float(means[0]), float(means[1])


def predicted(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """The change of log π(y_w) in a small step of DPO, in nats per nat of the mean margin.

    Args:
        chosen: ∇ log π(y_w) of each pair, (X, P).
        rejected: ∇ log π(y_l), (X, P).

    Returns:
        the part of each pair's own gradient, and that of the gradients of all pairs, (X,) each.
    """
    difference = chosen - rejected
    each = chosen @ difference.T
    margin = (difference @ difference.T).sum(-1).mean()
    return each.diag() / margin, each.sum(-1) / margin


def pair_loss(
    loss: str, settings: ChosenProbability, chosen: Tensor, rejected: Tensor,
    ref_chosen: Tensor, ref_rejected: Tensor, length: int,
) -> Tensor:  # fmt: skip
    """The loss of each pair from log π_θ and log π_ref of its responses, (X,)."""
    ratios = chosen - ref_chosen, rejected - ref_rejected
    tokens = torch.full(chosen.shape, length)
    if loss == "ipo":
        return losses.ipo(*ratios, settings.beta)
    if loss == "orpo":
        return losses.orpo(chosen, rejected, tokens, tokens, settings.odds_weight)
    if loss == "dpo-nll":
        return losses.dpo_nll(*ratios, chosen, tokens, beta=settings.beta, weight=settings.nll_weight)
    if loss == "dpop":
        return losses.dpop(*ratios, settings.beta, settings.penalty)
    return losses.dpo(*ratios, settings.beta)


def _norm(gradient: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradient))


def pair_setup(settings: ChosenProbability, seed: int) -> PairSetup:
    """Make the world of a seed: prompts with 10 arms, or with the 125 sequences of 3 tokens over 5."""
    generator = seeded(seed, Stream.CHOSEN_WORLD)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if settings.scale == "bandit":
        world = bandit.random(settings.prompts, 10, seed)
        embeddings = normal(settings.prompts, 10, 8) / 8**0.5
    else:
        reference = TreeTransformerPolicy(ResponseTree(5, 3), settings.prompts, width=32, seed=seed)
        _pretrain(reference, settings, normal)
        world = token_tree.random(5, 3, settings.prompts, seed, reference=reference)
        embeddings = hidden_embeddings(reference, world)
    labels = seeded(seed, Stream.CHOSEN_PAIRS)
    drawn = [
        draw_labels(reward, pair_distribution(log_ref), 1, labels)
        for log_ref, reward in zip(world.log_ref(), world.rewards(), strict=True)
    ]
    chosen, rejected = (torch.cat(side) for side in zip(*drawn, strict=True))
    return PairSetup(world, embeddings, chosen, rejected)


def _pretrain(policy: TreeTransformerPolicy, settings: ChosenProbability, normal: Callable[..., Tensor]) -> None:
    """Fit the transformer to next tokens with normal logits, which depend on the last token and on the prompt."""
    tree, size = policy.tree, policy.tree.vocab_size
    last, of_prompt = normal(tree.depth, size, size), normal(settings.prompts, 1, size)
    prompts = tree.prompts(settings.prompts)
    targets = [
        (1.5 * last[t, torch.arange(nodes) % size] + of_prompt).softmax(-1) for t, (nodes, _) in enumerate(tree.shapes)
    ]
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for step in range(settings.pretraining):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / settings.pretraining)
        tables = policy.log_tables(prompts)
        loss = -torch.stack([(p * q).sum(-1).mean() for p, q in zip(targets, tables, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def hidden_embeddings(policy: TreeTransformerPolicy, world: FiniteWorld) -> Tensor:
    """The sum over the tokens of each response of the hidden embedding that predicts the token, (X, K, d), float64."""
    responses = world.responses.ids
    prompts = world.prompts.ids.unsqueeze(1).expand(-1, responses.shape[1], -1)
    hidden = body_of(policy.model)(torch.cat([prompts, responses[..., :-1]], -1).flatten(0, 1)).last_hidden_state
    summed: Tensor = hidden.sum(1).double().view(*responses.shape[:2], -1)
    return summed
