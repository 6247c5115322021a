"""The files of the exact rungs, unchanged, on a small GPT-2 over text-like tokens of different lengths.

The gold reward is the share of one token id in the response, which any method can raise. No number is expected
but that the method does what it is for.
"""

from dataclasses import replace

import pytest
import torch
from tiny_models import one_thread, tiny  # noqa: F401

from rlhf_lab import preferences
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.grpo_rloo import Group, group
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, kto
from rlhf_lab.algorithms.on_policy import held_out_rewards
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, rso
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, pick_pairs
from rlhf_lab.evaluation import estimate
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Training, seeded

LIKED, END = 3, 0


@pytest.fixture
def policy():
    return LanguageModelPolicy(tiny("gpt2", vocab=11, wide=0.02), end_token=END, max_new_tokens=6)


@pytest.fixture
def prompts():
    return Tokens.from_lists([[5, 4, 9], [7], [1, 2, 3, 4, 5], [10, 10]]).repeat(4)


def liking(prompts, responses):
    count = ((responses.ids == LIKED) & responses.mask).sum(-1)
    return 4.0 * count / responses.lengths


def labelled(policy, prompts, number=16, seed=0):
    drawn = policy.sample(prompts, number, seeded(seed))
    return pick_pairs(prompts, drawn, preferences.make_pairs(liking(prompts, drawn), seeded(seed, 1)))[0]


def training(steps, **settings):
    return Training(steps=steps, learning_rate=3e-3, batch_size=64, progress=False, **settings)


def mean_reward(policy, prompts):
    return float(liking(prompts, policy.sample(prompts, 64, seeded(99))).mean())


def test_sft_raises_the_likelihood_of_its_targets(policy, prompts):
    targets = Tokens.from_lists([[[LIKED, LIKED, END]]] * len(prompts))
    before = policy.log_prob(prompts, targets).mean().item()
    sft(policy, prompts, targets, training(15))
    assert policy.log_prob(prompts, targets).mean().item() > before + 1


@pytest.mark.slow
def test_reward_model_learns_to_rank_and_its_critic_starts_from_it(policy, prompts):
    """On fresh responses it explains more than a quarter of the variance of the gold reward: a correlation above 0.5
    (of a model that learned nothing it is 0 ± 0.04, with 512 responses).

    A label tells little: half of the pairs are ties of the gold reward, whose standard deviation is about 0.5, so two
    draws are some 0.7 apart, and σ(0.7) is two thirds. A thousand pairs, each seen ten times, are learned by heart. Of
    eight thousand, each seen twice, the coins average out."""
    model = policy.new_reward_model()
    pairs = labelled(policy, prompts, 1024)
    reward_model(model, pairs, RewardModel(), training(300))
    fresh = policy.sample(prompts, 32, seeded(5))
    learned, gold = model(prompts, fresh).detach().flatten(), liking(prompts, fresh).flatten()
    assert torch.corrcoef(torch.stack([learned, gold]))[0, 1] > 0.5
    critic = policy.new_critic(model)
    assert torch.equal(critic.head.weight, model.head.weight)


def test_ppo_raises_the_reward_and_pays_in_kl(policy, prompts):
    reference, before = policy.frozen(), mean_reward(policy, prompts)
    ppo(policy, reference, liking, policy.new_critic(), prompts, PPO(beta=0.1, samples=8), training(15))
    assert mean_reward(policy, prompts) > before + 0.3
    result = estimate(policy, reference, liking, prompts, 0.1, 64, seeded(1))
    assert result.kl.mean > 3 * result.kl.error > 0


