"""A non-stationary text world, in which preferences turn or prompts shift, and a language model refitted by DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.experiments.claims.non_static.settings import NonStatic
from rlhf_lab.experiments.runner import JobSpec
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup_text import TextSetup, TextTask, text_task
from rlhf_lab.policies.base import Policy
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded


@dataclass(frozen=True)
class ResponseLength:
    """The length of π_ref's responses in words, relative to which brevity is measured."""

    mean: float
    spread: float
    """Standard deviation within a prompt."""


@lru_cache(maxsize=2)
def reference_length(scale: str) -> ResponseLength:
    """Measure the length on 64 validation prompts with four responses each."""
    task = text_task(scale, "sentiment")
    prompts = task.world.prompts(task.tokenizer, "validation", 64)
    drawn = task.reference.sample(prompts, 4, seeded(0, Stream.STYLE_RESPONSES, device=task.reference.device))
    words = _words([task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in drawn.tolist()])
    return ResponseLength(float(words.mean()), float(words.var(1).mean().sqrt()))


def _words(texts: list[list[str]]) -> Tensor:
    return torch.tensor([[len(text.split()) for text in row] for row in texts], dtype=torch.float64)


class TextDeployment:
    """One deployment of a language model, in which preferences turn or prompts shift.

    Preferences turn from positive texts to short ones, and prompts shift to other kinds of things. The reward is

        r_t = cos(angle) · VADER / unit + sin(angle) · brevity,

    where brevity is (mean − words) / spread of π_ref's responses.
    """

    FIRST, LAST = ("Film", "Book"), ("Restaurant", "Hotel", "Game")

    def __init__(self, settings: NonStatic, seed: int) -> None:
        """Make the set-up. Strategies share labels, fits and responses, so those of equal arguments are made once."""
        self.settings, self.seed = settings, seed
        setup = set_up(settings.scale, seed, "sentiment", beta=settings.beta, steps=settings.steps)
        assert isinstance(setup, TextSetup)
        if settings.quick:
            short: Any = setup.reference.copy()
            short.max_new_tokens = 8
            setup = replace(setup, task=replace(setup.task, reference=short.frozen()))
        self.setup = setup
        self.task: TextTask = setup.task
        self.length = reference_length(settings.scale)
        self.label, self.fit, self.respond = cache(self._label), cache(self._fit), cache(self._respond)

    def angle(self, change: str, t: float) -> float:
        """Return by how many radians preferences have turned in round t."""
        return self.settings.turns[-1] * t / self.settings.rounds if change == "drift" else 0.0

    def share(self, change: str, t: float) -> float:
        """Return the share of prompts of round t that are about new kinds of things."""
        return t / self.settings.rounds if change == "prompts" else 0.0

    def prompts(self, split: str, number: int, share: float, generator: torch.Generator) -> tuple[Tokens, list[str]]:
        """Draw `number` prompts, a share of them about new kinds of things, and return their texts too."""
        texts: list[str] = []
        new = round(share * number)
        for kinds, wanted in ((self.FIRST, number - new), (self.LAST, new)):
            examples = self.task.world.examples(split, 512 if split != "train" else 4096)
            pool = [example.prompt for example in examples if example.facts["kind"] in kinds]
            texts += [pool[i % len(pool)] for i in torch.randperm(len(pool), generator=generator).tolist()[:wanted]]
        ids = self.task.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return Tokens.from_lists(ids), texts

    def gold_and_words(self, prompts: list[str], responses: Tokens) -> tuple[Tensor, Tensor]:
        """Return VADER (raw) and the number of words of each response, (B, G) each."""
        texts = [self.task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in responses.tolist()]
        flat = [text for row in texts for text in row]
        repeated = [prompt for prompt in prompts for _ in texts[0]]
        gold = torch.tensor(self.task.world.gold(repeated, flat), dtype=torch.float64)
        return gold.view(len(prompts), -1), _words(texts)

    def reward(self, gold: Tensor, words: Tensor, angle: float) -> Tensor:
        """Return r_t from its two parts, in logits of a label."""
        brevity = (self.length.mean - words) / self.length.spread
        return math.cos(angle) * gold / self.task.unit + math.sin(angle) * brevity

    def _label(self, policy: Policy, change: str, t: int, number: int, stream: int) -> Pairs:
        """Label the policy's own responses in round t. Pairs of equal responses are dropped."""
        plain = seeded(self.seed, Stream.ROUND_PROMPTS, t, stream)
        prompts, texts = self.prompts("train", number, self.share(change, t), plain)
        generator = seeded(self.seed, Stream.ROUND_RESPONSES, t, stream, device=policy.device)
        parts = []
        for begin in range(0, len(prompts), 64):
            part, part_texts = prompts[begin : begin + 64], texts[begin : begin + 64]
            y = policy.sample(part, 2, generator).to("cpu")
            scores = self.reward(*self.gold_and_words(part_texts, y), self.angle(change, t))
            first = sample_preferences(scores[:, 0], scores[:, 1], plain)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            parts.append(pick_pairs(part, y, index)[0])
        return cat_pairs([pairs for pairs in parts if len(pairs)])

    def _fit(self, pairs: Pairs, stream: int) -> Policy:
        """Train from π_ref by DPO on these labels."""
        policy = self.setup.new_policy()
        dpo(policy, self.setup.reference, pairs, DPO(beta=self.settings.beta), self.setup.training(stream))
        return policy

    @torch.no_grad()
    def _respond(self, policy: Policy, share: float) -> tuple[Tensor, Tensor, float]:
        """Return VADER and words of the policy's responses to test prompts, and its KL."""
        number = 8 if self.settings.quick else 48
        prompts, texts = self.prompts("test", number, share, seeded(self.seed, Stream.ROUND_TEST_PROMPTS))
        y = policy.sample(prompts, 4, seeded(self.seed, Stream.ROUND_TEST_RESPONSES, device=policy.device))
        k1 = policy.log_prob(prompts, y) - self.task.reference.log_prob(prompts, y)
        return (*self.gold_and_words(texts, y), float(k1.double().mean()))

    def evaluate(self, policy: Policy, change: str, t: int) -> dict[str, float]:
        """Evaluate the policy on test prompts of round t."""
        gold, words, kl = self.respond(policy, self.share(change, t))
        reward = float(self.reward(gold, words, self.angle(change, t)).mean())
        return {
            "objective": reward - self.settings.beta * kl,
            "reward": reward,
            "kl": kl,
            "gold": float(gold.mean()),
            "words": float(words.mean()),
        }


