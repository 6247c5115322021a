"""Settings of the experiment `annotation-budget`."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments.runner import EXACT_SCALES, Settings

RATIOS = (1.0, 3.0, 10.0, 30.0)
"""Price of a demonstration in preference labels."""


@dataclass(frozen=True)
class AnnotationBudget(Settings):
    """What N labels buy, which pairs to label, and how to split money between kinds of data."""

    beta: NonNegative = 0.0
    """β of the objective in the active part and after. 0: bandit 0.3; tree and text 0.5."""
    arms: Natural = 10
    """Responses of a bandit (the limit's part uses 6)."""
    tokens: Natural = 0
    """Tokens of the tree; its responses are three long. 0: 3, which makes 27 responses."""
    worlds: Natural = 0
    """Worlds of each seed, its own. 0: bandit 2, tree 1."""
    runs: Natural = 0
    """Sets of labels in each world. 0: bandit 60, tree 30."""
    limit_runs: Natural = 0
    """The same where the limit is checked. 0: bandit 400, tree 100."""
    labels: Natural = 0
    """Labels at which strategies are judged. 0: bandit 2560, tree 6912."""
    doublings: Natural = 0
    """Batches before that, each as large as all before it. 0: 6."""
    limit_labels: Natural = 0
    """The largest N of the limit. 0: bandit 4,096,000, tree 65,536,000."""
    budget: Natural = 400
    """Money for demonstrations and labels in the splits of the exact scales, in labels."""
    demo_beta: NonNegative = 1.0
    """β_demo of the demonstrator."""
    world: str = "sentiment"
    """Text world of a language model's scale."""
    money: NonNegative = 0.0
    """Money of each strategy on a language model, in labels. 0: 256."""
    price_demonstration: NonNegative = 4.0
    """Price of a demonstration on a language model, in labels."""
    price_sample: NonNegative = 0.01
    """Price of a response drawn."""
    price_step: NonNegative = 0.05
    """Price of an optimiser step."""
    steps: Natural = 0
    """Optimiser steps of a policy's fit on a language model. 0: 24."""
    test_prompts: Natural = 0
    """Test prompts of a language model. 0: 64."""

    def __post_init__(self) -> None:
        tree, quick = self.scale == "tree", self.quick
        text = self.scale not in EXACT_SCALES
        usual = {
            "seeds": 2 if quick else 3 if text else 6 if tree else 20,
            "beta": 0.5 if tree or text else 0.3,
            "tokens": 2 if quick else 3,
            "worlds": 1 if quick or tree else 2,
            "runs": 6 if quick else 30 if tree else 60,
            "limit_runs": 20 if quick else 100 if tree else 400,
            "labels": 432 if quick else 6912 if tree else 2560,
            "doublings": 2 if quick else 6,
            "limit_labels": 16_000 if quick else 65_536_000 if tree else 4_096_000,
            "money": 24.0 if quick else 256.0,
            "steps": 2 if quick else 24,
            "test_prompts": 4 if quick else 64,
        }
        for name, value in usual.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        check_beta(self.demo_beta)
        if min(self.worlds, self.runs, self.limit_runs, self.doublings, self.steps, self.test_prompts) < 1:
            raise LabError("worlds, runs, limit_runs, doublings, steps and test_prompts must be at least 1.")
        if (
            self.arms < 3
            or self.tokens < 2
            or self.labels < 2**self.doublings
            or self.limit_labels < 1000
            or self.budget < 40
        ):
            raise LabError(
                "There must be 3 arms, 2 tokens, 2^doublings labels, 1000 limit_labels and a budget of 40 at least."
            )
        if min(self.money, self.price_demonstration, self.price_sample + 1, self.price_step + 1) < 1:
            raise LabError("money and the price of a demonstration must be at least 1, other prices not negative.")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Prices of a demonstration that are tried."""
        return RATIOS[:2] if self.quick else RATIOS

    @property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of batches that are tried."""
        return (1, 20) if self.quick else (1, 2, 3, 5, 10, 20)

    @property
    def totals(self) -> list[int]:
        """Labels after each batch."""
        return [self.labels // 2**k for k in range(self.doublings, -1, -1)]

    @property
    def limit_totals(self) -> list[int]:
        """Labels at which the limit is looked at."""
        out = [1000]
        while out[-1] * 4 <= self.limit_labels:
            out.append(out[-1] * 4)
        return out
