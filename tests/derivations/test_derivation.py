"""The tool that ticks: it ticks what holds, refuses what does not, and never ticks what was not computed."""

import math
import re

import pytest
import torch

from rlhf_lab.derivations import Derivation, Line, Wrong, finite_differences, gradient, random_world
from rlhf_lab.derivations.derivation import Checked
from rlhf_lab.errors import LabError
from rlhf_lab.training import seeded


def derivation(lines=None, wrong=None, **more):
    """(a + b)² = a² + 2ab + b², with a = β and b = f(x); by default right, with the classic slip."""
    square = Line(
        r"a^2 + 2ab + b^2",
        "multiply out",
        lambda w: w.beta**2 + 2 * w.beta * w.offset + w.offset**2,
        left=r"(a + b)^2",
        left_value=lambda w: (w.beta + w.offset) ** 2,
    )
    slip = Wrong(r"a^2 + b^2", "the mixed term lost", lambda w: w.beta**2 + w.offset**2)
    return Derivation("square", "A square", lines or (square,), wrong or (slip,), "Euclid <II.4>", **more)


def test_a_line_that_holds_is_ticked_and_a_slip_is_seen_to_fail():
    checked = derivation().check(worlds=50)
    assert checked.ok and checked.ticked == [True]
    assert checked.errors.shape == (50, 1) and checked.errors.max() < 1e-14
    assert checked.failing[0] > 0.95
    assert checked.demand() is checked


def test_the_typical_error_of_a_slip_is_the_median_over_the_worlds_of_the_gap_over_the_scale():
    """The mixed term 2ab is the gap; the scale is the largest entry of either side, and at least 1."""
    checked = derivation().check(worlds=9)
    expected = []
    for i in range(9):
        w = random_world(seeded(0, i))
        right, slip = (w.beta + w.offset) ** 2, w.beta**2 + w.offset**2
        expected.append(((2 * w.beta * w.offset).abs().max() / max(1.0, right.max(), slip.max())).item())
    assert checked.wrong_errors[:, 0].tolist() == pytest.approx(expected, rel=1e-12)
    assert f"✗ by {sorted(expected)[4]:.2g}\n" in repr(checked)


def test_a_line_continues_the_one_above_unless_it_names_its_own_left_side():
    two = Line(r"2\beta", "", lambda w: 2 * w.beta, left=r"\beta + \beta", left_value=lambda w: w.beta + w.beta)
    goes_on = Line(r"\beta\cdot 2", "", lambda w: w.beta * 2)
    anew = Line(r"3\beta", "", lambda w: 3 * w.beta, left=r"2\beta + \beta", left_value=lambda w: 2 * w.beta + w.beta)
    slip = Wrong(r"4\beta", "", lambda w: 4 * w.beta, instead_of=3)
    assert derivation((two, goes_on, anew), (slip,)).check(20).ticked == [True, True, True]
    # Without a left side of its own the third line is compared with the second, and 3β is not 2β.
    assert derivation((two, goes_on, Line(r"3\beta", "", lambda w: 3 * w.beta)), (slip,)).check(20).ticked == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (lambda w: w.beta + 1e-8, "FAILS by"),  # a hundred times the tolerance
        (lambda w: torch.tensor(torch.nan), "FAILS by inf"),
        (lambda w: torch.tensor([0.0, torch.inf]), "FAILS by inf"),
    ],
)
def test_a_line_that_does_not_hold_is_never_ticked_and_strict_raises(value, shown):
    bad = derivation(
        (Line(r"\beta", "why", value, left=r"\beta", left_value=lambda w: w.beta),),
        (Wrong("0", "nothing", lambda w: 0.0),),
    )
    checked = bad.check(worlds=5)
    assert checked.ticked == [False] and not checked.ok
    for text in (repr(checked), checked._repr_markdown_()):
        assert "✓" not in text and shown in text and "1 of 1 lines FAIL" in text
    with pytest.raises(LabError, match=r"square, line 1 \(why\) does not hold"):
        bad.check(worlds=5, strict=True)


def test_one_bad_world_in_many_is_enough():
    lines = (
        Line("1", "", lambda w: float(w.n != 3), left="1", left_value=lambda w: 1.0),  # n is 2 or 3
    )
    assert derivation(lines, (Wrong("2", "", lambda w: 2.0),)).check(50).ticked == [False]


@pytest.mark.parametrize(("relation", "up", "down"), [("≤", True, False), ("≥", False, True), ("=", False, False)])
def test_relations_hold_in_their_own_direction_only(relation, up, down):
    def ticked(shift):
        line = Line("", "", lambda w: w.beta + shift, left="β", left_value=lambda w: w.beta, relation=relation)
        return derivation((line,), (Wrong("", "", lambda w: torch.nan),)).check(5).ticked[0]

    assert (ticked(+0.1), ticked(-0.1)) == (up, down)
    assert ticked(0.0)


