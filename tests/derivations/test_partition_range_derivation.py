"""The bound on the variance of Ẑ, by a search for the worst reference."""

import math

import pytest
import torch

from rlhf_lab.derivations.partition_range import z_variance_range
from rlhf_lab.exact import relative_variance

torch.set_num_threads(1)


def test_the_bound_on_the_variance_holds_line_by_line_and_its_slips_fail():
    assert z_variance_range.check(worlds=100, seed=3, strict=True).ok


@pytest.mark.parametrize(("reward_range", "beta"), [(1.0, 1.0), (3.0, 0.5), (2.0, 4.0)])
def test_no_reference_is_worse_than_the_bound_and_the_worst_two_responses_reach_it(reward_range, beta):
    """χ² over 20,000 values of π_ref(best): its largest is sinh²(R/2β), at 1/(1 + e^{R/β})."""
    best = torch.sigmoid(torch.linspace(-20, 20, 20001, dtype=torch.float64))
    log_ref = torch.stack([1 - best, best], -1).log()
    reward = torch.tensor([0.0, reward_range], dtype=torch.float64).expand_as(log_ref)
    found = relative_variance(log_ref.log_softmax(-1), reward, beta)
    bound = math.sinh(reward_range / 2 / beta) ** 2
    assert float(found.max()) == pytest.approx(bound, rel=1e-5)
    assert float(best[found.argmax()]) == pytest.approx(1 / (1 + math.exp(reward_range / beta)), rel=5e-3)
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(2000, 5, dtype=torch.float64, generator=generator).mul(3).log_softmax(-1)
    between = torch.rand(2000, 5, dtype=torch.float64, generator=generator) * reward_range
    assert (relative_variance(many, between, beta) <= bound * (1 + 1e-12)).all()
