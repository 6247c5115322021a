"""Bugs in `widgets`."""

from mutations.mutation import Mutation, in_file

MUTATIONS: list[Mutation] = [
    *in_file(
        "widgets/optimal_policy.py",
        ["widgets/test_explorer.py"],
        Mutation(
            "beta",
            "the tangent of the frontier has slope 1",
            "[gain - beta * half, gain + beta * half]",
            "[gain - half, gain + half]",
            near="widgets/test_explorer.py::test_the_dashed_line_is_the_tangent_of_the_frontier",
        ),
    ),
    *in_file(
        "widgets/bradley_terry.py",
        ["widgets/test_bradley_terry_explorer.py"],
        Mutation(
            "norm",
            "pairs of equal responses count among the labels",
            "pair = pair * (1 - torch.eye(len(reward), dtype=pair.dtype))\n",
            "pair = pair * 1\n",
            near="widgets/test_bradley_terry_explorer.py::test_a_scale_is_told_by_labels_and_acts_as_another_beta",
        ),
        Mutation(
            "swap",
            "the labels are those of the model",
            "* exact.preference(reward)\n",
            "* exact.preference(model)\n",
            near="widgets/test_bradley_terry_explorer.py::test_a_scale_is_told_by_labels_and_acts_as_another_beta",
        ),
        Mutation(
            "sign",
            "y₂ ≻ y₁",
            "float(reward[first] - reward[second]), float(model[first] - model[second])",
            "float(reward[second] - reward[first]), float(model[second] - model[first])",
            near="widgets/test_bradley_terry_explorer.py::test_the_preference_is_the_sigmoid_of_the_rewards_difference",
        ),
        Mutation(
            "beta",
            "the model's π* at another β",
            "exact.kl(exact.optimal_policy(log_ref, model, beta), star)",
            "exact.kl(exact.optimal_policy(log_ref, model, 1.0), star)",
            near="widgets/test_bradley_terry_explorer.py::test_an_offset_moves_the_bars_and_nothing_else",
        ),
        Mutation(
            "mean",
            "the offset is scaled too",
            "model = scale * reward + offset",
            "model = scale * (reward + offset)",
            near="widgets/test_bradley_terry_explorer.py::test_the_model_s_bars_are_the_scaled_rewards_plus_the_offset",
        ),
    ),
    *in_file(
        "widgets/dpo_gradient.py",
        ["widgets/test_dpo_gradient_explorer.py"],
        Mutation(
            "sign",
            "the gradient's weight is that of a correct pair",
            "betas * torch.sigmoid(-betas * gap)",
            "betas * torch.sigmoid(betas * gap)",
            near="widgets/test_dpo_gradient_explorer.py::test_the_point_lies_on_both_curves",
        ),
        Mutation(
            "beta",
            "the gradient without β",
            'Readout("β × weight", beta * weight, "per nat")',
            'Readout("β × weight", weight, "per nat")',
            near="widgets/test_dpo_gradient_explorer.py::test_the_pull_is_the_derivative_of_the_loss_by_autograd",
        ),
        Mutation(
            "sign",
            "the margin is rejected minus chosen",
            "return chosen - rejected, weight",
            "return rejected - chosen, weight",
            near="widgets/test_dpo_gradient_explorer.py::test_the_point_lies_on_both_curves",
        ),
        Mutation(
            "sign",
            "the tangent of the loss has the slope of the other label",
            "loss - weight * (ends - margin)",
            "loss - (1 - weight) * (ends - margin)",
            near="widgets/test_dpo_gradient_explorer.py::"
            "test_the_tangent_touches_the_loss_with_the_slope_that_autograd_computes",
        ),
    ),
    *in_file(
        "widgets/kl_estimators.py",
        ["widgets/test_kl_explorer.py"],
        Mutation(
            "norm",
            "an estimator's spread around zero",
            "(p * (values - mean).square()).sum()",
            "(p * values.square()).sum()",
            near="widgets/test_kl_explorer.py::test_mean_and_spread_of_each_estimator_are_those_worked_by_hand",
        ),
        Mutation(
            "swap",
            "∇KL(π_ref‖π) and ∇KL(π‖π_ref) are exchanged",
            "exact.kl(log_ref, now) if reverse else exact.kl(now, log_ref)",
            "exact.kl(now, log_ref) if reverse else exact.kl(log_ref, now)",
            near="widgets/test_kl_explorer.py::test_gradients_as_losses_are_nothing_the_kl_and_the_other_kl",
        ),
        Mutation(
            "data",
            "the samples' distribution carries a gradient",
            "loss = (fixed * ESTIMATORS",
            "loss = (logits.softmax(-1) * ESTIMATORS",
            near="widgets/test_kl_explorer.py::test_gradients_as_losses_are_nothing_the_kl_and_the_other_kl",
        ),
    ),
    *in_file(
        "widgets/rest_filter.py",
        ["widgets/test_rest_filter_explorer.py"],
        Mutation(
            "norm",
            "scores are not scaled to [0, 1]",
            "return unit_interval(reward, reward.min().item(), reward.max().item())",
            "return reward - reward.min()",
            near="widgets/test_rest_filter_explorer.py::test_scores_run_from_zero_to_one_over_all_prompts_together",
        ),
        Mutation(
            "beta",
            "the filter's regret at β = 1",
            "regret = float(exact.regret(log_tau, log_ref, reward, beta))",
            "regret = float(exact.regret(log_tau, log_ref, reward, 1.0))",
            near="widgets/test_rest_filter_explorer.py::test_its_numbers_are_those_of_the_definitions",
        ),
        Mutation(
            "edge",
            "a score at the threshold counts in the share",
            "share = float(log_ref.exp()[above].sum())",
            "share = float(log_ref.exp()[score >= threshold].sum())",
            near="widgets/test_rest_filter_explorer.py::test_the_share_that_passes_leaves_out_scores_at_the_threshold",
        ),
    ),
    *in_file(
        "widgets/over_optimisation.py",
        ["widgets/test_over_optimisation_explorer.py"],
        Mutation(
            "data",
            "proxy and gold are not centred within prompts",
            "(t.double() - t.double().mean(1, keepdim=True) for t in (proxy, gold))",
            "(t.double() - t.double().mean() for t in (proxy, gold))",
            near="widgets/test_over_optimisation_explorer.py::test_the_promise_agrees_with_gold_in_the_mean_and_is_its_best_line",
        ),
        Mutation(
            "sign",
            "the proxy's weights at the inverse of β",
            "weights = (proxy.double() / beta).softmax(1)",
            "weights = (proxy.double() * beta).softmax(1)",
            near="widgets/test_over_optimisation_explorer.py::test_gold_and_kl_under_the_tilt_are_those_of_enumeration",
        ),
        Mutation(
            "swap",
            "proxy reward and gold reward are exchanged",
            "for values in (gold, promise))",
            "for values in (promise, gold))",
            near="widgets/test_over_optimisation_explorer.py::test_gold_and_kl_under_the_tilt_are_those_of_enumeration",
        ),
    ),
]
