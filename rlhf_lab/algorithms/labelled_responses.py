"""Responses that are labelled desirable or undesirable, the data of KTO, and their mismatched responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens, check_weight, unchecked
from rlhf_lab.errors import LabError


@dataclass(frozen=True, eq=False)
class LabelledResponses:
    """Prompts with responses, each of which has a label.

    Attributes:
        prompts: (N, P).
        responses: (N, G, T).
        desirable: the labels, (N, G) booleans.
        weight: (N,) weights of the rows in the loss's mean, none negative and not all 0; None: equal weights.
    """

    prompts: Tokens
    responses: Tokens
    desirable: Tensor
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        lead = self.responses.shape[:-1]
        if self.desirable.dtype != torch.bool or self.desirable.shape != lead or lead[0] != len(self.prompts):
            raise LabError(
                "LabelledResponses need prompts (N, P), responses (N, G, T) and booleans (N, G), not "
                f"{len(self.prompts)} prompts, responses of shape {tuple(self.responses.shape)} and "
                f"{self.desirable.dtype} of shape {tuple(self.desirable.shape)}."
            )
        check_weight(self.weight, len(self.prompts))

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> LabelledResponses:
        """Label the responses (N, 2) of preference pairs: the chosen one is desirable, the rejected one undesirable."""
        desirable = torch.tensor([True, False], device=pairs.responses.device).expand(len(pairs), 2)
        return cls(pairs.prompts, pairs.responses, desirable, pairs.weight)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Any) -> LabelledResponses:
        """Select rows."""
        weight = None if self.weight is None else self.weight[rows]
        parts = {"prompts": self.prompts[rows], "responses": self.responses[rows], "desirable": self.desirable[rows]}
        return unchecked(LabelledResponses, **parts, weight=weight)


def mismatched(labelled: LabelledResponses) -> Tokens | None:
    """Choose for every row a response to *another* prompt, (N, 1, T); None if all rows have the same prompt.

    The choice is a function of the data alone, and it is spread over all rows and all G positions. The rows are
    grouped into blocks with the same prompt. Row j of a block gets a response of the row that comes j places after the
    end of the block. After the last block the count continues with the first one, and it skips the row's own block. The
    i-th row in this order gets response i mod G of that row.
    """
    blocks: dict[bytes, list[int]] = {}
    for row, key in enumerate(labelled.prompts.keys()):
        blocks.setdefault(key, []).append(row)
    if len(blocks) < 2:
        return None
    order = [row for rows in blocks.values() for row in rows]
    number, group = labelled.responses.shape[:2]
    source, which = torch.empty(number, dtype=torch.long), torch.empty(number, 1, dtype=torch.long)
    end = 0
    for rows in blocks.values():
        end += len(rows)
        for j, row in enumerate(rows):
            source[row] = order[(end + j % (number - len(rows))) % number]
            which[row, 0] = (end - len(rows) + j) % group
    return labelled.responses[source.to(labelled.responses.device)].take(which)


def check_labelled(labelled: LabelledResponses) -> None:
    """Raise `LabError` for fewer than two rows, and for labels of one kind only."""
    number = len(labelled)
    if number < 2:
        raise LabError(f"KTO compares prompts with responses to other prompts and needs at least 2 rows, not {number}.")
    if bool(labelled.desirable.all()) or not bool(labelled.desirable.any()):
        kind = "desirable" if bool(labelled.desirable.any()) else "undesirable"
        raise LabError(f"All responses are {kind}. KTO needs desirable and undesirable responses.")