def test_a_wrong_line_that_is_right_is_not_called_wrong_and_strict_says_so():
    harmless = derivation(wrong=(Wrong("", "the order of a sum", lambda w: (w.offset + w.beta) ** 2),))
    checked = harmless.check(worlds=10)
    assert not checked.ok and "? by 0\n" in repr(checked)
    with pytest.raises(LabError, match="“the order of a sum” fails only in 0 of 10 worlds"):
        harmless.check(worlds=10, strict=True)


def test_what_was_not_computed_is_not_ticked():
    uncomputed = derivation()
    assert "✓" not in repr(uncomputed) + uncomputed._repr_markdown_()
    assert "not computed" in uncomputed._repr_markdown_()
    with pytest.raises(LabError, match="at least 1"):
        uncomputed.check(worlds=0)


def test_the_text_is_the_same_twice_and_holds_no_raw_digits_of_rounding():
    one, two = derivation().check(20), derivation().check(20)
    assert repr(one) == repr(two) and one._repr_markdown_() == two._repr_markdown_()
    assert "✓ ≤ 1e-10" in repr(one) and not re.search(r"e-1[1-9]", repr(one) + one._repr_markdown_())


def test_another_seed_draws_other_worlds():
    assert not torch.equal(derivation().check(5).wrong_errors, derivation().check(5, seed=1).wrong_errors)


def test_reveal_shows_the_first_lines_and_the_wrong_ones_only_when_asked():
    lines = tuple(Line(f"{i}-th", f"reason {i}", lambda w: 0.0, left="0", left_value=lambda w: 0.0) for i in (1, 2, 3))
    slips = (Wrong("1", "slip of one", lambda w: 1.0, 1), Wrong("1", "slip of three", lambda w: 1.0, 3))
    checked = derivation(lines, slips).check(3)
    for text in (repr(checked.reveal(2)), checked.reveal(2)._repr_markdown_()):
        assert "reason 2" in text and "reason 3" not in text and "slip" not in text
    with_wrong = repr(checked.reveal(2, wrong=True))
    assert "slip of one" in with_wrong and "slip of three" not in with_wrong
    with pytest.raises(LabError, match="3 lines; 4 cannot"):
        checked.reveal(4)


def test_the_page_escapes_what_is_not_its_own():
    page = derivation().check(2)._repr_markdown_()
    assert r"Euclid \<II.4>" in page


def test_the_equations_are_in_both_displays_and_markdown_does_not_cut_them():
    """A bar ends a cell of a table, a star begins emphasis, and `<b` is a tag; mathematics keeps its meaning."""
    bars = Line(r"\|a\| | b < c", "π* of $|x|$ and π*, `w.a|b`", lambda w: 0.0, left="0", left_value=lambda w: 0.0)
    checked = derivation((bars,), (Wrong("1", "a | b", lambda w: 1.0),)).check(2)
    assert r"0 = \|a\| | b < c" in repr(checked) and "π* of $|x|$ and π*" in repr(checked)
    shown = checked._repr_markdown_()
    assert r"$\displaystyle 0 = \Vert a\Vert  \vert  b \lt  c$<br>π\* of $\vert x\vert $ and π\*, `w.a|b` |" in shown
    assert r"a \| b (fails in 2 of 2 worlds)" in shown and not hasattr(checked, "_repr_html_")


def helper(w):
    """Called by a line."""
    return deeper(w) + 0


def deeper(w):
    return w.beta


def test_each_line_unfolds_to_the_code_of_its_sides_and_what_they_call():
    two = [lambda w: helper(w) * 1, lambda w: w.beta]
    one = Line("b", "why", two[0], left="a", left_value=lambda w: w.beta), Line("c", "", two[1]), Line("d", "", helper)
    shown = derivation(one).check(2)._repr_markdown_()
    first, second, third, called = re.findall(r"<details><summary>(.*?)</details>", shown, re.S)
    assert first.startswith("Line 1 in Python") and "lambda w: helper(w) * 1\n" in first
    assert "# left side\nlambda w: w.beta\n" in first
    assert "# left side: the right side of the line above\n\n# right side\nlambda w: w.beta\n" in second
    assert '# right side\ndef helper(w):\n    """Called by a line."""\n    return deeper(w) + 0\n' in third
    assert called.startswith("The functions that these lines call") and "def deeper(w):" in called
    assert "in Python" not in derivation(one).check(2).reveal(1)._repr_markdown_().split("Line 1 in Python")[1]


