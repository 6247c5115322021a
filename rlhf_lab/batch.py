"""Containers of a batch: `Tokens` (ids with a mask) and `Pairs` (preference pairs).

A batch is B prompts with G responses each. Prompts are `Tokens` of shape (B, P), and responses are `Tokens` of shape
(B, G, T). An arm of a bandit is a response of one token, a path through the token tree is a response of L tokens, and a
text is a response of up to T tokens. A preference pair has G = 2. Algorithms select rows, choose among the G responses,
and pass both to policies and rewards. They never look at the ids.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.errors import LabError, count_of, first_true_index

T = TypeVar("T")


def _as_rows(rows: Any, number: int) -> Any:
    """Return an integer as a slice of one row, which keeps the batch axis, and any other index unchanged.

    Raises:
        IndexError: the integer is out of range. A `for` loop over the rows needs this error to end.
    """
    if not isinstance(rows, int):
        return rows
    if not -number <= rows < number:
        raise IndexError(f"The batch has {count_of(number, 'row')}, so it has no row {rows}.")
    return slice(rows % number, rows % number + 1)


def row_key(sequences: Iterable[np.ndarray]) -> bytes:
    """Return a digest of the ids of a row's sequences, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in sequences:
        digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i8").tobytes())
    return digest.digest()


def unchecked(kind: type[T], **fields: Any) -> T:
    """Make a container without its checks, from parts of one that was checked already."""
    out = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(out, name, value)
    return out


