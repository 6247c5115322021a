"""Claim 8: DPO is easy to train and saves memory, with mixed results. Measured at equal reward.

Every method starts from π_ref, has the same labels (or the reward model fitted to them), as many optimiser steps,
and the same number R of responses in a step and in a draw. While it trains it is looked at, its clock stopped: so that
one can read at which cost it first reached a reward that was fixed before. Seconds are those of the processor on one
thread, which other programs hardly lengthen; they are of one machine. Memory is the peak that the system counts for a
process of its own (VmHWM).
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.online import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.checks import LabError, check_beta
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments import experiment, language
from rlhf_lab.experiments.compare import Compare
from rlhf_lab.experiments.experiment import EXACT_RUNGS, Chosen, Experiment, Job, Settings, Verdict
from rlhf_lab.experiments.statistics import Interval, bootstrap, difference, mean_interval, summarise
from rlhf_lab.experiments.watch import watching
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training, seeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TRAINED = ("sft", "dpo", "ppo", "rso-rso-sample-rank", "raft", "rest", "online")
"""Methods that train a policy; best-of-n pays when it answers."""
BEST_OF = 8
SEARCH_SEED = 1000


@dataclass(frozen=True)
class Parts:
    """What a method holds in memory at its largest stage, beside the policy it trains."""

    critic: bool = False
    """A second network that is trained."""
    reference: bool = False
    reward: bool = False
    """A frozen reward model, fitted before."""
    draws: bool = False
    """Whether it draws responses while it trains."""

    @property
    def networks(self) -> int:
        """How many networks that is, the policy included."""
        return 1 + self.critic + self.reference + self.reward


PARTS = {
    "sft": Parts(),
    "dpo": Parts(reference=True),
    "ppo": Parts(critic=True, reference=True, reward=True, draws=True),
    "rso-rso-sample-rank": Parts(reference=True, reward=True, draws=True),
    "raft": Parts(reward=True, draws=True),
    "rest": Parts(reward=True, draws=True),
    "online": Parts(reference=True, draws=True),
}


@dataclass(frozen=True)
class Cost(Settings):
    """Seconds, memory, samples and luck of each method, at equal reward."""

    beta: float = 0.5
    """β of the objective."""
    labels: int = 0
    """Preference labels. 0: 2,000 on the bandit, 5,000 on the tree, 512 on text."""
    responses: int = 0
    """R, responses in an optimiser step (two of them are a pair), and drawn at a time. 0: 1,024, 128, 32."""
    steps: int = 0
    """Optimiser steps of every method. 0: 100 on the bandit, 80 on the tree, 32 on text."""
    reward_steps: int = 0
    """Optimiser steps of the reward model. 0: 150 on the bandit, 80 else."""
    prompts: int = 0
    """Prompts that RSO, RAFT and ReST answer. 0: 500, on text 64."""
    looks: int = 0
    """How often a policy is looked at on its way. 0: 25 on the bandit, 16 on the tree, 4 on text."""
    rates: tuple[float, ...] = ()
    """Learning rates of the search, the same for every method."""
    test_prompts: int = 64
    """Text: test prompts of each look."""
    test_samples: int = 2
    """Text: responses to each."""
    memory_steps: int = 0
    """Text: optimiser steps of the runs whose memory is measured. 0: 4."""
    world: str = "sentiment"
    """Text: which world."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.rung if self.rung in EXACT_RUNGS else "text"
        full: dict[str, tuple[Any, Any, Any]] = {
            "seeds": (10, 5, 3),
            "labels": (2000, 5000, 512),
            "responses": (1024, 128, 32),
            "steps": (100, 80, 32),
            "reward_steps": (150, 80, 80),
            "prompts": (500, 500, 64),
            "looks": (25, 16, 4),
            "rates": ((0.02, 0.05, 0.15), (0.001, 0.003), (0.0003, 0.001)),
            "memory_steps": (1, 1, 4),
        }
        quick: dict[str, tuple[Any, Any, Any]] = {
            "seeds": (3, 2, 2),
            "labels": (300, 100, 16),
            "responses": (128, 16, 8),
            "steps": (12, 4, 2),
            "reward_steps": (12, 4, 2),
            "prompts": (32, 8, 4),
            "looks": (6, 2, 1),
            "rates": ((0.05, 0.15), (0.003,), (0.001,)),
            "memory_steps": (1, 1, 2),
        }
        column = ("bandit", "tree", "text").index(kind)
        for name, values in (quick if self.quick else full).items():
            if not getattr(self, name):
                object.__setattr__(self, name, values[column])
        object.__setattr__(self, "rates", tuple(self.rates))
        if self.quick and kind == "text":
            object.__setattr__(self, "test_prompts", min(self.test_prompts, 6))
        check_beta(self.beta)
        if self.responses < 8 or self.responses % 8 or self.labels < 8 or min(self.rates) <= 0:
            raise LabError("cost needs a multiple of 8 responses a step, 8 labels at least, and rates above 0.")


