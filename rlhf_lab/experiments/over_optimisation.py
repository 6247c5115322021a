"""Claim 7: the proxy's reward rises while the gold reward falls, and more labels put off the turn.

A road is a row of places on the way to the most proxy reward: PPO, DPO and RSO while they train at a small β, best of
n as n grows, and on the exact rungs the optimum of the proxy as β falls, which no method outruns. Everything on the
exact rungs is enumerated. A turn is a fall of gold from its peak to the road's end. The peak is looked for on the
other seeds, never on the one whose fall is counted: the highest of many noisy places is high by luck too.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lab import exact
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.batch import Tokens
from rlhf_lab.checks import LabError, check_beta, check_finite
from rlhf_lab.experiments import compare, experiment, language
from rlhf_lab.experiments.compare import Compare, Run
from rlhf_lab.experiments.experiment import Chosen, Experiment, Job, Settings, Verdict
from rlhf_lab.experiments.language import Plan, TextRun, bench, measure
from rlhf_lab.experiments.statistics import Interval, mean_interval, summarise
from rlhf_lab.experiments.watch import Watch, watching
from rlhf_lab.figures import style
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.world import World

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WORLD = "summaries"
"""Chosen before any run: its gold weighs facts against words and against inventions, so a reward model that has
learned one side of the bargain can be led past the best. On sentiment more is nearly always better."""
TRAINED = {"ppo": "PPO", "dpo": "DPO", "rso": "RSO"}
KEYS = {"ppo": "ppo", "dpo": "dpo", "rso": "rso-rso-sample-rank"}
METHODS = ("best-of-n", "ppo", "dpo", "rso")
"""The four of the claim, in the order of the verdict."""
KINDS = {
    "full": "can be any reward",
    "noisy": "the same, some labels turned round",
    "limited": "sees a part of what gold sees",
}
"""Reward models of the exact rungs."""
MARGIN = 0.1
"""A road does not turn if its fall is surely less than this share of what gold gained on it."""
FAR = 1.0
"""√KL, √nats, that a road must reach before it can be said not to turn."""
FEATURES = 8


@dataclass(frozen=True)
class OverOptimisation(Settings):
    """Gold and proxy along the roads of PPO, DPO, RSO and best of n, for reward models of few and of many labels."""

    labels: tuple[int, ...] = ()
    """Labels of the reward models, rising. (): 50 200 800 3200; tree 500 2000 8000; a language model 64 512."""
    noise: float = 0.25
    """Share of labels turned round for the kind "noisy", exact rungs only."""
    beta: float = 0.0
    """β at which PPO, DPO and RSO train: small, so that they go far. 0: 0.05."""
    steps: int = 0
    """Optimiser steps of DPO and RSO, rounds of PPO. 0: 200; a language model 64, PPO half of it."""
    places: int = 0
    """Places of a trained road, evenly spread over its steps. 0: 20; a language model 4."""
    rate: float = 0.0
    """Learning rate of every fit. 0: 0.05; a language model 3e-4."""
    reward_steps: int = 0
    """Optimiser steps of a reward model. 0: 200; a language model 80."""
    prompts: int = 0
    """Prompts that PPO and RSO answer. 0: 500; a language model 64."""
    most: int = 0
    """Largest n of best of n. 0: 4,096 (exact); a language model 64."""
    test_prompts: int = 0
    """Test prompts of a language model. 0: 64."""
    test_samples: int = 0
    """Responses to each, at every place. 0: 4."""

    def __post_init__(self) -> None:
        exactly, tree, quick = self.rung in experiment.EXACT_RUNGS, self.rung == "tree", self.quick
        if not self.labels:
            usual = ((500, 2000, 8000) if tree else (50, 200, 800, 3200)) if exactly else (64, 512)
            object.__setattr__(self, "labels", ((50, 200) if exactly else (16, 32)) if quick else usual)
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 12 if self.rung == "bandit" else 5 if tree else 3,
            "beta": 0.05,
            "steps": (20 if exactly else 2) if quick else 200 if exactly else 64,
            "places": (4 if exactly else 1) if quick else 20 if exactly else 4,
            "rate": 0.05 if exactly else 3e-4,
            "reward_steps": (20 if exactly else 2) if quick else 200 if exactly else 80,
            "prompts": (30 if exactly else 4) if quick else 500 if exactly else 64,
            "most": (64 if exactly else 4) if quick else 4096 if exactly else 64,
            "test_prompts": 4 if quick else 64,
            "test_samples": 2 if quick else 4,
        }
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        if len(self.labels) < 2 or list(self.labels) != sorted(set(self.labels)) or self.labels[0] < 8:
            raise LabError(f"labels must be two numbers or more, rising from 8 or more, not {self.labels}.")
        if not 0 <= self.noise < 0.5:
            raise LabError(f"noise must be between 0 and 0.5, not {self.noise}: at 0.5 labels say nothing.")
        for name in ("steps", "places", "reward_steps", "prompts", "most", "test_prompts", "test_samples"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.places > max(self.steps // (1 if exactly else 2), 1):
            raise LabError(f"{self.places} places do not fit into {self.steps} steps.")


def _exactly(settings: OverOptimisation) -> bool:
    return settings.rung in experiment.EXACT_RUNGS


BETAS = tuple(float(b) for b in np.logspace(1.0, -2.0, 31))
"""β of the optimum's road, from hardly tilted to nearly greedy."""


def sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, …, `most`: the n of best of n."""
    found = sorted({n for k in range(20) for n in (2**k, 3 * 2 ** max(k - 1, 0))} | {most})
    return [n for n in found if n <= most]


class PartReward(nn.Module):
    """r(x, y) = Σ_t Φ[x, t, y_t] · w[x]: a reward model that sees features of single tokens, and nothing else."""

    def __init__(self, world: World, features: Tensor) -> None:
        """`features`: (X, L, V, F)."""
        super().__init__()
        self.world, self.features = world, features
        self.weight = nn.Parameter(torch.zeros(len(features), features.shape[-1], dtype=torch.float64))

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores (B, G)."""
        rows = self.world.tree.prompt_index(prompts)
        places = torch.arange(responses.shape[-1])
        seen = self.features[rows[:, None, None], places, responses.ids]
        return torch.einsum("bgtf,bf->bg", seen, self.weight[rows])


def make_world(rung: str, seed: int) -> tuple[World, Tensor]:
    """A seed's world, and the features (X, L, V, F) that the limited reward model sees.

    Bandit: 2 prompts × 64 arms, gold of unit variance, four fifths of its standard deviation linear in 8 features of
    the arm. Tree: tokens at their places, where gold has bigrams too.
    """
    if rung == "tree":
        world = token_tree.random(8, 4, 1, seed)
        return world, torch.eye(32, dtype=torch.float64).reshape(1, 4, 8, 32)
    generator = seeded(seed, 50)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    features = normal(2, 64, FEATURES)
    linear = (features * normal(2, 1, FEATURES)).sum(-1)
    linear = linear / linear.std(-1, keepdim=True)
    return bandit.make(normal(2, 64), 0.8 * linear + 0.6 * normal(2, 64)), features.unsqueeze(1)


@dataclass(eq=False)
class _Road(Run):
    """A seed's run whose fresh policies are followed."""

    watch: Watch | None = field(default=None, kw_only=True)

    def fresh(self) -> Policy:
        policy = super().fresh()
        if self.watch is not None:
            self.watch.follow(policy)
        return policy


@dataclass(eq=False)
class _TextRoad(TextRun):
    """The same on a language model."""

    watch: Watch | None = field(default=None, kw_only=True)

    def fresh(self) -> Policy:
        policy = super().fresh()
        if self.watch is not None:
            self.watch.follow(policy)
        return policy


