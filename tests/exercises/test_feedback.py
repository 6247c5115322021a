"""What a student is told: the right thing for each way of being wrong, and never a traceback."""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.exercises import Case, Exercise, GeneratorSeed, Mistake, check, exercise, hint, notebooks, solution
from rlhf_lab.exercises.checking import grade_answer

A = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 8.0]], dtype=torch.float64)


def scaled_sum(table, factor):
    """The sum over the last axis, times a factor."""
    return factor * table.sum(-1)


def make(**changes):
    settings = {
        "key": "nb99.scaled_sum",
        "title": "A sum",
        "objective": "sum",
        "difficulty": 2,
        "minutes": 3,
        "cases": (Case("a table", {"table": A, "factor": 3.0}), Case("its first row", {"table": A[:1], "factor": 0.5})),
        "solution": scaled_sum,
        "mistakes": (
            Mistake("mean for sum", "a mean stands where a sum belongs.", lambda t, f: f * t.mean(-1)),
            Mistake("wrong axis", "summed over the wrong axis.", lambda t, f: f * t.sum(0)),
            Mistake("no factor", "the factor is missing.", lambda t, f: t.sum(-1)),
        ),
        "hints": ("one", "two"),
    }
    return Exercise(**{**settings, **changes})


def said(function, **changes):
    return grade_answer(make(**changes), function)


def test_a_right_answer_gets_one_line():
    feedback = said(lambda t, f: (f * t).sum(dim=1))
    assert feedback.passed and repr(feedback) == "✓ nb99.scaled_sum: right on every input."
    assert "✓" in feedback._repr_html_()


def test_a_right_answer_in_single_precision_or_numpy_or_a_plain_number_passes():
    assert said(lambda t, f: f * t.float().sum(-1)).passed
    assert said(lambda t, f: (f * t.sum(-1)).numpy()).passed
    one = (Case("a row", {"table": A[0], "factor": 1.0}),)
    assert said(lambda t, f: sum(t.tolist()) * f, cases=one).passed


def test_a_classic_mistake_gets_its_own_words_the_input_what_was_expected_and_what_was_got():
    """The first row sums to 7, times 3 is 21; its mean is 7/3, times 3 is 7. The second: 26.25 and 8.75."""
    feedback = said(lambda t, f: f * t.mean(-1))
    assert not feedback.passed and feedback.mistake == "mean for sum"
    assert repr(feedback) == (
        "✗ nb99.scaled_sum: a mean stands where a sum belongs.\n"
        "  On the input “a table”, table = [[1, 2, 4], [0.5, 0.25, 8]], factor = 3:\n"
        "  expected [21, 26.25], got [7, 8.75]."
    )


def test_the_input_that_is_named_is_the_first_one_that_fails():
    """Wrong only where there is one row, so the second input is the one to show."""
    feedback = said(lambda t, f: f * t.sum(-1) + (1.0 if len(t) == 1 else 0.0))
    assert "“its first row”" in repr(feedback) and "expected [3.5], got [4.5]" in repr(feedback)


def test_an_unknown_mistake_is_not_given_a_known_ones_words():
    """It equals `no factor` on neither input; being wrong is not enough to be recognised."""
    feedback = said(lambda t, f: 7 * t.sum(-1))
    assert not feedback.passed and feedback.mistake == "" and "not yet" in repr(feedback)


def raises(t, f):
    return t @ t  # (2, 3) times (2, 3)


def in_place(t, f):
    return t.mul_(f).sum(-1)


def unwritten(t, f):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, "raises RuntimeError in the line “return t @ t  # (2, 3) times (2, 3)”"),
        (in_place, "changes its argument table in place"),
        (unwritten, "not written yet"),
        (lambda t, f: None, "Is the return missing"),
        (lambda t, f: ..., "Is the return missing"),
        (lambda t, f: [21.0, 26.25], "a list. Wrap it in torch.tensor"),
        (lambda t, f: "21", "got text"),
        (lambda t, f: f * t.sum(-1, keepdim=True), "expected shape (2,), got shape (2, 1)"),
        (lambda t, f: f * t.sum(-1) * torch.nan, "got nan at index 0, expected 21"),
        (lambda t, f: f * t.sum(-1) / 0, "got [inf, inf]"),
        (lambda t: t, "called with 2 arguments, scaled_sum(table, factor)"),
        (torch.zeros(2), "give the function, not its result"),
        (None, "give the function, not its result"),
        (lambda t, f: object(), "got a object"),
        (lambda t, f: {"a": 1}, "got a dict"),
        (lambda t, f: t.sum(-1) > 3, "expected [21, 26.25], got [1, 1]"),
    ],
)
def test_every_broken_answer_gets_a_sentence_and_no_traceback(function, words):
    feedback = said(function)
    assert not feedback.passed and words in repr(feedback)
    assert "Traceback" not in repr(feedback) and "<" not in feedback.lines[0]


def test_the_callers_tensors_are_not_touched_by_a_student():
    before = A.clone()
    said(in_place)
    assert torch.equal(A, before)


