"""The report on a reward model or ranker: accuracy with its interval, calibration, accuracy by length difference."""

import json
import math

import pytest
import torch
from scipy import stats

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation.reward_report import _length_ranges, _margins, reward_report
from rlhf_lab.evaluation.win_rate import proportion
from rlhf_lab.rewards.ranker import PairwiseRanker


def pairs_of(margins, prompts=None, lengths=None) -> Pairs:
    """Pairs whose chosen response has the id of its row, and the rejected one the id after all rows."""
    number = len(margins)
    lengths = lengths or [(1, 1)] * number
    responses = [[[i] * (chosen), [number] * rejected] for i, (chosen, rejected) in enumerate(lengths)]
    return Pairs(Tokens.from_lists([[p] for p in prompts or range(number)]), Tokens.from_lists(responses))


class Scores(torch.nn.Module):
    """A reward that gives row i's chosen response `margins[i]`, and every rejected one 0."""

    def __init__(self, margins):
        super().__init__()
        self.values = torch.tensor([*margins, 0.0], dtype=torch.float64)

    def forward(self, prompts, responses):
        return self.values[responses.ids[..., 0]]


def report_of(margins, prompts=None, lengths=None, **changes):
    return reward_report(Scores(margins), pairs_of(margins, prompts, lengths), **changes)


def test_a_report_worked_by_hand():
    """Margins 2, 1, −1 and 0: two pairs right, one wrong, one tie. σ(2) = 0.8808, σ(1) = 0.7311."""
    found = report_of([2.0, 1.0, -1.0, 0.0], batch_size=3)
    assert found.accuracy.mean == pytest.approx(2.5 / 4) and (found.pairs, found.prompts) == (4, 4)
    loss = [-math.log(1 / (1 + math.exp(-m))) for m in (2, 1, -1, 0)]
    assert found.loss.mean == pytest.approx(sum(loss) / 4) and found.margin.mean == pytest.approx(0.5)
    assert found.margin.error == pytest.approx(stats.sem([2, 1, -1, 0]))
    table = {group.name: (group.pairs, group.accuracy.mean, group.confidence) for group in found.calibration}
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    expected = {"50% to 55%": (1, 0.5, 0.5), "70% to 75%": (2, 0.5, one), "85% to 90%": (1, 1.0, two)}
    assert table.keys() == expected.keys()
    assert all(table[name] == pytest.approx(expected[name]) for name in table)
    assert found.calibration_error == pytest.approx((0 + 2 * (one - 0.5) + (1 - two)) / 4)
    assert found.prefers_longer is None and found.chosen_longer is None
    assert [group.name for group in found.lengths] == ["0"]


def test_a_confidence_of_one_is_in_the_last_bin():
    assert [group.name for group in report_of([800.0, 800.0]).calibration] == ["95% to 100%"]


@pytest.mark.parametrize("right", [0, 37, 290, 400])
def test_the_accuracy_s_interval_is_wilson_s(right):
    """With one pair a prompt: the formula of Wilson (1927) with n − 1 in place of n and Student's quantile, which is
    what the error over prompts leads to; at 0 and 1, with n. scipy's binomial interval is within 1 % of its width."""
    n = 400
    found = report_of([1.0] * right + [-1.0] * (n - right)).accuracy
    p, number, z = right / n, n if right in (0, n) else n - 1, stats.t.ppf(0.975, n - 1)
    centre = (p + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * math.sqrt(p * (1 - p) / number + z * z / (4 * number**2))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    theirs = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01 * (theirs.high - theirs.low))


def test_copies_of_a_prompt_make_no_interval_narrower():
    """Ten prompts with one pair each, and the same with five copies of each: the same interval."""
    margins = [1.0] * 7 + [-1.0] * 3
    once = report_of(margins).accuracy
    copied = report_of(margins * 5, prompts=list(range(10)) * 5)
    assert copied.accuracy == pytest.approx(once) and (copied.pairs, copied.prompts) == (50, 10)
    assert copied.margin.error == pytest.approx(stats.sem(margins))