@lru_cache(maxsize=8)
def _exact_run(settings: OverOptimisation, seed: int, labels: int, kind: str) -> _Road:
    world, features = make_world(settings.rung, seed)
    given = Compare(
        world="tree" if settings.rung == "tree" else "bandit", policy="table", beta=settings.beta, labels=labels,
        noise=settings.noise if kind == "noisy" else 0.0, steps=settings.reward_steps, learning_rate=settings.rate,
        batch_size=2048, progress=False,
    )  # fmt: skip
    run = _Road(given, world, seed)
    run.PROMPTS = settings.prompts
    if kind == "limited":
        model = PartReward(world, features)
        reward_model(model, run.pairs, RewardModel(), run.training(22))
        run.reward = model.requires_grad_(False)  # in the place of the table: `Run.reward` is fitted when first asked
    else:
        assert run.reward is not None
    # From here on `steps` are those of the methods.
    run.settings = replace(given, steps=settings.steps)
    return run


@lru_cache(maxsize=4)
def _text_run(settings: OverOptimisation, seed: int, labels: int) -> _TextRoad:
    plan = Plan(
        labels=labels, prompts=settings.prompts, beta=settings.beta, steps=settings.steps, rate=settings.rate,
        reward_steps=settings.reward_steps, test_prompts=settings.test_prompts, test_samples=settings.test_samples,
    )  # fmt: skip
    run = _TextRoad(bench(settings.rung, WORLD), plan, seed)
    assert run.reward is not None  # fitted here: whoever asks for it first may be within `no_grad`
    return run


def jobs(settings: OverOptimisation) -> list[Job]:
    """Exact roads for every kind and number of labels, and trained ones; RSO for the fewest labels alone on text."""
    out: list[Job] = []
    few, many = settings.labels[0], settings.labels[-1]
    for seed in range(settings.seeds):
        if _exactly(settings):
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


