"""The comparison: every method of the lecture on one world, from one reference, beside the exact π*.

Each seed draws its own labels and samples; world and reference stay. Every method that learns from preferences gets
the same labels (online: as many, collected in its rounds), every method that needs a reward gets the same reward
model, fitted to those labels. Numbers are exact: each policy is enumerated and judged by the gold reward, which no
method has seen. Learning rate and number of steps are the same for all methods; none was tuned by itself.

    rlhf-lab compare --world bandit --seeds 5 --beta 0.5 --out results/bandit
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, Source, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta, check_path, check_paths, check_settings
from rlhf_lab.evaluation import evaluate
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded
from rlhf_lab.training.checkpoint import append, read_lines, write_json
from rlhf_lab.training.output_folder import claim_output
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRICS = ["reward", "kl", "objective", "regret", "kl_to_optimal", "labels", "samples"]


@dataclass(frozen=True)
class Compare:
    """Train every method on one world and set it beside the exact optimum."""

    world: Literal["bandit", "tree"] = "bandit"
    """bandit: 4 prompts × 10 arms. tree: the 4,096 sequences of 4 tokens over 8."""
    policy: Literal["auto", "table", "gpt2", "gpt_neox"] = "auto"
    """What is trained: a table, or (tree) a small transformer of this architecture. auto: table; on the tree gpt2."""
    seeds: Natural = 5
    """Runs of every method, with seeds 0, 1, …"""
    beta: NonNegative = 0.5
    """β of the objective."""
    labels: Natural = 0
    """Preference labels that a method may spend. 0: 2,000; on the tree 20,000."""
    noise: NonNegative = 0.0
    """Probability that a label is turned round."""
    world_seed: Natural = 0
    """Which random world."""
    steps: Natural = 150
    """Optimiser steps of every fit (of PPO: rounds)."""
    learning_rate: NonNegative = 0.0
    """Of every fit. 0: 0.05 for tables, 0.003 for transformers."""
    batch_size: Natural = 0
    """Pairs or responses in a step. 0: 4,096 for tables, 512 for transformers."""
    methods: tuple[str, ...] = ()
    """Which methods, by key (see the table's first column). Default: all."""
    out: Path | None = None
    """Folder for table, settings and picture. A stopped comparison goes on where it was."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_beta(self.beta)
        # What was left open is settled here, so that the record of a run holds every number.
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
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.seeds < 1 or self.labels < 8 or self.steps < 1:
            raise LabError("A comparison needs at least 1 seed, 8 labels and 1 step.")
        if self.world == "bandit" and self.policy != "table":
            raise LabError(f"policy {self.policy!r} needs --world tree; a bandit's policy is a table.")
        unknown = [key for key in self.methods if key not in METHODS]
        if unknown:
            raise LabError(f"Unknown methods {', '.join(unknown)}. There are: {', '.join(METHODS)}.")

    def make_world(self) -> FiniteWorld:
        """The world of these settings."""
        if self.world == "bandit":
            return bandit.random(4, 10, self.world_seed)
        reference = None
        if self.policy == "gpt2" or self.policy == "gpt_neox":
            from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
            from rlhf_lab.response_tree import ResponseTree

            reference = TreeTransformerPolicy(ResponseTree(8, 4), 1, self.policy, seed=self.world_seed)
        return token_tree.random(8, 4, 1, self.world_seed, reference=reference)


@dataclass
class Run:
    """One seed of the comparison: what its methods share."""

    settings: Compare
    world: FiniteWorld
    seed: int

    PROMPTS = 500
    """Prompts that a sampling method answers (PPO: fewer prompts, more rounds)."""

    @cached_property
    def pairs(self) -> Pairs:
        """The labelled pairs: from the reference, labelled by the gold reward."""
        return self.world.preferences(self.settings.labels, seeded(self.seed, Stream.LABELS), noise=self.settings.noise)

    @cached_property
    def prompts(self) -> Tokens:
        """Prompts for methods that sample."""
        return self.world.draw_prompts(self.PROMPTS, seeded(self.seed, Stream.PROMPTS))

    @cached_property
    def reward(self) -> nn.Module:
        """r_φ, fitted to the labelled pairs."""
        model = self.world.reference.new_reward_model()
        reward_model(model, self.pairs, RewardModel(), self.training(22))
        return model.requires_grad_(False)

    @cached_property
    def learned_rewards(self) -> torch.Tensor:
        """r_φ of every response, (X, K)."""
        model = self.reward
        with torch.no_grad():
            return model(self.world.prompts, self.world.responses).double().cpu()

    def training(self, stream: int, steps: int | None = None) -> Training:
        """Settings of one fit; `stream` keeps the fits' random numbers apart."""
        return Training(
            steps=steps or self.settings.steps,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            seed=1000 * self.seed + stream,
            progress=self.settings.progress and self.settings.policy != "table",
        )

    def fresh(self) -> Policy:
        """A policy at the reference."""
        return self.world.reference.copy()


@dataclass(frozen=True)
class Outcome:
    """What a method learned, and what it spent."""

    policy: Policy | torch.Tensor
    labels: int = 0
    samples: int = 0


def _reference(run: Run) -> Outcome:
    return Outcome(run.world.reference)


def _optimal(run: Run) -> Outcome:
    return Outcome(run.world.optimal(run.settings.beta))


def _plug_in(run: Run) -> Outcome:
    """π_ref exp(r_φ/β)/Z, exactly: the best that any method can do with this reward model."""
    return Outcome(exact.optimal_policy(run.world.log_ref(), run.learned_rewards, run.settings.beta), len(run.pairs))


def _best_of_n(run: Run) -> Outcome:
    return Outcome(exact.best_of_n(run.world.log_ref(), run.learned_rewards, 8), len(run.pairs))


def _sft(run: Run) -> Outcome:
    policy, pairs = run.fresh(), run.pairs
    sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), run.training(1))
    return Outcome(policy, len(pairs))


