r"""RSO (statistical rejection sampling optimisation): three sources of preference pairs, and a loss fitted to them.

    direct            the labelled pairs D_hf as they are
    sft-sample-rank   pairs from π_sft, labelled by the reward model
    rso-sample-rank   pairs from π_r ∝ π_sft exp(r/β), by statistical rejection sampling, labelled by the reward model

Liu et al. 2023, sections 3.2 and 3.3; lecture, "Preference Data Distribution – Choices". The fit is `dpo.py` with the
loss sigmoid-norm, hinge-norm or hinge at slope γ. The paper's settings: 64 candidates at temperature 0.7, 8 of them
accepted, 4 first-round pairs, β = 0.5, γ = 0.05.

Left out on purpose: the paper's algorithm merges equal candidates. On a language model equal strings are rare. On a
bandit merging would discard how often the reference gives each response, and the accepted responses would not follow
π_r. Here equal samples stay separate candidates. A pair of two equal responses contains no information and is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab import preferences, sampling
from rlhf_lab.algorithms.cached_rollouts import Shard, claim_output, from_pairs, in_shards, to_pairs
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo
from rlhf_lab.algorithms.on_policy import sample
from rlhf_lab.batch import Pairs, Tokens, cat_pairs, pick_pairs
from rlhf_lab.errors import Count, LabError, Positive, Temperature, check_finite, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Evaluation, Training, seeded

PairSource = Literal["direct", "sft-sample-rank", "rso-sample-rank"]


@dataclass(frozen=True)
class RSO:
    """Settings of RSO: where the pairs come from, and which loss is fitted."""

    source: PairSource = "rso-sample-rank"
    """Where the preference pairs come from; see the list at the head of the module."""
    beta: Positive = 0.5
    """β of π_r, in the sampler."""
    gamma: Positive | None = None
    """γ, the slope of the loss (the paper: 0.05). None: β, so that the optimum of the fit is π* of the same β."""
    loss: PairLoss = "sigmoid-norm"
    """sigmoid-norm, hinge-norm, hinge, or any other pair loss of DPO except cdpo and robust."""
    candidates: Count = 64
    """Responses sampled from the reference for each prompt."""
    accepted: Count = 8
    """How many candidates are accepted (sft-sample-rank: how many are sampled). Even; for a tournament 2, 4, 8, …"""
    temperature: Temperature = 1.0
    """Sampling temperature (the paper: 0.7). At 1 the accepted responses follow π_r of the reference itself."""
    top_k: Count | None = None
    """Sample among the k likeliest tokens only (the paper: 40)."""
    pairing: preferences.Pairing = "first-round"
    """How accepted responses are paired."""
    labels: preferences.Labels = "sampled"
    """sampled: drawn from σ(r_1 − r_2), from which the fit recovers r. hard: always the better response; the fit has no
    finite optimum."""
    sampling_batch_size: Count | None = None
    """Prompts whose candidates are sampled and scored together. It changes the memory needed and the samples drawn.
    None: 256; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.loss in ("cdpo", "robust"):
            raise LabError(f"The loss {self.loss} needs label_smoothing, which rso does not have. Use sigmoid-norm.")
        sampling_only = ["candidates", "accepted", "temperature", "top_k", "pairing", "labels", "sampling_batch_size"]
        if self.source == "direct":
            unused = sampling_only if self.gamma is None else [*sampling_only, "beta"]
            refuse_unused(self, unused, "with the source direct, which draws no responses")
        elif self.source == "sft-sample-rank":
            refuse_unused(self, ["candidates"], "with the source sft-sample-rank, which draws as many as accepted says")
        rejecting = self.source == "rso-sample-rank"
        if self.accepted % 2 or (rejecting and self.accepted > self.candidates):
            most = f" and at most candidates ({self.candidates})" if rejecting else ""
            raise LabError(f"accepted must be even{most}, not {self.accepted}.")
        if self.pairing == "tournament" and self.accepted & (self.accepted - 1):
            raise LabError(
                f"accepted must be 2, 4, 8, … with pairing='tournament', in which winners meet until one is left, "
                f"not {self.accepted}. Change it, or set pairing='first-round'."
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
    """Sample candidates, accept some of them, pair them, and label the pairs.

    Args:
        reference: π_sft, from which the candidates are sampled.
        reward: r_ψ, used for acceptance and for labels.
        prompts: (N, P); each gives `accepted`/2 pairs (a tournament: accepted − 1).
        settings: those of RSO; `source` may not be direct.
        seed: of all random numbers here.
        batch_size: prompts sampled together, in place of the settings' `sampling_batch_size`.
        progress: show a progress bar.
        folder: where the pairs of each finished shard of prompts are stored and looked up.

    Returns:
        the pairs, and the number of pairs dropped because both responses were equal.

    Raises:
        LabError: a score that is not finite; no pair of different responses; no prompts.
    """
    if settings.source == "direct":
        raise LabError("The source 'direct' makes no pairs. Pass the labelled pairs to `rso` as direct=….")

    def make(start: int, stop: int) -> Shard:
        generator = seeded(seed, Stream.RSO_CANDIDATES, start, device=reference.device)
        return _pairs_of_shard(reference, reward, prompts[start:stop], settings, generator)

    size = batch_size or settings.sampling_batch_size or 256
    shards = in_shards(make, len(prompts), size, folder, "pairs", progress)
    pairs = cat_pairs([to_pairs(shard) for shard in shards])
    dropped = int(sum(int(shard["dropped"]) for shard in shards))
    if len(pairs) == 0:
        raise LabError(
            f"All pairs ({dropped:,}) had two equal responses. Raise beta or temperature, or give more prompts."
        )
    return pairs, dropped


@torch.no_grad()
def _pairs_of_shard(reference: Policy, reward: Reward, x: Tokens, settings: RSO, generator: torch.Generator) -> Shard:
    if settings.source == "rso-sample-rank":
        y = sample(reference, x, settings.candidates, generator, settings.temperature, settings.top_k)
        scores = check_finite(reward(x, y), "reward")
        accepted = sampling.rejection_sample(scores, settings.accepted, settings.beta, generator)
        y, scores = y.take(accepted), scores.gather(1, accepted)
    else:
        y = sample(reference, x, settings.accepted, generator, settings.temperature, settings.top_k)
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
    training: Training = Training(),
    direct: Pairs | None = None,
    name: str = "rso",
    reference_log_probs: Tensor | None = None,
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Make preference pairs as `settings.source` says and train `policy` in place on them.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_sft, frozen.
        reward: r_ψ, scores (B, G). The source `direct` does not use it.
        prompts: (N, P). Repeat them for more pairs.
        settings: those of RSO.
        training: of the fit.
        direct: the labelled pairs D_hf, for the source `direct`.
        name: text of the progress bar.
        reference_log_probs: of the `direct` pairs, (N, 2), if they are known already (see `dpo`).
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`.

    Returns:
        the history of the fit, see `dpo`.

    Raises:
        LabError: the source is `direct` and its pairs are missing; as `make_pairs` and `dpo`.
    """
    if settings.source == "direct" and direct is None:
        raise LabError("The source 'direct' needs the labelled pairs: pass direct=….")
    loss = DPO(settings.loss, settings.gamma if settings.gamma is not None else settings.beta)
    with claim_output(name, training, settings) as out:
        pairs = direct
        if settings.source != "direct":
            folder = None if out is None else out / "samples"
            progress, reference_log_probs = training.progress, None
            pairs, _ = make_pairs(reference, reward, prompts, settings, training.seed, progress=progress, folder=folder)
        assert pairs is not None
        return dpo(policy, reference, pairs, loss, training, name, reference_log_probs, evaluation)
