"""Rules: intervals of a family by Holm's procedure, and the equivalence of a ratio with 1."""

import numpy as np
import pytest
from scipy import stats

from rlhf_lab.experiments.statistics import equivalence, holm_intervals, mean_interval
from rlhf_lab.intervals import Interval


def holm_p_values(differences, threshold):
    """Holm's adjusted p-values by definition, max over j ≤ i of min(1, (k − j + 1) p_(j)), with scipy's t test."""
    p = np.array([stats.ttest_1samp(values, threshold).pvalue for values in differences])
    adjusted, worst = np.empty(len(p)), 0.0
    for rank, index in enumerate(p.argsort()):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_an_interval_excludes_the_threshold_exactly_where_holm_rejects(threshold):
    random, rejected = np.random.default_rng(0), 0
    for _ in range(200):
        family = {name: random.normal(mean, 1, 8) for name, mean in (("a", 0.0), ("b", 0.9), ("c", -0.9))}
        found = holm_intervals(family, threshold=threshold)
        assert list(found) == list(family)
        for one, p in zip(found.values(), holm_p_values(family.values(), threshold), strict=True):
            assert (one.low > threshold or one.high < threshold) == (p < 0.05)
            rejected += p < 0.05
    assert 100 < rejected < 500  # otherwise one answer alone would pass


def test_levels_rise_from_one_rejected_comparison_to_the_next():
    """b is rejected at 1 − 5%/3, then a at 1 − 5%/2; the last interval has the usual level."""
    spread = np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
    family = {"a": 5 + spread, "b": 9 + spread, "c": spread}
    found = holm_intervals(family)
    for name, level in (("b", 1 - 0.05 / 3), ("a", 1 - 0.05 / 2), ("c", 0.95)):
        assert found[name] == pytest.approx(mean_interval(family[name], level)), name
    # After the first comparison that is not rejected the level stays.
    found = holm_intervals({"a": spread, "b": spread + 0.1, "c": spread - 0.1})
    assert [round(one.high - one.low, 9) for one in found.values()] == [round(found["a"].high - found["a"].low, 9)] * 3


def test_the_error_of_the_family_is_at_most_five_percent_and_equal_on_both_sides():
    """1,500 experiments whose three true differences are zero: 5% ± 1.7% may reject (three standard errors).

    Without the correction about 13% would.
    """
    random, above, below = np.random.default_rng(1), 0, 0
    for _ in range(1500):
        shared = random.normal(size=6)
        found = holm_intervals({str(i): 0.5 * shared + random.normal(size=6) for i in range(3)}).values()
        above += any(one.above for one in found)
        below += any(one.below for one in found)
    assert 0.02 < (above + below) / 1500 < 0.067
    assert abs(above - below) < 3 * (above + below) ** 0.5


def test_families_without_spread_or_with_one_seed():
    assert holm_intervals({}) == {}
    assert holm_intervals({"same": [2.0, 2.0]})["same"] == Interval(2.0, 2.0, 2.0)
    assert holm_intervals({"none": [0.0, 0.0]})["none"] == Interval(0.0, 0.0, 0.0)
    alone = holm_intervals({"alone": [3.0], "clear": [1.0, 1.1, 0.9]})
    assert np.isnan(alone["alone"].low) and alone["clear"].above


def test_equivalence_is_two_one_sided_tests_and_symmetric():
    """Against scipy's one-sided t tests at 2.5%, on either side of the margin."""
    random, answers = np.random.default_rng(2), []
    for mean in np.linspace(0.75, 1.25, 41):
        values = random.normal(mean, 0.06, 10)
        answer = equivalence(Interval(*mean_interval(values)), 0.1)
        above, below = (
            {side: stats.ttest_1samp(values, bound, alternative=side).pvalue < 0.025 for side in ("less", "greater")}
            for bound in (1.1, 0.9)
        )
        expected = "equal" if above["less"] and below["greater"] else "open"
        if above["greater"] or below["less"]:
            expected = "different"
        assert answer == expected
        answers.append(answer)
    assert set(answers) == {"equal", "different", "open"}
    for one in (Interval(1.0, 0.96, 1.04), Interval(1.05, 0.99, 1.11), Interval(1.3, 1.2, 1.4)):
        assert equivalence(one, 0.1) == equivalence(Interval(2 - one.mean, 2 - one.high, 2 - one.low), 0.1)
    assert equivalence(Interval(1.0, float("nan"), float("nan")), 0.1) == "open"