@pytest.mark.parametrize(
    "loss",
    [
        "sigmoid-norm", "ipo", "hinge-norm", "simpo",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("hinge", "chi", "dpo-length")),
    ],
)  # fmt: skip
def test_dpo_ranks_its_pairs_better_than_chance_and_raises_the_reward(policy, prompts, loss):
    """The mean of 15 steps of 64 of the 500 pairs, which is chance, 0.5, give or take √(0.25/500) = 0.02, in a policy
    that learned nothing: 0.6 is four of these above it.

    `hinge` ranks by log π itself, in which a response's length outweighs its label at the start (log π_ref of two
    responses differs by nats, of one to six tokens); its loss at slope β moves that margin no faster than the others'
    move theirs from 0, so it needs more steps to the same accuracy."""
    reference, before = policy.frozen(), mean_reward(policy, prompts)
    steps = training(120 if loss == "hinge" else 40, log_every=1)
    history = dpo(policy, reference, labelled(policy, prompts, 64), DPO(loss, 0.2), steps)
    assert sum(row["accuracy"] for row in history[-15:]) / 15 > 0.6
    assert mean_reward(policy, prompts) > before + 0.1


def test_orpo_clones_the_chosen_and_turns_from_the_rejected(policy, prompts):
    before, pairs = mean_reward(policy, prompts), labelled(policy, prompts, 64)
    history = dpo(policy, None, pairs, DPO("orpo", 1.0), training(40, log_every=1))
    assert sum(row["accuracy"] for row in history[-15:]) / 15 > 0.6
    assert mean_reward(policy, prompts) > before + 0.1


def test_kto_raises_the_reward(policy, prompts):
    reference, before = policy.frozen(), mean_reward(policy, prompts)
    examples = LabelledResponses.from_pairs(labelled(policy, prompts, 64))
    kto(policy, reference, examples, KTO(0.5), training(40))
    assert mean_reward(policy, prompts) > before + 0.1


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_group_methods_raise_the_reward_and_pay_in_kl(policy, prompts, kind):
    reference, before = policy.frozen(), mean_reward(policy, prompts)
    group(policy, reference, liking, prompts, Group(kind, 0.1, 8), training(25))
    assert mean_reward(policy, prompts) > before + 0.3
    result = estimate(policy, reference, liking, prompts, 0.1, 64, seeded(1))
    assert result.kl.mean > 3 * result.kl.error > 0


@pytest.mark.parametrize("source", ["sft-sample-rank", "rso-sample-rank"])
def test_rso_raises_the_reward(policy, prompts, source):
    reference, before = policy.frozen(), mean_reward(policy, prompts)
    drawn = {"candidates": 32} if source == "rso-sample-rank" else {}
    rso(policy, reference, liking, prompts.repeat(8), RSO(source, **drawn), training(40))
    assert mean_reward(policy, prompts) > before + 0.1


def test_raft_raises_the_reward_and_a_second_round_raises_it_again(policy, prompts):
    before = mean_reward(policy, prompts)
    history = raft(policy, liking, prompts, RAFT(best_of=8, rounds=2), training(10))
    scores = [next(row["score"] for row in history if row["round"] == turn) for turn in (0, 1)]
    assert scores[1] > scores[0]
    assert mean_reward(policy, prompts) > before + 0.3


def test_rest_raises_the_reward_and_stops_when_patience_runs_out(policy, prompts):
    before = mean_reward(policy, prompts)
    settings, schedule = ReST(thresholds=(0.3, 0.6), samples=32), replace(training(40), patience=2, eval_every=5)
    evaluation = held_out_rewards(policy, policy.frozen(), liking, prompts[:4], seed=0, samples=32)
    history = rest(policy, liking, prompts, settings, schedule, evaluation=evaluation)
    assert mean_reward(policy, prompts) > before + 0.2
    assert history[0]["kept"] > history[-1]["kept"]
    scores = [[row["eval_score"] for row in history if row["improve"] == i and "eval_score" in row] for i in (0, 1)]
    assert scores[1][-1] > scores[0][0] and evaluation.best.row["eval_score"] == max(scores[0] + scores[1])


def test_online_rounds_raise_the_reward(policy, prompts):
    reference, before = policy.frozen(), mean_reward(policy, prompts)

    def collect(now, number, generator):
        drawn = now.sample(prompts, 2 * number // len(prompts), generator)
        return pick_pairs(prompts, drawn, preferences.make_pairs(liking(prompts, drawn), generator))[0]

    online(policy, reference, collect, DPO(beta=0.5), Online(rounds=2, labels=256), training(15))
    assert mean_reward(policy, prompts) > before + 0.1
