"""Means over seeds with confidence intervals, paired differences between two conditions, and the bootstrap.

Unless stated otherwise, intervals are Student's t intervals over seeds. A difference between two conditions is computed
within each seed first. Two methods with the same labels share the randomness of the seed, and it cancels in the
difference. Medians and ratios have bootstrap intervals (Efron 1979; percentile interval, resampling seeds).

A rule that looks at several comparisons takes their intervals from `holm_intervals`, and a rule that compares a ratio
with 1 takes its answer from `equivalence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import mean_interval
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "bootstrap",
    "bootstrap_median",
    "by_metric",
    "difference",
    "equivalence",
    "exp_of",
    "holm_intervals",
    "in_row",
    "interval_at",
    "mean_interval",
    "mean_of",
    "paired",
    "summarise",
    "summarise_geometric",
]


def mean_of(values: Sequence[float] | np.ndarray | pd.Series, level: float = 0.95) -> Interval:
    """Return the mean of one number per seed with its t interval."""
    return Interval(*mean_interval(np.asarray(values, dtype=float), level))


def in_row(row: Any, metric: str) -> Interval:
    """Return `metric` of a row of `summarise`, with its interval."""
    return Interval(*(float(row[f"{metric}{end}"]) for end in ("", "_low", "_high")))


def interval_at(summary: pd.DataFrame, metric: str, **where: Any) -> Interval:
    """Return `metric` with its interval from the row of a summary in which the columns `where` have the given values.

    Raises:
        LabError: there is no such row, or there are several.
    """
    rows = summary
    for name, value in where.items():
        rows = rows[rows[name] == value]
    if len(rows) != 1:
        raise LabError(f"The summary has {len(rows)} rows with {where}, but {metric} should be in exactly one.")
    return in_row(rows.iloc[0], metric)


def exp_of(logs: Interval) -> Interval:
    """Return the exponential of an interval, such as a geometric mean with its interval from the mean of logarithms."""
    return Interval(*np.exp(logs).tolist())


def summarise(runs: pd.DataFrame, by: str | list[str], metrics: list[str], level: float = 0.95) -> pd.DataFrame:
    """Return one row for each value (or combination) of `by`, in order of appearance, with means and intervals.

    Args:
        runs: the rows. Those of one group are treated as independent, so there must be one for each seed.
        by: the columns that define a group.
        metrics: the columns to summarise. Each gives its mean and the ends `<metric>_low` and `<metric>_high`.
        level: of the intervals.
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


