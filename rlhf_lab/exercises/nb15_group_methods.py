"""Exercises of notebook 15: RLOO, GRPO, Dr. GRPO and rewards that are 0 or 1."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.group_methods import group_baselines
from rlhf_lab.exercises.checking import Case, Exercise, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop

_SAMPLES = 256


def leave_one_out(score: Tensor) -> Tensor:
    """Each score of (B, G) minus the mean of the other scores of its group."""
    group = score.shape[-1]
    others = (score.sum(-1, keepdim=True) - score) / (group - 1)
    return score - others


def equivalent_beta(p_ref: Tensor, p: Tensor) -> Tensor:
    """The β whose π* has the success rate p, if that of π_ref is p_ref. All are tensors."""
    return 1 / (torch.logit(p) - torch.logit(p_ref))


def success_with_k3(p_ref: Tensor, beta: float) -> Tensor:
    """The success rate at which E[r] − β KL(π_ref‖π) is maximal, for r of 0 or 1."""
    b = 1 + beta
    c = (b + (b**2 - 4 * beta * (1 - p_ref)).sqrt()) / 2
    return beta * p_ref / (c - 1)


def _root(p: Tensor, beta: float) -> Tensor:
    """The c at which β p/(c − 1) + β (1 − p)/c is 1."""
    return (1 + beta + ((1 + beta) ** 2 - 4 * beta * (1 - p)).sqrt()) / 2


def mean_of_all(w: Any) -> Any:
    """The expected gradient with the mean of all as baseline, (X, K)."""
    mean = (w.policy * w.reward).sum(-1, keepdim=True)
    return (w.n - 1) / w.n * w.policy * (w.reward - mean)


def train_rloo(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """RLOO: the KL term in the score, and the mean of the others as baseline."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        y = torch.multinomial(log_policy.detach().exp(), samples, True, generator=generator)
        log_prob = log_policy.gather(-1, y)
        k1 = log_prob.detach() - log_ref.gather(-1, y)
        score = reward.gather(-1, y) - beta * k1
        others = (score.sum(-1, keepdim=True) - score) / (samples - 1)
        loss = -((score - others) * log_prob).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_dr_grpo(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """Dr. GRPO with a KL term: no standard deviation, and β k3 in the loss."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        y = torch.multinomial(log_policy.detach().exp(), samples, True, generator=generator)
        log_prob = log_policy.gather(-1, y)
        score = reward.gather(-1, y)
        advantage = score - score.mean(-1, keepdim=True)
        k = log_prob - log_ref.gather(-1, y)
        kl = torch.exp(-k) - 1 + k
        loss = (-advantage * log_prob + beta * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _from_limit(logits: Tensor) -> float:
    limit = exact.reverse_kl_optimum(LOG_REF, REWARD * (_SAMPLES - 1) / _SAMPLES, BETA)
    return exact.kl(limit, logits.log_softmax(-1)).mean().item()


def _highest_success() -> str:
    """Which limit is most often correct at β = 0.5, if π_ref is in a fifth of its samples."""
    log_ref = torch.tensor([0.2, 0.8], dtype=torch.float64).log()
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    limits = {
        "A": exact.optimal_policy(log_ref, reward, BETA),
        "B": exact.grpo_limit(log_ref, reward, BETA, 8, divide_by_std=False),
        "C": exact.grpo_limit(log_ref, reward, BETA, 8),
    }
    return max(limits, key=lambda letter: limits[letter][0].item())


EXERCISES: tuple[Task, ...] = (
    NextLine(
        key="nb15.mean_of_all",
        title="The baseline that contains the sample itself",
        objective="derive the expected gradient of a group method",
        difficulty=2,
        minutes=8,
        derivation=group_baselines,
        line=2,
        quantities=("policy", "reward", "n"),
        solution=mean_of_all,
        mistakes=wrong_answers(
            mean_of_all,
            {
                "factor missing": lambda w: w.policy * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True)),
                "factor inverted": lambda w: (
                    w.n / (w.n - 1) * w.policy * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True))
                ),
                "normaliser forgotten": lambda w: (w.n - 1) / w.n * w.policy * w.reward,
                "unweighted mean": lambda w: (w.n - 1) / w.n * w.policy * (w.reward - w.reward.mean(-1, keepdim=True)),
                "policy missing": lambda w: (w.n - 1) / w.n * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True)),
            },
            {
                "factor missing": "the factor (G−1)/G of the line above is missing.",
                "factor inverted": "the factor is inverted. The mean of all contains the sample itself, which makes "
                "the gradient smaller.",
                "normaliser forgotten": "∇log π_θ(y) is taken to be e_y alone. In a table it is e_y − π_θ, so the "
                "entries sum to 0.",
                "unweighted mean": "the mean of the rewards is not weighted by the policy.",
                "policy missing": "a response must be weighted by its probability, because it is sampled from the "
                "policy.",
            },
        ),
        hints=(
            "The rewards of the others are independent of y_i, so their mean times ∇log π_θ(y_i) has expectation 0.",
            "What remains is (G−1)/G E[r(y) ∇log π_θ(y)]. In a table ∇log π_θ(y) is e_y − π_θ. G is `w.n`.",
        ),
    ),
    Prediction(
        key="nb15.highest_success",
        title="Three limits for a reward of 0 or 1",
        objective="predict the effect of the divergence and of the standard deviation on the limit",
        difficulty=2,
        minutes=3,
        question=(
            "The reward is 1 for a correct answer and 0 otherwise. The reference is correct with probability 0.2. All "
            "three have β = 0.5. B and C have G = 8 and k3 in the loss. Which limit is correct most often?"
        ),
        options={
            "A": "π\\*, the limit of RLOO.",
            "B": "The limit of GRPO without the standard deviation.",
            "C": "The limit of GRPO with the standard deviation.",
        },
        truth=_highest_success,
        explanation=(
            "The standard deviation of rewards of 0 and 1 is at most ½, so the division at least doubles the "
            "advantages of a large group. The KL term is not divided, and counts for less."
        ),
        why_not={
            "A": "π* has the exact trade-off at β = 0.5. A division of the reward alone changes this trade-off.",
            "B": "without the division the mean of all multiplies the reward by (G−1)/G, and KL(π_ref‖π) grows fast "
            "as wrong answers lose probability.",
        },
    ),
    Exercise(
        key="nb15.leave_one_out",
        title="RLOO's advantages",
        objective="write the leave-one-out baseline without a loop",
        difficulty=1,
        minutes=5,
        cases=(
            Case("a group of three", {"score": double([[1.0, 2.0, 6.0]])}),
            Case("two groups of four", {"score": double([[0.0, 1.0, 0.0, 0.0], [2.0, -1.0, 0.5, 3.0]])}),
        ),
        solution=leave_one_out,
        mistakes=wrong_answers(
            leave_one_out,
            {
                "mean of all": lambda s: s - s.mean(-1, keepdim=True),
                "divided by G": lambda s: s - (s.sum(-1, keepdim=True) - s) / s.shape[-1],
                "sign": lambda s: (s.sum(-1, keepdim=True) - s) / (s.shape[-1] - 1) - s,
                "only the baseline": lambda s: (s.sum(-1, keepdim=True) - s) / (s.shape[-1] - 1),
                "standard deviation": lambda s: (s - s.mean(-1, keepdim=True)) / s.std(-1, keepdim=True),
            },
            {
                "mean of all": "the baseline contains the response's score itself. RLOO takes the mean of the others.",
                "divided by G": "the sum of the other scores is divided by G, but there are G − 1 of them.",
                "sign": "the sign is wrong.",
                "only the baseline": "this is the baseline. The advantage is the score minus the baseline.",
                "standard deviation": "the advantages are divided by the standard deviation of the group, which RLOO "
                "does not do.",
            },
        ),
        hints=(
            "The sum of the others is the sum of all minus the score itself.",
            "There are G − 1 others, and G is `score.shape[-1]`. Sum with `keepdim=True`.",
        ),
    ),
    Exercise(
        key="nb15.equivalent_beta",
        title="The β of a success rate",
        objective="express every limit for a reward of 0 or 1 as the π* of some β",
        difficulty=2,
        minutes=6,
        cases=(
            Case("three references", {"p_ref": double([0.1, 0.2, 0.3]), "p": double([0.5, 0.6, 0.9])}),
            Case("a rare success", {"p_ref": double([0.01]), "p": double([0.35])}),
        ),
        solution=equivalent_beta,
        mistakes=wrong_answers(
            equivalent_beta,
            {
                "not inverted": lambda ref, p: torch.logit(p) - torch.logit(ref),
                "sign": lambda ref, p: 1 / (ref.logit() - p.logit()),
                "probabilities": lambda ref, p: 1 / (p / ref).log(),
                "no reference": lambda ref, p: 1 / p.logit(),
                "no logarithm": lambda ref, p: 1 / (p / (1 - p) / (ref / (1 - ref))),
            },
            {
                "not inverted": "this is 1/β, the difference of the log-odds.",
                "sign": "the sign is wrong: β is positive if p > p_ref.",
                "probabilities": "the factor exp(1/β) multiplies the odds p/(1 − p) and not the probability.",
                "no reference": "the log-odds of the reference are missing.",
                "no logarithm": "the odds are multiplied by exp(1/β), so take the logarithm of their ratio.",
            },
        ),
        hints=(
            "π* multiplies the probability of each correct response by exp(1/β), and that of each wrong one by 1. What "
            "happens to the odds p/(1 − p)?",
            "The log-odds grow by 1/β. `torch.logit(p)` is the log-odds of p.",
        ),
    ),
    Exercise(
        key="nb15.success_with_k3",
        title="The success rate of the k3 limit",
        objective="compute the limit with k3 for a reward of 0 or 1",
        difficulty=3,
        minutes=10,
        cases=(
            Case("three references", {"p_ref": double([0.1, 0.2, 0.7]), "beta": 0.5}),
            Case("a large β", {"p_ref": double([0.05, 0.4]), "beta": 2.0}),
        ),
        solution=success_with_k3,
        mistakes=wrong_answers(
            success_with_k3,
            {
                "smaller root": lambda p, b: b * p / ((1 + b - ((1 + b) ** 2 - 4 * b * (1 - p)).sqrt()) / 2 - 1),
                "wrong responses": lambda p, b: b * (1 - p) / _root(p, b),
                "π*": lambda p, b: torch.sigmoid(p.logit() + 1 / b),
                "reward forgotten": lambda p, b: b * p / _root(p, b),
                "no beta": lambda p, b: p / (_root(p, b) - 1),
            },
            {
                "smaller root": "this is the smaller root of the quadratic equation. c must be above 1, the largest "
                "reward.",
                "wrong responses": "this is the probability of a wrong response.",
                "π*": "this is the success rate of π*, which belongs to KL(π‖π_ref).",
                "reward forgotten": "the denominator is c − r, and r is 1 here.",
                "no beta": "β is missing from the numerator.",
            },
        ),
        hints=(
            "The limit is β π_ref/(c − r). The two probabilities β p/(c − 1) and β (1 − p)/c must sum to 1.",
            "Multiplied by c (c − 1) this is the equation c² − (1 + β) c + β (1 − p) = 0. Take the larger root.",
        ),
    ),
    TrainingLoop(
        key="nb15.train_rloo",
        title="RLOO from scratch",
        objective="write a group method with the KL term in the score",
        difficulty=2,
        minutes=12,
        arguments=partial(loop_arguments, 60, 2.0, samples=_SAMPLES),
        distance=loop_regret,
        solution=train_rloo,
        loss_falls=False,
        mistakes=wrong_answers(
            train_rloo,
            {
                "samples of the reference": "log_policy.detach().exp() → log_ref.exp()",
                "score with gradient": "log_prob.detach() → log_prob",
                "no KL": "reward.gather(-1, y) - beta * k1 → reward.gather(-1, y)",
                "sign of the KL": "- beta * → + beta *",
                "no beta": "beta * k1 → k1",
                "probability": "others) * log_prob → others) * log_prob.exp()",
                "sign": "loss = -( → loss = (",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "samples of the reference": "the samples come from π_ref, but the gradient assumes samples of π_θ.",
                "score with gradient": "the KL term in the score is not detached, so it is differentiated as well.",
                "no KL": "the KL term is missing from the score.",
                "sign of the KL": "the KL term has the wrong sign, so that distance from the reference is rewarded.",
                "no beta": "β is missing.",
                "probability": "the advantage multiplies π_θ instead of log π_θ.",
                "sign": "the sign is lost, so that descent lowers the objective.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no KL", "sign"),),
        ),
        hints=(
            "One step: sample G responses for each prompt, score them, subtract the mean of the others, and descend on "
            "−A log π_θ(y).",
            "The score is `reward.gather(-1, y) - beta * (log_prob.detach() - log_ref.gather(-1, y))`.",
            "The baseline of each sample is `(score.sum(-1, keepdim=True) - score) / (samples - 1)`.",
        ),
    ),
    TrainingLoop(
        key="nb15.train_dr_grpo",
        title="A KL term that does not keep the policy near the reference",
        objective="find a bug in the KL term of a group method",
        difficulty=3,
        minutes=8,
        arguments=partial(loop_arguments, 60, 2.0, samples=_SAMPLES),
        distance=_from_limit,
        quantity="KL(limit‖π_θ)",
        share=0.02,  # with k2, whose limit is close to that of k3, a loop misses 7%
        solution=train_dr_grpo,
        bug="k1 in the loss",
        loss_falls=False,
        mistakes=wrong_answers(
            train_dr_grpo,
            {
                "k1 in the loss": (
                    "k = log_prob - log_ref.gather(-1, y)\n"
                    "        kl = torch.exp(-k) - 1 + k → "
                    "kl = log_prob - log_ref.gather(-1, y)"
                ),
                "k2 in the loss": "torch.exp(-k) - 1 + k → k.square() / 2",
                "standard deviation": (
                    "advantage = score - score.mean(-1, keepdim=True) → "
                    "advantage = (score - score.mean(-1, keepdim=True)) / score.std(-1, keepdim=True, correction=0)"
                ),
                "moving reference": "log_ref.gather → log_policy.detach().gather",
                "inverted ratio": "log_prob - log_ref.gather(-1, y) → log_ref.gather(-1, y) - log_prob",
                "sign of the KL": "+ beta * → - beta *",
                "no beta": "beta * kl → kl",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "k1 in the loss": "the KL term in the loss is k1 = log π_θ − log π_ref, whose expected gradient is 0.",
                "k2 in the loss": "the KL term is k2, whose limit is π*. GRPO has k3 = exp(−k) − 1 + k.",
                "standard deviation": "the advantages are divided by the standard deviation. Dr. GRPO does not do so.",
                "moving reference": "the KL term refers to the current policy instead of π_ref, so its gradient is 0.",
                "inverted ratio": "the ratio in k3 is inverted. It is π_ref/π_θ.",
                "sign of the KL": "the KL term has the wrong sign.",
                "no beta": "β is missing.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("k1 in the loss", "gradients not reset"), ("k1 in the loss", "no beta")),
        ),
        hints=(
            "Set the reward to 0. Does the KL term return a policy to the reference after it has moved away?",
            "The expected gradient of log π_θ(y) under y ~ π_θ is 0. Notebook 02 shows estimators with another "
            "gradient. GRPO has k3 = exp(−k) − 1 + k.",
        ),
    ),
)
