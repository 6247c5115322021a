r"""Direct preference optimisation (DPO): fit the policy to preferences, without a reward model and without sampling.

    ℒ_DPO(θ) = −E_{(x, y_w, y_l)~D} [ log σ( β log π_θ(y_w|x)/π_ref(y_w|x) − β log π_θ(y_l|x)/π_ref(y_l|x) ) ]

Rafailov et al. 2023, equation 7; lecture, "DPO Objective Function" and "DPO Outline". Every other pair loss of
`rlhf_lab.losses` can take its place (`pair_losses.py`); the docstrings there say where each of them converges to. The
reference's log-probabilities are computed when a step first needs a row, or passed in. Left out on purpose: everything
that is not the loss, which `rlhf_lab.training` contains.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.algorithms.pair_losses import DPO, PairLoss
from rlhf_lab.algorithms.reward_shift import RewardShift
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.reference_cache import ReferenceRows
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Evaluation, Loop, Metrics, Training, distributed
from rlhf_lab.training.evaluation import once
from rlhf_lab.training.rows import reference_rows

__all__ = ["DPO", "PairLoss", "dpo", "held_out_pairs", "pair_loss", "reference_log_probs"]


def pair_loss(
    policy: Policy, batch: Pairs, log_ref: Tensor | None, settings: DPO, reward_shift: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return the mean loss of a batch of pairs, and metrics.

    Args:
        policy: π_θ.
        batch: B pairs.
        log_ref: log π_ref of both responses, (B, 2); None where the loss needs none.
        settings: the loss.
        reward_shift: δ of BCO, a scalar or (B,), if it is a running mean.

    Returns:
        the loss, a scalar; and metrics without gradient: accuracy (a margin that is 0 within rounding counts ½) and
        margin of the implicit reward; chosen_log_ratio and rejected_log_ratio (chosen_log_prob and rejected_log_prob
        where there is no log_ref).
    """
    log_prob = policy.log_prob(batch.prompts, batch.responses)
    length = batch.responses.lengths.to(log_prob.device)
    # Numbers that were passed in, for example from a file, may be on another device.
    log_ref = None if log_ref is None else log_ref.to(log_prob.device)
    value = log_prob - log_ref if log_ref is not None and settings.needs_reference else log_prob
    shift = None if reward_shift is None else reward_shift.to(value)
    loss = settings(*value.unbind(-1), *length.unbind(-1), chosen_log_prob=log_prob[..., 0], reward_shift=shift)
    with torch.no_grad():
        better, worse = settings.implicit_reward(value.detach(), length).unbind(-1)
        margin = better - worse
        # How far rounding in log π and log π_ref may move the margin, through the link of the loss.
        off = rounding(1.0, log_prob, *([] if log_ref is None else [log_ref]), units=MANY)
        high, low = (settings.implicit_reward(value.detach() + sign * off, length) for sign in (1, -1))
        doubt = (high - low).sum(-1) / 2
        shown = value.detach() if log_ref is None or settings.needs_reference else value.detach() - log_ref
        kind = "log_prob" if log_ref is None else "log_ratio"
        watched: Metrics = {
            "accuracy": losses.weighted_mean(wins(better, worse, doubt), batch.weight),
            "margin": losses.weighted_mean(margin, batch.weight),
            f"chosen_{kind}": losses.weighted_mean(shown[..., 0], batch.weight),
            f"rejected_{kind}": losses.weighted_mean(shown[..., 1], batch.weight),
        }
    return losses.weighted_mean(loss, batch.weight), watched


def held_out_pairs(
    policy: Policy,
    reference: Policy | None,
    pairs: Pairs,
    settings: DPO = DPO(),
    reference_log_probs: Tensor | ReferenceRows | None = None,
    shift: RewardShift | None = None,
) -> Evaluation:
    """Measure loss, accuracy and margin on pairs that are not trained on, see `pair_loss`. Arguments as of `dpo`."""
    _check_reference(reference, pairs, settings, reference_log_probs)

    def log_ref_of(rows: Tensor) -> Tensor:
        if reference_log_probs is not None:
            return reference_log_probs[rows.to(reference_log_probs.device)]
        assert reference is not None
        return distributed.map_rows(reference.log_prob, pairs.prompts[rows], pairs.responses[rows])

    known = once(log_ref_of)

    def batch(rows: Tensor) -> tuple[Pairs | Tensor, ...]:
        return (pairs[rows], known(rows)) if settings.needs_reference else (pairs[rows],)

    def measure(batch: Pairs, log_ref: Tensor | None = None) -> tuple[Tensor, Metrics]:
        return pair_loss(policy, batch, log_ref, settings, None if shift is None else shift.value)

    return Evaluation(len(pairs), batch, measure)


