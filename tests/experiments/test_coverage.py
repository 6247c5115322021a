"""Claim 12, pairs that do not cover all responses: fits against autograd and closed forms, the rule, a quick run."""

import itertools
import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact, losses
from rlhf_lab.bradley_terry import draw_wins, expected_wins
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.coverage.fits import CoverageWorld, coverage_world
from rlhf_lab.experiments.claims.coverage.report import COMPARISONS
from rlhf_lab.experiments.claims.coverage.run import EXPERIMENT, MANY, rounds
from rlhf_lab.experiments.claims.coverage.settings import CLASSES, MASKS, METHODS, Coverage
from rlhf_lab.experiments.runner import experiment_run

F64 = torch.float64
EVERY = [(scale, policies) for scale in ("bandit", "tree") for policies in CLASSES]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "policies"), EVERY)
def test_parameters_of_zero_are_the_reference_and_slopes_are_those_of_autograd(scale, policies):
    world = coverage_world(scale, policies, 0, 0.5)
    assert world.ref.exp().sum().item() == pytest.approx(1)
    u = 0.5 * normal(2, world.features.shape[1])
    torch.testing.assert_close(world.log_policy(0 * u)[0], world.ref)

    def implicit(one):
        return world.beta * (world.log_policy(one.unsqueeze(0))[0] - world.ref)

    for one, slopes in zip(u, world.slopes(u), strict=True):
        torch.testing.assert_close(slopes, torch.autograd.functional.jacobian(implicit, one))


@pytest.mark.parametrize(("scale", "policies"), EVERY)
def test_fits_have_no_gradient_left(scale, policies):
    """DPO's by `losses.dpo`, the reward model's by `losses.bradley_terry`, both with the normal prior."""
    world = coverage_world(scale, policies, 1, 0.5)
    wins = draw_wins(world.reward, world.pairs("optimal", 0.1), [300], torch.Generator().manual_seed(3))
    u = world.fit_dpo(wins, 3.0).requires_grad_(True)
    ratio = world.log_policy(u)[0] - world.ref
    loss = (wins[0] * losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), 0.5)).sum() + u.square().sum() / 18
    assert torch.autograd.grad(loss, u)[0].abs().max() < 1e-3
    rewards = world.fit_reward(wins, 3.0)[0]
    total = world.paths @ world.features
    w = torch.linalg.lstsq(total, rewards.unsqueeze(-1), driver="gelsd").solution.squeeze(-1).requires_grad_(True)
    values = total @ w
    loss = (wins[0] * losses.bradley_terry(values.unsqueeze(-1), values.unsqueeze(-2))).sum() + w.square().sum() / 18
    assert torch.autograd.grad(loss, w)[0].abs().max() < 1e-3


def many(world, kind, coverage):
    return MANY * expected_wins(world.reward, world.pairs(kind, coverage)).unsqueeze(0)


@pytest.mark.parametrize("scale", ["bandit", "tree"])
def test_with_many_labels_on_all_responses_a_table_finds_the_optimum(scale):
    world = coverage_world(scale, "table", 2, 0.5)
    wins = many(world, "optimal", 0.1)
    assert world.regret(world.log_policy(world.fit_dpo(wins, 3.0))).item() < 1e-4
    assert world.regret(world.best_policy(world.fit_reward(wins, 3.0))).item() < 1e-4


@pytest.mark.parametrize("policies", CLASSES)
def test_on_a_bandit_dpo_and_rlhf_are_the_same_policy(policies):
    world = coverage_world("bandit", policies, 3, 0.5)
    wins = draw_wins(world.reward, world.pairs("rest", 0.0), [200], torch.Generator().manual_seed(0))
    dpo = world.log_policy(world.fit_dpo(wins, 3.0))
    torch.testing.assert_close(dpo, world.best_policy(world.fit_reward(wins, 3.0)), atol=1e-6, rtol=1e-6)


def test_on_a_tree_they_differ():
    world = coverage_world("tree", "table", 3, 0.5)
    wins = many(world, "rest", 0.0)
    dpo = world.log_policy(world.fit_dpo(wins, 3.0))
    assert (dpo.exp() - world.best_policy(world.fit_reward(wins, 3.0)).exp()).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["optimal", "rest"])
