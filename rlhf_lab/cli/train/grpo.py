"""`rlhf-lab train grpo`: train a language model on a reward, without a critic, with `algorithms/grpo_rloo.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.grpo_rloo import Group
from rlhf_lab.cli.train.grpo_rloo import run_group
from rlhf_lab.cli.train.runner import History
from rlhf_lab.cli.train.settings import Epochs, Flat, SamplingSettings


@dataclass(frozen=True, kw_only=True)
class TrainGRPO(SamplingSettings):
    """Train a causal language model on a reward with GRPO, which normalises the rewards of each prompt."""

    uses_ratio: ClassVar[bool] = True

    group: Annotated[Group, Flat] = field(default_factory=lambda: Group(kind="grpo"))
    epochs: Epochs = 1.0
    """Number of passes over the prompts, if `steps` is not given."""
    reference: str | None = None
    """Reference model. Default: the model itself before training."""


def train_grpo(settings: TrainGRPO) -> History:
    """Run the command; see `runner.run`."""
    return run_group(settings, "grpo")