def test_a_large_answer_is_compared_at_its_worst_place():
    table = torch.arange(40.0, dtype=torch.float64).reshape(20, 2)

    def one_off(t, f):
        result = scaled_sum(t, f)
        result[7] += 5
        return result

    feedback = said(one_off, cases=(Case("many rows", {"table": table, "factor": 1.0}),))
    assert "1 of 20 entries differ, most of all the entry at index 7: expected 29, got 34" in repr(feedback)
    assert "table = a tensor of shape (20, 2)" in repr(feedback)


def squared(x):
    """x² with its second factor held fixed."""
    return x.detach() * x


GRADIENT = {
    "cases": (Case("two numbers", {"x": torch.tensor([1.0, 3.0], dtype=torch.float64)}),),
    "solution": squared,
    "mistakes": (
        Mistake("forgot detaching", "both factors are differentiated.", lambda x: x * x),
        Mistake("detached too much", "nothing is differentiated.", lambda x: (x * x).detach()),
        Mistake("sign", "the sign is lost.", lambda x: -x.detach() * x),
    ),
    "differentiate": ("x",),
}


@pytest.mark.parametrize("compare", ["gradient", "both"])
def test_gradients_are_compared_where_the_exercise_is_about_them(compare):
    more = {**GRADIENT, "compare": compare}
    assert said(squared, **more).passed
    assert said(lambda x: x * x, **more).mistake == "forgot detaching"
    assert said(lambda x: (x * x).detach(), **more).mistake == "detached too much"
    # The right gradient with another value: enough for one comparison, not for the other.
    assert said(lambda x: x.detach() * x + 1, **more).passed == (compare == "gradient")
    assert "must return a tensor" in repr(said(lambda x: 3.0, **more))


def test_an_open_question_is_judged_not_compared():
    def even(number, limit):
        """A complaint, or None for any even number above the limit."""
        return None if number > limit and number % 2 == 0 else f"{number} is not an even number above {limit}."

    more = {
        "cases": (Case("a limit", {"limit": 10}),),
        "solution": lambda limit: limit + 2,
        "mistakes": tuple(Mistake(f"m{i}", f"off by {i}.", lambda limit, i=i: limit - i) for i in (1, 2, 3)),
        "grader": even,
    }
    assert said(lambda limit: 100, **more).passed
    assert "13 is not an even number" in repr(said(lambda limit: 13, **more))
    assert said(lambda limit: limit - 2, **more).mistake == "m2"
    assert "got text, expected a number" in repr(said(lambda limit: "many", **more))


def test_a_seed_becomes_a_new_generator_for_every_call():
    def draw(generator):
        """One uniform number."""
        return torch.rand((), generator=generator, dtype=torch.float64)

    more = {
        "cases": (Case("a seed", {"generator": GeneratorSeed(3)}),),
        "solution": draw,
        "mistakes": tuple(Mistake(f"m{i}", "", lambda g, i=i: draw(g) + i) for i in (1, 2, 3)),
    }
    assert said(lambda g: torch.rand(1, generator=g, dtype=torch.float64)[0], **more).passed
    assert not said(lambda g: torch.rand(2, generator=g, dtype=torch.float64)[1], **more).passed


@pytest.mark.parametrize(
    "changes",
    [{"mistakes": ()}, {"hints": ("one",)}, {"cases": ()}, {"differentiate": ("table",)}, {"compare": "both"}],
)
def test_an_incomplete_exercise_is_refused_when_it_is_made(changes):
    with pytest.raises(LabError):
        make(**changes)


def test_hints_come_in_steps_and_the_solution_is_the_code():
    key = "nb05.dpo_loss"
    assert repr(hint(key)).startswith("**Hint 1 of 2.**") and repr(hint(key, 2)) != repr(hint(key))
    with pytest.raises(LabError, match="from 1 to 2, not 3"):
        hint(key, 3)
    assert "def dpo_loss(chosen_log_ratio" in solution(key)._repr_markdown_()


def test_an_unknown_exercise_is_answered_with_the_nearest():
    with pytest.raises(LabError, match=r"Did you mean nb05\.dpo_loss"):
        check("nb05.dpo_los", abs)
    with pytest.raises(LabError, match="Notebooks with exercises: nb"):
        check("nb77.x", abs)
    assert exercise("nb05.dpo_loss").dots == "●○○" and "nb05" in notebooks()


def test_entries_that_trade_places_have_another_gradient():
    """The sum of 2x and of 2x in another order have one gradient; each entry's own place decides."""
    cases = (Case("three numbers", {"x": torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)}),)
    slips = tuple(Mistake(str(i), f"{i} times", lambda x, i=i: i * x) for i in (3, 4, 5))

    def doubled(x):
        """Twice x."""
        return 2 * x

    def told(function):
        more = {"differentiate": ("x",), "compare": "gradient", "cases": cases, "mistakes": slips}
        return said(function, solution=doubled, **more)

    assert told(lambda x: x + x).passed
    assert not told(lambda x: 2 * x.flip(0)).passed and not told(lambda x: 2 * x.roll(1)).passed
