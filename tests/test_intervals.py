"""Intervals as text: digits by the half width, and no rounding across a threshold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.errors import LabError
from rlhf_lab.intervals import Interval, aligned, format_number, typeset


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        (Interval(1.0873, 1.0004, 1.1742), "", "1.087 [1.0004, 1.174]"),
        (Interval(0.0123, -0.0046, 0.0291), "", "0.012 [−0.005, 0.029]"),
        (Interval(-0.098, -0.1412, -0.0561), "points", "−9.8 [−14.1, −5.6]"),
        (Interval(0.7284, 0.7101, 0.7467), "percent", "72.8% [71.0%, 74.7%]"),
        (Interval(0.7284, 0.7101, 0.7467), "percent,mean,0", "73%"),
        (Interval(0.6, 0.1, 1.12), "signed", "+0.60 [+0.10, +1.12]"),
        (Interval(0.6, 0.1, 1.12), "ends", "[0.10, 1.12]"),
        (Interval(2.5, math.nan, math.nan), "", "2.50"),
        (Interval(0.78, 0.78, 0.78), "", "0.780"),
        (51200, "", "51,200"),
        (9, "", "9"),
        (0.03127, "", "0.0313"),
        (4.04e-5, "", "4.0·10⁻⁵"),
        (0.999996, "", "0.999996"),
        (math.inf, "", "∞"),
    ],
)
def test_numbers_are_printed_with_the_digits_that_their_interval_justifies(value, spec, expected):
    assert format_number(value, spec) == expected
    if isinstance(value, Interval):
        assert f"{value:{spec}}" == expected


def _number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "").replace("·10", "e").translate(_PLAIN))


_PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@given(st.floats(-50, 50), st.floats(1e-6, 10), st.sampled_from([0.0, 1.0, -0.9, 0.35]))
def test_a_printed_end_is_on_the_same_side_of_a_threshold_as_the_number(mean, width, threshold):
    """The text is read back as a number; it may not have reached or crossed the threshold."""
    interval = Interval(mean, mean - width, mean + width)
    printed = format_number(interval, "ends", [threshold]).strip("[]").split(", ")
    for text, end in zip(printed, interval[1:], strict=True):
        if abs(end - threshold) > 1e-9:
            assert (_number(text) > threshold) == (end > threshold)
            assert _number(text) != threshold


def test_an_unknown_word_names_the_known_ones():
    with pytest.raises(LabError, match="printed as 'loud'"):
        format_number(1.0, "loud")


def test_above_and_below_mean_the_whole_interval():
    assert Interval(1, 0.1, 2).above and not Interval(1, 0, 2).above
    assert Interval(-1, -2, -0.1).below and not Interval(-1, -2, 0).below


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (-1.239, ".2f", "−1.24"), (-0.004, ".2f", "0.00"), (-0.004, "+.2f", "+0.00"), (0.5, "+.2f", "+0.50"),
        (-2e-5, ".1e", "−2.0e−05"), (-0.0, "+g", "+0"), (-math.inf, ".2f", "−inf"), (-12345.6, ",.0f", "−12,346"),
    ],
)  # fmt: skip
def test_a_typeset_number_has_the_typographic_minus_sign_and_a_rounded_zero_has_none(value, spec, text):
    assert typeset(value, spec) == text


def test_the_columns_of_a_table_are_aligned_on_the_left_or_on_the_right():
    rows = [("name", "pairs", "rate"), ("a", "1,200", "10%"), ("longer", "7", "")]
    assert aligned(rows, right=[1]) == ["name    pairs  rate", "a       1,200  10%", "longer      7"]
