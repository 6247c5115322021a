"""`rlhf-lab train ranker`: fit the pairwise ranker of RSO with `algorithms/ranker.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rlhf_lab.algorithms.ranker import Ranker, held_out_pairs, ranker
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings
from rlhf_lab.rewards.ranker import PairwiseRanker
from rlhf_lab.training import Evaluation

READS = (
    "`model/` can be loaded with `rlhf_lab.rewards.ranker.PairwiseRanker.from_pretrained`. Give this folder to "
    "--reward, which then scores each response against baseline responses of the model that is trained."
)


@dataclass(frozen=True, kw_only=True)
class TrainRanker(PairSettings):
    """Fit a pairwise ranker, which reads both responses of a pair together, to preference pairs."""

    ranker: Annotated[Ranker, Flat] = field(default_factory=Ranker)


def train_ranker(settings: TrainRanker) -> History:
    """Run the command; see `runner.run`."""
    trained: list[PairwiseRanker] = []

    def fit(job: Job) -> History:
        assert job.data.pairs is not None
        # The body is that of the policy, because the command needs no policy beside the ranker.
        made = PairwiseRanker(job.policy.model, tokenizer=job.tokenizer, seed=settings.seed, copied=False)
        made.adapter_dropout = settings.lora_dropout
        trained.append(made)
        pairs = job.data.pairs

        def measure(held: Data) -> Evaluation:
            assert held.pairs is not None
            return held_out_pairs(trained[0], held.pairs)

        training, evaluation = job.training(len(pairs)), job.evaluation_of(measure)
        return ranker(trained[0], pairs, settings.ranker, training, evaluation=evaluation)

    def save(job: Job, folder: Path) -> str:
        trained[0].save_pretrained(folder)
        return READS

    return run(settings, "ranker", "pairs", fit, save)