def summarise_geometric(
    runs: pd.DataFrame, by: list[str], geometric: list[str], metrics: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the table of `summarise`, with geometric means of some columns.

    Args:
        runs: the rows.
        by: the columns that define a group.
        geometric: columns of positive numbers. The mean and the interval of their logarithms are exponentiated.
        metrics: further columns, with usual means.
    """
    logs = runs.assign(**{name: np.log(runs[name]) for name in geometric})
    table = summarise(logs, by, [*geometric, *metrics])
    ends = [f"{name}{end}" for name in geometric for end in ("", "_low", "_high")]
    table[ends] = np.exp(table[ends])
    return table


def by_metric(summary: pd.DataFrame, metrics: Sequence[str], scale: float = 1) -> pd.DataFrame:
    """Return one row for each row of a summary and metric, for pictures that separate metrics by their look.

    Args:
        summary: rows of `summarise`.
        metrics: names of its columns.
        scale: factor of the values: 100 for percentages.

    Returns:
        the summary's columns, with `metric` and with `value`, `value_low` and `value_high`.
    """
    import pandas as pd

    ends = ("", "_low", "_high")
    return pd.concat(
        summary.assign(metric=metric, **{f"value{end}": scale * summary[f"{metric}{end}"] for end in ends})
        for metric in metrics
    )


def difference(runs: pd.DataFrame, by: str, one: object, other: object, metric: str) -> Interval:
    """Return the mean over seeds of the paired differences (see `paired`) with its interval."""
    return mean_of(paired(runs, by, one, other, metric))


def paired(runs: pd.DataFrame, by: str, one: object, other: object, metric: str, seed: str = "seed") -> np.ndarray:
    """Return `metric` where `by` is `one` minus that where it is `other`, for each seed.

    Args:
        runs: the rows.
        by: the column that names the condition.
        one: the first condition.
        other: the second condition, which is subtracted.
        metric: the column that is compared.
        seed: the column that names the seed.

    Raises:
        LabError: a seed has no row, or several rows, of one condition.
    """
    sides = []
    for value in (one, other):
        part = runs[runs[by] == value].set_index(seed)[metric]
        if part.empty or not part.index.is_unique:
            raise LabError(f"A paired difference needs exactly one row of '{value}' for each seed.")
        sides.append(part)
    first, second = sides[0].align(sides[1])
    if first.isna().any() or second.isna().any():
        raise LabError(
            f"A paired difference needs '{one}' and '{other}' on the same seeds. They differ, or a {metric} is missing."
        )
    return np.asarray(first - second, dtype=float)


def holm_intervals(
    differences: Mapping[str, Sequence[float] | np.ndarray], level: float = 0.95, threshold: float = 0.0
) -> dict[str, Interval]:
    """Return intervals for a family of comparisons, corrected for their number by Holm's procedure (1979).

    The comparisons are ordered by the p-value of a two-sided t test against the threshold. With k comparisons the first
    interval has the level 1 − (1 − level)/k, the next one 1 − (1 − level)/(k − 1), and so on. From the first interval
    that contains the threshold on, the level no longer rises. So an interval excludes the threshold exactly where
    Holm's procedure rejects equality, and if all true differences equal the threshold, some interval excludes it in at
    most a share 1 − level of experiments. An interval on either side of the threshold counts equally, which makes a
    rule that reads them symmetric.

    Args:
        differences: name of a comparison → one number per seed, such as those of `paired`.
        level: of the family.
        threshold: with which the means are compared.

    Returns:
        the interval of each comparison, in the given order. Its ends are NaN for a single seed.
    """
    from scipy import stats

    def p_value(name: str) -> float:
        mean, low, high = mean_interval(np.asarray(differences[name], dtype=float))
        if math.isnan(low) or mean == threshold:
            return 1.0
        if low == high:
            return 0.0
        degrees = len(differences[name]) - 1
        error = (high - low) / 2 / float(stats.t.ppf(0.975, degrees))
        return 2 * float(stats.t.sf(abs(mean - threshold) / error, degrees))

    found: dict[str, Interval] = {}
    left, rejecting = len(differences), True
    for name in sorted(differences, key=p_value):
        one = mean_of(differences[name], 1 - (1 - level) / left)
        rejecting = rejecting and (one.low > threshold or one.high < threshold)
        left -= rejecting and left > 1
        found[name] = one
    return {name: found[name] for name in differences}


def equivalence(ratio: Interval, margin: float) -> Literal["equal", "different", "open"]:
    """Decide whether a ratio equals 1 up to a margin that was stated beforehand.

    "The interval contains 1" would become less likely with every further seed. Here more seeds decide more often: the
    ratio is equal to 1 if its interval lies within [1 − margin, 1 + margin] (two one-sided tests, Schuirmann 1987),
    different if the interval lies outside, and open otherwise.

    Args:
        ratio: an estimate with its interval. One of level 1 − 2α makes each one-sided test one of level α.
        margin: between 0 and 1.
    """
    if 1 - margin <= ratio.low and ratio.high <= 1 + margin:
        return "equal"
    return "different" if ratio.high < 1 - margin or ratio.low > 1 + margin else "open"


def bootstrap(
    values: Sequence[Sequence[float]] | np.ndarray,
    statistic: Callable[[np.ndarray], float],
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of independent rows with its 95% percentile interval.

    Args:
        values: (n,) or (n, d); rows are resampled with replacement.
        statistic: an array of that shape → one number.
        draws: number of bootstrap samples.
        seed: of the resampling.
    """
    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return Interval(float(statistic(rows)), float("nan"), float("nan"))
    again = np.array([statistic(rows[i]) for i in _resampled(len(rows), draws, seed)])
    return Interval(float(statistic(rows)), *map(float, np.quantile(again, [(1 - 0.95) / 2, (1 + 0.95) / 2])))


def bootstrap_median(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """Return the median with its percentile interval, the same numbers as `bootstrap` with `np.median`.

    All bootstrap samples are computed together, which is faster.
    """
    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return Interval(float(np.median(rows)), float("nan"), float("nan"))
    again = np.median(rows[_resampled(len(rows), 2000, 0)], axis=1)
    return Interval(float(np.median(rows)), *map(float, np.quantile(again, [(1 - level) / 2, (1 + level) / 2])))


def _resampled(rows: int, draws: int, seed: int) -> np.ndarray:
    """Return the row numbers of each bootstrap sample, (draws, rows)."""
    return np.random.default_rng(seed).integers(rows, size=(draws, rows))
