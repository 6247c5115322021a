"""Verdicts as data, notes with placeholders, and the conditions on which notes rely."""

import json
import math

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.verdicts import Verdict, fill, holds, outcome_of, read_notes, side
from rlhf_lab.intervals import Interval

VERDICT = Verdict(
    "supported",
    {"ratio": Interval(1.0873, 1.0004, 1.1742), "share": Interval(0.5, 0.4, 0.6), "steps": 51200, "left": 0.0999},
    {"left": 0.1},
)


def test_a_verdict_survives_json():
    again = Verdict.from_record(json.loads(json.dumps(VERDICT.record())))
    assert again == VERDICT


def test_infinite_and_missing_numbers_survive_json():
    odd = Verdict("inconclusive", {"worst": -math.inf, "one": Interval(1.0, math.nan, math.nan)})
    again = Verdict.from_record(json.loads(json.dumps(odd.record(), allow_nan=False)))
    assert again.numbers["worst"] == -math.inf and math.isnan(again.numbers["one"].low)


def test_a_threshold_of_an_unknown_number_is_refused():
    with pytest.raises(LabError, match="thresholds for slope"):
        Verdict("supported", {}, {"slope": 1.0})


def test_placeholders_are_numbers_of_the_verdict_or_of_the_settings():
    text = "{ratio}, {share:percent,mean,0}, {steps} steps, {seeds} seeds on {world}"
    assert fill(text, VERDICT, {"seeds": 9, "world": "sentiment"}) == (
        "1.087 [1.0004, 1.174], 50%, 51,200 steps, 9 seeds on sentiment"
    )


def test_settings_are_printed_as_they_were_given():
    settings = {"beta": 0.5, "betas": [0.1, 1.0], "labels": 20_000}
    assert fill("{beta}; {betas}; {labels}; {beta:2}", VERDICT, settings) == "0.5; 0.1, 1; 20,000; 0.50"


def test_a_printed_number_stays_on_its_side_of_the_threshold_of_the_rule():
    """0.0999 with two decimals would be 0.10, the threshold itself."""
    assert (
        fill("{left:2}", VERDICT, {}) == "0.0999"
        and fill("{left:2}", Verdict("supported", {"left": 0.0999}), {}) == "0.10"
    )


UP, OPEN, DOWN = Interval(1, 0.5, 1.5), Interval(0, -1, 1), Interval(-1, -1.5, -0.5)


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        ([UP, UP], "supported"),
        ([UP, OPEN], "partly supported"),
        ([UP, DOWN], "partly supported"),
        ([OPEN, DOWN], "not supported"),
        ([OPEN], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_a_claim_is_decided_by_the_sides_of_its_parts(parts, outcome):
    assert outcome_of(map(side, parts)) == outcome


def test_a_part_may_have_a_threshold_other_than_zero():
    assert (side(OPEN, -2.0), side(OPEN, 2.0), side(OPEN)) == (1, -1, 0)


@pytest.mark.parametrize("text", ["{nothing}", "{ratio.mean}", "{ratio[0]}", "{0}"])
def test_other_placeholders_are_refused(text):
    with pytest.raises(LabError, match="no number"):
        fill(text, VERDICT, {})


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("ratio > 1", True), ("ratio > 1.05", False), ("ratio ~ 1.1", True), ("ratio ~ 1", False),
        ("share < ratio", True),
        ("ratio < share", False), ("share ~ ratio", False), ("steps > 51199", True), ("share < 0.6", False),
    ],
)  # fmt: skip
def test_conditions_compare_whole_intervals(condition, expected):
    assert holds(condition, VERDICT) is expected


@pytest.mark.parametrize("condition", ["ratio = 1", "ratio", "unknown > 1", "ratio > 1 > 0"])
def test_a_condition_of_another_form_is_refused(condition):
    with pytest.raises(LabError):
        holds(condition, VERDICT)


NOTES = """---
outcome: supported
cell: The ratio is {ratio}.
conditions:
  - ratio > 1
---
## Finding
A {ratio}.

## Explanation
B.

C.

## Figure
D.
"""


def test_notes_are_read_by_section(tmp_path):
    (tmp_path / "notes.md").write_text(NOTES, encoding="utf-8")
    notes = read_notes(tmp_path / "notes.md")
    assert (notes.outcome, notes.cell) == ("supported", "The ratio is {ratio}.") and notes.conditions == ("ratio > 1",)
    assert dict(notes.sections) == {"Finding": "A {ratio}.", "Explanation": "B.\n\nC.", "Figure": "D."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("outcome: supported", "outcome: maybe"), "must begin"),
        (("## Figure", "## Picture"), "no section '## Figure'"),
        (("cell: The", "words: The"), "no 'cell: …'"),
        (("cell: The ratio", "cell: The ratio: it"), "not valid YAML"),
    ],
)
def test_incomplete_notes_are_refused_with_what_is_missing(change, message, tmp_path):
    (tmp_path / "notes.md").write_text(NOTES.replace(*change), encoding="utf-8")
    with pytest.raises(LabError, match=message):
        read_notes(tmp_path / "notes.md")


def test_missing_notes_are_an_error_that_names_the_file(tmp_path):
    with pytest.raises(LabError, match="notes.md cannot be read"):
        read_notes(tmp_path / "notes.md")
