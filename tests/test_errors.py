"""`rlhf_lab.errors`: every refusal is a `LabError` that names the thing and the place."""

import math

import pytest
import torch

from rlhf_lab import errors
from rlhf_lab.errors import LabError


def test_lab_error_is_a_value_error():
    assert issubclass(LabError, ValueError)


@pytest.mark.parametrize("good", [1, 0.5, 1e-300, 1e300, torch.tensor(2.0)])
def test_positive_numbers_pass_and_come_back_as_floats(good):
    result = errors.check_positive(good, "gamma")
    assert isinstance(result, float) and result == float(good)


@pytest.mark.parametrize("bad", [0, 0.0, -1, math.nan, math.inf, -math.inf, "half", None, [1, 2]])
def test_what_is_not_a_positive_number_is_refused_by_name(bad):
    with pytest.raises(LabError, match="gamma"):
        errors.check_positive(bad, "gamma")


def test_the_mend_is_part_of_the_message():
    with pytest.raises(LabError, match="turn it up"):
        errors.check_positive(-1.0, "gamma", "turn it up")


@pytest.mark.parametrize("bad", [0.0, -0.5, math.nan, math.inf])
def test_beta_is_refused_by_name(bad):
    with pytest.raises(LabError, match="beta"):
        errors.check_beta(bad)


@pytest.mark.parametrize("bad", [[0.1, 0.2], 3.0, None])
def test_what_is_no_tensor_is_refused_by_name(bad):
    with pytest.raises(LabError, match="reward"):
        errors.check_float(bad, "reward")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_tensors_are_refused_by_name(dtype):
    with pytest.raises(LabError, match="reward"):
        errors.check_float(torch.ones(3, dtype=dtype), "reward")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_tensors_pass_unchanged(dtype):
    x = torch.ones(3, dtype=dtype)
    assert errors.check_float(x, "reward") is x


def test_shapes_that_broadcast_pass_and_others_are_named():
    errors.check_same_shape(chosen=torch.zeros(2, 3), rejected=torch.zeros(1, 3))
    with pytest.raises(LabError, match=r"chosen \(2, 3\).*rejected \(2, 4\)"):
        errors.check_same_shape(chosen=torch.zeros(2, 3), rejected=torch.zeros(2, 4))


def test_the_responses_axis_must_agree_exactly_even_where_broadcasting_would_pass():
    errors.check_responses_axis(log_ref=torch.zeros(3), reward=torch.zeros(5, 3))
    with pytest.raises(LabError, match=r"log_ref.*reward"):
        errors.check_responses_axis(log_ref=torch.zeros(1), reward=torch.zeros(3))
    with pytest.raises(LabError, match=r"log_ref.*reward"):
        errors.check_responses_axis(log_ref=torch.zeros(2, 3), reward=torch.zeros(5, 3))


@pytest.mark.parametrize("shape", [(), (0,), (4, 0)])
def test_an_empty_responses_axis_is_refused_by_name(shape):
    with pytest.raises(LabError, match="reward"):
        errors.check_responses_axis(reward=torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_value_that_is_not_finite_is_placed(value):
    x = torch.zeros(3, 4)
    x[1, 2] = x[2, 0] = value
    with pytest.raises(LabError, match=r"reward.*\(1, 2\)"):
        errors.check_finite(x, "reward")
    flat = torch.tensor([0.0, 0.0, value])
    with pytest.raises(LabError, match=r"reward.*index 2"):
        errors.check_finite(flat, "reward")


def test_a_bad_scalar_tensor_is_refused_without_a_traceback_from_below():
    for check in (errors.check_finite, errors.check_no_nan):
        with pytest.raises(LabError, match="reward"):
            check(torch.tensor(math.nan), "reward")


def test_no_nan_lets_infinities_pass():
    x = torch.tensor([0.0, -math.inf, math.inf])
    assert errors.check_no_nan(x, "log_ref") is x
    with pytest.raises(LabError, match=r"log_ref.*index 1"):
        errors.check_no_nan(torch.tensor([0.0, math.nan]), "log_ref")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_distributions_pass_with_and_without_arms_of_no_mass(dtype):
    for p in ([0.2, 0.3, 0.5], [0.0, 0.25, 0.75], [1.0]):
        log_p = torch.tensor(p, dtype=dtype).log()
        assert errors.check_log_distribution(log_p, "log_ref") is log_p
    # A million terms, the largest sum the lab enumerates: rounding alone must not look like a mistake.
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(1_000_000, dtype=dtype, generator=generator).log_softmax(-1)
    errors.check_log_distribution(many, "log_ref")


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([0.2, 0.3, 0.5]),  # probabilities where logarithms were asked
        torch.tensor([1.0, 2.0, 3.0]),  # raw logits
        torch.tensor([0.5, 0.51]).log(),  # off by a percent
        torch.full((3,), -math.inf),  # no mass anywhere
        torch.tensor([math.inf, 0.0]),
        torch.tensor([math.nan, 0.0]),
    ],
)
def test_what_is_no_log_distribution_is_refused_by_name(bad):
    with pytest.raises(LabError, match="log_ref"):
        errors.check_log_distribution(bad, "log_ref")


def test_the_row_that_does_not_sum_to_one_is_placed():
    rows = torch.tensor([[0.5, 0.5], [0.5, 0.6]], dtype=torch.float64).log()
    with pytest.raises(LabError, match=r"1\.1.*index 1"):
        errors.check_log_distribution(rows, "log_ref")
