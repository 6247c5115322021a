r"""Explorer of a non-static world: the expected regret of fitting once, refitting, and labelling own responses.

No label is drawn. For n labels of each of some rounds s with information I_s about θ, r = Φθ, a fit with prior
precision λ has, to leading order, the mean (A + λ)⁻¹ Σ n I_s θ_s and the covariance (A + λ)⁻¹ A (A + λ)⁻¹, A = Σ n I_s.
The expected regret of a round has two terms: the exact regret of the optimum for that mean, which depends on the age of
the labels, and tr(Σ cov)/(2β), which depends on their number. See `worlds/nonstationary.py`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Axis, Curve, Panel, Picture, Readout
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider
from rlhf_lab.worlds import nonstationary
from rlhf_lab.worlds.nonstationary import NonstationaryWorld

KINDS = {
    "preferences drift": "drift",
    "preferences change suddenly": "sudden",
    "prompts shift": "prompts",
    "policy moves": "policy",
    "nothing changes": "none",
}
"""What can change, by the name shown."""
STRATEGIES = {
    # strategy: (style, name, dash)
    "once": ("dpo", "fit once", "-"),
    "again": ("policy", "refit", "--"),
    "own": ("online", "own responses", ":"),
}
LOW, HIGH = 1e-3, 3.0
"""Ends of the regret axis."""


class Motion:
    """Rewards, weights, β, optima and information of every round, none of which depends on how often one fits.

    Rounds 0 … T along the first axis.
    """

    def __init__(self, at: NonstationaryWorld, features: Tensor) -> None:
        """Compute them for the world `at` and the features Φ (K, d) of its reward model."""
        rounds = range(at.rounds + 1)
        self.at, self.features, self.ridge = at, features, float(features.shape[1])
        self.reward = torch.stack([at.rewards(t) for t in rounds])
        self.weights = torch.stack([at.weights(t) for t in rounds])
        self.beta = torch.tensor([at.beta_at(t) for t in rounds], dtype=torch.float64)[:, None, None]
        self.optimal = (at.log_ref + self.reward / self.beta).log_softmax(-1)
        self.theta = self.reward @ features / len(features)
        p = exact.preference(self.reward)
        self.variance = p * (1 - p)  # of a label of each pair
        self.information = exact.drift.pair_information(features, at.log_ref.exp(), self.reward)
        self.spread = exact.drift.spread(features, self.optimal)

    def policy(self, theta: Tensor, t: Tensor | int) -> Tensor:
        """log of the optimum for an estimate (…, X, d) in round t, (…, X, K)."""
        return (self.at.log_ref + theta @ self.features.T / self.beta[t]).log_softmax(-1)

    def informs(self, mass: Tensor, t: int) -> Tensor:
        """`exact.drift.pair_information` of round t for pairs drawn from `mass` (X, K)."""
        edges = mass.unsqueeze(-1) * mass.unsqueeze(-2) * self.variance[t]
        both = self.features * edges.sum(-1, keepdim=True) - edges @ self.features
        return 2 * self.features.T @ both / (1 - mass.square().sum(-1))[:, None, None]

    def lost(self, theta: Tensor, covariance: Tensor, t: Tensor) -> Tensor:
        """Expected regret of the optima for estimates, each in its round, (n,).

        Args:
            theta: mean estimates, (n, X, d).
            covariance: (n, X, d, d).
            t: the rounds, (n,).
        """
        beta = self.beta[t].squeeze(-1)
        late = beta * exact.kl(self.policy(theta, t), self.optimal[t])
        few = (self.spread[t] * covariance).sum((-1, -2)) / (2 * beta)
        return (self.weights[t] * (late + few)).sum(-1)

    def fit(self, labels: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of a fit; (…, X, d) and (…, X, d, d).

        Args:
            labels: summed information of the labels, by round, (…, s, X, d, d).
            theta: the true θ of those rounds, (s, X, d).
        """
        total = labels.sum(-4)
        said = (labels @ theta.unsqueeze(-1)).sum(-4).squeeze(-1)
        inverse = torch.linalg.inv(total + self.ridge * torch.eye(total.shape[-1], dtype=torch.float64))
        return (inverse @ said.unsqueeze(-1)).squeeze(-1), inverse @ total @ inverse


