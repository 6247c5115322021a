"""Settings of claim 13, on the probability of chosen responses, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

CLASSES = ("table", "shared")
"""Policy classes: parameters of their own for each prompt, or shared ones: features on the bandit, and a transformer
on the tree."""
LOSSES = ("dpo", "ipo", "orpo", "dpo-nll", "dpop")

RULE = """Policies that share parameters are trained on one pair for each prompt until the mean margin is the same for
all losses and seeds. Three means over seeds are compared with zero, and their intervals are corrected by Holm's
procedure.

- The mean change of log π of the chosen responses under DPO counts for the claim below zero and against it above.
- Spearman's correlation, over the pairs of a seed, between the similarity of a pair (CHES, from the hidden embeddings
  of π_ref) and the change of log π of its chosen response under DPO counts for the claim below zero and against it
  above.
- The mean change of log π of the chosen responses under DPOP counts for the claim above zero and against it below.

The claim is supported if all count for it and partly supported if some do. It is not supported if none does and one
counts against it, and otherwise it is inconclusive."""


@dataclass(frozen=True, init=False, kw_only=True)
class ChosenProbability(Settings):
    """Measure how log π of chosen and rejected responses changes, by loss and by policy class."""

    prompts: Count
    """Prompts, with one labelled pair of π_ref each."""
    beta: Positive
    """β of DPO, of the losses with a further term, and τ of IPO. The papers use 0.1 to 0.3."""
    margin: Positive
    """Training stops when the mean of log π_θ/π_ref(chosen) − log π_θ/π_ref(rejected) is as large, in nats."""
    step: Positive
    """Length of a gradient step, as the change of the mean margin in nats if it has the direction of its gradient."""
    steps: Count
    """Most gradient steps."""
    nll_weight: Positive
    """α of DPO with the negative log-likelihood of the chosen response (Pang et al. use 1)."""
    penalty: Positive
    """λ of DPOP (Pal et al. use 50)."""
    odds_weight: Positive
    """λ of ORPO (Hong et al. use 0.1 to 1)."""
    betas: tuple[Positive, ...]
    """β for which the change from π_ref to π*, the limit of DPO with infinitely many pairs, is computed."""
    pretraining: Count
    """Tree: steps in which the transformer is fitted to a reference with structure."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(40, 16),
        "prompts": 16,
        "beta": 0.1,
        "margin": 3.0,
        "step": 0.1,
        "steps": 300,
        "nll_weight": 1.0,
        "penalty": 50.0,
        "odds_weight": 0.1,
        "betas": (0.1, 0.3, 1.0, 3.0),
        "pretraining": 100,
    }
    QUICK: ClassVar[Defaults] = {"seeds": 2, "prompts": 4, "margin": 0.3, "steps": 10, "pretraining": 5}
