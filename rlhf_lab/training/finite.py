"""Search for values that are not finite: in a loss, in gradients, and in weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rlhf_lab.training import distributed


def gradients_are_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether all gradients are finite; with FSDP on every process."""
    grads = [distributed.local_tensor(p.grad) for p in parameters if p.grad is not None]
    # The sum needs no temporary tensor, and it is not finite if a value is not. It can also overflow, so the values are
    # then checked one by one.
    bad = not all(bool(torch.isfinite(g.sum())) or bool(torch.isfinite(g).all()) for g in grads)
    return not (distributed.any_rank(bad) if distributed.uses_fsdp() else bad)


@torch.no_grad()
def weights_are_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether all weights of all processes are finite."""
    fine = torch.stack([torch.isfinite(distributed.local_tensor(p)).all() for p in parameters]).all()
    return not distributed.any_rank(not bool(fine))


@torch.no_grad()
def bad_rows(function: Any, batch: tuple[Any, ...], first: int) -> list[int]:
    """Return the positions in the step's batch of the rows whose loss is not finite; [] if they cannot be determined.

    Args:
        function: `(*batch) → (loss, metrics)`. Anything else than a function gives [].
        batch: its arguments, with the same number of rows.
        first: position of the first row in the step's batch.
    """
    if not batch or not callable(function):
        return []
    bad = []
    try:
        for row in range(len(batch[0])):
            if not bool(torch.isfinite(function(*(b[torch.tensor([row])] for b in batch))[0])):
                bad.append(first + row)
    except Exception:  # the loss that is not finite is reported, and not an error of this search
        return []
    return bad


def rows_in_words(rows: list[int]) -> str:
    """Return text such as "row 3" or "rows 3, 17, 40", with at most eight rows."""
    shown = ", ".join(map(str, rows[:8])) + (f" … ({len(rows)} in all)" if len(rows) > 8 else "")
    return f"row{'s' * (len(rows) > 1)} {shown}"