def test_a_calibrated_model_has_the_calibration_error_that_the_report_expects_of_it_and_an_overconfident_one_more():
    """Outcomes drawn from σ(m) by hand: of 40 data sets with 300 pairs the mean error is that of the report within
    three standard errors, and about 5 % exceed its quantile. Margins three times as large are overconfident."""
    generator = torch.Generator().manual_seed(0)
    errors, above, expected = [], 0, []
    for _ in range(40):
        size = torch.randn(300, generator=generator, dtype=torch.float64)
        won = torch.rand(300, generator=generator, dtype=torch.float64) < size.abs().sigmoid()
        found = report_of((size.abs() * torch.where(won, 1.0, -1.0)).tolist())
        errors.append(found.calibration_error)
        expected.append(found.calibrated_error[0])
        above += found.calibration_error > found.calibrated_error[1]
    assert abs(sum(errors) - sum(expected)) / 40 < 3 * stats.sem(errors)
    assert above <= 7, "at 5 % of 40, more than 7 have a probability of 0.0007"
    bold = report_of((3 * size.abs() * torch.where(won, 1.0, -1.0)).tolist())
    assert bold.calibration_error > bold.calibrated_error[1]


def test_accuracy_is_reported_by_the_difference_of_lengths():
    """Differences −4, −1, 0, 1, 1, 5 (median size 1). The model is right exactly where the chosen response is longer or
    the lengths are equal, so it prefers the longer one in all five pairs of different lengths."""
    lengths = [(1, 5), (1, 2), (2, 2), (3, 2), (2, 1), (6, 1)]
    found = report_of([-1.0, -1.0, 1.0, 1.0, 1.0, 1.0], lengths=lengths)
    groups = {group.name: (group.pairs, group.accuracy.mean) for group in found.lengths}
    assert groups == {
        "−2 tokens or less": (1, 0.0), "−1": (1, 0.0), "0": (1, 1.0), "1": (2, 1.0), "2 or more": (1, 1.0),
    }  # fmt: skip
    assert found.prefers_longer.mean == 1.0 and found.chosen_longer.mean == pytest.approx(3 / 5)


def test_a_ranker_s_margin_is_the_mean_of_both_orders():
    """f(y₁, y₂) = 2 (id₁ − id₂) + 1: the preference for the first place, 1, cancels."""
    ranker = object.__new__(PairwiseRanker)
    torch.nn.Module.__init__(ranker)
    ranker.logits = lambda x, one, two: 2.0 * (one.ids[..., 0] - two.ids[..., 0]).double() + 1
    pairs = Pairs(Tokens.from_lists([[0], [1], [2]]), Tokens.from_lists([[[5], [3]], [[1], [4]], [[2], [2]]]))
    margin, correct = _margins(ranker, pairs, 2, False)
    assert margin.tolist() == [4.0, -6.0, 0.0] and correct.tolist() == [1.0, 0.0, 0.5]


def test_the_tables_and_the_json_say_the_same():
    found = report_of([2.0, 1.0, -1.0, 0.5], lengths=[(1, 2), (2, 1), (1, 1), (3, 1)])
    data, table = json.loads(found.to_json()), found.table()
    assert data["accuracy"] == {"mean": 0.75, "low": found.accuracy.low, "high": found.accuracy.high}
    assert data["calibration"][0]["name"] in table and f"{found.accuracy:percent}" in table
    assert [group["pairs"] for group in data["lengths"]] == [group.pairs for group in found.lengths]
    assert "prefers the longer response" in table and "4 pairs of 4 prompts" in table


def test_a_single_prompt_and_a_score_that_is_not_finite_are_refused():
    with pytest.raises(LabError, match="at least two different prompts"):
        report_of([1.0, 2.0], prompts=[3, 3])
    with pytest.raises(LabError, match="reward"):
        report_of([1.0, math.nan])
    assert proportion([1.0, 0.0], ["a", "a"]) == (0.5, 0.0, 1.0)
    for number in range(2, 30):  # an end that is 0 or 1 has no rounding error
        assert proportion([0.0] * number, range(number)).low == 0
        assert proportion([1.0] * number, range(number)).high == 1
    names = [[name for name, _ in _length_ranges(torch.tensor(longer))] for longer in ([-1, 1, 0], [-3, 3, 0])]
    assert names[0][1:4] == ["−1", "0", "1"] and names[1][1:4] == ["−3 to −1", "0", "1 to 3"]
