r"""Claim 2: at every KL, DPO has more reward than PPO.

The DPO paper's sentiment figure: each method is trained with several settings, every run is a line of points
(KL(π‖π_ref), reward), and the method whose points lie higher has the better frontier. Here a method's frontier in one
seed is the upper concave envelope of its points and of π_ref: what it can reach with at most that KL, if it may also
toss a coin between two of its policies, whose mixture has the mean of their rewards and at most the mean of their KLs.
On finite worlds both numbers are exact, and so is the curve that no policy can pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf_lab import evaluation, exact
from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.methods import train
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Settings, Worded
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import Interval, mean_interval, summarise
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METHODS = {"sft": 1, "dpo": 2, "ppo": 3, "ppo-gold": 4}
"""What is trained, each with a stream of random numbers of its own. `sft` is the paper's Preferred-FT."""
NAMES = {"sft": "SFT on chosen", "dpo": "DPO", "ppo": "PPO", "ppo-gold": "PPO on r* itself"}
BUDGETS = 8
"""Budgets of KL for the comparison, evenly spaced in √KL, up to the largest that all seeds of both reach."""
SEARCH = 1000
"""First seed of the search."""
WORLD = "sentiment"


@dataclass(frozen=True)
class DPOFrontier(Settings):
    """Reward against KL for DPO and PPO over β, beside PPO on the gold reward and SFT on chosen responses."""

    betas: tuple[NonNegative, ...] = ()
    """β's of DPO and PPO. Default: .1, .3, 1, 3; on text .1, .5, 2."""
    gold_betas: tuple[NonNegative, ...] = ()
    """β's of PPO on the gold reward. Default: .1, 1; on text .1."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates that the search tries for SFT, DPO and PPO. Default: .02, .05, .15; on text 1e-4, 3e-4, 1e-3."""
    search_seeds: Natural = 0
    """Seeds of the search. 0: 2; on text 1."""
    labels: Natural = 0
    """Preference labels. 0: 1,000; on the tree 20,000, on text 512."""
    steps: Natural = 0
    """Optimiser steps of every run; PPO's samples serve for several. 0: 240; on the tree 400, on text 44."""
    evaluations: Natural = 0
    """Points of each run, evenly spaced, the last at its end. 0: 8; on text 3."""
    prompts: Natural = 0
    """Text: test prompts of a point, with four responses each. 0: 48."""

    def __post_init__(self) -> None:
        super().__post_init__()
        text, tree, quick = self.scale not in EXACT_SCALES, self.scale == "tree", self.quick
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 3 if text else 5 if tree else 10,
            "betas": ((0.5,) if quick else (0.1, 0.5, 2.0)) if text else (0.1, 0.3, 1.0, 3.0),
            "gold_betas": (0.1,) if text or quick else (0.1, 1.0),
            "rates": (1e-3,) if text and quick else (1e-4, 3e-4, 1e-3) if text else (0.02, 0.05, 0.15)[quick:],
            "search_seeds": 1 if text or quick else 2,
            "labels": (16 if quick else 512) if text else 200 if quick else 20_000 if tree else 1000,
            "steps": (2 if quick else 44) if text else 8 if quick else 400 if tree else 240,
            "evaluations": 2 if quick else 3 if text else 8,
            "prompts": 4 if quick else 48,
        }
        for name, value in defaults.items():
            if getattr(self, name) in (0, ()):
                object.__setattr__(self, name, value)
        for beta in (*self.betas, *self.gold_betas):
            check_beta(beta)
        if self.evaluations < 1 or self.steps < self.evaluations:
            raise LabError(f"A run of {self.steps} steps cannot be looked at {self.evaluations} times.")
        if self.prompts < 2 or self.labels < 8 or not all(rate > 0 for rate in self.rates):
            raise LabError("The frontier needs at least 2 prompts, 8 labels, and learning rates above 0.")

    @property
    def middle(self) -> float:
        """β at which the search for a learning rate measures the objective."""
        return sorted(self.betas)[len(self.betas) // 2]


@lru_cache(maxsize=1)
def _setup(settings: DPOFrontier, seed: int) -> Setup:
    if settings.scale in EXACT_SCALES:
        return set_up(settings.scale, seed, labels=settings.labels, steps=settings.steps)
    quick: dict[str, Any] = {"reward_steps": 2, "batch_size": 4, "prompts": 8, "test_samples": 2}
    sizes = quick if settings.quick else {"reward_steps": 100}
    return set_up(
        settings.scale,
        seed,
        WORLD,
        labels=settings.labels,
        steps=settings.steps,
        test_prompts=settings.prompts,
        **sizes,
    )


def jobs(settings: DPOFrontier) -> list[Job]:
    """Every method at every β, seed by seed; and the best that there is, where it can be known."""
    out: list[Job] = []
    for seed in range(settings.seeds):
        out.append({"seed": seed, "method": "reference", "beta": 0.0})
        if settings.scale in EXACT_SCALES or seed == 0:
            out.append({"seed": seed, "method": "optimal", "beta": 0.0})
        out.append({"seed": seed, "method": "sft", "beta": 0.0})
        for method, betas in (("dpo", settings.betas), ("ppo", settings.betas), ("ppo-gold", settings.gold_betas)):
            out += [{"seed": seed, "method": method, "beta": beta} for beta in betas]
    return out


def search_trials(settings: DPOFrontier) -> list[Job]:
    """The same rates for each method, at the middle β. PPO on the gold reward takes PPO's."""
    return [
        {"seed": SEARCH + seed, "method": method, "beta": settings.middle, "rate": rate}
        for seed in range(settings.search_seeds)
        for method in ("sft", "dpo", "ppo")
        for rate in settings.rates
    ]


def select_best(settings: DPOFrontier, rows: pd.DataFrame) -> BestConfig:
    """The rate with the largest objective at the end, mean over search seeds, by method."""
    ends = rows[rows["look"] == rows.groupby(["seed", "method", "rate"])["look"].transform("max")]
    means = ends.groupby(["method", "rate"])["objective"].mean()
    return {method: float(means[method].idxmax()) for method in ("sft", "dpo", "ppo")}


def run(settings: DPOFrontier, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """The points of one run, or the curve that no policy exceeds."""
    method, seed, beta = job["method"], job["seed"], job["beta"]
    setup, searching = _setup(settings, seed), "rate" in job
    if method == "optimal":
        return _exact_frontier(setup) if isinstance(setup, ExactSetup) else _text_frontier(settings, setup)

    def position(policy: Policy) -> dict[str, float]:
        found = setup.evaluate(policy, "validation" if searching else "test")
        return {"kl": found["kl"], "reward": found["reward"]}

    if method == "reference":
        return [{"look": 0, "trusted": 1, **position(setup.reference)}]
    key, changes = method, dict[str, Any]()
    if method == "ppo-gold":
        key, changes = "ppo", {"reward": setup.gold}
    if key == "ppo":
        changes |= {"epochs": 4} if isinstance(setup, ExactSetup) else {"epochs": 2, "samples": 2}
    # PPO has whole rounds, so its last evaluation is at its own last step.
    epochs = changes.get("epochs", 1)
    steps = settings.steps // epochs * epochs
    when = {round(steps * (number + 1) / settings.evaluations): number + 1 for number in range(settings.evaluations)}
    if searching:
        when = {steps: settings.evaluations}
    rows: list[dict[str, Any]] = []

    def see(policy: Policy, step: int) -> None:
        if step in when:
            found = position(policy)
            rows.append({"look": when[step], "trusted": 1, **found, "objective": found["reward"] - beta * found["kl"]})

    policy = setup.new_policy()
    training = setup.training(METHODS[method], learning_rate=job["rate"] if searching else best_config[key])
    with record(see, policy):
        train(key, setup, training, policy, beta, **changes)
    return rows


def _exact_frontier(setup: ExactSetup) -> list[dict[str, Any]]:
    world = setup.world
    betas = torch.logspace(1.5, -2.5, 41, dtype=torch.float64)
    kl, reward = exact.frontier(world.log_ref(), world.rewards(), betas)
    return [
        {"look": i, "trusted": 1, "kl": k, "reward": r}
        for i, (k, r) in enumerate(zip(kl.mean(0).tolist(), reward.mean(0).tolist(), strict=True))
    ]


def _text_frontier(settings: DPOFrontier, setup: Setup) -> list[dict[str, Any]]:
    """Estimate it by tilting samples of π_ref for the same test prompts; `trusted` says where the estimate is good."""
    assert isinstance(setup, TextSetup)
    task, seed = setup.task, setup.seed
    prompts = task.world.prompts(task.tokenizer, "test", settings.prompts)
    generator = seeded(seed, Stream.FRONTIER_TILT, device=task.reference.device)
    number = 8 if settings.quick else 48
    with torch.no_grad():
        parts = [prompts[i : i + 16] for i in range(0, len(prompts), 16)]
        rewards = torch.cat([task.gold(x, task.reference.sample(x, number, generator)).cpu() for x in parts])
    found = evaluation.tilted_frontier(rewards, torch.logspace(1.2, -1.0, 23).tolist())
    return [
        {"look": i, "trusted": int(one.trusted), "kl": one.kl.mean, "reward": one.reward.mean}
        for i, one in enumerate(found)
    ]


# ------------------------------------------------------------------------------------------------------- comparison


def envelope(kl: Sequence[float], reward: Sequence[float], budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """The most reward at a KL of at most each budget, from points and all mixtures of two of them.

    Args:
        kl: of the points, one of them π_ref's 0. Sampled KLs below 0 count as 0.
        reward: of the points.
        budgets: at which to read it, not below 0.

    Returns:
        one reward a budget; NaN beyond the farthest point, about which nothing is known.
    """
    x = np.maximum(np.asarray(kl, float), 0)
    y = np.asarray(reward, float)
    order = np.lexsort((-y, x))
    hull: list[tuple[float, float]] = []
    for point in zip(x[order], y[order], strict=True):
        if hull and point[0] == hull[-1][0]:
            continue  # the higher one of equal KL came first
        while len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    at, height = np.array(hull).T
    out = np.interp(np.asarray(budgets, float), at, np.maximum.accumulate(height))
    return np.where(np.asarray(budgets, float) > x.max() * (1 + 1e-9), np.nan, out)


def _below(one: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether `middle` lies on or below the line from `one` to `last`."""
    return (middle[1] - one[1]) * (last[0] - one[0]) <= (last[1] - one[1]) * (middle[0] - one[0])


def _gains(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with `gain`, the reward less that of π_ref in the same seed."""
    start = runs[runs["method"] == "reference"].set_index("seed")["reward"]
    return runs.assign(gain=runs["reward"] - runs["seed"].map(start))


def _points(runs: pd.DataFrame, seed: int, method: str) -> tuple[list[float], list[float]]:
    part = runs[(runs["seed"] == seed) & runs["method"].isin([method, "reference"]) & (runs["trusted"] == 1)]
    return part["kl"].tolist(), part["gain"].tolist()


def budgets_of(runs: pd.DataFrame) -> np.ndarray:
    """The budgets of KL: up to what DPO and PPO both reach in every seed."""
    both = runs[runs["method"].isin(["dpo", "ppo"])]
    most = both.groupby(["seed", "method"])["kl"].max().min()
    return max(float(most), 1e-9) * (np.arange(1, BUDGETS + 1) / BUDGETS) ** 2


def summarise_runs(settings: DPOFrontier, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows `what = point`: every setting's end; rows `what = budget`: frontiers at each budget, and DPO's lead."""
    import pandas as pd

    runs = _gains(runs)
    budgets, seeds = budgets_of(runs), sorted(set(runs["seed"]))
    trained = runs[~runs["method"].isin(["reference", "optimal"])]
    ends = trained[trained["look"] == trained.groupby(["seed", "method", "beta"])["look"].transform("max")]
    points = summarise(ends, ["method", "beta"], ["kl", "gain"])
    points.insert(0, "what", "point")
    heights = {
        method: np.array([envelope(*_points(runs, seed, method), budgets) for seed in seeds])
        for method in (*METHODS, "optimal")
        if settings.scale in EXACT_SCALES or method != "optimal"
    }
    if "optimal" not in heights:  # estimated once, for all seeds
        kl, reward = _points(runs, seeds[0], "optimal")
        heights["optimal"] = np.repeat(envelope(kl, reward, budgets)[None], len(seeds), 0)
    rows = []
    for i, budget in enumerate(budgets):
        for method, height in heights.items():
            row: dict[str, Any] = {"what": "budget", "method": method, "kl": budget, "seeds": len(seeds)}
            for name, values in (("gain", height[:, i]), ("lead", heights["dpo"][:, i] - height[:, i])):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values), strict=True))
            rows.append(row)
    return pd.concat([points, pd.DataFrame(rows)], ignore_index=True)


def _leads(summary: pd.DataFrame, method: str) -> list[tuple[float, Interval]]:
    part = summary[(summary["what"] == "budget") & (summary["method"] == method)]
    return [(row["kl"], Interval(row["lead"], row["lead_low"], row["lead_high"])) for _, row in part.iterrows()]


def judge(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    """See the rule."""
    leads = _leads(summary, "ppo")
    above = [kl for kl, lead in leads if lead.above]
    below = [kl for kl, lead in leads if lead.below]
    least, most = min(leads, key=lambda one: one[1].mean), max(leads, key=lambda one: one[1].mean)
    ends = (
        f"DPO's lead over PPO in reward lies between {least[1]} (at {least[0]:.2g} nats) and {most[1]} (at "
        f"{most[0]:.2g} nats)"
    )
    if len(above) == len(leads):
        return Worded("supported", f"DPO's frontier lies above PPO's at all {len(leads)} budgets of KL: {ends}.")
    if above:
        where = _where(above)
        rest = f"; PPO's lies above DPO's {_where(below)}" if below else "; elsewhere the interval holds 0"
        return Worded("partly supported", f"DPO's frontier lies above PPO's {where}{rest}. {ends}.")
    if below:
        return Worded("not supported", f"PPO's frontier lies above DPO's {_where(below)}, DPO's nowhere. {ends}.")
    return Worded("inconclusive", f"At none of {len(leads)} budgets of KL does the interval leave 0 out. {ends}.")


def _where(budgets: list[float]) -> str:
    if len(budgets) == 1:
        return f"at the budget of {budgets[0]:.2g} nats"
    return f"at {len(budgets)} budgets between {min(budgets):.2g} and {max(budgets):.2g} nats"


# ---------------------------------------------------------------------------------------------------------- picture

_OPEN = {"ppo-gold"}


def figure(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Left: each method's mean frontier, on text with every point. Right: DPO's lead at every budget."""
    from rlhf_lab.figures import style

    drawing, (left, right) = style.subplots(1, 2, 12.4, 5.2, width_ratios=[1.2, 1])
    with style.use():
        budget = summary[summary["what"] == "budget"]
        best = budget[budget["method"] == "optimal"]
        exactly = settings.scale in EXACT_SCALES
        word = "the best any policy can do" if exactly else "the best, estimated from π_ref's draws"
        left.plot([0, *best["kl"]], [0, *best["gain"]], color=style.colour("optimal"), label=word, zorder=3)
        # Points of other worlds have another frontier: beside the mean of all they would lie above it.
        all_points = _gains(runs)[[not exactly] * len(runs)]
        reach = (1.05 if exactly else 1.6) * float(budget["kl"].max())
        for method in METHODS:
            look, open_ = style.of(method), method in _OPEN
            colour = style.colour("wrong") if open_ else look.light
            points = all_points[(all_points["method"] == method) & (all_points["kl"] <= reach)]
            inside = {"markerfacecolor": "none"} if open_ else {"markeredgecolor": "white", "markeredgewidth": 0.4}
            marker = "D" if open_ else look.marker
            left.plot(points["kl"], points["gain"], marker, ms=5, color=colour, alpha=0.45, zorder=2, **inside)
            line = budget[budget["method"] == method].dropna(subset=["gain"])
            left.plot(line["kl"], line["gain"], ":" if open_ else "-", color=colour, marker=marker, ms=7,
                      label=NAMES[method], zorder=4, **inside)  # fmt: skip
        left.set(title="Reward bought with KL, mean over seeds", xlabel="KL(π‖π_ref) [nats]",
                 ylabel="gain of E[r*] over π_ref [logits of a label]", xlim=(-0.03 * reach, reach))  # fmt: skip
        left.legend(loc="lower right", frameon=True, edgecolor="none")
        for method in ("ppo", "ppo-gold"):
            open_ = method in _OPEN
            colour = style.colour("wrong") if open_ else style.colour(method)
            part = budget[budget["method"] == method].dropna(subset=["lead"])
            x = part["kl"] * (1.012 if open_ else 1)
            error = np.nan_to_num([part["lead"] - part["lead_low"], part["lead_high"] - part["lead"]])
            right.errorbar(x, part["lead"], yerr=np.maximum(error, 0), capsize=3, ls=":" if open_ else "-",
                           marker="D" if open_ else "s", mfc="none" if open_ else colour, color=colour, elinewidth=1.6,
                           label=f"over {NAMES[method]}")  # fmt: skip
        right.axhline(0, color="#444444", lw=1)
        right.set(title="DPO's lead at equal KL", xlabel="budget of KL [nats]",
                  ylabel="difference of reward [logits of a label]")  # fmt: skip
        low, high = right.get_ylim()
        right.set_ylim(low, high + 0.25 * (high - low))
        right.legend(loc="upper left", frameon=True, edgecolor="none")
    return drawing


def _row(summary: pd.DataFrame, method: str, place: int) -> pd.Series:
    return summary[(summary["what"] == "budget") & (summary["method"] == method)].iloc[place]


def words(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture's numbers."""
    out = []
    for place in (0, BUDGETS // 2, BUDGETS - 1):
        kl = _row(summary, "dpo", place)["kl"]
        named = [(NAMES.get(m, "the best policy"), _row(summary, m, place)["gain"]) for m in (*METHODS, "optimal")]
        told = ", ".join(f"{name} {gain:.2f}" for name, gain in named if gain == gain)
        out.append(f"at {kl:.2g} nats {told}")
    leads = ", ".join(f"{lead} at {kl:.2g}" for kl, lead in _leads(summary, "ppo"))
    return (
        f"Left, what each method's frontier gains over π_ref in reward, mean over seeds: {'; '.join(out)}. "
        f"Right, DPO's lead over PPO with its interval, by nats: {leads}."
    )


def text(settings: DPOFrontier, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What was found."""
    exactly = settings.scale in EXACT_SCALES
    last, middle = BUDGETS - 1, BUDGETS // 2
    top = float(_row(summary, "dpo", last)["kl"])
    out = [
        f"DPO and PPO were trained at β = {', '.join(f'{b:g}' for b in settings.betas)} on the same "
        f"{settings.labels:,} labels of each of {settings.seeds} seeds, PPO by way of a reward model fitted to them, "
        f"both with {settings.steps} optimiser steps; both reach {top:.2g} nats in every seed, and up to there their "
        f"frontiers can be compared."
    ]
    for method in ("ppo", "ppo-gold"):
        leads = [(kl, lead) for kl, lead in _leads(summary, method) if lead.mean == lead.mean]
        above, below = sum(lead.above for _, lead in leads), sum(lead.below for _, lead in leads)
        if leads:
            out.append(
                f"Against {NAMES[method]}, DPO is ahead at {above} of {len(leads)} budgets, behind at {below}, and at "
                f"{len(leads) - above - below} the interval holds 0; at the largest, {leads[-1][0]:.2g} nats, its lead "
                f"is {leads[-1][1]}."
            )
    first = {m: _first(runs, m) for m in ("dpo", "ppo")}
    short = [f"{kl:.2g}" for kl, _ in _leads(summary, "ppo") if kl < max(first.values())]
    if short:
        out.append(
            f"The first point of a run lies at {first['dpo']:.2g} nats or more for DPO and {first['ppo']:.2g} for PPO "
            f"(the smallest of a seed, mean over seeds); below that a frontier is a mixture with π_ref, not a trained "
            f"policy, so that at the budget{'s' * (len(short) > 1)} of {', '.join(short)} nats the comparison says "
            f"more of where the points stand than of the methods."
        )
    shares = {m: _share(summary, m, middle) for m in ("dpo", "ppo", "ppo-gold", "sft")}
    told = ", ".join(f"{NAMES[m]} {share:.0%}" for m, share in shares.items() if share == share)
    if told:
        best = "the exact frontier" if exactly else "the frontier as estimated from draws of π_ref"
        out.append(
            f"Of the reward that {best} gains over π_ref at {_row(summary, 'dpo', middle)['kl']:.2g} nats, each "
            f"method's frontier has: {told}."
        )
    lead, clean = _leads(summary, "ppo")[middle][1], _leads(summary, "ppo-gold")[middle][1]
    if clean.mean == clean.mean:
        gain = lead.mean - clean.mean
        why = "that much the reward model costs" if gain > 0 else "the reward model is not what holds it back there"
        out.append(
            f"With the gold reward in place of the reward model PPO's own frontier there is {abs(gain):.2g} "
            f"{'higher' if gain > 0 else 'lower'}: {why}."
        )
    ends = summary[(summary["what"] == "point") & (summary["method"].isin(["dpo", "ppo"]))]
    far: Any = ends.loc[ends.groupby("method")["kl"].idxmax()].set_index("method")
    out.append(
        f"The settings that go farthest from π_ref: at β = {far.loc['dpo', 'beta']:g} DPO ends at "
        f"{far.loc['dpo', 'kl']:.2g} nats and a gain of {far.loc['dpo', 'gain']:.2f}, at β = "
        f"{far.loc['ppo', 'beta']:g} PPO at {far.loc['ppo', 'kl']:.2g} nats and {far.loc['ppo', 'gain']:.2f}."
    )
    return " ".join(sentence for sentence in out if sentence)


def _first(runs: pd.DataFrame, method: str) -> float:
    """The smallest KL of a point of a seed, mean over seeds."""
    return float(runs[runs["method"] == method].groupby("seed")["kl"].min().mean())


def _share(summary: pd.DataFrame, method: str, place: int) -> float:
    most = float(_row(summary, "optimal", place)["gain"])
    return float(_row(summary, method, place)["gain"]) / most if most > 0 else float("nan")


EXPERIMENT = Experiment(
    number=2,
    name="dpo-frontier",
    title="DPO's frontier of reward and KL lies above PPO's",
    claim=(
        "In controlled sentiment generation DPO has the highest expected reward at every KL: its frontier strictly "
        "dominates PPO's, even PPO's on the true reward (22 runs: β of .05, .1, 1, 5 for DPO, target KL of 3, 6, 9, "
        "12 for PPO)."
    ),
    source="Rafailov et al. 2023, section 6.1 and Figure 2, left; lecture, “Compared to PPO”",
    setup=(
        "DPO and PPO over the same β's, on the same labels; beside them PPO on the gold reward (the paper's PPO-GT) "
        "and SFT on the chosen responses (Preferred-FT). Each run is looked at several times on its way. Every method "
        "gets as many optimiser steps and the same small search for its learning rate. PPO keeps a fixed β where the "
        "paper steers β by a target KL. On bandit and tree policies are tables, each seed has a world of its own, and "
        "all numbers are exact, as is the frontier that no policy passes; on text the world is sentiment, with VADER "
        "as the gold reward, and that frontier is estimated from draws of π_ref as far as these can be trusted."
    ),
    rule=(
        "A method's frontier in a seed is the concave envelope of its points and π_ref. At 8 budgets of KL, evenly "
        "spaced in √KL up to the largest that DPO and PPO both reach in all seeds, DPO's reward less PPO's is taken "
        "within the seed, with a 95% interval over seeds. The claim holds if the interval lies above 0 at every "
        "budget; it holds when KL is in the range named if it does so at some; it does not hold if the interval lies "
        "below 0 somewhere and above 0 nowhere; else it is not decided."
    ),
    settings=DPOFrontier,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_runs,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
    search_trials=search_trials,
    select_best=select_best,
)


def main(settings: DPOFrontier) -> None:
    """The command `rlhf-lab experiment dpo-frontier`."""
    runner.main(EXPERIMENT, settings)