def _ppo(run: Run) -> Outcome:
    policy = run.fresh()
    critic = policy.new_critic(run.reward)
    # A step's samples stand in one row of a transformer's critic, whose cost grows with their square.
    per_prompt = (256 if run.settings.policy == "table" else 64) // run.world.num_prompts
    settings = PPO(beta=run.settings.beta, samples=per_prompt)
    ppo(policy, run.world.reference, run.reward, critic, run.world.prompts, settings, run.training(2))
    return Outcome(policy, len(run.pairs), run.settings.steps * per_prompt * run.world.num_prompts)


def _dpo(loss: PairLoss, stream: int) -> Callable[[Run], Outcome]:
    def method(run: Run) -> Outcome:
        policy = run.fresh()
        dpo(policy, run.world.reference, run.pairs, DPO(loss, run.settings.beta), run.training(stream), loss)
        return Outcome(policy, len(run.pairs))

    return method


def _rso(source: Source, stream: int) -> Callable[[Run], Outcome]:
    def method(run: Run) -> Outcome:
        settings, training = RSO(source, beta=run.settings.beta), run.training(stream)
        pairs, _ = make_pairs(run.world.reference, run.reward, run.prompts, settings, training.seed)
        policy = run.fresh()
        dpo(policy, run.world.reference, pairs, DPO(beta=run.settings.beta), training, source)
        each = settings.candidates if source == "rso-sample-rank" else settings.accepted
        return Outcome(policy, len(run.pairs), each * len(run.prompts))

    return method


def _raft(run: Run) -> Outcome:
    policy, settings = run.fresh(), RAFT(best_of=8)
    raft(policy, run.reward, run.prompts, settings, run.training(7))
    return Outcome(policy, len(run.pairs), settings.best_of * len(run.prompts))


