r"""Block 2, the worst-case variance of a Monte Carlo estimate of Z, by the range of the reward over β.

With a = min_y e^{r/β} and b = max_y e^{r/β}, b/a = e^{R/β} where R is the range of the reward:

    Var(e^{r/β})/Z² ≤ (b − a)²/(4ab) = sinh²(R/2β)          (Kantorovich's inequality)

and equality holds for a reference that gives the best response a probability of 1/(1 + e^{R/β}).
"""

import torch
from torch import Tensor

from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld


def _ends(w: RandomWorld) -> tuple[Tensor, Tensor]:
    """a and b, (X,) each."""
    weight = torch.exp(w.reward / w.beta)
    return weight.amin(-1), weight.amax(-1)


def _range(w: RandomWorld) -> Tensor:
    """R/β, (X,)."""
    return (w.reward.amax(-1) - w.reward.amin(-1)) / w.beta


def _one_draw(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Var(e^{r/β})/Z² of one draw, as the variance is defined, (X,)."""
    ref, weight = log_ref.exp(), torch.exp(reward / beta)
    z = (ref * weight).sum(-1, keepdim=True)
    return (ref * (weight / z - 1).square()).sum(-1)


def _two(w: RandomWorld, best: Tensor) -> Tensor:
    """The same of a world of two responses a range R apart, where the better one has probability `best`, (X,)."""
    log_ref = torch.stack([1 - best, best], -1).log()
    reward = torch.stack([w.reward.amin(-1), w.reward.amax(-1)], -1)
    return _one_draw(log_ref, reward, w.beta)


z_variance_range = Derivation(
    "z-variance-range",
    "The worst case: exponential in the reward's range over β",
    lines=(
        Line(
            r"\frac{(a+b)\,Z - ab}{Z^2} - 1,\;\; a = \min_y e^{r/\beta},\; b = \max_y e^{r/\beta}",
            r"$(e^{r/\beta} - a)(b - e^{r/\beta}) \ge 0$ for every response; take the mean under $\pi_\text{ref}$",
            lambda w: (sum(_ends(w)) * w.z.squeeze(-1) - _ends(w)[0] * _ends(w)[1]) / w.z.squeeze(-1).square() - 1,
            left=r"\chi^2(\pi^*\|\pi_\text{ref}) = \frac{\mathrm{Var}(e^{r/\beta})}{Z^2}",
            left_value=lambda w: _one_draw(w.log_ref, w.reward, w.beta),
            relation="≤",
        ),
        Line(
            r"\frac{(b-a)^2}{4ab}",
            r"this is a parabola in $1/Z$ with its maximum at $1/Z = (a+b)/2ab$",
            lambda w: (_ends(w)[1] - _ends(w)[0]).square() / (4 * _ends(w)[0] * _ends(w)[1]),
            relation="≤",
        ),
        Line(
            r"\sinh^2\!\Big(\frac{R}{2\beta}\Big)",
            r"$b/a = e^{R/\beta}$ with $R = \max r - \min r$; for large $R/\beta$ this is $e^{R/\beta}/4$",
            lambda w: torch.sinh(_range(w) / 2).square(),
        ),
        Line(
            r"\sinh^2\!\Big(\frac{R}{2\beta}\Big)",
            r"the bound is attained by two responses, if the better one has probability $1/(1 + e^{R/\beta})$",
            lambda w: torch.sinh(_range(w) / 2).square(),
            left=r"\chi^2 \text{ at } \pi_\text{ref}(y_\text{best}) = \tfrac{1}{1 + e^{R/\beta}}",
            left_value=lambda w: _two(w, torch.sigmoid(-_range(w))),
        ),
    ),
    wrong=(
        Wrong(
            r"\sinh^2\!\Big(\frac{R}{\beta}\Big)",
            "the factor ½ is lost",
            lambda w: torch.sinh(_range(w)).square(),
            3,
        ),
        Wrong(
            r"\sinh^2\!\Big(\frac{\beta R}{2}\Big)",
            "β is on the wrong side",
            lambda w: torch.sinh(_range(w) * w.beta**2 / 2).square(),
            3,
        ),
        Wrong(
            r"\tanh^2\!\Big(\frac{R}{2\beta}\Big)",
            r"the value for $\pi_\text{ref} = \tfrac12$ each is at most one, because the better response is not rare",
            lambda w: _two(w, torch.full_like(_range(w), 0.5)),
            4,
        ),
    ),
    source="Kantorovich's inequality in the form of Pólya and Szegő; lecture, “Optimal Solution …”, last line.",
)
