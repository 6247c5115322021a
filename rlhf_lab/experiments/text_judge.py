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
from dataclasses import dataclass
from functools import lru_cache

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
"""Training prompts with three labels each: sample against sample, and each sample against the target."""
BLUR = 0.25
"""Gold difference that is one logit of a label of the judge's, in units of the task."""
STEPS = 100
"""Optimiser steps of the fit."""
BATCH = 32
"""Labels in a step."""
RATE = 1e-3
"""Learning rate."""
SEED = 90_000
"""Seed of its labels and its fit; no run has this seed."""


@lru_cache(maxsize=2)
def judge(task: TextTask) -> Judge:
    """The judge of a task. It is fitted at the first call, in about a minute on one core, and then cached.

    Args:
        task: the world and the reference policy, from whose samples the judge learns.
    """
    return fitted(task)


@lru_cache(maxsize=2)
def judge_of(scale: str, world: str, quick: bool = False) -> Judge:
    """The judge of a text world on a scale.

    Args:
        scale: as in `text_task`.
        world: which text world.
        quick: fit it in a second to very few labels, to check that everything runs.
    """
    task = text_task(scale, world)
    return fitted(task, 24, 2) if quick else judge(task)


def fitted(task: TextTask, prompts: int = PROMPTS, steps: int = STEPS, seed: int = SEED) -> RewardJudge:
    """Fit a judge; see `judge`.

    Args:
        task: the world and the reference policy.
        prompts: how many prompts, the last ones of the training split. Runs are labelled on the first ones.
        steps: optimiser steps.
        seed: of samples, labels and fit.
    """
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.policies.loading import load_language_model

    model, tokenizer = load_language_model(MODEL, device="cpu", dtype=torch.float32)
    asked, answers = _answers(task, "train", prompts, 2, seed)
    pairs = _labelled(task, tokenizer, asked, answers, seed)
    reward = LanguageModelPolicy(model, tokenizer.eos_token_id, max_new_tokens=1).new_reward_model()
    training = Training(steps=steps, batch_size=BATCH, learning_rate=RATE, max_grad_norm=1.0, seed=seed, progress=False)
    reward_model(reward, pairs, RewardModel(), training)
    return RewardJudge(reward.requires_grad_(False), tokenizer, batch_size=64)


@dataclass(frozen=True)
class Agreement:
    """How often the judge and the gold reward prefer the same one of two texts."""

    draws: float
    """Share of agreement on two samples of π_ref whose gold rewards differ."""
    targets: float
    """Share of agreement on a sample and the target whose gold rewards differ."""
    pairs: int
    """Pairs compared, both kinds together."""


def agreement(task: TextTask, which: Judge | None = None, prompts: int = 128, seed: int = SEED + 1) -> Agreement:
    """Measure the judge on validation prompts, which it has not seen.

    Args:
        task: the world and the reference policy.
        which: the judge; None for that of the task.
        prompts: how many prompts of the validation split.
        seed: of the samples.

    Raises:
        LabError: the gold rewards of every pair are equal.
    """
    which = judge(task) if which is None else which
    asked, answers = _answers(task, "validation", prompts, 2, seed)
    shares, number = [], 0
    for one, other in ((0, 1), (0, 2)):
        a, b = [row[one] for row in answers], [row[other] for row in answers]
        true = GoldJudge(task.world.gold)(asked, a, b)
        said = wins(torch.tensor(which(asked, a, b), dtype=torch.float64), 0.5).tolist()
        same = [0.5 if p == 0.5 else float(p == gold) for p, gold in zip(said, true, strict=True) if gold != 0.5]
        if not same:
            raise LabError(f"The gold reward of '{task.world.name}' is the same for both texts of all {prompts} pairs.")
        shares.append(sum(same) / len(same))
        number += len(same)
    return Agreement(shares[0], shares[1], number)


def _answers(task: TextTask, split: str, number: int, draws: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Prompts, and for each of them `draws` texts sampled from π_ref, and the target."""
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
    task: TextTask, tokenizer: object, asked: Sequence[str], answers: Sequence[Sequence[str]], seed: int
) -> Pairs:
    """One label for every two different answers to a prompt, in the judge's own tokens."""
    scores = torch.tensor([task.world.gold([x] * len(ys), ys) for x, ys in zip(asked, answers, strict=True)])
    scores = scores.double() / (BLUR * task.unit)
    generator = seeded(seed, Stream.JUDGE_LABELS)
    prompts: list[str] = []
    both: list[tuple[str, str]] = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        first = sample_preferences(scores[:, one], scores[:, other], generator)
        for x, ys, won in zip(asked, answers, first.tolist(), strict=True):
            if ys[one] != ys[other]:
                prompts.append(x)
                both.append((ys[one], ys[other]) if won else (ys[other], ys[one]))

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[operator]

    end = tokenizer.eos_token_id  # type: ignore[attr-defined]
    answered = [[[*y, end] for y in ids(pair)] for pair in both]
    return Pairs(Tokens.from_lists(ids(prompts)), Tokens.from_lists(answered))
