"""Settings of the experiment `rso-why`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments.runner import EXACT_SCALES, Settings
from rlhf_lab.experiments.setup_text import UNITS

DIRECT = "gold ref N"
MANY = ("rm ref M", "rm r M", "gold ref M", "gold star M")
ENDLESS = ("rm ref inf", "rm r inf", "gold ref inf", "gold star inf")
FEW = ("rm ref N", "gold r N", "gold star N")


@dataclass(frozen=True)
class RSOWhy(Settings):
    """Why should pairs from π_r help: free labels, limited capacity, or statistics?"""

    task: str = ""
    """Text world of a language model. Default: summaries."""
    beta: NonNegative = 0.5
    """β of π_r, of the loss and of the objective, in logits of a label."""
    labels: Natural = 0
    """N, labels of the gold reward. 0: 400 on the bandit, 2,000 on the tree, 192 for a language model."""
    pairs: Natural = 0
    """M, pairs that the reward model labels for nothing. 0: ten times as many; for a language model what `prompts` and
    `accepted` come to."""
    features: Natural = 3
    """Numbers a prompt that the bandit's limited policy can set; a full one sets 10."""
    soft_pairs: Natural = 0
    """Pairs, each with its label's probability, that stand for endless ones on the tree. 0: 100,000."""
    prompts: Natural = 0
    """Prompts that a language model answers for its pairs. 0: 192, as many as its labels are on."""
    candidates: Natural = 0
    """Draws of π_ref for each. 0: 16."""
    accepted: Natural = 0
    """Of these, how many are paired. 0: 4, so that there are twice as many pairs as labels."""
    steps: Natural = 0
    """Optimiser steps of a language model's fit. 0: 20."""
    batch: Natural = 16
    """Pairs in such a step."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates that the search tries for both of a language model's policies. Default: 1e-4, 3e-4, 1e-3, 3e-3."""
    reward_steps: Natural = 0
    """Optimiser steps of a language model's reward model. 0: 60."""
    test_prompts: Natural = 0
    """Test prompts that a language model answers in the end. 0: 64."""
    test_samples: Natural = 0
    """Responses to each. 0: 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)
        text, tree = self.scale not in EXACT_SCALES, self.scale == "tree"
        usual: dict[str, Any] = {
            "seeds": 4 if text else 6 if tree else 40,
            "task": "summaries" if text else self.scale,
            "labels": 192 if text else 2000 if tree else 400,
            "soft_pairs": 100_000,
            "prompts": 192,
            "candidates": 16,
            "accepted": 4,
            "steps": 20,
            "rates": (1e-4, 3e-4, 1e-3, 3e-3),
            "reward_steps": 60,
            "test_prompts": 64,
            "test_samples": 4,
        }
        if self.quick:
            usual |= {
                "seeds": 2,
                "prompts": 4,
                "candidates": 8,
                "accepted": 4,
                "steps": 1,
                "rates": (1e-3,),
                "soft_pairs": 5000,
            }
            usual |= {"reward_steps": 2, "test_prompts": 4, "test_samples": 2, "labels": 16 if text else 200}
        for name, value in usual.items():
            if getattr(self, name) in (0, (), ""):
                object.__setattr__(self, name, value)
        if self.pairs == 0:
            many = self.prompts * self.accepted // 2 if text else self.labels * (2 if self.quick else 10)
            object.__setattr__(self, "pairs", many)
        if self.pairs < 8 or self.labels < 8 or self.features < 1:
            raise LabError("There must be 8 labels and 8 pairs at least, and a feature.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if text and self.task not in UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(UNITS)}.")

    @property
    def exact(self) -> bool:
        """Whether the scale is an exact one."""
        return self.scale in EXACT_SCALES

    @property
    def conditions(self) -> tuple[str, ...]:
        """Labeller, source of the responses, number of pairs."""
        return (DIRECT, *MANY, *ENDLESS, *FEW) if self.exact else (DIRECT, *MANY)
