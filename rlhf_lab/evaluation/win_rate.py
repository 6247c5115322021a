r"""Win rates: how often the responses of one policy are preferred to those of another, with a confidence interval.

A comparison is a number in [0, 1], where 1 is a win, ½ a tie and 0 a loss. It is averaged over both orders in which the
two responses can be shown. Comparisons for one prompt are correlated, so the standard error is a cluster standard error
over prompts. The interval is Wilson's, with the number of independent comparisons that would have this standard error,
and with Student's t for few prompts. It lies within [0, 1], and its width is not zero for a win rate of 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_lab.errors import LabError, count_of
from rlhf_lab.evaluation.judges import Judge
from rlhf_lab.evaluation.sampled import quantile
from rlhf_lab.intervals import Interval
from rlhf_lab.rounding import rounding, wins


@dataclass(frozen=True)
class WinRate:
    """A win rate with its standard error and interval."""

    mean: float
    """The share of comparisons that were won. A tie counts half."""
    error: float
    """The standard error of the mean over prompts; NaN for one prompt."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    ties: float
    """The share of comparisons that were ties after averaging over both orders."""
    comparisons: int
    """The number of comparisons with a verdict."""
    prompts: int
    """The number of prompts with a verdict."""
    unanswered: int = 0
    """The number of comparisons that were left out because the judge gave no verdict."""
    position_bias: float = 0.0
    """The frequency with which the response shown first is preferred, minus ½."""
    turned: float = 0.0
    """The share of comparisons whose verdict changed with the order."""

    def __str__(self) -> str:
        rate = Interval(self.mean, self.low, self.high)
        text = f"{rate:percent,1}, {self.ties:.1%} ties, {count_of(self.comparisons, 'comparison')}"
        if self.turned or self.position_bias:
            text += f", position bias {self.position_bias:+.1%}, {self.turned:.1%} changed with the order"
        return text + (f", {self.unanswered} unanswered" if self.unanswered else "")


