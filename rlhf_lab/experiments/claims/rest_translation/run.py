"""Claim 6: ReST on translation. Improve steps and a second Grow raise the reward; and where the filter ends.

Every condition of a seed has the same labels, reward model, prompts and grown samples of π_ref. The limit of the
filter, π_ref conditioned on r > τ, is set beside the optimum of the same reward that spends as much KL: on the exact
scales over all responses, on a language model over the grown samples, taken as all responses there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rest_translation.report import figure, parts, text, words
from rlhf_lab.experiments.claims.rest_translation.training import (
    LOSSES,
    other_rows,
    ppo_rows,
    rest_rows,
    rest_setup,
    untrained_rows,
)
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job, Settings, Worded
from rlhf_lab.experiments.statistics import summarise

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ReSTTranslation(Settings):
    """ReST step by step, beside other losses, online RL, best of n, and its own limit."""

    beta: NonNegative = 0.5
    """β of online RL, of the weighted losses and of regret, in the labeller's unit."""
    labels: Natural = 0
    """Preference labels under the reward model. 0: 500; tree 4,000; a language model 512."""
    prompts: Natural = 0
    """Prompts that are answered in a Grow step. 0: 500; a language model 64."""
    samples: Natural = 16
    """Responses to each."""
    thresholds: tuple[NonNegative, ...] = (0.0, 0.7, 0.8, 0.9, 0.95)
    """τ after the first Grow, on [0, 1] by the range of the first grown set; the first takes everything."""
    second: tuple[NonNegative, ...] = (0.8, 0.9, 0.95)
    """τ after the second Grow, on [0, 1] by the range of the second grown set."""
    steps: Natural = 0
    """Optimiser steps of one Improve step. 0: 60; a language model 16. Other losses get those of all Improve steps."""
    batch: Natural = 0
    """Responses in an optimiser step. 0: 2,048; a language model 32."""
    rate: NonNegative = 0.0
    """Learning rate of every fit; ReST halves it from one Improve step to the next. 0: 0.05; a language model 3e-4."""
    best_of: Natural = 8
    """n of best-of-n at test time."""
    reward_steps: Natural = 0
    """Optimiser steps of the reward model. 0: 150; a language model 80."""
    test_prompts: Natural = 0
    """Test prompts of a language model. 0: 96."""
    test_samples: Natural = 4
    """Responses to each."""

    def __post_init__(self) -> None:
        exactly = self.scale in runner.EXACT_SCALES
        tree, quick = self.scale == "tree", self.quick
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 20 if self.scale == "bandit" else 5 if tree else 3,
            "labels": (200 if exactly else 32) if quick else (4000 if tree else 500) if exactly else 512,
            "prompts": (50 if exactly else 8) if quick else 500 if exactly else 64,
            "steps": (5 if exactly else 1) if quick else 60 if exactly else 16,
            "batch": 2048 if exactly else 8 if quick else 32,
            "rate": 0.05 if exactly else 3e-4,
            "reward_steps": (20 if exactly else 2) if quick else 150 if exactly else 80,
            "test_prompts": 8 if quick else 96,
        }
        if quick and not exactly and self.samples == 16:
            defaults["samples"] = 4
            object.__setattr__(self, "samples", 0)
            object.__setattr__(self, "test_samples", 2)
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        if self.samples < 2 or self.samples % 2:
            raise LabError(f"samples must be even and at least 2, not {self.samples}: DPO pairs them.")
        for name in ("labels", "prompts", "steps", "batch", "reward_steps", "test_prompts", "test_samples", "best_of"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("thresholds", "second"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or not 0 <= values[0] <= values[-1] < 1:
                raise LabError(f"{name} must rise from 0 or more to less than 1, not {values}.")
        if len(self.thresholds) < 2 or self.thresholds[0] > 0:
            raise LabError(f"thresholds must begin with 0 and have an Improve step after it, not {self.thresholds}.")


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
