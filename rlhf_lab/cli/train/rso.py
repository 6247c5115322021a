"""`rlhf-lab train rso`: train on pairs from rejection sampling, with `algorithms/rso.py`.

The pairs are written to pairs/ before training, as a data set that TRL can read too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.batch import Pairs
from rlhf_lab.cli.train.dpo import pair_evaluation
from rlhf_lab.cli.train.model_card import pairs_card
from rlhf_lab.cli.train.pairs import save_pairs
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, SamplerSettings, refuse_reference
from rlhf_lab.errors import LabError, count_of, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.training import checkpoint, distributed


@dataclass(frozen=True, kw_only=True)
class TrainRSO(SamplerSettings):
    """Train a causal language model with RSO.

    Pairs are made of the model's responses, which are accepted by rejection sampling and labelled by a reward.
    """

    extends: ClassVar[bool] = False
    caches_reference: ClassVar[bool] = True

    rso: Annotated[RSO, Flat] = field(default_factory=RSO)
    reward: str | None = None
    """Reward: the folder of a trained reward model or ranker, or gold for the gold reward of the data's world. Not with
    the source direct."""
    reference: str | None = None
    """SFT model, which is the reference and gives the candidates. Default: the model itself before training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rso.source == "direct":
            refuse_unused(self, ["reward", "sampler"], "with the source direct, which samples no responses")
            refuse_reference(self, self.rso.loss, DPO(self.rso.loss).needs_reference)


def train_rso(settings: TrainRSO) -> History:
    """Run the command; see `runner.run`."""
    direct = settings.rso.source == "direct"
    if direct and settings.world is not None:
        raise LabError("The source direct needs labelled pairs. Give a file or a data set of pairs to --data.")
    if not direct and settings.reward is None:
        raise LabError(
            f"The source {settings.rso.source} needs a reward. Give --reward FOLDER, or --reward gold for a world."
        )
    return run(
        settings, "rso", "pairs" if direct else "prompts", _fit, rows=lambda job: len(job.data) if direct else None
    )


def _fit(job: Job) -> History:
    settings: RSO = job.settings.rso
    reference = job.reference()
    reward = None if settings.source == "direct" else job.reward()
    pairs = job.data.pairs if reward is None else _pairs(job, reference, reward)
    assert pairs is not None
    loss = DPO(settings.loss, settings.gamma if settings.gamma is not None else settings.beta)
    training = job.training(len(pairs))
    if reward is None:
        evaluation = pair_evaluation(job, reference if loss.needs_reference else None, loss)
    else:
        # The temperature and top_k of the settings are those of the candidates, which the reference samples.
        evaluation = job.reward_evaluation(job.policy, reward, None, settings.beta, reference)
    known = job.reference_rows(reference, pairs) if loss.needs_reference else None
    return dpo(job.policy, None if known is None else reference, pairs, loss, training, "rso", known, evaluation)


def _pairs(job: Job, reference: Policy, reward: Reward) -> Pairs:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    # Finished batches of samples are stored in samples/, so a resumed run does not sample them again.
    pairs, dropped = make_pairs(
        job.drawing(reference),
        reward,
        prompts,
        settings.rso,
        settings.seed,
        progress=settings.progress,
        folder=settings.out / "samples",
    )
    made, asked = count_of(len(pairs), "pair"), count_of(len(prompts), "prompt")
    job.say(f"{made} made from {asked}; {dropped:,} with equal responses dropped")
    record = {**checkpoint.plain(settings.rso), "reward": settings.reward, "seed": settings.seed}
    text = pairs_card(record, settings.model, settings.sources, job.said, len(pairs))
    distributed.on_main_process(lambda: save_pairs(pairs, job.tokenizer, settings.out / "pairs", text))
    return pairs
