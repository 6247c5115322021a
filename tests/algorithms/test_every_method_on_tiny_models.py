"""Each algorithm, unchanged, for a few steps on a random GPT-2 and GPT-NeoX, with a reward and critic of their kind.

That a method does what it is for is tested in test_on_language_model.py. Here: it runs on texts of different
lengths, moves the policy and nothing else, reports finite numbers, and takes `top_k`, parts of a batch and bf16.
"""

import math
from typing import get_args

import pytest
import torch
from tiny_models import one_thread, tiny  # noqa: F401

from rlhf_lab import preferences
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo
from rlhf_lab.algorithms.grpo_rloo import Group, group
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, kto
from rlhf_lab.algorithms.pair_losses import PAIR_LOSSES
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, rso
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, pick_pairs
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Training, seeded

PROMPTS = Tokens.from_lists([[5, 4, 9], [7], [1, 2, 3, 4, 5], [10, 10]])


class Setting:
    """A policy, its reference and a reward model with a head that says something."""

    def __init__(self, kind, **training):
        self.policy = LanguageModelPolicy(tiny(kind, vocab=11, wide=0.05), end_token=0, max_new_tokens=5)
        self.reference = self.policy.frozen()
        self.reward = self.policy.new_reward_model()
        with torch.no_grad():
            self.reward.head.weight.copy_(torch.randn(self.reward.head.weight.shape, generator=seeded(1)))
        self.training = Training(
            **({"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "progress": False} | training)
        )

    @torch.no_grad()
    def pairs(self, policy=None, generator=None):
        drawn = (policy or self.policy).sample(PROMPTS, 4, generator or seeded(2))
        return pick_pairs(PROMPTS, drawn, preferences.make_pairs(self.reward(PROMPTS, drawn), seeded(3)))[0]


METHODS = {
    "sft": lambda s: sft(s.policy, PROMPTS, s.policy.sample(PROMPTS, 2, seeded(0)), s.training),
    "kto": lambda s: kto(s.policy, s.reference, LabelledResponses.from_pairs(s.pairs()), KTO(), s.training),
    "ppo": lambda s: ppo(
        s.policy, s.reference, s.reward, s.policy.new_critic(s.reward), PROMPTS,
        PPO(samples=2, epochs=2, minibatches=2, top_k=6), s.training,
    ),
    "rloo": lambda s: group(s.policy, s.reference, s.reward, PROMPTS, Group("rloo", samples=3, top_k=6), s.training),
    "grpo": lambda s: group(
        s.policy, s.reference, s.reward, PROMPTS, Group("grpo", samples=3, epochs=2, minibatches=2), s.training
    ),
    "raft": lambda s: raft(s.policy, s.reward, PROMPTS, RAFT(3, rounds=2, sampling_batch_size=3, top_k=6), s.training),
    "rest": lambda s: rest(
        s.policy, s.reward, PROMPTS, ReST(samples=4, thresholds=(0.0, 0.3), sampling_batch_size=3, top_k=6), s.training,
        (PROMPTS, s.policy.sample(PROMPTS, 1, seeded(9))),
    ),
    "rso": lambda s: rso(
        s.policy, s.reference, s.reward, PROMPTS,
        RSO(candidates=8, accepted=4, sampling_batch_size=3, top_k=6), s.training,
    ),
    "online": lambda s: online(
        s.policy, s.reference, lambda p, n, g: s.pairs(p, g), DPO(), Online(2, 8), s.training
    ),
}  # fmt: skip
METHODS |= {
    f"dpo {loss.loss}": lambda s, loss=loss: dpo(
        s.policy, s.reference if loss.needs_reference else None, s.pairs(), loss, s.training
    )
    for loss in [DPO(name, label_smoothing=0.1 * PAIR_LOSSES[name].needs_smoothing) for name in get_args(PairLoss)]
}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_each_method_moves_the_policy_and_nothing_else(method, kind):
    setting = Setting(kind)
    before = [weights(module) for module in (setting.policy, setting.reference, setting.reward)]
    history = method(setting)
    assert history and all(math.isfinite(value) for row in history for value in row.values())
    policy, reference, reward = (weights(module) for module in (setting.policy, setting.reference, setting.reward))
    assert not torch.equal(policy, before[0])
    assert torch.equal(reference, before[1]) and torch.equal(reward, before[2])


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_reward_model_is_fitted_from_the_policys_body(kind):
    setting = Setting(kind)
    pairs, model = setting.pairs(), setting.policy.new_reward_model()
    history = reward_model(model, pairs, RewardModel(), setting.training)
    assert history[0]["likelihood_loss"] == pytest.approx(math.log(2), rel=1e-6)  # a head of zeros
    assert history[-1]["loss"] < history[0]["loss"]


CUT = ["kto", "ppo", "rloo", "grpo", "dpo sigmoid-norm", "dpo orpo", "sft"]


@pytest.mark.parametrize("name", CUT)
def test_parts_of_a_batch_take_the_same_steps_within_rounding(name):
    """Plain gradient-sized steps: Adam would turn rounding near zero into steps of full size."""
    ends = []
    for parts in (1, 2):
        setting = Setting("gpt2", accumulate=parts, steps=1, adam_epsilon=1.0)
        if name == "ppo":  # minibatches of two prompts, two parts of one
            setting.training = Training(
                steps=1, batch_size=4, accumulate=parts, adam_epsilon=1.0, learning_rate=1e-3, progress=False
            )
        METHODS[name](setting)
        ends.append(weights(setting.policy))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*CUT, "rso", "rest", "raft"])
def test_each_method_runs_in_bf16(name):
    setting = Setting("gpt2", precision="bf16")
    history = METHODS[name](setting)
    assert all(math.isfinite(value) for row in history for value in row.values())
