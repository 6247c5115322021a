"""Exercises of notebook 06: DPO's gradient."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dpo_gradient(logits: Tensor, log_ref: Tensor, chosen: int, rejected: int, beta: float) -> Tensor:
    """∇ of one pair's DPO loss with respect to the K logits of a table, without autograd."""
    log_ratio = torch.log_softmax(logits, -1) - log_ref
    weight = torch.sigmoid(beta * (log_ratio[rejected] - log_ratio[chosen]))
    gradient = torch.zeros_like(logits)
    gradient[chosen] = -beta * weight
    gradient[rejected] = beta * weight
    return gradient


def chosen_speed(chosen_score: Tensor, rejected_score: Tensor, beta: float, weight: float) -> Tensor:
    """The rate of change of log π_θ(y_w) along gradient descent on one pair's loss: a single number."""
    return beta * weight * (chosen_score @ (chosen_score - rejected_score))


def response_log_prob(token_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) of every response, (B, G), from its tokens', (B, G, T)."""
    return torch.where(mask, token_log_probs, 0.0).sum(-1)


def _mistaken(logits: Tensor, log_ref: Tensor, chosen: int, rejected: int, beta: float, mistake: str) -> Tensor:
    """`dpo_gradient` with one mistake."""
    log_policy = torch.log_softmax(logits, -1)
    log_ratio = log_policy if mistake == "reference" else log_policy - log_ref
    margin = beta * (log_ratio[chosen] - log_ratio[rejected])
    weight = torch.sigmoid(margin if mistake == "weight" else -margin)
    if mistake == "none":
        weight = torch.ones_like(weight)
    size = len(logits)
    up, down = (one_hot(torch.tensor(y), size).to(logits) for y in (chosen, rejected))
    if mistake == "half":
        down = log_policy.exp()
    factor = {"beta": 1.0, "sign": -beta}.get(mistake, beta)
    return -factor * weight * (up - down)


_SCORES = {"chosen_score": _double([1.0, -0.5, 0.2]), "rejected_score": _double([1.8, -1.0, 0.1])}