def expected_regrets(motion: Motion, labels: float, window: int, every: int = 1) -> dict[str, Tensor]:
    """Expected regret of the rounds 1 … T, (T,), for each of `STRATEGIES`; units of reward.

    Args:
        motion: the world.
        labels: n per round. `once` has all n·T in round 0.
        window: W. `again` and `own` are fitted to the labels of the last W rounds.
        every: k. They are fitted in the rounds 1, 1 + k, …

    Raises:
        LabError: numbers below 1.
    """
    if labels <= 0 or window < 1 or every < 1:
        raise LabError(f"labels ({labels:g}), window ({window}) and every ({every}) must be at least 1.")
    rounds = motion.at.rounds
    served = torch.arange(1, rounds + 1)
    asked = labels * motion.weights[:-1, :, None, None]  # labels of each prompt in each round
    once = motion.fit(rounds * (asked * motion.information[:-1])[:1], motion.theta[:1])
    found = {"once": motion.lost(once[0].expand(rounds, -1, -1), once[1].expand(rounds, -1, -1, -1), served)}
    fitted = 1 + (served - 1) // every * every  # when the policy of each round was fitted
    came = torch.arange(rounds)
    kept = ((came < fitted[:, None]) & (came >= fitted[:, None] - window)).double()
    again = motion.fit(kept[:, :, None, None, None] * (asked * motion.information[:-1]), motion.theta[:-1])
    found["again"] = motion.lost(*again, served)
    own, means, covariances = motion.information[:-1].clone(), [], []
    for t in range(1, rounds + 1):
        if (t - 1) % every == 0:
            rows = slice(max(t - window, 0), t)
            estimate = motion.fit((asked * own)[rows], motion.theta[rows])
        means.append(estimate[0])
        covariances.append(estimate[1])
        if t < rounds:
            own[t] = motion.informs(motion.policy(estimate[0], t).exp(), t)
    found["own"] = motion.lost(torch.stack(means), torch.stack(covariances), served)
    return found


def non_static_picture(motion: Motion, labels: float, window: int, every: int = 1) -> Picture:
    """Draw the expected regret by round and its running sum for the three strategies.

    Args:
        motion: the world.
        labels: n per round.
        window: W, the number of rounds whose labels a fit uses.
        every: k, the number of rounds between fits.

    Returns:
        the picture; its numbers are the mean regrets and, if preferences drift, the best window.
    """
    at = motion.at
    found = expected_regrets(motion, labels, window, every)
    rounds = torch.arange(1, at.rounds + 1, dtype=torch.float64)
    means = {key: float(values.mean()) for key, values in found.items()}
    looks = {key: STRATEGIES[key] for key in found}
    lines = tuple(Curve(look, rounds, found[key], name, dash) for key, (look, name, dash) in looks.items())
    sums = tuple(Curve(look, rounds, found[key].cumsum(0), "", dash) for key, (look, _, dash) in looks.items())
    time = Axis("round t", 0.0, float(at.rounds))
    panels = (
        Panel("Regret against the moving π*", time, Axis("expected regret [reward]", LOW, HIGH, log=True), lines),
        Panel("Sum over rounds", time, Axis("regret so far [reward]", LOW, HIGH * at.rounds, log=True), sums),
    )
    best = min(means, key=lambda key: means[key])
    said = tr(", ").join(f"{tr(STRATEGIES[key][1])} {means[key]:.3f}" for key in means)
    again = tr("every round") if every == 1 else tr("every {every} rounds", every=every)
    last = tr("the last round") if window == 1 else tr("the last {window} rounds", window=window)
    numbers = [Readout(tr("mean, {strategy}", strategy=tr(STRATEGIES[key][1])), means[key]) for key in means]
    hint = ""
    if at.kind == "drift" and at.rate > 0:
        price, drift = _costs(motion)
        wanted = exact.drift.best_window(price, drift, labels, every)
        numbers.append(Readout("best W", wanted, "rounds", 1))
        hint = tr(" By the closed form, the best window in the long run is {wanted:.1f} rounds.", wanted=wanted)
    text = tr(
        "{moved} There are {labels:.0f} labels per round, fits {again} to {last}. The mean regret of a round by "
        "strategy is: {means}. “{best}” has the lowest.",
        moved=_moved(at), labels=labels, again=again, last=last, means=said, best=tr(STRATEGIES[best][1]),
    )  # fmt: skip
    text += hint
    return Picture(text, panels, tuple(numbers))


