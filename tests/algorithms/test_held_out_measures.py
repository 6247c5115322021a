"""What each method measures on held-out data: its loss function by hand, or rewards and KL of samples drawn again."""

import pytest
import torch

from rlhf_lab.algorithms import ranker as ranker_room
from rlhf_lab.algorithms import reward_model as reward_room
from rlhf_lab.algorithms.dpo import DPO, dpo, held_out_pairs, pair_loss
from rlhf_lab.algorithms.grpo_rloo import Group, group
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, held_out_labelled, kto, mismatched
from rlhf_lab.algorithms.on_policy import held_out_rewards
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.sft import held_out_responses, sft
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import token_tree

WORLD = token_tree.random(3, 3, 5, seed=1, has_end=True)
TRAIN, HELD = WORLD.preferences(12, seeded(0)), WORLD.preferences(7, seeded(1))


def training(**changes):
    settings = {"steps": 3, "batch_size": 4, "learning_rate": 0.1, "eval_every": 2, "progress": False}
    return Training(**(settings | changes))


def moved(policy):
    with torch.no_grad():
        for table in policy.logits.tables:
            table.add_(torch.randn(table.shape, dtype=table.dtype, generator=seeded(2)))
    return policy


def last(history):
    """The measurement after the last step; the steps measured were 0, 2 and 3."""
    rows = [row for row in history if any(name.startswith("eval_") for name in row)]
    assert [row["step"] for row in rows] == [0, 2, 3]
    return {name.removeprefix("eval_"): value for name, value in rows[-1].items() if name != "step"}


@pytest.mark.parametrize("loss", ["sigmoid-norm", "simpo"])
@pytest.mark.parametrize("known", [False, True])
def test_dpo_measures_its_loss_function_on_the_held_out_pairs(loss, known):
    """Seven pairs at the end of the training, all in one batch, though it measured them in batches of four."""
    policy, reference, settings = moved(WORLD.reference.copy()), WORLD.reference, DPO(loss, beta=0.7)
    log_ref = reference.log_prob(HELD.prompts, HELD.responses).detach() if loss == "sigmoid-norm" else None
    given = log_ref if known else None
    evaluation = held_out_pairs(policy, None if given is not None else reference, HELD, settings, given)
    found = last(dpo(policy, reference, TRAIN, settings, training(), evaluation=evaluation))
    with torch.no_grad():
        value, seen = pair_loss(policy, HELD, log_ref, settings)
        values = policy.log_prob(HELD.prompts, HELD.responses) - (0 if log_ref is None else log_ref)
    assert found["loss"] == pytest.approx(value.item())
    for name in ("accuracy", "margin"):
        assert found[name] == pytest.approx(float(seen[name]))
    by_hand = [settings(*values[i], *HELD.responses.lengths[i]).item() for i in range(7)]
    assert found["loss"] == pytest.approx(sum(by_hand) / 7)


def test_held_out_pairs_without_the_reference_that_the_loss_needs_are_refused():
    with pytest.raises(LabError, match="sigmoid-norm needs a reference"):
        held_out_pairs(WORLD.reference, None, HELD)


def test_sft_measures_nats_per_response_and_per_token():
    policy, y = moved(WORLD.reference.copy()), HELD.responses.take(torch.zeros(7, 1, dtype=torch.long))
    evaluation = held_out_responses(policy, HELD.prompts, y)
    found = last(sft(policy, TRAIN.prompts, TRAIN.responses, training(), evaluation=evaluation))
    nats, tokens = -policy.log_prob(HELD.prompts, y).sum().item(), y.lengths.sum().item()
    assert (found["loss"], found["loss_per_token"]) == pytest.approx((nats / 7, nats / tokens))


def test_a_reward_model_measures_likelihood_accuracy_and_margin_without_the_prior():
    model = WORLD.reference.new_reward_model()
    evaluation = reward_room.held_out_pairs(model, HELD)
    history = reward_room.reward_model(
        model, TRAIN, reward_room.RewardModel(prior=0.5), training(), evaluation=evaluation
    )
    found = last(history)
    chosen, rejected = model(HELD.prompts, HELD.responses).detach().unbind(-1)
    margin = (chosen - rejected).tolist()
    likelihood = -torch.tensor(margin).double().sigmoid().log().mean().item()
    assert found["loss"] == pytest.approx(likelihood, rel=1e-5) and found["likelihood_loss"] == found["loss"]
    right = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margin) / 7
    assert (found["accuracy"], found["margin"]) == pytest.approx((right, sum(margin) / 7))
    assert evaluation.best_by == "likelihood_loss" and not evaluation.higher


def test_a_ranker_measures_the_mean_of_both_orders():
    class Two(torch.nn.Module):
        """A ranker whose logit favours the first response by a learned bias."""

        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

        def logits(self, prompts, first, second):
            size = first.ids.sum(-1) - second.ids.sum(-1)
            return size.double() * 0.3 + self.bias

    model = Two()
    evaluation = ranker_room.held_out_pairs(model, HELD)
    found = last(ranker_room.ranker(model, TRAIN, training=training(), evaluation=evaluation))
    size = 0.3 * (HELD.responses.ids[:, 0].sum(-1) - HELD.responses.ids[:, 1].sum(-1)).double()
    bias = model.bias.item()
    values = [-((size + sign * bias).sigmoid().log()).mean().item() for sign in (1, -1)]
    assert found["loss"] == pytest.approx(sum(values) / 2) and found["margin"] == pytest.approx(size.mean().item())


