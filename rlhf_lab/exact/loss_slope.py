r"""The slope γ of RSO's loss: where the fit converges, where it starts, and which γ is best for J.

RSO samples pairs at β and fits sigmoid-norm at γ, −log σ(γ Δ) with Δ = log-ratio(chosen) − log-ratio(rejected). With
sampled labels of a reward model r_φ the expected loss has one minimum, for pairs of any source with full support:

    π_γ(y|x) ∝ π_ref(y|x) exp(r_φ(x,y)/γ)

With t = 1/γ, and with moments under π_γ,

    d E[r]/dt = Cov(r, r_φ),   d KL(π_γ‖π_ref)/dt = t Var(r_φ),   d J/dt = Cov(r, r_φ) − β t Var(r_φ).

A smaller γ therefore moves the optimum further from π_ref. The learned reward always increases. The gold reward
increases only while Cov(r, r_φ) > 0, and J is stationary at γ = β Var(r_φ)/Cov(r, r_φ). This is β if r_φ = r, and more
than β if r_φ = r + noise that is independent of r. With hard labels the loss has no finite minimum, because
`pair_gradient` never vanishes.

π_γ is the closed form of Rafailov et al. 2023, equation 4, at γ. The setting γ ≠ β is from Liu et al. 2024 (RSO).
Left out on purpose: the losses hinge and hinge-norm, whose minimum depends on the source.
"""

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta, check_responses_axis
from rlhf_lab.exact.policy import objective, optimal_policy


def slope_moments(log_ref: Tensor, learned: Tensor, gold: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return Cov(r, r_φ) and Var(r_φ) under π_γ, each of shape (…).

    Args:
        log_ref: log π_ref, (…, K), nats.
        learned: r_φ, (…, K), finite.
        gold: r, (…, K), finite.
        gamma: γ > 0.

    Raises:
        LabError: gamma not above zero; log_ref not normalised; a reward that is not finite.
    """
    p = optimal_policy(log_ref, learned, gamma).exp()
    check_responses_axis(learned=learned, gold=gold)
    shift = learned - (p * learned).sum(-1, keepdim=True)
    return (p * shift * gold).sum(-1), (p * shift**2).sum(-1)


def best_slope(log_ref: Tensor, learned: Tensor, gold: Tensor, beta: float, factor: float = 100.0) -> Tensor:
    """Return the γ whose limit π_γ has the maximum J by the gold reward, as a mean over prompts.

    The search goes over γ from β/`factor` to β·`factor` and narrows the range around the maximum three times.

    Args:
        log_ref: log π_ref, (…, K), nats.
        learned: r_φ, (…, K).
        gold: r, (…, K).
        beta: β of J.
        factor: range of the search. An end of the range is returned where J has no maximum inside it.

    Returns:
        a scalar: all prompts have the same γ, as in training.

    Raises:
        LabError: as in `slope_moments`.
    """
    low, high = check_beta(beta) / factor, beta * factor
    for _ in range(4):
        gammas = torch.logspace(0, 1, 101, base=high / low, dtype=torch.float64) * low
        values = [objective(optimal_policy(log_ref, learned, g), log_ref, gold, beta).mean() for g in gammas.tolist()]
        best = int(torch.stack(values).argmax())
        low, high = gammas[max(best - 1, 0)].item(), gammas[min(best + 1, 100)].item()
    return gammas[best]


def label_means(log_source: Tensor, reward: Tensor, labels: str = "sampled") -> Tensor:
    """Return Σ_y' μ(y') p(y ≻ y') of each y: how often it is preferred to a sample of the source, (…, K).

    Args:
        log_source: log μ of the source of pairs, (…, K).
        reward: the reward that labels, (…, K).
        labels: sampled, p = σ(r − r'); or hard, p = 1[r > r'] + ½ 1[r = r'].
    """
    if labels not in ("sampled", "hard"):
        raise LabError(f"labels must be 'sampled' or 'hard', not {labels!r}.")
    mass = log_source.exp()
    out = torch.empty_like(mass)
    for place in range(0, mass.shape[-1], _ROWS):
        gap = reward[..., place : place + _ROWS, None] - reward[..., None, :]
        chance = gap.sigmoid() if labels == "sampled" else (gap.sign() + 1) / 2
        out[..., place : place + _ROWS] = (chance * mass.unsqueeze(-2)).sum(-1)
    return out


def pair_gradient(log_ratio: Tensor, log_source: Tensor, means: Tensor, gamma: float) -> Tensor:
    r"""Return the gradient of the expected sigmoid-norm loss of pairs y, y' ~ μ with respect to log(π/π_ref), (…, K).

        −2 γ μ(y) Σ_y' μ(y') [p(y ≻ y') − σ(γ (h(y) − h(y')))],   h = log(π/π_ref)

    At π = π_ref the bracket is p − ½, so γ only scales the first step. An optimiser that normalises its steps, such as
    Adam, then takes the same first step for every γ. The term saturates where γ |h(y) − h(y')| is large, which needs a
    distance of about 1/γ.

    Args:
        log_ratio: h, (…, K).
        log_source: log μ of the source of pairs, (…, K).
        means: `label_means` of the source.
        gamma: γ > 0.
    """
    gamma = check_beta(gamma)
    check_responses_axis(log_ratio=log_ratio, log_source=log_source, means=means)
    believed = label_means(log_source, gamma * log_ratio)
    return -2 * gamma * log_source.exp() * (means - believed)


_ROWS = 512
"""Number of responses whose pairs are computed together."""
