"""DPO's exact optimum on finite labels: against DPO itself, against closed forms, and every control's picture."""

import itertools
import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.widgets.finite_preferences import (
    draw_wins,
    expected_wins,
    finite_preferences_explorer,
    fit_wins,
    has_maximum,
    reference_pairs,
)
from rlhf_lab.worlds import bandit

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
REWARD = torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64)
NAMES = ["a", "b", "c", "d"]


def explorer():
    return finite_preferences_explorer(REF, REWARD, NAMES)


def test_two_responses_are_fitted_by_the_log_odds_of_their_wins():
    # 30 wins against 10: r̂_1 − r̂_2 = log 3, split evenly about 0.
    wins = torch.tensor([[0.0, 30.0], [10.0, 0.0]])
    assert fit_wins(wins).tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-5)


def test_the_gradient_of_the_likelihood_vanishes_at_the_fit_by_autograd():
    wins = draw_wins(REWARD, reference_pairs(REF), (500, 3000), seeded(1))
    r = fit_wins(wins, ridge=1e-12).requires_grad_(True)
    margin = r.unsqueeze(-1) - r.unsqueeze(-2)
    loss = -(wins * torch.nn.functional.logsigmoid(margin)).sum((-1, -2)) / wins.sum((-1, -2))
    (slope,) = torch.autograd.grad(loss.sum(), r)
    assert slope.abs().max() < 1e-9


def test_the_fit_of_expected_wins_is_the_true_reward_and_noise_shrinks_it():
    mu = reference_pairs(REF)
    centred = REWARD - REWARD.mean()
    assert torch.allclose(fit_wins(expected_wins(REWARD, mu), ridge=1e-10), centred, atol=1e-6)
    noisy = fit_wins(expected_wins(REWARD, mu, 0.2))
    assert noisy.diff().abs().sum() < 0.8 * centred.diff().abs().sum()
    assert (noisy.argsort() == centred.argsort()).all()


def test_dpo_trained_on_the_same_labels_reaches_the_policy_of_the_fit():
    beta = 0.5
    world = bandit.make(REF.unsqueeze(0), REWARD.unsqueeze(0))
    wins = draw_wins(REWARD, reference_pairs(REF), (400,), seeded(5))[0]
    winner, loser = wins.nonzero(as_tuple=True)
    ids = torch.stack([winner, loser], -1).unsqueeze(-1)
    pairs = Pairs(world.prompts.repeat(len(winner)), Tokens.full(ids), wins[winner, loser])
    policy = world.reference.copy()
    dpo(
        policy,
        world.reference,
        pairs,
        DPO(beta=beta),
        Training(steps=10, batch_size=100, optimizer="lbfgs", progress=False),
    )
    hat = exact.optimal_policy(REF, fit_wins(wins), beta)
    assert exact.kl(world.log_probs(policy)[0], hat) < 1e-8


def test_cdpo_and_robust_dpo_are_the_same_fit_on_other_tables():
    # Against a plain minimisation of the losses themselves, by L-BFGS on r̂ (β = 1, flat reference).
    from rlhf_lab import losses

    wins = draw_wins(REWARD, reference_pairs(REF), (2000,), seeded(2), noise=0.1)[0]
    e = 0.1
    tables = {
        "cdpo": ((1 - e) * wins + e * wins.T, lambda c, r: losses.dpo(c, r, 1.0, e)),
        "robust": (((1 - e) * wins - e * wins.T) / (1 - 2 * e), lambda c, r: losses.robust_dpo(c, r, 1.0, e)),
    }
    for table, loss in tables.values():
        r = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [r], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def step(r=r, search=search, loss=loss):
            search.zero_grad()
            c, l_ = torch.broadcast_tensors(r.unsqueeze(-1), r.unsqueeze(-2))
            value = (wins * loss(c, l_)).sum() / wins.sum()
            value.backward()
            return value

        search.step(step)
        assert torch.allclose(fit_wins(table, ridge=1e-10), (r - r.mean()).detach(), atol=1e-5)


