"""`rlhf-lab evaluate --model REWARD`: accuracy and calibration of a reward model or ranker on labelled pairs.

With `--implicit-beta` the reward is the implicit reward of a policy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lab.batch import Pairs
from rlhf_lab.cli.train.data import check_data, load_data, sample_pairs, token_limits
from rlhf_lab.cli.train.reward import load_reward_model
from rlhf_lab.errors import LabError, refuse_unused
from rlhf_lab.evaluation.reward_report import RewardReport, reward_report
from rlhf_lab.policies.end_tokens import find_end_tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_model_available,
    check_policy,
    check_same_vocabulary,
    load_config,
    load_language_model,
    load_tokenizer,
    pick_device,
)
from rlhf_lab.rewards.implicit import ImplicitReward

OF_SAMPLES = (
    "reward", "gold", "against", "targets", "judge", "judge_model", "judge_key_variable", "judge_cache", "num_samples",
    "temperature", "top_k",
)  # fmt: skip
"""Options of `evaluate` that are for samples of language models only."""


def check(settings: Any, folder: Path | None) -> None:
    """Raise `LabError` for options without effect, and for data, a model or a reference that do not exist.

    Args:
        settings: of `evaluate`.
        folder: as `find_reward` returns it; None for the implicit reward of a policy.
    """
    refuse_unused(settings, OF_SAMPLES, "for a reward, which samples no responses")
    if folder is not None:
        refuse_unused(settings, ["implicit_beta", "model_revision"], "for a reward model or ranker")
    else:
        check_model_available(settings.model, settings.model_revision)
        if settings.reference is None:
            raise LabError("An implicit reward needs --reference: usually the model before training.")
    if settings.world is None and folder is not None:
        refuse_unused(settings, ["reference"], "for a reward model on data that already have responses")
    elif settings.reference is None:
        raise LabError(
            f"{settings.data} has prompts, but no pairs. Give --reference, the model whose responses are compared."
        )
    check_data(settings)
    if settings.reference is not None:
        check_policy(settings.reference, "reference")
        check_model_available(settings.reference)


def report(settings: Any, folder: Path | None) -> tuple[RewardReport, list[str]]:
    """Measure the reward model or ranker in `folder`, or the implicit reward of the model of the settings.

    Args:
        settings: of `evaluate`.
        folder: as `find_reward` returns it; None for the implicit reward.

    Returns:
        the report, and lines about the data.

    Raises:
        LabError: as `check`; the model or the data cannot be loaded.
    """
    device, name = pick_device(settings.device), settings.model if folder is None else str(folder)
    tokenizer = load_tokenizer(name, settings.model_revision)
    limits = token_limits(settings, load_config(name, settings.model_revision), tokenizer)
    reference = None
    if folder is None or settings.world is not None:
        reference = load_policy(settings, settings.reference, tokenizer, limits[1], device)
    pairs, said = _pairs(settings, tokenizer, limits, reference)
    model: Any
    if folder is not None:
        model = load_reward_model(folder, device, tokenizer)
    else:
        assert reference is not None
        policy = load_policy(settings, name, tokenizer, limits[1], device, settings.model_revision)
        model = ImplicitReward(policy, reference, settings.implicit_beta)
    return reward_report(model, pairs, settings.batch_size, settings.seed, settings.progress), said


def load_policy(
    settings: Any, name: str, tokenizer: Any, longest: int, device: Any, revision: str | None = None
) -> LanguageModelPolicy:
    """Return a language model as a policy.

    Args:
        settings: of `evaluate`.
        name: of the model.
        tokenizer: of the model that is evaluated, which must have the same vocabulary.
        longest: maximum number of tokens of a response.
        device: of the policy.
        revision: on the Hub.

    Raises:
        LabError: the model cannot be loaded, or has another vocabulary.
    """
    model, other = load_language_model(name, device, revision=revision)
    check_same_vocabulary(tokenizer, other, settings.model, name)
    ends = find_end_tokens(model, other)
    return LanguageModelPolicy(model, ends[0], longest, len(other), other, end_tokens=ends)


def _pairs(
    settings: Any, tokenizer: Any, limits: tuple[int, int], reference: LanguageModelPolicy | None
) -> tuple[Pairs, list[str]]:
    """Labelled pairs from the data; of a world, two responses of the reference to each prompt, without label noise."""
    if settings.world is None:
        data = load_data(settings, "pairs", tokenizer, limits)
    else:
        assert reference is not None
        given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        given |= {"model": settings.reference, "world": settings.world, "label_beta": 1.0, "label_noise": 0.0}
        data = sample_pairs(SimpleNamespace(**given), reference, tokenizer)
    assert data.pairs is not None
    return data.pairs, data.said
