"""Explorer of the Bradley–Terry model: which changes of a reward model its labels can detect, and which not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.errors import LabError, check_finite, check_positive, check_responses_axis
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider


def expected_label_loss(log_ref: Tensor, reward: Tensor, model: Tensor) -> float:
    r"""E[−log σ(r_φ(y_w) − r_φ(y_l))] when the labels follow `reward` and the model's reward is `model`.

    The expectation is a sum over all pairs of different responses, each as likely as π_ref draws it.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats.
        reward: r of the labeller, (K,).
        model: r_φ, (K,).

    Returns:
        nats a label. The minimum is at `reward` plus any constant.
    """
    pair = (log_ref.unsqueeze(-1) + log_ref.unsqueeze(-2)).exp() * exact.preference(reward)
    pair = pair * (1 - torch.eye(len(reward), dtype=pair.dtype))
    rows, columns = torch.broadcast_tensors(model.unsqueeze(-1), model.unsqueeze(-2))
    return float((pair * losses.bradley_terry(rows, columns)).sum() / pair.sum())


def bradley_terry_picture(
    log_ref: Tensor,
    reward: Tensor,
    offset: float,
    scale: float,
    first: int,
    second: int,
    responses: Sequence[str],
    beta: float = 0.5,
) -> Picture:
    """Draw a reward model r_φ = scale · r + offset beside the reward r, and the preferences that both predict.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats; the distribution of the labelled pairs and the reference of π*.
        reward: r(x, ·) that the labels follow, (K,).
        offset: f(x), added to every reward of the prompt.
        scale: c > 0, multiplies every reward.
        first: y_1 of the pair shown.
        second: y_2, another response.
        responses: K names.
        beta: β of the optimal policy of either reward.

    Returns:
        the picture; its numbers are p(y_1 ≻ y_2) under both, by how much the loss of r_φ exceeds its minimum, and the
        KL of its optimal policy to π*.

    Raises:
        LabError: a response that does not exist or is compared with itself; a scale that is not above zero.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    check_finite(reward, "reward")
    check_positive(scale, "scale")
    size = len(reward)
    if len(responses) != size:
        raise LabError(f"{len(responses)} names were given for {size} responses.")
    if not (0 <= first < size and 0 <= second < size) or first == second:
        raise LabError(f"({first}, {second}) is not a pair. Choose two different numbers from 0 to {size - 1}.")
    model = scale * reward + offset
    gap, model_gap = float(reward[first] - reward[second]), float(model[first] - model[second])
    p, model_p = (float(torch.sigmoid(torch.tensor(g, dtype=torch.float64))) for g in (gap, model_gap))
    worse = expected_label_loss(log_ref, reward, model) - expected_label_loss(log_ref, reward, reward)
    star = exact.optimal_policy(log_ref, reward, beta)
    moved = float(exact.kl(exact.optimal_policy(log_ref, model, beta), star))

    ends = float(reward.abs().max()) * 2 + 3
    bars = Panel(
        "Two rewards",
        Axis("response y", names=tuple(responses)),
        Axis("reward", -ends, ends),
        (Bars("optimal", reward, "r of the labeller"), Bars("policy", model, "c·r + f of the model")),
        width=1.2,
    )
    wide = 1.05 * 2 * float(reward.max() - reward.min()) + 0.5
    axis = torch.linspace(-wide, wide, 101, dtype=torch.float64)
    curve = Panel(
        "The labels that they predict",
        Axis("r(y₁) − r(y₂) [reward]", -wide, wide),
        Axis("p(y₁ ≻ y₂)", 0.0, 1.0),
        (
            Curve("reference", axis, torch.sigmoid(axis), "σ"),
            Points("policy", [min(max(model_gap, -wide), wide)], [model_p], "c·r + f", big=True),
            Points("optimal", [gap], [p], "r", big=True),
        ),
    )
    text = tr(
        "With f = {offset} and c = {scale:.3g}, “{first}” beats “{second}” in {p:.0%} of the labels; the model "
        "predicts {model_p:.0%}. {verdict}",
        offset=typeset(offset, "+.2f"), scale=scale, first=tr(responses[first]), second=tr(responses[second]), p=p,
        model_p=model_p, verdict=_verdict(worse, moved),
    )  # fmt: skip
    numbers = (
        Readout("p(y₁ ≻ y₂)", p),
        Readout("p of the model", model_p),
        Readout("loss above its minimum", max(worse, 0.0), "nats a label"),
        Readout("KL of its π* to π*", max(moved, 0.0), "nats"),
    )
    return Picture(text, (bars, curve), numbers)


def _verdict(worse: float, moved: float) -> str:
    if abs(worse) < 1e-9:
        return tr("No number of labels can distinguish the two rewards, and they have the same π*.")
    return tr(
        "The model's loss per label is {worse:.3f} nats above that of the labeller's reward, and the KL of its optimal "
        "policy to π* is {moved:.2f} nats.",
        worse=worse,
        moved=moved,
    )


def bradley_terry_explorer(
    log_ref: Tensor, reward: Tensor, responses: Sequence[str], beta: float = 0.5, offset: float = 1.0
) -> Explorer:
    """Show a reward model with sliders for an offset and a scale, and their effect on labels and π*.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats, K ≥ 2.
        reward: r(x, ·), (K,).
        responses: K names.
        beta: β of the π* compared.
        offset: f at the start, in [−3, 3].

    Raises:
        LabError: shapes or numbers of names that do not match; fewer than two responses.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    if log_ref.ndim != 1 or log_ref.shape != reward.shape or len(reward) < 2 or len(responses) != len(reward):
        raise LabError(
            f"log_ref {tuple(log_ref.shape)} and reward {tuple(reward.shape)} must both be (K,), K ≥ 2, with K names, "
            f"not {len(responses)}."
        )
    log_ref, reward = log_ref.detach().double(), reward.detach().double()
    size = len(responses)
    pairs = {
        (responses[i], " ≻ ", responses[j]): (i, j) for i in range(size - 1, -1, -1) for j in range(size) if i != j
    }

    def compute(offset: float, scale: float, pair: tuple[int, int]) -> Picture:
        return bradley_terry_picture(log_ref, reward, offset, scale, *pair, responses, beta)

    controls: dict[str, Slider | Choice] = {
        "offset": Slider(offset, -3.0, 3.0, "f, added to all [reward]", step=0.1),
        "scale": Slider(1.0, 0.25, 4.0, "c, times all", log=True),
        "pair": Choice(next(iter(pairs.values())), pairs, "y₁ ≻ y₂"),
    }
    return Explorer(compute, controls, "Reward and preference")
