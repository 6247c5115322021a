"""Claim 6: ReST on translation. Improve steps and a second Grow raise the reward; and where the filter ends.

Every condition of a seed has the same labels, reward model, prompts and grown samples of π_ref. The limit of the
filter, π_ref conditioned on r > τ, is set beside the optimum of the same reward that spends as much KL: on the exact
scales over all responses, on a language model over the grown samples, taken as all responses there are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rest_translation.report import figure, parts, text, words
from rlhf_lab.experiments.claims.rest_translation.settings import ReSTTranslation
from rlhf_lab.experiments.claims.rest_translation.training import (
    LOSSES,
    other_rows,
    ppo_rows,
    rest_rows,
    rest_setup,
    untrained_rows,
)
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.statistics import summarise

if TYPE_CHECKING:
    import pandas as pd


def jobs(settings: ReSTTranslation) -> list[Job]:
    """Per seed: the untrained, ReST with all its steps, every other loss, online RL."""
    parts = ("untrained", "rest", *LOSSES, "ppo")
    return [{"seed": seed, "part": part} for seed in range(settings.seeds) for part in parts]


def run(settings: ReSTTranslation, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """The rows of one seed and part."""
    shared = rest_setup(replace(settings, out=None, workers=1, progress=False), job["seed"])
    ways = {"untrained": untrained_rows, "rest": rest_rows, "ppo": ppo_rows}
    return ways.get(job["part"], other_rows(job["part"]))(shared)


def summarise_rows(settings: ReSTTranslation, rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and each condition's gain over π_ref on the same prompts, paired within the seed."""
    rows = with_gains(rows)
    names = ["proxy", "gold", "proxy_gain", "gold_gain", "kl", "gap", "gold_gap", "regret", "bleu", "right", "distinct",
             "kept", "samples"]  # fmt: skip
    return summarise(rows, "condition", [name for name in names if name in rows.columns])


def with_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `proxy_gain` and `gold_gain`, each over where its own seed and its own prompts began."""
    rows = rows.copy()
    limit = rows["condition"].str.match("limit|frontier")
    for name in ("proxy", "gold"):
        base = rows[rows["condition"] == "BC"].set_index("seed")[name]
        begun = rows[rows["condition"] == "limit 0"].set_index("seed")[name]
        start = rows["seed"].map(base).where(~limit, rows["seed"].map(begun))
        rows[f"{name}_gain"] = rows[name] - start
    return rows


def outcome(found: dict[str, str]) -> str:
    """The rule, from the parts' statuses by name."""
    if found["improve"] == "refuted":
        return "not supported"
    if found["improve"] == "open":
        return "inconclusive"
    if all(status == "supported" for status in found.values()):
        return "supported"
    others = [status for name, status in found.items() if name != "improve"]
    if found["improve"] == "supported" and all(status in ("supported", "open") for status in others):
        # Nothing speaks against it; the claim as a whole is not shown either.
        return "partly supported" if any(status == "supported" for status in others) else "inconclusive"
    return "partly supported"


def judge(settings: ReSTTranslation, summary: pd.DataFrame, rows: pd.DataFrame) -> Worded:
    """The verdict, and every part's differences."""
    found = parts(settings, rows)
    verdict = outcome({name: part.status for name, part in found.items()})
    words = {"supported": "Shown", "on the proxy alone": "Shown for the proxy, while gold fell", "refuted": "Refuted",
             "open": "Not decided"}  # fmt: skip
    said = []
    for status, word in words.items():
        here = [f"{part.says} ({'; '.join(map(str, part.proxy))})" for part in found.values() if part.status == status]
        if here:
            said.append(f"{word}: {', '.join(here)}.")
    return Worded(verdict, " ".join(said) + " In brackets: differences in r_φ, paired within seeds.")  # type: ignore[arg-type]


EXPERIMENT = Experiment(
    number=6,
    name="rest-translation",
    title="ReST: Improve steps under rising thresholds raise the reward, a second Grow raises it further",
    claim=(
        "On IWSLT translation the reward rises from 70.9 (behaviour cloning) to 71.9 with one Grow, to 77.8 with four "
        "Improve steps, and to 83.1 with a second Grow and three more; online RL reaches 71.6. Behaviour cloning is "
        "the best loss of those tried. Nothing is said of what the filter converges to."
    ),
    source=(
        "Gulcehre et al. 2023, Reinforced Self-Training (ReST) for Language Modeling, Algorithm 1 and section 4; "
        "lecture, Reinforced Self-Training, Experiments, Task: Translation."
    ),
    setup=(
        "Small: translation from Velu, π_ref in the place of behaviour cloning, a reward model fitted to preference "
        "labels in the place of the learned metric, chrF against every right translation as gold. Bandit and tree: "
        "random worlds, one a seed, tables, all exact. On one grown set: cloning of everything, four Improve steps, a "
        "second Grow with three, and in the filter's place cloning weighted by exp(r/β), cloning of each prompt's "
        "best, and DPO; beside them PPO and best of n at test time. Steps and rate are the same for all; none was "
        "tuned. The first data stay in the mix, filtered too. r_φ is counted from its mean over the grown responses to "
        "a prompt, for labels do not tell a prompt's constant."
    ),
    rule=(
        "Five parts, each by differences in r_φ paired within seeds. (1) The last Improve step is above cloning all. "
        "(2) The second Grow's end is above the first's. (3) The last Improve step is above every other loss. (4) The "
        "second Grow's end is above PPO's. (5) The limit of the last filter is below π* of the same reward at the same "
        "KL. A part is shown if all its 95% intervals lie above zero, refuted if one lies below, else not decided; (1) "
        "to (4) are shown on the proxy alone where an interval of gold lies below zero. The claim holds if all five "
        "are shown; does not hold if (1) is refuted; is not decided if (1) is not, or if no other part is either; "
        "else it holds for the parts named."
    ),
    settings=ReSTTranslation,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: ReSTTranslation) -> None:
    """The command `rlhf-lab experiment rest-translation`."""
    runner.main(EXPERIMENT, settings)
