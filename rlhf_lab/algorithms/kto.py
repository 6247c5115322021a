r"""KTO: fit the policy to verdicts on single responses, desirable or not, with no pairs.

    ℒ_KTO(θ) = E_{(x,y)~D} [ λ_y − v(x,y) ],   v = λ_D σ(β (k − z)) if y is desirable, else λ_U σ(β (z − k)),
    k = log π_θ(y|x)/π_ref(y|x),   z = max(0, mean of log π_θ(y'|x)/π_ref(y'|x))

Ethayarajh et al. 2024, equation 8. y' is a response given to *another* prompt: z stands for KL(π_θ‖π_ref), cheaply
and with a bias (it is no sample of π_θ), and carries no gradient. Here every row has one fixed such y' (see
`mismatched`), never of its own prompt, so that the reference computes it once. In a step z is the mean over the rows
of the batch, weighted as the loss is, whatever the batch's mixture of verdicts. Where
all rows have one prompt there is no other, and z is 0. What the loss aims at is said at `losses.kto`: not π*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.batch import Pairs, Tokens, check_weight, unchecked
from rlhf_lab.errors import LabError, Positive, check_settings
from rlhf_lab.policies.base import Policy
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Loop, Training, distributed


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Responses with a verdict each.

    Attributes:
        prompts: (N, P).
        responses: (N, G, T).
        desirable: (N, G) booleans.
        weight: (N,) weights of the loss's mean, none negative and not all 0, or None for equal ones.
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
                f"prompts, responses {tuple(self.responses.shape)} and {self.desirable.dtype} "
                f"{tuple(self.desirable.shape)}."
            )
        check_weight(self.weight, len(self.prompts))

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> Verdicts:
        """Both responses of each pair, the chosen one desirable: (N, 2)."""
        desirable = torch.tensor([True, False], device=pairs.responses.device).expand(len(pairs), 2)
        return cls(pairs.prompts, pairs.responses, desirable, pairs.weight)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Any) -> Verdicts:
        """The verdicts of these rows."""
        weight = None if self.weight is None else self.weight[rows]
        parts = {"prompts": self.prompts[rows], "responses": self.responses[rows], "desirable": self.desirable[rows]}
        return unchecked(Verdicts, **parts, weight=weight)


@dataclass(frozen=True)
class KTO:
    """Settings of KTO."""

    beta: Positive = 0.1
    """β, the slope in the log-ratio."""
    desirable_weight: Positive = 1.0
    """λ_D. The paper keeps λ_D n_D / (λ_U n_U) between 1 and 4/3."""
    undesirable_weight: Positive = 1.0
    """λ_U."""

    def __post_init__(self) -> None:
        check_settings(self)


def mismatched(verdicts: Verdicts) -> Tokens | None:
    """A response to *another* prompt for every row, (N, 1, T), over all verdicts and all G places alike.

    Rows are put in the order of their prompts, rows of one prompt beside each other in the order of the data. The row
    at place j of its prompt's block is given a response of the row j places behind that block's end, counted round
    and never into the block itself. Of that row's G responses it is number i mod G for the i-th row in this order. So
    it is a function of the data alone. None where all rows have one prompt.
    """
    blocks: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(verdicts.prompts.tolist()):
        blocks.setdefault(tuple(ids), []).append(row)
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


def kto_loss(
    policy: Policy,
    batch: Verdicts,
    log_ref: Tensor,
    reference_point: Tensor | float,
    settings: KTO,
    reference_point_doubt: Tensor | float = 0.0,
) -> tuple[Tensor, dict]:
    """The mean loss of a batch of verdicts, and what a reader wants to watch.

    Args:
        policy: π_θ.
        batch: B rows of G verdicts.
        log_ref: log π_ref of the responses, (B, G).
        reference_point: z, before it is cut at 0.
        settings: β, λ_D and λ_U.
        reference_point_doubt: how far rounding may have moved z, which broadcasts as z does; see `rlhf_lab.rounding`.

    Returns:
        the loss, a scalar; and accuracy: how often k lies on the verdict's side of z. Where k equals z within
        rounding, as at the start, it counts ½.
    """
    log_prob = policy.log_prob(batch.prompts, batch.responses)
    log_ratio = log_prob - log_ref.to(log_prob.device)
    desirable = batch.desirable.to(log_ratio.device)
    loss = losses.kto(
        log_ratio, desirable, reference_point, settings.beta, settings.desirable_weight, settings.undesirable_weight
    )
    z = torch.as_tensor(reference_point, device=log_ratio.device).clamp(min=0)
    doubt = rounding(1.0, log_prob, log_ref.to(log_prob.device), units=MANY) + reference_point_doubt
    above = wins(log_ratio, z, doubt)
    right = torch.where(desirable, above, 1 - above)
    return losses.weighted_mean(loss.mean(-1), batch.weight), {
        "accuracy": losses.weighted_mean(right.mean(-1), batch.weight)
    }


def kto(
    policy: Policy,
    reference: Policy,
    verdicts: Verdicts,
    settings: KTO = KTO(),
    training: Training = Training(),
    name: str = "kto",
    reference_log_probs: Tensor | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on verdicts.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        verdicts: N rows, two at least; `Verdicts.from_pairs` makes them of preference pairs.
        settings: KTO's own.
        training: steps, batch size in rows, rate, seed.
        name: text of the progress bar.
        reference_log_probs: log π_ref of the responses, (N, G), if they are known already. Those of the mismatched
            responses are computed all the same.

    Returns:
        the history: loss, accuracy, and reference_point z in nats, before it is cut at 0.

    Raises:
        LabError: fewer than two rows; verdicts all of one kind; a loss that is not finite.
    """
    number = len(verdicts)
    if number < 2:
        raise LabError(f"KTO pairs prompts with other prompts' responses: {number} rows are too few, give at least 2.")
    if bool(verdicts.desirable.all()) or not bool(verdicts.desirable.any()):
        kind = "desirable" if bool(verdicts.desirable.any()) else "undesirable"
        raise LabError(f"All verdicts are {kind}: there is nothing to tell apart. KTO needs both kinds.")
    known = reference_log_probs
    if known is not None and known.shape != verdicts.desirable.shape:
        raise LabError(
            f"reference_log_probs has shape {tuple(known.shape)}; these verdicts need "
            f"{tuple(verdicts.desirable.shape)}."
        )
    other = mismatched(verdicts)

    def loss_of(batch: Verdicts, log_ref: Tensor, z: Tensor, doubt: Tensor) -> tuple[Tensor, dict]:
        return kto_loss(policy, batch, log_ref, z, settings, doubt)

    training.check_rows(name, number)
    loop = Loop(name, policy, training, settings)
    if loop.start < training.steps:
        with loop.autocast():
            if known is None:
                known = _log_probs(reference, verdicts.prompts, verdicts.responses, training)
            known_other = None if other is None else _log_probs(reference, verdicts.prompts, other, training)
    with loop:
        for _, _generator in loop:
            rows = loop.rows(number)
            batch = verdicts[rows]
            with torch.no_grad(), loop.autocast():
                assert known is not None
                if other is None or known_other is None:
                    z = doubt = known.new_zeros(())
                else:
                    here = distributed.map_rows(policy.log_prob, batch.prompts, other[rows])
                    there = known_other[rows.to(here.device)]
                    z = losses.weighted_mean((here - there).squeeze(-1), batch.weight)
                    doubt = losses.weighted_mean(rounding(1.0, here, there, units=MANY).squeeze(-1), batch.weight)
            # One number for the whole batch, given to each of its rows: parts of a batch share it.
            each, off = (number.expand(len(rows)).unsqueeze(-1) for number in (z, doubt))
            loop.update(loss_of, (batch, known[rows.to(known.device)], each, off), batch.weight, reference_point=z)
    return loop.history


@torch.no_grad()
def _log_probs(reference: Policy, prompts: Tokens, responses: Tokens, training: Training) -> Tensor:
    """log π_ref of (N, G) responses, in batches."""
    starts = range(0, len(prompts), training.batch_size)
    shown = len(starts) > 1 and distributed.shows_progress(training.progress)
    parts = []
    for start in tqdm(starts, desc="reference", leave=False, disable=not shown):
        rows = slice(start, start + training.batch_size)
        parts.append(distributed.map_rows(reference.log_prob, prompts[rows], responses[rows]))
    return torch.cat(parts)
