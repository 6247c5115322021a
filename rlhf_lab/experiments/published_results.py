"""Published numbers that results are set beside: data with its source, nothing computed here."""

from __future__ import annotations

from typing import NamedTuple


class RSORow(NamedTuple):
    """One row of RSO's Table 1, percentages of wins against the SFT target."""

    proxy: float
    """By the reward model that the methods train on."""
    gold: float
    """By a larger reward model."""
    judge: float
    """AutoSxS: a large language model asked side by side."""


RSO_TABLE_1: dict[str, dict[str, RSORow]] = {
    "summaries": {
        "raft": RSORow(74.84, 68.51, 53.77),
        "rest": RSORow(49.03, 46.17, 34.36),
        "sigmoid-norm direct": RSORow(84.35, 76.09, 67.72),
        "sigmoid-norm sft-sample-rank": RSORow(88.63, 78.14, 69.02),
        "sigmoid-norm rso-sample-rank": RSORow(92.37, 82.22, 71.86),
        "hinge direct": RSORow(86.92, 79.76, 60.54),
        "hinge sft-sample-rank": RSORow(90.15, 80.19, 67.34),
        "hinge rso-sample-rank": RSORow(93.36, 84.40, 69.26),
        "hinge-norm direct": RSORow(83.93, 76.43, 66.63),
        "hinge-norm sft-sample-rank": RSORow(88.04, 76.57, 68.46),
        "hinge-norm rso-sample-rank": RSORow(92.80, 83.45, 70.84),
    },
    "dialogue": {
        "raft": RSORow(58.21, 40.00, 24.99),
        "rest": RSORow(43.48, 30.33, 15.58),
        "sigmoid-norm direct": RSORow(51.63, 36.13, 24.01),
        "sigmoid-norm sft-sample-rank": RSORow(85.09, 58.65, 39.56),
        "sigmoid-norm rso-sample-rank": RSORow(86.94, 59.15, 40.98),
        "hinge direct": RSORow(35.95, 27.56, 15.69),
        "hinge sft-sample-rank": RSORow(80.82, 54.55, 30.66),
        "hinge rso-sample-rank": RSORow(82.21, 55.22, 32.56),
        "hinge-norm direct": RSORow(49.55, 37.23, 22.89),
        "hinge-norm sft-sample-rank": RSORow(82.40, 56.55, 35.96),
        "hinge-norm rso-sample-rank": RSORow(84.44, 57.75, 38.58),
    },
}
"""Liu et al. 2024 (RSO), Table 1. The paper's tasks stand under the names of the text worlds that take their place:
Reddit TL;DR under `summaries`, Anthropic HH under `dialogue`. Policies T5-large, reward model T5-XXL."""


class RSORanking(NamedTuple):
    """One row of RSO's Table 2, percentages of wins against the SFT target."""

    proxy: float
    judge: float


RSO_TABLE_2: dict[str, RSORanking] = {
    "sft-8 first-round": RSORanking(88.63, 68.51),
    "sft-8 tournament": RSORanking(90.69, 68.57),
    "rso-8 first-round": RSORanking(92.37, 71.86),
    "rso-8 tournament": RSORanking(93.35, 71.69),
    "sft-64 first-round": RSORanking(88.91, 68.84),
    "sft-64 tournament": RSORanking(91.14, 71.08),
}
"""Liu et al. 2024 (RSO), Table 2: candidates and ranking on Reddit TL;DR, sigmoid-norm."""

DPO_WIN_RATES = {"dpo": 0.617, "ppo": 0.570}
"""Rafailov et al. 2023 (DPO), the figure on TL;DR: win rates at temperature 0, which is also PPO's best there."""
