"""Claim 7: the proxy's reward rises while the gold reward falls, and more labels put off the turn.

A road is a row of places on the way to the most proxy reward: PPO, DPO and RSO while they train at a small β, best of
n as n grows, and on the exact scales the optimum of the proxy as β falls, which no method outruns. Everything on the
exact scales is enumerated. A turn is a fall of gold from its peak to the road's end. The peak is looked for on the
other seeds, never on the one whose fall is counted: the highest of many noisy places is high by luck too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.over_optimisation.report import (
    KINDS,
    MARGIN,
    METHODS,
    figure,
    is_exact,
    later,
    listed,
    name_of,
    text,
    turns,
    words,
)
from rlhf_lab.experiments.claims.over_optimisation.settings import OverOptimisation
from rlhf_lab.experiments.claims.over_optimisation.trajectories import (
    TRAINED,
    best_of_n_on_text,
    exact_trajectories,
    trained_exactly,
    trained_on_text,
)
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.statistics import Interval, summarise

if TYPE_CHECKING:
    import pandas as pd


def jobs(settings: OverOptimisation) -> list[Job]:
    """Exact roads for every kind and number of labels, and trained ones; RSO for the fewest labels alone on text."""
    out: list[Job] = []
    few, many = settings.labels[0], settings.labels[-1]
    for seed in range(settings.seeds):
        if is_exact(settings):
            out += [
                {"seed": seed, "method": "exact", "labels": n, "kind": kind} for kind in KINDS for n in settings.labels
            ]
            out += [
                {"seed": seed, "method": name, "labels": n, "kind": "full"} for n in (few, many) for name in TRAINED
            ]
        else:
            out += [{"seed": seed, "method": name, "labels": few, "kind": "full"} for name in TRAINED]
            out += [{"seed": seed, "method": name, "labels": many, "kind": "full"} for name in ("ppo", "dpo")]
            out += [{"seed": seed, "method": "best-of-n", "labels": 0, "kind": "full"}]
    return out


def run(settings: OverOptimisation, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """A road: one row a place, from π_ref (place 0) to its end."""
    settings, seed = replace(settings, out=None, workers=1, progress=False), job["seed"]
    if job["method"] == "exact":
        return exact_trajectories(settings, seed, job["labels"], job["kind"])
    if job["method"] == "best-of-n":
        return best_of_n_on_text(settings, seed)
    if is_exact(settings):
        return trained_exactly(settings, seed, job["labels"], job["method"])
    return trained_on_text(settings, seed, job["labels"], job["method"])


def summarise_rows(settings: OverOptimisation, rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of every place of every road."""
    rows = rows.assign(root_kl=rows["kl"].clip(lower=0) ** 0.5)
    names = ["kl", "root_kl", "gold", "proxy", *[name for name in ("tokens", "distinct") if name in rows.columns]]
    table = summarise(rows, ["road", "kind", "labels", "place"], names)
    first = rows.groupby(["road", "kind", "labels", "place"], sort=False)["pressure"].first().reset_index()
    return table.merge(first, on=["road", "kind", "labels", "place"])


def outcome(statuses: dict[str, str], postponed: Interval) -> str:
    """The rule, from the four methods' statuses at the fewest labels and how far more labels put the peak off."""
    turned = [name for name, status in statuses.items() if status == "turns"]
    if len(turned) == len(statuses) and postponed.above:
        return "supported"
    if turned:
        return "partly supported"
    return "not supported" if all(status == "stays" for status in statuses.values()) else "inconclusive"


def judge(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Worded:
    """The verdict."""
    found, postponed = turns(rows), later(rows, settings)
    few, many = settings.labels[0], settings.labels[-1]
    here = {name: found[name, "full", few] for name in METHODS}
    statuses = {name: one.status for name, one in here.items()}
    said = []
    verbs = {
        "turns": "gold falls from its peak to the end while the proxy rises",
        "falls": "gold falls, but the proxy is not shown to rise meanwhile",
        "stays": f"gold surely falls by less than {MARGIN:.0%} of what it gained",
        "open": "a fall is neither shown nor excluded",
    }
    seen = {name: "falls" if one.status == "open" and one.fall.above else one.status for name, one in here.items()}
    for status, verb in verbs.items():
        names = [name for name in METHODS if seen[name] == status]
        if names:
            falls = [f"{name_of(name)} ({here[name].fall}, proxy {here[name].rise})" for name in names]
            said.append(f"{listed(falls)}: {verb}.")
    more = [name for name in METHODS if (name, "full", many) in found]
    still = [name_of(name) for name in more if found[name, "full", many].status == "turns"]
    again = "still turns" if len(still) == 1 else "still turn"
    with_many = f"{listed(still)} {again}" if still else "no method is shown to turn"
    moved = "later" if postponed.above else "earlier" if postponed.below else "not surely elsewhere"
    return Worded(
        outcome(statuses, postponed),  # type: ignore[arg-type]
        f"As far as the roads went, with {few} labels: {' '.join(said)} With {many:,} labels {with_many}; "
        f"gold's peak is {moved}: {postponed} in √KL. In brackets: the fall of gold and the rise of the proxy from "
        f"that peak, in logits of a label.",
    )


EXPERIMENT = Experiment(
    number=7,
    name="over-optimisation",
    title="Optimised ever harder, the proxy's reward rises while the gold reward falls; more labels put it off",
    claim=(
        "Against √KL the proxy reward keeps rising while the gold reward rises, turns and falls, for best of n and for "
        "PPO; with more data for the reward model the turn comes later and higher. Optimising a learned reward of "
        "summaries too far made summaries that people liked less than those it began with."
    ),
    source=(
        "Gao et al. 2023, Scaling Laws for Reward Model Overoptimization, Figure 1 and the section on data size; "
        "Stiennon et al. 2020, section 4.3; lecture, reward modelling, and RSO's proxy against gold reward."
    ),
    setup=(
        "PPO, DPO and RSO are watched while they train at a small β, best of n as n grows; gold, proxy and KL at every "
        "place. On the bandit (2 prompts × 64 arms) and the tree (4,096 responses), one world a seed, all is "
        "enumerated, and the proxy's exact optimum is set beside, also for reward models with noisy labels and for "
        "ones that see a part of what gold sees. On a language model: summaries, chosen before any run because gold "
        "there weighs facts against words and inventions. DPO has no reward model: its proxy is one fitted to the same "
        "labels."
    ),
    rule=(
        "A road turns if, from gold's highest place to its end, gold falls and the proxy rises, both 95% intervals "
        "over seeds above zero; the highest place is that of the other seeds' mean, so that it is not picked on "
        "the seed whose fall is counted. It stays if the fall's interval ends below a tenth of what gold gained "
        "and the road ends beyond √KL = 1. The claim holds if best of n, PPO, DPO and RSO all turn with the fewest "
        "labels and, with the most, the √KL of gold's highest place is larger (mean over methods, paired within "
        "seeds, interval above zero); it does not hold if all four stay; it holds for those that turn if some do; "
        "otherwise it is not decided."
    ),
    settings=OverOptimisation,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: OverOptimisation) -> None:
    """The command `rlhf-lab experiment over-optimisation`."""
    runner.main(EXPERIMENT, settings)
