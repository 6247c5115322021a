"""The explorer of over-optimisation: its numbers against enumeration, and every state."""

import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.widgets.over_optimisation import (
    BETAS,
    calibrated,
    frontier,
    over_optimisation_explorer,
    over_optimisation_picture,
    tilt,
)

torch.set_num_threads(1)


def samples(prompts: int = 40, number: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform draws from four responses: the proxy likes best what gold likes least but one."""
    kinds = torch.randint(4, (prompts, number), generator=torch.Generator().manual_seed(0))
    return PROXY[kinds], GOLD[kinds]


PROXY = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
GOLD = torch.tensor([-1.0, 0.0, 1.0, -0.5], dtype=torch.float64)


@pytest.mark.parametrize("beta", [5.0, 1.0, 0.5])
def test_gold_and_kl_under_the_tilt_are_those_of_enumeration(beta):
    """The exact bandit: π_r = softmax(proxy/β) over four responses, within five standard errors."""
    log_ref = torch.full((4,), -math.log(4), dtype=torch.float64)
    log_star = exact.optimal_policy(log_ref, PROXY, beta)
    (found,) = tilt(*samples(), [beta])
    for estimate, value in ((found.gold, (log_star.exp() * GOLD).sum()), (found.kl, exact.kl(log_star, log_ref))):
        assert abs(estimate.mean - float(value)) < 5 * estimate.error + 0.003


def test_gold_rises_and_then_falls_where_the_proxy_is_wrong_at_the_top():
    """By hand: at β → ∞ the mean of GOLD, −0.125; at β → 0 the proxy's favourite, −0.5; in between above both."""
    far, middle, near = tilt(*samples(), [1000.0, 1.5, 0.02])
    assert far.gold.mean == pytest.approx(-0.125, abs=0.03)
    assert near.gold.mean == pytest.approx(-0.5, abs=1e-3)
    assert middle.gold.mean > -0.09
    assert near.promised.mean > middle.promised.mean > far.promised.mean


def test_the_promise_agrees_with_gold_in_the_mean_and_is_its_best_line():
    """Least squares within prompts: numpy's own answer; and a proxy that is gold up to a function of x is exact."""
    proxy, gold = samples()
    import numpy as np

    p, g = (t - t.mean(1, keepdim=True) for t in (proxy, gold))
    slope = np.linalg.lstsq(p.reshape(-1, 1).numpy(), g.reshape(-1).numpy(), rcond=None)[0][0]
    assert torch.allclose(calibrated(proxy, gold), gold.mean() + slope * p)
    moved = 3 * gold + torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(calibrated(moved, gold), g + gold.mean())


def test_no_tilt_towards_a_proxy_lies_above_golds_own():
    proxy, gold = samples()
    best = sorted(frontier(gold))
    for found in tilt(proxy, gold, BETAS):
        nearby = [reward for kl, reward in best if kl >= found.kl.mean]
        if nearby:
            assert found.gold.mean <= nearby[0] + 1e-6


def test_the_words_warn_where_few_samples_carry_the_weight():
    generator = torch.Generator().manual_seed(0)
    proxy = torch.randn(6, 32, generator=generator, dtype=torch.float64)
    assert "unreliable" in over_optimisation_picture(proxy, proxy, 0.05).text
    assert "unreliable" not in over_optimisation_picture(proxy, proxy, 10.0).text


def test_every_combination_of_the_controls_gives_a_picture():
    proxy, gold = samples(4, 30)
    flat = torch.zeros_like(gold)
    explorer = over_optimisation_explorer({"few labels": -proxy, "none": flat, "many": proxy}, gold)
    states = explorer.states(stops=5)
    assert len(states["pictures"]) == math.prod(len(c["names"]) for c in states["controls"])
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2
        assert "nan" not in picture["text"] and "inf" not in picture["text"]
    json.dumps(states, allow_nan=False)


def test_shapes_that_differ_and_no_proxy_are_refused():
    proxy, gold = samples(4, 30)
    with pytest.raises(LabError, match="same shape"):
        tilt(proxy[:2], gold, [1.0])
    with pytest.raises(LabError, match="empty"):
        over_optimisation_explorer({}, gold)
