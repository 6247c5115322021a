"""The table of methods: a method's key → how it trains a policy on any set-up, its settings, and what it needs.

The key is that of `figures.style`, which has the method's name in legends, its colour and its marker. A new method is
one entry of `METHODS`; `rlhf-lab compare`, the recorded trajectories and the claims train by this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, best_of, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, cat
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded

BEST_OF = 8
"""n of best-of-n and of RAFT."""

Trainer = Callable[[Setup, Policy, float, Training, dict[str, Any]], int]
"""(set-up, policy at π_ref, β, settings of each fit, settings of the method) → how many responses were sampled. The
policy is trained in place."""


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Attributes:
        label: how it is called in a table.
        trainer: trains a policy; None for a method that trains nothing.
        untrained: the policy of a method that trains nothing, or its log-probabilities, (X, K).
        stream: random stream of its fits, so that the fits of one seed have different random numbers.
        settings: its settings beside β, by the names of its algorithm's dataclass. A set-up may change some
            (`Setup.method_settings`), and so may a caller of `train`.
        stages: settings → the number of equal parts that share the optimiser steps of a fit.
        labels: "shared" for the labels of the set-up, "own" for as many labels of its own responses.
        reward_model: whether it needs r_φ.
        reference: whether it needs π_ref while it trains.
        critic: whether it trains a second network.
        samples: whether it samples responses while it trains.
        repeated: whether its result depends on the seed.
    """

    label: str
    trainer: Trainer | None = None
    untrained: Callable[[Setup], Policy | Tensor] | None = None
    stream: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: Callable[[Mapping[str, Any]], int] = lambda settings: 1
    labels: Literal["none", "shared", "own"] = "shared"
    reward_model: bool = False
    reference: bool = False
    critic: bool = False
    samples: bool = False
    repeated: bool = True

    @property
    def networks(self) -> int:
        """How many networks are in memory while it trains, the policy included."""
        return 1 + self.critic + self.reference + self.reward_model

    def labels_used(self, setup: Setup) -> int:
        """How many preference labels of a set-up the method uses."""
        if self.labels == "shared":
            return len(setup.pairs)
        return setup.budget.labels if self.labels == "own" else 0


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method learned, and what it used.

    Attributes:
        policy: the policy, or its log-probabilities, (X, K), where a closed form gives it.
        labels: preference labels.
        samples: responses sampled for training.
    """

    policy: Policy | Tensor
    labels: int = 0
    samples: int = 0


class BestOf(Policy):
    """Samples n responses of a policy for each response that it gives, and gives the one with the highest reward.

    Its log-probabilities are not known (NaN).
    """

    def __init__(self, policy: Policy, reward: Reward, n: int, sampling_batch_size: int | None = None) -> None:
        """Choose among `n` responses of `policy` by `reward`; None samples the responses to all prompts together."""
        super().__init__()
        self.policy, self.reward, self.n, self.sampling_batch_size = policy, reward, n, sampling_batch_size

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """NaN for every token."""
        return torch.full(responses.shape, torch.nan, device=responses.device)

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """See `Policy.sample`. With top_k = 1 all n responses would be equal, and one is sampled."""
        number = 1 if top_k == 1 else self.n
        size = self.sampling_batch_size or len(prompts)
        parts = []
        for start in range(0, len(prompts), size):
            x = prompts[start : start + size]
            y = self.policy.sample(x, number * num_samples, generator, temperature, top_k)
            scores = self.reward(x, y).double().cpu().view(len(x) * num_samples, number)
            best = best_of(scores, seeded(0)).view(len(x), num_samples)
            parts.append(y.take(best + torch.arange(num_samples) * number))
        return cat(parts)


def method_of(key: str) -> Method:
    """The method of a key.

    Raises:
        LabError: there is none.
    """
    if key not in METHODS:
        raise LabError(f"Unknown method {key!r}. There are: {', '.join(METHODS)}.")
    return METHODS[key]


def train(
    key: str,
    setup: Setup,
    training: Training | None = None,
    policy: Policy | None = None,
    beta: float | None = None,
    stages: int | None = None,
    **changes: Any,
) -> Trained:
    """Train a policy by the method `key`.

    Args:
        key: of `METHODS`.
        setup: labels, reward model, prompts and reference policy.
        training: settings of the fit; None for those of the set-up's budget.
        policy: a policy at π_ref, trained in place; None for a new one.
        beta: β of the method; None for that of the set-up's budget.
        stages: parts that share the optimiser steps of `training`; None for as many as the method has.
        **changes: settings of the method that differ from its usual ones. PPO also takes `prompts` and `reward` in
            place of those of the set-up, and online DPO takes `collect`.

    Raises:
        LabError: an unknown key; a method with a closed form that the set-up does not have.
    """
    method = method_of(key)
    if method.trainer is None:
        assert method.untrained is not None, "A method has a trainer, or a policy that needs no training."
        return Trained(method.untrained(setup), method.labels_used(setup))
    settings = {**method.settings, **setup.method_settings.get(key, {}), **changes}
    training = setup.training(method.stream) if training is None else training
    training = replace(training, steps=max(training.steps // (stages or method.stages(settings)), 1))
    policy = setup.new_policy() if policy is None else policy
    beta = setup.budget.beta if beta is None else beta
    samples = method.trainer(setup, policy, beta, training, settings)
    return Trained(policy, method.labels_used(setup), samples)


# ------------------------------------------------------------------------------------------------------------ trainers


def _sft(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    pairs = setup.pairs
    sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), training)
    return 0


def _dpo(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    dpo(policy, setup.reference, setup.pairs, DPO(beta=beta, **settings), training)
    return 0


def _rso(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    rso = RSO(beta=beta, **settings)
    pairs, _ = make_pairs(setup.reference, setup.reward_model, setup.prompts, rso, training.seed)
    dpo(policy, setup.reference, pairs, DPO(rso.loss, rso.gamma or beta), training)
    return (rso.candidates if rso.source == "rso-sample-rank" else rso.accepted) * len(setup.prompts)


def _raft(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    own = RAFT(**settings)
    raft(policy, setup.reward_model, setup.prompts, own, training)
    return own.best_of * len(setup.prompts)


def _rest(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    own = ReST(**settings)
    rest(policy, setup.reward_model, setup.prompts, own, training)
    return own.samples * own.grows * len(setup.prompts)


def _ppo(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    prompts, reward = settings.pop("prompts", None), settings.pop("reward", None)
    prompts = setup.prompts if prompts is None else prompts
    own = PPO(beta=beta, **settings)
    critic = policy.new_critic(setup.reward_model)
    ppo(policy, setup.reference, reward or setup.reward_model, critic, prompts, own, training)
    return training.steps * min(training.batch_size, len(prompts)) * own.samples


def _online(setup: Setup, policy: Policy, beta: float, training: Training, settings: dict[str, Any]) -> int:
    collect = settings.pop("collect", setup.collect)
    own = Online(labels=setup.budget.labels, **settings)
    online(policy, setup.reference, collect, DPO(beta=beta), own, training)
    return 2 * own.labels


# ------------------------------------------------------------------------------------------ methods that train nothing


def _exact(setup: Setup) -> ExactSetup:
    if not isinstance(setup, ExactSetup):
        raise LabError("This method has a closed form on finite worlds only; choose the scale bandit or tree.")
    return setup


def _optimal(setup: Setup) -> Tensor:
    return _exact(setup).world.optimal(setup.budget.beta)


def _plug_in(setup: Setup) -> Tensor:
    """π_ref exp(r_φ/β)/Z: the optimum that every method with this reward model aims at."""
    made = _exact(setup)
    return exact.optimal_policy(made.world.log_ref(), made.learned_rewards, made.budget.beta)


def _best_of_n(setup: Setup) -> Policy | Tensor:
    if isinstance(setup, ExactSetup):
        return exact.best_of_n(setup.world.log_ref(), setup.learned_rewards, BEST_OF)
    return BestOf(setup.reference, setup.reward_model, BEST_OF)


_PAIRS: dict[str, Any] = {"trainer": _dpo, "reference": True}
_RSO: dict[str, Any] = {"trainer": _rso, "reference": True, "reward_model": True, "samples": True}

METHODS: dict[str, Method] = {
    "reference": Method("π_ref, the SFT policy", untrained=lambda one: one.reference, labels="none", repeated=False),
    "optimal": Method("π*, exact", untrained=_optimal, labels="none", repeated=False),
    "plug-in": Method("exact optimum of the reward model", untrained=_plug_in, reward_model=True),
    "sft": Method("SFT on chosen responses", _sft, stream=Stream.SFT_FIT),
    "ppo": Method(
        "PPO on the reward model", _ppo, stream=Stream.PPO_POLICY_FIT, settings={"samples": 4, "epochs": 4},
        stages=lambda settings: settings["epochs"], reward_model=True, reference=True, critic=True, samples=True,
    ),
    "dpo": Method("DPO (RSO's direct)", **_PAIRS, stream=Stream.DPO_FIT),
    "dpo-ipo": Method("IPO, τ = β", **_PAIRS, stream=Stream.IPO_FIT, settings={"loss": "ipo"}),
    "dpo-hinge-norm": Method("hinge-norm, γ = β", **_PAIRS, stream=Stream.HINGE_FIT, settings={"loss": "hinge-norm"}),
    "rso-sft-sample-rank": Method(
        "RSO, sft-sample-rank, γ = β", **_RSO, stream=Stream.SFT_SAMPLE_RANK_FIT, settings={"source": "sft-sample-rank"}
    ),
    "rso-rso-sample-rank": Method(
        "RSO, rso-sample-rank, γ = β", **_RSO, stream=Stream.RSO_SAMPLE_RANK_FIT, settings={"source": "rso-sample-rank"}
    ),
    "rso-paper": Method(
        "RSO, γ = 0.05, hard labels", **_RSO, stream=Stream.RSO_PAPER_FIT, settings={"gamma": 0.05, "labels": "hard"}
    ),
    "raft": Method(
        "RAFT, best of 8", _raft, stream=Stream.RAFT_FIT, settings={"best_of": BEST_OF}, reward_model=True, samples=True
    ),
    "best-of-n": Method("best of 8, exact", untrained=_best_of_n, reward_model=True),
    "rest": Method(
        "ReST, τ = 0, .7, .8", _rest, stream=Stream.REST_FIT,
        settings={"samples": 8, "thresholds": (0.0, 0.7, 0.8), "grows": 1},
        stages=lambda settings: settings["grows"] * len(settings["thresholds"]), reward_model=True, samples=True,
    ),
    "online": Method(
        "online DPO, 4 rounds", _online, stream=Stream.ITERATED_DPO_FIT, settings={"rounds": 4},
        stages=lambda settings: settings["rounds"],
        labels="own", reference=True, samples=True,
    ),
}  # fmt: skip
"""Every method by its key, in the order of the comparison's table."""