def _costs(motion: Motion) -> tuple[float, float]:
    """P, summed over prompts, and D, for the reward of round 0."""
    at = motion.at
    price = exact.drift.price(motion.features, at.log_ref, motion.reward[0], at.beta).sum()
    late = exact.drift.drift_cost(at.log_ref, motion.reward[0], at.velocity(0), at.beta).mean()
    return float(price), float(late) * at.rate**2


def _moved(at: NonstationaryWorld) -> str:
    angle = at.rate * (at.rounds if at.kind == "drift" else 1)
    words = {
        "none": "Nothing changes.",
        "drift": "Preferences turn by {angle:.2f} rad over {rounds} rounds.",
        "sudden": "Preferences turn by {angle:.2f} rad suddenly after round {half}.",
        "prompts": "At first {at.share:.0%} of the prompts come from one half of the list, in the end from the other "
        "half.",
        "policy": "The policy moves: β falls from {at.beta:.2g} to {at.last_beta:.2g}.",
    }[at.kind]
    return tr(words, angle=angle, rounds=at.rounds, half=at.rounds // 2, at=at)


def non_static_explorer(
    at: NonstationaryWorld, features: Tensor | None = None, turn: float = 0.8, labels: float = 120.0, window: int = 8
) -> Explorer:
    """Show a non-static world with controls for the change, its size, the labels, the window and the refits.

    Args:
        at: a small world. The controls set its kind and rate.
        features: Φ of the reward model, (K, d); None is a table.
        turn: the turn of preferences over the deployment at the start, radians.
        labels: labels per round at the start.
        window: rounds whose labels a fit uses, at the start.

    Raises:
        LabError: more than 200 responses.
    """
    size = at.first.shape[-1]
    if size > 200:
        raise LabError(f"{size} responses are too many for this explorer. Give it a bandit with at most 200.")
    phi = nonstationary.basis(torch.eye(size)) if features is None else features

    @functools.lru_cache(maxsize=64)
    def motion(kind: Any, turned: float) -> Motion:
        rate = turned / at.rounds if kind == "drift" else turned
        return Motion(replace(at, kind="none" if kind == "drift" and not rate else kind, rate=rate), phi)

    def compute(kind: str, turn: float, labels: float, window: int, every: int) -> Picture:
        turns = kind in ("drift", "sudden")
        return non_static_picture(motion(kind, turn if turns else 0.0), labels, window, every)

    controls: dict[str, Slider | Choice] = {
        "kind": Choice("drift", KINDS, "what changes"),
        "turn": Slider(turn, 0.0, round(math.pi, 2), "turn of preferences over the deployment [rad]", step=0.02),
        "labels": Slider(labels, 10.0, 3000.0, "labels n [per round]", log=True),
        "window": Slider(window, 1, at.rounds, "window W [rounds of labels used]", whole=True),
        "every": Slider(1, 1, 12, "refit every k [rounds]", whole=True),
    }
    advice = (
        "Find the turn at which refitting becomes better, and then the window with the lowest regret. Then double the "
        "number of labels."
    )
    return Explorer(compute, controls, "A non-static world", advice)
