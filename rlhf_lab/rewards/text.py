"""A reward that is computed from text by any function of (prompt, response) strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, count_of


class TextReward:
    """A reward that decodes prompts and responses and scores them with a function.

    Attributes:
        function: takes a list of prompts and a list of responses of equal length (each prompt is repeated for its
            responses) and returns one number for each. It can be a lexicon, a rule or a classifier.
        tokenizer: a Hugging Face tokenizer. Special tokens, including the end token, are not decoded.
    """

    def __init__(self, function: Callable[[list[str], list[str]], Sequence[float]], tokenizer: Any) -> None:
        self.function, self.tokenizer = function, tokenizer

    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Score responses.

        Args:
            prompts: (B, P).
            responses: (B, G, T).

        Returns:
            (B, G), float32, on the responses' device.

        Raises:
            LabError: the function returned another number of scores, or one that is not finite.
        """
        prompt_texts = [text for text in self._texts(prompts.tolist()) for _ in range(responses.shape[1])]
        response_texts = self._texts([y for ys in responses.tolist() for y in ys])
        scores = list(self.function(prompt_texts, response_texts))
        if len(scores) != len(response_texts):
            raise LabError(
                f"The reward function returned {count_of(len(scores), 'score')} for "
                f"{count_of(len(response_texts), 'response')}. It must return one score for each response, "
                f"in the same order."
            )
        out = torch.tensor([float(score) for score in scores])
        bad = ~torch.isfinite(out)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise LabError(
                f"The reward function returned {out[row].item()} for response {row % responses.shape[1]} of prompt "
                f"{row // responses.shape[1]}. Every score must be finite."
            )
        return out.view(responses.shape[:2]).to(responses.device)

    def _texts(self, rows: list[list[int]]) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts
