"""`rlhf-lab evaluate --model REWARD`: accuracy and calibration of a reward model or ranker on labelled pairs."""

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
    check_same_vocabulary,
    load_config,
    load_language_model,
    load_tokenizer,
    pick_device,
)

OF_POLICIES = (
    "reward", "gold", "against", "targets", "judge", "judge_model", "judge_key_variable", "judge_cache", "num_samples",
    "temperature", "top_k", "model_revision",
)  # fmt: skip
"""Options of `evaluate` that are for language models only."""


def check(settings: Any) -> None:
    """Raise `LabError` for options without effect, and for data or a reference that do not exist.

    Args:
        settings: of `evaluate`.
    """
    refuse_unused(settings, OF_POLICIES, "for a reward model or ranker, which samples no responses")
    if settings.world is None:
        refuse_unused(settings, ["reference"], "for a reward model on data that already have responses")
    elif settings.reference is None:
        raise LabError(
            f"{settings.data} has prompts, but no pairs. Give --reference, the model whose responses are compared."
        )
    check_data(settings)
    if settings.reference is not None:
        check_model_available(settings.reference)


def report(settings: Any, folder: Path) -> tuple[RewardReport, list[str]]:
    """Measure the reward model or ranker in `folder`; return the report and lines about the data.

    Args:
        settings: of `evaluate`.
        folder: as `find_reward` returns it.

    Raises:
        LabError: as `check`; the model or the data cannot be loaded.
    """
    device = pick_device(settings.device)
    tokenizer = load_tokenizer(str(folder))
    limits = token_limits(settings, load_config(str(folder)), tokenizer)
    pairs, said = _pairs(settings, tokenizer, limits, device)
    model = load_reward_model(folder, device, tokenizer)
    return reward_report(model, pairs, settings.batch_size, settings.seed, settings.progress), said


def _pairs(settings: Any, tokenizer: Any, limits: tuple[int, int], device: Any) -> tuple[Pairs, list[str]]:
    """Labelled pairs from the data; of a world, two responses of the reference to each prompt, without label noise."""
    if settings.world is None:
        data = load_data(settings, "pairs", tokenizer, limits)
    else:
        model, other = load_language_model(settings.reference, device)
        check_same_vocabulary(tokenizer, other, settings.model, settings.reference)
        ends = find_end_tokens(model, other)
        policy = LanguageModelPolicy(model, ends[0], limits[1], len(other), other, end_tokens=ends)
        given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        given |= {"model": settings.reference, "world": settings.world, "label_beta": 1.0, "label_noise": 0.0}
        data = sample_pairs(SimpleNamespace(**given), policy, tokenizer)
    assert data.pairs is not None
    return data.pairs, data.said
