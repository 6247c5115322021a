"""Bugs in `figures`."""

from mutations.mutation import Mutation, in_file

MUTATIONS: list[Mutation] = [
    *in_file(
        "figures/frontier.py",
        ["figures/test_figures.py"],
        Mutation(
            "data",
            "π* is placed by β and not by its logarithm",
            "np.interp(np.log(beta), logs[order],",
            "np.interp(beta, logs[order],",
            near="figures/test_figures.py::test_the_star_stands_on_the_frontier_at_beta",
        ),
        Mutation(
            "data",
            "π* is looked up among β's that are not sorted",
            "order = np.argsort(logs)",
            "order = np.arange(len(logs))",
            near="figures/test_figures.py::test_the_star_stands_on_the_frontier_at_beta",
        ),
        Mutation(
            "sign",
            "a bar's lower and upper ends are exchanged",
            "[[max(value - low, 0.0)], [max(high - value, 0.0)]]",
            "[[max(high - value, 0.0)], [max(value - low, 0.0)]]",
            near="figures/test_figures.py::test_a_point_s_bars_run_from_its_intervals_ends_along_their_own_axes",
        ),
        Mutation(
            "swap",
            "KL's interval is drawn along the reward",
            'xerr=_error(row, "kl"), yerr=_error(row, "reward")',
            'xerr=_error(row, "reward"), yerr=_error(row, "kl")',
            near="figures/test_figures.py::test_a_point_s_bars_run_from_its_intervals_ends_along_their_own_axes",
        ),
        Mutation(
            "sign",
            "the worst method is on top",
            '.sort_values("regret", ascending=False)',
            '.sort_values("regret", ascending=True)',
            near="figures/test_figures.py::test_the_comparisons_picture_has_titles_labels_units_and_a_row_for_each_method",
        ),
        Mutation(
            "edge",
            "an interval that would drown the points is drawn whole",
            "max(np.nanmin(values), low - 0.15 * room), min(np.nanmax(values), high + 0.15 * room)",
            "np.nanmin(values), np.nanmax(values)",
            near="figures/test_figures.py::test_an_interval_much_wider_than_the_methods_lie_apart_does_not_set_the_limits",
        ),
    ),
    *in_file(
        "figures/policies.py",
        ["figures/test_figures.py"],
        Mutation(
            "mean",
            "bars are log-probabilities",
            "check_log_distribution(log_p, key).detach().exp().cpu().numpy()",
            "check_log_distribution(log_p, key).detach().cpu().numpy()",
            near="figures/test_figures.py::test_policy_bars_have_the_policies_heights_and_all_labels",
        ),
        Mutation(
            "data",
            "bars of the second policy stand on those of the first",
            "left = [i - 0.4 + (j + 0.5) * width for i in range(number)]",
            "left = [i - 0.4 + 0.5 * width for i in range(number)]",
            near="figures/test_figures.py::test_bars_of_two_policies_stand_side_by_side_in_the_order_of_the_policies",
        ),
        Mutation(
            "sign",
            "the description tells log-probabilities",
            "values = torch.as_tensor(log_p).detach().exp().tolist()",
            "values = torch.as_tensor(log_p).detach().tolist()",
            near="figures/test_figures.py::test_policy_bars_have_the_policies_heights_and_all_labels",
        ),
    ),
    *in_file(
        "figures/learning.py",
        ["figures/test_figures.py"],
        Mutation(
            "edge",
            "curves begin at step 1",
            "ax.plot(range(len(values)), list(values),",
            "ax.plot(range(1, len(values) + 1), list(values),",
            near="figures/test_figures.py::test_learning_curves_begin_at_step_0_on_the_axis_that_is_asked_for",
        ),
        Mutation(
            "setting",
            "the logarithmic axis is lost",
            'yscale="log" if log else "linear"',
            'yscale="linear"',
            near="figures/test_figures.py::test_learning_curves_begin_at_step_0_on_the_axis_that_is_asked_for",
        ),
    ),
    *in_file(
        "figures/picture.py",
        ["widgets/test_explorer.py", "figures/test_figures.py"],
        Mutation(
            "edge",
            "bars do not begin at zero",
            "ys += [0.0, *_floats(layer.height)]",
            "ys += _floats(layer.height)",
            near="widgets/test_explorer.py::test_bars_stand_on_zero",
        ),
        Mutation(
            "edge",
            "infinite values stretch an axis",
            "usable = [v for v in data if math.isfinite(v) and (v > 0 or not axis.log)]",
            "usable = [v for v in data if not math.isnan(v) and (v > 0 or not axis.log)]",
            near="widgets/test_explorer.py::test_axes_have_two_ends_whatever_the_data",
        ),
        Mutation(
            "edge",
            "an end of 0 that was set is taken for none",
            "low = (low if grounded and low == 0 else low - room) if axis.low is None else axis.low",
            "low = (low if grounded and low == 0 else low - room) if not axis.low else axis.low",
            near="widgets/test_explorer.py::test_picture_data_is_json_without_nan_and_fits_all_finite_points",
        ),
    ),
]
