"""BCO's running mean of implicit rewards: by hand, TRL's numbers, in the training loop, resumed, and its limit."""

import shutil

import numpy as np
import pytest
import torch
from scipy.special import log_expit
from test_dpo_family import ARMS, BETA, REF, far, fitted, fractions, minimum

from rlhf_lab import exact, losses
from rlhf_lab.algorithms.dpo import DPO, dpo, held_out_pairs, pair_loss, reference_log_probs
from rlhf_lab.algorithms.reward_shift import RewardShift
from rlhf_lab.training import Training, seeded
from rlhf_lab.training.loop import rows_at
from rlhf_lab.worlds import bandit

WORLD = bandit.random(3, 5, seed=2)
OTHER = bandit.random(3, 5, seed=8).reference
"""A reference that is not the policy before training, so that implicit rewards differ from 0 at the first step."""
BCO = DPO("bco", BETA, shift_decay=0.5)


@pytest.mark.parametrize(
    ("decay", "values"),
    [
        (0.5, [2.0, 10 / 3, 2.0]),  # (½·2 + 4)/(½ + 1) = 10/3; (½·5 + 1)/(½·1.5 + 1) = 3.5/1.75
        (1.0, [2.0, 3.0, 7 / 3]),
        (0.0, [2.0, 4.0, 1.0]),
    ],
)
def test_the_running_mean_of_2_4_1_by_hand(decay, values):
    shift = RewardShift(decay)
    assert shift.value == 0
    assert [shift.update(torch.tensor(m)).item() for m in (2.0, 4.0, 1.0)] == pytest.approx(values, rel=1e-15)


# What `RunningMoments` and `BCOTrainer.bco_loss` of TRL 1.12.0 compute for three batches of two pairs at β = 0.1: the
# running mean, and the mean loss of the batch's four responses. (TRL 1.16 has no `BCOTrainer` any more.)
CHOSEN = [[0.5, -1.0], [2.0, 3.0], [1.5, 4.0]]
REJECTED = [[-2.0, 0.25], [-1.0, -4.0], [-3.5, 0.5]]
TRL = [
    (-0.05624999850988388, 0.6787860464611288),
    (-0.02812499925494194, 0.5775778479414426),
    (0.0020833350718021393, 0.5964217679538267),
]


def test_the_shift_and_the_loss_are_those_of_trl():
    """TRL's loss is a mean over responses, so a pair's loss is twice as large."""
    shift, spec = RewardShift(1.0), DPO("bco", 0.1, shift_decay=1.0)
    for chosen, rejected, (mean, loss) in zip(CHOSEN, REJECTED, TRL, strict=True):
        pair = torch.tensor([chosen, rejected], dtype=torch.float64)
        delta = shift.update(0.1 * pair.mean())
        assert delta.item() == pytest.approx(mean, rel=1e-6, abs=1e-8)
        assert spec(*pair, reward_shift=delta).mean().item() == pytest.approx(2 * loss, rel=1e-6)


def trained(steps, settings=BCO, out=None, resume=False, accumulate=1, **more):
    pairs = WORLD.preferences(12, seeded(0))
    policy = WORLD.reference.copy()
    training = Training(
        steps=steps, batch_size=6, learning_rate=0.1, schedule="constant", log_every=1, out=out, resume=resume,
        accumulate=accumulate, save_every=3, progress=False,
    )  # fmt: skip
    history = dpo(policy, OTHER, pairs, settings, training, **more)
    return pairs, policy, history


def mean_reward(policy, pairs):
    with torch.no_grad():
        return BETA * (policy.log_prob(pairs.prompts, pairs.responses) - reference_log_probs(OTHER, pairs, 12)).mean()


def test_the_loop_uses_the_mean_over_the_present_and_the_earlier_batches():
    """Before step s the policy is that of a run of s steps, whose implicit rewards are computed on the batch of s."""
    pairs, _, history = trained(3)
    total, weight = 0.0, 0.0
    for step, row in enumerate(history):
        _, policy, _ = trained(step) if step else (None, WORLD.reference.copy(), None)
        batch = pairs[rows_at(step, 12, 6, 0)]
        total, weight = 0.5 * total + mean_reward(policy, batch).item(), 0.5 * weight + 1
        assert row["reward_shift"] == pytest.approx(total / weight, rel=1e-12)
        log_ref = reference_log_probs(OTHER, batch, 12)
        loss, _ = pair_loss(policy, batch, log_ref, DPO("bco", BETA, reward_shift=total / weight))
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert abs(history[0]["reward_shift"]) > 0.01