def test_a_function_without_source_is_no_error():
    built_in = Line("1", "", len, left="1", left_value=lambda w: 2)
    slip = Wrong("3", "", lambda w: 3.0)
    made = derivation((built_in,), (slip,), world=lambda generator: [1, 2])
    assert "# right side\n\n```" in made.check(2)._repr_markdown_()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: derivation(lines=(Line("1", "", lambda w: 1.0),)), "continues nothing"),
        (lambda: derivation(lines=(Line("1", "", lambda w: 1.0, left="1"),)), "both left and left_value"),
        (lambda: derivation(wrong=(Wrong("", "", lambda w: 1.0, instead_of=2),)), "no line 2"),
        (lambda: derivation(lines=(Line("1", "", abs, "1", abs, relation="<"),)), "relation must be"),
        (lambda: Derivation("k", "t", (), (), ""), "at least one line"),
    ],
)
def test_a_derivation_that_says_nothing_is_refused_when_it_is_made(make, words):
    with pytest.raises(LabError, match=words):
        make()


def test_gradient_and_finite_differences_find_a_derivative_worked_by_hand():
    """d/dx of sin(x₁) + x₁x₂³ is (cos x₁ + x₂³, 3x₁x₂²); rows do not meet."""
    at = torch.tensor([[0.3, -1.2], [2.0, 0.7]], dtype=torch.float64)

    def function(x):
        return x[..., 0].sin() + x[..., 0] * x[..., 1] ** 3

    by_hand = torch.stack([at[:, 0].cos() + at[:, 1] ** 3, 3 * at[:, 0] * at[:, 1] ** 2], -1)
    torch.testing.assert_close(gradient(function, at), by_hand, rtol=0, atol=1e-14)
    torch.testing.assert_close(finite_differences(function, at), by_hand, rtol=0, atol=1e-11)


def test_worlds_are_what_they_say():
    for i in range(50):
        w = random_world(seeded(3, i))
        prompts, size = w.reward.shape
        assert 2 <= prompts <= 3 and 2 <= size <= 6 and 0.25 <= w.beta <= 4 and 0.05 <= w.epsilon <= 0.4
        for table in (w.log_ref.exp(), w.policy, w.star):
            torch.testing.assert_close(table.sum(-1), torch.ones(prompts, dtype=torch.float64))
        assert (w.chosen != w.rejected).all() and max(w.chosen.max(), w.rejected.max()) < size
        passing = (w.reward > w.threshold).sum(-1)
        assert ((passing >= 1) & (passing < size)).all()
        assert torch.equal(w.pair_weights, w.pair_weights.mT) and not w.pair_weights.diagonal(dim1=1, dim2=2).any()
        torch.testing.assert_close(w.pair_weights.sum((1, 2)), torch.ones(prompts, dtype=torch.float64))
        again = random_world(seeded(3, i))
        assert torch.equal(w.reward, again.reward) and w.beta == again.beta


def chain(*lines: Line, wrong: Wrong) -> Derivation:
    return Derivation("chain", "A chain", lines, (wrong,), "nobody", lambda generator: None)


def test_a_line_that_goes_on_is_compared_with_the_line_above_and_a_mistake_with_its_own_line():
    """0 ≤ 1 ≤ 3 ≤ 2 breaks in its third line, by 1 of 3; 1 = 1 and 5 = 5, of which the second is mistaken for 1, by 4
    of 5."""
    slip = Wrong("1", "taken for one", lambda world: 1.0, instead_of=2)
    rising = chain(
        Line("1", "because", lambda world: 1.0, "0", lambda world: 0.0, "≤"),
        Line("3", "because", lambda world: 3.0, relation="≤"),
        Line("2", "because", lambda world: 2.0, relation="≤"),
        wrong=slip,
    ).check(1)
    assert rising.errors[0].tolist() == pytest.approx([0.0, 0.0, 1 / 3]) and rising.ticked == [True, True, False]
    two = chain(
        Line("1", "because", lambda world: 1.0, "1", lambda world: 1.0),
        Line("5", "because", lambda world: 5.0, "5", lambda world: 5.0),
        wrong=slip,
    ).check(1)
    assert two.wrong_errors[0].tolist() == pytest.approx([4 / 5]) and two.failing == [1.0]


def test_an_error_that_is_no_number_is_neither_a_tick_nor_a_mistake_that_holds():
    one = chain(Line("1", "because", lambda world: 1.0, "1", lambda world: 1.0), wrong=Wrong("2", "no", lambda w: 2.0))
    nan = torch.full((2, 1), math.nan, dtype=torch.float64)
    found = Checked(one, nan, nan, 1, True)
    assert found.ticked == [False] and found.failing == [1.0]
