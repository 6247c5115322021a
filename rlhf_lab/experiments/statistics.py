"""Means over seeds with intervals, and differences between two conditions, seed by seed.

Intervals are Student's t over seeds where nothing else is said. A difference is taken within a seed first: two
methods that saw the same labels share that seed's luck, and the difference does not. Medians and ratios get their
intervals by the bootstrap (Efron 1979; percentile interval, resampling seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import mean_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Interval", "bootstrap", "difference", "mean_interval", "summarise"]


class Interval(NamedTuple):
    """A number with its interval; NaN ends where one seed leaves none."""

    mean: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """The whole interval lies above zero."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """The whole interval lies below zero."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def summarise(runs: pd.DataFrame, by: str | list[str], metrics: list[str], level: float = 0.95) -> pd.DataFrame:
    """One row for each value (or combination) of `by`, in order of appearance: each metric's mean, `_low`, `_high`.

    Rows of one group are taken as independent: there must be one a seed.
    """
    import pandas as pd

    names = [by] if isinstance(by, str) else list(by)
    rows = []
    for key, group in runs.groupby(names, sort=False, dropna=False):
        row: dict[str, object] = {**dict(zip(names, key, strict=True)), "seeds": len(group)}
        for metric in metrics:
            mean, low, high = mean_interval(group[metric].to_numpy(), level)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def difference(
    runs: pd.DataFrame, by: str, one: object, other: object, metric: str, seed: str = "seed", level: float = 0.95
) -> Interval:
    """Mean over seeds of `metric` where `by` is `one`, less that where it is `other`, paired within the seed.

    Raises:
        LabError: a seed with no row, or several, of either.
    """
    sides = []
    for value in (one, other):
        part = runs[runs[by] == value].set_index(seed)[metric]
        if part.empty or not part.index.is_unique:
            raise LabError(f"'{value}' needs exactly one row a seed for a paired difference.")
        sides.append(part)
    first, second = sides[0].align(sides[1])
    if first.isna().any() or second.isna().any():
        raise LabError(f"'{one}' and '{other}' were not run on the same seeds, or {metric} is missing somewhere.")
    return Interval(*mean_interval((first - second).to_numpy(), level))


def bootstrap(
    values: Sequence[Sequence[float]] | np.ndarray,
    statistic: Callable[[np.ndarray], float],
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of independent rows with its percentile interval.

    Args:
        values: (n,) or (n, d); rows are resampled with replacement.
        statistic: an array of that shape → one number.
        draws: bootstrap samples.
        level: of the interval.
        seed: of the resampling.
    """
    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return Interval(float(statistic(rows)), float("nan"), float("nan"))
    again = np.array([statistic(rows[i]) for i in _resampled(len(rows), draws, seed)])
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(rows)), float(low), float(high))


def bootstrap_median(values: Sequence[float] | np.ndarray, draws: int = 2000, seed: int = 0) -> Interval:
    """The median with its 95% percentile interval: `bootstrap` of `np.median`, to the last digit, all draws at once.

    Args:
        values: (n,), resampled with replacement.
        draws: bootstrap samples.
        seed: of the resampling.
    """
    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return Interval(float(np.median(rows)), float("nan"), float("nan"))
    again = np.median(rows[_resampled(len(rows), draws, seed)], axis=1)
    return Interval(float(np.median(rows)), *map(float, np.quantile(again, [0.025, 0.975])))


def _resampled(rows: int, draws: int, seed: int) -> np.ndarray:
    """Which rows each draw takes, (draws, rows)."""
    return np.random.default_rng(seed).integers(rows, size=(draws, rows))
