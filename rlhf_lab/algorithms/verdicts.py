"""Responses that are labelled desirable or undesirable, the data of KTO, and their mismatched responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens, check_weight, unchecked
from rlhf_lab.errors import LabError


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Prompts with responses, each of which has a verdict.

    Attributes:
        prompts: (N, P).
        responses: (N, G, T).
        desirable: the verdicts, (N, G) booleans.
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
                f"Verdicts need prompts (N, P), responses (N, G, T) and booleans (N, G), not {len(self.prompts)} "
                f"prompts, responses of shape {tuple(self.responses.shape)} and {self.desirable.dtype} of shape "
                f"{tuple(self.desirable.shape)}."
            )
        check_weight(self.weight, len(self.prompts))

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> Verdicts:
        """Make verdicts (N, 2) of preference pairs: the chosen response is desirable, the rejected one undesirable."""
        desirable = torch.tensor([True, False], device=pairs.responses.device).expand(len(pairs), 2)
        return cls(pairs.prompts, pairs.responses, desirable, pairs.weight)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Any) -> Verdicts:
        """Select rows."""
        weight = None if self.weight is None else self.weight[rows]
        parts = {"prompts": self.prompts[rows], "responses": self.responses[rows], "desirable": self.desirable[rows]}
        return unchecked(Verdicts, **parts, weight=weight)


def mismatched(verdicts: Verdicts) -> Tokens | None:
    """Choose for every row a response to *another* prompt, (N, 1, T); None if all rows have the same prompt.

    The choice is a function of the data alone, and it is spread over all verdicts and all G positions. The rows are
    grouped into blocks with the same prompt. Row j of a block gets a response of the row that comes j places after the
    end of the block. After the last block the count continues with the first one, and it skips the row's own block. The
    i-th row in this order gets response i mod G of that row.
    """
    blocks: dict[bytes, list[int]] = {}
    for row, key in enumerate(verdicts.prompts.keys()):
        blocks.setdefault(key, []).append(row)
    if len(blocks) < 2:
        return None
    order = [row for rows in blocks.values() for row in rows]
    number, group = verdicts.responses.shape[:2]
    source, which = torch.empty(number, dtype=torch.long), torch.empty(number, 1, dtype=torch.long)
    end = 0
    for rows in blocks.values():
        end += len(rows)
        for j, row in enumerate(rows):
            source[row] = order[(end + j % (number - len(rows))) % number]
            which[row, 0] = (end - len(rows) + j) % group
    return verdicts.responses[source.to(verdicts.responses.device)].take(which)


def check_verdicts(verdicts: Verdicts) -> None:
    """Raise `LabError` for fewer than two rows, and for verdicts of one kind only."""
    number = len(verdicts)
    if number < 2:
        raise LabError(f"KTO compares prompts with responses to other prompts and needs at least 2 rows, not {number}.")
    if bool(verdicts.desirable.all()) or not bool(verdicts.desirable.any()):
        kind = "desirable" if bool(verdicts.desirable.any()) else "undesirable"
        raise LabError(f"All verdicts are {kind}. KTO needs desirable and undesirable responses.")