EXERCISES = (
    Exercise(
        key="nb06.dpo_gradient",
        title="The gradient by hand",
        objective="write the gradient of one pair's loss without autograd, with its sign, its β and its weight",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "three responses, ranked incorrectly",
                {
                    "logits": _double([0.2, 1.0, -0.3]),
                    "log_ref": _double([0.5, 0.3, 0.2]).log(),
                    "chosen": 0,
                    "rejected": 1,
                    "beta": 0.5,
                },
            ),
            Case(
                "four responses, ranked correctly, a large β",
                {
                    "logits": _double([-0.4, 0.1, 0.9, 0.0]),
                    "log_ref": _double([0.25, 0.25, 0.1, 0.4]).log(),
                    "chosen": 2,
                    "rejected": 3,
                    "beta": 2.0,
                },
            ),
        ),
        solution=dpo_gradient,
        mistakes=(
            Mistake(
                "sign",
                "the sign is lost: this is the direction of learning, minus the gradient.",
                partial(_mistaken, mistake="sign"),
            ),
            Mistake(
                "no beta",
                "β in front is missing: the weight is only a part of the factor.",
                partial(_mistaken, mistake="beta"),
            ),
            Mistake(
                "swapped weight",
                "the weight is swapped: it must be large if the pair is ranked incorrectly.",
                partial(_mistaken, mistake="weight"),
            ),
            Mistake(
                "no weight",
                "the weight is missing: every pair has the same weight here, learned or not.",
                partial(_mistaken, mistake="none"),
            ),
            Mistake(
                "rejected forgotten",
                "this has only the score of the chosen response; subtract that of the rejected one.",
                partial(_mistaken, mistake="half"),
            ),
            Mistake(
                "no reference",
                "the weight does not contain the reference: r̂ is β log π_θ/π_ref.",
                partial(_mistaken, mistake="reference"),
            ),
            Mistake(
                "mean over responses",
                "this is one number. Give the K derivatives with respect to the logits.",
                lambda *a: dpo_gradient(*a).abs().mean(),
            ),
        ),
        hints=(
            "On a table ∇log π(y) = e_y − π, with e_y the unit vector of y. What remains of π in the difference?",
            "−β σ(r̂_l − r̂_w) (e_w − e_l): two entries are not zero, of opposite sign and equal size.",
        ),
    ),
    Exercise(
        key="nb06.chosen_speed",
        title="Will the chosen response rise?",
        objective="tell from two gradients whether a step on a pair raises the chosen response's probability",
        difficulty=2,
        minutes=6,
        cases=(
            Case("similar gradients, the rejected one longer", {**_SCORES, "beta": 0.5, "weight": 0.5}),
            Case(
                "orthogonal gradients",
                {
                    "chosen_score": _double([1.0, 0.0]),
                    "rejected_score": _double([0.0, 2.0]),
                    "beta": 2.0,
                    "weight": 0.8,
                },
            ),
        ),
        solution=chosen_speed,
        mistakes=(
            Mistake(
                "the margin's speed",
                "this is how fast the margin log π(y_w) − log π(y_l) moves. The margin never falls, but the chosen "
                "log-probability may.",
                lambda w, r, b, v: b * v * ((w - r) @ (w - r)),
            ),
            Mistake(
                "sign",
                "the sign is lost: gradient descent moves against the gradient of the loss.",
                lambda w, r, b, v: -b * v * (w @ (w - r)),
            ),
            Mistake(
                "lost minus",
                "the term of the rejected response has the wrong sign; subtract its score.",
                lambda w, r, b, v: b * v * (w @ (w + r)),
            ),
            Mistake(
                "rejected forgotten",
                "the rejected response is missing: its gradient moves the chosen one too if they share parameters.",
                lambda w, r, b, v: b * v * (w @ w),
            ),
            Mistake("no beta", "β is missing.", lambda w, r, b, v: v * (w @ (w - r))),
            Mistake("no weight", "the weight σ(r̂_l − r̂_w) is missing.", lambda w, r, b, v: b * (w @ (w - r))),
            Mistake(
                "swapped pair",
                "chosen and rejected are swapped: this is minus the rate of change of the rejected response.",
                lambda w, r, b, v: b * v * (r @ (r - w)),
            ),
        ),
        hints=(
            "A small step moves θ by −∇ℒ, and log π(y_w) by its own gradient times that.",
            "−∇ℒ = β · weight · (g_w − g_l). Take its inner product with g_w.",
        ),
    ),
    Exercise(
        key="nb06.response_log_prob",
        title="Sum, under the mask",
        objective="turn log-probabilities of tokens into those of responses, as DPO's theory wants them",
        difficulty=1,
        minutes=4,
        cases=(
            Case(
                "two prompts, two responses each, of 1 to 3 tokens; padded places contain arbitrary numbers",
                {
                    "token_log_probs": _double(
                        [[[-0.5, -1.0, -0.2], [-2.0, -0.7, -9.0]], [[-0.1, -0.4, -7.0], [-1.5, -8.0, -6.0]]]
                    ),
                    "mask": torch.tensor(
                        [[[True, True, True], [True, True, False]], [[True, True, False], [True, False, False]]]
                    ),
                },
            ),
            Case(
                "one prompt, a padded place holds −∞",
                {
                    "token_log_probs": _double([[[-0.3, -0.6], [-1.0, -torch.inf]]]),
                    "mask": torch.tensor([[[True, True], [True, False]]]),
                },
            ),
        ),
        solution=response_log_prob,
        mistakes=(
            Mistake(
                "mean for sum",
                "averaged over the tokens: the probability of a response is the product of its tokens', "
                "so its logarithm is their sum.",
                lambda t, m: torch.where(m, t, 0.0).sum(-1) / m.sum(-1),
            ),
            Mistake(
                "no mask",
                "padded places are counted: they are no tokens of the response.",
                lambda t, m: t.sum(-1),
            ),
            Mistake(
                "inverted mask",
                "the mask is inverted: it is True where a token counts.",
                lambda t, m: torch.where(m, 0.0, t).sum(-1),
            ),
            Mistake(
                "mean over padding",
                "this is a mean, over the padded length. Take the sum.",
                lambda t, m: torch.where(m, t, 0.0).mean(-1),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the wrong axis. The tokens are the last axis.",
                lambda t, m: torch.where(m, t, 0.0).sum(1),
            ),
            Mistake(
                "multiplied by the mask",
                "this is correct if padded places are finite, but 0 · ∞ is nan. Select with torch.where.",
                lambda t, m: (t * m).sum(-1),
            ),
        ),
        hints=(
            "log π(y|x) = Σ_t log π(y_t | x, y_<t), over the places where the mask is True.",
            "`torch.where(mask, token_log_probs, 0.0)`, then a sum over the last axis.",
        ),
    ),
)