def dpo(
    policy: Policy,
    reference: Policy | None,
    pairs: Pairs | Callable[[torch.Generator], Pairs],
    settings: DPO = DPO(),
    training: Training = Training(),
    name: str = "dpo",
    reference_log_probs: Tensor | ReferenceRows | None = None,
    evaluation: Evaluation | None = None,
    shift: RewardShift | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on preference pairs.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen. It may be None if the loss has no reference or `reference_log_probs` are given.
        pairs: N labelled pairs; or a function that makes new pairs from a step's generator.
        settings: the loss.
        training: steps, batch size in pairs, rate, seed.
        name: text of the progress bar.
        reference_log_probs: log π_ref of both responses of every pair, (N, 2), if they are already known; or
            `ReferenceRows`, which compute them when a step first needs a row. None: such rows of `reference`.
        evaluation: what is measured on held-out data, for example `held_out_pairs`.
        shift: the running mean of BCO with `shift_decay`, if it is shared with `held_out_pairs`. It costs one more
            forward pass of the policy in each step.

    Returns:
        the history: loss, accuracy (how often the implicit reward ranks the pair as labelled, ties ½), margin (mean
        difference of implicit rewards), chosen and rejected log-ratios, in nats (log-probabilities where the loss has
        no reference); reward_shift, the running δ of BCO.

    Raises:
        LabError: no pairs; no reference where the loss needs one; a loss that is not finite.
    """
    _check_reference(reference, pairs, settings, reference_log_probs)

    def loss_of(
        batch: Pairs, log_ref: Tensor | None = None, reward_shift: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        return pair_loss(policy, batch, log_ref, settings, reward_shift)

    shift = settings.new_shift(policy.device) if shift is None else shift
    module = policy if shift is None else nn.ModuleDict({"policy": policy, "shift": shift})
    training.check_rows(name, len(pairs) if isinstance(pairs, Pairs) else None)
    loop = Loop(name, module, training, settings, evaluation)
    dataset = pairs if isinstance(pairs, Pairs) else None
    known = reference_log_probs
    if dataset is not None and settings.needs_reference and known is None:
        known = reference_rows(reference, dataset, training, loop.autocast)
    with loop:
        for _, generator in loop:
            if dataset is not None:
                rows = loop.rows(len(dataset))
                batch, log_ref = dataset[rows], None if known is None else known[rows.to(known.device)]
            else:
                batch, log_ref = pairs(generator), None  # type: ignore[operator]
                if settings.needs_reference:
                    assert reference is not None
                    with loop.autocast():
                        log_ref = _reference_of(reference, batch, max(len(batch), 1))
            given, seen = ((batch,) if log_ref is None else (batch, log_ref)), dict[str, Tensor]()
            if shift is not None and log_ref is not None:
                with loop.autocast():
                    seen["reward_shift"] = shift.update(_mean_reward(policy, batch, log_ref, settings.beta))
                given = *given, seen["reward_shift"].expand(len(batch))
            loop.update(loss_of, given, **seen)
    return loop.history


def _mean_reward(policy: Policy, batch: Pairs, log_ref: Tensor, beta: float) -> Tensor:
    """The mean of (r̂_w + r̂_l)/2 over a batch, a scalar. All parts of the batch use the same number."""
    log_prob = distributed.map_rows(policy.log_prob, batch.prompts, batch.responses)
    reward = beta * (log_prob - log_ref.to(log_prob.device)).mean(-1)
    return losses.weighted_mean(reward, batch.weight)


def _check_reference(
    reference: Policy | None,
    pairs: Pairs | Callable[[torch.Generator], Pairs],
    settings: DPO,
    log_ref: Tensor | ReferenceRows | None,
) -> None:
    if isinstance(pairs, Pairs) and len(pairs) == 0:
        raise LabError("There are no pairs to train on.")
    if log_ref is not None:
        if not isinstance(pairs, Pairs):
            raise LabError(
                "reference_log_probs are of given pairs; pairs made during training have none. Leave it out."
            )
        if log_ref.shape != (len(pairs), 2):
            raise LabError(
                f"reference_log_probs has shape {tuple(log_ref.shape)}; {len(pairs)} pairs need ({len(pairs)}, 2)."
            )
    elif reference is None and settings.needs_reference:
        raise LabError(f"{settings.loss} needs a reference: pass the policy that training starts from.")


@torch.no_grad()
def reference_log_probs(reference: Policy, pairs: Pairs, batch_size: int, progress: bool = False) -> Tensor:
    """Compute log π_ref of both responses of every pair, (N, 2)."""
    if len(pairs) == 0:
        raise LabError("There are no pairs to train on.")
    starts = tqdm(
        range(0, len(pairs), batch_size),
        desc="reference",
        leave=False,
        disable=not distributed.shows_progress(progress) or len(pairs) <= batch_size,
    )
    parts = [pairs[start : start + batch_size] for start in starts]
    return torch.cat([reference.log_prob(part.prompts, part.responses) for part in parts])


_reference_of = reference_log_probs
"""The same function under a name that the argument of `dpo` does not hide."""
