"""Closed forms for a finite set of responses, as pure functions of tensors.

    policy         log Z, the variance of its estimate, π*, KL, the objective J, regret, the frontier, preferences
    tree           π* token by token, by the soft-value recursion
    best_of_n      the distributions of best-of-n, which is RAFT's target, of soft best-of-n and of RSO
    reward_filter  the limit of ReST's reward filter
    group_methods  the limits of GRPO and Dr. GRPO on a bandit
    label_value    the value of preference labels, and the best pairs to label
    loss_slope     the slope γ of RSO's loss: the limit of the fit, its first step, the best γ
    drift          the regret when the rewards drift over time

The last axis is the K responses of a prompt, and any axes may precede it. The functions take float32 and float64 and
are differentiable. Log-probabilities may be `-inf` where a policy has no mass.
"""

from rlhf_lab.exact import drift
from rlhf_lab.exact.best_of_n import best_of_n, soft_best_of_n
from rlhf_lab.exact.group_methods import expected_advantage, grpo_limit, reverse_kl_optimum
from rlhf_lab.exact.label_value import d_optimal_pair_design, label_price, optimal_pair_design
from rlhf_lab.exact.loss_slope import best_slope, label_means, pair_gradient, slope_moments
from rlhf_lab.exact.policy import (
    frontier,
    implicit_reward,
    kl,
    log_partition,
    objective,
    optimal_policy,
    preference,
    regret,
    relative_variance,
)
from rlhf_lab.exact.reward_filter import filtered
from rlhf_lab.exact.tree import path_sums, prefix_tables, soft_values

__all__ = [
    "best_of_n",
    "best_slope",
    "d_optimal_pair_design",
    "drift",
    "expected_advantage",
    "filtered",
    "frontier",
    "grpo_limit",
    "implicit_reward",
    "kl",
    "label_means",
    "label_price",
    "log_partition",
    "objective",
    "optimal_pair_design",
    "optimal_policy",
    "pair_gradient",
    "path_sums",
    "preference",
    "prefix_tables",
    "regret",
    "relative_variance",
    "reverse_kl_optimum",
    "slope_moments",
    "soft_best_of_n",
    "soft_values",
]