# ----------------------------------------------------------------------------------------- what a seed's methods share


@dataclass(eq=False)
class Ground:
    """One seed on one rung."""

    settings: Cost
    seed: int
    split: str = "test"

    @cached_property
    def _world(self) -> Any:
        return Compare(world="bandit" if self.settings.rung == "bandit" else "tree").make_world()

    @cached_property
    def _text(self) -> language.TextRun:
        s = self.settings
        plan = language.Plan(labels=s.labels, prompts=s.prompts, beta=s.beta)
        return language.TextRun(language.bench(s.rung, s.world), plan, self.seed)

    @property
    def on_text(self) -> bool:
        """Whether the rung is a language model."""
        return self.settings.rung not in EXACT_RUNGS

    @property
    def reference(self) -> Policy:
        """π_ref, frozen."""
        return self._text.bench.reference if self.on_text else self._world.reference

    @cached_property
    def pairs(self) -> Pairs:
        """The labelled pairs."""
        return (
            self._text.pairs if self.on_text else self._world.preferences(self.settings.labels, seeded(self.seed, 20))
        )

    @cached_property
    def prompts(self) -> Tokens:
        """Prompts for methods that sample."""
        if self.on_text:
            return self._text.prompts
        return self._world.draw_prompts(self.settings.prompts, seeded(self.seed, 21))

    def collect(self, policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """`number` labels of the policy's own responses."""
        if not self.on_text:
            return self._world.preferences(number, generator, policy=policy)
        made = self._text.bench
        return made.world.preferences(policy, made.tokenizer, "train", number, generator, made.unit, progress=False)[0]

    @cached_property
    def fitted(self) -> tuple[nn.Module, float]:
        """r_φ, frozen, and the seconds of its fit."""
        pairs, begin = self.pairs, time.process_time()
        model, s = self.reference.new_reward_model(), self.settings
        rate = {"bandit": 0.05, "tree": 0.003}.get(s.rung, 1e-3)
        training = self.training(22, s.reward_steps, s.responses // 2, rate)
        reward_model(model, pairs, RewardModel(), training)
        return model.requires_grad_(False), time.process_time() - begin

    def training(self, stream: int, steps: int, batch: int, rate: float) -> Training:
        """Settings of one fit."""
        return Training(
            steps=steps, batch_size=batch, learning_rate=rate, max_grad_norm=1.0,
            seed=1000 * self.seed + stream, progress=False,
        )  # fmt: skip

    @torch.no_grad()
    def score(self, policy: Policy) -> dict[str, float]:
        """Gold reward, KL and J: exact, or from samples of the split's prompts."""
        if not self.on_text:
            found = evaluate(policy, self._world, self.settings.beta)
            return {"reward": found.reward, "kl": found.kl, "objective": found.objective}
        run, s = self._text, self.settings
        run.plan = replace(run.plan, test_prompts=s.test_prompts, test_samples=s.test_samples)
        found_text = language.measure(run, policy, split=self.split)
        return {name: found_text[name] for name in ("reward", "kl", "objective")}

    @cached_property
    def best_of(self) -> dict[int, float]:
        """Gold reward of the best of n by r_φ, for n = 1, 2, 4, …, 2 · `BEST_OF`."""
        model, _ = self.fitted
        sizes = [2**k for k in range(int(math.log2(2 * BEST_OF)) + 1)]
        if not self.on_text:
            world = self._world
            with torch.no_grad():
                learned = model(world.prompts, world.responses).double().cpu()
            log_ref, gold = world.log_ref(), world.rewards()
            return {n: (exact.best_of_n(log_ref, learned, n).exp() * gold).sum(-1).mean().item() for n in sizes}
        made = self._text.bench
        x = made.world.prompts(made.tokenizer, self.split, self.settings.test_prompts)
        with torch.no_grad():
            y = made.reference.sample(x, 2 * BEST_OF, seeded(self.seed, 33, device=made.reference.device))
            score, gold = model(x, y).double().cpu(), made.gold(x, y)
        out = {}
        for n in sizes:  # disjoint groups of n: every draw is used for each n
            best = score.view(len(x), -1, n).argmax(-1, keepdim=True)
            out[n] = gold.view(len(x), -1, n).gather(-1, best).mean().item()
        return out

    @cached_property
    def level(self) -> tuple[float, float]:
        """The reward of π_ref and the level: halfway to π*'s reward, on text halfway to best-of-8's."""
        if self.on_text:
            start, top = self.best_of[1], self.best_of[BEST_OF]
        else:
            start = self.score(self.reference)["reward"]
            log_star = self._world.optimal(self.settings.beta)
            top = (log_star.exp() * self._world.rewards()).sum(-1).mean().item()
        return start, start + (top - start) / 2


@lru_cache(maxsize=1)
def _ground(settings: Cost, seed: int, split: str = "test") -> Ground:
    return Ground(settings, seed, split)


# ------------------------------------------------------------------------------------------------------------ methods


def train(method: str, ground: Ground, policy: Policy, model: nn.Module | None, rate: float, meter: Meter) -> None:
    """Train `policy` in place by `method`: the same number of optimiser steps, and of responses in each, for all."""
    s = ground.settings
    steps, many, beta, reference = s.steps, s.responses, s.beta, ground.reference

    def fit(stream: int, batch: int, number: int = steps) -> Training:
        return ground.training(stream, max(number, 1), batch, rate)

    if method == "sft":
        pairs = ground.pairs
        sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), fit(1, many))
    elif method == "dpo":
        dpo(policy, reference, ground.pairs, DPO(beta=beta), fit(3, many // 2))
    elif method == "ppo":
        assert model is not None
        critic = reference.new_critic(model.requires_grad_(True))
        model.requires_grad_(False)
        settings = PPO(beta=beta, samples=4, epochs=2)
        ppo(policy, reference, model, critic, ground.prompts, settings, fit(2, many // 4, steps // 2))
    elif method == "rso-rso-sample-rank":
        assert model is not None
        rso = RSO(beta=beta, candidates=32, accepted=8, prompts_at_once=max(many // 32, 1))
        pairs, _ = make_pairs(reference, model, ground.prompts, rso, 1000 * ground.seed + 10)
        dpo(policy, reference, pairs, DPO(beta=beta), fit(10, many // 2))
    elif method == "raft":
        assert model is not None
        raft(policy, model, ground.prompts, RAFT(best_of=8, prompts_at_once=max(many // 8, 1)), fit(7, many))
    elif method == "rest":
        assert model is not None
        thresholds = (0.0, 0.7)
        rest_settings = ReST(samples=8, thresholds=thresholds, prompts_at_once=max(many // 8, 1))
        rest(policy, model, ground.prompts, rest_settings, fit(8, many, steps // len(thresholds)))
    elif method == "online":

        def collect(now: Policy, number: int, generator: torch.Generator) -> Pairs:
            # A finite world draws more than it labels, all at once; two responses a label is what is needed.
            with meter.uncounted():
                fresh = ground.collect(now, number, generator)
            meter.samples += 2 * number
            return fresh

        rounds = min(4, steps)
        online(
            policy, reference, collect, DPO(beta=beta), Online(rounds=rounds, labels=s.labels),
            fit(9, many // 2, steps // rounds),
        )  # fmt: skip
    else:
        raise LabError(f"cost knows no method {method!r}; it trains {', '.join(TRAINED)}.")


class Meter:
    """Counts responses drawn and the processor's seconds, and stops its clock where it is told to."""

    def __init__(self, *policies: Policy) -> None:
        self.policies, self.samples, self._counting = policies, 0, True
        self._begin, self._spent = 0.0, 0.0

    def __enter__(self) -> Meter:
        for policy in self.policies:
            policy.__dict__["sample"] = self._counted(policy.sample)
        self._begin = time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        for policy in self.policies:
            policy.__dict__.pop("sample", None)

    def _counted(self, usual: Callable[..., Tokens]) -> Callable[..., Tokens]:
        def sample(*args: Any, **kwargs: Any) -> Tokens:
            drawn = usual(*args, **kwargs)
            if self._counting:
                self.samples += drawn.shape[0] * drawn.shape[1]
            return drawn

        return sample

    @property
    def seconds(self) -> float:
        """Of the processor, since the beginning, without the looks."""
        return time.process_time() - self._begin - self._spent

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Draws within it do not count."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Neither draws nor seconds within it count."""
        begin = time.process_time()
        with self.uncounted():
            yield
        self._spent += time.process_time() - begin


def held_bytes(ground: Ground, method: str, model: nn.Module | None = None) -> int:
    """Bytes of weights, gradients, Adam's moments and frozen networks at a method's largest stage.

    Four numbers for each weight that is trained, one for each that is frozen. A method with a reward model had to fit
    it first, which holds four for each of its weights and nothing else.
    """
    policy, parts = _size(ground.reference), PARTS[method]
    scorer = _size(model if model is not None else ground.reference.new_reward_model())
    trained = policy + (_size(ground.reference.new_critic()) if parts.critic else 0)
    stage = 4 * trained + (policy if parts.reference else 0) + (scorer if parts.reward else 0)
    return max(stage, 4 * scorer if parts.reward else 0)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


# --------------------------------------------------------------------------------------------------------------- jobs


def _tries(settings: Cost) -> list[Job]:
    return [{"seed": SEARCH_SEED, "method": m, "rate": rate} for m in TRAINED for rate in settings.rates]


def _choose(settings: Cost, tries: pd.DataFrame) -> Chosen:
    """The rate with the highest J at the end, gold reward, on the search's seed."""
    best = tries.loc[tries.groupby("method")["objective"].idxmax()]
    return dict(zip(best["method"], best["rate"], strict=True))


def _jobs(settings: Cost) -> list[Job]:
    jobs: list[Job] = []
    for seed in range(settings.seeds):
        jobs += [{"seed": seed, "method": m} for m in (*TRAINED, "best-of-n")]
        if settings.rung not in EXACT_RUNGS:
            measured = TRAINED if seed == 0 and not settings.quick else ("dpo", "ppo")
            jobs += [{"seed": seed, "method": m, "measure": "memory"} for m in measured]
    return jobs


def _run(settings: Cost, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    if job.get("measure") == "memory":
        return [_memory(settings, job["seed"], job["method"])]
    if "rate" in job:
        ground = _ground(settings, job["seed"], "validation")
        return [_course(settings, ground, job["method"], job["rate"], looks=1)[-1]]
    ground = _ground(settings, job["seed"])
    if job["method"] == "best-of-n":
        return [_best_of_n(ground)]
    return _course(settings, ground, job["method"], chosen[job["method"]], settings.looks)


def _course(settings: Cost, ground: Ground, method: str, rate: float, looks: int) -> list[dict[str, Any]]:
    parts = PARTS[method]
    model, before = ground.fitted if parts.reward else (None, 0.0)
    searching = ground.split == "validation"
    start, level = (math.nan, math.nan) if searching else ground.level
    _ = ground.pairs, ground.prompts  # drawn before the clock starts: they are the same for all
    policy = ground.reference.copy()
    every = max(settings.steps // looks, 1)
    rows: list[dict[str, Any]] = []
    meter = Meter(policy, ground.reference)

    def look(now: Policy, step: int) -> None:
        with meter.stopped():
            numbers = {"seconds": before + meter.seconds, "samples": meter.samples, **ground.score(now)}
        rows.append({"when": f"step {step}", "step": step, **numbers})

    def see(now: Policy, step: int) -> None:
        if step and step % every == 0 and not searching:
            look(now, step)

    with watching(see) as watch, meter:
        watch.follow(policy)
        train(method, ground, policy, model, rate, meter)
        if not rows or rows[-1]["step"] != watch.steps:  # a method that shares its steps out may take a few less
            look(policy, watch.steps)
    reached = next((row for row in rows if row["reward"] >= level), None)
    last = rows[-1]
    end = {
        **last, "when": "end", "start": start, "level": level, "reached": int(reached is not None),
        "to_seconds": reached["seconds"] if reached else math.nan,
        "to_samples": reached["samples"] if reached else math.nan,
        "to_steps": reached["step"] if reached else math.nan,
        "labels": settings.labels, "networks": parts.networks, "held": held_bytes(ground, method, model) / 2**20,
        "an_answer": 1,
    }  # fmt: skip
    return [*rows, end]


def _best_of_n(ground: Ground) -> dict[str, Any]:
    """No training: the price is n responses, scored, for every answer."""
    model, before = ground.fitted
    start, level = ground.level
    n = next((n for n, reward in ground.best_of.items() if n > 1 and reward >= level), None)
    reached = n is not None
    held = max(_size(ground.reference) + _size(model), 4 * _size(model))
    return {
        "when": "end", "step": 0, "seconds": before, "samples": 0, "reward": ground.best_of[BEST_OF],
        "kl": math.nan, "objective": math.nan, "start": start, "level": level, "reached": int(reached),
        "to_seconds": before if reached else math.nan, "to_samples": 0 if reached else math.nan,
        "to_steps": 0 if reached else math.nan, "labels": ground.settings.labels, "networks": 2,
        "held": held / 2**20, "an_answer": n if reached else math.nan,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- memory


def _memory(settings: Cost, seed: int, method: str) -> dict[str, Any]:
    """Peak memory of a few steps in a process of its own, above that of the process with its libraries."""
    told = {k: v for k, v in asdict(settings).items() if k not in ("out", "workers", "progress")}
    told |= {
        "labels": max(settings.responses, 16), "steps": settings.memory_steps, "reward_steps": 1,
        "prompts": max(settings.responses // 4, 2),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lab.experiments.cost", json.dumps([told, seed, method])],
        capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"The memory of {method} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    libraries, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return {"when": "memory", "libraries": libraries, "peak": peak, "own": peak - libraries}


def _status(name: str) -> float:
    """A line of the system's account of this process, MiB; NaN where there is no such account (not Linux)."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return math.nan
    line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name)), None)
    return math.nan if line is None else int(line.split()[1]) / 1024


def _forget_peak() -> None:
    """Let the count of the peak start again from what is held now, where the system allows it."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measured(told: dict[str, Any], seed: int, method: str) -> tuple[float, float]:
    """MiB of this process with its libraries, and its peak while it trains by `method`. For a process of its own."""
    import transformers  # noqa: F401  (counted among the libraries)

    torch.set_num_threads(1)
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    ground = Ground(Cost(**told, progress=False), seed)
    libraries = _status("VmRSS")
    reference = ground.reference
    _ = ground.pairs, ground.prompts
    # What it says plays no part in how much it holds: a reward model as it is before its fit.
    model = reference.new_reward_model().requires_grad_(False) if PARTS[method].reward else None
    policy = reference.copy()
    _forget_peak()
    meter = Meter()
    train(method, ground, policy, model, told["rates"][0], meter)
    return libraries, _status("VmHWM")


# ------------------------------------------------------------------------------------------------- summary and verdict

METRICS = ["reward", "kl", "objective", "seconds", "samples", "step"]
AT_END = ["reached", "to_seconds", "to_samples", "to_steps", "held", "networks", "an_answer", "level", "start"]


def _summarise(settings: Cost, runs: pd.DataFrame) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    trained = runs[runs["when"] != "memory"]
    steps = summarise(trained[trained["when"] != "end"], ["method", "when"], METRICS)
    end = summarise(trained[trained["when"] == "end"], ["method", "when"], METRICS + AT_END)
    groups = trained[trained["when"] == "end"].groupby("method", sort=False)
    for row, (_, part) in zip(end.index, groups, strict=True):
        luck = bootstrap(part["objective"].to_numpy(), lambda v: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)
        end.loc[row, ["spread", "spread_low", "spread_high"]] = list(luck)
        for name in ("to_seconds", "to_samples", "to_steps", "an_answer"):  # of the seeds that got there
            there = part[name].dropna().to_numpy()
            end.loc[row, [name, f"{name}_low", f"{name}_high"]] = mean_interval(there) if len(there) else math.nan
    tables = [steps, end]
    if (runs["when"] == "memory").any():
        tables.append(summarise(runs[runs["when"] == "memory"], ["method", "when"], ["own", "peak", "libraries"]))
    return pd.concat(tables, ignore_index=True)


def memory_ratio(runs: pd.DataFrame) -> Interval:
    """DPO's memory over PPO's: measured, geometric mean over seeds with t interval; else from the weights, exact."""
    import numpy as np

    part = runs[runs["when"] == "memory"]
    if part.empty:
        held = runs[runs["when"] == "end"].groupby("method")["held"].first()
        share = held["dpo"] / held["ppo"]
        return Interval(share, share, share)
    wide = part.pivot(index="seed", columns="method", values="own")[["dpo", "ppo"]].dropna()
    return Interval(*(math.exp(v) for v in mean_interval(np.log((wide["dpo"] / wide["ppo"]).to_numpy()))))


def against(runs: pd.DataFrame) -> dict[str, Interval]:
    """J of DPO at the end less that of each other trained method, paired within the seed."""
    end = runs[runs["when"] == "end"]
    return {m: difference(end, "method", "dpo", m, "objective") for m in TRAINED if m != "dpo"}


def _end(summary: pd.DataFrame, method: str, metric: str) -> Interval:
    row = summary[(summary["method"] == method) & (summary["when"] == "end")].iloc[0]
    return Interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


def _names(methods: list[str]) -> str:
    from rlhf_lab.figures import style

    names = [style.label(m) for m in methods]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _judge(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    ratio, gaps = memory_ratio(runs), against(runs)
    drawn = {m: _end(summary, m, "samples").mean for m in ("dpo", "ppo")}
    easy = drawn["dpo"] == 0 and drawn["ppo"] > 0
    ahead, behind = [m for m, gap in gaps.items() if gap.above], [m for m, gap in gaps.items() if gap.below]
    cost = (
        f"DPO draws {drawn['dpo']:.0f} responses while it trains, PPO {drawn['ppo']:,.0f}, and holds {ratio.mean:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}] of PPO's memory"
    )
    place = [f"clearly above {_names(ahead)}"] if ahead else []
    place += [f"clearly below {_names(behind)}"] if behind else []
    result = f"its J ends {' and '.join(place)}" if place else "its J is clearly apart from no other method's"
    if not easy or ratio.low > 1:
        return Verdict("does not hold", f"{cost}; {result}.")
    if not ratio.high < 1:
        return Verdict("not decided", f"The interval of the memory's ratio reaches 1: {cost}; {result}.")
    if ahead and behind:
        return Verdict("holds", f"{cost}; {result}.")
    if ahead or behind:
        return Verdict("holds when", f"when “mixed” is left out, for here the results are not: {cost}; {result}.")
    return Verdict("holds when", f"when “mixed” is left out, which these seeds do not decide: {cost}; {result}.")


# ------------------------------------------------------------------------------------------------------ picture, words


def _figure(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    with style.use():
        drawing, (one, two, three) = style.subplots(1, 3, 15, 5.2)
        level, start = _end(summary, "dpo", "level").mean, _end(summary, "dpo", "start").mean
        for method in TRAINED:
            part = summary[(summary["method"] == method) & summary["when"].str.startswith("step")]
            look = style.of(method)
            one.plot(
                part["seconds"], part["reward"], color=look.light, marker=look.marker, ls=look.dash, ms=4,
                label=look.label,
            )  # fmt: skip
        one.axhline(level, color=style.colour("optimal"), ls="--", lw=1.2, label="equal reward")
        one.axhline(start, color=style.colour("reference"), ls=":", lw=1.2, label="π_ref")
        one.set(
            xlabel="processor seconds, one thread", ylabel="gold reward (units of a label)", xscale="log",
            title="Reward on the way",
        )  # fmt: skip
        drawing.legend(*one.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        _panel_of_luck(two, runs)
        _panel_of_memory(three, settings, summary)
    return drawing


def _panel_of_luck(axes: Any, runs: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    end = runs[runs["when"] == "end"]
    for place, method in enumerate(TRAINED):
        values = end[end["method"] == method]["objective"].to_numpy()
        mean, low, high = mean_interval(values)
        look = style.of(method)
        axes.plot([place] * len(values), values, look.marker, color=look.light, ms=4, alpha=0.45)
        axes.errorbar(
            place + 0.22,
            mean,
            [[max(mean - low, 0)], [max(high - mean, 0)]],
            fmt=look.marker,
            color=look.light,
            capsize=4,
        )
    axes.set_xticks(range(len(TRAINED)), [_short(m) for m in TRAINED], rotation=40, ha="right", fontsize=10)
    axes.set(xlabel="method", ylabel="J at the end (units of a label)", title="Luck: each seed, mean, 95%")


def _panel_of_memory(axes: Any, settings: Cost, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    places = range(len(TRAINED))
    unit = 1024 if settings.rung in EXACT_RUNGS else 1
    held = [_end(summary, m, "held").mean * unit for m in TRAINED]
    axes.bar(places, held, 0.6, color=[style.colour(m) for m in TRAINED])
    found = summary[summary["when"] == "memory"]
    for place, method in enumerate(TRAINED):
        row = found[found["method"] == method]
        if len(row):
            axes.plot(place, row["own"].iloc[0], "D", color=style.colour("optimal"), ms=6)
    what = "bars: weights, gradients, Adam" + ("; ◆ measured peak" if len(found) else "")
    axes.set_xticks(places, [_short(m) for m in TRAINED], rotation=40, ha="right", fontsize=10)
    axes.set(xlabel=f"method ({what})", ylabel=f"memory ({'KiB' if unit > 1 else 'MiB'})", title="Memory held")
    axes.xaxis.label.set_size(10)


def _short(method: str) -> str:
    from rlhf_lab.figures import style

    return "RSO" if method.startswith("rso") else style.label(method)


def _words(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    ends = "; ".join(
        f"{_short(m)} {_end(summary, m, 'objective')}, {_end(summary, m, 'seconds').mean:.3g} s, "
        f"{_held(settings, summary, m)}"
        for m in TRAINED
    )
    out = f"J at the end with its interval over seeds, processor seconds, and memory held: {ends}."
    found = summary[summary["when"] == "memory"]
    if len(found):
        out += " Measured peak above the libraries, MiB: "
        out += "; ".join(f"{_short(str(row['method']))} {float(row['own']):.0f}" for _, row in found.iterrows()) + "."
    return out


def _held(settings: Cost, summary: pd.DataFrame, method: str) -> str:
    held = _end(summary, method, "held").mean
    return f"{held:.1f} MiB" if held >= 1 else f"{held * 1024:.1f} KiB"


def _text(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    exactly = settings.rung in EXACT_RUNGS
    level, start = _end(summary, "dpo", "level").mean, _end(summary, "dpo", "start").mean
    goal = "π*'s" if exactly else f"the best of {BEST_OF}'s"
    out = (
        f"Every method had {settings.labels:,} labels, {settings.steps} optimiser steps of {settings.responses} "
        f"responses and the rate that the same search of {len(settings.rates)} chose for it; {settings.seeds} seeds. "
        f"Equal "
        f"reward is {level:.3g}, halfway from π_ref's {start:.3g} to {goal}. "
    )
    reached = {m: _end(summary, m, "reached").mean for m in (*TRAINED, "best-of-n")}
    costs = [
        f"{_short(m)} {_end(summary, m, 'to_seconds').mean:.3g} s, {_end(summary, m, 'to_samples').mean:,.0f} responses"
        for m in sorted(TRAINED, key=lambda m: _end(summary, m, "to_seconds").mean)
        if reached[m] > 0
    ]
    if costs:
        out += f"To get there it took (reward model included, means of the seeds that did): {'; '.join(costs)}. "
    never = [_short(m) for m in TRAINED if reached[m] == 0]
    some = [f"{_short(m)} in {reached[m]:.0%} of the seeds" for m in TRAINED if 0 < reached[m] < 1]
    out += f"Never there: {', '.join(never)}. " if never else "All methods got there in some seed. "
    out += f"Not always: {', '.join(some)}. " if some else ""
    if reached["best-of-n"] > 0:
        n = _end(summary, "best-of-n", "an_answer").mean
        out += f"Best-of-n trains no policy and needs n = {n:.2g} responses for every answer, for ever. "
    gap, ratio = against(runs)["ppo"], memory_ratio(runs)
    out += (
        f"While it trains DPO has {PARTS['dpo'].networks} networks at hand and draws nothing, PPO "
        f"{PARTS['ppo'].networks} and draws {_end(summary, 'ppo', 'samples').mean:,.0f} responses. "
    )
    if exactly:
        out += (
            f"Weights, gradients, Adam's moments and frozen networks are {_held(settings, summary, 'dpo')} against "
            f"{_held(settings, summary, 'ppo')}, a share of {ratio.mean:.2f}; a peak is not measured here, where "
            f"Python "
            f"itself is larger by orders. "
        )
    else:
        found = summary[summary["when"] == "memory"]
        own = dict(zip(found["method"].astype(str), found["own"].astype(float), strict=True))
        out += (
            f"The measured peak above the libraries is {own['dpo']:.0f} MiB against "
            f"{own['ppo']:.0f}, a share of {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]; weights, "
            f"gradients, Adam and frozen networks are {_held(settings, summary, 'dpo')} and "
            f"{_held(settings, summary, 'ppo')} of it, the rest activations. "
        )
    luck = sorted(TRAINED, key=lambda m: _end(summary, m, "spread").mean)
    place = "clearly above" if gap.above else "clearly below" if gap.below else "not clearly apart from"
    out += (
        f"J of DPO is {place} PPO's ({gap}). From seed to seed J moves by {_end(summary, luck[0], 'spread').mean:.2g} "
        f"({_short(luck[0])}, the steadiest) to {_end(summary, luck[-1], 'spread').mean:.2g} ({_short(luck[-1])}), "
        f"DPO's by "
        f"{_end(summary, 'dpo', 'spread')} (standard deviation, bootstrap). "
    )
    return out + f"Seconds are the processor's, on one thread of one machine ({platform.machine()})."


EXPERIMENT = Experiment(
    number=8,
    name="cost",
    title="DPO is easy to train and saves memory; its results are mixed",
    says="“Advantage: easy to train (no inference while training), saves GPU memory. Disadvantage: mixed results.” "
    "No number is "
    "given.",
    source="Lecture, “Compared to PPO”, “Conclusion”; Rafailov et al. 2023, sections 1 and 4.",
    asks="Seconds, responses drawn, labels, memory, and the spread over seeds of SFT, DPO, PPO, RSO, RAFT, ReST and "
    "online "
    "DPO, with best-of-n beside them, which pays when it answers. Costs are read where a method first reaches the same "
    "gold reward: halfway from π_ref to π* on finite worlds, to the best of 8 by the reward model on text. All take "
    "the same number of optimiser steps, with the same number of responses in each and drawn at a time.",
    rule="Three parts. Easy: DPO draws no response while it trains, and PPO does. Saves memory: DPO's memory over "
    "PPO's is "
    "below 1, on text the measured peak with its interval, on finite worlds the bytes of networks, gradients and Adam, "
    "which are exact. Mixed: at the end DPO's J is clearly above that of one other trained method and clearly below "
    "that of another (paired 95% intervals). All three: holds. The first two alone: “holds when”. One of the first two "
    "clearly the other way: does not hold. A memory ratio whose interval reaches 1: not decided.",
    settings=Cost,
    rungs=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    judge=_judge,
    figure=_figure,
    words=_words,
    text=_text,
    interval="95% Student-t over seeds; of the spread, percentile bootstrap",
    tries=_tries,
    choose=_choose,
)


def main(settings: Cost) -> None:
    """The command `rlhf-lab experiment cost`."""
    experiment.main(EXPERIMENT, settings)


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