def win_rate(
    prompts: Sequence[str],
    a: Sequence[str] | Sequence[Sequence[str]],
    b: Sequence[str] | Sequence[Sequence[str]],
    judge: Judge,
    level: float = 0.95,
) -> WinRate:
    """Compute how often the responses in `a` are preferred to those in `b`.

    Args:
        prompts: B texts.
        a: B responses, or B lists of G responses. All responses to one prompt must be in one list, because the
            standard error treats the rows as independent.
        b: the same. A single response to a prompt, such as an SFT target, is compared with each response in `a`.
        judge: see `rlhf_lab.evaluation.judges`. It compares in both orders, unless the order cannot change its result.
        level: level of the confidence interval.

    Raises:
        LabError: nothing to compare; sides that do not match; a preference outside [0, 1]; no verdict at all.
    """
    rows = _comparisons(prompts, a, b)
    asked, ours, theirs = [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
    first = _checked(judge(asked, ours, theirs), len(rows))
    second = [1 - p for p in first] if judge.order_free else _checked(judge(asked, theirs, ours), len(rows))
    both = [(row[0], p, q) for row, p, q in zip(rows, first, second, strict=True) if not math.isnan(p + q)]
    if not both:
        raise LabError(f"The judge gave no verdict on any of {count_of(len(rows), 'comparison')}.")
    values = [(p + 1 - q) / 2 for _, p, q in both]
    clusters: dict[int, list[float]] = {}
    for (number, _, _), value in zip(both, values, strict=True):
        clusters.setdefault(number, []).append(value)
    mean, error = _cluster(list(clusters.values()))
    low, high = _wilson(mean, error, len(clusters), level)
    count = len(values)
    sides = [_sides([row[1] for row in both]), _sides([row[2] for row in both])]
    return WinRate(
        mean,
        error,
        low,
        high,
        ties=sum(side == 0.5 for side in _sides(values)) / count,
        comparisons=count,
        prompts=len(clusters),
        unanswered=len(rows) - count,
        position_bias=sum((p + q - 1) / 2 for _, p, q in both) / count,
        turned=sum(p == q != 0.5 for p, q in zip(*sides, strict=True)) / count,
    )


def _sides(preferences: list[float]) -> list[float]:
    """1 for preferences above ½, 0 for those below, and ½ for those that are ½ within rounding."""
    return wins(torch.tensor(preferences, dtype=torch.float64), 0.5).tolist()


def _comparisons(prompts: Sequence[str], a: Sequence[Any], b: Sequence[Any]) -> list[tuple[int, str, str, str]]:
    """The comparisons as rows (number of the prompt, prompt, response of a, response of b)."""
    if not len(prompts) == len(a) == len(b):
        known = count_of(len(prompts), "prompt")
        raise LabError(f"{known} came with responses to {len(a)} and {len(b)}. Give one row per prompt.")
    rows = []
    for i, (x, ours, theirs) in enumerate(zip(prompts, a, b, strict=True)):
        left = [ours] if isinstance(ours, str) else list(ours)
        right = [theirs] if isinstance(theirs, str) else list(theirs)
        if 1 in (len(left), len(right)):
            left, right = (side * (max(len(left), len(right)) if len(side) == 1 else 1) for side in (left, right))
        if len(left) != len(right):
            raise LabError(
                f"Prompt {i} has {count_of(len(left), 'response')} on one side and {len(right)} on the other."
            )
        rows += [(i, x, y, z) for y, z in zip(left, right, strict=True)]
    if not rows:
        raise LabError("There is nothing to compare, because there are no prompts or no responses.")
    return rows


def _checked(preferences: Sequence[float], wanted: int) -> list[float]:
    out = [float(p) for p in preferences]
    if len(out) != wanted:
        raise LabError(f"The judge returned {count_of(len(out), 'preference')} for {count_of(wanted, 'comparison')}.")
    bad = next((p for p in out if not (0 <= p <= 1 or math.isnan(p))), None)
    if bad is not None:
        raise LabError(f"The judge returned the preference {bad}; it must lie in [0, 1].")
    return out


def proportion(values: Sequence[float], groups: Sequence[Hashable], level: float = 0.95) -> Interval:
    """Compute the mean of numbers in [0, 1] with Wilson's interval, for which the rows of a group are correlated.

    Args:
        values: at least one number in [0, 1], for example 1 for a win, 0 for a loss, and ½ for a tie.
        groups: the group of each value, such as its prompt.
        level: level of the confidence interval.

    Returns:
        the mean and its interval, which is [0, 1] for a single group.
    """
    clusters: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        clusters.setdefault(group, []).append(value)
    mean, error = _cluster(list(clusters.values()))
    return Interval(mean, *_wilson(mean, error, len(clusters), level))


def _cluster(clusters: list[list[float]]) -> tuple[float, float]:
    total, count = sum(map(len, clusters)), len(clusters)
    mean = math.fsum(value for cluster in clusters for value in cluster) / total
    if count < 2:
        return mean, math.nan
    spread = math.fsum((math.fsum(cluster) - len(cluster) * mean) ** 2 for cluster in clusters)
    return mean, math.sqrt(spread * count / (count - 1)) / total


def _wilson(mean: float, error: float, prompts: int, level: float) -> tuple[float, float]:
    if prompts < 2:
        return 0.0, 1.0
    # If all comparisons have the same result, each prompt counts as one comparison.
    spread = error > float(rounding(mean)) and 0 < mean < 1
    number = mean * (1 - mean) / error**2 if spread else prompts
    z = quantile(level, prompts - 1)
    centre = (mean + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(mean * (1 - mean) / number + z * z / (4 * number**2))
    # An end that is 0 or 1 exactly would otherwise be off by a rounding error, and printed as a tiny number.
    return max(centre - half, 0.0) if mean > 0 else 0.0, min(centre + half, 1.0) if mean < 1 else 1.0
