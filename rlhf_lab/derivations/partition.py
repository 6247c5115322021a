r"""Block 2, the partition function: where it cancels, where it does not, and the error of its Monte Carlo estimate.

Lecture, "Re-organize Preference Model" and the last line of "Optimal Solution …": "it is still expensive to
estimate the partition function Z(x)".
"""

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld


def _implicit(w: RandomWorld) -> Tensor:
    """β log π*/π_ref, (X, K)."""
    return w.beta * (w.log_star - w.log_ref)


def _with_z(w: RandomWorld) -> Tensor:
    """exp(β log π*/π_ref + β log Z), (X, K)."""
    return torch.exp(_implicit(w) + w.beta * w.log_z.unsqueeze(-1))


def _gaps(table: Tensor) -> Tensor:
    """first − second of all pairs, (X, K, K)."""
    return table.unsqueeze(-1) - table.unsqueeze(-2)


_FIRST = r"\beta\log\frac{\pi^*(y_1|x)}{\pi_\text{ref}(y_1|x)}"
_SECOND = r"\beta\log\frac{\pi^*(y_2|x)}{\pi_\text{ref}(y_2|x)}"

z_cancels = Derivation(
    "z-cancels",
    "Z(x) cancels in the preference probability",
    lines=(
        Line(
            rf"\frac{{\exp\big({_FIRST} + \beta\log Z(x)\big)}}"
            rf"{{\exp\big({_FIRST} + \beta\log Z(x)\big) + \exp\big({_SECOND} + \beta\log Z(x)\big)}}",
            "Bradley–Terry, with the reward in terms of π*",
            lambda w: _with_z(w).unsqueeze(-1) / (_with_z(w).unsqueeze(-1) + _with_z(w).unsqueeze(-2)),
            left=r"p^*(y_1 \succ y_2|x)",
            left_value=lambda w: exact.preference(w.reward),
        ),
        Line(
            rf"\frac{{1}}{{1 + \exp\big({_SECOND} - {_FIRST}\big)}}",
            r"divide by the numerator: $\beta\log Z(x)$ is in both exponents and cancels",
            lambda w: 1 / (1 + torch.exp(-_gaps(_implicit(w)))),
        ),
        Line(
            rf"\sigma\big({_FIRST} - {_SECOND}\big)",
            r"$\sigma(u) = 1/(1 + e^{-u})$: the expression contains neither the reward nor $Z$",
            lambda w: torch.sigmoid(_gaps(_implicit(w))),
        ),
    ),
    wrong=(
        Wrong(
            rf"\sigma\big({_SECOND} - {_FIRST}\big)",
            "the two responses are swapped",
            lambda w: torch.sigmoid(-_gaps(_implicit(w))),
            3,
        ),
        Wrong(
            r"\sigma\big(\log\frac{\pi^*(y_1|x)}{\pi_\text{ref}(y_1|x)}"
            r" - \log\frac{\pi^*(y_2|x)}{\pi_\text{ref}(y_2|x)}\big)",
            "β is missing",
            lambda w: torch.sigmoid(_gaps(_implicit(w)) / w.beta),
            3,
        ),
        Wrong(
            r"\sigma\big(\beta\log\pi^*(y_1|x) - \beta\log\pi^*(y_2|x)\big)",
            r"the reference is missing, but it does not cancel with $Z$",
            lambda w: torch.sigmoid(w.beta * _gaps(w.log_star)),
            3,
        ),
        Wrong(
            rf"\frac{{1}}{{1 + \exp\big({_SECOND} - {_FIRST} + \beta\log Z(x)\big)}}",
            r"one $\log Z$ remains, although it is in both exponents",
            lambda w: 1 / (1 + torch.exp(-_gaps(_implicit(w)) + w.beta * w.log_z[:, None, None])),
            2,
        ),
    ),
    source="Rafailov et al. 2023, eq. 6 and appendix A.2; lecture, “Re-organize Preference Model”.",
)


def _across(table: Tensor) -> Tensor:
    """first − second where the first answers prompt 1 and the second prompt 2, (K, K)."""
    return table[0].unsqueeze(-1) - table[1].unsqueeze(-2)


