"""Exercises of notebook 05: DPO and its relatives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab import losses
from rlhf_lab.derivations.losses import cdpo
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.training import seeded


def dpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    """−log σ(β Δ) of each pair."""
    return -torch.nn.functional.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def population_loss(log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """DPO's mean loss over all pairs of K responses, labelled by Bradley–Terry: a single number."""
    implicit = beta * (log_policy - log_ref)
    margin = implicit[:, None] - implicit[None, :]  # row beats column
    p = torch.sigmoid(reward[:, None] - reward[None, :])
    apart = ~torch.eye(len(reward), dtype=torch.bool)
    return -2 * (p * torch.nn.functional.logsigmoid(margin))[apart].mean()


def robust_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, epsilon: float) -> Tensor:
    """A loss of each pair whose mean over labels flipped at rate ε is DPO's."""
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    right, flipped = -torch.nn.functional.logsigmoid(margin), -torch.nn.functional.logsigmoid(-margin)
    return ((1 - epsilon) * right - epsilon * flipped) / (1 - 2 * epsilon)


def ipo_margin(p: Tensor, tau: float) -> Tensor:
    """The Δ that minimises IPO's mean loss if the chosen response wins with probability p."""
    return (p - 0.5) / tau


_PAIRS = {"chosen_log_ratio": double([0.8, -1.1, 0.3]), "rejected_log_ratio": double([-0.4, 0.6, 0.3])}
_FAR = {"chosen_log_ratio": double([-900.0, 700.0]), "rejected_log_ratio": double([800.0, -600.0])}
_ONE = {"chosen_log_ratio": double(-0.5), "rejected_log_ratio": double(0.7)}


def _margin(w: RandomWorld) -> Tensor:
    """βΔ of the pair of each prompt, (X,)."""
    chosen, rejected = w.of_pair(w.log_ratio)
    return w.beta * (chosen - rejected)


def cdpo_slope(w: Any) -> Any:
    """The derivative of cDPO's loss with respect to Δ."""
    return -w.beta * (torch.sigmoid(-w.margin) - w.epsilon)


