"""A reward that reads text: any function of (prompt, response) strings, under the (B, G) rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError


class TextReward:
    """Decodes what a policy wrote and has it scored.

    Attributes:
        function: takes a list of prompts and a list of responses of equal length (each prompt repeated for its
            responses) and returns one number for each. A lexicon, a rule, a classifier behind an interface.
        tokenizer: a Hugging Face tokenizer. Special tokens, the end token among them, are not decoded.
    """

    def __init__(self, function: Callable[[list[str], list[str]], Sequence[float]], tokenizer: Any) -> None:
        self.function, self.tokenizer = function, tokenizer

    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores of shape (B, G), float32, on the responses' device.

        Raises:
            LabError: the function returned another number of scores, or one that is not finite.
        """
        asked = [text for text in self._texts(prompts.tolist()) for _ in range(responses.shape[1])]
        answered = self._texts([y for ys in responses.tolist() for y in ys])
        scores = list(self.function(asked, answered))
        if len(scores) != len(answered):
            raise LabError(
                f"The reward function returned {len(scores)} scores for {len(answered)} responses; it must return "
                f"one each, in order."
            )
        out = torch.tensor([float(score) for score in scores])
        bad = ~torch.isfinite(out)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise LabError(
                f"The reward function returned {out[row].item()} for response {row % responses.shape[1]} of prompt "
                f"{row // responses.shape[1]}; every score must be finite."
            )
        return out.view(responses.shape[:2]).to(responses.device)

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)
