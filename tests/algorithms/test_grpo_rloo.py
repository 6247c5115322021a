"""RLOO and GRPO: expected gradients by enumeration of every group, fixed points on bandits, one file for all rungs."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import brentq

from rlhf_lab import exact
from rlhf_lab.algorithms.grpo_rloo import Group, advantages, group, group_loss
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import evaluate
from rlhf_lab.training import Loop, Training, seeded
from rlhf_lab.worlds import bandit, token_tree

BETA, GROUP = 0.5, 2
WORLDS = {
    "bandit": bandit.random(1, 3, seed=2),
    "tree": token_tree.random(2, 2, 1, seed=1, has_end=True, reward="sequence"),
}
every_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def moved(world, scale=0.7, seed=5):
    """A policy that is not the reference, so that no KL gradient vanishes."""
    policy = world.reference.copy()
    with torch.no_grad():
        for table in policy.logits.tables:
            table.add_(scale * torch.randn(table.shape, dtype=table.dtype, generator=seeded(seed)))
    return policy


def gradient(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def expected_gradient(world, policy, settings):
    """Minus the mean of group_loss's gradient over all K^G groups, each at its probability under the policy."""
    every, number = world.tree.responses, world.tree.num_responses
    p = world.log_probs(policy)[0].exp()
    total = 0
    for index in itertools.product(range(number), repeat=GROUP):
        rows = torch.tensor(index)
        y = Tokens(every.ids[rows][None], every.mask[rows][None])
        log_ref = world.reference.token_log_probs(world.prompts, y)
        loss, _ = group_loss(policy, world.prompts, y, world.reward(world.prompts, y), log_ref, None, settings)
        total = total - p[rows].prod() * gradient(policy, loss)
    return total


def exact_gradient(world, policy, of):
    """The gradient of a function of log π over all responses, by autograd."""
    return gradient(policy, of(policy.enumerate(world.prompts)[1]).sum())


@every_world
@pytest.mark.parametrize("penalty", ["reward", "k2"])
def test_expected_gradient_of_rloo_is_the_objectives_exactly(world, penalty):
    policy, ref, reward = moved(world), world.log_ref(), world.rewards()
    found = expected_gradient(world, policy, Group("rloo", BETA, GROUP, penalty))
    wanted = exact_gradient(world, policy, lambda log_pi: exact.objective(log_pi, ref, reward, BETA))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert wanted.abs().max() > 0.01


@every_world
def test_expected_gradient_of_grpo_counts_the_reward_short_by_one_of_g(world):
    """The group's mean holds the response itself: (G−1)/G ∇E[r] − β ∇KL(π‖π_ref), with neither division."""
    policy, ref, reward = moved(world), world.log_ref(), world.rewards()
    settings = Group("grpo", BETA, GROUP, "k2", divide_by_std=False, divide_by_length=False)

    def short(log_pi):
        return (GROUP - 1) / GROUP * (log_pi.exp() * reward).sum(-1) - BETA * exact.kl(log_pi, ref)

    torch.testing.assert_close(
        expected_gradient(world, policy, settings), exact_gradient(world, policy, short), rtol=1e-9, atol=1e-12
    )


def test_expected_gradient_of_k3_in_the_loss_is_that_of_the_other_divergence():
    """(G−1)/G ∇E[r] − β ∇KL(π_ref‖π) on a bandit, and so not ∇KL(π‖π_ref)."""
    world = WORLDS["bandit"]
    policy, ref, reward = moved(world), world.log_ref(), world.rewards()
    found = expected_gradient(world, policy, Group("grpo", BETA, GROUP, divide_by_std=False))
    ends = [
        exact_gradient(world, policy, lambda p, d=d: (GROUP - 1) / GROUP * (p.exp() * reward).sum(-1) - BETA * d(p))
        for d in (lambda p: exact.kl(ref, p), lambda p: exact.kl(p, ref))
    ]
    torch.testing.assert_close(found, ends[0], rtol=1e-9, atol=1e-12)
    assert (found - ends[1]).abs().max() > 0.01


def test_advantages_by_hand():
    """Scores 1, 2, 6. rloo: 1 − 4, 2 − 3.5, 6 − 1.5. grpo: −2, −1, 3 over √(14/3); without division −2, −1, 3."""
    score = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    assert advantages(score, Group("rloo"))[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])
    assert advantages(score, Group("grpo", divide_by_std=False))[0].tolist() == pytest.approx([-2.0, -1.0, 3.0])
    std = math.sqrt(14 / 3)
    assert advantages(score, Group("grpo"))[0].tolist() == pytest.approx([-2 / std, -1 / std, 3 / std], rel=1e-5)
    assert (advantages(score, Group("grpo"))[1] == 0).all()


