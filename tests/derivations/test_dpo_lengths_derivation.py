"""Sum or mean: the derivation holds on random worlds, its wrong lines fail, and c has its closed form at length 1."""

import torch

from rlhf_lab.derivations import random_world
from rlhf_lab.derivations.dpo_lengths import mean_offset, mean_optimum
from rlhf_lab.training import seeded


def test_every_line_holds_and_every_wrong_line_fails():
    mean_optimum.check(worlds=100, seed=3).demand()


def test_at_length_one_the_offset_is_minus_beta_log_z_and_the_mean_is_the_sum():
    w = random_world(seeded(4))
    c = mean_offset(w.log_ref, w.reward, torch.ones_like(w.reward), w.beta)
    assert torch.allclose(c.squeeze(-1), -w.beta * w.log_z, atol=1e-12)


def test_of_two_equal_lengths_two_the_offset_is_that_of_half_the_beta():
    # π_ref exp(2 (r + c)/β) is the tilt at β/2: c = −(β/2) log Z(β/2).
    w = random_world(seeded(5))
    c = mean_offset(w.log_ref, w.reward, torch.full_like(w.reward, 2.0), w.beta)
    z = (w.log_ref + 2 * w.reward / w.beta).logsumexp(-1)
    assert torch.allclose(c.squeeze(-1), -w.beta / 2 * z, atol=1e-12)