def test_a_masked_arm_of_a_table_keeps_its_logit(kind):
    """No label compares it, so the prior leaves its parameter at 0 and those of the others have the mean 0."""
    world = coverage_world("bandit", "table", 4, 0.5)
    mask = world.mask(kind)
    centred = torch.where(mask, 0.0, world.reward - world.reward[~mask].mean())
    expected = (world.ref + centred / 0.5).log_softmax(-1)
    torch.testing.assert_close(
        world.log_policy(world.fit_dpo(many(world, kind, 0.0), 3.0))[0], expected, atol=1e-3, rtol=0
    )


def six_arms():
    """π* = (.4, .3, .2, .06, .03, .01), with a uniform reference and β = 1."""
    p = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.03, 0.01], dtype=F64)
    uniform = torch.full((6,), -math.log(6), dtype=F64)
    return CoverageWorld(6, torch.eye(6, dtype=F64), torch.eye(6, dtype=F64), uniform, p.log(), 1.0)


def test_masks_and_pairs_by_hand():
    world = six_arms()
    assert world.mask("optimal").tolist() == [True, True, False, False, False, False]
    assert world.mask("rest").tolist() == [False, False, False, False, True, True]
    # The means with the uniform reference are .283, .233, .183, .113, .098, .088. One response is always masked.
    assert world.mask("rare").tolist() == [False, False, False, False, False, True]
    assert world.pairs("optimal", 0.0)[:2].sum() == 0
    # At coverage ½ the draws have the probabilities ½·(½, ½, 1, 1, 1, 1)/…, so a pair (0, 1) is ¼ of a pair (2, 3).
    half = world.pairs("optimal", 0.5)
    assert half[0, 1].item() == pytest.approx(half[2, 3].item() / 4) and half.sum().item() == pytest.approx(1)
    torch.testing.assert_close(world.pairs("rest", 1.0), (1 - torch.eye(6, dtype=F64)) / 30)


def test_worst_cases_by_hand():
    """All mass on the masked arm with .01 costs log 100 nats; the unmasked arms have .3 of π*: log(1/.3) nats."""
    world = six_arms()
    assert world.worst_offline("rest") == pytest.approx(math.log(100))
    assert world.worst_offline("optimal") == pytest.approx(math.log(1 / 0.3))
    for kind in ("optimal", "rest"):
        masked = world.mask(kind).nonzero().flatten()
        low, high = world.reward.min(), world.reward.max()
        corners = [world.reward.index_put((masked,), torch.stack(c)) for c in itertools.product((low, high), repeat=2)]
        regrets = [world.regret(exact.optimal_policy(world.ref, one, 1.0).unsqueeze(0)).item() for one in corners]
        assert world.worst_rlhf(kind) == pytest.approx(max(regrets))


@pytest.mark.parametrize("kind", MASKS)
def test_no_policy_with_the_right_ratios_of_unmasked_responses_is_worse_than_the_worst_case(kind):
    world = coverage_world("tree", "table", 5, 0.5)
    mask = world.mask(kind)
    logits = torch.where(mask, 8 * normal(500, 64), world.log_star + normal(500, 1, seed=1))
    regrets = world.regret(logits.log_softmax(-1))
    assert regrets.max() <= world.worst_offline(kind) + 1e-9 and world.worst_rlhf(kind) <= world.worst_offline(kind)


def test_the_best_shared_policy_has_no_gradient_and_beats_its_neighbours():
    world = coverage_world("tree", "shared", 6, 0.5)
    best = world.best_policy(world.reward.unsqueeze(0))
    u = torch.zeros(1, world.features.shape[1], dtype=F64, requires_grad=True)
    moved = CoverageWorld(world.tokens, world.paths, world.features, tables_of(world, best), world.reward, 0.5)
    value = exact.objective(moved.log_policy(u).log_softmax(-1), world.ref, world.reward, 0.5)
    assert torch.autograd.grad(value.sum(), u)[0].abs().max() < 1e-4
    near = moved.log_policy(0.1 * normal(50, world.features.shape[1]))
    assert (world.regret(near) >= world.regret(best) - 1e-9).all()


