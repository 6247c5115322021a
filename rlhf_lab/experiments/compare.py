"""A comparison of all methods of the lecture on one finite world with one reference policy and the exact π*.

Each seed draws new labels and samples, while the world and the reference policy stay the same. Every method that learns
from preferences gets the same labels; online DPO collects as many during its rounds. Every method that needs a reward
gets the same reward model, which is fitted to those labels. All numbers are exact: each policy is enumerated and
evaluated by the gold reward, which no method has seen. Learning rate and number of steps are the same for all methods,
and no method was tuned separately.

    rlhf-lab compare --world bandit --seeds 5 --beta 0.5 --out results/bandit
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tqdm.auto import tqdm

from rlhf_lab import exact
from rlhf_lab.errors import (
    Count,
    LabError,
    Positive,
    Range,
    Seed,
    check_path,
    check_paths,
    check_settings,
    count_of,
    spaces_hint,
)
from rlhf_lab.experiments.methods import METHODS, Trained, train
from rlhf_lab.experiments.setup import SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.policies.base import Policy
from rlhf_lab.training.checkpoint import append, read_lines, write_json
from rlhf_lab.training.output_folder import claim_output
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRICS = ["reward", "kl", "objective", "regret", "kl_to_optimal", "labels", "samples"]
HEADERS = {"reward": "E[r]", "kl": "KL to π_ref", "objective": "J", "regret": "regret", "kl_to_optimal": "KL to π*"}
"""The headers of the printed table, by metric."""
WIDTH = 100
"""Columns of the printed table."""


@dataclass(frozen=True)
class Compare:
    """Train every method on one world and compare it with the exact optimum."""

    world: Literal["bandit", "tree"] = "bandit"
    """bandit: 4 prompts × 10 arms. tree: the 4,096 sequences of 4 tokens over 8."""
    policy: Literal["auto", "table", "gpt2", "gpt_neox"] = "auto"
    """The policy: a table or, on the tree, a small transformer of this architecture. auto: table; on the tree gpt2."""
    seeds: Count = 5
    """Number of runs of every method, with seeds 0, 1, …"""
    beta: Positive = 0.5
    """β of the objective."""
    labels: Annotated[int, Range(8)] | None = None
    """Number of preference labels that a method may use. Default: 2,000; on the tree 20,000."""
    noise: Annotated[float, Range(0, 0.5)] = 0.0
    """Probability that a label is flipped, at most 0.5."""
    world_seed: Seed = 0
    """Seed of the random world."""
    steps: Count = 150
    """Optimiser steps of every fit. For PPO this is the number of rounds."""
    learning_rate: Positive | None = None
    """Learning rate of every fit. Default: 0.05 for tables, 0.003 for transformers."""
    batch_size: Count | None = None
    """Number of pairs or responses in a step. Default: 4,096 for tables, 512 for transformers."""
    methods: tuple[str, ...] = ()
    """Keys of the methods, such as dpo or rest. Default: all methods."""
    out: Path | None = None
    """Folder for the table, the settings and the picture. A comparison that was stopped continues there."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        check_settings(self)
        # Defaults are filled in here, so that the record of a run contains every number.
        tree = self.world == "tree"
        if self.policy == "auto":
            object.__setattr__(self, "policy", "gpt2" if tree else "table")
        table = self.policy == "table"
        defaults = {
            "labels": 20_000 if tree else 2000,
            "learning_rate": 0.05 if table else 0.003,
            "batch_size": 4096 if table else 512,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.world == "bandit" and self.policy != "table":
            raise LabError(
                f"The policy of a bandit is a table, not {self.policy!r}. Give --world tree for a transformer."
            )
        unknown = [key for key in self.methods if key not in METHODS]
        if unknown:
            hint = spaces_hint(unknown[0])
            raise LabError(f"There is no method {unknown[0]!r}. The methods are {', '.join(METHODS)}.{hint}")

    def make_world(self) -> FiniteWorld:
        """Return the world of these settings."""
        assert self.policy != "auto"  # replaced in __post_init__
        return random_world(self.world, self.world_seed, self.policy)


STAGES = {"ppo": 1, "online": 2}
"""The number of stages among which the steps of a fit are divided, where it differs from `methods.METHODS`. PPO has as
many rounds as the other methods have steps, and each of the four rounds of online DPO has half as many steps. Both are
cheap on finite worlds."""


def exact_setup(settings: Compare, world: FiniteWorld, seed: int, prompts: int = 500) -> ExactSetup:
    """Return the set-up of one seed of the comparison.

    Args:
        settings: of the comparison.
        world: the finite world.
        seed: of the labels, the prompts, the reward model and the fits.
        prompts: number of prompts, with repeats, that a sampling method answers.
    """
    labels, batch_size, learning_rate = settings.labels, settings.batch_size, settings.learning_rate
    assert labels is not None and batch_size is not None and learning_rate is not None  # filled in by `Compare`
    budget = SetupBudget(
        labels=labels, noise=settings.noise, prompts=prompts, beta=settings.beta, steps=settings.steps,
        batch_size=batch_size, learning_rate=learning_rate,
        progress=settings.progress and settings.policy != "table",
    )  # fmt: skip
    return ExactSetup(world, budget, seed)


def train_compared(key: str, setup: ExactSetup, policy: Policy | None = None) -> Trained:
    """Train by the method `key` with the comparison's number of stages; for `policy` see `methods.train`."""
    return train(key, setup, policy=policy, stages=STAGES.get(key))


@dataclass
class Comparison:
    """The result of a comparison.

    Attributes:
        settings: of the comparison.
        runs: one row for each method and seed.
        summary: one row for each method, with means and 95% Student-t intervals over seeds.
        frontier: the exact frontier, with the columns beta, kl and reward.
    """

    settings: Compare
    runs: pd.DataFrame
    summary: pd.DataFrame
    frontier: pd.DataFrame

    def table(self) -> str:
        """Return the summary as text of at most `WIDTH` columns, in two blocks if there are intervals.

        The number after ± is half of the 95% interval over seeds.
        """
        import pandas as pd

        columns = {
            name: [f"{row[metric]:.4f}{_plus_minus(row, metric)}" for _, row in self.summary.iterrows()]
            for metric, name in HEADERS.items()
        }
        columns |= {name: [f"{number:,.0f}" for number in self.summary[name]] for name in ("labels", "samples")}
        table = pd.DataFrame(columns, index=list(self.summary["label"])).to_string(line_width=WIDTH)
        # pandas marks a divided line by a backslash.
        return "\n".join(line.rstrip(" \\") for line in table.splitlines())

    def figure(self) -> Figure:
        """Draw every method beside the exact frontier, and the regret of each method."""
        from rlhf_lab.figures.frontier import comparison_figure

        return comparison_figure(self.summary, self.frontier, self.settings.beta)


def _plus_minus(row: pd.Series, metric: str) -> str:
    half = (row[f"{metric}_high"] - row[f"{metric}_low"]) / 2
    return f" ± {half:.4f}" if half == half and half > 0 else ""


def frontier_of(world: FiniteWorld, beta: float) -> pd.DataFrame:
    """Return the exact frontier of the world for 200 values of β around `beta`, as means over prompts."""
    import pandas as pd

    betas = torch.logspace(-2, 2, 200, dtype=torch.float64) * beta
    kl, reward = exact.frontier(world.log_ref(), world.rewards(), betas)
    return pd.DataFrame({"beta": betas, "kl": kl.mean(0), "reward": reward.mean(0)})


def compare(settings: Compare) -> Comparison:
    """Train every method for every seed and evaluate it exactly.

    With `settings.out` each finished pair of method and seed is written to `runs.jsonl` immediately, and a later call
    with the same settings reads it from there. After Ctrl-C only the current fit is lost.

    Raises:
        LabError: the folder contains other files or a comparison with other settings.
    """
    settings = check_paths(settings)
    with one_thread(settings.policy == "table"), ExitStack() as held:
        try:
            return _compare(settings, held)
        except KeyboardInterrupt as stop:
            if not str(stop) and settings.out is not None:
                stop.args = (f"Stopped. The finished runs are in {settings.out}, and the same command continues.",)
            raise


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let torch use one thread within this context, because the tensors of a table are too small for several."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(settings: Compare, held: ExitStack) -> Comparison:
    import pandas as pd

    keys = settings.methods or tuple(METHODS)
    done: dict[tuple[str, int], dict[str, Any]] = {}
    journal = None
    if settings.out is not None:
        record = {"experiment": "compare", "settings": settings}
        held.enter_context(claim_output(settings.out, record, (settings.out / "run.json").is_file()))
        journal = settings.out / "runs.jsonl"
        if journal.is_file():
            done = {
                (row["method"], row["seed"]): row for row in read_lines(journal) if {"method", "seed"} <= row.keys()
            }
    world = settings.make_world()
    todo = [(key, seed) for seed in range(settings.seeds) for key in keys if seed == 0 or METHODS[key].repeated]
    bar = tqdm(todo, desc=f"compare, {settings.world}", disable=not settings.progress)
    setup: ExactSetup | None = None
    for key, seed in bar:
        if (key, seed) not in done:
            bar.set_postfix_str(f"{key}, seed {seed}")
            if setup is None or setup.seed != seed:
                setup = exact_setup(settings, world, seed)
            trained = train_compared(key, setup)
            numbers = setup.evaluate(trained.policy)
            row = {"method": key, "seed": seed, **numbers, "labels": trained.labels, "samples": trained.samples}
            done[key, seed] = row
            if journal is not None:
                append(journal, json.dumps(row) + "\n")
    runs = pd.DataFrame([done[one] for one in sorted(todo, key=lambda one: (keys.index(one[0]), one[1]))])
    summary = summarise(runs, "method", METRICS)
    summary.insert(1, "label", [METHODS[key].label for key in summary["method"]])
    return Comparison(settings, runs, summary, frontier_of(world, settings.beta))


def save(comparison: Comparison, out: Path) -> None:
    """Write runs.csv, summary.csv, frontier.csv, comparison.json (with all settings) and comparison.png to `out`."""
    out = check_path(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    comparison.runs.to_csv(out / "runs.csv", index=False)
    comparison.summary.to_csv(out / "summary.csv", index=False)
    comparison.frontier.to_csv(out / "frontier.csv", index=False)
    from rlhf_lab import __version__
    from rlhf_lab.figures import style

    record = {
        "settings": comparison.settings,
        "versions": {"rlhf_lab": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "interval": "95% Student-t over seeds",
        "summary": comparison.summary.to_dict("records"),
        "runs": comparison.runs.to_dict("records"),
    }
    write_json(out / "comparison.json", record)
    (out / "comparison.png").write_bytes(style.png(comparison.figure()))


def run(settings: Compare) -> None:
    """The command `rlhf-lab compare`."""
    comparison = compare(settings)
    print(f"{settings.make_world().name}, β = {settings.beta:g}, {count_of(settings.seeds, 'seed')}")
    print(comparison.table())
    if settings.out is not None:
        save(comparison, settings.out)
        print(f"\nTable, settings and picture are in {settings.out}.")