@lru_cache(maxsize=1)
def _text_deployment(settings: NonStatic, seed: int) -> TextDeployment:
    return TextDeployment(settings, seed)


def run_text(settings: NonStatic, job: JobSpec) -> list[dict[str, Any]]:
    """Return the rows of one job on a language model, with the numbers of one strategy in every round."""
    deployment = _text_deployment(settings, job["seed"])
    change, strategy, n, rounds = job["change"], job["strategy"], settings.labels, settings.rounds
    reference = deployment.task.reference
    if strategy == "offline":
        policy = deployment.fit(
            deployment.label(reference, "none", 0, n * rounds, Stream.LABELS_AT_START), Stream.DEPLOYED_FIT
        )
        return [{"round": t} | deployment.evaluate(policy, change, t) for t in range(1, rounds + 1)]
    # In round 1 every strategy has the same labels, of π_ref's responses in round 0.
    rows, seen = [], [deployment.label(reference, "none", 0, n, Stream.LABELS_OF_ROUND)]
    for t in range(1, rounds + 1):
        newest = t == 1 or strategy in ("window", "online")
        policy = deployment.fit(seen[-1] if newest else cat_pairs(seen), Stream.DEPLOYED_FIT + t)
        rows.append({"round": t} | deployment.evaluate(policy, change, t))
        if t < rounds:
            own = strategy.startswith("online")
            seen.append(deployment.label(policy if own else reference, change, t, n, Stream.LABELS_OF_ROUND))
    return rows
