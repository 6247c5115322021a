"""Worlds that move: what turns stays as large, labels follow the law, closed forms meet brute force."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.training import seeded
from rlhf_lab.worlds import nonstationary
from rlhf_lab.worlds.nonstationary import nonstationary_bandit, nonstationary_tree

torch.set_num_threads(1)


def test_rewards_that_turn_keep_mean_and_spread_and_end_at_the_other_reward():
    at = nonstationary_bandit(3, 5, seed=1, kind="drift", rate=math.pi / 48)
    for t in (0, 7, 24):
        reward = at.rewards(t)
        assert reward.mean(-1).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
        assert reward.square().mean(-1).tolist() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(at.rewards(24), at.other)
    # The velocity is the derivative: a difference quotient of the definition.
    step = 1e-6
    slope = (at.rewards(7 + step / at.rate) - at.rewards(7 - step / at.rate)) / (2 * step)
    torch.testing.assert_close(at.velocity(7), slope, atol=1e-8, rtol=0)


def test_each_kind_moves_what_it_says_and_nothing_else():
    still = nonstationary_bandit(4, 5, kind="none")
    for kind, rate in (("drift", 0.1), ("sudden", 1.0), ("prompts", 0.0), ("policy", 0.0)):
        at = replace(still, kind=kind, rate=rate)
        moved = [
            not torch.equal(at.rewards(20), still.rewards(20)),
            not torch.equal(at.weights(20), still.weights(20)),
            at.beta_at(20) != still.beta_at(20),
        ]
        assert moved == [kind in ("drift", "sudden"), kind == "prompts", kind == "policy"]
    sudden = replace(still, kind="sudden", rate=1.0)
    assert torch.equal(sudden.rewards(12), sudden.first) and not torch.equal(sudden.rewards(13), sudden.first)
    shifted = replace(still, kind="prompts", share=0.9)
    assert shifted.weights(0).tolist() == pytest.approx([0.45, 0.45, 0.05, 0.05])
    assert shifted.weights(24).tolist() == pytest.approx([0.05, 0.05, 0.45, 0.45])
    assert replace(still, kind="policy", beta=2.0, last_beta=0.5).beta_at(12) == pytest.approx(1.0)


def test_regret_is_the_weighted_loss_of_the_objective_and_zero_for_the_moving_optimum():
    at = nonstationary_bandit(4, 5, kind="prompts", beta=0.7)
    policy = torch.randn(4, 5, dtype=torch.float64, generator=seeded(1)).log_softmax(-1)
    lost = [exact.objective(p, at.log_ref, at.rewards(9), 0.7) for p in (at.optimal(9), policy)]
    assert at.regret(policy, 9) == pytest.approx(float((at.weights(9) * (lost[0] - lost[1])).sum()))
    assert at.regret(at.optimal(9), 9) == pytest.approx(0.0, abs=1e-12)


def test_pairs_that_differ_have_the_law_of_two_draws_given_that_they_differ():
    """m = (.9, .06, .04): P(i, j) = m_i m_j / (1 − Σ m²); 60,000 draws, five standard errors."""
    mass = torch.tensor([0.9, 0.06, 0.04], dtype=torch.float64)
    one, two = nonstationary.different(mass, 60_000, seeded(3))
    found = torch.bincount(one * 3 + two, minlength=9).view(3, 3).double() / 60_000
    wanted = mass.unsqueeze(1) * mass * (1 - torch.eye(3)) / (1 - mass.square().sum())
    error = (wanted * (1 - wanted) / 60_000).sqrt()
    assert ((found - wanted).abs() <= 5 * error + 1e-12).all()
    with pytest.raises(LabError, match="same response every time"):
        nonstationary.different(torch.tensor([1.0, 0.0]), 3)


def test_labels_follow_bradley_terry_on_the_rewards_of_their_round():
    at = nonstationary_bandit(2, 4, seed=3, kind="sudden", rate=math.pi / 2)
    for t, reward in ((12, at.first), (13, at.other)):
        asked = at.sample_labels(40_000, t, seeded(t))
        gap = (reward[asked.prompts, asked.chosen] - reward[asked.prompts, asked.rejected]).abs()
        agreed = reward[asked.prompts, asked.chosen] > reward[asked.prompts, asked.rejected]
        p = torch.sigmoid(gap)
        spread = float((p * (1 - p)).sum().sqrt())
        assert float(agreed.sum()) == pytest.approx(float(p.sum()), abs=5 * spread)
        assert (asked.chosen != asked.rejected).all() and len(asked.prompts) == 40_000


def test_prompts_are_asked_by_their_weights():
    at = nonstationary_bandit(4, 4, kind="prompts", share=1.0)
    assert at.sample_labels(500, 0, seeded(0)).prompts.max() <= 1
    assert at.sample_labels(500, 24, seeded(0)).prompts.min() >= 2


def test_a_basis_spans_its_parts_without_constants():
    parts = torch.randn(20, 3, dtype=torch.float64, generator=seeded(1))
    features = nonstationary.basis(torch.cat([parts, parts.sum(1, keepdim=True), torch.ones(20, 1)], 1))
    assert features.shape == (20, 3)
    torch.testing.assert_close(features.T @ features / 20, torch.eye(3, dtype=torch.float64))
    centred = parts - parts.mean(0)
    torch.testing.assert_close(features @ (features.T @ centred) / 20, centred)


def test_the_basis_of_a_table_is_that_of_gram_and_schmidt_on_every_processor():
    """Worked by hand for three responses: (2, −1, −1)/√6, then (0, 1, −1)/√2, times √3; nothing of the third is left.

    All singular values of a table are equal, so nothing but rounding decides on the directions of a decomposition by
    singular values: a change of 1e-12, more than any processor's rounding, turned them at random.
    """
    by_hand = torch.tensor([[2, 0], [-1, 1], [-1, -1]], dtype=torch.float64) / torch.tensor([6, 2]).double().sqrt()
    torch.testing.assert_close(nonstationary.basis(torch.eye(3)), by_hand * 3**0.5)
    table = torch.eye(6, dtype=torch.float64)
    shaken = table + 1e-12 * torch.randn(6, 6, dtype=torch.float64, generator=seeded(2))
    torch.testing.assert_close(nonstationary.basis(shaken), nonstationary.basis(table), rtol=0, atol=1e-10)


def test_orthonormal_columns_are_the_qr_decomposition_with_a_positive_diagonal():
    """Of square and of tall columns, and of columns nearly parallel, where one pass would leave 1e-6."""
    for rows, count, near in ((5, 5, 1.0), (9, 4, 1.0), (6, 3, 1e-5)):
        columns = torch.randn(rows, count, dtype=torch.float64, generator=seeded(3, rows))
        columns = columns[:, :1] + near * columns
        found = nonstationary.orthonormal(columns)
        torch.testing.assert_close(found.T @ found, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-14)
        upper = found.T @ columns
        torch.testing.assert_close(upper.tril(-1), torch.zeros_like(upper), rtol=0, atol=1e-14)
        assert (upper.diagonal() > 0).all()
        torch.testing.assert_close(found @ upper, columns)


def test_worlds_that_cannot_move_are_refused():
    with pytest.raises(LabError, match="at least three responses"):
        nonstationary_bandit(1, 2)
    with pytest.raises(LabError, match="only one"):
        nonstationary_bandit(1, 4, kind="prompts")
    with pytest.raises(LabError, match="kind must be one of"):
        nonstationary_bandit(1, 4, kind="sideways")
    first = nonstationary.standard(torch.randn(1, 4, dtype=torch.float64, generator=seeded(0)))
    with pytest.raises(LabError, match="multiple of the first"):
        nonstationary.orthogonal(first, 3 * first + 1)


def test_a_trees_second_reward_is_made_of_the_same_parts_and_orthogonal():
    at = nonstationary_tree(4, 3, 2, seed=1)
    assert (at.first * at.other).mean(-1).abs().max() < 1e-12
    assert at.first.shape == (2, 64)


def test_who_answers_is_the_policy_that_is_given():
    """A policy on arms 1 and 3 alone is never asked about another; π_ref is asked about all of them."""
    at = nonstationary_bandit(2, 5, seed=4)
    some = torch.full((2, 5), -math.inf, dtype=torch.float64)
    some[:, [1, 3]] = math.log(0.5)
    asked = at.sample_labels(200, 3, seeded(0), some)
    assert set(asked.chosen.tolist()) | set(asked.rejected.tolist()) == {1, 3}
    usual = at.sample_labels(400, 3, seeded(0))
    assert set(usual.chosen.tolist()) | set(usual.rejected.tolist()) == set(range(5))


def test_each_seed_turns_towards_a_reward_of_its_own():
    """The part of seed 1's second reward that a draw of seed 0's stream explains is small: with the same draw in both
    it would be the whole of it (correlation 1 within each prompt)."""
    at, drawn = nonstationary_bandit(6, 40, seed=1), torch.randn(6, 40, dtype=torch.float64, generator=seeded(0, 103))
    alike = (nonstationary.orthogonal(at.first, drawn) * at.other).mean(-1)
    assert alike.abs().max() < 0.9
