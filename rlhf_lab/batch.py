"""The (B, G) rule as two small containers: `Tokens` and `Pairs`.

A batch is B prompts with G responses each. Prompts are `Tokens` of shape (B, P), responses `Tokens` of shape
(B, G, T). A bandit's arm is a response of one token, a path through the token tree one of L tokens, a text one
of up to T tokens; a preference pair is G = 2. Algorithms take rows, pick among the G responses and hand both on
to policies and rewards. They never look at an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, first_true_index

T = TypeVar("T")


def _as_rows(rows: Any, number: int) -> Any:
    """An integer as the slice of one row, so that the batch axis stays; anything else as it is.

    Out of range it is an `IndexError`, which is also what ends a `for` loop over rows.
    """
    if not isinstance(rows, int):
        return rows
    if not -number <= rows < number:
        raise IndexError(f"Row {rows} of a batch of {number}.")
    return slice(rows % number, rows % number + 1)


def unchecked(kind: type[T], **fields: Any) -> T:
    """A container made of parts of one that was checked already."""
    out = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(out, name, value)
    return out


def _tokens(ids: Tensor, mask: Tensor) -> Tokens:
    return unchecked(Tokens, ids=ids, mask=mask)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids and the mask that says which of them count.

    Attributes:
        ids: integer ids, shape (…, T). Where `mask` is False the id is 0 and means nothing.
        mask: booleans, shape (…, T). True on a prefix of each row: sequences lie at the left. A mask on the CPU is
            checked when it is made, one on another device when a language model first reads it. Masks come from
            lengths, never from ids, so an end token may share its id with padding.
    """

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape:
            raise LabError(f"ids {tuple(self.ids.shape)} and mask {tuple(self.mask.shape)} differ in shape.")
        # Looking at a mask on a device would wait for it. A model that computes with it looks at it in any case.
        if self.mask.device.type == "cpu" and self.mask.shape[-1:] > (1,):
            self.check_places()

    def check_places(self) -> None:
        """Raise `LabError` unless each row's tokens lie at the left, without a gap. It waits for the mask's device."""
        late = self.mask[..., 1:] & ~self.mask[..., :-1]
        if bool(late.any()):
            row = late.any(-1).nonzero()[0].tolist()
            raise LabError(
                f"The mask of row {', '.join(map(str, row)) or 0} is padded at the left or has a gap. "
                f"Tokens lie at the left: pad at the right (tokenizer.padding_side = 'right'), or use from_lists."
            )

    @classmethod
    def full(cls, ids: Tensor) -> Tokens:
        """Every token counts: sequences of one length. `ids` has shape (…, T)."""
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]]) -> Tokens:
        """Convert nested lists of ids, which may have different lengths, to `Tokens`.

        B lists of ids give shape (B, T). B lists of G lists give (B, G, T).

        Raises:
            LabError: an empty list of rows, or prompts with different numbers of responses.
        """
        if len(rows) == 0:
            raise LabError("No rows: from_lists needs at least one sequence.")
        nested = any(len(row) > 0 and not isinstance(row[0], int) for row in rows)
        flat: list[Any] = [seq for row in rows for seq in row] if nested else list(rows)  # type: ignore[misc]
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
        """Number of tokens that count, shape (…)."""
        return self.mask.sum(-1)

    @property
    def device(self) -> torch.device:
        """Where the ids lie."""
        return self.ids.device

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: Any) -> Tokens:
        """Rows along the first axis; with an integer tensor, rows in that order, repeats allowed."""
        rows = _as_rows(rows, len(self))
        return _tokens(self.ids[rows], self.mask[rows])

    def take(self, index: Tensor) -> Tokens:
        """Pick responses by `index` (B, m) along the G axis of (B, G, T); gives (B, m, T)."""
        if self.ids.ndim != 3 or index.ndim != 2 or index.shape[0] != self.ids.shape[0]:
            raise LabError(
                f"take needs responses (B, G, T) and an index (B, m), not {tuple(self.shape)} and {tuple(index.shape)}."
            )
        index = index.to(self.ids.device).unsqueeze(-1).expand(-1, -1, self.ids.shape[-1])
        return _tokens(self.ids.gather(1, index), self.mask.gather(1, index))

    def repeat(self, times: int) -> Tokens:
        """Each row `times` times in a row: (B, …) gives (B·times, …)."""
        return _tokens(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def reshape(self, *lead: int) -> Tokens:
        """The same sequences under other leading axes."""
        return _tokens(self.ids.reshape(*lead, self.shape[-1]), self.mask.reshape(*lead, self.shape[-1]))

    def pad_to(self, length: int) -> Tokens:
        """Widen the last axis to `length` with places that do not count."""
        extra = length - self.shape[-1]
        if extra <= 0:
            return self
        pad = (0, extra)
        return _tokens(torch.nn.functional.pad(self.ids, pad), torch.nn.functional.pad(self.mask, pad))

    def trim(self) -> Tokens:
        """Drop places at the end of the last axis that count in no row (one place at least is kept)."""
        longest = max(int(self.lengths.max()), 1) if self.ids.numel() else 1
        return _tokens(self.ids[..., :longest], self.mask[..., :longest])

    def equal(self, other: Tokens) -> Tensor:
        """Where two sets of sequences of the same leading shape are the same sequence, shape (…)."""
        length = max(self.shape[-1], other.shape[-1])
        a, b = self.pad_to(length), other.pad_to(length)
        same_token = torch.where(a.mask, a.ids, -1) == torch.where(b.mask, b.ids, -1)
        return same_token.all(-1)

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on `device`."""
        return _tokens(self.ids.to(device), self.mask.to(device))

    def tolist(self) -> list[Any]:
        """Convert to nested lists of ids without padding, the inverse of `from_lists`."""
        if self.ids.ndim == 1:
            return self.ids[self.mask].tolist()
        return [Tokens(i, m).tolist() for i, m in zip(self.ids, self.mask, strict=True)]


def cat(parts: Sequence[Tokens], dim: int = 0) -> Tokens:
    """Join tokens along a leading axis, widening the shorter ones. `dim` 0 is prompts, 1 is responses.

    Raises:
        LabError: no parts; parts whose other leading axes differ, or that have no axis `dim` before the tokens.
    """
    if len(parts) == 0:
        raise LabError("There is nothing to join: cat needs at least one part.")
    leads = [part.shape[:-1] for part in parts]
    fits = all(len(lead) == len(leads[0]) and 0 <= dim < len(lead) for lead in leads)
    if not fits or len({(*lead[:dim], *lead[dim + 1 :]) for lead in leads}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts[:8])
        raise LabError(f"Tokens of shapes {shapes} cannot be joined along axis {dim}: their other axes must be equal.")
    length = max(part.shape[-1] for part in parts)
    parts = [part.pad_to(length) for part in parts]
    return Tokens(torch.cat([p.ids for p in parts], dim), torch.cat([p.mask for p in parts], dim))


def check_weight(weight: Tensor | None, number: int) -> None:
    """Raise `LabError` unless `weight` is None or holds `number` finite numbers, none negative and not all zero.

    The values of a tensor on a device are not read, since that would wait for it.
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
            f"weight holds {weight[bad][0].item()} at {first_true_index(bad)}. Weights must be finite and not negative."
        )
    if not bool((weight > 0).any()):
        raise LabError("All weights are zero, so that there is nothing to average over. Leave out rows without weight.")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preference pairs: N prompts with G = 2 responses each, the chosen one first.

    Attributes:
        prompts: (N, P).
        responses: (N, 2, T); `[:, 0]` is chosen, `[:, 1]` rejected.
        weight: (N,) weights of the loss's mean, none negative and not all 0, or None for equal ones. Population
            probabilities go here when all pairs of a finite world are enumerated.
    """

    prompts: Tokens
    responses: Tokens
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.responses.shape[:-1] != (len(self.prompts), 2):
            raise LabError(
                f"A pair is one prompt with two responses: {len(self.prompts)} prompts came with responses of "
                f"shape {tuple(self.responses.shape)}, expected ({len(self.prompts)}, 2, T)."
            )
        check_weight(self.weight, len(self.prompts))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Any) -> Pairs:
        """The pairs of these rows; an integer keeps the batch axis, as in `Tokens`."""
        rows = _as_rows(rows, len(self))
        weight = None if self.weight is None else self.weight[rows]
        # A batch may be of rows without weight alone, which its whole may not.
        return unchecked(Pairs, prompts=self.prompts[rows], responses=self.responses[rows], weight=weight)

    def to(self, device: torch.device | str) -> Pairs:
        """The same pairs on `device`."""
        weight = None if self.weight is None else self.weight.to(device)
        return unchecked(Pairs, prompts=self.prompts.to(device), responses=self.responses.to(device), weight=weight)


def cat_pairs(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of `parts`, in order. Weights are kept only if every part has them.

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
    """Turn winner–loser indices among G responses into `Pairs`, dropping pairs of equal responses.

    Args:
        prompts: (B, P).
        responses: (B, G, T).
        index: (B, n, 2) positions along G, chosen first (see `rlhf_lab.preferences`).

    Returns:
        the pairs, and how many were dropped because both responses were the same sequence: such a pair says
        nothing, and its log-ratio difference is zero whatever the policy.
    """
    number = index.shape[1]
    both = responses.take(index.flatten(1)).reshape(len(prompts) * number, 2)
    pairs = Pairs(prompts.repeat(number), both)
    same = Tokens(both.ids[:, 0], both.mask[:, 0]).equal(Tokens(both.ids[:, 1], both.mask[:, 1]))
    return pairs[~same], int(same.sum())
