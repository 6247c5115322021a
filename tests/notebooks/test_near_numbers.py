"""What counts as the same output of a notebook's cell, and what does not."""

import nbformat
import pytest
from near_numbers import Output, Tolerance, differences


def same(stored: str, new: str, *tags: str) -> bool:
    return not differences(stored, new, Tolerance.of(list(tags)))


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("regret 0.123", "regret 0.124"),  # one unit of the last digit
        ("regret 0.123", "regret 0.122"),
        ("loss 0.99 nats", "loss 1.00 nats"),
        ("1.234e-05", "1.235e-05"),
        ("82% of the time", "83% of the time"),  # a percentage is a rounded number
        ("12.5%", "12.4%"),
        ("12345678.123", "12345679.123"),  # 1 in 12,345,678 is within 1e-6
        ("0.5", "0.49999999"),  # unrounded numbers, one of which ends early
        ("1.0", "1.0000000000000002"),
        ("+0.00", "-0.00"),  # zero has no sign
        ("−0.01", "−0.02"),  # the minus of typography
        ("[0.25, -0.5]", "[0.24, -0.5]"),
        ("a  9.99  b", "a 10.00  b"),  # a column right-aligned: the number takes its padding's place
        ("9.99   b", "10.00  b"),  # left-aligned
        ("| 9.99|", "|10.00|"),
    ],
)
def test_decimal_numbers_may_differ_by_one_unit_of_their_last_digit(stored, new):
    assert same(stored, new) and same(new, stored)


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("regret 0.123", "regret 0.125"),  # two units
        ("regret 0.123", "regret 0.12"),  # rounded to other digits: 0.003 apart, and 0.001 is allowed
        ("1.0", "1.05"),  # the longer number sets the unit
        ("1.234e-05", "1.234e-04"),
        ("82%", "84%"),
        ("12.5%", "12.7%"),
        ("+0.01", "-0.01"),  # a sign flipped: two units
        ("0.50", "-0.50"),
        ("+0.50", "0.50"),  # the same value, printed in another form
        ("0.5%", "0.5"),
        ("2.0", "2"),
        ("N = 100", "N = 101"),  # integers
        ("N = 1,000", "N = 1,001"),
        ("-3", "3"),
        ("0.5 nats", "nan nats"),  # NaN and infinity are words
        ("nan nats", "0.5 nats"),
        ("0.5", "inf"),
        ("inf", "-inf"),
        ("0.5 and 0.6", "0.5"),  # one number less
        ("0.50 nats", "0.51 bits"),  # text
        ("k1 0.50", "k2 0.50"),  # a name's digit
        ("nb05.ipo", "nb06.ipo"),
        ("torch 2.6.0", "torch 2.6.1"),  # a version
        ("1-2", "1-3"),
        ("True", "False"),
        ("A 0.10, B 0.11", "B 0.11, A 0.10"),  # the order of names
        ("a 0.50", "a  0.50"),  # spaces count where the number kept its length
        ("a b 9.99", "ab 10.00"),  # … and where they are not beside it
        ("0.50\n0.60", "0.50 0.60"),
    ],
)
def test_more_than_that_is_a_difference(stored, new):
    assert not same(stored, new) and not same(new, stored)


def test_nan_is_equal_to_nan_and_infinity_to_infinity():
    assert same("nan, -inf, 0.50", "nan, -inf, 0.51")


HTML = '<table style="margin:0.5em"><tr><td colspan="2">{}</td></tr></table>'


def test_html_is_compared_by_its_text_and_its_tags_exactly():
    assert same(HTML.format("0.50"), HTML.format("0.51"))
    assert not same(HTML.format("0.50"), HTML.format("0.52"))
    assert not same(HTML.format("0.50"), HTML.format("0.50").replace("0.5em", "0.6em"))
    assert not same(HTML.format("<b>✓</b> 0.50"), HTML.format("<i>✓</i> 0.50"))
    assert same("a < 0.50 and b > 0.1", "a < 0.51 and b > 0.1")  # no tag


def test_the_text_equivalent_of_a_picture_is_text_like_any_other():
    said = "Picture: Regret: DPO {} (91% below), RAFT 0.15."
    assert same(said.format("0.07"), said.format("0.08")) and not same(said.format("0.07"), said.format("0.09"))


TABLE = """\
| method |  regret | runs |
|--------|---------|------|
| DPO    | {:7.2f} | {:4} |
"""


