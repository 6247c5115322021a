"""Claim 11, the samplers of pairs: gradients against autograd, convergence against theory, the rule, a quick run."""

import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact, losses
from rlhf_lab.bradley_terry import draw_wins, fit_rewards
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.dpo_samplers.report import order
from rlhf_lab.experiments.claims.dpo_samplers.run import EXPERIMENT, steps_to_target
from rlhf_lab.experiments.claims.dpo_samplers.settings import SAMPLERS, DPOSamplers
from rlhf_lab.experiments.claims.dpo_samplers.training import sampler_setup
from rlhf_lab.experiments.runner import experiment_run

F64 = torch.float64


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_the_start_is_the_reference_and_parameters_reach_any_policy(scale):
    setup = sampler_setup(scale, 0, 0.5)
    torch.testing.assert_close(setup.log_policy(setup.start.unsqueeze(0))[0], setup.log_ref)
    assert setup.implicit_reward(setup.start.unsqueeze(0)).abs().max() < 1e-12


@pytest.mark.parametrize("scale", ["bandit", "tree"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_follows_the_gradient_of_dpo_s_expected_loss(scale, sampler):
    """The second step, against autograd through `losses.dpo` with the weights held fixed."""
    setup = sampler_setup(scale, 1, 0.5)
    theta = setup.start + 0.3 * torch.randn(len(setup.start), dtype=F64, generator=torch.Generator().manual_seed(0))
    theta = theta.requires_grad_(True)
    wins = exact.preference(setup.reward)
    weights = setup.weights(sampler, setup.implicit_reward(theta.unsqueeze(0)).detach())[0]
    ratio = setup.log_policy(theta.unsqueeze(0))[0] - setup.log_ref
    loss = 2 * (weights * wins * losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), 0.5)).sum()
    (expected,) = torch.autograd.grad(loss, theta)
    implicit = setup.implicit_reward(theta.unsqueeze(0))
    slope = -2 * (weights * (wins - torch.sigmoid(implicit.unsqueeze(-1) - implicit.unsqueeze(-2)))).sum(-1)
    (found,) = torch.autograd.grad((implicit * slope.detach()).sum(), theta)
    torch.testing.assert_close(found, expected)


def test_the_weights_of_the_samplers_by_hand():
    """Two different responses are drawn, so of three with π = (½, ¼, ¼) the pairs have 2/5, 2/5 and 1/5 in both orders.

    The mixture's weight at f_i − f_j = log 2 is 1/6 · (2 + 2 + ½)/4.
    """
    setup = sampler_setup("bandit", 0, 0.5)
    implicit = torch.tensor([[math.log(2.0), 0.0, 0.0]], dtype=F64)
    log_ref = torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()
    three = type(setup)(((1, 3),), log_ref, torch.zeros(3, dtype=F64), 1.0)
    reference = three.weights("reference", torch.zeros(1, 3, dtype=F64))[0]
    assert (reference[0, 1] + reference[1, 0]).item() == pytest.approx(2 / 5)
    assert (reference[1, 2] + reference[2, 1]).item() == pytest.approx(1 / 5)
    mixture = three.weights("mixture", implicit)[0]
    assert mixture[0, 1].item() == pytest.approx(4.5 / 24) and mixture[1, 2].item() == pytest.approx(1 / 6)
    current = three.weights("current", implicit)[0]  # π ∝ (1, ¼, ¼)
    assert (current[0, 1] + current[1, 0]).item() == pytest.approx(2 * (2 / 3 / 6) / (1 - 4 / 9 - 2 / 36))


def test_the_largest_step_size_is_that_of_the_hessian_at_the_reference():
    """`sharpness` of uniform pairs on a table: the Laplacian of weights ½·1/(K(K−1)) times β², largest 1/(2(K−1))."""
    setup = sampler_setup("bandit", 3, 0.5)
    assert setup.sharpness("uniform") == pytest.approx(0.25 * 10 / (2 * 10 * 9))


def test_on_a_table_the_mixture_converges_quadratically_and_uniform_pairs_linearly():
    """The step size 1 is Newton's for the mixture. Errors square: five steps from 1 to below 1e-10 of the regret."""
    setup = sampler_setup("bandit", 0, 0.5)
    one = torch.ones(1, dtype=F64)
    mixture, uniform = (setup.descend(sampler, one, 60)[:, 0] for sampler in ("mixture", "uniform"))
    assert steps_to_target(mixture) <= 5 and mixture[7] < 1e-10 * mixture[0]
    assert order((mixture / mixture[0]).tolist()) > 1.7
    assert order((uniform / uniform[0]).tolist()[:11]) == pytest.approx(1, abs=0.1) and uniform[4] > 1e4 * mixture[4]