@pytest.mark.parametrize(("std", "moved_by"), [("population", 0.0289899), ("sample", 0.0261204)])
def test_one_step_of_grpo_divides_by_the_standard_deviation_of_the_settings(monkeypatch, std, moved_by):
    """One prompt, three arms, uniform policy; the samples are the arms 0, 0, 1, 2 with the scores 0, 0, 1, 3.

    The differences to the mean are −1, −1, 0, 2. For d the standard deviation, the gradient of the loss in the logits
    is −(Σ of A over the samples of the arm)/4, so (2, 0, −2)/(4d): the term with ⅓ vanishes since ΣA = 0, and k3 has
    no gradient at π_ref. Adam's first step is −rate · g/(|g| + ε). With ε = 1, rate 0.1 and d = √(6/4) the logits of
    the arms 0 and 2 move by 0.1 · 0.4082483/1.4082483 = 0.0289899; with d = √(6/3) they move by
    0.1 · 0.3535534/1.3535534 = 0.0261204.
    """
    world = bandit.make(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 3.0]]))
    policy = world.reference.copy()
    drawn = Tokens.from_lists([[[0], [0], [1], [2]]])
    monkeypatch.setattr(policy, "sample", lambda *a, **k: drawn)
    before = policy.logits.tables[0].detach().clone()
    one = Training(steps=1, learning_rate=0.1, schedule="constant", adam_epsilon=1.0, progress=False)
    group(policy, world.reference, world.reward, world.prompts, Group("grpo", samples=4, std=std), one)
    change = (policy.logits.tables[0].detach() - before).flatten()
    assert change.tolist() == pytest.approx([-moved_by, 0.0, moved_by], abs=2e-7)


def test_grpo_divides_each_response_by_its_own_length_and_clips_token_by_token():
    """Two responses of 3 and 1 tokens, scores ±1, old probabilities chosen so that the ratios are known.

    A = (+1, −1), β negligible. Response 0: ratios 1.5, 1, 0.5 with clip 0.2 give min(ρA, clip(ρ)A) = 1.2, 1, 0.5;
    mean 0.9. Response 1: ratio 1.5 gives −1.5. The loss is −(0.9 − 1.5)/2 = 0.3; by sum −(2.7 − 1.5)/2 = −0.6.
    """
    world = token_tree.random(3, 3, 1, seed=1, has_end=True)
    policy = world.reference
    y = Tokens.from_lists([[[0, 1, 1], [world.tree.branching]]])
    new = policy.token_log_probs(world.prompts, y)
    old = new - torch.tensor([[[1.5, 1.0, 0.5], [1.5, 1.0, 1.0]]], dtype=torch.float64).log() * y.mask
    score = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for divide, wanted in ((True, 0.3), (False, -0.6)):
        settings = Group("grpo", 1e-12, 2, divide_by_length=divide, divide_by_std=False)
        loss, seen = group_loss(policy, world.prompts, y, score, new, old, settings)
        assert loss.item() == pytest.approx(wanted, abs=1e-9)
        # two of three tokens, one of one
        assert seen["clip_fraction"].item() == pytest.approx((2 / 3 + 1) / 2)


def test_rloo_clips_the_ratio_of_whole_responses():
    """Ratios of tokens 1.5, 1, 0.5: of the response 0.75, below 0.8 at A > 0 not cut; at A < 0 cut to 0.8."""
    world = token_tree.random(3, 3, 1, seed=1, has_end=True)
    y = Tokens.from_lists([[[0, 1, 1], [0, 1, 1]]])
    new = world.reference.token_log_probs(world.prompts, y)
    old = new - torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64).log()
    score = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss, _ = group_loss(world.reference, world.prompts, y, score, old, old, Group("rloo", BETA, 2))
    assert loss.item() == pytest.approx(-(0.75 * 1 - 0.8 * 1) / 2, abs=1e-12)


def training(steps, **settings):
    return Training(**({"steps": steps, "learning_rate": 0.05, "progress": False} | settings))


@pytest.mark.parametrize("settings", [Group("rloo", BETA, 128), Group("rloo", BETA, 128, "k2")], ids=["reward", "k2"])
def test_rloo_on_a_bandit_arrives_at_the_optimal_policy(settings):
    """Its gradient is the objective's: what is left of KL(π‖π*) is the noise of the last, small steps.

    The exact gradient under the same schedule is the measure: 0.5% of the way from the reference may be noise.
    """
    world = bandit.random(2, 5, seed=0)
    steps, start = 150, evaluate(world.reference, world, BETA).kl_to_optimal
    policy, ideal = world.reference.copy(), world.reference.copy()
    schedule = training(steps, learning_rate=0.15)
    group(policy, world.reference, world.reward, world.prompts, settings, schedule)
    ref, reward = world.log_ref(), world.rewards()
    with Loop("exact", ideal, schedule) as loop:
        for _ in loop:
            loop.update(lambda: (-exact.objective(ideal.enumerate(world.prompts)[1], ref, reward, BETA).mean(), {}))
    allowed = evaluate(ideal, world, BETA).kl_to_optimal + 0.005 * start
    assert evaluate(policy, world, BETA).kl_to_optimal < allowed


