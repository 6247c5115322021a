"""What the experiment on the annotation budget tells: its picture, its words, its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab import label_budget
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.annotation_budget import run_text as budget_text
from rlhf_lab.experiments.claims.annotation_budget.settings import RATIOS
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.experiments.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.annotation_budget.settings import AnnotationBudget


WITHIN = 1.25
"""Times the labels of the best design that the active policy may need."""
LIMITS = ("reference", "optimal", "design")


def get(summary: pd.DataFrame, part: str, what: str, **names: Any) -> Interval:
    """One number of the summary."""
    rows = summary[(summary["part"] == part) & (summary["what"] == what)]
    for name, value in names.items():
        rows = rows[rows[name] == value]
    if len(rows) != 1:
        raise LabError(f"The summary has {len(rows)} rows of {part}, {what}, {names}.")
    row = rows.iloc[0]
    return Interval(float(row["value"]), float(row["value_low"]), float(row["value_high"]))


# --- picture and words -------------------------------------------------------------------------------------------


_PRICES = (("#949494", "o"), ("#727272", "s"), ("#484848", "^"), ("#111111", "D"))
"""Greys and markers of a demonstration's prices, darker the dearer it is. Colours belong to methods."""


def figure(settings: AnnotationBudget, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """The limit, the sources, the split; on a language model J by strategy."""
    from rlhf_lab.figures import style

    if settings.scale not in EXACT_SCALES:
        return _figure_text(settings, summary)
    drawing, axes = style.subplots(1, 3, width=15, height=5.2)
    with style.use():
        for i, key in enumerate(LIMITS):
            part = summary[(summary["part"] == "limit") & (summary["pairs"] == key)]
            look = style.of(label_budget.LOOK[key])
            x = part["labels"] * 1.12 ** (i - 1)
            axes[0].vlines(x, part["value_low"], part["value_high"], color=look.light)
            axes[0].plot(x, part["value"], look.marker, color=look.light, ls=look.dash, label=label_budget.SHORT[key])
        axes[0].axhline(1, color="#444444", lw=1)
        axes[0].set(xscale="log", yscale="log", xlabel="labels N", ylabel="N · regret / closed-form limit")
        axes[0].set_title("Labels meet their limit", pad=28)
        for key in label_budget.SHORT:
            part = summary[(summary["part"] == "sources") & (summary["what"] == "labels / best design's")]
            part = part[part["pairs"] == key]
            look = style.of(label_budget.LOOK[key])
            axes[1].fill_between(part["labels"], part["value_low"], part["value_high"], color=look.light, alpha=0.15)
            axes[1].plot(
                part["labels"],
                part["value"],
                look.marker,
                color=look.light,
                ls=look.dash,
                label=label_budget.SHORT[key],
            )
        axes[1].axhline(WITHIN, color="#444444", lw=1, ls=":")
        axes[1].set(xscale="log", yscale="log", xlabel="labels N", ylabel="labels / those of the best design")
        axes[1].set_xticks(settings.totals, [str(n) for n in settings.totals], fontsize=9)
        axes[1].set_title(f"Which pairs (β = {settings.beta:g})", pad=46)
        for ratio, (ink, marker) in zip(settings.ratios, _PRICES, strict=False):
            for pairs, dash in (("sft", "--"), ("active", "-")):
                part = summary[(summary["part"] == "split") & (summary["what"] == "regret")]
                part = part[(part["pairs"] == pairs) & (part["demo_price"] == ratio)]
                active = pairs == "active"
                axes[2].vlines(part["share"], part["value_low"], part["value_high"], color=ink, lw=1)
                axes[2].plot(part["share"], part["value"], marker, color=ink, ls=dash, mfc=ink if active else "white",
                             label=_labels(ratio) if active else None)  # fmt: skip
        axes[2].set(yscale="log", xlabel="share of the money for demonstrations", ylabel="regret [reward]")
        axes[2].set_title("A demonstration's price (hollow: pairs of π_sft)", pad=28, fontsize=11)
        for ax in axes:
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4 if ax is not axes[1] else 3, fontsize=10,
                      borderaxespad=0.1, columnspacing=1.0, handlelength=1.4)  # fmt: skip
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_formatter("")
    return drawing


