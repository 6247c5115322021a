"""Means over seeds with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent runs and its Student-t interval: (mean, low, high). One run has no interval: NaN ends.

    Args:
        values: one number a run, shape (n,).
        level: coverage of the interval if the runs' numbers are normal.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def summarise(runs: pd.DataFrame, by: str, metrics: list[str], level: float = 0.95) -> pd.DataFrame:
    """One row for each value of `by`, in order of appearance: for each metric its mean, `_low` and `_high`."""
    import pandas as pd

    rows = []
    for key, group in runs.groupby(by, sort=False):
        row: dict[str, object] = {by: key, "seeds": len(group)}
        for metric in metrics:
            mean, low, high = mean_interval(group[metric].to_numpy(), level)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)
