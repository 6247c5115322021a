"""Closed forms over an enumerated response set.

Z, π*, KL, J, regret, the frontier, best-of-n, ReST's limit, and what a preference label is worth.

Pure functions of tensors. The last axis is the K responses of a prompt; any axes may stand before it. float32
and float64. `-inf` is allowed in log-probabilities where a policy has no mass. All are differentiable.
"""

from rlhf_lab.exact import drift
from rlhf_lab.exact.best_of_n import best_of_n
from rlhf_lab.exact.label_value import label_price, optimal_pair_design
from rlhf_lab.exact.policy import (
    frontier,
    implicit_reward,
    kl,
    log_partition,
    objective,
    optimal_policy,
    preference,
    regret,
)
from rlhf_lab.exact.reward_filter import filtered
from rlhf_lab.exact.tree import path_sums, prefix_tables, soft_values

__all__ = [
    "best_of_n",
    "drift",
    "filtered",
    "frontier",
    "implicit_reward",
    "kl",
    "label_price",
    "log_partition",
    "objective",
    "optimal_pair_design",
    "optimal_policy",
    "path_sums",
    "preference",
    "prefix_tables",
    "regret",
    "soft_values",
]