def _tokens(ids: Tensor, mask: Tensor) -> Tokens:
    return unchecked(Tokens, ids=ids, mask=mask)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids, and a mask that marks which of them are tokens and which are padding.

    Attributes:
        ids: integer ids, shape (…, T). Where `mask` is False the id is 0 and has no meaning.
        mask: booleans, shape (…, T). It is True on a prefix of each row, so padding is at the right. A mask on the CPU
            is checked when it is made, and one on another device when a language model first reads it. Masks are made
            from lengths, never from ids, so the end token may have the same id as padding.
    """

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape:
            raise LabError(f"ids {tuple(self.ids.shape)} and mask {tuple(self.mask.shape)} differ in shape.")
        # Reading a mask on an accelerator would wait for it. A model that computes with the mask reads it in any case.
        if self.mask.device.type == "cpu" and self.mask.shape[-1:] > (1,):
            self.check_places()

    def check_places(self) -> None:
        """Raise `LabError` unless each row's tokens are at the left without a gap. This waits for the mask's device."""
        late = self.mask[..., 1:] & ~self.mask[..., :-1]
        if bool(late.any()):
            row = late.any(-1).nonzero()[0].tolist()
            raise LabError(
                f"The mask of row {', '.join(map(str, row)) or 0} is padded at the left or has a gap. "
                f"Pad at the right (tokenizer.padding_side = 'right'), or use from_lists."
            )

    @classmethod
    def full(cls, ids: Tensor) -> Tokens:
        """Make `Tokens` of sequences of equal length, without padding. `ids` has shape (…, T)."""
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]]) -> Tokens:
        """Convert nested lists of ids, which may have different lengths, to `Tokens`.

        B lists of ids give shape (B, T). B lists of G lists give (B, G, T).

        Raises:
            LabError: an empty list of rows, or prompts with different numbers of responses.
        """
        if len(rows) == 0:
            raise LabError("There are no rows. from_lists needs at least one sequence.")
        nested = any(len(row) > 0 and not isinstance(row[0], int) for row in rows)
        flat: list[Any] = [seq for row in rows for seq in row] if nested else list(rows)
        group = {len(row) for row in rows}
        if nested and len(group) != 1:
            raise LabError(f"Each prompt needs the same number of responses; found {sorted(group)}.")
        longest = max((len(seq) for seq in flat), default=0)
        ids = torch.zeros(len(flat), max(longest, 1), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, seq in enumerate(flat):
            ids[i, : len(seq)] = torch.as_tensor(list(seq), dtype=torch.long)
            mask[i, : len(seq)] = True
        lead = (len(rows), group.pop()) if nested else (len(rows),)
        return cls(ids.view(*lead, -1), mask.view(*lead, -1))

    @property
    def shape(self) -> torch.Size:
        """Shape of `ids`: (B, P) for prompts, (B, G, T) for responses."""
        return self.ids.shape

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each sequence, without padding, shape (…)."""
        return self.mask.sum(-1)

    @property
    def device(self) -> torch.device:
        """The device of the ids."""
        return self.ids.device

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: Any) -> Tokens:
        """Select rows along the first axis. An integer tensor may contain a row several times and in any order."""
        rows = _as_rows(rows, len(self))
        return _tokens(self.ids[rows], self.mask[rows])

    def take(self, index: Tensor) -> Tokens:
        """Select responses by `index` (B, m) along the G axis of (B, G, T). The result is (B, m, T)."""
        if self.ids.ndim != 3 or index.ndim != 2 or index.shape[0] != self.ids.shape[0]:
            raise LabError(
                f"take needs responses (B, G, T) and an index (B, m), not {tuple(self.shape)} and {tuple(index.shape)}."
            )
        index = index.to(self.ids.device).unsqueeze(-1).expand(-1, -1, self.ids.shape[-1])
        return _tokens(self.ids.gather(1, index), self.mask.gather(1, index))

    def repeat(self, times: int) -> Tokens:
        """Repeat each row `times` times; the copies of a row are adjacent. (B, …) gives (B·times, …)."""
        return _tokens(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def reshape(self, *lead: int) -> Tokens:
        """Give the same sequences other leading axes."""
        return _tokens(self.ids.reshape(*lead, self.shape[-1]), self.mask.reshape(*lead, self.shape[-1]))

    def pad_to(self, length: int) -> Tokens:
        """Pad the last axis to `length`, if it is shorter."""
        extra = length - self.shape[-1]
        if extra <= 0:
            return self
        pad = (0, extra)
        return _tokens(torch.nn.functional.pad(self.ids, pad), torch.nn.functional.pad(self.mask, pad))

    def trim(self) -> Tokens:
        """Remove places at the end of the last axis that are padding in every row. At least one place remains."""
        longest = max(int(self.lengths.max()), 1) if self.ids.numel() else 1
        return _tokens(self.ids[..., :longest], self.mask[..., :longest])

    def equal(self, other: Tokens) -> Tensor:
        """Whether each sequence is equal to that of `other`, which has the same leading shape; shape (…)."""
        length = max(self.shape[-1], other.shape[-1])
        a, b = self.pad_to(length), other.pad_to(length)
        same_token = torch.where(a.mask, a.ids, -1) == torch.where(b.mask, b.ids, -1)
        return same_token.all(-1)

    def to(self, device: torch.device | str) -> Tokens:
        """Move the tokens to `device`."""
        return _tokens(self.ids.to(device), self.mask.to(device))

    def keys(self) -> list[bytes]:
        """Return a digest of each row: equal ones for rows of the same sequences, whatever their padding."""
        rows = self.reshape(len(self), math.prod(self.shape[1:-1]))
        ids, lengths = rows.ids.cpu().numpy(), rows.lengths.cpu().numpy()
        return [row_key(one[:n] for one, n in zip(*row, strict=True)) for row in zip(ids, lengths, strict=True)]

    def tolist(self) -> list[Any]:
        """Convert to nested lists of ids without padding, the inverse of `from_lists`."""
        if self.ids.ndim == 1:
            return self.ids[self.mask].tolist()
        return [Tokens(i, m).tolist() for i, m in zip(self.ids, self.mask, strict=True)]


def cat(parts: Sequence[Tokens], dim: int = 0) -> Tokens:
    """Concatenate tokens along a leading axis, and pad the shorter ones.

    Args:
        parts: tokens with equal leading axes, except for the axis `dim`.
        dim: 0 for prompts, 1 for responses.

    Raises:
        LabError: no parts; parts whose other leading axes differ, or that have no axis `dim` before the tokens.
    """
    if len(parts) == 0:
        raise LabError("There is nothing to concatenate. cat needs at least one part.")
    leads = [part.shape[:-1] for part in parts]
    fits = all(len(lead) == len(leads[0]) and 0 <= dim < len(lead) for lead in leads)
    if not fits or len({(*lead[:dim], *lead[dim + 1 :]) for lead in leads}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts[:8])
        raise LabError(
            f"Tokens of shapes {shapes} cannot be concatenated along axis {dim}. Their other axes must be equal."
        )
    length = max(part.shape[-1] for part in parts)
    parts = [part.pad_to(length) for part in parts]
    return Tokens(torch.cat([p.ids for p in parts], dim), torch.cat([p.mask for p in parts], dim))


def check_weight(weight: Tensor | None, number: int) -> None:
    """Raise `LabError` unless `weight` is None or `number` finite numbers, none negative and not all zero.

    The values are not read on an accelerator, because that would wait for it.
    """
    if weight is None:
        return
    if weight.shape != (number,):
        raise LabError(f"weight has shape {tuple(weight.shape)}, expected ({number},).")
    if weight.device.type != "cpu" or number == 0:
        return
    bad = ~((weight >= 0) & (weight < torch.inf))
    if bool(bad.any()):
        raise LabError(
            f"weight is {weight[bad][0].item()} at {first_true_index(bad)}. Weights must be finite and not negative."
        )
    if not bool((weight > 0).any()):
        raise LabError("All weights are zero, so there is nothing to average over. Leave out rows without weight.")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preference pairs: N prompts with G = 2 responses each, the chosen one first.

    Attributes:
        prompts: (N, P).
        responses: (N, 2, T). `[:, 0]` is the chosen response, and `[:, 1]` the rejected one.
        weight: (N,) weights of the pairs in the mean loss, none negative and not all 0; None for equal weights. If all
            pairs of a finite world are enumerated, the weights are their probabilities.
    """

    prompts: Tokens
    responses: Tokens
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.responses.shape[:-1] != (len(self.prompts), 2):
            raise LabError(
                f"A pair is one prompt with two responses. {count_of(len(self.prompts), 'prompt')} came with "
                f"responses of shape {tuple(self.responses.shape)}; expected ({len(self.prompts)}, 2, T)."
            )
        check_weight(self.weight, len(self.prompts))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Any) -> Pairs:
        """Select rows. An integer keeps the batch axis, as in `Tokens`."""
        rows = _as_rows(rows, len(self))
        weight = None if self.weight is None else self.weight[rows]
        # The weights of a batch may all be zero, which is not allowed for the whole data set.
        return unchecked(Pairs, prompts=self.prompts[rows], responses=self.responses[rows], weight=weight)

    def to(self, device: torch.device | str) -> Pairs:
        """Move the pairs to `device`."""
        weight = None if self.weight is None else self.weight.to(device)
        return unchecked(Pairs, prompts=self.prompts.to(device), responses=self.responses.to(device), weight=weight)


def cat_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Concatenate pairs in order. The result has weights only if every part has weights.

    Raises:
        LabError: no parts.
    """
    weights = [part.weight for part in parts]
    return Pairs(
        cat([part.prompts for part in parts]),
        cat([part.responses for part in parts]),
        torch.cat([w for w in weights if w is not None]) if all(w is not None for w in weights) else None,
    )


def pick_pairs(prompts: Tokens, responses: Tokens, index: Tensor) -> tuple[Pairs, int]:
    """Turn positions of the chosen and the rejected response into `Pairs`, without pairs of equal responses.

    Args:
        prompts: (B, P).
        responses: (B, G, T).
        index: (B, n, 2) positions along G, chosen first (see `rlhf_lab.preferences`).

    Returns:
        the pairs, and the number of pairs that were dropped because both responses were the same sequence. Such a
        pair contains no preference: its difference of log-ratios is zero for every policy.
    """
    number = index.shape[1]
    both = responses.take(index.flatten(1)).reshape(len(prompts) * number, 2)
    pairs = Pairs(prompts.repeat(number), both)
    same = Tokens(both.ids[:, 0], both.mask[:, 0]).equal(Tokens(both.ids[:, 1], both.mask[:, 1]))
    return pairs[~same], int(same.sum())
