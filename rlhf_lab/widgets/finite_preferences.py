r"""Explorer of finite preference data: DPO's exact optimum on N labels, compared with π*.

A table can be any policy, so on a table DPO's optimum needs no training: r̂ = β log π_θ/π_ref is free up to a
constant, the loss is Bradley–Terry's likelihood of r̂, and the best policy is π̂ ∝ π_ref exp(r̂/β) with r̂ the
maximum-likelihood rewards of the labels. The rewards do not depend on β; only the step from them to π̂ does.
Rafailov et al. 2023, section 5; Bradley & Terry 1952; Ford 1957 (when the maximum exists).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact
from rlhf_lab.errors import LabError, check_finite, check_log_distribution, check_responses_axis
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout, reward_names
from rlhf_lab.language import tr
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Explorer, Slider

MOST = 30_000
"""Labels of the longest data set of the explorer."""
_GRID = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, MOST)


_LEAST = 1e-5
"""Lower regrets are drawn at the lower edge."""


class _Fits:
    """Maximum-likelihood rewards for the labels of one prompt; each is computed once."""

    def __init__(self, log_ref: Tensor, reward: Tensor) -> None:
        self.log_ref, self.reward = log_ref, reward
        self.pairs = bradley_terry.pair_distribution(log_ref)
        self.stream = lru_cache(maxsize=16)(self._stream)
        self.trajectory = lru_cache(maxsize=64)(self._trajectory)
        self.fitted = lru_cache(maxsize=512)(self._fitted)
        self.limit = lru_cache(maxsize=64)(self._limit)
        self.price = lru_cache(maxsize=128)(self._price)

    def _stream(self, seed: int, noise: float) -> tuple[Tensor, Tensor]:
        return bradley_terry.draw_labels(self.reward, self.pairs, MOST, seeded(seed), noise)

    def _wins(self, seed: int, noise: float, numbers: Sequence[int]) -> Tensor:
        return bradley_terry.win_counts(*self.stream(seed, noise), len(self.log_ref), numbers)

    def _trajectory(self, seed: int, noise: float) -> Tensor:
        """r̂ on the first 10, 20, … labels of this seed, (len(_GRID), K)."""
        return bradley_terry.maximum_likelihood(self._wins(seed, noise, _GRID))

    def _fitted(self, seed: int, noise: float, labels: int) -> tuple[Tensor, bool]:
        wins = self._wins(seed, noise, (labels,))[0]
        return bradley_terry.maximum_likelihood(wins), bool(bradley_terry.has_finite_optimum(wins))

    def _limit(self, noise: float) -> Tensor:
        return bradley_terry.maximum_likelihood(bradley_terry.expected_wins(self.reward, self.pairs, noise))

    def _price(self, beta: float) -> float:
        return float(exact.label_price(self.log_ref, self.reward, beta, self.pairs))

    def regret(self, r_hat: Tensor, beta: float) -> Tensor:
        policy = exact.optimal_policy(self.log_ref, r_hat, beta)
        return exact.regret(policy, self.log_ref, self.reward, beta)


def _picture(fits: _Fits, responses: Sequence[str], number: float, seed: int, noise: float, beta: float) -> Picture:
    names = reward_names(responses, fits.reward)
    labels, noise, beta = round(number), round(float(noise), 6), float(beta)
    r_hat, finite = fits.fitted(seed, noise, labels)
    log_ref = fits.log_ref
    log_star, log_hat = exact.optimal_policy(log_ref, fits.reward, beta), exact.optimal_policy(log_ref, r_hat, beta)
    now, rate = float(fits.regret(r_hat, beta)), fits.price(beta)
    # Labels without noise converge to π*; the ridge of the fit would show 1e-10 instead of 0.
    end = float(fits.regret(fits.limit(noise), beta)) if noise else 0.0
    sizes = torch.tensor(_GRID, dtype=torch.float64)
    bars = Panel(
        "Policies over the responses",
        Axis("response y and its true reward r", names=names),
        Axis("probability", 0.0, 1.0),
        (
            Bars("reference", log_ref.exp(), "π_ref"),
            Bars("dpo", log_hat.exp(), "DPO's optimum"),
            Bars("optimal", log_star.exp(), "π*"),
        ),
        width=1.1,
    )
    layers: tuple[Curve | Points, ...] = (
        Curve("optimal", sizes, rate / sizes, "φ / N"),
        Curve("dpo", sizes, fits.regret(fits.trajectory(seed, noise), beta).clamp(min=_LEAST), "this seed"),
        Points("policy", [labels], [max(now, _LEAST)], "now", big=True),
    )
    if noise:
        layers += (Curve("wrong", sizes, torch.full_like(sizes, max(end, _LEAST)), "N → ∞"),)
    curve = Panel(
        "Regret with N labels",
        Axis("labels N", 10, MOST, log=True),
        Axis("regret J(π*) − J(π) [reward]", _LEAST, 10.0, log=True),
        layers,
    )
    top = int(log_hat.argmax())
    best = int(log_star.argmax())
    text = tr(
        "With {labels} labels (seed {seed}{flipped}) at β = {beta:.3g}, DPO’s exact optimum gives “{top}” {p:.2f}; π* "
        "gives “{best}” {star:.2f}. Its regret is {regret:.3g}. For labels without noise, the closed form gives "
        "{limit:.3g} on average.",
        flipped=tr(", {noise:.0%} of them flipped", noise=noise) if noise else "", labels=labels, seed=seed, beta=beta,
        top=tr(responses[top]), p=float(log_hat[top].exp()), best=tr(responses[best]),
        star=float(log_star[best].exp()), regret=now, limit=rate / labels,
    )  # fmt: skip
    if not finite:
        text += tr(" Some response never won or never lost, so some margin of DPO is unbounded.")
    if noise:
        text += tr(" With this noise the regret converges to {end:.3g}, however many labels there are.", end=end)
    numbers = (
        Readout("regret", now, "reward"),
        Readout("KL(π̂‖π*)", now / beta, "nats"),
        Readout("φ / N", rate / labels, "reward"),
        Readout("regret at N → ∞", end, "reward"),
    )
    return Picture(text, (bars, curve), numbers)


def finite_preferences_explorer(
    log_ref: Tensor, reward: Tensor, responses: Sequence[str], beta: float = 0.5, number: int = 100
) -> Explorer:
    """Show DPO's exact optimum on N labels beside π*, with sliders for N, the seed, the noise and β.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats.
        reward: true rewards, (K,), from which the labels are drawn.
        responses: K names.
        beta: β at the start, in [0.05, 5].
        number: number of labels at the start, in [10, 30,000].

    Raises:
        LabError: log_ref not normalised, reward not finite, numbers of names that do not match.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    log_ref, reward = log_ref.detach().double(), check_finite(reward.detach().double(), "reward")
    check_log_distribution(log_ref, "log_ref")
    if log_ref.ndim != 1 or len(responses) != len(log_ref):
        raise LabError(f"log_ref must be (K,) with K names, not {tuple(log_ref.shape)} with {len(responses)}.")
    if bool((log_ref == -torch.inf).any()):
        raise LabError("log_ref contains -inf. A response that is never drawn is never labelled; leave it out.")
    fits = _Fits(log_ref, reward)

    def compute(number: float, seed: int, noise: float, beta: float) -> Picture:
        return _picture(fits, responses, number, seed, noise, beta)

    return Explorer(
        compute,
        {
            "number": Slider(number, 10, MOST, "labels N", log=True),
            "seed": Slider(0, 0, 20, "seed", whole=True),
            "noise": Slider(0.0, 0.0, 0.4, "share of flipped labels ε", step=0.02),
            "beta": Slider(beta, 0.05, 5.0, "β [reward per nat]", log=True),
        },
        "DPO on finite preference data",
        "Change the seed at 50 labels, then at 5,000. Flip some labels: do more labels help? What does β change?",
    )
