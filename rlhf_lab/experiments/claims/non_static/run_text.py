"""A non-stationary world of a language model: the labellers' taste turns or the prompts shift, and DPO refits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.experiments.runner import Job
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup_text import TextSetup, TextTask, text_task
from rlhf_lab.policies.base import Policy
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    from rlhf_lab.experiments.claims.non_static.settings import NonStatic


@dataclass(frozen=True)
class Style:
    """How long the responses of π_ref are, in words; brevity is measured relative to it."""

    mean: float
    spread: float
    """Standard deviation within a prompt."""


@lru_cache(maxsize=2)
def reference_style(scale: str) -> Style:
    """Measure it on 64 validation prompts, four responses each."""
    task = text_task(scale, "sentiment")
    prompts = task.world.prompts(task.tokenizer, "validation", 64)
    drawn = task.reference.sample(prompts, 4, seeded(0, Stream.STYLE_RESPONSES, device=task.reference.device))
    words = _words([task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in drawn.tolist()])
    return Style(float(words.mean()), float(words.var(1).mean().sqrt()))


def _words(texts: list[list[str]]) -> Tensor:
    return torch.tensor([[len(text.split()) for text in row] for row in texts], dtype=torch.float64)


class TextDeployment:
    """One deployment of a language model, in which the labellers' taste turns or the prompts shift.

    The taste turns from positive texts to short ones; the prompts shift to other kinds of things.

    r_t = cos(angle) · VADER / unit + sin(angle) · brevity, brevity = (mean − words) / spread of π_ref's responses.
    """

    FIRST, LAST = ("Film", "Book"), ("Restaurant", "Hotel", "Game")

    def __init__(self, settings: NonStatic, seed: int) -> None:
        """Make the set-up; samples and fits are made at their first use."""
        self.settings, self.seed = settings, seed
        setup = set_up(settings.scale, seed, "sentiment", beta=settings.beta, steps=settings.steps)
        assert isinstance(setup, TextSetup)
        if settings.quick:
            short: Any = setup.reference.copy()
            short.max_new_tokens = 8
            setup = replace(setup, task=replace(setup.task, reference=short.frozen()))
        self.setup = setup
        self.task: TextTask = setup.task
        self.style = reference_style(settings.scale)
        self._answers: dict[Any, tuple[Tensor, Tensor, float]] = {}
        self._policies: dict[Any, Policy] = {}
        self._labels: dict[Any, Pairs] = {}

    def angle(self, change: str, t: float) -> float:
        """Radians that the taste has turned in round t."""
        return self.settings.turns[-1] * t / self.settings.rounds if change == "drift" else 0.0

    def share(self, change: str, t: float) -> float:
        """The share of prompts of round t that ask about new kinds of things."""
        return t / self.settings.rounds if change == "prompts" else 0.0

    def prompts(self, split: str, number: int, share: float, generator: torch.Generator) -> tuple[Tokens, list[str]]:
        """Draw `number` prompts, a share of them about new kinds of things, and give their texts too."""
        texts: list[str] = []
        new = round(share * number)
        for kinds, wanted in ((self.FIRST, number - new), (self.LAST, new)):
            examples = self.task.world.examples(split, 512 if split != "train" else 4096)
            pool = [example.prompt for example in examples if example.facts["kind"] in kinds]
            texts += [pool[i % len(pool)] for i in torch.randperm(len(pool), generator=generator).tolist()[:wanted]]
        ids = self.task.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return Tokens.from_lists(ids), texts

    def golds(self, asked: list[str], responses: Tokens) -> tuple[Tensor, Tensor]:
        """VADER (raw) and number of words of each response, (B, G) each."""
        texts = [self.task.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in responses.tolist()]
        flat = [text for row in texts for text in row]
        again = [prompt for prompt in asked for _ in texts[0]]
        gold = torch.tensor(self.task.world.gold(again, flat), dtype=torch.float64)
        return gold.view(len(asked), -1), _words(texts)

    def reward(self, gold: Tensor, words: Tensor, angle: float) -> Tensor:
        """r_t of both parts, in logits of a label."""
        brevity = (self.style.mean - words) / self.style.spread
        return math.cos(angle) * gold / self.task.unit + math.sin(angle) * brevity

    def of_reference(self, change: str, t: int, number: int, stream: int) -> Pairs:
        """Labels of round t on responses of π_ref, which all strategies share. In round 0 nothing has changed yet."""
        return self.asked(self.task.reference, "reference", change if t else "none", t, number, stream)

    def asked(self, policy: Policy, key: str, change: str, t: int, number: int, stream: int) -> Pairs:
        """Label at the first call and give the same labels at later ones; `key` names the policy."""
        what = (key, change, t, number, stream)
        if what not in self._labels:
            self._labels[what] = self.label(policy, change, t, number, stream)
        return self._labels[what]

    def label(self, policy: Policy, change: str, t: int, number: int, stream: int) -> Pairs:
        """Label the policy's own responses in round t. Pairs of equal responses are dropped."""
        plain = seeded(self.seed, Stream.ROUND_PROMPTS, t, stream)
        prompts, asked = self.prompts("train", number, self.share(change, t), plain)
        generator = seeded(self.seed, Stream.ROUND_RESPONSES, t, stream, device=policy.device)
        parts = []
        for begin in range(0, len(prompts), 64):
            few, names = prompts[begin : begin + 64], asked[begin : begin + 64]
            y = policy.sample(few, 2, generator).to("cpu")
            scores = self.reward(*self.golds(names, y), self.angle(change, t))
            first = sample_preferences(scores[:, 0], scores[:, 1], plain)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            parts.append(pick_pairs(few, y, index)[0])
        return cat_pairs([part for part in parts if len(part)])

    def fit(self, pairs: Pairs, stream: int) -> Policy:
        """Train from π_ref by DPO on these labels."""
        policy = self.setup.new_policy()
        dpo(policy, self.setup.reference, pairs, DPO(beta=self.settings.beta), self.setup.training(stream))
        return policy

    def shared(self, key: str, make: Callable[[], Policy]) -> Policy:
        """Make a policy at the first call and give the same policy at later ones; strategies share it."""
        if key not in self._policies:
            self._policies[key] = make()
        return self._policies[key]

    @torch.no_grad()
    def evaluate(self, policy: Policy, key: str, change: str, t: int) -> dict[str, float]:
        """Evaluate the policy on test prompts of round t. `key` names the policy, whose answers are cached."""
        share = self.share(change, t)
        if (key, share) not in self._answers:
            number = 8 if self.settings.quick else 48
            prompts, asked = self.prompts("test", number, share, seeded(self.seed, Stream.ROUND_TEST_PROMPTS))
            y = policy.sample(prompts, 4, seeded(self.seed, Stream.ROUND_TEST_RESPONSES, device=policy.device))
            k1 = policy.log_prob(prompts, y) - self.task.reference.log_prob(prompts, y)
            self._answers[key, share] = (*self.golds(asked, y), float(k1.double().mean()))
        gold, words, kl = self._answers[key, share]
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


def run_language(settings: NonStatic, job: Job) -> list[dict[str, Any]]:
    """The rows of one job on a language model: a strategy's numbers in every round."""
    made = _text_deployment(settings, job["seed"])
    change, strategy, n, rounds = job["change"], job["strategy"], settings.labels, settings.rounds
    if strategy == "offline":
        policy = made.shared("offline", lambda: made.fit(made.of_reference("none", 0, n * rounds, 0), 70))
        return [{"round": t} | made.evaluate(policy, "offline", change, t) for t in range(1, rounds + 1)]
    # In round 1 every strategy has labels of π_ref's responses of round 0.
    rows, seen = [], [made.of_reference("none", 0, n, 1)]
    for t in range(1, rounds + 1):
        used = seen[-1] if strategy in ("window", "online") else cat_pairs(seen)
        key = "first" if t == 1 else f"{change} {strategy} {t}"
        policy = made.shared(key, lambda used=used, t=t: made.fit(used, 70 + t))  # type: ignore[misc]
        rows.append({"round": t} | made.evaluate(policy, key, change, t))
        if t == rounds:
            break
        own = strategy.startswith("online")
        seen.append(made.asked(policy, key, change, t, n, 1) if own else made.of_reference(change, t, n, 1))
    return rows
