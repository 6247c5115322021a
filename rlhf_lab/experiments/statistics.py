"""Means over seeds with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lab.evaluation import mean_interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["mean_interval", "summarise"]


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