def test_kto_measures_its_loss_with_the_z_of_the_held_out_batch():
    """One batch of seven, so z is the mean over all held-out rows; worked out row by row."""
    policy, reference, settings = moved(WORLD.reference.copy()), WORLD.reference, KTO(0.7, undesirable_weight=0.5)
    labelled = LabelledResponses.from_pairs(HELD)
    evaluation = held_out_labelled(policy, reference, labelled, settings)
    found = last(
        kto(
            policy,
            reference,
            LabelledResponses.from_pairs(TRAIN),
            settings,
            training(batch_size=7),
            evaluation=evaluation,
        )
    )

    def log_ratio(x, y):
        return policy.log_prob(x, y) - reference.log_prob(x, y)

    z = max(log_ratio(HELD.prompts, mismatched(labelled)).mean().item(), 0.0)
    k = log_ratio(HELD.prompts, HELD.responses)
    good, bad = 0.7 * (k[:, 0] - z), 0.7 * (z - k[:, 1])
    loss = (good.neg().sigmoid() + 0.5 * bad.neg().sigmoid()).mean() / 2
    assert found["reference_point"] == pytest.approx(z) and found["loss"] == pytest.approx(loss.item())
    assert found["margin"] == pytest.approx(((good + bad) / 2).mean().item())
    assert found["accuracy"] == pytest.approx(((good > 0).double() + (bad > 0).double()).mean().item() / 2)


@pytest.mark.parametrize("beta", [None, 0.3])
def test_the_reward_of_samples_and_the_kl_approach_their_exact_expectations(beta):
    """E[r], KL(π‖π_ref) and E[r] − β KL by enumeration, within five standard errors of 4,000 samples a prompt. A reward
    is at most 4 in size here, so an error of a mean over 20,000 samples is below 4/√20000."""
    policy, reference = moved(WORLD.reference.copy()), WORLD.reference
    evaluation = held_out_rewards(policy, reference, WORLD.reward, WORLD.prompts, 0, beta, samples=4000)
    assert float(WORLD.rewards().abs().max()) < 4
    with torch.no_grad():
        _, found = evaluation.measure(*evaluation.batch(torch.arange(5)))
    log_p, log_ref = (WORLD.log_probs(one).detach() for one in (policy, reference))
    reward = (log_p.exp() * WORLD.rewards()).sum(-1).mean().item()
    drift = (log_p.exp() * (log_p - log_ref)).sum(-1).mean().item()
    assert float(found["score"]) == pytest.approx(reward, abs=5 * 4 / 20000**0.5)
    assert float(found["kl"]) == pytest.approx(drift, abs=0.1) and drift > 0.2
    if beta is None:
        assert "objective" not in found and evaluation.best_by == "score"
    else:
        assert float(found["objective"]) == pytest.approx(float(found["score"]) - beta * float(found["kl"]))
        assert evaluation.best_by == "objective"
    assert evaluation.higher


def test_with_top_k_there_is_no_kl_because_another_distribution_is_sampled():
    policy = WORLD.reference.copy()
    evaluation = held_out_rewards(policy, WORLD.reference, WORLD.reward, WORLD.prompts, 0, 0.3, top_k=2)
    _, found = evaluation.measure(*evaluation.batch(torch.arange(5)))
    assert found.keys() == {"score", "response_tokens"} and evaluation.best_by == "score"


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_methods_that_sample_measure_the_policy_after_its_last_step_with_the_same_numbers_each_time(method):
    """Drawn again by hand from the trained policy, with the generators of the held-out stream: rows 0 to 3, and row 4.
    The training is the same as without an evaluation."""
    reference, policies = WORLD.reference, [WORLD.reference.copy() for _ in range(2)]
    for policy, watched in zip(policies, (False, True), strict=True):
        evaluation = None
        if watched:
            evaluation = held_out_rewards(policy, reference, WORLD.reward, WORLD.prompts, 9, 0.2, samples=3)
        schedule = training(seed=9)
        if method == "ppo":
            critic = policy.new_critic()
            history = ppo(
                policy, reference, WORLD.reward, critic, WORLD.prompts, PPO(epochs=2), schedule, evaluation=evaluation
            )
        else:
            history = group(
                policy, reference, WORLD.reward, WORLD.prompts, Group("grpo"), schedule, evaluation=evaluation
            )
    assert torch.equal(WORLD.log_probs(policies[0]), WORLD.log_probs(policies[1]))
    found, policy = last(history), policies[1]
    scores, drifts = [], []
    for first, rows in ((0, range(4)), (4, range(4, 5))):
        x = WORLD.prompts[torch.tensor(list(rows))]
        y = policy.sample(x, 3, seeded(9, 4, first))
        scores += WORLD.reward(x, y).flatten().tolist()
        drifts += (policy.log_prob(x, y) - reference.log_prob(x, y)).flatten().tolist()
    score, drift = sum(scores) / 15, sum(drifts) / 15
    assert (found["score"], found["kl"]) == pytest.approx((score, drift))
    assert found["objective"] == pytest.approx(score - 0.2 * drift)


def test_a_score_that_is_not_finite_is_refused():
    def broken(prompts, responses):
        return torch.full(responses.shape[:2], torch.nan)

    evaluation = held_out_rewards(WORLD.reference, WORLD.reference, broken, WORLD.prompts, 0)
    with pytest.raises(LabError, match="reward"):
        evaluation.batch(torch.arange(5))
