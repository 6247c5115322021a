"""What the experiment on ReST tells: its parts, its picture, its words, its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rest_translation.training import FRONTIER, LOSSES, last_step, step_name
from rlhf_lab.experiments.statistics import Interval, difference, mean_interval
from rlhf_lab.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.rest_translation.settings import ReSTTranslation


@dataclass(frozen=True)
class Part:
    """One part of the claim: differences in the proxy, and the same in gold."""

    says: str
    proxy: list[Interval]
    gold: list[Interval]
    proxy_alone: bool = True
    """Whether a fall in gold would count against it."""

    @property
    def status(self) -> str:
        """holds, on the proxy alone, refuted, or open."""
        if any(one.below for one in self.proxy):
            return "refuted"
        if not all(one.above for one in self.proxy):
            return "open"
        return "on the proxy alone" if self.proxy_alone and any(one.below for one in self.gold) else "supported"


def parts(settings: ReSTTranslation, rows: pd.DataFrame) -> dict[str, Part]:
    """The parts of the claim, from the rows."""
    first, second = last_step(settings)
    own = [row for row in rows["condition"].unique() if not row.startswith(("limit", "frontier"))]
    trained = rows[rows["condition"].isin(own)]

    def gap(one: str, other: str, metric: str) -> Interval:
        return difference(trained, "condition", one, other, metric)

    def part(says: str, *both: tuple[str, str]) -> Part:
        return Part(says, [gap(*two, "proxy") for two in both], [gap(*two, "gold") for two in both])

    end = rows[rows["condition"] == f"limit {settings.thresholds[-1]:g}"]["gap"]
    missing = Interval(*mean_interval(end.to_numpy()))
    return {
        "improve": part("Improve steps raise the reward", (first, step_name(0))),
        "grow": part("a second Grow raises it further", (second, first)),
        "loss": part("cloning above the threshold beats the other losses", *((first, name) for name in LOSSES)),
        "online": part("ReST beats online RL", (second, "ppo")),
        "limit": Part("the filter's limit has less than π* has at the same KL", [missing], [missing], False),
    }


def _order(settings: ReSTTranslation) -> list[str]:
    return ["BC", *(step_name(i) for i in range(len(settings.thresholds))),
            *(f"G2 I{i + 1}" for i in range(len(settings.second)))]  # fmt: skip


def _error(row: Any, metric: str) -> list[list[float]]:
    return [
        [max(float(row[metric] - row[f"{metric}_low"]), 0.0) if row[f"{metric}_low"] == row[f"{metric}_low"] else 0.0],
        [
            max(float(row[f"{metric}_high"] - row[metric]), 0.0)
            if row[f"{metric}_high"] == row[f"{metric}_high"]
            else 0.0
        ],
    ]


def figure(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Reward step by step; and what the KL bought, beside the filter's limit and π*."""
    table: Any = summary.set_index("condition")
    drawing, (left, middle) = style.subplots(1, 2, width=13.5, height=5.4)
    with style.use():
        names = _order(settings)
        others = [*LOSSES, "ppo", "best-of-n"]
        keys = {"weighted": "reward", "raft": "raft", "dpo": "dpo", "ppo": "ppo", "best-of-n": "best-of-n"}
        for metric, filled, word in (("proxy_gain", True, "r_φ, the reward that is filtered"),
                                     ("gold_gain", False, "gold reward r*")):  # fmt: skip
            shift = -0.08 if filled else 0.08
            mean = [float(table.loc[name, metric]) for name in names]
            sides = [_error(table.loc[name], metric) for name in names]
            colour = style.colour("rest")
            left.errorbar(
                [i + shift for i in range(len(names))], mean,
                yerr=[[s[0][0] for s in sides], [s[1][0] for s in sides]], color=colour, marker=style.of("rest").marker,
                mfc=colour if filled else "white", mec=colour, ls="-" if filled else "--", elinewidth=1.4,
                label=f"ReST: {word}",
            )  # fmt: skip
            for place, name in enumerate(others, len(names)):
                look = style.of(keys[name])
                left.errorbar(
                    [place + shift], [float(table.loc[name, metric])], yerr=_error(table.loc[name], metric),
                    color=look.light, marker=look.marker, mfc=look.light if filled else "white", mec=look.light,
                    mew=2 if look.marker in style.OPEN_MARKERS else 1, ls="none", elinewidth=1.4,
                )  # fmt: skip
        left.axhline(0, color="#999999", lw=1)
        left.axvline(len(names) - 0.5, color="#CCCCCC", lw=1)
        labels = {"weighted": "exp(r/β)", "raft": "RAFT", "dpo": "DPO", "ppo": "PPO",
                  "best-of-n": f"best of {settings.best_of}"}  # fmt: skip
        left.set_xticks(range(len(names) + len(others)), names + [labels[name] for name in others], rotation=50,
                        ha="right")  # fmt: skip
        left.set(title="Reward, step by step", xlabel="ReST's steps; other losses; online RL; test time",
                 ylabel="gain over π_ref [logits of a label]")  # fmt: skip
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.22 * (high - low))
        left.legend(loc="upper left")

        limits = [f"limit {tau:g}" for tau in settings.thresholds]
        kl = [float(table.loc[name, "kl"]) for name in limits]
        gain = [float(table.loc[name, "proxy_gain"]) for name in limits]
        best = [f"frontier {share:g}" for share in FRONTIER]
        where = "" if settings.scale in runner.EXACT_SCALES else " (grown samples)"
        middle.plot(
            [float(table.loc[name, "kl"]) for name in best], [float(table.loc[name, "proxy_gain"]) for name in best],
            color=style.colour("optimal"), label=f"π* of r_φ{where}",
        )  # fmt: skip
        middle.errorbar(
            kl, gain, yerr=[[_error(table.loc[name], "proxy_gain")[i][0] for name in limits] for i in (0, 1)],
            color=style.colour("rest"), ls="none", marker="o", mfc="white", label=f"limit of the filter{where}",
        )  # fmt: skip
        middle.plot([float(table.loc[n, "kl"]) for n in names], [float(table.loc[n, "proxy_gain"]) for n in names],
                    color=style.colour("rest"), marker=style.of("rest").marker, label="ReST as trained")  # fmt: skip
        for name in others:
            look = style.of(keys[name])
            middle.errorbar(
                [float(table.loc[name, "kl"])], [float(table.loc[name, "proxy_gain"])],
                yerr=_error(table.loc[name], "proxy_gain"), color=look.light, marker=look.marker, ls="none",
                mew=2 if look.marker in style.OPEN_MARKERS else 1, ms=9, label=labels[name],
            )  # fmt: skip
        middle.set(title="What the KL bought", xlabel="KL(π‖π_ref) [nats]",
                   ylabel="gain of r_φ over π_ref [logits of a label]")  # fmt: skip
        middle.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing


