"""A world of texts: prompts, targets for supervised fine-tuning, and a gold reward that is a short function.

The texts are drawn from a grammar and a seed when they are first needed, which takes about a second. Nothing is
downloaded. A hash of a prompt's words determines its split, and a split contains each prompt once.
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

_CHUNK = 64  # prompts that are sampled from at the same time


@dataclass(frozen=True)
class TextExample:
    """A prompt with a target, as in data for supervised fine-tuning. The whole text is prompt + target.

    Attributes:
        prompt: the text of the prompt.
        target: a response of varying quality. It begins with the space that separates it from the prompt.
        facts: the facts in the prompt, by name.
        nats: −log probability of the target's derivation, given the facts. Its mean over a split is an upper bound of
            the entropy of the targets, and close to it if most texts have one derivation.
    """

    prompt: str
    target: str
    facts: dict[str, Any]
    nats: float


@dataclass(eq=False)
class TextWorld:
    """Prompts, targets and a gold reward.

    Attributes:
        name: sentiment, summaries, dialogue or translation.
        draw_prompt: draws a prompt and its facts.
        draw_target: draws a target, given the facts.
        score: the gold reward of a prompt and a response, a pure function of the two texts.
        follows_grammar: whether the grammar of targets can make this response to the prompt, of any quality.
        seed: seed of all texts.
    """

    name: str
    draw_prompt: Callable[[Draw], tuple[str, dict[str, Any]]]
    draw_target: Callable[[dict[str, Any], Draw], str]
    score: Callable[[str, str], float]
    follows_grammar: Callable[[str, str], bool]
    seed: int = 0
    _made: dict[str, list[TextExample]] = field(default_factory=lambda: {split: [] for split in SIZES}, repr=False)
    _lengths: tuple[Any, int, int] | None = field(default=None, repr=False)
    _stream: Iterator[tuple[str, TextExample]] | None = field(default=None, repr=False)

    def _examples(self) -> Iterator[tuple[str, TextExample]]:
        """Generate examples with their splits without end. No prompt occurs twice."""
        seen: set[str] = set()
        number = 0
        while True:
            place = f"{self.name}/{self.seed}/{number}"
            number += 1
            prompt, facts = self.draw_prompt(Draw(place + "/prompt"))
            if prompt in seen:
                continue
            seen.add(prompt)
            draw = Draw(place + "/target")
            target = self.draw_target(facts, draw)
            yield split_of(prompt), TextExample(prompt, target, facts, draw.nats)

    def examples(self, split: str, limit: int | None = None) -> list[TextExample]:
        """The first `limit` examples of a split, or all if it is None. They are the same each time.

        Raises:
            LabError: an unknown split, or a limit out of range.
        """
        if split not in SIZES:
            raise LabError(f"There is no split '{split}'. The splits are {', '.join(SIZES)}.")
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
        """The gold reward of each response, in order.

        Raises:
            LabError: lists of different lengths, or a prompt that is not of this world.
        """
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise LabError("gold needs a list of prompts and a list of responses of the same length.")
        return [self.score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

    def reward(self, tokenizer: Any) -> TextReward:
        """The gold reward of token ids, (B, G), for policies with this tokenizer."""
        from rlhf_lab.rewards.text import TextReward

        return TextReward(self.gold, tokenizer)

    def prompts(self, tokenizer: Any, split: str, limit: int | None = None) -> Tokens:
        """The prompts of a split as token ids, (B, P)."""
        return Tokens.from_lists(_ids(tokenizer, [example.prompt for example in self.examples(split, limit)]))

    def sft(self, tokenizer: Any, split: str, limit: int | None = None) -> tuple[Tokens, Tokens]:
        """The prompts (N, P) and targets (N, 1, T) of a split as token ids. Each target ends with the end token.

        Raises:
            LabError: the tokenizer has no end token.
        """
        if tokenizer.eos_token_id is None:
            raise LabError("The tokenizer has no end token, so targets could not end. Set tokenizer.eos_token.")
        examples = self.examples(split, limit)
        targets = _ids(tokenizer, [example.target for example in examples])
        return (
            Tokens.from_lists(_ids(tokenizer, [example.prompt for example in examples])),
            Tokens.from_lists([[[*target, tokenizer.eos_token_id]] for target in targets]),
        )

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """The number of tokens of the longest prompt of all splits."""
        return self._widest(tokenizer)[0]

    def max_response_tokens(self, tokenizer: Any) -> int:
        """The number of tokens of the longest target of all splits, including the end token."""
        return self._widest(tokenizer)[1]

    def _widest(self, tokenizer: Any) -> tuple[int, int]:
        # Computed only once, because thousands of texts are tokenised for it.
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
        r"""Draw two responses to each of `num_pairs` prompts, and label them by Bradley–Terry on the gold reward.

            p(y_1 ≻ y_2 | x) = σ((r*(x, y_1) − r*(x, y_2)) / beta_label)

        Args:
            policy: the policy from which the responses are drawn. In the lecture's D = {(x, y_w, y_l)} it is the SFT
                policy.
            tokenizer: the tokenizer of the policy.
            split: the split of the prompts, which are used in order, and again from the first one if necessary.
            num_pairs: how many pairs are drawn.
            generator: source of randomness.
            beta_label: the scale of the gold reward in the labels. With a small value, the response with the larger
                gold reward is nearly always preferred.
            noise: probability that a label is flipped afterwards, see `preferences.sample_preferences`.
            progress: show a progress bar.

        Returns:
            the pairs, and the number of pairs that were dropped because both responses were equal.

        Raises:
            LabError: no pair is left, or a number is out of range.
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
            raise LabError(
                f"The policy gave the same response twice for all {num_pairs} prompts, so there is nothing to compare. "
                f"Use a policy with more entropy."
            )
        return cat_pairs(parts), dropped


def split_of(prompt: str) -> str:
    """The split of a prompt, by a hash of its words. Validation and test get a tenth of the prompts each."""
    digit = hashlib.sha256(" ".join(prompt.split()).lower().encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(digit, "train")


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of texts without special tokens.

    A prompt and its response are tokenised separately, so that the boundary between them is fixed.
    """
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
