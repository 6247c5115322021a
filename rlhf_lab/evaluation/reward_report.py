r"""A report on a reward model or a pairwise ranker, from labelled pairs that it was not trained on.

    margin m = r(x, y_w) − r(x, y_l), or logit ρ(x, y_w, y_l) averaged over both orders;   P(y_w ≻ y_l) = σ(m)

- Accuracy is the share of pairs with m > 0, where m = 0 counts ½.
- A model is calibrated if a share c of the pairs that it orders with confidence c = σ(|m|) is ordered correctly. The
  expected calibration error (Naeini et al. 2015; Guo et al. 2017) is Σ_b n_b/n |accuracy_b − confidence_b| over bins
  of confidence. It is positive even for a calibrated model, because the accuracies are estimates. The report therefore
  contains the error that a calibrated model with the same confidences would have.
- Accuracy by the difference of lengths shows whether a model prefers long responses: it is then more accurate on pairs
  in which the chosen response is the longer one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import LabError, check_finite, count_of
from rlhf_lab.evaluation.sampled import Estimate, over_prompts
from rlhf_lab.evaluation.win_rate import proportion
from rlhf_lab.intervals import Interval, aligned, format_number
from rlhf_lab.randomness import Stream
from rlhf_lab.rewards.ranker import PairwiseRanker
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import seeded

BINS = 10
"""Number of bins of equal width for confidences from ½ to 1."""
DRAWS = 200
"""Number of simulated outcomes of a calibrated model."""


@dataclass(frozen=True)
class AccuracyGroup:
    """The pairs of a bin of confidence, or of a range of length differences.

    Attributes:
        name: of the bin or range.
        pairs: their number.
        accuracy: the share that is ordered correctly.
        confidence: their mean confidence σ(|m|).
    """

    name: str
    pairs: int
    accuracy: Interval
    confidence: float


@dataclass(frozen=True)
class RewardReport:
    """The numbers of a reward model or ranker on labelled pairs."""

    pairs: int
    """Number of pairs."""
    prompts: int
    """Number of different prompts. Intervals treat the pairs of a prompt as correlated."""
    accuracy: Interval
    """The share of pairs that are ordered correctly, with its 95% interval (Wilson)."""
    loss: Estimate
    """Mean of −log σ(m), in nats. A model that knows nothing has log 2 = 0.693."""
    margin: Estimate
    """Mean of m."""
    calibration: tuple[AccuracyGroup, ...]
    """The reliability table: bins of confidence that contain pairs."""
    calibration_error: float
    """Expected calibration error."""
    calibrated_error: tuple[float, float]
    """The calibration error that a calibrated model would have: its mean, and its 95% quantile."""
    lengths: tuple[AccuracyGroup, ...]
    """Accuracy by the number of tokens of the chosen response minus that of the rejected one."""
    prefers_longer: Interval | None
    """The share of pairs of different lengths in which the model prefers the longer response."""
    chosen_longer: Interval | None
    """The share of these pairs in which the chosen response is the longer one."""

    def table(self) -> str:
        """The report as tables of plain text."""
        rows = [
            ("accuracy", f"{self.accuracy:percent}"),
            ("loss (nats)", f"{Interval(self.loss.mean, *self.loss.interval())}"),
            ("margin", f"{Interval(self.margin.mean, *self.margin.interval())}"),
            ("expected calibration error", f"{self.calibration_error:.3f}"),
            (
                "  of a calibrated model",
                f"{self.calibrated_error[0]:.3f}, at most {self.calibrated_error[1]:.3f} in 95%",
            ),
        ]
        if self.prefers_longer is not None and self.chosen_longer is not None:
            rows += [
                ("prefers the longer response", f"{self.prefers_longer:percent}"),
                ("the longer response is chosen", f"{self.chosen_longer:percent}"),
            ]
        lines = aligned(rows)
        lines += _group_table("confidence", self.calibration)
        lines += _group_table("length of chosen − rejected", self.lengths)
        pairs, prompts = count_of(self.pairs, "pair"), count_of(self.prompts, "prompt")
        return "\n".join([*lines, "", f"{pairs} of {prompts}; 95% intervals over prompts"])

    def to_json(self) -> str:
        """The report as JSON. Intervals and estimates are dictionaries."""

        def groups(found: tuple[AccuracyGroup, ...]) -> list[dict[str, Any]]:
            return [{**asdict(group), "accuracy": group.accuracy._asdict()} for group in found]

        out: dict[str, Any] = {"pairs": self.pairs, "prompts": self.prompts}
        for name in ("accuracy", "prefers_longer", "chosen_longer"):
            found = getattr(self, name)
            out[name] = None if found is None else found._asdict()
        for name in ("loss", "margin"):
            estimate: Estimate = getattr(self, name)
            low, high = estimate.interval()
            out[name] = {"mean": estimate.mean, "error": estimate.error, "low": low, "high": high}
        out |= {
            "calibration_error": self.calibration_error,
            "calibrated_error": {"mean": self.calibrated_error[0], "quantile_95": self.calibrated_error[1]},
            "calibration": groups(self.calibration),
            "lengths": groups(self.lengths),
        }
        return json.dumps(out, indent=2, ensure_ascii=False) + "\n"


def _group_table(title: str, groups: tuple[AccuracyGroup, ...]) -> list[str]:
    rows = [(title, "pairs", "confidence", "accuracy")]
    for group in groups:
        confidence = format_number(group.confidence, "percent,1")
        rows.append((group.name, f"{group.pairs:,}", confidence, f"{group.accuracy:percent}"))
    return ["", *aligned(rows, right=(1, 2))]


def reward_report(
    model: nn.Module, pairs: Pairs, batch_size: int = 32, seed: int = 0, progress: bool = False
) -> RewardReport:
    """Measure how well a model orders labelled pairs.

    Args:
        model: a reward `r(prompts, responses) → (B, G)`, or a `PairwiseRanker`.
        pairs: N labelled pairs of at least two prompts.
        batch_size: pairs per batch.
        seed: of the simulated outcomes of a calibrated model.
        progress: show a progress bar.

    Raises:
        LabError: fewer than two prompts, or a score that is not finite.
    """
    prompts = [str(ids) for ids in pairs.prompts.tolist()]
    if len(set(prompts)) < 2:
        raise LabError("An interval over prompts needs pairs of at least two different prompts.")
    margin, correct = _margins(model, pairs, batch_size, progress)
    longer = (pairs.responses.lengths[:, 0] - pairs.responses.lengths[:, 1]).cpu()
    confidence = margin.abs().sigmoid()
    places = ((confidence - 0.5) * (2 * BINS)).long().clamp(max=BINS - 1)

    def group(name: str, rows: Tensor) -> AccuracyGroup:
        chosen = rows.nonzero()[:, 0].tolist()
        accuracy = proportion([float(correct[i]) for i in chosen], [prompts[i] for i in chosen])
        return AccuracyGroup(name, len(chosen), accuracy, float(confidence[rows].mean()))

    edges = [0.5 + i / (2 * BINS) for i in range(BINS + 1)]
    bins = [(f"{edges[i]:.0%} to {edges[i + 1]:.0%}", places == i) for i in range(BINS)]
    unequal = longer != 0
    # The model prefers the longer response if it is right and the longer one was chosen, or wrong and it was not.
    by_length = torch.where(longer > 0, correct, 1 - correct)[unequal].tolist()
    asked = [prompt for prompt, differs in zip(prompts, unequal.tolist(), strict=True) if differs]
    means = [
        over_prompts(*_by_prompt(values, prompts)) for values in (losses.bradley_terry(margin, 0 * margin), margin)
    ]
    return RewardReport(
        pairs=len(pairs),
        prompts=len(set(prompts)),
        accuracy=proportion(correct.tolist(), prompts),
        loss=means[0],
        margin=means[1],
        calibration=tuple(group(name, rows) for name, rows in bins if bool(rows.any())),
        calibration_error=_calibration_error(correct, confidence, places),
        calibrated_error=_calibrated_error(confidence, places, seed),
        lengths=tuple(group(name, rows) for name, rows in _length_ranges(longer) if bool(rows.any())),
        prefers_longer=proportion(by_length, asked) if asked else None,
        chosen_longer=proportion((longer[unequal] > 0).double().tolist(), asked) if asked else None,
    )


@torch.no_grad()
def _margins(model: nn.Module, pairs: Pairs, batch_size: int, progress: bool) -> tuple[Tensor, Tensor]:
    """m of every pair, and whether it is ordered correctly (1, 0, or ½ for a tie within rounding), (N,) each."""
    margins, correct = [], []
    starts = range(0, len(pairs), batch_size)
    for start in tqdm(starts, desc="pairs", leave=False, disable=not progress):
        part = pairs[start : start + batch_size]
        if isinstance(model, PairwiseRanker):
            first, second = (part.responses.take(torch.full((len(part), 1), i)) for i in (0, 1))
            logits = (model.logits(part.prompts, *order) for order in ((first, second), (second, first)))
            chosen, rejected = (value.squeeze(-1) / 2 for value in logits)
        else:
            chosen, rejected = model(part.prompts, part.responses).unbind(-1)
        correct.append(wins(chosen, rejected, rounding(chosen, rejected, units=MANY)).cpu().double())
        margins.append(check_finite((chosen - rejected).cpu().double(), "reward"))
    return torch.cat(margins), torch.cat(correct)


def _by_prompt(values: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """The sums of the values of each prompt, and the numbers of its pairs."""
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([number[prompt] for prompt in prompts])
    return torch.bincount(index, values), torch.bincount(index).double()


def _calibration_error(correct: Tensor, confidence: Tensor, places: Tensor) -> float:
    return float(torch.bincount(places, correct - confidence, BINS).abs().sum() / len(correct))


def _calibrated_error(confidence: Tensor, places: Tensor, seed: int) -> tuple[float, float]:
    """The mean and the 95% quantile of the calibration error of a model whose confidences are true."""
    generator = seeded(seed, Stream.CALIBRATION)
    errors = torch.tensor(
        [
            _calibration_error(
                (torch.rand(len(confidence), generator=generator, dtype=torch.float64) < confidence).double(),
                confidence,
                places,
            )
            for _ in range(DRAWS)
        ],
        dtype=torch.float64,
    )
    return float(errors.mean()), float(errors.quantile(0.95))


def _length_ranges(longer: Tensor) -> list[tuple[str, Tensor]]:
    """Five ranges of the length difference. The limit between short and long is the median of its size."""
    sizes = longer.abs()[longer != 0]
    limit = int(sizes.median()) if len(sizes) else 0
    return [
        (f"−{limit + 1} tokens or less", longer < -limit),
        ("−1" if limit == 1 else f"−{limit} to −1", (longer < 0) & (longer >= -limit)),
        ("0", longer == 0),
        ("1" if limit == 1 else f"1 to {limit}", (longer > 0) & (longer <= limit)),
        (f"{limit + 1} or more", longer > limit),
    ]