def test_a_table_s_columns_may_widen_its_numbers_but_not_its_frame():
    assert same(TABLE.format(9.99, 12), TABLE.format(10.0, 12))
    assert not same(TABLE.format(9.99, 12), TABLE.format(9.99, 13))
    assert not same(TABLE.format(9.99, 12), TABLE.format(9.99, 12).replace("|------|", "|-----|"))


def test_a_cell_s_tags_widen_the_tolerance_for_its_numbers_alone():
    """10 % of the stored 0.50 is 0.05; 0.2 absolute; integers within the same tolerance, once asked for."""
    assert same("0.50", "0.55", "nbval-rtol=0.1") and not same("0.50", "0.56", "nbval-rtol=0.1")
    assert same("0.50", "0.70", "nbval-atol=0.2") and not same("0.50", "0.71", "nbval-atol=0.2")
    assert same("0.5", "0.7", "nbval-rtol=1e-9", "nbval-atol=2e-1")
    assert not same("100", "105", "nbval-rtol=0.1")
    assert same("100", "105", "nbval-rtol=0.1", "nbval-integers")
    assert not same("100", "111", "nbval-rtol=0.1", "nbval-integers")
    assert same("100", "101", "nbval-integers") and not same("100", "102", "nbval-integers")
    for tag in ("nbval-rtol=0.9", "nbval-atol=9", "nbval-integers", "nbval-ignore-numbers"):
        assert not same("DPO 0.50", "PPO 0.50", tag)
        assert not same("0.50", "nan", tag)


def test_any_number_may_stand_for_any_other_where_a_cell_s_numbers_are_not_compared():
    stored = "chosen  1.13, rejected -7.97, 12 of 40"
    assert same(stored, "chosen -0.20, rejected 10, 7 of 40", "nbval-ignore-numbers")
    assert not same(stored, "chosen  1.13, rejected, 12 of 40", "nbval-ignore-numbers")


def test_nbval_s_own_tags_and_those_of_others_change_nothing_and_a_typing_error_is_named():
    assert Tolerance.of(["raises-exception", "nbval-ignore-output", "slide"]) == Tolerance()
    for tag in ("nbval-rtol", "nbval-rtol=", "nbval-rtol=wide", "nbval-rotl=0.1", "nbval-rtol=-1", "nbval-integer"):
        with pytest.raises(ValueError, match=tag):
            Tolerance.of([tag])


def test_what_differs_is_named_with_what_is_allowed():
    said = differences("DPO 0.50, N 3\n", "PPO 0.53, N 4\n")
    assert said == [
        "stored 0.50, new 0.53: they are 0.03 apart, and 0.01 is allowed.",
        "stored 3, new 4: integers are compared exactly.",
        "stored text 'DPO ', new text 'PPO '.",
    ]
    assert differences("1 2.5", "1") == ["The stored output has 2 numbers, the new one has 1."]


def outputs(text: str, html: str) -> list[nbformat.NotebookNode]:
    return [
        nbformat.v4.new_output("stream", name="stdout", text=text),
        nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": text, "image/png": "x"}),
    ]


def test_nbval_s_cells_compare_by_their_tags_and_report_by_number(tmp_path, request):
    """The plugin is at work in this very run: cells of a notebook compared as `make test` compares them."""
    if not request.config.pluginmanager.hasplugin("near_numbers") or not hasattr(request.config.option, "nbval"):
        pytest.skip("nbval is not loaded in this run")
    from nbval.plugin import IPyNbFile

    wide = nbformat.v4.new_code_cell("1", metadata={"tags": ["nbval-rtol=0.5"]})
    path = tmp_path / "cells.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), wide]), path)
    strict, wide = IPyNbFile.from_parent(request.session, path=path).collect()
    for cell in (strict, wide):
        request.config.hook.pytest_itemcollected(item=cell)

    stored = outputs("N = 10, regret 0.50\n", HTML.format("0.50"))
    assert strict.compare_outputs(outputs("N = 10, regret 0.51\n", HTML.format("0.49")), stored)
    assert not strict.compare_outputs(outputs("N = 10, regret 0.50\n", HTML.format("0.60")), stored)
    assert "stored 0.50, new 0.60: they are 0.10 apart, and 0.01 is allowed." in "\n".join(strict.comparison_traceback)
    assert wide.compare_outputs(outputs("N = 10, regret 0.60\n", HTML.format("0.60")), stored)
    assert not wide.compare_outputs(outputs("N = 11, regret 0.50\n", HTML.format("0.50")), stored)
    assert not wide.compare_outputs(stored[:1], stored)


def test_an_output_can_be_hashed_and_equals_no_other_kind():
    assert hash(Output("a", Tolerance())) == hash("a")
    assert Output("1.0", Tolerance()) != 1.0