def tables_of(world, log_policy):
    shapes = [(1, 4), (4, 4), (16, 4)]
    return torch.cat([table.flatten() for table in exact.prefix_tables(log_policy.log_softmax(-1), shapes)])


def test_one_round_is_offline_dpo_and_later_rounds_reach_masked_responses():
    world = coverage_world("bandit", "table", 7, 0.5)
    pairs = world.pairs("optimal", 0.0).unsqueeze(0)
    wins = draw_wins(world.reward, pairs[0], [400], torch.Generator().manual_seed(1))
    one = rounds(world, Coverage(rounds=1), pairs, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(one, world.log_policy(world.fit_dpo(wins, 3.0)))
    four = rounds(world, Coverage(labels=20_000), pairs, [torch.Generator().manual_seed(1)])
    assert world.regret(four).item() < 0.05 * world.regret(one).item()


@pytest.mark.parametrize("scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow)])
def test_a_quick_run_has_every_cell_and_can_be_drawn(scale):
    settings = Coverage(scale=scale, quick=True, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    cells = found.runs.groupby(["policies", "masked", "coverage", "method", "labels"]).size()
    assert (cells == 2).all() and len(cells) == 2 * 3 * (2 * 3 + 2) + 6
    assert set(found.runs["method"]) == set(METHODS)
    axes = EXPERIMENT.figure(settings, found.summary, found.runs).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def _made(**gains):
    rows = []
    for seed, policies, masked, coverage, method in itertools.product(range(4), CLASSES, MASKS, (0.0, 1.0), METHODS):
        cell = [name for name, key in COMPARISONS.items() if key == (policies, masked, method) and coverage == 0]
        gain = gains[cell[0]] + 0.01 * seed if cell else 0.0
        row = {"policies": policies, "masked": masked, "coverage": coverage, "method": method, "mass": 0.1}
        row |= {"seed": seed, "left": 0.1 * math.exp(gain)}
        rows += [
            row | {"labels": number} for number in ((400.0,) if method == "rounds" or coverage else (400.0, math.inf))
        ]
    worst = {
        "policies": "worst",
        "coverage": 0.0,
        "labels": math.inf,
        "left": 2.0,
        "mass_optimal": 0.5,
        "mass_ref": 0.5,
    }
    rows += [
        worst | {"seed": seed, "masked": masked, "method": method}
        for seed, masked, method in itertools.product(range(4), MASKS, ("offline", "rlhf"))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ((-1.0, -0.5, -0.5), "supported"),
        ((-1.0, 0.5, 0.5), "partly supported"),
        ((1.0, -0.015, -0.015), "not supported"),
        ((-0.015, -0.015, -0.015), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_rows(gains, outcome):
    settings, runs = Coverage(quick=True), _made(**dict(zip(COMPARISONS, gains, strict=True)))
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["rounds_table"].mean == pytest.approx(math.exp(gains[0] + 0.015))
    assert verdict.numbers["rlhf_rare"].mean == pytest.approx(math.exp(gains[2] + 0.015))


def test_rounding_is_no_difference():
    """On a bandit RLHF and DPO are the same up to 1e-9, which no number of seeds turns into a result."""
    runs = _made(rounds_table=-1.0, rounds_shared=-1.0, rlhf_rare=0.0)
    same = runs["method"].eq("rlhf") & runs["policies"].eq("table")
    runs.loc[same, "left"] = 0.1 * (1 + 1e-9)
    verdict = EXPERIMENT.decide(Coverage(quick=True), EXPERIMENT.summarise(Coverage(quick=True), runs), runs)
    assert verdict.outcome == "partly supported" and verdict.numbers["rlhf_rare"].mean == 1.0


def test_settings_that_cannot_be_run_are_refused():
    with pytest.raises(LabError, match="must contain 0"):
        Coverage(coverages=(0.5, 1.0))
    with pytest.raises(LabError, match="multiple of rounds"):
        Coverage(labels=401)