def _rest(run: Run) -> Outcome:
    policy, settings = run.fresh(), ReST(samples=8, thresholds=(0.0, 0.7, 0.8))
    rest(policy, run.reward, run.prompts, settings, run.training(8, max(run.settings.steps // 3, 1)))
    return Outcome(policy, len(run.pairs), settings.samples * len(run.prompts))


def _online(run: Run) -> Outcome:
    policy, settings = run.fresh(), Online(rounds=4, labels=run.settings.labels)

    def collect(now: Policy, number: int, generator: torch.Generator) -> Pairs:
        return run.world.preferences(number, generator, policy=now, noise=run.settings.noise)

    training = run.training(9, max(run.settings.steps // 2, 1))
    online(policy, run.world.reference, collect, DPO(beta=run.settings.beta), settings, training)
    return Outcome(policy, settings.labels, 2 * settings.labels)


@dataclass(frozen=True)
class Method:
    """A row of the comparison."""

    label: str
    run: Callable[[Run], Outcome]
    exact: bool = False
    """Nothing random in it: one run says all."""


METHODS: dict[str, Method] = {
    "reference": Method("π_ref, the SFT policy", _reference, exact=True),
    "optimal": Method("π*, exact", _optimal, exact=True),
    "plug-in": Method("exact optimum of the reward model", _plug_in),
    "sft": Method("SFT on chosen responses", _sft),
    "ppo": Method("PPO on the reward model", _ppo),
    "dpo": Method("DPO (RSO's direct)", _dpo("sigmoid-norm", 3)),
    "dpo-ipo": Method("IPO, τ = β", _dpo("ipo", 4)),
    "dpo-hinge-norm": Method("hinge-norm, γ = β", _dpo("hinge-norm", 5)),
    "rso-sft-sample-rank": Method("RSO, sft-sample-rank", _rso("sft-sample-rank", 6)),
    "rso-rso-sample-rank": Method("RSO, rso-sample-rank", _rso("rso-sample-rank", 10)),
    "raft": Method("RAFT, best of 8", _raft),
    "best-of-n": Method("best of 8, exact", _best_of_n),
    "rest": Method("ReST, τ = 0, .7, .8", _rest),
    "online": Method("online DPO, 4 rounds", _online),
}
"""Every row, in the table's order, by the key that `figures.style` knows."""


@dataclass
class Comparison:
    """What came out.

    Attributes:
        settings: what was asked.
        runs: one row a method and seed.
        summary: one row a method: means and 95% Student-t intervals over seeds.
        frontier: the exact frontier: beta, kl, reward.
    """

    settings: Compare
    runs: pd.DataFrame
    summary: pd.DataFrame
    frontier: pd.DataFrame

    def table(self) -> str:
        """The comparison as text; ± is half the 95% interval over seeds."""
        heads = {
            "reward": "E[r]",
            "kl": "KL to π_ref",
            "objective": "J",
            "regret": "regret",
            "kl_to_optimal": "KL to π*",
        }
        rows = [["method", *heads.values(), "labels", "samples"]]
        for _, row in self.summary.iterrows():
            cells = [f"{row[m]:.4f}{_plus_minus(row, m)}" for m in heads]
            rows.append([str(row["label"]), *cells, f"{row['labels']:,.0f}", f"{row['samples']:,.0f}"])
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def figure(self) -> Figure:
        """The picture: the exact frontier with every method on it, and regret by method."""
        from rlhf_lab.figures.frontier import comparison_figure

        return comparison_figure(self.summary, self.frontier, self.settings.beta)


def _plus_minus(row: pd.Series, metric: str) -> str:
    half = (row[f"{metric}_high"] - row[f"{metric}_low"]) / 2
    return f" ± {half:.4f}" if half == half and half > 0 else ""


def frontier_of(world: FiniteWorld, beta: float) -> pd.DataFrame:
    """The exact frontier of the world, means over prompts, for 200 β's around `beta`."""
    import pandas as pd

    betas = torch.logspace(-2, 2, 200, dtype=torch.float64) * beta
    kl, reward = exact.frontier(world.log_ref(), world.rewards(), betas)
    return pd.DataFrame({"beta": betas, "kl": kl.mean(0), "reward": reward.mean(0)})


def compare(settings: Compare) -> Comparison:
    """Train every method for every seed and evaluate it exactly.

    With `settings.out` each finished (method, seed) is written at once to `runs.jsonl`; a later call with the same
    settings takes it from there. Ctrl-C loses the fit in hand and nothing else.

    Raises:
        LabError: the folder holds other files or a comparison of other settings.
    """
    settings = check_paths(settings)
    with one_thread(settings.policy == "table"), ExitStack() as held:
        try:
            return _compare(settings, held)
        except KeyboardInterrupt as stop:
            if not str(stop) and settings.out is not None:
                stop.args = (f"Stopped. What was finished is in {settings.out}; the same command goes on.",)
            raise


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within it torch uses one thread: a table's tensors are so small that a second one only waits."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare(settings: Compare, held: ExitStack) -> Comparison:
    import pandas as pd

    from rlhf_lab.experiments.statistics import summarise

    keys = settings.methods or tuple(METHODS)
    done: dict[tuple[str, int], dict] = {}
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
    rows = []
    todo = [(key, seed) for seed in range(settings.seeds) for key in keys if seed == 0 or not METHODS[key].exact]
    bar = tqdm(todo, desc=f"compare, {settings.world}", disable=not settings.progress)
    run: Run | None = None
    for key, seed in bar:
        if (key, seed) not in done:
            bar.set_postfix_str(f"{key}, seed {seed}")
            if run is None or run.seed != seed:
                run = Run(settings, world, seed)
            outcome = METHODS[key].run(run)
            numbers = asdict(evaluate(outcome.policy, world, settings.beta))
            row = {"method": key, "seed": seed, **numbers, "labels": outcome.labels, "samples": outcome.samples}
            done[key, seed] = row
            if journal is not None:
                append(journal, json.dumps(row) + "\n")
        rows.append(done[key, seed])
    runs = pd.DataFrame(rows)
    order = {key: place for place, key in enumerate(keys)}
    runs = runs.sort_values(
        ["method", "seed"], key=lambda c: c.map(order) if c.name == "method" else c, ignore_index=True
    )
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
    print(f"{settings.make_world().name}, β = {settings.beta:g}, {settings.seeds} seeds")
    print(comparison.table())
    if settings.out is not None:
        save(comparison, settings.out)
        print(f"\nTable, settings and picture are in {settings.out}.")