def test_rloo_on_a_tree_with_several_epochs_comes_near_the_optimal_policy():
    world = token_tree.random(3, 2, 1, seed=0, has_end=True)
    policy = world.reference.copy()
    settings = Group("rloo", BETA, 256, epochs=2)
    group(policy, world.reference, world.reward, world.prompts, settings, training(150))
    assert evaluate(policy, world, BETA).kl_to_optimal < 0.02 * evaluate(world.reference, world, BETA).kl_to_optimal


def test_grpo_without_its_divisions_arrives_at_the_optimum_of_the_other_divergence():
    """max (G−1)/G E_π[r] − β KL(π_ref‖π): π = b π_ref/(c − r) with b = β G/(G−1). It is not π*."""
    world, size = bandit.random(2, 5, seed=0), 64
    ref, reward = world.log_ref().exp(), world.rewards()
    b = BETA * size / (size - 1)
    target = []
    for p, r in zip(ref.numpy(), reward.numpy(), strict=True):
        c = brentq(lambda c, p=p, r=r: (b * p / (c - r)).sum() - 1, r.max() + 1e-9, r.max() + 100)
        target.append(torch.tensor(b * p / (c - r)).log())
    target = torch.stack(target)
    policy = world.reference.copy()
    settings = Group("grpo", BETA, size, divide_by_std=False, divide_by_length=False)
    group(policy, world.reference, world.reward, world.prompts, settings, training(250))
    assert exact.kl(world.log_probs(policy), target).max() < 5e-3
    assert exact.kl(target, world.optimal(BETA)).max() > 0.05


def test_division_by_the_standard_deviation_makes_beta_count_by_it():
    """A fixed point of grpo with k2: π ∝ π_ref exp(r/β'), β' = β G/(G−1) · std_π(r), the std of a large group."""
    world, size, beta = bandit.random(1, 5, seed=0), 256, 1.5
    policy = world.reference.copy()
    schedule = training(120, learning_rate=0.15)
    group(policy, world.reference, world.reward, world.prompts, Group("grpo", beta, size, "k2"), schedule)
    log_pi, reward = world.log_probs(policy), world.rewards()
    p = log_pi.exp()
    std = ((p * reward.square()).sum() - (p * reward).sum() ** 2).sqrt().item()
    arrived = exact.optimal_policy(world.log_ref(), reward, beta * size / (size - 1) * std)
    assert exact.kl(log_pi, arrived).max() < 2e-3
    assert exact.kl(log_pi, world.optimal(beta)).max() > 8e-3


def test_what_is_left_open_is_as_the_kind_has_it_also_where_the_kind_is_changed_alone():
    for settings in (Group("rloo"), replace(Group("grpo"), kind="rloo")):
        assert (settings.kl_term, settings.by_std, settings.by_length) == ("reward", False, False)
    for settings in (Group("grpo"), replace(Group("rloo"), kind="grpo")):
        assert (settings.kl_term, settings.by_std, settings.by_length) == ("k3", True, True)
    given = Group("grpo", penalty="k2", divide_by_std=False, divide_by_length=False)
    assert (given.kl_term, given.by_std, given.by_length) == ("k2", False, False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group("reinforce"), "kind"),
        (lambda: Group(samples=1), "samples must be a whole number of at least 2"),
        (lambda: Group(beta=0.0), "beta"),
        (lambda: Group(penalty="k1"), "penalty"),
        (lambda: Group(divide_by_length=True), "whole responses"),
        (lambda: Group(top_k=0), "top_k"),
        (lambda: Group(temperature=0.0), "temperature"),
    ],
)
def test_settings_of_a_group_that_cannot_work_are_refused(make, message):
    with pytest.raises(LabError, match=message):
        make()


def test_a_bad_reward_and_lbfgs_are_refused_by_name():
    world = bandit.lecture()

    def bad(prompts, responses):
        return torch.full(responses.shape[:2], math.nan)

    with pytest.raises(LabError, match="rloo: the reward gave a score that is not finite at step 0"):
        group(world.reference.copy(), world.reference, bad, world.prompts, Group(), training(1))
    with pytest.raises(LabError, match="lbfgs"):
        group(
            world.reference.copy(), world.reference, world.reward, world.prompts, Group(),
            training(1, optimizer="lbfgs"),
        )  # fmt: skip


def test_a_batch_in_parts_takes_the_same_step():
    """The loss is a mean over prompts, so cutting the batch into parts changes rounding alone."""
    world, ends = bandit.random(4, 5, seed=0), []
    for parts in (1, 3):
        policy = world.reference.copy()
        group(policy, world.reference, world.reward, world.prompts, Group("grpo"), training(3, accumulate=parts))
        ends.append(world.log_probs(policy))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)
