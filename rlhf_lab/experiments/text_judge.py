"""The judge of texts: a third opinion beside the gold reward and the reward model that a method was trained on.

The papers let another model compare a policy's texts with the references (GPT-4 in DPO's section 6.2, PaLM 2 in RSO's
AutoSxS). Ours is a reward model of another architecture, the small lab-pythia, fitted once to many labels that no
method sees: pairs of fresh draws of π_ref and of the targets, labelled through a Bradley–Terry blur. It shares neither
weights nor labels with any reward model of a run, so what fools one of them does not fool the judge by construction;
and being fitted to finitely many labels it has blind spots of its own. How far it goes with the gold reward is
measured by `agreement`, on prompts that it has not seen.

It reads strings and tokenises them itself, so it can judge a policy with any tokenizer.
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
from rlhf_lab.experiments.setup_text import Bench, bench
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import wins
from rlhf_lab.training import Training, seeded

MODEL = "lab-pythia"
"""Whose body the judge starts from."""
PROMPTS = 1024
"""Training prompts, with three labels each: draw against draw, and each draw against the target."""
BLUR = 0.25
"""Gold difference that is one logit of a label of the judge's, in units of the bench."""
STEPS = 100
"""Optimiser steps of the fit."""
BATCH = 32
"""Labels in a step."""
RATE = 1e-3
"""Learning rate."""
SEED = 90_000
"""Of its labels and its fit: no run has it."""


@lru_cache(maxsize=2)
def judge(bench: Bench) -> Judge:
    """The judge of a bench; fitted when it is first asked for (about a minute on one core), then kept.

    Args:
        bench: the world, and the reference whose draws it learns from. Its responses pass through strings.
    """
    return fitted(bench)


@lru_cache(maxsize=2)
def judge_of(scale: str, world: str, quick: bool = False) -> Judge:
    """The judge of a text world on a scale.

    Args:
        scale: as in `language.bench`.
        world: which text world.
        quick: fit it in a second, so that it knows next to nothing: to see that everything works.
    """
    made = bench(scale, world)
    return fitted(made, 24, 2) if quick else judge(made)


def fitted(bench: Bench, prompts: int = PROMPTS, steps: int = STEPS, seed: int = SEED) -> RewardJudge:
    """A judge fitted with this much; see `judge`.

    Args:
        bench: the world and the reference.
        prompts: of the training split, the last ones; runs are labelled on the first ones.
        steps: optimiser steps.
        seed: of draws, labels and fit.
    """
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.policies.loading import load_language_model

    model, tokenizer = load_language_model(MODEL, device="cpu", dtype=torch.float32)
    asked, answers = _answers(bench, "train", prompts, 2, seed)
    pairs = _labelled(bench, tokenizer, asked, answers, seed)
    reward = LanguageModelPolicy(model, tokenizer.eos_token_id, max_new_tokens=1).new_reward_model()
    training = Training(steps=steps, batch_size=BATCH, learning_rate=RATE, max_grad_norm=1.0, seed=seed, progress=False)
    reward_model(reward, pairs, RewardModel(), training)
    return RewardJudge(reward.requires_grad_(False), tokenizer, batch_size=64)


@dataclass(frozen=True)
class Agreement:
    """How often the judge and the gold reward prefer the same one of two texts."""

    draws: float
    """Of two draws of π_ref, where gold sees a difference."""
    targets: float
    """Of a draw and the target, where gold sees a difference."""
    pairs: int
    """Pairs compared, both kinds together."""


def agreement(bench: Bench, which: Judge | None = None, prompts: int = 128, seed: int = SEED + 1) -> Agreement:
    """Measure the judge on validation prompts, which it has not seen.

    Args:
        bench: the world and the reference.
        which: the judge; None for the bench's own.
        prompts: of the validation split.
        seed: of the draws.

    Raises:
        LabError: gold sees no difference in any pair.
    """
    which = judge(bench) if which is None else which
    asked, answers = _answers(bench, "validation", prompts, 2, seed)
    shares, number = [], 0
    for one, other in ((0, 1), (0, 2)):
        a, b = [row[one] for row in answers], [row[other] for row in answers]
        true = GoldJudge(bench.world.gold)(asked, a, b)
        said = wins(torch.tensor(which(asked, a, b), dtype=torch.float64), 0.5).tolist()
        same = [0.5 if p == 0.5 else float(p == gold) for p, gold in zip(said, true, strict=True) if gold != 0.5]
        if not same:
            raise LabError(f"The gold reward of '{bench.world.name}' sees no difference in {prompts} pairs.")
        shares.append(sum(same) / len(same))
        number += len(same)
    return Agreement(shares[0], shares[1], number)


def _answers(bench: Bench, split: str, number: int, draws: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Prompts, and for each of them `draws` texts of π_ref and the target."""
    examples = bench.world.examples(split)[-number:]
    every = bench.world.prompts(bench.tokenizer, split)[-number:]
    generator = seeded(seed, Stream.JUDGE_RESPONSES, device=bench.reference.device)
    texts: list[list[str]] = []
    for start in range(0, len(every), 64):
        drawn = bench.reference.sample(every[start : start + 64].trim(), draws, generator).tolist()
        texts += [bench.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in drawn]
    answers = [[*ours, example.target] for ours, example in zip(texts, examples, strict=True)]
    return [example.prompt for example in examples], answers


def _labelled(
    bench: Bench, tokenizer: object, asked: Sequence[str], answers: Sequence[Sequence[str]], seed: int
) -> Pairs:
    """One label for every two different answers to a prompt, in the judge's own tokens."""
    scores = torch.tensor([bench.world.gold([x] * len(ys), ys) for x, ys in zip(asked, answers, strict=True)])
    scores = scores.double() / (BLUR * bench.unit)
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
