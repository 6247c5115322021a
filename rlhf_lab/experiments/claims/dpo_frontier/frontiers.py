"""Frontiers of reward and KL: the concave envelope of a method's points, and its comparison at equal KL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rlhf_lab.experiments.claims.dpo_frontier.settings import BUDGETS, DPOFrontier
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.randomness import Stream

METHODS = {
    "sft": Stream.SFT_FIT,
    "dpo": Stream.TUNED_DPO,
    "ppo": Stream.TUNED_PPO,
    "ppo-gold": Stream.TUNED_PPO_ON_GOLD,
}
"""The trained methods, each with its stream of random numbers. `sft` is the paper's Preferred-FT."""


def envelope(kl: Sequence[float], reward: Sequence[float], budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the maximum reward at a KL of at most each budget, over points and all mixtures of two of them.

    Args:
        kl: of the points, one of them π_ref's 0. Sampled KLs below 0 count as 0.
        reward: of the points.
        budgets: at least 0.

    Returns:
        one reward for each budget; NaN beyond the largest KL of a point, where nothing is known.
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
    """Whether `middle` is on or below the line from `one` to `last`."""
    return (middle[1] - one[1]) * (last[0] - one[0]) <= (last[1] - one[1]) * (middle[0] - one[0])


def gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `gain`, the reward minus that of π_ref in the same seed."""
    start = runs[runs["method"] == "reference"].set_index("seed")["reward"]
    return runs.assign(gain=runs["reward"] - runs["seed"].map(start))


def budgets_of(runs: pd.DataFrame) -> np.ndarray:
    """Return the KL budgets, up to the largest KL that DPO and PPO both reach in every seed."""
    both = runs[runs["method"].isin(["dpo", "ppo"])]
    most = both.groupby(["seed", "method"])["kl"].max().min()
    return max(float(most), 1e-9) * (np.arange(1, BUDGETS + 1) / BUDGETS) ** 2


def heights(settings: DPOFrontier, runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the gain of each method's frontier at each budget, (seeds, budgets), and that of the optimal frontier."""
    runs, budgets = gains(runs), budgets_of(runs)
    seeds = sorted(set(runs["seed"]))

    def of(seed: int, method: str) -> np.ndarray:
        part = runs[(runs["seed"] == seed) & runs["method"].isin([method, "reference"]) & (runs["trusted"] == 1)]
        return envelope(part["kl"].tolist(), part["gain"].tolist(), budgets)

    found = {method: np.array([of(seed, method) for seed in seeds]) for method in METHODS}
    # On text the optimal frontier is estimated once, for all seeds.
    found["optimal"] = np.array([of(seed if settings.exact else seeds[0], "optimal") for seed in seeds])
    return found


def summarise_runs(settings: DPOFrontier, runs: pd.DataFrame) -> pd.DataFrame:
    """Return rows `what = point` with each setting's end, and rows `what = budget` with frontiers and DPO's lead."""
    runs = gains(runs)
    trained = runs[~runs["method"].isin(["reference", "optimal"])]
    ends = trained[trained["look"] == trained.groupby(["seed", "method", "beta"])["look"].transform("max")]
    points = summarise(ends, ["method", "beta"], ["kl", "gain"])
    points.insert(0, "what", "point")
    found = heights(settings, runs)
    frames = [
        pd.DataFrame({"method": method, "kl": budget, "gain": height[:, i], "lead": (found["dpo"] - height)[:, i]})
        for i, budget in enumerate(budgets_of(runs))
        for method, height in found.items()
    ]
    budgets = summarise(pd.concat(frames), ["method", "kl"], ["gain", "lead"]).assign(what="budget")
    return pd.concat([points, budgets], ignore_index=True)
