"""Exercises of notebook 06: DPO's gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab import exact, losses
from rlhf_lab.batch import Pairs
from rlhf_lab.derivations import dpo as derivations
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree


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


_BETA = 0.5
_LOG_REF, _REWARD = bandit.lecture().log_ref()[0], bandit.lecture().rewards()[0]
_CITED, _SHORT = 3, 2
_TREE = token_tree.random(vocab_size=3, depth=3, seed=0, reward="sequence", has_end=True)


def _final_weight() -> float:
    """The gradient weight of “a cited answer” ≻ “a short answer” at π*."""
    log_ratio = exact.optimal_policy(_LOG_REF, _REWARD, _BETA) - _LOG_REF
    return losses.dpo_gradient_weight(log_ratio[_CITED], log_ratio[_SHORT], _BETA).item()


def _margin(w: RandomWorld) -> Tensor:
    """u = βΔ of the pair of each prompt, (X, 1)."""
    chosen, rejected = w.of_pair(w.beta * w.log_ratio)
    return (chosen - rejected).unsqueeze(-1)


def _score(w: RandomWorld, y: Tensor) -> Tensor:
    """∇ log π_θ(y|x) of a table, (X, K)."""
    return one_hot(y, w.log_policy.shape[-1]) - w.policy


def gradient_line(w: Any) -> Any:
    """∇ of −log σ(u) of the pair of each prompt, (X, K)."""
    return -w.beta * torch.sigmoid(-w.margin) * (w.chosen_score - w.rejected_score)


def train_by_formula(
    logits: Tensor, log_ref: Tensor, chosen: Tensor, rejected: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """DPO by the formula of its gradient, without autograd; return the losses."""
    losses = []
    for _ in range(steps):
        log_ratio = logits.detach().log_softmax(-1) - log_ref
        margin = beta * (log_ratio[chosen] - log_ratio[rejected])
        share = beta * torch.sigmoid(-margin) / len(margin)
        gradient = torch.zeros_like(log_ref)
        gradient = gradient.index_add(0, chosen, -share).index_add(0, rejected, share)
        with torch.no_grad():
            logits -= learning_rate * gradient
        losses.append(-torch.nn.functional.logsigmoid(margin).mean().item())
    return losses


def _formula_arguments() -> dict[str, Any]:
    """A table of four logits that starts at the reference, and 100 labels on every pair of responses."""
    first, second = torch.tensor([(i, j) for i in range(4) for j in range(i)]).repeat(100, 1).unbind(-1)
    won = sample_preferences(_REWARD[first], _REWARD[second], seeded(0))
    return {
        "logits": _LOG_REF.clone().requires_grad_(True),
        "log_ref": _LOG_REF,
        "chosen": torch.where(won, first, second),
        "rejected": torch.where(won, second, first),
        "beta": _BETA,
        "steps": 60,
        "learning_rate": 10.0,
    }


def _regret(logits: Tensor) -> float:
    return exact.regret(logits.log_softmax(-1), _LOG_REF, _REWARD, _BETA).item()


def train_on_sequences(
    policy: TabularPolicy, token_log_ref: Tensor, pairs: Pairs, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """DPO on sequences of tokens: train `policy` in place and return the losses."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        # (N, 2, T), and 0 at padding, as is token_log_ref.
        token_log_probs = policy.token_log_probs(pairs.prompts, pairs.responses)
        log_ratio = (token_log_probs - token_log_ref).sum(-1)
        margin = beta * (log_ratio[:, 0] - log_ratio[:, 1])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _sequence_arguments() -> dict[str, Any]:
    """A table over all sequences of up to three tokens, which starts at the reference, and 1,000 labelled pairs."""
    pairs = _TREE.preferences(1000, seeded(0))
    return {
        "policy": _TREE.reference.copy(),
        "token_log_ref": _TREE.reference.token_log_probs(pairs.prompts, pairs.responses),
        "pairs": pairs,
        "beta": _BETA,
        "steps": 60,
        "learning_rate": 20.0,
    }


def _distance(policy: TabularPolicy) -> float:
    """KL(π_θ‖π*) on the tree."""
    return exact.kl(_TREE.log_probs(policy), _TREE.optimal(_BETA)).mean().item()