def train_dpo(
    logits: Tensor,
    log_ref: Tensor,
    prompts: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """DPO on all pairs in every step: train `logits` in place and return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_ratio = logits.log_softmax(-1) - log_ref
        margin = beta * (log_ratio[prompts, chosen] - log_ratio[prompts, rejected])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_from_reference(
    logits: Tensor,
    prompts: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """DPO with the starting policy as the reference: train `logits`, return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    log_ref = logits.detach().log_softmax(-1)
    losses = []
    for _ in range(steps):
        log_ratio = logits.log_softmax(-1) - log_ref
        margin = beta * (log_ratio[prompts, chosen] - log_ratio[prompts, rejected])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _dpo_arguments() -> dict[str, Any]:
    """A table of logits that starts at the reference, and 100 labels on every pair of responses to every prompt."""
    log_ref, reward = LOG_REF, REWARD
    rows = torch.tensor([(x, i, j) for x in range(2) for i in range(4) for j in range(i)]).repeat(100, 1)
    prompts, first, second = rows.unbind(-1)
    won = sample_preferences(reward[prompts, first], reward[prompts, second], seeded(0))
    return {
        "logits": log_ref.clone().requires_grad_(True),
        "log_ref": log_ref,
        "prompts": prompts,
        "chosen": torch.where(won, first, second),
        "rejected": torch.where(won, second, first),
        "beta": BETA,
        "steps": 60,
        "learning_rate": 25.0,
    }


def _arguments_without_reference() -> dict[str, Any]:
    return {name: value for name, value in _dpo_arguments().items() if name != "log_ref"}


def _first_loss() -> float:
    """DPO's mean loss before the first step, where the policy is the reference."""
    at_reference = torch.zeros(len(_dpo_arguments()["prompts"]), dtype=torch.float64)
    return float(losses.dpo(at_reference, at_reference, BETA).mean())


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb05.first_loss",
        title="The loss before the first step",
        objective="tell from the first loss whether DPO is set up correctly",
        difficulty=1,
        minutes=2,
        question=(
            "Training starts with $\\pi_\\theta=\\pi_\\text{ref}$. What is DPO's mean loss, in nats, before the first "
            "step?"
        ),
        truth=_first_loss,
        explanation=(
            "All log-ratios are 0, so every margin is 0 and every pair has the loss −log σ(0) = log 2 = {truth} nats, "
            "whatever β and the labels are. A loss that starts elsewhere shows that the reference is not the policy "
            "from which training starts."
        ),
        mistakes=(
            Mistake(
                "zero", "the loss is 0 only for an infinite margin. A margin of 0 is an undecided pair.", lambda: 0.0
            ),
            Mistake("half", "this is σ(0), a probability. The loss is minus its logarithm.", lambda: 0.5),
            Mistake("bits", "this is log σ(0) in bits. Losses in nats use the natural logarithm.", lambda: 1.0),
        ),
    ),
    NextLine(
        key="nb05.cdpo_slope",
        title="The slope of cDPO's loss",
        objective="differentiate a loss with smoothed labels",
        difficulty=2,
        minutes=6,
        derivation=cdpo,
        line=3,
        quantities=("beta", "epsilon"),
        defined={"margin": ("βΔ, the margin of the pair of each prompt, (X,)", _margin)},
        solution=cdpo_slope,
        mistakes=wrong_answers(
            cdpo_slope,
            {
                "sign": lambda w: w.beta * (torch.sigmoid(-w.margin) - w.epsilon),
                "no beta": lambda w: -(torch.sigmoid(-w.margin) - w.epsilon),
                "sigma of the margin": lambda w: -w.beta * (torch.sigmoid(w.margin) - w.epsilon),
                "flipped label forgotten": lambda w: -w.beta * (1 - w.epsilon) * torch.sigmoid(-w.margin),
            },
            {
                "sign": "the sign is lost: where the pair is not yet ranked clearly, a larger Δ lowers the loss.",
                "no beta": "β is missing: this is the derivative with respect to βΔ.",
                "sigma of the margin": "the argument of σ has the wrong sign: the derivative of log σ(u) is σ(−u).",
                "flipped label forgotten": "only the loss of the label as given is differentiated. The flipped label "
                "has the weight ε.",
            },
        ),
        hints=(
            "Differentiate the second line: the loss of DPO plus ε βΔ. What is the derivative of −log σ(u)?",
            "The derivative of −log σ(u) is −σ(−u), and the chain rule with u = βΔ multiplies it by β.",
        ),
    ),
    TrainingLoop(
        key="nb05.train_dpo",
        title="DPO from scratch",
        objective="write DPO's training loop in plain PyTorch",
        difficulty=2,
        minutes=12,
        arguments=_dpo_arguments,
        distance=loop_regret,
        solution=train_dpo,
        mistakes=wrong_answers(
            train_dpo,
            {
                "swapped pair": "chosen] - log_ratio[prompts, rejected] → rejected] - log_ratio[prompts, chosen]",
                "sign": "loss = -torch → loss = torch",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "no beta": "beta * (log_ratio → (log_ratio",
                "moving reference": "- log_ref → - logits.detach().log_softmax(-1)",
                "forgot log": "torch.nn.functional.logsigmoid → torch.sigmoid",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "swapped pair": "chosen and rejected are swapped, so that the policy learns to prefer the rejected.",
                "sign": "the sign is lost: gradient descent on this loss lowers the likelihood of the labels.",
                "no reference": "the reference is missing from the log-ratio.",
                "no beta": "β is missing from the margin.",
                "moving reference": "the log-ratio is taken to the current policy instead of the reference, so that "
                "every margin is 0 in every step.",
                "forgot log": "the loss is −σ of the margin. A negative log-likelihood has −log σ.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("swapped pair", "sign"), ("no reference", "no beta"), ("swapped pair", "no beta")),
        ),
        hints=(
            "One step needs log π_θ − log π_ref of all responses, and from it the values of chosen and rejected.",
            "`logits.log_softmax(-1)` is log π_θ, (X, K). `table[prompts, chosen]` takes one entry for each pair.",
            "The loss is `-logsigmoid(margin).mean()`. Then come zero_grad, backward and step.",
        ),
    ),
    TrainingLoop(
        key="nb05.train_from_reference",
        title="A loss that stays at 0.693",
        objective="find the bug in a loop whose loss does not fall although the policy moves",
        difficulty=2,
        minutes=6,
        arguments=_arguments_without_reference,
        distance=loop_regret,
        solution=train_from_reference,
        bug="moving reference",
        mistakes=wrong_answers(
            train_from_reference,
            {
                "moving reference": (
                    "log_ref = logits.detach().log_softmax(-1)\n    losses = [] → losses = []",
                    (
                        "for _ in range(steps): → "
                        "for _ in range(steps):\n"
                        "        log_ref = logits.detach().log_softmax(-1)"
                    ),
                ),
                "reference with gradient": "- log_ref → - logits.log_softmax(-1)",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "no beta": "beta * (log_ratio → (log_ratio",
                "sign": "loss = -torch → loss = torch",
                "swapped pair": "chosen] - log_ratio[prompts, rejected] → rejected] - log_ratio[prompts, chosen]",
            },
            {
                "moving reference": "the reference is computed again in every step, so it follows the policy.",
                "reference with gradient": "the reference is not detached, so both gradients cancel and nothing moves.",
                "no reference": "the reference is missing from the log-ratio.",
                "no beta": "β is missing from the margin.",
                "sign": "the sign is lost: gradient descent on this loss lowers the likelihood of the labels.",
                "swapped pair": "chosen and rejected are swapped, so that the policy learns to prefer the rejected.",
            },
            pairs=(("moving reference", "no beta"), ("moving reference", "sign"), ("no reference", "no beta")),
        ),
        hints=(
            "Which margin does a pair have in the second step? Print `margin.abs().max()` in the loop.",
            "The reference is the policy before the first step. When is it computed in this loop?",
            "Move the line with `log_ref` above the loop, and keep `detach`.",
        ),
    ),
    Exercise(
        key="nb05.dpo_loss",
        title="DPO's loss in one line",
        objective="write DPO's loss from log-ratios, one value for each pair",
        difficulty=1,
        minutes=4,
        cases=(
            Case("three pairs: ranked correctly, ranked incorrectly, undecided", {**_PAIRS, "beta": 0.5}),
            Case("one pair that is ranked incorrectly, a large β", {**_ONE, "beta": 3.0}),
            Case("a pair that is ranked very incorrectly", {**_FAR, "beta": 1.0}),
        ),
        solution=dpo_loss,
        differentiate=("chosen_log_ratio", "rejected_log_ratio"),
        compare="both",
        mistakes=wrong_answers(
            dpo_loss,
            {
                "swapped pair": lambda chosen, rejected, beta: -logsigmoid(beta * (rejected - chosen)),
                "no beta": lambda chosen, rejected, beta: -logsigmoid(chosen - rejected),
                "sign": lambda chosen, rejected, beta: logsigmoid(beta * (chosen - rejected)),
                "forgot log": lambda chosen, rejected, beta: -torch.sigmoid(beta * (chosen - rejected)),
                "mean over pairs": lambda chosen, rejected, beta: -logsigmoid(beta * (chosen - rejected)).mean(),
                "beta outside": lambda chosen, rejected, beta: -beta * logsigmoid(chosen - rejected),
                "beta on one side": lambda chosen, rejected, beta: -logsigmoid(beta * chosen - rejected),
                "log of sigmoid in two steps": lambda chosen, rejected, beta: (
                    -torch.log(torch.sigmoid(beta * (chosen - rejected)))
                ),
            },
            {
                "swapped pair": "chosen and rejected are swapped: the loss must be small where the chosen one's "
                "log-ratio is larger.",
                "no beta": "β is missing: the implicit reward is β log π_θ/π_ref.",
                "sign": "the minus is missing: this is the log-likelihood, which rises as the fit improves.",
                "forgot log": "the logarithm is missing: −σ is not a log-likelihood.",
                "mean over pairs": "this is averaged over the pairs: give one value for each pair; the caller takes "
                "the mean.",
                "beta outside": "β is outside σ, but it scales the implicit reward, which is the argument.",
                "beta on one side": "β multiplies the chosen log-ratio only: both implicit rewards contain it.",
                "log of sigmoid in two steps": "this is correct on paper, but for a pair that is ranked very "
                "incorrectly σ rounds to 0 and the loss is infinite: use logsigmoid.",
            },
        ),
        hints=(
            "Bradley–Terry with the implicit reward r̂ = β · log-ratio: how likely is it that the chosen one wins?",
            "The loss is minus the logarithm of σ(r̂_w − r̂_l). `torch.nn.functional.logsigmoid` is numerically stable.",
        ),
    ),
    Exercise(
        key="nb05.population_loss",
        title="DPO with infinitely many labels",
        objective="write DPO's loss with every pair and every label weighted by its probability",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "three responses",
                {
                    "log_policy": double([0.5, 0.3, 0.2]).log(),
                    "log_ref": double([0.2, 0.2, 0.6]).log(),
                    "reward": double([1.0, 0.0, -0.5]),
                    "beta": 0.5,
                },
            ),
            Case(
                "two responses, a large β",
                {
                    "log_policy": double([0.7, 0.3]).log(),
                    "log_ref": double([0.4, 0.6]).log(),
                    "reward": double([-0.3, 0.8]),
                    "beta": 2.0,
                },
            ),
            Case(
                "a policy with almost no probability for two responses",
                {
                    "log_policy": double([0.0, -2000.0, -3000.0]),
                    "log_ref": double([0.2, 0.2, 0.6]).log(),
                    "reward": double([1.0, 0.0, -0.5]),
                    "beta": 1.0,
                },
            ),
        ),
        solution=population_loss,
        differentiate=("log_policy",),
        compare="both",
        mistakes=wrong_answers(
            population_loss,
            {
                "certain labels": "torch.sigmoid(reward[:, None] - reward → 1.0 * (reward[:, None] > reward",
                "swapped labels": "reward[:, None] - reward[None, :] → reward[None, :] - reward[:, None]",
                "no reference": "(log_policy - log_ref) → log_policy",
                "no beta": "beta * (log_policy → (log_policy",
                "diagonal": "[apart].mean() → .mean()",
                "half the labels": "-2 * ( → -(",
                "log of sigmoid in two steps": "torch.nn.functional.logsigmoid(margin) → torch.sigmoid(margin).log()",
            },
            {
                "certain labels": "the better response always wins here. Bradley–Terry labels are noisy: it wins with "
                "σ(r_1 − r_2).",
                "swapped labels": "the labels are swapped: the worse response wins more often.",
                "no reference": "the reference is missing: the implicit reward is β log π_θ/π_ref.",
                "no beta": "β is missing from the implicit reward.",
                "diagonal": "comparisons of a response with itself are counted. Leave the diagonal out of the mean.",
                "half the labels": "this is half of the loss: a pair has two possible labels, whose probabilities must "
                "sum to one.",
                "log of sigmoid in two steps": "this is correct on paper, but where the policy has almost no "
                "probability for a response σ rounds to 0 and the loss is infinite: use logsigmoid.",
            },
        ),
        hints=(
            "For one pair (i, j): i wins with p_ij = σ(r_i − r_j), with the loss −log σ(r̂_i − r̂_j); j wins with 1 − "
            "p_ij.",
            "With (K, K) tables `p` and `margin`, the entries (i, j) and (j, i) are the two labels of one pair: sum "
            "`-p * logsigmoid(margin)` off the diagonal, and divide by the number of pairs, K(K − 1)/2.",
        ),
    ),
    Exercise(
        key="nb05.robust_loss",
        title="Robust DPO's loss",
        objective="write the loss whose mean over flipped labels is the loss without noise",
        difficulty=2,
        minutes=5,
        cases=(
            Case("three pairs, every fifth label flipped", {**_PAIRS, "beta": 0.5, "epsilon": 0.2}),
            Case("no noise", {**_ONE, "beta": 3.0, "epsilon": 0.0}),
            Case("a pair that is ranked very incorrectly", {**_FAR, "beta": 1.0, "epsilon": 0.2}),
        ),
        solution=robust_loss,
        differentiate=("chosen_log_ratio", "rejected_log_ratio"),
        compare="both",
        mistakes=wrong_answers(
            robust_loss,
            {
                "cDPO": lambda c, r, beta, e: (1 - e) * dpo_loss(c, r, beta) + e * dpo_loss(r, c, beta),
                "no divisor": lambda c, r, beta, e: (1 - e) * dpo_loss(c, r, beta) - e * dpo_loss(r, c, beta),
                "swapped pair": lambda c, r, beta, e: robust_loss(r, c, beta, e),
                "plain DPO": lambda c, r, beta, e: dpo_loss(c, r, beta),
                "mean over pairs": lambda c, r, beta, e: robust_loss(c, r, beta, e).mean(),
                "no beta": lambda c, r, beta, e: robust_loss(c, r, 1.0, e),
                "log of sigmoid in two steps": lambda c, r, beta, e: (
                    (-(1 - e) * torch.sigmoid(beta * (c - r)).log() + e * torch.sigmoid(beta * (r - c)).log())
                    / (1 - 2 * e)
                ),
            },
            {
                "cDPO": "this is cDPO, which adds the second term. Its mean over flips is not the loss without noise.",
                "no divisor": "the divisor is missing: the mean over flips is only a fraction of the loss without "
                "noise.",
                "swapped pair": "the two losses are swapped: most labels are correct, so the larger weight belongs to "
                "the label as given.",
                "plain DPO": "ε is not used: this is DPO's loss, whose mean over flips is not the loss without noise.",
                "mean over pairs": "this is averaged over the pairs: give one value for each pair; the caller takes "
                "the mean.",
                "no beta": "β is missing from the margin.",
                "log of sigmoid in two steps": "this is correct on paper, but for a pair that is ranked very "
                "incorrectly σ rounds to 0 and the loss is infinite: use logsigmoid.",
            },
        ),
        hints=(
            "Look for a ℒ(w,l) + b ℒ(l,w) whose mean over flips, (1−ε) of it plus ε of it swapped, is ℒ(w,l).",
            "The swapped terms must cancel: a ε + b (1−ε) = 0. Then scale so that the others sum to one.",
        ),
    ),
    Exercise(
        key="nb05.ipo_margin",
        title="The margin at which IPO's loss is minimal",
        objective="find the margin that minimises IPO's mean loss, and see that it is finite",
        difficulty=2,
        minutes=6,
        cases=(
            Case("an even, a clear and a certain preference", {"p": double([0.5, 0.8, 1.0]), "tau": 0.2}),
            Case("a preference against the chosen one", {"p": double([0.1]), "tau": 2.0}),
        ),
        solution=ipo_margin,
        mistakes=wrong_answers(
            ipo_margin,
            {
                "DPO's margin": lambda p, tau: torch.logit(p) / tau,
                "label noise forgotten": lambda p, tau: torch.full_like(p, 1 / (2 * tau)),
                "factor of two": lambda p, tau: (2 * p - 1) / tau,
                "tau on the wrong side": lambda p, tau: (p - 0.5) * tau,
                "sign": lambda p, tau: (0.5 - p) / tau,
                "not centred": lambda p, tau: p / tau,
            },
            {
                "DPO's margin": "this is the minimum of DPO, the log-odds, which is infinite for a certain preference. "
                "IPO's loss is a square.",
                "label noise forgotten": "this is the target of a single label, 1/(2τ). The mean is over both labels.",
                "factor of two": "this is too large by a factor of two: the derivative of a square has a factor 2.",
                "tau on the wrong side": "τ is on the wrong side: a larger τ, a stronger KL penalty, must give a "
                "smaller margin.",
                "sign": "the sign is lost: a preferred response needs a positive margin.",
                "not centred": "a preference of ½ must give the margin 0: subtract ½ from p.",
            },
        ),
        hints=(
            "The mean loss is p (Δ − 1/(2τ))² + (1−p)(Δ + 1/(2τ))². Differentiate it with respect to Δ.",
            "2Δ = (2p − 1)/τ at the minimum.",
        ),
    ),
)
