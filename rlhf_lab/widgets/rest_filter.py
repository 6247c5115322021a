"""Explorer of ReST's reward filter: its limit under a rising threshold, beside π_ref, π* and best-of-n."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, by_prompt

DRAWS = (1, 2, 4, 8, 16, 32, 64)
"""The n of best-of-n in the picture."""


def scaled(reward: Tensor) -> Tensor:
    """Rewards scaled to [0, 1] by their range over all prompts, as ReST does before it filters; the same shape."""
    return unit_interval(reward, reward.min().item(), reward.max().item())


def filter_limit(log_ref: Tensor, score: Tensor, threshold: float) -> tuple[Tensor, bool]:
    """The limit of fine-tuning on the samples that pass the filter, for one prompt and infinite data.

    At τ = 0 every sample passes, including the lowest score, as in `algorithms.rest`. If no sample passes, the prompt
    does not contribute to the loss, and its policy does not change.

    Args:
        log_ref: log π_ref(·|x), (K,), nats.
        score: scaled rewards of the K responses, in [0, 1].
        threshold: τ in [0, 1].

    Returns:
        the log-probabilities, (K,), and whether any response passes.
    """
    if threshold <= 0:
        return log_ref, True
    passes = (wins(score, threshold) == 1) & (log_ref > -torch.inf)
    return (exact.filtered(log_ref, score, threshold), True) if bool(passes.any()) else (log_ref, False)


def rest_filter_picture(
    log_ref: Tensor,
    reward: Tensor,
    score: Tensor,
    threshold: float,
    beta: float,
    responses: Sequence[str],
    curves: tuple[tuple[Tensor, Tensor], ...] | None = None,
) -> Picture:
    """Draw π_ref, the filter's limit π_τ and π* as bars, and their KL and reward with those of best-of-n.

    Args:
        log_ref: log π_ref(·|x) of one prompt, (K,), nats.
        reward: r(x, ·), (K,), not scaled; the reward of the frontier.
        score: the reward scaled to [0, 1], (K,), which the filter compares with τ.
        threshold: τ in [0, 1], in units of `score`.
        beta: β > 0, reward per nat.
        responses: K names.
        curves: `curves_of(log_ref, reward, score)`; None computes them.

    Returns:
        the picture; its numbers are the share that passes, E[r], KL(π_τ‖π_ref) and the regret at β.

    Raises:
        LabError: inputs as in `rlhf_lab.exact`.
    """
    log_tau, passes = filter_limit(log_ref, score, threshold)
    log_star = exact.optimal_policy(log_ref, reward, beta)
    frontier, every_tau, every_n = curves if curves is not None else curves_of(log_ref, reward, score)
    gain, cost = _place(log_tau, log_ref, reward)
    best_gain, best_cost = _place(log_star, log_ref, reward)
    start, _ = _place(log_ref, log_ref, reward)
    above = wins(score, threshold) == 1
    share = float(log_ref.exp()[above].sum()) if threshold > 0 else 1.0
    regret = float(exact.regret(log_tau, log_ref, reward, beta))
    names = tuple(f"{tr(name)}\n{typeset(s, '.2f')}" for name, s in zip(responses, score.tolist(), strict=True))
    bars = Panel(
        "Policies over the responses",
        Axis("response y and its score in [0, 1]", names=names),
        Axis("probability", 0.0, 1.0),
        (Bars("reference", log_ref.exp()), Bars("rest", log_tau.exp(), "π_τ"), Bars("optimal", log_star.exp())),
        width=1.2,
    )
    plane = Panel(
        "Reward against KL",
        Axis("KL(π‖π_ref) [nats]"),
        Axis("expected reward [reward]"),
        (
            Curve("optimal", *frontier, "π*"),
            Curve("best-of-n", *every_n, "best-of-n", dash=":"),
            Curve("rest", *every_tau, "π_τ", dash="--"),
            Points("reference", [0.0], [start], ""),
            Points("best-of-n", *every_n, ""),
            Points("rest", *every_tau, ""),
            Points("optimal", [best_cost], [best_gain], "π* at β", big=True),
            Points("rest", [cost], [gain], "π_τ at τ", big=True),
        ),
    )
    if passes:
        named = (f"“{tr(n)}”" for n, passed in zip(responses, above.tolist(), strict=True) if passed)
        passing = tr("every response") if threshold <= 0 else tr(", ").join(named)
        what = tr("passes {passing}, {share:.0%} of the samples", passing=passing, share=share)
    else:
        what = tr(
            "passes no response of this prompt, which does not contribute to the loss, and the policy stays at π_ref"
        )
    text = tr(
        "At τ = {threshold:.2f} the filter {what}. Its limit has E[r] = {gain} at a KL of {cost:.2f} nats; π* at "
        "β = {beta:.3g} has {best} at {best_cost:.2f}. The regret of the limit is {regret}.",
        threshold=threshold, what=what, gain=typeset(gain, ".2f"), cost=cost, beta=beta, best=typeset(best_gain, ".2f"),
        best_cost=best_cost, regret=typeset(regret, ".2f"),
    )  # fmt: skip
    numbers = (
        Readout("P(score > τ)", share),
        Readout("E[r] of π_τ", gain, "reward"),
        Readout("KL(π_τ‖π_ref)", cost, "nats"),
        Readout("regret", regret, "reward"),
    )
    return Picture(text, (bars, plane), numbers)


def curves_of(log_ref: Tensor, reward: Tensor, score: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """(KL, E[r]) of π* along β, of the filter at every threshold where it changes, and of best-of-n along n.

    Args:
        log_ref: (K,).
        reward: (K,).
        score: (K,), the scaled reward.
    """
    betas = torch.logspace(-2.5, 3, 121, dtype=log_ref.dtype)
    levels = [s for s in score.unique().tolist() if s < float(score.max())]
    filters = [log_ref, *(exact.filtered(log_ref, score, level) for level in levels if _some(log_ref, score, level))]
    best = [exact.best_of_n(log_ref, reward, n) for n in DRAWS]
    places = []
    for row in (filters, best):
        pairs = torch.tensor([_place(log_p, log_ref, reward) for log_p in row], dtype=log_ref.dtype)
        places.append((pairs[:, 1], pairs[:, 0]))
    return (exact.frontier(log_ref, reward, betas), *places)


def _some(log_ref: Tensor, score: Tensor, level: float) -> bool:
    return bool(((score > level) & (log_ref > -torch.inf)).any())


def _place(log_policy: Tensor, log_ref: Tensor, reward: Tensor) -> tuple[float, float]:
    """(E[r], KL to the reference)."""
    return float((log_policy.exp() * reward).sum()), float(exact.kl(log_policy, log_ref))


def rest_filter_explorer(
    log_ref: Tensor,
    reward: Tensor,
    responses: Sequence[str],
    prompts: Sequence[str] = (),
    threshold: float = 0.7,
    beta: float = 0.5,
) -> Explorer:
    """Show the filter's limit with sliders for the threshold and β.

    Args:
        log_ref: log π_ref, (K,) or (X, K), nats.
        reward: r, of the same shape.
        responses: K names, the same for every prompt.
        prompts: X names. Default: x1, x2, …
        threshold: τ at the start, in [0, 0.99].
        beta: β at the start, in [0.05, 10].

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    log_ref, reward, titles = by_prompt(log_ref, reward, responses, prompts)
    score = scaled(reward)
    # The curves depend on no control and are computed once for each prompt.
    curves = [curves_of(log_ref[x], reward[x], score[x]) for x in range(len(titles))]

    def compute(threshold: float, beta: float, prompt: int = 0) -> Picture:
        x = prompt
        return rest_filter_picture(log_ref[x], reward[x], score[x], threshold, beta, responses, curves[x])

    controls: dict[str, Slider | Choice] = {
        "threshold": Slider(threshold, 0.0, 0.99, "threshold τ [score in 0…1]", step=0.01),
        "beta": Slider(beta, 0.05, 10.0, "β of π* [reward per nat]", log=True),
    }
    if len(titles) > 1:
        controls["prompt"] = Choice(0, {name: i for i, name in enumerate(titles)}, "prompt x")
    advice = "Raise τ and compare the diamond with the star. Does the filter ever reach π*?"
    return Explorer(compute, controls, "ReST's filter under a rising threshold", advice)