def test_all_parts_of_a_batch_have_the_shift_of_the_whole_batch():
    _, whole, one = trained(3)
    _, parts, two = trained(3, accumulate=3)
    assert [row["reward_shift"] for row in two] == pytest.approx([row["reward_shift"] for row in one], rel=1e-12)
    assert torch.allclose(WORLD.log_probs(whole), WORLD.log_probs(parts), atol=1e-12)


def test_a_resumed_run_continues_the_mean_to_the_bit(tmp_path):
    _, whole, one = trained(7, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000007")
    _, again, two = trained(7, out=tmp_path / "run", resume=True)
    plain = [[{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows] for rows in (one, two)]
    assert plain[0] == plain[1]
    assert torch.equal(WORLD.log_probs(whole), WORLD.log_probs(again))


def test_the_held_out_loss_has_the_shift_of_the_training_and_does_not_change_it():
    held = WORLD.preferences(9, seeded(5))
    shift = BCO.new_shift("cpu")
    policy = WORLD.reference.copy()
    training = Training(steps=3, batch_size=6, learning_rate=0.1, eval_every=10, log_every=1, progress=False)
    evaluation = held_out_pairs(policy, OTHER, held, BCO, shift=shift)
    history = dpo(policy, OTHER, WORLD.preferences(12, seeded(0)), BCO, training, evaluation=evaluation, shift=shift)
    last = next(row["reward_shift"] for row in reversed(history) if "reward_shift" in row)
    assert shift.value.item() == pytest.approx(last, rel=1e-12)
    loss, _ = pair_loss(policy, held, reference_log_probs(OTHER, held, 9), DPO("bco", BETA, reward_shift=last))
    assert history[-1]["eval_loss"] == pytest.approx(loss.item(), rel=1e-9)


def limit():
    """The minimum of BCO's expectation at the δ that is the mean implicit reward of this minimum."""
    won, lost = fractions()
    shift = 0.0
    for _ in range(200):

        def expectation(log_p, shift=shift):
            r = BETA * (log_p - REF)
            return lambda w, other: -log_expit(r[w] - shift) - log_expit(shift - r[other])

        end = minimum(expectation)
        before, shift = shift, ((won + lost) / 2 * BETA * (end[0].numpy() - REF)).sum()
        if abs(shift - before) < 1e-9:
            return end
    raise AssertionError("no fixed point")


def test_the_limit_is_the_fixed_point_of_the_classifier_and_its_mean():
    """With all pairs in each batch: the policy and δ that scipy finds, which is near the odds of being chosen, while
    δ = 0 ends elsewhere."""
    end = fitted(ARMS, DPO("bco", BETA, shift_decay=0.0), steps=60)
    assert far(end, limit()) < 1e-6
    won, lost = fractions()
    log_p = torch.tensor(REF + np.log(won / lost) / BETA)
    odds = log_p.log_softmax(-1).unsqueeze(0)
    zero = fitted(ARMS, DPO("bco", BETA))
    assert far(end, odds) < far(zero, odds) / 10


def test_with_two_responses_the_running_mean_is_the_right_shift():
    """W and L are then each other's mirror image, so their two divergences are equal: π ∝ π_ref (W/L)^{1/β}."""
    world = bandit.make(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[0.9, -0.4]]))
    end = fitted(world, DPO("bco", BETA, shift_decay=0.0), steps=60)
    # log W/L = ±1.3, which is twice the centred reward.
    target = exact.optimal_policy(world.log_ref(), 2 * world.rewards(), BETA)
    assert far(end, target) < 1e-7
    assert far(fitted(world, DPO("bco", BETA)), target) > 1e-3


def test_the_loss_accepts_a_shift_for_each_pair():
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    delta = torch.tensor([0.1, 0.3], dtype=torch.float64)
    each = [losses.bco(x[i], -x[i], 0.7, delta[i].item()).item() for i in range(2)]
    assert losses.bco(x, -x, 0.7, delta).tolist() == pytest.approx(each, rel=1e-12)
    with pytest.raises(ValueError, match="shift contains nan"):
        losses.bco(x, -x, 0.7, delta * torch.nan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ipo", "shift_decay": 0.9}, "shift_decay is for bco; ipo has none"),
        ({"loss": "bco", "shift_decay": 1.1}, "shift_decay must be a finite number between 0 and 1 or None, not 1.1"),
        ({"loss": "bco", "shift_decay": 0.9, "reward_shift": 1.0}, "reward_shift=1.0 has no effect with shift_decay"),
    ],
)
def test_a_decay_that_cannot_be_used_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPO(**settings)