def run(settings: OverOptimisation, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    """A road: one row a place, from π_ref (place 0) to its end."""
    settings, seed = replace(settings, out=None, workers=1, progress=False), job["seed"]
    if job["method"] == "exact":
        return _exact_roads(settings, seed, job["labels"], job["kind"])
    if job["method"] == "best-of-n":
        return _best_of_n_on_text(settings, seed)
    if _exactly(settings):
        return _trained_exactly(settings, seed, job["labels"], job["method"])
    return _trained_on_text(settings, seed, job["labels"], job["method"])


def _place(run: Run, log_policy: Tensor) -> dict[str, float]:
    log_ref = run.world.log_ref()
    gained = log_policy.exp() - log_ref.exp()
    return {
        "kl": exact.kl(log_policy, log_ref).mean().item(),
        "gold": (gained * run.world.rewards()).sum(-1).mean().item(),
        "proxy": (gained * run.learned_rewards).sum(-1).mean().item(),
    }


def _exact_roads(settings: OverOptimisation, seed: int, labels: int, kind: str) -> list[dict[str, Any]]:
    run = _exact_run(settings, seed, labels, kind)
    log_ref, learned = run.world.log_ref(), run.learned_rewards
    rows: list[dict[str, Any]] = [{"road": "optimum", "place": 0, "pressure": math.inf, **_place(run, log_ref)}]
    rows += [
        {"road": "optimum", "place": i, "pressure": b, **_place(run, exact.optimal_policy(log_ref, learned, b))}
        for i, b in enumerate(BETAS, 1)
    ]
    rows += [
        {"road": "best-of-n", "place": i, "pressure": n, **_place(run, exact.best_of_n(log_ref, learned, n))}
        for i, n in enumerate(sizes(settings.most))
    ]
    return rows


def _every(total: int, places: int) -> set[int]:
    return {round(total * i / places) for i in range(places + 1)}


def _trained_exactly(settings: OverOptimisation, seed: int, labels: int, method: str) -> list[dict[str, Any]]:
    run = _exact_run(settings, seed, labels, "full")
    rows: list[dict[str, Any]] = []
    epochs = 4 if method == "ppo" else 1  # `compare`'s PPO takes four optimiser steps a round
    wanted = _every(settings.steps * epochs, settings.places)

    def see(policy: Policy, steps: int) -> None:
        if steps in wanted:
            here = _place(run, run.world.log_probs(policy))
            rows.append({"road": method, "place": len(rows), "pressure": steps // epochs, **here})

    with watching(see) as watch:
        run.watch = watch
        try:
            compare.METHODS[KEYS[method]].run(run)
        finally:
            run.watch = None
    return rows


def _trained_on_text(settings: OverOptimisation, seed: int, labels: int, method: str) -> list[dict[str, Any]]:
    run = _text_run(settings, seed, labels)
    reward = run.reward
    rows: list[dict[str, Any]] = []
    # `language`'s PPO shares a fit's optimiser steps out in rounds of two; half the steps, for a round costs more.
    steps = max(settings.steps // 2, 2) if method == "ppo" else settings.steps
    wanted = _every(steps, settings.places)

    def see(policy: Policy, done: int) -> None:
        if done in wanted:
            seen = measure(run, policy, proxy=reward, beta=settings.beta)
            rows.append(
                {"road": method, "place": len(rows), "pressure": done, "kl": seen["kl"], "gold": seen["reward"],
                 "proxy": seen["proxy"], "tokens": seen["tokens"], "distinct": seen["distinct_2"]}
            )  # fmt: skip

    with watching(see) as watch:
        run.watch = watch
        try:
            # The rate does not fall: the road goes on as fast as it began.
            training = run.training(60, steps=steps, schedule="constant")
            language.METHODS[KEYS[method]](run, settings.beta, training)
        finally:
            run.watch = None
    return _from_start(rows)


def _from_start(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gold and proxy as gains over the road's first place, which is π_ref on the same prompts."""
    first = dict(rows[0])
    for row in rows:
        row["gold"], row["proxy"] = row["gold"] - first["gold"], row["proxy"] - first["proxy"]
    return rows


@torch.no_grad()
def _best_of_n_on_text(settings: OverOptimisation, seed: int) -> list[dict[str, Any]]:
    """Every reward model picks among the same samples of π_ref; means over all choices of n among them."""
    runs = {n: _text_run(settings, seed, n) for n in (settings.labels[0], settings.labels[-1])}
    made = runs[settings.labels[0]].bench
    x = made.world.prompts(made.tokenizer, "test", settings.test_prompts)
    parts: list[tuple[Tensor, dict[int, Tensor]]] = []
    for start in range(0, len(x), 16):
        rows = x[start : start + 16]
        y = made.reference.sample(rows, settings.most, seeded(seed, 61, start, device=made.reference.device))
        scores = {n: check_finite(one.reward(rows, y), "reward").double().cpu() for n, one in runs.items()}
        parts.append((made.gold(rows, y).cpu(), scores))
    gold = torch.cat([part[0] for part in parts])
    out: list[dict[str, Any]] = []
    for n_labels in runs:
        proxy = torch.cat([part[1][n_labels] for part in parts])
        rows_here = []
        for place, n in enumerate(sizes(settings.most)):
            rows_here.append(
                {"road": "best-of-n", "labels": n_labels, "place": place, "pressure": n,
                 "kl": math.log(n) - (n - 1) / n, "gold": best_of_subsets(proxy, gold, n),
                 "proxy": best_of_subsets(proxy, proxy, n)}
            )  # fmt: skip
        out += _from_start(rows_here)
    return out


def best_of_subsets(scores: Tensor, values: Tensor, n: int) -> float:
    """Mean of `values` at the highest of n of the G scores, over all choices of n of a row, and over rows.

    With the row in rising order the k-th (from 1) is the highest of C(k−1, n−1) of C(G, n) choices: the estimator
    without bias of best of n's reward from G ≥ n samples. Ties fall as they lie.

    Args:
        scores: (B, G).
        values: (B, G).
        n: 1 to G.
    """
    width = scores.shape[1]
    if not 1 <= n <= width:
        raise LabError(f"n must be between 1 and the {width} samples, not {n}.")
    order = scores.argsort(-1)
    total = math.comb(width, n)
    weight = torch.tensor([math.comb(k, n - 1) / total for k in range(width)], dtype=torch.float64)
    return float((values.double().gather(1, order) * weight).sum(-1).mean())


def summarise_rows(settings: OverOptimisation, rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of every place of every road."""
    rows = rows.assign(root_kl=rows["kl"].clip(lower=0) ** 0.5)
    names = ["kl", "root_kl", "gold", "proxy", *[name for name in ("tokens", "distinct") if name in rows.columns]]
    table = summarise(rows, ["road", "kind", "labels", "place"], names)
    first = rows.groupby(["road", "kind", "labels", "place"], sort=False)["pressure"].first().reset_index()
    return table.merge(first, on=["road", "kind", "labels", "place"])


@dataclass(frozen=True)
class Turn:
    """What one road does from gold's peak, found on other seeds, to its end."""

    fall: Interval
    """Gold at the peak less gold at the end, paired within seeds."""
    rise: Interval
    """Proxy at the end less proxy at the peak."""
    gain: float
    """What mean gold gained from π_ref to its highest place."""
    root_kl: float
    """√KL at the highest place of the mean, √nats."""
    end_root_kl: float
    """√KL at the end."""

    @property
    def status(self) -> str:
        """turns; stays (surely falls by less than a tenth of the gain, and went far); or open."""
        if self.fall.above and self.rise.above:
            return "turns"
        return "stays" if self.fall.high < MARGIN * self.gain and self.end_root_kl >= FAR else "open"


def turn(rows: pd.DataFrame) -> Turn:
    """The turn of one road: rows of one (road, kind, labels), all seeds."""
    gold, proxy, kl = (
        rows.pivot(index="seed", columns="place", values=name).to_numpy(float) for name in ("gold", "proxy", "kl")
    )
    falls, rises = [], []
    for seed in range(len(gold)):
        others = np.delete(gold, seed, axis=0) if len(gold) > 1 else gold
        peak = int(others.mean(0).argmax())
        falls.append(gold[seed, peak] - gold[seed, -1])
        rises.append(proxy[seed, -1] - proxy[seed, peak])
    top = int(gold.mean(0).argmax())
    root = np.sqrt(kl.clip(min=0)).mean(0)
    return Turn(
        Interval(*mean_interval(np.array(falls))),
        Interval(*mean_interval(np.array(rises))),
        float(gold.mean(0)[top] - gold.mean(0)[0]),
        float(root[top]),
        float(root[-1]),
    )


def turns(rows: pd.DataFrame) -> dict[tuple[str, str, int], Turn]:
    """The turn of every road, by (road, kind, labels)."""
    groups: Any = rows.groupby(["road", "kind", "labels"], sort=False)
    return {(str(road), str(kind), int(n)): turn(part) for (road, kind, n), part in groups}


def later(rows: pd.DataFrame, settings: OverOptimisation) -> Interval:
    """√KL at gold's highest place with the most labels less that with the fewest: mean over methods, over seeds.

    Of each seed the highest place of its own; a road that does not turn has it at its end. Of the methods that were
    run with both.
    """
    few, many = settings.labels[0], settings.labels[-1]
    full = rows[(rows["kind"] == "full") & rows["road"].isin(METHODS)].reset_index(drop=True)
    place = full.loc[full.groupby(["seed", "road", "labels"])["gold"].idxmax()]
    root = place.assign(root=place["kl"].clip(lower=0) ** 0.5).pivot(
        index=["seed", "road"], columns="labels", values="root"
    )
    moved = (root[many] - root[few]).dropna().groupby("seed").mean()
    return Interval(*mean_interval(moved.to_numpy()))


def outcome(statuses: dict[str, str], postponed: Interval) -> str:
    """The rule, from the four methods' statuses at the fewest labels and how far more labels put the peak off."""
    turned = [name for name, status in statuses.items() if status == "turns"]
    if len(turned) == len(statuses) and postponed.above:
        return "holds"
    if turned:
        return "holds when"
    return "does not hold" if all(status == "stays" for status in statuses.values()) else "not decided"


def _name(road: str) -> str:
    return {**TRAINED, "best-of-n": "best of n", "optimum": "the proxy's optimum"}[road]


def _list(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def judge(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
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
            falls = [f"{_name(name)} ({here[name].fall}, proxy {here[name].rise})" for name in names]
            said.append(f"{_list(falls)}: {verb}.")
    more = [name for name in METHODS if (name, "full", many) in found]
    still = [_name(name) for name in more if found[name, "full", many].status == "turns"]
    again = "still turns" if len(still) == 1 else "still turn"
    with_many = f"{_list(still)} {again}" if still else "no method is shown to turn"
    moved = "later" if postponed.above else "earlier" if postponed.below else "not surely elsewhere"
    return Verdict(
        outcome(statuses, postponed),  # type: ignore[arg-type]
        f"As far as the roads went, with {few} labels: {' '.join(said)} With {many:,} labels {with_many}; "
        f"gold's peak is {moved}: {postponed} in √KL. In brackets: the fall of gold and the rise of the proxy from "
        f"that peak, in logits of a label.",
    )


def _line(ax: Any, part: pd.DataFrame, metric: str, colour: str, **looks: Any) -> None:
    part = part.sort_values("place")
    ax.plot(part["root_kl"], part[metric], color=colour, **looks)
    if metric == "gold":
        ax.fill_between(part["root_kl"], part["gold_low"], part["gold_high"], color=colour, alpha=0.12, lw=0)


def figure(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Gold and proxy against √KL with few labels; how labels move gold; on exact rungs how the error's kind does."""
    from matplotlib.lines import Line2D

    exactly, few, many = _exactly(settings), settings.labels[0], settings.labels[-1]
    drawing, axes = style.subplots(1, 3, width=17, height=5.2)
    keys = {**KEYS, "best-of-n": "best-of-n", "optimum": "plug-in"}
    full = summary[summary["kind"] == "full"]
    shown = [name for name in ("optimum", *METHODS) if name in set(full["road"])]
    with style.use():
        for ax, number, title in ((axes[0], few, f"{few} labels"), (axes[1], many, f"{many:,} labels")):
            present = [name for name in shown if len(full[(full["road"] == name) & (full["labels"] == number)])]
            for name in present:
                part = full[(full["road"] == name) & (full["labels"] == number)]
                colour = style.colour(keys[name])
                marks = {} if len(part) > 12 else {"marker": style.of(keys[name]).marker, "ms": 6}
                _line(ax, part, "gold", colour, **marks)
                _line(ax, part, "proxy", colour, ls="--", lw=1.3)
            ax.set(title=f"Gold and proxy, {title}", xlabel="√KL(π‖π_ref) [√nats]",
                   ylabel="gain over π_ref [logits of a label]")  # fmt: skip
            ax.axhline(0, color="#999999", lw=1)
        ends = [min(ax.get_ylim()[0] for ax in axes[:2]), max(ax.get_ylim()[1] for ax in axes[:2])]
        for ax in axes[:2]:
            ax.set_ylim(ends[0], ends[1] + 0.3 * (ends[1] - ends[0]))
        handles = [Line2D([], [], color=style.colour(keys[name]), label=_name(name)) for name in shown]
        axes[0].legend(handles=handles, loc="upper left", ncols=2, fontsize=10)
        lines = [Line2D([], [], color="#444444", ls=ls, label=label) for ls, label in (("-", "gold"), ("--", "proxy"))]
        axes[1].legend(handles=lines, loc="upper left", ncols=2, fontsize=10)

        found, ax = turns(rows), axes[2]
        if exactly:
            looks = {"full": ("plug-in", "o"), "noisy": ("wrong", "x"), "limited": ("reward", "s")}
            for shift, (kind, (key, marker)) in zip((0.94, 1.0, 1.06), looks.items(), strict=True):
                falls = [found["optimum", kind, n].fall for n in settings.labels]
                ax.errorbar(
                    [n * shift for n in settings.labels], [one.mean for one in falls],
                    yerr=[[one.mean - one.low for one in falls], [one.high - one.mean for one in falls]],
                    color=style.colour(key), marker=marker, capsize=3, label=KINDS[kind],
                )  # fmt: skip
            ax.set_xscale("log")
            ax.set_xticks(settings.labels, [f"{n:,}" for n in settings.labels])
            ax.minorticks_off()
            ax.set(title="Fall of gold, the proxy's optimum", xlabel="labels of the reward model [log scale]")
        else:
            names = [(name, n) for name in METHODS for n in (few, many) if (name, "full", n) in found]
            for place, (name, n) in enumerate(names):
                one = found[name, "full", n].fall
                ax.errorbar(
                    [place], [one.mean], yerr=[[one.mean - one.low], [one.high - one.mean]], capsize=3,
                    color=style.colour(keys[name]), marker=style.of(keys[name]).marker, ls="none",
                )  # fmt: skip
            ax.set_xticks(range(len(names)), [f"{_name(name)}\n{n}" for name, n in names], rotation=45, ha="right")
            ax.set(title="Fall of gold from its peak", xlabel="method and labels of the reward model")
        ax.set_ylabel("peak to end [logits of a label]")
        ax.axhline(0, color="#999999", lw=1)
        if exactly:
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.3 * (high - low))
            ax.legend(loc="upper right", fontsize=10)
    return drawing


def words(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    found, few, many = turns(rows), settings.labels[0], settings.labels[-1]
    said = []
    for name in ("optimum", *METHODS):
        one = found.get((name, "full", few))
        if one is None:
            continue
        more = found.get((name, "full", many))
        said.append(
            f"{_name(name)}: gold highest at √KL {one.root_kl:.2f} with {one.gain:+.2f}, then down by "
            f"{one.fall.mean:.2f} until {one.end_root_kl:.2f}"
            + (
                f" ({many:,} labels: {more.gain:+.2f} at {more.root_kl:.2f}, down by {more.fall.mean:.2f})"
                if more
                else ""
            )
        )
    return _minus(
        f"Gold and proxy against √KL with {few} and with {many:,} labels of the reward model, gains over π_ref in "
        f"logits of a label. With {few} labels, {'; '.join(said)}. The right panel shows these falls with their "
        f"intervals{', for the optimum of three kinds of reward models by their labels' if _exactly(settings) else ''}."
    )


def text(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What was found."""
    found, postponed = turns(rows), later(rows, settings)
    few, many = settings.labels[0], settings.labels[-1]
    said = []
    turned = [name for name in METHODS if found[name, "full", few].status == "turns"]
    said.append(
        f"With a reward model of {few} labels gold turned on the roads of {_list([_name(n) for n in turned])}."
        if turned
        else f"With a reward model of {few} labels no method's road is shown to turn."
    )
    fell = [name for name in METHODS if name not in turned and found[name, "full", few].fall.above]
    if fell:
        said.append(
            f"Gold fell on the roads of {_list([_name(n) for n in fell])}, but from gold's peak to the end the proxy "
            f"is not shown to rise there: this is a fall, not the turn that the rule asks for."
        )
    for name in METHODS:
        one = found[name, "full", few]
        if one.fall == (0, 0, 0):
            went = "and ended there, still rising or level"
        else:
            moved = "fell" if one.fall.above else "rose" if one.fall.below else "did not surely move"
            went = (
                f"and from the peak that the other seeds name to the end gold {moved} (fall {one.fall}) while the "
                f"proxy {'rose' if one.rise.mean >= 0 else 'fell'} by {abs(one.rise.mean):.2f}"
            )
        said.append(
            f"{_name(name)[0].upper() + _name(name)[1:]} went to √KL {one.end_root_kl:.2f}; gold gained at most "
            f"{one.gain:.2f}, at √KL {one.root_kl:.2f}, {went}."
        )
    ends_at = summary[(summary["kind"] == "full") & (summary["labels"] == few)].groupby("road").last()
    said.append(
        "What was promised and what came, at the ends: "
        + "; ".join(
            f"{_name(str(name))} {proxy:.2f} of the proxy and {gold:.2f} of gold"
            for name, proxy, gold in zip(ends_at.index, ends_at["proxy"], ends_at["gold"], strict=True)
        )
        + "."
    )
    if not turned and not fell:
        said.append(
            "A promise that is not kept is not yet a fall: where a reward model's errors know nothing of gold, what it "
            "likes best is still better than most, and gold levels off; it falls only where the best-liked are worse."
        )
    where = "later" if postponed.above else "earlier" if postponed.below else "not surely elsewhere"
    said.append(f"With {many:,} labels gold's highest place is {where}: {postponed} in √KL.")
    if _exactly(settings):
        ends = {kind: [found["optimum", kind, n] for n in (few, many)] for kind in KINDS}
        said.append(
            "For the proxy's exact optimum, which no training error blurs, the fall was "
            + "; ".join(
                f"{one[0].fall.mean:.2f} with {few} and {one[1].fall.mean:.2f} with {many:,} labels where the reward "
                f"model {_kind(kind, settings)}"
                for kind, one in ends.items()
            )
            + "."
        )
        first, last = (one.fall.above for one in ends["full"])
        if first and not last:
            said.append(
                f"What {many:,} labels can mend, they mended: the model that can be any reward no longer turns."
            )
        elif last:
            said.append(f"Even with {many:,} labels the model that can be any reward is optimised too far in the end.")
        if ends["limited"][1].fall.above:
            said.append(
                "What a reward model cannot see no number of labels mends: with the most of them gold still fell."
            )
        else:
            said.append(
                f"Blindness alone did not make gold fall: with {many:,} labels the reward model that sees a part of "
                f"gold is not shown to turn."
            )
    else:
        said.append(
            f"KL was reached by training, not by weights on samples of π_ref, which can be trusted only near it: best "
            f"of {settings.most} cannot go beyond √KL {found['best-of-n', 'full', few].end_root_kl:.2f}."
        )
    return _minus(" ".join(said))


def _minus(said: str) -> str:
    return re.sub(r"-(?=\d)", "−", said)


def _kind(kind: str, settings: OverOptimisation) -> str:
    return {
        "full": "can be any reward",
        "noisy": f"can be any and {settings.noise:.0%} of its labels were turned round",
        "limited": "sees a part of what gold sees",
    }[kind]


EXPERIMENT = Experiment(
    number=7,
    name="over-optimisation",
    title="Optimised ever harder, the proxy's reward rises while the gold reward falls; more labels put it off",
    says=(
        "Against √KL the proxy reward keeps rising while the gold reward rises, turns and falls, for best of n and for "
        "PPO; with more data for the reward model the turn comes later and higher. Optimising a learned reward of "
        "summaries too far made summaries that people liked less than those it began with."
    ),
    source=(
        "Gao et al. 2023, Scaling Laws for Reward Model Overoptimization, Figure 1 and the section on data size; "
        "Stiennon et al. 2020, section 4.3; lecture, reward modelling, and RSO's proxy against gold reward."
    ),
    asks=(
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
    rungs=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    judge=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: OverOptimisation) -> None:
    """The command `rlhf-lab experiment over-optimisation`."""
    experiment.main(EXPERIMENT, settings)
