r"""The decomposition of the regret: reward lost below the frontier, and the wrong place on it. For notebook 10.

Every policy π with a smaller KL than "always the best response" has a twin on the frontier: π*_β' with the same KL to
the reference. The reward of the twin is at least as high. The regret of π at β is the sum of two KLs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world


@dataclass(frozen=True)
class Twins(RandomWorld):
    """A world whose policy has a twin on the frontier.

    Attributes:
        twin_beta: β' of the twin, (X, 1).
    """

    twin_beta: Tensor

    @property
    def twin(self) -> Tensor:
        """log π*_β', (X, K), from the definition."""
        return (self.log_ref + self.reward / self.twin_beta).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def twins(generator: torch.Generator) -> Twins:
    """A random world; its policy is moved towards the reference until it has a twin, found by bisection on log β'."""
    w = random_world(generator)
    log_policy = w.log_policy
    for _ in range(60):
        far = _kl(log_policy, w.log_ref) > 0.9 * -w.log_ref.gather(-1, w.reward.argmax(-1, keepdim=True)).squeeze(-1)
        log_policy = torch.where(far.unsqueeze(-1), ((log_policy + w.log_ref) / 2).log_softmax(-1), log_policy)
    wanted = _kl(log_policy, w.log_ref).unsqueeze(-1)
    low, high = torch.full_like(wanted, -12.0), torch.full_like(wanted, 12.0)  # natural logarithms of β'
    for _ in range(60):  # enough for float64
        middle = (low + high) / 2
        spent = _kl((w.log_ref + w.reward * torch.exp(-middle)).log_softmax(-1), w.log_ref).unsqueeze(-1)
        low, high = torch.where(spent > wanted, middle, low), torch.where(spent > wanted, high, middle)
    kept = {field.name: getattr(w, field.name) for field in fields(RandomWorld)} | {"logits": log_policy}
    return Twins(**kept, twin_beta=((low + high) / 2).exp())


def _earned(w: Twins, log_policy: Tensor) -> Tensor:
    return (log_policy.exp() * w.reward).sum(-1)


def _value(w: Twins, log_policy: Tensor, beta: Tensor | float) -> Tensor:
    """E_π[r] − β KL(π‖π_ref), (X,), from the definition."""
    return _earned(w, log_policy) - torch.as_tensor(beta, dtype=torch.float64).reshape(-1) * _kl(log_policy, w.log_ref)


def _place(w: Twins) -> Tensor:
    """β KL(π*_β'‖π*_β), (X,)."""
    return exact.regret(w.twin, w.log_ref, w.reward, w.beta)


regret_in_two = Derivation(
    "regret-in-two",
    "The regret is the loss below the frontier plus the loss from the wrong place on it",
    world=twins,
    lines=(
        Line(
            r"\big[J(\pi^*) - J(\pi^*_{\beta'})\big] + \big[J(\pi^*_{\beta'}) - J(\pi)\big]",
            r"insert the twin $\pi^*_{\beta'}$, which is on the frontier and has the KL of $\pi$",
            lambda w: (
                (_value(w, w.log_star, w.beta) - _value(w, w.twin, w.beta))
                + (_value(w, w.twin, w.beta) - _value(w, w.log_policy, w.beta))
            ),
            left=r"J(\pi^*) - J(\pi)",
            left_value=lambda w: exact.regret(w.log_policy, w.log_ref, w.reward, w.beta),
        ),
        Line(
            r"\big[J(\pi^*) - J(\pi^*_{\beta'})\big] + \big[\mathbb{E}_{\pi^*_{\beta'}}[r] - \mathbb{E}_\pi[r]\big]",
            "both have the same KL, so for any β only their rewards differ",
            lambda w: (
                _value(w, w.log_star, w.beta)
                - _value(w, w.twin, w.beta)
                + (_earned(w, w.twin) - _earned(w, w.log_policy))
            ),
        ),
        Line(
            r"\beta\,\mathrm{KL}(\pi^*_{\beta'}\|\pi^*_\beta) + \beta'\,\mathrm{KL}(\pi\|\pi^*_{\beta'})",
            r"the regret is β KL to the optimum; the second bracket is the regret of $\pi$ at $\beta'$",
            lambda w: _place(w) + w.twin_beta.squeeze(-1) * exact.kl(w.log_policy, w.twin),
        ),
    ),
    wrong=(
        Wrong(
            r"\beta\,\mathrm{KL}(\pi^*_{\beta'}\|\pi^*_\beta) + \beta\,\mathrm{KL}(\pi\|\pi^*_{\beta'})",
            "β is used twice, but below the frontier the slope is β′",
            lambda w: _place(w) + w.beta * exact.kl(w.log_policy, w.twin),
            3,
        ),
        Wrong(
            r"\beta\,\mathrm{KL}(\pi^*_\beta\|\pi^*_{\beta'}) + \beta'\,\mathrm{KL}(\pi\|\pi^*_{\beta'})",
            "the arguments of the first KL are swapped",
            lambda w: w.beta * exact.kl(w.log_star, w.twin) + w.twin_beta.squeeze(-1) * exact.kl(w.log_policy, w.twin),
            3,
        ),
        Wrong(
            r"\mathbb{E}_{\pi^*_{\beta'}}[r] - \mathbb{E}_\pi[r]",
            "“the regret is the distance below the curve” is true only at the KL of π*",
            lambda w: _earned(w, w.twin) - _earned(w, w.log_policy),
            2,
        ),
    ),
    source="From Rafailov et al. 2023, appendix A.1 (regret is a KL), used twice; lecture, “Optimal Solution to the "
    "KL-constrained Reward Maximization”.",
)
