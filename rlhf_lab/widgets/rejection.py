r"""Explorer of rejection sampling, one draw at a time: points under M·π_sft are accepted if they are under π_r.

A draw is a response y ~ π_sft and u ~ U[0,1]. It is shown as a point in the column of y at the height u·M·π_sft(y), and
it is accepted if that is below π_r(y): u < π_r(y)/(M π_sft(y)) = exp((r(y) − r_max)/β). Lecture, "How to sample from
π_r? Rejection Sampling!". In the code π_sft is the reference.

The uniform numbers are drawn once for each seed and depend neither on β nor on the step. The points therefore stay in
place while the curves change with β.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact, sampling
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Axis, Band, Bars, Curve, Panel, Picture, Points, Readout
from rlhf_lab.language import tr
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, by_prompt

STEPS = 200
"""The largest number of draws."""


@dataclass(frozen=True)
class Darts:
    """The uniform numbers of `STEPS` draws, (STEPS,) float64 each.

    Attributes:
        offer: picks y from π_sft by its cumulative sum.
        u: is compared with the acceptance.
        aside: horizontal position of the point in its column; it has no meaning.
    """

    offer: Tensor
    u: Tensor
    aside: Tensor

    def responses(self, log_sft: Tensor) -> Tensor:
        """The response of each draw from π_sft, (K,): (STEPS,) int64."""
        ends = log_sft.exp().cumsum(-1)
        return torch.searchsorted(ends, self.offer * ends[-1], right=True).clamp(max=len(ends) - 1)


def darts(seed: int) -> Darts:
    """Draw the uniform numbers of `seed`."""
    numbers = torch.rand(3, STEPS, dtype=torch.float64, generator=seeded(seed, Stream.REJECTION_DRAWS))
    return Darts(*numbers)


def acceptance(log_sft: Tensor, reward: Tensor, beta: float) -> Tensor:
    """exp((r − r_max)/β) = π_r/(M π_sft), (K,). r_max is the maximum over the support of π_sft.

    Raises:
        LabError: as `exact.optimal_policy`.
    """
    ratio = exact.optimal_policy(log_sft, reward, beta) - log_sft
    return (ratio - ratio[log_sft > -torch.inf].max()).exp().nan_to_num(0.0)


def envelope_panel(
    log_sft: Tensor, reward: Tensor, beta: float, responses: Sequence[str], title: str = "", width: float = 1.0
) -> Panel:
    """Draw M·π_sft above π_r, one column for each response. The area between them is the share of rejected draws.

    Args:
        log_sft: log π_sft, (K,), nats.
        reward: r, (K,).
        beta: β > 0, reward per nat.
        responses: K names.
        title: above the panel; the default names M·π_sft.
        width: the panel's share of the row.

    Raises:
        LabError: as `exact.optimal_policy`.
    """
    target = exact.optimal_policy(log_sft, reward, beta).exp()
    m = 1 / float(sampling.acceptance_rate(log_sft, reward, beta))
    x = torch.arange(len(responses), dtype=torch.float64).unsqueeze(-1) + torch.tensor([-0.42, -0.42, 0.42, 0.42])
    sides = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)

    def columns(height: Tensor) -> Tensor:
        return (height.unsqueeze(-1) * sides).flatten()

    over, under, zero = columns(m * log_sft.exp()), columns(target), torch.zeros(x.numel())
    return Panel(
        title or "Draws under M·π_sft",
        Axis("response y", names=tuple(responses)),
        Axis("π_r and M·π_sft", 0.0, 1.05 * float(over.max())),
        (
            Band("optimal", x.flatten(), zero, under, ""),
            Curve("reference", x.flatten(), over, "M·π_sft", "-"),
            Curve("optimal", x.flatten(), under, "π_r", "-"),
        ),
        width,
    )


def rejection_picture(
    log_sft: Tensor, reward: Tensor, beta: float, thrown: Darts, step: int, responses: Sequence[str]
) -> Picture:
    """Draw the first `step` draws with their acceptance, and the accepted shares beside π_r.

    Args:
        log_sft: log π_sft of one prompt, (K,), nats.
        reward: r(x, ·), (K,).
        beta: β > 0, reward per nat.
        thrown: from `darts(seed)`.
        step: number of draws, 1 to `STEPS`.
        responses: K names.

    Returns:
        the picture; its numbers are u and the acceptance probability of the last draw, the number accepted, M,
        and the exact rate 1/M.

    Raises:
        LabError: as `exact.optimal_policy`; a step out of range.
    """
    if not 1 <= step <= STEPS:
        raise LabError(f"step must be in 1 … {STEPS}, not {step}.")
    chance = acceptance(log_sft, reward, beta)
    rate = float(sampling.acceptance_rate(log_sft, reward, beta))
    y, u = thrown.responses(log_sft)[:step], thrown.u[:step]
    taken = u < chance[y]
    x = y + 0.76 * (thrown.aside[:step] - 0.5)
    height = u * log_sft.exp()[y] / rate
    counts = torch.bincount(y[taken], minlength=len(responses)).double()
    number = int(counts.sum())

    last = "rso-rso-sample-rank" if bool(taken[-1]) else "sft"
    under = envelope_panel(log_sft, reward, beta, responses, width=1.15)
    layers = (
        *under.layers,
        Points("sft", x[~taken], height[~taken], "rejected"),
        Points("rso-rso-sample-rank", x[taken], height[taken], "accepted"),
        Points(last, x[-1:], height[-1:], "last draw", big=True),
    )
    shares = Panel(
        "Accepted responses",
        Axis("response y", names=tuple(responses)),
        Axis("probability", 0.0, 1.0),
        (
            Bars("reference", log_sft.exp(), "π_sft"),
            Bars("rso-rso-sample-rank", counts / max(number, 1), "accepted"),
            Bars("optimal", exact.optimal_policy(log_sft, reward, beta).exp(), "π_r"),
        ),
    )
    at, odds = float(u[-1]), float(chance[y[-1]])
    verdict = tr(
        "{u:.3f} < {odds:.3f}: accepted" if bool(taken[-1]) else "{u:.3f} ≥ {odds:.3f}: rejected", u=at, odds=odds
    )
    text = tr(
        "Draw {step} at β = {beta:.3g} is “{response}”. Its u compared with its acceptance probability is {verdict}. "
        "So far {number} of {step} draws were accepted, a share of {share:.2f}; the exact rate is 1/M = {rate:.3g}.",
        step=step, beta=beta, response=tr(responses[int(y[-1])]), verdict=verdict, number=number, share=number / step,
        rate=rate,
    )  # fmt: skip
    numbers = (
        Readout("u", at),
        Readout("acceptance", odds),
        Readout("M", 1 / rate, digits=2),
        Readout("1/M", rate),
        Readout("accepted", number, tr("of {step}", step=step), 0),
    )
    return Picture(text, (Panel(under.title, under.x, under.y, layers, under.width), shares), numbers)


def rejection_explorer(
    log_sft: Tensor,
    reward: Tensor,
    responses: Sequence[str],
    prompts: Sequence[str] = (),
    beta: float = 0.5,
    step: int = 30,
) -> Explorer:
    """Show rejection sampling with controls for the number of draws, β and the seed.

    Args:
        log_sft: log π_sft, (K,) or (X, K), nats.
        reward: r, of the same shape.
        responses: K names.
        prompts: X names. Default: x1, x2, …
        beta: β at the start, in [0.05, 20].
        step: number of draws at the start, 1 to 200.

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    log_sft, reward, names = by_prompt(log_sft, reward, responses, prompts)
    known: dict[int, Darts] = {}

    def compute(step: int, beta: float, seed: int, prompt: int = 0) -> Picture:
        if seed not in known:
            known[seed] = darts(seed)
        return rejection_picture(log_sft[prompt], reward[prompt], beta, known[seed], step, responses)

    controls: dict[str, Slider | Choice] = {
        "step": Slider(step, 1, STEPS, "draws so far", whole=True),
        "beta": Slider(beta, 0.05, 20.0, "β [reward per nat]", log=True),
        "seed": Slider(0, 0, 20, "seed", whole=True),
    }
    if len(names) > 1:
        controls["prompt"] = Choice(0, {name: i for i, name in enumerate(names)}, "prompt")
    return Explorer(compute, controls, "Rejection sampling, draw by draw")