def _figure_text(settings: AnnotationBudget, summary: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    drawing, axes = style.subplots(1, 2, width=12, height=4.8, sharey=True)
    keys = list(budget_text.STRATEGIES)
    with style.use():
        for place, key in enumerate(reversed(keys)):
            _, style_key, _ = budget_text.STRATEGIES[key]
            look = style.of(style_key)
            for ax, what in zip(axes, ("objective", "over random pairs"), strict=True):
                if key == "random" and what != "objective":
                    continue
                value = get(summary, key, what)
                ax.hlines(place, value.low, value.high, color=look.light)
                ax.plot(value.mean, place, look.marker, color=look.light, ms=9)
        axes[0].axvline(get(summary, "none", "objective").mean, color=style.colour("reference"), ls="--", label="π_ref")
        axes[1].axvline(0, color="#444444", lw=1)
        axes[0].set_yticks(range(len(keys)), [budget_text.STRATEGIES[key][0] for key in reversed(keys)])
        axes[0].set(xlabel=f"J = reward − {settings.beta:g} KL, 95% intervals")
        axes[0].set_title(f"The same money, {settings.money:g} labels' worth", pad=24)
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
        axes[1].set(xlabel="difference in J, within a seed; 95% all together")
        axes[1].set_title("Over DPO on random pairs", pad=24)
    return drawing


def words(settings: AnnotationBudget, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    if settings.scale not in EXACT_SCALES:
        each = "; ".join(
            f"{name} {get(summary, key, 'objective')}" for key, (name, _, _) in budget_text.STRATEGIES.items()
        )
        return f"J of each way to spend {settings.money:g} labels' worth of money, with 95% intervals: {each}."
    n, last = settings.limit_totals[-1], settings.totals[-1]
    limits = ", ".join(
        f"{label_budget.SHORT[k]} " + f"{get(summary, 'limit', 'N regret / price', pairs=k, labels=n)}" for k in LIMITS
    )
    sources = ", ".join(
        f"{label_budget.SHORT[k]} "
        + f"{get(summary, 'sources', 'labels / best design' + chr(39) + 's', pairs=k, labels=last)}"
        for k in label_budget.SHORT
    )
    best = ", ".join(
        f"{100 * get(summary, 'split', 'best share', pairs='active', demo_price=r).mean:.0f}% at {r:g}"
        for r in settings.ratios
    )
    return (
        f"Left: N · regret over its closed-form limit at N = {n:,}: {limits}. Middle: labels over those of the best "
        f"design at {last:,} labels, medians: {sources}. Right: regret against the share of the money that goes to "
        f"demonstrations; with active labels the best share is, by the price of a demonstration in labels, {best}."
    )


def text(settings: AnnotationBudget, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What was found, and why."""
    if settings.scale not in EXACT_SCALES:
        return _text_of_text(settings, summary)
    last, ratio = settings.totals[-1], "labels / best design's"

    def source(key: str, n: int = last) -> Interval:
        return get(summary, "sources", ratio, pairs=key, labels=n)

    def share(price: float, way: str = "active", what: str = "best share") -> Interval:
        return get(summary, "split", what, pairs=way, demo_price=price)

    early = settings.totals[min(2, settings.doublings)]
    best, ready = source("design", early), source("active", early)
    order = "loses to" if best.low > ready.high else "is ahead of" if ready.low > best.high else "is level with"
    one, twenty = (get(summary, "rounds", ratio, pairs="active", rounds=r) for r in (1, 20))
    few = next(
        r for r in settings.rounds if get(summary, "rounds", ratio, pairs="active", rounds=r).mean <= 1.1 * twenty.mean
    )
    rounds_at = int(summary[summary["part"] == "rounds"]["labels"].iloc[0])
    gap = get(summary, "learners", "limited DPO less limited reward", learner="limited")
    floor = get(summary, "learners", "best of the class", learner="limited")
    dpo_ends, reward_ends = (
        get(summary, "learners", "regret", learner=key, labels=last) for key in ("limited-dpo", "limited-reward")
    )
    side = "better" if gap.above else "worse" if gap.below else "not distinguishably better or worse"
    misjudged = get(summary, "split", "regret", pairs="misjudged", demo_price=RATIOS[0], share=1.0)
    judged = get(summary, "split", "regret", pairs="active", demo_price=RATIOS[0], share=1.0)
    parts = [
        f"**Which pairs.** Labels on two draws from π_ref leave the regret that {source('reference')} times fewer "
        f"labels of the best design leave; all pairs evenly {source('uniform')}; two draws from the present policy, in "
        f"rounds, {source('online')}; two draws from π*, if anyone could make them, {source('optimal')}. An active "
        f"policy that begins with nothing and asks for what matters by its own belief comes to "
        f"{source('active')}. At {early:,} labels the best design {order} it ({best} against "
        f"{ready}): that design is made for the limit, spends its labels as if the rewards were known already, and "
        f"a bad response asked about too rarely stays in the policy.",
        f"**Rounds.** At {rounds_at:,} labels one active batch needs {one} times the labels of the best design, twenty "
        f"need {twenty}; {few} {'is' if few == 1 else 'are'} enough to come within a tenth of twenty's median.",
        "**Demonstrations.** Where demonstrations and labels both count as what they are, information about the "
        "rewards, the best share of the money for demonstrations, with active labels, is "
        + ", ".join(f"{_percent(share(r))} at a price of {_labels(r)}" for r in settings.ratios)
        + "; with labels on pairs from the SFT policy it is "
        + ", ".join(_percent(share(r, "sft")) for r in settings.ratios)
        + " (the closed form of the limit says "
        + ", ".join(f"{100 * share(r, 'sft', 'best share in the limit').mean:.0f}%" for r in settings.ratios)
        + f"). A demonstrator taken for twice as careful as he is changes the regret of demonstrations alone from "
        f"{judged} to {misjudged}.",
        f"**DPO or reward model first.** With a policy that can say everything the two are one estimate: DPO's maximum "
        f"is π_ref exp(r̂/β)/Z of the reward model's maximum. With a policy of few features, at {last:,} labels, "
        f"going by a reward model is {side}: DPO leaves {dpo_ends}, the reward model with endless free samples "
        f"{reward_ends}, the best policy found in that class {floor}. DPO matches the labelled pairs where they "
        f"lie, the other way weighs errors by the policy itself.",
    ]
    if settings.scale == "tree":
        known = get(summary, "learners", "table's regret / known form's", learner="structured-reward")
        parts.append(
            f"A reward model that knows the reward's form (tokens by place, and neighbours) leaves a regret {known} "
            f"times smaller than a table of responses: what it need not learn it need not buy."
        )
    return "\n\n".join(parts)


def _labels(number: float) -> str:
    return "1 label" if number == 1 else f"{number:g} labels"


def _percent(found: Interval) -> str:
    return f"{100 * found.mean:.0f}% ({100 * found.low:.0f}–{100 * found.high:.0f}%)"


def _text_of_text(settings: AnnotationBudget, summary: pd.DataFrame) -> str:
    found = {key: get(summary, key, "over random pairs") for key in budget_text.STRATEGIES if key != "random"}
    order = sorted(found, key=lambda key: -found[key].mean)
    sure = [key for key in order if found[key].above]
    bad = [key for key in order if found[key].below]

    def named(keys: list[str]) -> str:
        return ", ".join(f"{budget_text.STRATEGIES[key][0]} ({found[key]})" for key in keys)

    start, base = get(summary, "random", "objective"), get(summary, "none", "objective")
    kl, gain = get(summary, "random", "kl"), get(summary, "random", "reward")
    labels = {key: get(summary, key, "labels").mean for key in budget_text.STRATEGIES}
    return "\n\n".join(
        [
            f"Every strategy spends {settings.money:g}, counted in preference labels, at "
            f"{settings.price_demonstration:g} for a demonstration, {settings.price_sample:g} for a sample and "
            f"{settings.price_step:g} for an optimiser step. What it pays for machines it "
            f"cannot spend on people: labels range from {min(labels.values()):.0f} to {max(labels.values()):.0f}. "
            f"DPO on random pairs from π_ref comes to J = {start} (reward {gain}, KL {kl}), against {base} of "
            f"π_ref itself.",
            f"In order of the mean, the gain in J over that, seed by seed: {named(order)}. "
            + (f"Surely better, all comparisons taken together: {named(sure)}. " if sure else "None is surely better. ")
            + (f"Surely worse: {named(bad)}." if bad else "None is surely worse."),
            "J charges for KL, so a strategy that learns the reward no better but stays nearer to π_ref gains by it as "
            "well; the table gives reward and KL apart. All fits have the same learning rate and no search, and their "
            "steps are few: a strategy is judged by what it does in that regime.",
        ]
    )