def test_larger_data_sets_contain_the_smaller_ones_and_labels_follow_bradley_terry():
    mu = reference_pairs(REF)
    wins = draw_wins(REWARD, mu, (100, 20_000), seeded(0))
    assert wins.sum((-1, -2)).tolist() == [100, 20_000] and bool((wins[1] >= wins[0]).all())
    # Each share is a mean of 20,000 draws: within five standard errors of its expectation.
    want = expected_wins(REWARD, mu)
    assert ((wins[1] / 20_000 - want).abs() < 5 * (want * (1 - want) / 20_000).sqrt() + 1e-12).all()


def test_a_maximum_exists_only_where_every_response_beats_every_other_at_some_remove():
    circle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert has_maximum(circle)
    assert not has_maximum(torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]))


def test_labels_that_decide_nothing_leave_the_reference():
    wins = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert fit_wins(wins).abs().max() < 1e-9


def test_the_picture_shows_exact_numbers():
    picture = explorer().picture(number=1000.0, seed=3, beta=0.7)
    wins = draw_wins(REWARD, reference_pairs(REF), (30_000,), seeded(3))
    assert wins.sum() == 30_000
    bars = {layer.style: layer.height for layer in picture.panels[0].layers}
    assert torch.allclose(bars["optimal"], exact.optimal_policy(REF, REWARD, 0.7).exp())
    numbers = {n.symbol: n.value for n in picture.numbers}
    regret = exact.regret(bars["dpo"].log(), REF, REWARD, 0.7)
    assert numbers["regret"] == pytest.approx(float(regret), abs=1e-12)
    assert numbers["KL(π̂‖π*)"] == pytest.approx(numbers["regret"] / 0.7)
    price = exact.label_price(REF, REWARD, 0.7, reference_pairs(REF))
    assert numbers["price / N"] == pytest.approx(float(price) / 1000)
    assert numbers["regret at N → ∞"] == pytest.approx(0.0, abs=1e-9)


def test_the_road_in_the_picture_passes_through_the_point():
    picture = explorer().picture(number=1000.0, seed=3, noise=0.1)
    layers = {layer.style: layer for layer in picture.panels[1].layers}
    at = [float(x) for x in layers["dpo"].x].index(1000.0)
    assert float(layers["dpo"].y[at]) == pytest.approx(layers["policy"].y[0], rel=1e-6)


def test_every_combination_of_controls_gives_a_picture():
    shown = explorer()
    for number, seed, noise, beta in itertools.product((10.0, 57.0, 30_000.0), (0, 20), (0.0, 0.4), (0.05, 0.5, 5.0)):
        picture = shown.picture(number=number, seed=seed, noise=noise, beta=beta)
        assert not picture.failed and len(picture.panels) == 2 and "nan" not in picture.text
        for bars in picture.panels[0].layers:
            assert sum(bars.height.tolist()) == pytest.approx(1)
        assert all(math.isfinite(n.value) for n in picture.numbers)
    states = shown.states(stops=2)
    json.dumps(states, allow_nan=False)


def test_moving_a_control_moves_the_picture():
    shown = explorer()
    before = shown.text
    shown.inputs["number"].value = 3000.0
    assert shown.text != before and "3000 labels" in shown.text


def test_what_cannot_be_shown_is_refused_by_name():
    with pytest.raises(LabError, match="4"):
        finite_preferences_explorer(REF, REWARD, ["a"])
    with pytest.raises(LabError, match="-inf"):
        finite_preferences_explorer(torch.tensor([1.0, 0.0]).log(), torch.zeros(2), ["a", "b"])
    with pytest.raises(LabError, match="noise"):
        draw_wins(REWARD, reference_pairs(REF), (10,), seeded(0), noise=0.7)
    with pytest.raises(LabError, match="at least one label"):
        draw_wins(REWARD, reference_pairs(REF), (0,), seeded(0))
    with pytest.raises(LabError, match="at least one label"):
        fit_wins(torch.zeros(3, 3))
    with pytest.raises(LabError, match="negative"):
        fit_wins(torch.tensor([[0.0, 1.0], [-3.0, 5.0]]))