z_stays = Derivation(
    "z-stays",
    "Between responses to two prompts Z does not cancel",
    lines=(
        Line(
            r"\sigma\big(r(x_1,y_1) - r(x_2,y_2)\big)",
            "Bradley–Terry would compare any two rewards",
            lambda w: torch.sigmoid(_across(w.reward)),
            left=r"p\big((x_1,y_1) \succ (x_2,y_2)\big)",
            left_value=lambda w: exact.preference(torch.cat([w.reward[0], w.reward[1]]))[
                : w.reward.shape[-1], w.reward.shape[-1] :
            ],
        ),
        Line(
            r"\sigma\Big(\beta\log\frac{\pi^*(y_1|x_1)}{\pi_\text{ref}(y_1|x_1)}"
            r" - \beta\log\frac{\pi^*(y_2|x_2)}{\pi_\text{ref}(y_2|x_2)} + \beta\log\frac{Z(x_1)}{Z(x_2)}\Big)",
            r"each prompt has a different $Z$",
            lambda w: torch.sigmoid(_across(_implicit(w)) + w.beta * (w.log_z[0] - w.log_z[1])),
        ),
    ),
    wrong=(
        Wrong(
            r"\sigma\Big(\beta\log\frac{\pi^*(y_1|x_1)}{\pi_\text{ref}(y_1|x_1)}"
            r" - \beta\log\frac{\pi^*(y_2|x_2)}{\pi_\text{ref}(y_2|x_2)}\Big)",
            "DPO's formula is applied across prompts",
            lambda w: torch.sigmoid(_across(_implicit(w))),
            2,
        ),
    ),
    source="Rafailov et al. 2023, section 5.1; the remark below eq. 6.",
)


def _two_draws(w: RandomWorld) -> tuple[Tensor, Tensor]:
    """All pairs of draws from π_ref: their probability and the mean of their exp(r/β), (X, K, K) each."""
    weight = torch.exp(w.reward / w.beta)
    return w.ref.unsqueeze(-1) * w.ref.unsqueeze(-2), (weight.unsqueeze(-1) + weight.unsqueeze(-2)) / 2


def _relative_variance(w: RandomWorld) -> Tensor:
    """Var(Ẑ)/Z² of the mean of two draws, by enumeration of all draws, (X,)."""
    chance, estimate = _two_draws(w)
    return (chance * (estimate - w.z.unsqueeze(-1)).square()).sum((-1, -2)) / w.z.squeeze(-1).square()


def _second_moment(w: RandomWorld) -> Tensor:
    """E_ref[exp(2r/β)] / Z², (X,)."""
    return (w.ref * torch.exp(2 * w.reward / w.beta)).sum(-1) / w.z.squeeze(-1).square()


z_variance = Derivation(
    "z-variance",
    "The variance of a Monte Carlo estimate of Z (n draws from π_ref; computed for n = 2)",
    lines=(
        Line(
            r"\frac{1}{n}\bigg(\frac{\mathbb{E}_{\pi_\text{ref}}[e^{2r/\beta}]}{Z^2} - 1\bigg)",
            "the draws are independent. The left side enumerates all of them",
            lambda w: (_second_moment(w) - 1) / 2,
            left=r"\frac{\mathrm{Var}(\hat Z)}{Z^2},\;\; \hat Z = \tfrac1n\sum_i e^{r(y_i)/\beta}",
            left_value=_relative_variance,
        ),
        Line(
            r"\frac{1}{n}\bigg(\frac{Z_{\beta/2}}{Z_\beta^2} - 1\bigg)",
            r"$\mathbb{E}_{\pi_\text{ref}}[e^{2r/\beta}]$ is the partition function at β/2",
            lambda w: (
                (
                    torch.exp(
                        exact.log_partition(w.log_ref, w.reward, w.beta / 2)
                        - 2 * exact.log_partition(w.log_ref, w.reward, w.beta)
                    )
                    - 1
                )
                / 2
            ),
        ),
        Line(
            r"\frac{1}{n}\,\chi^2(\pi^*\|\pi_\text{ref})",
            r"$e^{r/\beta}/Z = \pi^*/\pi_\text{ref}$: the variance grows with the distance of π* from the reference",
            lambda w: ((w.star.square() / w.ref).sum(-1) - 1) / 2,
        ),
        Line(
            r"\frac{1}{n}\Big(e^{\mathrm{KL}(\pi^*\|\pi_\text{ref})} - 1\Big)",
            "Jensen: the required number of draws grows at least exponentially with the KL",
            lambda w: torch.expm1(exact.kl(w.log_star, w.log_ref)) / 2,
            relation="≥",
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{\mathbb{E}_{\pi_\text{ref}}[e^{2r/\beta}]}{Z^2} - 1",
            r"the $1/n$ is missing. This is the variance of one draw, not of the mean of n draws",
            lambda w: _second_moment(w) - 1,
            1,
        ),
        Wrong(
            r"\frac{1}{n}\,\frac{\mathbb{E}_{\pi_\text{ref}}[e^{2r/\beta}]}{Z^2}",
            "the square of the mean is not subtracted",
            lambda w: _second_moment(w) / 2,
            1,
        ),
        Wrong(
            r"\frac{1}{n}\bigg(\frac{Z_{2\beta}}{Z_\beta^2} - 1\bigg)",
            r"$2r/\beta$ is misread as a doubled β",
            lambda w: (
                (
                    torch.exp(
                        exact.log_partition(w.log_ref, w.reward, 2 * w.beta)
                        - 2 * exact.log_partition(w.log_ref, w.reward, w.beta)
                    )
                    - 1
                )
                / 2
            ),
            2,
        ),
    ),
    source="Importance sampling; Chatterjee & Diaconis 2018 for the exponential; lecture, “Optimal Solution …”.",
)
