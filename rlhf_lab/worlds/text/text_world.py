"""A world of texts: prompts, targets to learn from, and a gold reward that anyone can read.

Texts are drawn from a grammar by seed when they are first asked for (a second or so), never downloaded. A prompt
belongs to one split for ever, by a hash of what it says; within a split each prompt stands once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.worlds.text.grammar import Draw

if TYPE_CHECKING:
    from rlhf_lab.policies.base import Policy
    from rlhf_lab.rewards.text import TextReward

SIZES = {"train": 8192, "validation": 512, "test": 512}
"""Examples in each split of each world."""

_CHUNK = 64  # prompts answered at a time


@dataclass(frozen=True)
class Example:
    """A prompt with a target, as SFT data hold them. prompt + target is the whole text.

    Attributes:
        prompt: what is asked.
        target: an answer of mixed quality; it begins with the space that parts it from the prompt.
        facts: what the prompt says, by name.
        nats: −log probability of the target's derivation, given the facts. Its mean over a split bounds the entropy
            of targets from above, closely where a text has one derivation.
    """

    prompt: str
    target: str
    facts: dict[str, Any]
    nats: float


@dataclass(eq=False)
class TextWorld:
    """What is asked, how it was answered, and what an answer is worth.

    Attributes:
        name: sentiment, summaries, dialogue or translation.
        ask: draws a prompt and its facts.
        answer: draws a target, given the facts.
        score: the gold reward of one (prompt, response), a pure function of the two texts.
        speaks: whether a response to a prompt is one that the grammar of targets can make, of whatever quality.
        seed: of all texts.
    """

    name: str
    ask: Callable[[Draw], tuple[str, dict[str, Any]]]
    answer: Callable[[dict[str, Any], Draw], str]
    score: Callable[[str, str], float]
    speaks: Callable[[str, str], bool]
    seed: int = 0
    _made: dict[str, list[Example]] = field(default_factory=lambda: {split: [] for split in SIZES}, repr=False)
    _lengths: tuple[Any, int, int] | None = field(default=None, repr=False)
    _stream: Iterator[tuple[str, Example]] | None = field(default=None, repr=False)

    def _examples(self) -> Iterator[tuple[str, Example]]:
        """Examples without end, each with its split, each prompt once."""
        seen: set[str] = set()
        number = 0
        while True:
            place = f"{self.name}/{self.seed}/{number}"
            number += 1
            prompt, facts = self.ask(Draw(place + "/prompt"))
            if prompt in seen:
                continue
            seen.add(prompt)
            draw = Draw(place + "/target")
            target = self.answer(facts, draw)
            yield split_of(prompt), Example(prompt, target, facts, draw.nats)

    def examples(self, split: str, limit: int | None = None) -> list[Example]:
        """The first `limit` examples of a split (None: all), the same ones each time.

        Raises:
            LabError: an unknown split, or a limit out of range.
        """
        if split not in SIZES:
            raise LabError(f"There is no split '{split}'; there are {', '.join(SIZES)}.")
        wanted = SIZES[split] if limit is None else limit
        if not 1 <= wanted <= SIZES[split]:
            raise LabError(
                f"The {split} split of world '{self.name}' has {SIZES[split]} examples; limit must be between 1 and "
                f"that, not {wanted}."
            )
        self._stream = self._stream or self._examples()
        while len(self._made[split]) < wanted:
            where, example = next(self._stream)
            self._made[where].append(example)
        return self._made[split][:wanted]

    def gold(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The gold reward of each response, one number each, in order.

        Raises:
            LabError: lists of different lengths, or a prompt that is not of this world.
        """
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise LabError("gold takes a list of prompts and a list of responses of the same length.")
        return [self.score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

    def reward(self, tokenizer: Any) -> TextReward:
        """The gold reward under the (B, G) rule, for policies that write with `tokenizer`."""
        from rlhf_lab.rewards.text import TextReward

        return TextReward(self.gold, tokenizer)

    def prompts(self, tokenizer: Any, split: str, limit: int | None = None) -> Tokens:
        """Prompts of a split, (B, P)."""
        return Tokens.from_lists(_ids(tokenizer, [example.prompt for example in self.examples(split, limit)]))

    def sft(self, tokenizer: Any, split: str, limit: int | None = None) -> tuple[Tokens, Tokens]:
        """Prompts (N, P) and targets (N, 1, T), each target with the end token at its end.

        Raises:
            LabError: the tokenizer has no end token.
        """
        if tokenizer.eos_token_id is None:
            raise LabError("The tokenizer has no end token: set tokenizer.eos_token, or targets would never end.")
        examples = self.examples(split, limit)
        targets = _ids(tokenizer, [example.target for example in examples])
        return (
            Tokens.from_lists(_ids(tokenizer, [example.prompt for example in examples])),
            Tokens.from_lists([[[*target, tokenizer.eos_token_id]] for target in targets]),
        )

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Tokens of the longest prompt of any split."""
        return self._widest(tokenizer)[0]

    def max_response_tokens(self, tokenizer: Any) -> int:
        """Tokens of the longest target of any split, the end token included."""
        return self._widest(tokenizer)[1]

    def _widest(self, tokenizer: Any) -> tuple[int, int]:
        # Tens of thousands of texts are tokenised for it: once.
        if self._lengths is None or self._lengths[0] is not tokenizer:
            both = [self.sft(tokenizer, split) for split in SIZES]
            self._lengths = (tokenizer, *(max(part[i].shape[-1] for part in both) for i in (0, 1)))
        return self._lengths[1:]

    def preferences(
        self,
        policy: Policy,
        tokenizer: Any,
        split: str,
        num_pairs: int,
        generator: torch.Generator | None = None,
        beta_label: float = 1.0,
        noise: float = 0.0,
        progress: bool = True,
    ) -> tuple[Pairs, int]:
        r"""Two draws from `policy` for each of `num_pairs` prompts, labelled by Bradley–Terry on the gold reward.

            p(y_1 ≻ y_2 | x) = σ((r*(x, y_1) − r*(x, y_2)) / beta_label)

        Args:
            policy: who answers; the SFT policy, in the lecture's D = {(x, y_w, y_l)}.
            tokenizer: the policy's.
            split: where the prompts come from, in order; from the first again when they are used up.
            num_pairs: how many pairs are drawn.
            generator: source of randomness.
            beta_label: how blurred the labeller sees, in units of the gold reward. Small: the better one nearly always.
            noise: probability that a label is turned round after that, see `preferences.sample_preferences`.
            progress: show a progress bar.

        Returns:
            the pairs, and how many were dropped because both draws were the same response.

        Raises:
            LabError: no pair is left, or numbers out of range.
        """
        from tqdm.auto import tqdm

        check_positive(beta_label, "beta_label", "It divides the gold reward before Bradley–Terry.")
        if num_pairs < 1:
            raise LabError(f"num_pairs must be at least 1, not {num_pairs}.")
        known = self.prompts(tokenizer, split, min(num_pairs, SIZES[split]))
        reward = self.reward(tokenizer)
        parts: list[Pairs] = []
        dropped = 0
        chunks = torch.arange(num_pairs).remainder(len(known)).split(_CHUNK)
        for rows in tqdm(chunks, desc=f"pairs of {self.name}", leave=False, disable=not progress):
            prompts = known[rows].trim()
            responses = policy.sample(prompts, 2, generator).to("cpu")
            scores = reward(prompts, responses) / beta_label
            first = sample_preferences(scores[:, 0], scores[:, 1], generator, noise=noise)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            pairs, same = pick_pairs(prompts, responses, index)
            dropped += same
            if len(pairs):
                parts.append(pairs)
        if not parts:
            raise LabError(f"The policy gave the same response twice for all {num_pairs} prompts: nothing to compare.")
        return cat_pairs(parts), dropped


def split_of(prompt: str) -> str:
    """The split that a prompt belongs to: a tenth each to validation and test, by a hash of its words."""
    digit = hashlib.sha256(" ".join(prompt.split()).lower().encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(digit, "train")


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids without special tokens. A prompt and its response are tokenised apart, so that the boundary cannot move."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
