"""Bugs in `derivations`."""

from mutations.mutation import Mutation, in_file

MUTATIONS: list[Mutation] = [
    *in_file(
        "derivations/derivation.py",
        ["derivations/test_derivation.py"],
        Mutation(
            "edge",
            "a line with NaN is ticked",
            "return [bool((column <= TOLERANCE).all()) for column in self.errors.T]",
            "return [not bool((column > TOLERANCE).any()) for column in self.errors.T.nan_to_num()]",
            near="derivations/test_derivation.py::test_an_error_that_is_no_number_is_neither_a_tick_nor_a_mistake_that_holds",
        ),
        Mutation(
            "edge",
            "one world is enough for a tick",
            "bool((column <= TOLERANCE).all())",
            "bool((column <= TOLERANCE).any())",
            near="derivations/test_derivation.py::test_a_line_that_does_not_hold_is_never_ticked_and_strict_raises",
        ),
        Mutation(
            "sign",
            "≤ is checked as ≥",
            '"≤": gap.clamp(min=0), "≥": (-gap).clamp(min=0)}',
            '"≤": (-gap).clamp(min=0), "≥": gap.clamp(min=0)}',
            near="derivations/test_derivation.py::test_relations_hold_in_their_own_direction_only",
        ),
        Mutation(
            "norm",
            "an error is not relative to the sides",
            "error = (broken / scale).max().item()",
            "error = broken.max().item()",
            near="derivations/test_derivation.py::test_the_typical_error_of_a_slip_is_the_median_over_the_worlds_of_the_gap_over_the_scale",
        ),
        Mutation(
            "edge",
            "an error that is not a number passes",
            "return error if math.isfinite(error) else math.inf",
            "return error if math.isfinite(error) else 0.0",
            near="derivations/test_derivation.py::test_a_line_that_does_not_hold_is_never_ticked_and_strict_raises",
        ),
        Mutation(
            "mean",
            "finite differences of second order",
            "((1, 45.0), (2, -9.0), (3, 1.0))",
            "((1, 30.0), (2, 0.0), (3, 0.0))",
            near="derivations/test_derivation.py::test_gradient_and_finite_differences_find_a_derivative_worked_by_hand",
        ),
        Mutation(
            "data",
            "every world is the first one",
            "self.world(seeded(seed, i))",
            "self.world(seeded(seed, 0))",
            near="derivations/test_derivation.py::test_the_typical_error_of_a_slip_is_the_median_over_the_worlds_of_the_gap_over_the_scale",
        ),
        Mutation(
            "data",
            "a continued line is compared with the first line",
            "rights[-1])\n",
            "rights[0])\n",
            near="derivations/test_derivation.py::test_a_line_that_goes_on_is_compared_with_the_line_above_and_a_mistake_with_its_own_line",
        ),
        Mutation(
            "edge",
            "a mistake is compared with the line before it",
            "at = slip.instead_of - 1\n",
            "at = slip.instead_of - 2\n",
            near="derivations/test_derivation.py::test_a_line_that_goes_on_is_compared_with_the_line_above_and_a_mistake_with_its_own_line",
        ),
    ),
    *in_file(
        "derivations/random_worlds.py",
        ["derivations/test_derivation.py", "derivations/test_derivations.py"],
        Mutation(
            "beta",
            "the world's π* without β",
            "self.ref * torch.exp(self.reward / self.beta)",
            "self.ref * torch.exp(self.reward)",
            near="derivations/test_derivations.py::test_every_line_holds_and_every_wrong_line_fails",
        ),
        Mutation(
            "swap",
            "chosen and rejected are the same response",
            "rejected=order[:, 1],",
            "rejected=order[:, 0],",
            near="derivations/test_derivation.py::test_worlds_are_what_they_say",
        ),
    ),
]
