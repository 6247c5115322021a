"""Win rates against hand-worked numbers and against repetition."""

import math

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import GoldJudge, win_rate

BY_NUMBER = GoldJudge(lambda prompts, texts: [float(text) for text in texts])


def test_wins_ties_and_the_cluster_error_by_hand():
    """Prompt x: 1, 1; prompt y: ½, 0. Mean 5/8; sums less 2 × 5/8: ¾ and −¾; error √(2·(9/16+9/16)/1)/4 = 3/8."""
    found = win_rate(["x", "y"], [["3", "2"], ["1", "0"]], [["1", "1"], ["1", "1"]], BY_NUMBER)
    assert (found.mean, found.ties, found.comparisons, found.prompts) == (0.625, 0.25, 4, 2)
    assert found.error == pytest.approx(3 / 8)
    assert 0 <= found.low < 0.625 < found.high <= 1
    assert (found.position_bias, found.turned, found.unanswered) == (0, 0, 0)
    assert "62.5%" in str(found) and "25.0% ties" in str(found)


def test_one_target_meets_every_response_and_unanswered_ones_leave_uneven_prompts():
    targets = win_rate(["x", "y"], [["2", "0"], ["2", "2"]], ["1", "1"], BY_NUMBER)
    assert (targets.comparisons, targets.prompts, targets.mean) == (4, 2, 0.75)
    # 1 1 and 1 0 ½ of two prompts, one comparison unanswered: mean 3.5/5; sums less 0.7 × numbers: 0.6 and −0.6.
    answers = [1, 1, math.nan, 1, 0, 0.5]
    other = [1 - p for p in answers]
    uneven = win_rate(["x", "y"], [["a"] * 3] * 2, [["b"] * 3] * 2, Fixed(answers, other))
    assert (uneven.comparisons, uneven.unanswered) == (5, 1)
    assert uneven.mean == pytest.approx(0.7) and uneven.error == pytest.approx((2 * 2 * 0.36) ** 0.5 / 5)


def test_all_won_is_not_certainty():
    """Wilson for 20 of 20 with t(19) = 2.093: low end 20/(20 + 2.093²) = 0.820."""
    found = win_rate([str(i) for i in range(20)], ["1"] * 20, ["0"] * 20, BY_NUMBER)
    assert found.mean == 1 and found.error == 0 and found.high == 1
    assert found.low == pytest.approx(20 / (20 + 2.0930**2), abs=1e-4)
    one = win_rate(["x"], ["1"], ["0"], BY_NUMBER)
    assert math.isnan(one.error) and (one.low, one.high) == (0, 1)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_covers_the_true_rate_of_correlated_comparisons(level):
    """30 prompts, each with a win probability of its own (uniform in [.2, 1], mean .6) and 8 comparisons. 300 runs;
    an interval that took the 240 comparisons for independent would cover about 70%."""
    g, hits, runs = torch.Generator().manual_seed(0), 0, 300
    names = [str(i) for i in range(30)]
    for _ in range(runs):
        chance = 0.2 + 0.8 * torch.rand(30, 1, generator=g)
        won = (torch.rand(30, 8, generator=g) < chance).long().tolist()
        found = win_rate(names, [[str(w) for w in row] for row in won], [["0.5"] * 8] * 30, BY_NUMBER, level)
        hits += found.low <= 0.6 <= found.high
    assert abs(hits / runs - level) < 3.5 * math.sqrt(level * (1 - level) / runs)


class Fixed:
    """A judge that says what it was told to, first for a | b and then for b | a."""

    order_free = False

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, prompts, a, b):
        return self.answers.pop(0)


def test_both_orders_are_averaged_and_the_bias_reported():
    """First order 1, 1, 1, ½; second (for b) 0, 1, ½, ½. For a: 1, ½, ¾, ½; first-shown: ½, 1, ¾, ½ on average."""
    found = win_rate(list("wxyz"), list("aaaa"), list("bbbb"), Fixed([1, 1, 1, 0.5], [0, 1, 0.5, 0.5]))
    assert found.mean == pytest.approx((1 + 0.5 + 0.75 + 0.5) / 4) and found.ties == 0.5
    assert found.position_bias == pytest.approx((0.5 + 1 + 0.75 + 0.5) / 4 - 0.5) and found.turned == 0.25


def test_what_cannot_be_compared_is_named():
    with pytest.raises(LabError, match="nothing to compare"):
        win_rate([], [], [], BY_NUMBER)
    with pytest.raises(LabError, match="Prompt 0 has 2 responses on one side and 3"):
        win_rate(["x"], [["1", "1"]], [["1", "1", "1"]], BY_NUMBER)
    with pytest.raises(LabError, match="1 prompt came with responses to 2 and 1"):
        win_rate(["x"], ["1", "1"], ["1"], BY_NUMBER)
    with pytest.raises(LabError, match=r"preference 2\.0"):
        win_rate(["x"], ["a"], ["b"], Fixed([2.0], [0.0]))
    with pytest.raises(LabError, match="no verdict on any of 1"):
        win_rate(["x"], ["a"], ["b"], Fixed([math.nan], [0.0]))
    with pytest.raises(LabError, match="level must lie"):
        win_rate(["x", "y"], ["1", "1"], ["0", "0"], BY_NUMBER, 95)


class Longer:
    """Prefers the longer text, and is asked in both orders."""

    order_free = False

    def __call__(self, prompts, a, b):
        return [float(len(x) > len(y)) for x, y in zip(a, b, strict=True)]


def test_the_second_time_the_sides_are_exchanged():
    """A judge that always prefers our text does so in both orders: all won, no tie, no bias, nothing turned."""
    found = win_rate(["x", "y"], ["aa", "bb"], ["a", "b"], Longer())
    assert (found.mean, found.ties, found.position_bias, found.turned) == (1.0, 0.0, 0.0, 0.0)
    assert win_rate(["x", "y"], ["a", "b"], ["aa", "bb"], Longer()).mean == 0.0
