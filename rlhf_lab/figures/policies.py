"""Bars of policies over the responses of one prompt: π_ref, π*, π_θ side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_log_distribution
from rlhf_lab.figures import style
from rlhf_lab.intervals import typeset

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style.use()
def policy_bars(
    ax: Axes,
    policies: Mapping[str, Tensor],
    responses: Sequence[str] | None = None,
    reward: Tensor | None = None,
    title: str = "Probability of each response",
) -> None:
    """Draw one group of bars for each response, one bar for each policy.

    Args:
        ax: where to draw.
        policies: log-probabilities (K,) in nats by style key (`"reference"`, `"optimal"`, `"dpo"`, …).
        responses: K names; None numbers them y1 … yK.
        reward: (K,), written under the names; None leaves it out.
        title: title of the axes.

    Raises:
        LabError: no policy; log-probabilities that do not sum to one; lengths that differ.
    """
    import pandas as pd
    import seaborn as sns

    if not policies:
        raise LabError("policies is empty. Give at least one, such as {'reference': log_ref}.")
    number = len(next(iter(policies.values())))
    names = list(responses) if responses is not None else [f"y{i + 1}" for i in range(number)]
    for key, values in [*policies.items(), *([("reward", reward)] if reward is not None else [])]:
        if values.shape != (len(names),):
            raise LabError(f"{key} has shape {tuple(values.shape)}; there are {len(names)} responses.")
    heights = {
        style.label(key): check_log_distribution(log_p, key).detach().exp().cpu().numpy()
        for key, log_p in policies.items()
    }
    frame = pd.DataFrame(heights, index=range(number)).melt(var_name="policy", value_name="p", ignore_index=False)
    palette = {style.label(key): style.colour(key) for key in policies}
    sns.barplot(
        frame, x=frame.index, y="p", hue="policy", palette=palette, saturation=1, gap=0.08, errorbar=None, ax=ax
    )
    if reward is not None:
        names = [f"{name}\nr = {typeset(r, '+.1f')}" for name, r in zip(names, reward.tolist(), strict=True)]
    ax.set_xticks(range(number), names)
    ax.grid(visible=False, axis="x")
    ax.set(title=title, xlabel="response y", ylabel="probability", ylim=(0, 1))
    # The legend is above the axes, because a bar may reach the top.
    ax.legend(ncols=len(policies), loc="lower right", bbox_to_anchor=(1, 1.0), borderaxespad=0.2)


def describe(policies: Mapping[str, Tensor], responses: Sequence[str]) -> str:
    """The alternative text of `policy_bars`: every probability with two decimals."""
    parts = []
    for key, log_p in policies.items():
        values = torch.as_tensor(log_p).detach().exp().tolist()
        inside = ", ".join(f"{name} {p:.2f}" for name, p in zip(responses, values, strict=True))
        parts.append(f"{style.label(key)}: {inside}")
    return "; ".join(parts) + "."
