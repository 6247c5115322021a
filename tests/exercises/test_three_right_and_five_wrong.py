"""Every exercise is tried with at least three right answers in other forms than the solution, and five wrong ones.

The other modules of this folder try these answers. They are in tables whose names begin with RIGHT and WRONG and whose
keys are those of the exercises, and they are counted here. The known mistakes of an exercise are wrong answers too.
Predictions have only one right answer, so the ways in which it can be written are tried here.
"""

import importlib
import math
from pathlib import Path

import pytest
import torch

from rlhf_lab.exercises import notebooks, of_notebook

EXERCISES = [one for number in notebooks() for one in of_notebook(number)]


def tried(prefix):
    """How many answers the tables with this prefix contain, by exercise."""
    counts = {one.key: 0 for one in EXERCISES}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, table in vars(importlib.import_module(path.stem)).items():
            if name.startswith(prefix):
                for key, answers in table.items():
                    counts[key] += len(answers)
    return counts


def test_every_exercise_has_three_other_right_answers_and_five_wrong_ones():
    right, wrong = tried("RIGHT"), tried("WRONG")
    short = {
        one.key: (right[one.key], len(one.mistakes) + wrong[one.key])
        for one in EXERCISES
        if one.kind != "predict" and (right[one.key] < 3 or len(one.mistakes) + wrong[one.key] < 5)
    }
    assert not short, f"right and wrong answers: {short}"


@pytest.mark.parametrize("one", [one for one in EXERCISES if one.kind == "predict"], ids=lambda one: one.key)
def test_a_right_prediction_may_be_written_in_three_ways_and_five_wrong_ones_are_refused(one):
    truth = one.truth()
    if one.options:
        right = [truth, truth.lower(), f" {truth} "]
        wrong = [*one.why_not, "".join(one.options), "", ord(truth), one.options[truth]]
    else:
        right = [torch.tensor(truth), [truth], truth * (1 + 0.9 * one.relative), truth * (1 - 0.9 * one.relative)]
        wrong = [*(mistake.function() for mistake in one.mistakes), math.nan, truth * (1 + 2 * one.relative), -truth]
    assert len(wrong) >= 5 and all(one.grade(answer).passed for answer in right)
    assert not any(one.grade(answer).passed for answer in wrong)
