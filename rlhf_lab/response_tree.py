"""The finite set of all responses of up to L tokens, with a number for each response and each prefix.

The numbers are rows of tables. A bandit is the tree of depth one. The prompts of a finite world are single tokens with
ids from V on. A table uses such an id as a row, and a transformer uses it as an ordinary token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError

LARGEST = 50_000_000
"""The maximum number of responses that are enumerated. The ids of more responses would take gigabytes."""


@dataclass(frozen=True)
class ResponseTree:
    """All responses of up to `depth` tokens.

    Attributes:
        vocab_size: V, the number of response tokens, ids 0 … V−1.
        depth: L, the length of the longest response in tokens.
        has_end: if True, token V−1 can end a response early. If False, every response has exactly L tokens.
    """

    vocab_size: int
    depth: int
    has_end: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.has_end else 1
        if self.vocab_size < least or self.depth < 1:
            raise LabError(f"A tree needs vocab_size ≥ {least} and depth ≥ 1, not {self.vocab_size} and {self.depth}.")
        if self.num_responses > LARGEST:
            raise LabError(
                f"{self.num_responses:,} responses are too many to enumerate (limit {LARGEST:,}). Choose a smaller "
                f"vocab_size ({self.vocab_size}) or depth ({self.depth})."
            )

    @property
    def branching(self) -> int:
        """c, the number of tokens after which a response continues."""
        return self.vocab_size - self.has_end

    @property
    def end_token(self) -> int | None:
        """The id that ends a response, or None."""
        return self.vocab_size - 1 if self.has_end else None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The numbers (prefixes, next tokens) of every depth."""
        return [(self.branching**t, self.vocab_size) for t in range(self.depth)]

    @property
    def num_responses(self) -> int:
        """K: V^L without an end token, and Σ_{t<L−1} c^t + c^{L−1} V with one."""
        early = sum(self.branching**t for t in range(self.depth - 1)) if self.has_end else 0
        last: int = self.branching ** (self.depth - 1)
        return early + last * self.vocab_size

    def prompts(self, number: int) -> Tokens:
        """The prompts 0 … number−1 as tokens, (X, 1)."""
        return Tokens.full(self.vocab_size + torch.arange(number).unsqueeze(-1))

    def prompt_index(self, prompts: Tokens) -> Tensor:
        """The row of each prompt, (B,).

        Raises:
            LabError: an id that does not belong to a prompt.
        """
        index = prompts.ids[:, 0] - self.vocab_size
        if len(index) and int(index.min()) < 0:
            raise LabError(f"Prompt id {int(prompts.ids[:, 0].min())} is a response token (below {self.vocab_size}).")
        return index

    @cached_property
    def responses(self) -> Tokens:
        """Every response, (K, L), ordered by length: first the end token alone, last the responses of L tokens."""
        ids, mask = [], []
        prefix = torch.zeros(1, 0, dtype=torch.long)
        for t in range(self.depth):
            last = t + 1 == self.depth
            if self.has_end and not last:
                row = torch.zeros(len(prefix), self.depth, dtype=torch.long)
                row[:, :t], row[:, t] = prefix, self.vocab_size - 1
                ids.append(row)
                mask.append((torch.arange(self.depth) <= t).expand(len(row), -1))
            grow = self.vocab_size if last else self.branching
            token = torch.arange(grow).repeat(len(prefix)).unsqueeze(-1)
            prefix = torch.cat([prefix.repeat_interleave(grow, 0), token], -1)
        ids.append(prefix)
        mask.append(torch.ones_like(prefix, dtype=torch.bool))
        return Tokens(torch.cat(ids), torch.cat(mask))

    def nodes(self, responses: Tokens) -> Tensor:
        """The prefix before each token, as a row of the table of its depth, (…, T); 0 at padding."""
        step = torch.where(responses.mask & (responses.ids < self.branching), responses.ids, 0)
        node = torch.zeros_like(responses.ids)
        for t in range(1, responses.shape[-1]):
            node[..., t] = node[..., t - 1] * self.branching + step[..., t - 1]
        return node * responses.mask

    def index(self, responses: Tokens) -> Tensor:
        """The row of each response in the attribute `responses`, shape (…).

        Raises:
            LabError: a sequence that is not a response of this tree.
        """
        self.check(responses)
        lengths, nodes = responses.lengths, self.nodes(responses)
        at = (lengths - 1).unsqueeze(-1)
        node = nodes.gather(-1, at).squeeze(-1)
        token = responses.ids.gather(-1, at).squeeze(-1)
        counts = torch.tensor([self.branching**t for t in range(self.depth)], device=lengths.device)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])[:-1] if self.has_end else counts * 0
        full = lengths == self.depth
        return offsets[lengths - 1] + torch.where(full, node * self.vocab_size + token, node)

    def check(self, responses: Tokens) -> None:
        """Raise `LabError` unless every sequence is a response of this tree."""
        ids, mask = responses.ids, responses.mask
        if responses.shape[-1] > self.depth and bool(mask[..., self.depth :].any()):
            raise LabError(f"A response is longer than the tree's depth {self.depth}.")
        if bool((((ids < 0) | (ids >= self.vocab_size)) & mask).any()):
            raise LabError(f"A response contains an id outside 0 … {self.vocab_size - 1}.")
        lengths = responses.lengths
        if not self.has_end and bool((lengths == self.depth).all()):
            return  # the usual case, which occurs in every step of a training
        if bool((lengths == 0).any()):
            raise LabError("A response is empty. It needs at least one token.")
        goes_on = mask[..., 1:] & (ids[..., :-1] == self.end_token) if self.has_end else mask[..., :0]
        if bool(goes_on.any()):
            raise LabError(f"A response continues after its end token {self.end_token}.")
        short = lengths < self.depth
        ended = ids.gather(-1, (lengths - 1).unsqueeze(-1)).squeeze(-1) == self.end_token if self.has_end else ~short
        if bool((short & ~ended).any()):
            raise LabError(
                f"A response is shorter than {self.depth} tokens"
                + (" without its end token." if self.has_end else ", and this tree has no end token.")
            )