def words(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    table: Any = summary.set_index("condition")
    first, second = last_step(settings)

    def gains(name: str) -> str:
        return f"{table.loc[name, 'proxy_gain']:+.2f} and {table.loc[name, 'gold_gain']:+.2f}"

    last = f"limit {settings.thresholds[-1]:g}"
    return _minus(
        f"Gains over π_ref in logits of a label, proxy and gold: everything grown, cloned, {gains(step_name(0))}; "
        f"after the last Improve step {gains(first)}; after a second Grow {gains(second)}. Weighted cloning "
        f"{gains('weighted')}, RAFT {gains('raft')}, DPO {gains('dpo')}, PPO {gains('ppo')}, best of "
        f"{settings.best_of} {gains('best-of-n')}. The filter's limit at τ = {settings.thresholds[-1]:g} spends "
        f"{table.loc[last, 'kl']:.2f} nats and gains {table.loc[last, 'proxy_gain']:.2f} of r_φ; π* of r_φ gains "
        f"{table.loc[last, 'gap']:.2f} more at that KL."
    )


def text(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What was found."""
    table: Any = summary.set_index("condition")
    found = parts(settings, rows)
    first, second = last_step(settings)
    exactly = settings.scale in runner.EXACT_SCALES
    last = f"limit {settings.thresholds[-1]:g}"
    gold = found["improve"].gold[0]
    went = {
        "supported": "rose",
        "on the proxy alone": "rose",
        "refuted": "fell",
        "open": "cannot be told to have moved",
    }

    gaps = {tau: float(table.loc[f"limit {tau:g}", "gap"]) for tau in settings.thresholds}
    widest = max(gaps.items(), key=lambda item: item[1])
    said = [
        f"From cloning all that was grown to the last Improve step r_φ {went[found['improve'].status]}: "
        f"{found['improve'].proxy[0]}; gold {_moved(gold)} ({gold}).",
        f"The last filter let {100 * table.loc[first, 'kept']:.2g}% of the data through.",
        f"The second Grow with its {len(settings.second)} Improve steps added {found['grow'].proxy[0]} of r_φ and "
        f"{found['grow'].gold[0]} of gold. In the limit of data and steps it could add nothing unless a threshold "
        f"rose: what has passed a filter passes it again. What a second Grow adds, it adds because the first one's fit "
        f"stopped short of its limit.",
        "Against ReST's last Improve step, on the same grown samples with as many optimiser steps: "
        + "; ".join(
            f"{LOSSES[name]} {_against(one)} ({one}, KL {table.loc[name, 'kl']:.2f} against "
            f"{table.loc[first, 'kl']:.2f} nats)"
            for name, one in zip(LOSSES, found["loss"].proxy, strict=True)
        )
        + ". Differences are ReST's r_φ less the other's.",
        f"Against PPO ({table.loc['ppo', 'samples']:,.0f} samples, KL {table.loc['ppo', 'kl']:.2f} nats) the whole of "
        f"ReST ({table.loc[second, 'samples']:,.0f} samples, KL {table.loc[second, 'kl']:.2f} nats) is at "
        f"{found['online'].proxy[0]} of r_φ and {found['online'].gold[0]} of gold.",
        f"The filter's limit at τ = {settings.thresholds[-1]:g} is not π*: it spends {table.loc[last, 'kl']:.2f} nats "
        f"for a gain of {table.loc[last, 'proxy_gain']:.2f}, and π* of the same reward has "
        f"{found['limit'].proxy[0]} more for them, because above the threshold the filter keeps π_ref's proportions, "
        f"however much better one response is. The gap was widest, {widest[1]:.3f}, at τ = {widest[0]:g}.",
    ]
    if exactly:
        said.append(
            f"Exactly, under gold and at β = {settings.beta:g}, regret is {table.loc['BC', 'regret']:.3f} for π_ref, "
            f"{table.loc[last, 'regret']:.3f} for that limit, {table.loc[second, 'regret']:.3f} for ReST as trained, "
            f"{table.loc['weighted', 'regret']:.3f} for weighted cloning, whose limit is π* of r_φ, and "
            f"{table.loc['optimum', 'regret']:.3f} for that optimum itself, all of it the reward model's error."
        )
    else:
        said.append(
            f"Corpus BLEU was {table.loc['BC', 'bleu']:.1f} for π_ref, {table.loc[first, 'bleu']:.1f} after the last "
            f"Improve step, {table.loc[second, 'bleu']:.1f} after the second Grow, {table.loc['ppo', 'bleu']:.1f} for "
            f"PPO and {table.loc['best-of-n', 'bleu']:.1f} for the best of {settings.best_of}; different word pairs "
            f"among a prompt's responses went from {table.loc['BC', 'distinct']:.2f} to "
            f"{table.loc[second, 'distinct']:.2f}. The limit is taken over the grown samples of the training prompts, "
            f"everything else on test prompts."
        )
    return _minus(" ".join(said))


def _minus(said: str) -> str:
    return re.sub(r"-(?=\d)", "−", said)


def _moved(one: Interval) -> str:
    return "rose" if one.above else "fell" if one.below else "cannot be told to have moved"


def _against(one: Interval) -> str:
    return "is behind" if one.above else "is ahead" if one.below else "is not told apart"
