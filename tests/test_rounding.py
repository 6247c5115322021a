"""What counts as a tie: differences of a few units in the last place of what was subtracted, at every magnitude."""

import math

import pytest
import torch

from rlhf_lab.rounding import FEW, MANY, centred, levels, rounding, standardised, unit_interval, wins

TYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 10.1, 300.0, 1e6])
def test_the_limit_is_relative_to_the_numbers_at_every_magnitude(dtype, size):
    """One step of `nextafter` is a tie. A difference of 16 ε, which every type represents, is none."""
    one = torch.tensor(size, dtype=dtype)
    up = torch.nextafter(one, torch.tensor(math.inf, dtype=dtype))
    larger = one * (1 + 16 * torch.finfo(dtype).eps)
    assert up > one and wins(up, one) == 0.5 and wins(one, up) == 0.5
    assert wins(larger, one) == 1 and wins(one, larger) == 0
    assert wins(larger, one).dtype == dtype


def test_the_scale_is_that_of_what_was_subtracted():
    """Two log-ratios of 0 that come from float32 numbers near −300, off by 3e-5 (one unit there): equal if that is
    said, different if not. Of rewards near 1e-3 a difference of 3e-5 is real."""
    a, b = torch.tensor(-300.0), torch.tensor(-300.00003)
    ratio = a - b
    assert 2e-5 < ratio < 4e-5
    assert wins(ratio, 0.0) == 1
    assert wins(ratio, 0.0, rounding(a, b, units=MANY)) == 0.5
    assert wins(torch.tensor(1.03e-3), torch.tensor(1e-3), rounding(torch.tensor(1e-3), units=MANY)) == 1


def test_units_and_types():
    """ε of float32 is 2⁻²³, of float64 2⁻⁵², of bfloat16 2⁻⁷. The least precise decides; plain numbers are exact."""
    single, double = torch.tensor([2.0]), torch.tensor([-8.0], dtype=torch.float64)
    assert rounding(single).item() == 2 * FEW * 2.0**-23
    assert rounding(double, units=MANY).item() == 8 * MANY * 2.0**-52
    assert rounding(single, double).item() == pytest.approx(8 * FEW * 2.0**-23)
    assert rounding(torch.tensor([4.0], dtype=torch.bfloat16), units=MANY).item() == 4 * 2.0**-7
    assert rounding(3.0).item() == 3 * FEW * 2.0**-52
    assert rounding(torch.tensor([-math.inf, 1.0]), 2.0).tolist() == [2 * FEW * 2.0**-23] * 2


def test_infinities_and_nan():
    inf = math.inf
    first = torch.tensor([inf, inf, -inf, -inf, 1.0, math.nan, 0.0])
    second = torch.tensor([inf, 1.0, -inf, 1.0, -inf, 1.0, -0.0])
    assert wins(first, second).tolist()[:5] == [0.5, 1, 0.5, 0, 1]
    assert math.isnan(wins(first, second)[5]) and wins(first, second)[6] == 0.5


def test_a_tie_has_no_gradient_and_wins_of_both_sides_sum_to_one():
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    b[:10] = a[:10]
    assert not wins(a.requires_grad_(), b).requires_grad
    assert torch.equal(wins(a, b) + wins(b, a), torch.ones(50))
    assert torch.equal(wins(a, b)[10:], (a > b).float()[10:])


def test_levels_are_ranks_of_the_different_numbers():
    """0.1 + 0.2 and 0.3 are one level (they differ by 5.6e-17), as are 1 − 0.9 − 0.1 and 0 beside numbers of size 1."""
    rows = torch.tensor(
        [[0.1 + 0.2, 0.1, 0.3, 0.7], [1 - 0.9 - 0.1, 1.0, 0.0, -1.0], [1e-9, 2e-9, 3e-9, 1e-9]], dtype=torch.float64
    )
    assert rows[0, 0] != rows[0, 2] and rows[1, 0] != 0
    assert levels(rows).tolist() == [[1, 0, 1, 2], [1, 2, 1, 0], [0, 1, 2, 0]]


def test_centred_and_standardised_numbers_by_hand():
    """(1, 2, 6) has the mean 3 and, divided by three and not by two, the variance (4 + 1 + 9)/3.

    (10, 20, 60) has ten times the spread, and standardised it is the same.
    """
    rows = torch.tensor([[1.0, 2.0, 6.0], [10.0, 20.0, 60.0]], dtype=torch.float64)
    assert centred(rows).tolist() == [[-2, -1, 3], [-20, -10, 30]]
    expected = [x / math.sqrt(14 / 3) for x in (-2, -1, 3)]
    for row in standardised(rows).tolist():
        assert row == pytest.approx(expected, rel=1e-14)
    tiny = standardised(rows * 1e-200)  # whose squares would be rounded to 0
    assert tiny[0].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("function", [centred, standardised])
@pytest.mark.parametrize("value", [10.1, 1e-12, -3e5])
def test_equal_numbers_have_no_spread_at_all(function, value):
    """Eight times 10.1 in float32 have another mean than 10.1: without the rule, the rest would be left."""
    assert torch.equal(function(torch.full((2, 8), value)), torch.zeros(2, 8))


def test_numbers_within_the_caller_s_doubt_are_alike_and_others_are_not():
    """The rows spread by 0.5: a doubt of 0.6 takes that for nothing, and one of 0.4 does not."""
    rows = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    assert centred(rows, torch.tensor([[0.6], [0.4]])).tolist() == [[0, 0], [-0.25, 0.25]]
    assert standardised(rows, torch.tensor([[0.6], [0.4]])).tolist() == [[0, 0], [-1, 1]]


def test_the_unit_interval_by_hand_and_without_a_range():
    """From −1 to 3: (−1 + 1)/4 = 0, (0 + 1)/4 = ¼ and 1. Ends that are equal within rounding give 0."""
    values = torch.tensor([-1.0, 0.0, 3.0])
    assert unit_interval(values, -1.0, 3.0).tolist() == [0.0, 0.25, 1.0]
    for high in (0.3, 0.1 + 0.2):
        assert unit_interval(torch.full((3,), 0.3, dtype=torch.float64), 0.3, high).tolist() == [0.0] * 3
