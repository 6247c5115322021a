"""Settings of question 10, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, NonNegative, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

MARGIN = 0.1
"""Margin within which N · regret must equal its closed-form limit."""
MAX_RATIO = 1.25
"""A source of pairs is as good as the best design if it needs at most this many times its labels."""
TIE = 0.1
"""Text: two strategies tie if the interval of their difference in J lies within ± this, in logits of a label."""
TEXT_COMPARED = ("uncertain", "rounds-4", "demonstrations")
"""Text: the strategies that answer which pairs to label, in how many rounds, and whether to buy demonstrations."""
ROUNDS_MARGIN = 1.1
"""Enough rounds are the fewest whose median is at most this many times that of the largest number of rounds."""
LIMITS = ("reference", "optimal", "design")
"""The sources of pairs whose simulated regret is compared with its limit."""
RATIOS = (1.0, 3.0, 10.0, 30.0)
"""Prices of a demonstration, in preference labels."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Shares of the budget that are spent on demonstrations."""

RULE = f"""This is a question, so it has an answer and no verdict. It is answered on a scale if three comparisons are
decided, whichever way. If a comparison is open, the question is inconclusive on that scale. On the bandit and the
tree they are:

- Does the closed form predict the regret? It does if N times the regret, divided by its limit, is 1 within
  {MARGIN:.0%} at the largest N, with pairs from the best design. The comparison is decided if the interval lies
  within this margin or outside it.
- Does a policy that does not know the rewards need more than {MAX_RATIO:g} times the labels of the best design, which
  knows them?
- Do random pairs from π_ref need more than {MAX_RATIO:g} times as many labels as the best design?

The last two are medians over worlds with bootstrap intervals, and each is decided if its interval excludes
{MAX_RATIO:g}. Each of the three intervals has the level 1 − 5%/3.

On the language model three strategies are compared with DPO on random pairs from π_ref by J, at equal cost. They are
pairs on which two reward models differ, four rounds of labels, and half of the money on demonstrations. The t
intervals over seeds are corrected by Holm's procedure at 95%. A comparison is decided if its interval excludes 0 or
lies within ±{TIE:g}, which is a tie."""


@dataclass(frozen=True, init=False, kw_only=True)
class AnnotationBudget(Settings):
    """Compare ways to use a budget of labels: which pairs, in how many rounds, and how much on demonstrations."""

    beta: Positive
    """β of the objective. On the bandit the comparison with the limit has β = 0.5."""
    arms: Count
    """Bandit: number of responses. The comparison with the limit has 6."""
    tokens: Count
    """Tree: number of tokens. Responses have three tokens, so 3 tokens make 27 responses."""
    worlds: Count
    """Number of worlds of each seed."""
    runs: Count
    """Sets of labels that are drawn in each world."""
    limit_runs: Count
    """The same for the comparison with the limit."""
    labels: Count
    """Number of labels at which the sources of pairs are compared."""
    doublings: Count
    """Number of evaluations with fewer labels. Each has half as many labels as the next."""
    limit_labels: Count
    """Largest number of labels for the comparison with the limit."""
    budget: Count
    """Bandit and tree: budget for demonstrations and labels together, in labels."""
    demo_beta: Positive
    """β_demo of the demonstrator."""
    world: str
    """Language model: name of the text world."""
    money: NonNegative
    """Language model: what each strategy spends, in labels."""
    price_demonstration: NonNegative
    """Language model: price of a demonstration, in labels."""
    price_sample: NonNegative
    """Language model: price of a sampled response, in labels."""
    price_step: NonNegative
    """Language model: price of an optimiser step, in labels."""
    steps: Count
    """Language model: optimiser steps of a policy."""
    test_prompts: Count
    """Language model: number of test prompts."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(200, 200, 3),
        "beta": PerScale(0.3, 0.5, 0.5),
        "arms": 10,
        "tokens": 3,
        "worlds": PerScale(2, 1, 2),
        "runs": PerScale(60, 30, 60),
        "limit_runs": PerScale(400, 100, 400),
        "labels": PerScale(2560, 6912, 2560),
        "doublings": 6,
        "limit_labels": PerScale(4_096_000, 65_536_000, 4_096_000),
        "budget": 400,
        "demo_beta": 1.0,
        "world": "sentiment",
        "money": 256.0,
        "price_demonstration": 4.0,
        "price_sample": 0.01,
        "price_step": 0.05,
        "steps": 24,
        "test_prompts": 64,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "tokens": 2,
        "worlds": 1,
        "runs": 6,
        "limit_runs": 20,
        "labels": 432,
        "doublings": 2,
        "limit_labels": 16_000,
        "money": 24.0,
        "steps": 2,
        "test_prompts": 4,
    }

    def check(self) -> None:
        """Refuse numbers that leave a part of the experiment without data."""
        least = {
            "arms": 3, "tokens": 2, "labels": 2**self.doublings, "limit_labels": 1000, "budget": 40, "money": 1,
            "price_demonstration": 1,
        }  # fmt: skip
        for name, number in least.items():
            if getattr(self, name) < number:
                raise LabError(f"{name} must be at least {number}, not {getattr(self, name)}.")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Prices of a demonstration, in preference labels."""
        return RATIOS[:2] if self.quick else RATIOS

    @property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of rounds in which the labels are collected."""
        return (1, 20) if self.quick else (1, 2, 3, 5, 10, 20)

    @property
    def totals(self) -> list[int]:
        """Numbers of labels at which the sources of pairs are evaluated."""
        return [self.labels // 2**k for k in range(self.doublings, -1, -1)]

    @property
    def round_labels(self) -> int:
        """Number of labels for the comparison of rounds."""
        return self.totals[-3] if self.doublings > 2 else self.labels

    @property
    def limit_totals(self) -> list[int]:
        """Numbers of labels for the comparison with the limit: 1,000 and its multiples by powers of 4."""
        return [1000 * 4**k for k in range(20) if 1000 * 4**k <= self.limit_labels]