def test_sampled_gradients_are_unbiased():
    """The mean of 400 sampled slopes of 200 labels each, within five standard errors of the exact slope."""
    setup = sampler_setup("bandit", 2, 0.5)
    implicit = 0.5 * torch.randn(1, 10, dtype=F64, generator=torch.Generator().manual_seed(1))
    weights = setup.weights("mixture", implicit)[0]
    miss = exact.preference(setup.reward) - torch.sigmoid(implicit[0].unsqueeze(-1) - implicit[0])
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack([setup._sampled_slope(weights, implicit[0], 200, generator) for _ in range(400)])
    error = draws.std(0) / 20
    assert ((draws.mean(0) + 2 * (weights * miss).sum(-1)).abs() < 5 * error).all()


def test_steps_and_order_of_made_up_curves():
    linear = 0.5 ** torch.arange(40, dtype=F64)
    assert steps_to_target(linear) == 14  # 2⁻¹⁴ is the first below 1e-4
    assert steps_to_target(linear[:10]) == 9
    assert steps_to_target(torch.tensor([1.0, 1e-6, 0.5, 1e-6], dtype=F64)) == 3
    assert order(linear.tolist()) == pytest.approx(1)
    assert order([1.0, 1e-2, 1e-4, 1e-8, 1e-16]) == pytest.approx(2)  # the last share is rounding
    assert math.isnan(order([1.0, 0.5, 0.6])) and math.isnan(order([1.0, 1e-12]))


@pytest.mark.parametrize("scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow)])
def test_a_quick_run_has_every_part_and_sampler_and_can_be_drawn(scale):
    settings = DPOSamplers(scale=scale, quick=True, progress=False, steps=8, sampled_steps=4)
    found = experiment_run(EXPERIMENT, settings)
    assert set(found.runs["part"]) == {"exact", "sampled", "rounds"} and set(found.runs["sampler"]) == set(SAMPLERS)
    assert set(found.best_config) == {f"{part} {name}" for part in ("exact", "sampled") for name in SAMPLERS}
    first = found.runs[(found.runs["at"] == 0)]
    assert first["left"].to_numpy() == pytest.approx(1.0)
    axes = EXPERIMENT.figure(settings, found.summary, found.runs).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def _made(steps, rounds, sampled):
    rows = []
    for seed in range(4):
        for part, at in (("exact", 20), ("sampled", 10), ("rounds", 200)):
            for sampler in SAMPLERS:
                gain = {
                    ("exact", "mixture"): steps, ("rounds", "current"): rounds, ("sampled", "mixture"): sampled,
                }.get((part, sampler), 0.0) + (0.01 * seed if sampler in ("mixture", "current") else 0.0)  # fmt: skip
                row = {"part": part, "sampler": sampler, "seed": seed, "at": at, "left": 0.1 * math.exp(gain)}
                exact_part = {"rate": 1.0, "steps_needed": 10 * math.exp(gain)}
                rows.append(row | (exact_part if part != "rounds" else {}))
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((-1.0, -0.5, -0.5), "supported"),
        ((-1.0, 0.5, 0.5), "partly supported"),
        ((1.0, 0.0, -0.015), "not supported"),
        ((-0.015, -0.015, -0.015), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_rows(gains, outcome):
    settings, runs = DPOSamplers(quick=True), _made(*gains)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["steps_mixture"].mean == pytest.approx(math.exp(gains[0] + 0.015))
    assert verdict.numbers["rounds_current"].mean == pytest.approx(math.exp(gains[1] + 0.015))


def test_the_search_takes_the_fewest_steps_and_then_the_lowest_regret():
    rows = [
        {"part": part, "sampler": name, "rate": rate, "steps_needed": steps, "left": left, "seed": seed}
        for part in ("exact", "sampled")
        for name in SAMPLERS
        for seed in (1000, 1001)
        for rate, steps, left in ((0.5, 30, 0.2), (1.0, 10, 0.3), (2.0, 10, 0.25), (4.0, 40, 0.01))
    ]
    chosen = EXPERIMENT.select_best(DPOSamplers(), pd.DataFrame(rows))
    assert chosen["exact mixture"]["rate"] == 2.0 and chosen["sampled mixture"]["rate"] == 4.0


def test_step_sizes_must_be_there():
    with pytest.raises(LabError, match="at least one step size"):
        DPOSamplers(rates=())


def test_rounds_use_all_labels_so_far():
    """The second round of uniform pairs is a fit to the labels of both, which the same generator gives one by one."""
    setup = sampler_setup("bandit", 4, 0.5)
    found = setup.label_in_rounds("uniform", 2, 300, torch.Generator().manual_seed(0))
    generator, pairs = torch.Generator().manual_seed(0), (1 - torch.eye(10, dtype=F64)) / 90
    wins = sum(draw_wins(setup.reward, pairs, [300], generator)[0] for _ in range(2))
    assert wins.sum() == 600
    log_policy = (setup.log_ref + fit_rewards(wins)[0] / 0.5).log_softmax(-1)
    assert found[1] == pytest.approx(exact.regret(log_policy, setup.log_ref, setup.reward, 0.5).item(), rel=1e-6)
