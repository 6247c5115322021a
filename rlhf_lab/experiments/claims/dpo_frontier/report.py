"""Decision and picture of claim 2: the frontiers of reward and KL, and DPO's lead at equal KL."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab.experiments.claims.dpo_frontier.frontiers import METHODS, budgets_of, gains, heights
from rlhf_lab.experiments.claims.dpo_frontier.settings import DECISIVE, DPOFrontier
from rlhf_lab.experiments.statistics import holm_intervals, in_row, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def numbers_of(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `lead_ppo_3` for DPO's lead over PPO at the third budget.

    The leads over PPO on the gold reward have usual intervals, since they do not decide. A number that some seed does
    not have is left out, such as a gain beyond the last point of a method.
    """
    found, budgets = heights(settings, runs), budgets_of(runs)
    numbers: dict[str, Number] = {}
    numbers |= holm_intervals({f"lead_ppo_{i}": (found["dpo"] - found["ppo"])[:, i - 1] for i in DECISIVE})
    for place in DECISIVE:
        gain = {method: height[:, place - 1] for method, height in found.items()}
        numbers[f"budget_{place}"] = float(budgets[place - 1])
        numbers[f"lead_ppo_gold_{place}"] = mean_of(gain["dpo"] - gain["ppo-gold"])
        numbers[f"gold_effect_{place}"] = mean_of(gain["ppo-gold"] - gain["ppo"])
        best = gain["optimal"].mean()
        for method, values in gain.items():
            name = f"{method.replace('-', '_')}_{place}"
            numbers[f"gain_{name}"] = mean_of(values)
            if method != "optimal":
                numbers[f"share_{name}"] = float(values.mean() / best) if best > 0 else math.nan
    first = runs[runs["method"].isin(METHODS)].groupby(["method", "seed"])["kl"].min()
    for method in METHODS:
        numbers[f"first_kl_{method.replace('-', '_')}"] = mean_of(first[method])
    # Below the first point of a run a frontier is a mixture with π_ref.
    numbers["mixture_budgets"] = int((budgets < max(first["dpo"].mean(), first["ppo"].mean())).sum())
    for method in ("dpo", "ppo"):
        ends = summary[(summary["what"] == "point") & (summary["method"] == method)]
        far = ends.sort_values("kl").iloc[-1]
        numbers |= {f"farthest_{m}_{method}": in_row(far, m) for m in ("kl", "gain")}
        numbers[f"farthest_beta_{method}"] = float(far["beta"])
    means = {name: one.mean if isinstance(one, Interval) else one for name, one in numbers.items()}
    return {name: one for name, one in numbers.items() if not math.isnan(means[name])}


def decide(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers: dict[str, Any] = numbers_of(settings, summary, runs)
    leads = [f"lead_ppo_{place}" for place in DECISIVE]
    return Verdict(outcome_of(side(numbers[name]) for name in leads), numbers, dict.fromkeys(leads, 0.0))


def _styles(exact: bool) -> dict[str, style.Style]:
    """The style of each frontier, in the order of the legend."""
    best = "maximum of any policy" if exact else "maximum of any policy (estimate)"
    gold = {"light": style.colour("wrong"), "marker": "D", "dash": ":", "hollow": True}
    return {
        "optimal": style.of("optimal", label=best, marker=""),
        "sft": style.of("sft", label="SFT on chosen responses"),
        "dpo": style.of("dpo"),
        "ppo": style.of("ppo"),
        "ppo-gold": style.of("ppo", label="PPO on the gold reward", **gold),
    }


def figure(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw each method's mean frontier, on text with every point, and DPO's lead at every budget."""
    drawing, (left, right) = style.subplots(1, 2, 12.4, 5.2, width_ratios=[1.2, 1])
    styles, budget = _styles(settings.exact), summary[summary["what"] == "budget"]
    _frontier_panel(left, settings, budget, runs, styles)
    leads = budget[budget["method"].isin(["ppo", "ppo-gold"])].dropna(subset=["lead"])
    over = {
        method: replace(styles[method], label=tr("over {method}", method=tr(styles[method].label)))
        for method in ("ppo", "ppo-gold")
    }
    statistical.interval_lines(
        right, leads, "kl", "lead", "method", over, dodge=0.01 * budget["kl"].max(), legend=False,
        title="Lead of DPO at equal KL", xlabel="KL budget [nats]", ylabel="difference of reward [logits of a label]",
    )  # fmt: skip
    right.axhline(0, color="#444444", lw=1)
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.25 * (high - low))
    with style.use():
        right.legend(loc="upper left")
    statistical.legend_below(drawing, left, columns=5)
    return drawing


@style.use()
def _frontier_panel(
    ax: Axes, settings: DPOFrontier, budget: pd.DataFrame, runs: pd.DataFrame, styles: dict[str, style.Style]
) -> None:
    """Draw mean frontiers without intervals: those of the lead are paired within the seed, and these are not."""
    import seaborn as sns

    reach = (1.05 if settings.exact else 1.6) * float(budget["kl"].max())
    if not settings.exact:  # points of other worlds have another frontier and could be above the mean of all
        points = gains(runs)
        points = points[points["method"].isin(METHODS) & (points["kl"] <= reach)]
        sns.scatterplot(
            points, x="kl", y="gain", hue="method", palette={method: one.light for method, one in styles.items()},
            style="method", markers={method: one.marker for method, one in styles.items() if one.marker},
            s=30, alpha=0.4, legend=False, ax=ax,
        )  # fmt: skip
    origin = pd.DataFrame({"method": ["optimal"], "kl": [0.0], "gain": [0.0]})
    lines = pd.concat([origin, budget[["method", "kl", "gain"]].dropna()])
    statistical.interval_lines(
        ax, lines, "kl", "gain", "method", styles, legend=False, title="Reward against KL, mean over seeds",
        xlabel="KL(π‖π_ref) [nats]", ylabel="gain of E[r*] over π_ref [logits of a label]", xlim=(-0.03 * reach, reach),
    )  # fmt: skip