_SCORES = {"chosen_score": double([1.0, -0.5, 0.2]), "rejected_score": double([1.8, -1.0, 0.1])}

EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb06.final_weight",
        title="The weight of a label after training",
        objective="predict the value to which the gradient weight of a label converges",
        difficulty=2,
        minutes=3,
        question=(
            "DPO is trained with infinitely many Bradley–Terry labels. “A cited answer” has the reward 1.5 and “a "
            "short answer” the reward 1.0. What is the gradient weight of the label “a cited answer ≻ a short answer” "
            "after training?"
        ),
        truth=_final_weight,
        explanation=(
            "At the optimum the reward margin βΔ is the difference of the rewards, 0.5. The weight is σ(−0.5) = "
            "{truth}, the probability of the opposite label."
        ),
        mistakes=(
            Mistake(
                "zero",
                "the weight would be 0 only for an infinite margin. The opposite label also occurs, and keeps the "
                "margin finite.",
                lambda: 0.0,
            ),
            Mistake("start", "this is the weight before the first step, where all margins are 0.", lambda: 0.5),
            Mistake(
                "the label's probability",
                "this is the probability of the label itself. The weight is large for labels that are unlikely.",
                lambda: 1 - _final_weight(),
            ),
        ),
    ),
    NextLine(
        key="nb06.gradient_line",
        title="DPO's gradient",
        objective="derive DPO's gradient, including its sign, the factor β and the weight",
        difficulty=2,
        minutes=6,
        derivation=derivations.dpo_gradient,
        line=3,
        quantities=("beta",),
        defined={
            "margin": ("u, the reward margin of the pair of each prompt, (X, 1)", _margin),
            "chosen_score": ("∇ log π_θ(y_w given x), (X, K)", lambda w: _score(w, w.chosen)),
            "rejected_score": ("∇ log π_θ(y_l given x), (X, K)", lambda w: _score(w, w.rejected)),
        },
        solution=gradient_line,
        mistakes=wrong_answers(
            gradient_line,
            {
                "sum of the scores": lambda w: -w.beta * torch.sigmoid(-w.margin) * (w.chosen_score + w.rejected_score),
            },
            {
                "sum of the scores": "the scores are added. The margin is a difference, and so is its gradient.",
            },
        ),
        hints=(
            "u is the difference of β log π_θ/π_ref at y_w and at y_l. Which of these terms depend on θ?",
            "∇u = β (∇ log π_θ(y_w) − ∇ log π_θ(y_l)). Multiply it by the factor in the line above.",
        ),
    ),
    TrainingLoop(
        key="nb06.train_by_formula",
        title="Gradient descent without autograd",
        objective="write DPO's training loop with the formula of its gradient",
        difficulty=3,
        minutes=12,
        arguments=_formula_arguments,
        distance=_regret,
        solution=train_by_formula,
        mistakes=wrong_answers(
            train_by_formula,
            {
                "sign": "logits -= → logits +=",
                "no beta": "beta * torch.sigmoid → torch.sigmoid",
                "weight exchanged": "sigmoid(-margin) → sigmoid(margin)",
                "no weight": "torch.sigmoid(-margin) → torch.full_like(margin, 0.5)",
                "rejected forgotten": "-share).index_add(0, rejected, share) → -share)",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "sum": "sigmoid(-margin) / len(margin) → sigmoid(-margin)",
            },
            {
                "sign": "the sign is lost: the step must go against the gradient of the loss.",
                "no beta": "β in front of the weight is missing.",
                "weight exchanged": "the weight is σ of the margin. It must be large for incorrectly ranked pairs.",
                "no weight": "every pair has the weight ½, so the two labels of a pair never cancel.",
                "rejected forgotten": "only the chosen responses have a gradient. The rejected ones have it too.",
                "no reference": "the margin contains log π_θ instead of the log-ratio to the reference.",
                "sum": "the contributions are added up, but the loss is a mean over pairs.",
            },
            pairs=(("no beta", "sum"), ("no reference", "no beta"), ("rejected forgotten", "sum")),
        ),
        hints=(
            "Each pair adds −β·weight to the gradient at the chosen response, and +β·weight at the rejected one.",
            "Several pairs have the same response, so use `index_add`. Assignment would keep only the last pair.",
            "Divide by the number of pairs, and change `logits` in place under `torch.no_grad()`.",
        ),
    ),
    TrainingLoop(
        key="nb06.train_on_sequences",
        title="A loss that falls towards another policy",
        objective="find the bug in a loop whose loss falls and whose policy does not converge to π\\*",
        difficulty=2,
        minutes=6,
        arguments=_sequence_arguments,
        distance=_distance,
        quantity="the KL to π*",
        solution=train_on_sequences,
        bug="mean over padding",
        mistakes=wrong_answers(
            train_on_sequences,
            {
                "mean over padding": ".sum(-1) → .mean(-1)",
                "mean over tokens": ".sum(-1) → .sum(-1) / pairs.responses.lengths",
                "last token": ".sum(-1) → [..., -1]",
                "no reference": "(token_log_probs - token_log_ref) → token_log_probs",
                "no beta": "beta * (log_ratio → (log_ratio",
                "swapped pair": "logsigmoid(margin) → logsigmoid(-margin)",
            },
            {
                "mean over padding": "the mean over all positions is taken, including padding.",
                "mean over tokens": "the mean over tokens is taken. The log-probability of a sequence is a sum.",
                "last token": "only the last position counts. Each token of the response has a factor.",
                "no reference": "the reference is missing from the log-ratio.",
                "no beta": "β is missing from the margin.",
                "swapped pair": "chosen and rejected are swapped.",
            },
            pairs=(
                ("mean over padding", "no beta"),
                ("mean over padding", "swapped pair"),
                ("no reference", "no beta"),
            ),
        ),
        hints=(
            "What is log π(y|x) of a sequence of tokens? Compare the reduction in the loop with it.",
            "The padded positions contain 0. Which reduction over the last axis is not changed by zeros?",
        ),
    ),
    Exercise(
        key="nb06.dpo_gradient",
        title="The gradient by hand",
        objective="write the gradient of one pair's loss by hand, including its sign, the factor β and the weight",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "three responses, ranked incorrectly",
                {
                    "logits": double([0.2, 1.0, -0.3]),
                    "log_ref": double([0.5, 0.3, 0.2]).log(),
                    "chosen": 0,
                    "rejected": 1,
                    "beta": 0.5,
                },
            ),
            Case(
                "four responses, ranked correctly, a large β",
                {
                    "logits": double([-0.4, 0.1, 0.9, 0.0]),
                    "log_ref": double([0.25, 0.25, 0.1, 0.4]).log(),
                    "chosen": 2,
                    "rejected": 3,
                    "beta": 2.0,
                },
            ),
        ),
        solution=dpo_gradient,
        mistakes=wrong_answers(
            dpo_gradient,
            {
                "sign": (
                    "[chosen] = -beta → [chosen] = beta",
                    "[rejected] = beta → [rejected] = -beta",
                ),
                "no beta": (
                    "-beta * weight → -weight",
                    "] = beta * weight → ] = weight",
                ),
                "swapped weight": "log_ratio[rejected] - log_ratio[chosen] → log_ratio[chosen] - log_ratio[rejected]",
                "no weight": (
                    "-beta * weight → -beta",
                    "] = beta * weight → ] = beta",
                ),
                "rejected forgotten": (
                    "torch.zeros_like(logits) → beta * weight * logits.softmax(-1)",
                    "[chosen] = -beta → [chosen] -= beta",
                    "gradient[rejected] = beta * weight → pass",
                ),
                "no reference": "torch.log_softmax(logits, -1) - log_ref → torch.log_softmax(logits, -1)",
                "mean over responses": lambda *a: dpo_gradient(*a).abs().mean(),
            },
            {
                "sign": "the sign is lost: this is the direction of learning, minus the gradient.",
                "no beta": "β in front is missing: the weight is only a part of the factor.",
                "swapped weight": "the weight is swapped: it must be large if the pair is ranked incorrectly.",
                "no weight": "the weight is missing: every pair has the same weight here, learned or not.",
                "rejected forgotten": "this has only the score of the chosen response; subtract that of the rejected "
                "one.",
                "no reference": "the weight does not contain the reference: r̂ is β log π_θ/π_ref.",
                "mean over responses": "this is one number. Give the K derivatives with respect to the logits.",
            },
        ),
        hints=(
            "On a table ∇log π(y) = e_y − π, with e_y the unit vector of y. What remains of π in the difference?",
            "−β σ(r̂_l − r̂_w) (e_w − e_l): two entries are not zero, of opposite sign and equal size.",
        ),
    ),
    Exercise(
        key="nb06.chosen_speed",
        title="Will the chosen response become more likely?",
        objective="tell from two gradients whether a step on a pair raises the chosen response's probability",
        difficulty=2,
        minutes=6,
        cases=(
            Case("similar gradients, the rejected one longer", {**_SCORES, "beta": 0.5, "weight": 0.5}),
            Case(
                "orthogonal gradients",
                {
                    "chosen_score": double([1.0, 0.0]),
                    "rejected_score": double([0.0, 2.0]),
                    "beta": 2.0,
                    "weight": 0.8,
                },
            ),
        ),
        solution=chosen_speed,
        mistakes=wrong_answers(
            chosen_speed,
            {
                "the margin's speed": lambda w, r, b, v: b * v * ((w - r) @ (w - r)),
                "sign": lambda w, r, b, v: -b * v * (w @ (w - r)),
                "lost minus": lambda w, r, b, v: b * v * (w @ (w + r)),
                "rejected forgotten": lambda w, r, b, v: b * v * (w @ w),
                "no beta": lambda w, r, b, v: v * (w @ (w - r)),
                "no weight": lambda w, r, b, v: b * (w @ (w - r)),
                "swapped pair": lambda w, r, b, v: b * v * (r @ (r - w)),
            },
            {
                "the margin's speed": "this is how fast the margin log π(y_w) − log π(y_l) moves. The margin never "
                "falls, but the chosen log-probability may.",
                "sign": "the sign is lost: gradient descent moves against the gradient of the loss.",
                "lost minus": "the term of the rejected response has the wrong sign; subtract its score.",
                "rejected forgotten": "the rejected response is missing: its gradient moves the chosen one too if they "
                "share parameters.",
                "no beta": "β is missing.",
                "no weight": "the weight σ(r̂_l − r̂_w) is missing.",
                "swapped pair": "chosen and rejected are swapped: this is minus the rate of change of the rejected "
                "response.",
            },
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
                    "token_log_probs": double(
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
                    "token_log_probs": double([[[-0.3, -0.6], [-1.0, -torch.inf]]]),
                    "mask": torch.tensor([[[True, True], [True, False]]]),
                },
            ),
        ),
        solution=response_log_prob,
        mistakes=wrong_answers(
            response_log_prob,
            {
                "mean for sum": lambda t, m: torch.where(m, t, 0.0).sum(-1) / m.sum(-1),
                "no mask": lambda t, m: t.sum(-1),
                "inverted mask": lambda t, m: torch.where(m, 0.0, t).sum(-1),
                "mean over padding": lambda t, m: torch.where(m, t, 0.0).mean(-1),
                "wrong axis": lambda t, m: torch.where(m, t, 0.0).sum(1),
                "multiplied by the mask": lambda t, m: (t * m).sum(-1),
            },
            {
                "mean for sum": "averaged over the tokens: the probability of a response is the product of its "
                "tokens', so its logarithm is their sum.",
                "no mask": "padded places are counted: they are no tokens of the response.",
                "inverted mask": "the mask is inverted: it is True where a token counts.",
                "mean over padding": "this is a mean, over the padded length. Take the sum.",
                "wrong axis": "the sum is over the wrong axis. The tokens are the last axis.",
                "multiplied by the mask": "this is correct if padded places are finite, but 0 · ∞ is nan. Select with "
                "torch.where.",
            },
        ),
        hints=(
            "log π(y|x) = Σ_t log π(y_t | x, y_<t), over the places where the mask is True.",
            "`torch.where(mask, token_log_probs, 0.0)`, then a sum over the last axis.",
        ),
    ),
)
