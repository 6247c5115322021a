"""The judge of texts: it compares two texts, independently of the gold reward and of a run's own reward model.

The papers let another model compare a policy's texts with the references (GPT-4 in DPO's section 6.2, PaLM 2 in RSO's
AutoSxS). Our judge is a reward model of another architecture, the small lab-pythia. It is fitted once to many labels
that no method sees: pairs of fresh samples of π_ref and of the targets, labelled by Bradley–Terry. It shares neither
weights nor labels with the reward model of any run, so a policy that exploits errors of one of them does not exploit
those of the judge by construction. Since it is fitted to finitely many labels, it has errors of its own. `agreement`
measures on new prompts how often it agrees with the gold reward.

The judge reads strings and tokenises them itself, so it can judge a policy with any tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation.judges import GoldJudge, Judge, RewardJudge
from rlhf_lab.experiments.setup_text import TextTask, text_task
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import wins
from rlhf_lab.training import Training, seeded

MODEL = "lab-pythia"
"""The model whose body the judge starts from."""
PROMPTS = 1024
"""Number of training prompts. Each has three labels: two samples, and each sample with the target."""
BLUR = 0.25
"""Difference of the gold reward that is one logit of a label, in units of the task."""
STEPS = 100
"""Optimiser steps of the fit."""
BATCH = 32
"""Number of labels in an optimiser step."""
RATE = 1e-3
"""Learning rate."""
SEED = 90_000
"""Seed of the judge's labels and fit, which no run has."""


@lru_cache(maxsize=2)
def judge_of(scale: str, world: str, quick: bool = False) -> Judge:
    """Return the judge of a text world on a scale. The first call fits it, in about a minute on one core.

    Args:
        scale: as in `text_task`.
        world: name of the text world.
        quick: fit the judge to very few labels within a second, to check that everything runs.
    """
    task = text_task(scale, world)
    return fitted(task, 24, 2) if quick else fitted(task)


def fitted(task: TextTask, prompts: int = PROMPTS, steps: int = STEPS, seed: int = SEED) -> RewardJudge:
    """Fit a judge.

    Args:
        task: the world and the reference policy.
        prompts: number of prompts from the end of the training split. Runs are labelled on the first prompts.
        steps: optimiser steps.
        seed: of the samples, the labels and the fit.
    """
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.policies.loading import load_language_model

    model, tokenizer = load_language_model(MODEL, device="cpu", dtype=torch.float32)
    prompt_texts, answers = _answers(task, "train", prompts, 2, seed)
    pairs = _labelled(task, tokenizer, prompt_texts, answers, seed)
    reward = LanguageModelPolicy(model, tokenizer.eos_token_id, max_new_tokens=1).new_reward_model()
    training = Training(steps=steps, batch_size=BATCH, learning_rate=RATE, max_grad_norm=1.0, seed=seed, progress=False)
    reward_model(reward, pairs, RewardModel(), training)
    return RewardJudge(reward.requires_grad_(False), tokenizer, batch_size=64)


def agreement(task: TextTask, judge: Judge, prompts: int = 128, seed: int = SEED + 1) -> tuple[float, float]:
    """Measure how often the judge agrees with the gold reward on validation prompts, which it has not seen.

    Args:
        task: the world and the reference policy.
        judge: whose answers are compared.
        prompts: number of prompts of the validation split.
        seed: of the samples.

    Returns:
        the share of agreement on pairs of samples from π_ref, and on pairs of a sample and the target. Pairs of equal
        gold rewards are left out.

    Raises:
        LabError: both texts of every pair have the same gold reward.
    """
    prompt_texts, answers = _answers(task, "validation", prompts, 2, seed)
    shares = []
    for one, other in ((0, 1), (0, 2)):
        a, b = [row[one] for row in answers], [row[other] for row in answers]
        gold_wins = GoldJudge(task.world.gold)(prompt_texts, a, b)
        preferred = wins(torch.tensor(judge(prompt_texts, a, b), dtype=torch.float64), 0.5).tolist()
        same = [
            0.5 if p == 0.5 else float(p == gold) for p, gold in zip(preferred, gold_wins, strict=True) if gold != 0.5
        ]
        if not same:
            raise LabError(
                f"Agreement cannot be measured on '{task.world.name}': in all {prompts} pairs both texts have the same "
                f"gold reward. Use more prompts."
            )
        shares.append(sum(same) / len(same))
    return shares[0], shares[1]


def _answers(task: TextTask, split: str, number: int, draws: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Return the prompts, and for each of them `draws` texts sampled from π_ref and then the target."""
    examples = task.world.examples(split)[-number:]
    every = task.world.prompts(task.tokenizer, split)[-number:]
    generator = seeded(seed, Stream.JUDGE_RESPONSES, device=task.reference.device)
    texts: list[list[str]] = []
    for start in range(0, len(every), 64):
        drawn = task.reference.sample(every[start : start + 64].trim(), draws, generator).tolist()
        texts += [task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in drawn]
    answers = [[*ours, example.target] for ours, example in zip(texts, examples, strict=True)]
    return [example.prompt for example in examples], answers


def _labelled(
    task: TextTask, tokenizer: Any, prompt_texts: Sequence[str], answers: Sequence[Sequence[str]], seed: int
) -> Pairs:
    """Label every pair of different texts for a prompt once, and tokenise it for the judge."""
    scores = torch.tensor([task.world.gold([x] * len(ys), ys) for x, ys in zip(prompt_texts, answers, strict=True)])
    scores = scores.double() / (BLUR * task.unit)
    generator = seeded(seed, Stream.JUDGE_LABELS)
    prompts: list[str] = []
    both: list[tuple[str, str]] = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        first = sample_preferences(scores[:, one], scores[:, other], generator)
        for x, ys, won in zip(prompt_texts, answers, first.tolist(), strict=True):
            if ys[one] != ys[other]:
                prompts.append(x)
                both.append((ys[one], ys[other]) if won else (ys[other], ys[one]))

    def ids(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    answered = [[[*y, tokenizer.eos_token_id] for y in ids(pair)] for pair in both]
    return Pairs(Tokens.from_lists(ids(prompts)), Tokens.from_lists(answered))
