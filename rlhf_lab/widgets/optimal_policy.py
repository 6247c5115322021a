"""Explorer of the optimal policy π*: how β, the KL penalty per nat, decides its distance from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, count_of
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout, reward_names
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, by_prompt


def frontier_curve(log_ref: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """KL [nats] and expected reward of π* at 121 values of β from 0.001 to 1000, (…, 121) each."""
    return exact.frontier(log_ref, reward, torch.logspace(-3, 3, 121, dtype=log_ref.dtype))


def optimal_policy_picture(
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    responses: Sequence[str],
    prompt: str = "",
    curve: tuple[Tensor, Tensor] | None = None,
) -> Picture:
    """Draw π_ref and π* as bars, and π* as a point on the exact frontier with the tangent there, whose slope is β.

    Args:
        log_ref: log π_ref(·|x) of one prompt, (K,), nats.
        reward: r(x, ·), (K,).
        beta: β > 0, reward per nat.
        responses: K names.
        prompt: the name of x, for the text.
        curve: `frontier_curve(log_ref, reward)`, which does not depend on β; None computes it.

    Returns:
        the picture; its numbers are E_π*[r], KL(π*‖π_ref), J(π*) and log Z.

    Raises:
        LabError: as `rlhf_lab.exact.optimal_policy`.
    """
    log_star = exact.optimal_policy(log_ref, reward, beta)
    star, ref = log_star.exp(), log_ref.exp()
    gain, cost = float((star * reward).sum()), float(exact.kl(log_star, log_ref))
    before = float((ref * reward).sum())
    value = float(exact.objective(log_star, log_ref, reward, beta))
    log_z = float(exact.log_partition(log_ref, reward, beta))
    curve_kl, curve_reward = frontier_curve(log_ref, reward) if curve is None else curve
    # The tangent stays inside the panel: at most a quarter of its width or height to each side.
    half = min(float(curve_kl.max()) / 4, float(curve_reward.max() - curve_reward.min()) / (4 * beta))
    tangent = [cost - half, cost + half], [gain - beta * half, gain + beta * half]
    names = reward_names(responses, reward)
    bars = Panel(
        "Policies over the responses",
        Axis("response y and its reward r", names=names),
        Axis("probability", 0.0, 1.0),
        (Bars("reference", ref, "π_ref"), Bars("optimal", star, "π*")),
        width=1.2,
    )
    plane = Panel(
        "Reward against KL",
        Axis("KL(π‖π_ref) [nats]"),
        Axis("expected reward [reward]"),
        (
            Curve("optimal", curve_kl, curve_reward, "π* for every β"),
            Points("reference", [0.0], [before], "π_ref"),
            Curve("reward", *tangent, "tangent, slope β", "--"),
            Points("optimal", [cost], [gain], "π* at this β", big=True),
        ),
    )
    top = int(star.argmax())
    text = tr(
        "At β = {beta:.3g}{where}, π* gives “{response}” a probability of {star:.2f} (π_ref: {ref:.2f}). Its expected "
        "reward is {gain} instead of {before}, at a KL of {cost:.2f} nats.",
        where=tr(" for the prompt “{prompt}”", prompt=tr(prompt)) if prompt else "",
        beta=beta, response=tr(responses[top]), star=float(star[top]), ref=float(ref[top]), gain=typeset(gain, ".2f"),
        before=typeset(before, ".2f"), cost=cost,
    )  # fmt: skip
    numbers = (
        Readout("E[r]", gain, "reward"),
        Readout("KL(π*‖π_ref)", cost, "nats"),
        Readout("J(π*)", value, "reward"),
        Readout("log Z", log_z, "nats"),
    )
    return Picture(text, (bars, plane), numbers)


def optimal_policy_explorer(
    log_ref: Tensor,
    reward: Tensor,
    responses: Sequence[Sequence[str]] | Sequence[str],
    prompts: Sequence[str] = (),
    beta: float = 0.5,
) -> Explorer:
    """Show π* with a slider for β, for one prompt or several.

    Args:
        log_ref: log π_ref, (K,) or (X, K), nats.
        reward: r, of the same shape.
        responses: K names, or X lists of K names.
        prompts: X names. Default: x1, x2, …
        beta: β at the start, in [0.01, 100].

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    one_list = isinstance(responses[0], str)
    lists: list[Any] = [list(responses)] if one_list else [list(names) for names in responses]
    log_ref, reward, titles = by_prompt(log_ref, reward, lists[0], prompts)
    lists *= len(titles) if one_list else 1
    if len(lists) != len(titles) or any(len(names) != log_ref.shape[-1] for names in lists):
        raise LabError(
            f"There are {count_of(len(titles), 'prompt')} with {count_of(log_ref.shape[-1], 'response')} each, but "
            f"{count_of(len(lists), 'list')} of {sorted({len(names) for names in lists})} names of responses."
        )

    curve_kl, curve_reward = frontier_curve(log_ref, reward)  # computed once: only the star depends on β

    def compute(beta: float, prompt: int = 0) -> Picture:
        named, curve = (titles[prompt] if prompts else ""), (curve_kl[prompt], curve_reward[prompt])
        return optimal_policy_picture(log_ref[prompt], reward[prompt], beta, lists[prompt], named, curve)

    controls: dict[str, Slider | Choice] = {"beta": Slider(beta, 0.01, 100.0, "β [reward per nat]", log=True)}
    if len(titles) > 1:
        controls["prompt"] = Choice(0, {name: i for i, name in enumerate(titles)}, "prompt x")
    return Explorer(compute, controls, "The optimal policy under β")
