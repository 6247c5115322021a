r"""RSO: where preference pairs come from, and the loss fitted to them.

    direct            the labelled pairs D_hf as they are
    sft-sample-rank   pairs from π_sft, labelled by the reward model
    rso-sample-rank   pairs from π_r ∝ π_sft exp(r/β), by statistical rejection sampling, labelled by the reward model

Liu et al. 2023, sections 3.2 and 3.3; lecture, "Preference Data Distribution – Choices". The fit is DPO's file with
sigmoid-norm, hinge-norm or hinge at slope γ. The paper's numbers: 64 candidates at temperature 0.7, 8 accepted,
4 first-round pairs, β = 0.5, γ = 0.05.

One trap of the paper's algorithm is left out on purpose: it merges equal candidates. On a language model equal
strings are rare. On a bandit merging would throw away how often the reference gives each response, and the accepted
ones would not follow π_r. Here candidates are draws; a pair of equal responses says nothing and is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab import preferences, sampling
from rlhf_lab.algorithms.cached_rollouts import Block, ask, from_pairs, in_blocks, own, to_pairs
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.errors import Count, LabError, Positive, Temperature, check_finite, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded

Source = Literal["direct", "sft-sample-rank", "rso-sample-rank"]


@dataclass(frozen=True)
class RSO:
    """Where pairs come from, and which loss is fitted."""

    source: Source = "rso-sample-rank"
    """See the module's head."""
    beta: Positive = 0.5
    """β of π_r, in the sampler."""
    gamma: Positive | None = None
    """γ, the loss's slope (the paper: 0.05). None: β, so that the fit aims at π* of the same β."""
    loss: PairLoss = "sigmoid-norm"
    """sigmoid-norm, hinge-norm, hinge (and any other of DPO's file but cdpo and robust)."""
    candidates: Count = 64
    """Draws from the reference for each prompt."""
    accepted: Count = 8
    """How many of them are accepted (sft-sample-rank: taken as they come). Even; for a tournament 2, 4, 8, …"""
    temperature: Temperature = 1.0
    """Of sampling candidates (the paper: 0.7). At 1 the accepted ones follow π_r of the reference itself."""
    top_k: Count | None = None
    """Draw candidates among the k likeliest tokens alone (the paper: 40)."""
    pairing: preferences.Pairing = "first-round"
    """How accepted responses are paired."""
    labels: preferences.Labels = "sampled"
    """sampled: drawn from σ(r_1 − r_2), which the fit inverts to r. hard: the better one always; no finite fit."""
    sampling_batch_size: Count | None = None
    """Prompts whose candidates are drawn and scored at a time. Fewer need less memory, and are other draws.
    None: 256; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.loss in ("cdpo", "robust"):
            raise LabError(f"The loss {self.loss} needs a label_smoothing, which rso has not. Take sigmoid-norm.")
        drawing = ["candidates", "accepted", "temperature", "top_k", "pairing", "labels", "sampling_batch_size"]
        if self.source == "direct":
            unused = drawing if self.gamma is None else [*drawing, "beta"]
            refuse_unused(self, unused, "with the source direct, which draws no responses")
        elif self.source == "sft-sample-rank":
            refuse_unused(self, ["candidates"], "with the source sft-sample-rank, which draws as many as accepted says")
        rejecting = self.source == "rso-sample-rank"
        if self.accepted % 2 or (rejecting and self.accepted > self.candidates):
            most = f" and at most candidates ({self.candidates})" if rejecting else ""
            raise LabError(f"accepted must be even{most}, not {self.accepted}.")
        if self.pairing == "tournament" and self.accepted & (self.accepted - 1):
            raise LabError(
                f"accepted must be 2, 4, 8, … with pairing='tournament', in which winners meet again until one is "
                f"left, not {self.accepted}. Change it, or take pairing='first-round'."
            )


def make_pairs(
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RSO,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    folder: Path | None = None,
) -> tuple[Pairs, int]:
    """Sample, accept, pair and label.

    Args:
        reference: π_sft, whose draws are the candidates.
        reward: r_ψ, which accepts and labels.
        prompts: (N, P); each gives `accepted`/2 pairs (a tournament: accepted − 1).
        settings: RSO's own; `source` may not be direct.
        seed: of everything drawn here.
        batch_size: prompts at a time, in place of the settings' `sampling_batch_size`.
        progress: show a progress bar.
        folder: where the pairs of each finished block of prompts are kept, and looked for first.

    Returns:
        the pairs, and how many were dropped because both responses were equal.

    Raises:
        LabError: a score that is not finite; no pair of different responses; no prompts.
    """
    if settings.source == "direct":
        raise LabError("The source 'direct' makes no pairs: pass the labelled ones.")
    blocks = in_blocks(
        lambda start, stop: _pairs_of_block(
            reference,
            reward,
            prompts[start:stop],
            settings,
            seeded(seed, Stream.RSO_CANDIDATES, start, device=reference.device),
        ),
        len(prompts),
        batch_size or settings.sampling_batch_size or 256,
        folder,
        "pairs",
        progress,
    )
    pairs = cat_pairs([to_pairs(block) for block in blocks])
    dropped = int(sum(int(block["dropped"]) for block in blocks))
    if len(pairs) == 0:
        raise LabError(f"All {dropped} pairs were of equal responses. Raise beta or temperature, or draw more prompts.")
    return pairs, dropped


@torch.no_grad()
def _pairs_of_block(reference: Policy, reward: Reward, x: Tokens, settings: RSO, generator: torch.Generator) -> Block:
    if settings.source == "rso-sample-rank":
        y = ask(reference, x, settings.candidates, generator, settings.temperature, settings.top_k)
        scores = check_finite(reward(x, y), "reward")
        accepted = sampling.rejection_sample(scores, settings.accepted, settings.beta, generator)
        y, scores = y.take(accepted), scores.gather(1, accepted)
    else:
        y = ask(reference, x, settings.accepted, generator, settings.temperature, settings.top_k)
        scores = check_finite(reward(x, y), "reward")
    index = preferences.make_pairs(scores, generator, settings.pairing, settings.labels)
    pairs, equal = pick_pairs(x, y, index)
    return from_pairs(pairs) | {"dropped": torch.tensor(equal)}


def rso(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RSO = RSO(),
    training: Training = Training(),  # noqa: B008
    direct: Pairs | None = None,
    name: str = "rso",
    reference_log_probs: Tensor | None = None,
    claimed: bool = False,
) -> list[dict[str, float]]:
    """Make the pairs of `settings.source` and train `policy` in place on them.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_sft, frozen.
        reward: r_ψ, scores (B, G). Not used by `direct`.
        prompts: (N, P). Repeat them for more pairs.
        settings: RSO's own.
        training: of the fit.
        direct: the labelled pairs D_hf, for the source `direct`.
        name: what the progress bar says.
        reference_log_probs: of the `direct` pairs, (N, 2), if they are known already (see `dpo`).
        claimed: the caller has taken the output folder (see `checkpoint.claim`).

    Returns:
        the history of the fit, see `dpo`.

    Raises:
        LabError: `direct` pairs missing where they are the source; as `make_pairs` and `dpo`.
    """
    if settings.source == "direct" and direct is None:
        raise LabError("The source 'direct' needs the labelled pairs: pass direct=….")
    loss = DPO(settings.loss, settings.gamma if settings.gamma is not None else settings.beta)
    out = own(name, training, settings, claimed)
    pairs = direct
    if settings.source != "direct":
        folder = None if out is None else out / "samples"
        progress, reference_log_probs = training.progress, None
        pairs, _ = make_pairs(reference, reward, prompts, settings, training.seed, progress=progress, folder=folder)
    assert pairs is not None
    return dpo(policy, reference, pairs, loss, training, name, reference_log_probs, claimed=True)
