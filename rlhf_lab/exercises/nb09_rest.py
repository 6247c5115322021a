"""Exercises of notebook 09: ReST, RAFT and best-of-n."""

from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations import rest as derivations
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, GeneratorSeed, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.worlds import bandit


def improve_loss(score: Tensor, log_prob: Tensor, threshold: float) -> Tensor:
    """J(θ) of an Improve step with behaviour cloning, over B prompts with G samples each: a single number."""
    passes = (score > threshold).to(log_prob.dtype)
    return -(passes * log_prob).mean()


def filter_limit(log_ref: Tensor, reward: Tensor, threshold: float) -> Tensor:
    """The limit (X, K) of behaviour cloning on the samples that pass the filter, as probabilities."""
    passing = log_ref.exp() * (reward > threshold)
    return passing / passing.sum(-1, keepdim=True)


def best_of_n(p_ref: Tensor, reward: Tensor, n: int) -> Tensor:
    """The probabilities (K,) of the best of n draws; all rewards differ."""
    upto = (p_ref * (reward[None, :] <= reward[:, None])).sum(-1)
    return upto**n - (upto - p_ref) ** n


def least_regret(log_ref: Tensor, reward: Tensor, beta: float) -> float:
    """The minimum regret at β over all thresholds, for a single prompt, (K,)."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    regrets = []
    for lowest in reward:  # the lowest reward that passes
        log_tau = torch.where(reward >= lowest, log_ref, -torch.inf).log_softmax(-1)
        p = log_tau.exp()
        terms = torch.where(p > 0, p * (log_tau - log_star), 0.0)
        regrets.append(beta * terms.sum().item())
    return min(regrets)


def _limit(log_ref: Tensor, passes: Tensor, axis: int = -1) -> Tensor:
    passing = log_ref.exp() * passes
    return passing / passing.sum(axis, keepdim=True).clamp(min=1e-12)


def _regrets(log_ref: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Regret and expected reward of every threshold, from the one that passes every response, (K,) each."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    regrets, gains = [], []
    for lowest in reward.sort().values:
        p = _limit(log_ref, reward >= lowest)
        regrets.append(beta * (torch.special.xlogy(p, p) - p * log_star).sum())
        gains.append((p * reward).sum())
    return torch.stack(regrets), torch.stack(gains)


def _forward(log_ref: Tensor, reward: Tensor, beta: float) -> float:
    """The minimum of β KL(π*‖π_τ), which is finite only if every response passes."""
    star = (log_ref + reward / beta).softmax(-1)
    return beta * (star * (star.log() - log_ref)).sum().item()


_SAMPLES = {
    "score": double([[0.2, 0.7, 0.9], [0.7, 0.1, 0.95]]),
    "log_prob": double([[-0.5, -1.5, -2.0], [-1.0, -0.2, -3.0]]),
    "threshold": 0.7,
}
_TWO = {
    "log_ref": double([[0.4, 0.3, 0.2, 0.1], [0.1, 0.45, 0.15, 0.3]]).log(),
    "reward": double([[-0.5, 0.0, 1.0, 1.5], [0.5, 0.0, 1.5, -1.0]]),
}
_ONE = {"log_ref": double([0.4, 0.3, 0.2, 0.1]).log(), "reward": double([0.5, -1.0, 1.5, 1.0])}

_WORLD, _TAU, _N = bandit.lecture(), 0.3, 4


def _two_rounds() -> str:
    """Which best-of-n best-of-4 of best-of-4 is."""
    log_ref, reward = _WORLD.log_ref(), _WORLD.rewards()
    twice = exact.best_of_n(exact.best_of_n(log_ref, reward, 4), reward, 4)
    found = {letter: exact.best_of_n(log_ref, reward, n) for letter, n in {"A": 4, "B": 8, "C": 16}.items()}
    return min(found, key=lambda letter: (found[letter] - twice).abs().max().item())


def _passes(w: RandomWorld) -> Tensor:
    return (w.reward > w.threshold).double()


def filter_gradient(w: Any) -> Any:
    """The gradient of E[F log π_θ] in the logits of a table, (X, K)."""
    passing = w.ref * w.passes
    return passing - passing.sum(-1, keepdim=True) * w.policy


def train_raft(
    logits: Tensor,
    reward: Tensor,
    n: int,
    copies: int,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """One round of RAFT, with `copies` times the best of n samples for each prompt."""
    policy = logits.detach().softmax(-1)
    y = torch.multinomial(policy, copies * n, True, generator=generator)
    score = reward.gather(-1, y).reshape(len(reward), copies, n)
    best = score.argmax(-1, keepdim=True)
    y = y.reshape(len(reward), copies, n).gather(-1, best).squeeze(-1)
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = -logits.log_softmax(-1).gather(-1, y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def improve(
    logits: Tensor,
    reward: Tensor,
    threshold: float,
    samples: int,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """A Grow and an Improve step of ReST, with rewards scaled to [0, 1]."""
    policy = logits.detach().softmax(-1)
    y = torch.multinomial(policy, samples, True, generator=generator)
    r = reward.gather(-1, y)
    score = (r - r.min()) / (r.max() - r.min())
    passes = (score > threshold).to(r.dtype)
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_prob = logits.log_softmax(-1).gather(-1, y)
        loss = -(passes * log_prob).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _raft_arguments() -> dict[str, object]:
    return {
        "logits": _WORLD.log_ref().clone().requires_grad_(True),
        "reward": _WORLD.rewards(),
        "n": _N,
        "copies": 1000,
        "steps": 60,
        "learning_rate": 2.0,
        "generator": GeneratorSeed(0),
    }


def _rest_arguments() -> dict[str, object]:
    return {
        "logits": _WORLD.log_ref().clone().requires_grad_(True),
        "reward": _WORLD.rewards(),
        "threshold": _TAU,
        "samples": 2000,
        "steps": 60,
        "learning_rate": 4.0,
        "generator": GeneratorSeed(0),
    }


def _from_best_of_n(logits: Tensor) -> float:
    limit = exact.best_of_n(_WORLD.log_ref(), _WORLD.rewards(), _N)
    return exact.kl(limit, logits.log_softmax(-1)).mean().item()


def _from_filter(logits: Tensor) -> float:
    reward = _WORLD.rewards()
    score = (reward - reward.min()) / (reward.max() - reward.min())
    limit = exact.filtered(_WORLD.log_ref(), score, _TAU)
    return exact.kl(limit, logits.log_softmax(-1)).mean().item()


EXERCISES: tuple[Task, ...] = (
    NextLine(
        key="nb09.filter_gradient",
        title="The gradient of cloning what passes",
        objective="differentiate the expected loss of an Improve step",
        difficulty=2,
        minutes=8,
        derivation=derivations.filter_limit,
        line=4,
        quantities=("ref", "policy"),
        defined={"passes": ("F, 1 for a response that passes and 0 otherwise, (X, K)", _passes)},
        solution=filter_gradient,
        mistakes=wrong_answers(
            filter_gradient,
            {
                "share missing": lambda w: w.ref * w.passes / (w.ref * w.passes).sum(-1, keepdim=True) - w.policy,
                "sign": lambda w: (w.ref * w.passes).sum(-1, keepdim=True) * w.policy - w.ref * w.passes,
                "no filter": lambda w: w.ref - w.policy,
                "normaliser forgotten": lambda w: w.ref * w.passes,
            },
            {
                "share missing": "the share of samples that pass is missing. A prompt whose samples rarely pass has a "
                "small gradient.",
                "sign": "the sign is wrong. The gradient increases the logits of the responses that pass too rarely.",
                "no filter": "the filter is missing. This is the gradient of cloning every sample.",
                "normaliser forgotten": "the normaliser of the policy is not differentiated. A larger logit lowers the "
                "probabilities of the other responses.",
            },
        ),
        hints=(
            "In a table, ∇ log π_θ(y) is the unit vector e_y minus π_θ. Insert it into E[F ∇ log π_θ(y)].",
            "The unit vectors give π_ref F. The policy is multiplied by E[F], which is `(w.ref * w.passes).sum(-1, "
            "keepdim=True)`.",
        ),
    ),
    Prediction(
        key="nb09.two_rounds",
        title="Two rounds of RAFT",
        objective="predict the limit of several rounds of selection",
        difficulty=2,
        minutes=2,
        question=(
            "RAFT runs for two rounds with n = 4 and infinitely many samples. In the second round it samples from the "
            "policy of the first round. To which policy does it converge?"
        ),
        options={"A": "Best-of-4.", "B": "Best-of-8.", "C": "Best-of-16."},
        truth=_two_rounds,
        explanation=(
            "Each of the four samples of the second round is itself the best of four draws from the reference, so the "
            "best of them is the best of 16 draws."
        ),
        why_not={
            "A": "the second round does not repeat the first one, because it samples from a better policy.",
            "B": "the draws do not add up. The second round takes four samples, and each of them is already the best "
            "of four.",
        },
    ),
    TrainingLoop(
        key="nb09.train_raft",
        title="A round of RAFT from scratch",
        objective="write RAFT's sampling, selection and training loop in plain PyTorch",
        difficulty=2,
        minutes=12,
        arguments=_raft_arguments,
        distance=_from_best_of_n,
        quantity="KL(best-of-n‖π_θ)",
        solution=train_raft,
        mistakes=wrong_answers(
            train_raft,
            {
                "worst of n": "best = score → best = (-score)",
                "every sample": "y = y.reshape(len(reward), copies, n).gather(-1, best).squeeze(-1) → pass",
                "best of all samples": (
                    "y = y.reshape(len(reward), copies, n).gather(-1, best).squeeze(-1) → "
                    "y = y.gather(-1, reward.gather(-1, y).argmax(-1, keepdim=True))"
                ),
                "new samples in every step": (
                    "for _ in range(steps): → "
                    "for step in range(steps):\n"
                    "        if step:\n"
                    "            policy = logits.detach().softmax(-1)\n"
                    "            y = torch.multinomial(policy, copies * n, True, generator=generator)\n"
                    "            best = reward.gather(-1, y).reshape(len(reward), copies, n).argmax(-1, keepdim=True)\n"
                    "            y = y.reshape(len(reward), copies, n).gather(-1, best).squeeze(-1)"
                ),
                "weighted by the reward": (
                    "-logits.log_softmax(-1).gather(-1, y).mean() → "
                    "-(reward.gather(-1, y) * logits.log_softmax(-1).gather(-1, y)).mean()"
                ),
                "sign": "loss = -logits → loss = logits",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "worst of n": "the sample with the lowest score is selected.",
                "every sample": "nothing is selected. The policy is cloned as it is.",
                "best of all samples": "one response is selected from all samples of a prompt. Select the best of "
                "every n of them.",
                "new samples in every step": "new samples are drawn in every step. A round samples once, from the "
                "policy at its start.",
                "weighted by the reward": "the loss is weighted by the reward. RAFT clones the selected responses with "
                "equal weights.",
                "sign": "the sign is lost, so that descent lowers the probability of the selected responses.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("worst of n", "sign"),),
        ),
        hints=(
            "Sample once before the first step, select the best of every n samples, and then fit by cross-entropy.",
            "`torch.multinomial(logits.detach().softmax(-1), copies * n, True, generator=generator)` draws the "
            "samples. Reshape them and their rewards to (X, copies, n), and take `argmax(-1)` of the rewards.",
            "The loss is `-logits.log_softmax(-1).gather(-1, y).mean()` with the selected responses y, (X, copies).",
        ),
    ),
    TrainingLoop(
        key="nb09.improve",
        title="One threshold for two prompts",
        objective="find a bug in the scaling of the rewards",
        difficulty=2,
        minutes=8,
        arguments=_rest_arguments,
        distance=_from_filter,
        quantity="KL(π_τ‖π_θ)",
        solution=improve,
        bug="range of each prompt",
        mistakes=wrong_answers(
            improve,
            {
                "range of each prompt": (
                    (
                        "score = (r - r.min()) / (r.max() - r.min()) → "
                        "low, high = r.amin(-1, keepdim=True), r.amax(-1, keepdim=True)"
                    ),
                    "(score > threshold) → ((r - low) / (high - low) > threshold)",
                ),
                "not scaled": "(r - r.min()) / (r.max() - r.min()) → r",
                "inverted filter": "score > threshold → score <= threshold",
                "no filter": "passes * log_prob → log_prob",
                "sign": "loss = -(passes → loss = (passes",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "range of each prompt": "the rewards of each prompt are scaled by the range of that prompt.",
                "not scaled": "the rewards are not scaled before they are compared with the threshold.",
                "inverted filter": "the samples below the threshold are cloned.",
                "no filter": "every sample is cloned.",
                "sign": "the sign is lost, so that descent lowers the probability of what passes.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("range of each prompt", "sign"), ("range of each prompt", "gradients not reset")),
        ),
        hints=(
            "Print which responses pass for each prompt, and compare with section 1. Which range does ReST use?",
            "The paper uses one range for the whole data set, so `r.min()` and `r.max()` are over all prompts.",
        ),
    ),
    Exercise(
        key="nb09.improve_loss",
        title="The loss of an Improve step",
        objective="write the slide's J(θ) as code, with its filter and its expectation over the samples of the Grow "
        "step",
        difficulty=1,
        minutes=5,
        cases=(
            Case("two prompts with three samples each, two of them exactly at τ = 0.7", _SAMPLES),
            Case("the same at τ = 0.15", _SAMPLES | {"threshold": 0.15}),
        ),
        solution=improve_loss,
        differentiate=("log_prob",),
        compare="both",
        mistakes=wrong_answers(
            improve_loss,
            {
                "not strict": lambda s, lp, t: -((s >= t) * lp).mean(),
                "inverted filter": lambda s, lp, t: -((s <= t) * lp).mean(),
                "sign": lambda s, lp, t: ((s > t) * lp).mean(),
                "mean over what passed": lambda s, lp, t: -lp[s > t].mean(),
                "sum for mean": lambda s, lp, t: -((s > t) * lp).sum(),
                "no filter": lambda s, lp, t: -lp.mean(),
                "weighted by the score": lambda s, lp, t: -((s > t) * s * lp).mean(),
            },
            {
                "not strict": "a score equal to τ passes here. The slide's filter is 1[R > τ], a strict inequality.",
                "inverted filter": "the filter is inverted. F is 1 above the threshold.",
                "sign": "the minus sign is missing. The loss of behaviour cloning is −log π_θ. Minimising yours would "
                "lower the probability of the data.",
                "mean over what passed": "this is the mean over the samples that pass. The slide's expectation is over "
                "all samples of the Grow step, and F is inside it.",
                "sum for mean": "this is the sum over the samples, but the slide has an expectation, which is the "
                "mean.",
                "no filter": "the filter is missing. This clones every sample, which gives the same policy again.",
                "weighted by the score": "the samples that pass are weighted by their score, but F is 0 or 1.",
            },
        ),
        hints=(
            "F is a mask. `score > threshold` gives True and False. What is False times a number?",
            "Multiply the mask by `-log_prob`, and take the mean over all samples, including those that failed.",
        ),
    ),
    Exercise(
        key="nb09.filter_limit",
        title="The limit of one filter",
        objective="write the policy to which cloning filtered samples converges, and see that it does not depend on β",
        difficulty=1,
        minutes=5,
        cases=(
            Case("two prompts, τ = 0, with a reward exactly at τ in both", _TWO | {"threshold": 0.0}),
            Case("two prompts, τ = −0.7", _TWO | {"threshold": -0.7}),
        ),
        solution=filter_limit,
        mistakes=wrong_answers(
            filter_limit,
            {
                "not strict": lambda lr, r, t: _limit(lr, r >= t),
                "not normalised": lambda lr, r, t: lr.exp() * (r > t),
                "wrong axis": lambda lr, r, t: _limit(lr, r > t, 0),
                "no reference": lambda lr, r, t: _limit(torch.zeros_like(lr), r > t),
                "tilted": lambda lr, r, t: _limit(lr + r, r > t),
                "inverted filter": lambda lr, r, t: _limit(lr, r <= t),
            },
            {
                "not strict": "a reward equal to τ passes here, but the filter is strict, r > τ.",
                "not normalised": "the rows do not sum to one. Divide by P_ref(r > τ).",
                "wrong axis": "this is normalised over the prompts. Each prompt has a distribution, so sum over the "
                "last axis.",
                "no reference": "all responses that pass have the same probability here, but they are sampled from "
                "π_ref.",
                "tilted": "the responses that pass are tilted by exp(r) here, but above τ the filter does not depend "
                "on the reward.",
                "inverted filter": "the filter is inverted. The responses above the threshold pass.",
            },
        ),
        hints=(
            "Cloning converges to the distribution of the data. Which distribution do samples of π_ref with r > τ "
            "have?",
            "Multiply π_ref by the mask, and divide by the sum over the last axis (`keepdim=True`).",
        ),
    ),
    Exercise(
        key="nb09.best_of_n",
        title="The exact distribution of best-of-n",
        objective="write best-of-n's probabilities from the distribution function of the reward",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "four responses, n = 3",
                {"p_ref": double([0.4, 0.3, 0.2, 0.1]), "reward": double([0.5, -1.0, 1.5, 1.0]), "n": 3},
            ),
            Case("two responses, n = 2", {"p_ref": double([0.25, 0.75]), "reward": double([2.0, -2.0]), "n": 2}),
        ),
        solution=best_of_n,
        mistakes=wrong_answers(
            best_of_n,
            {
                "density": "upto**n - (upto - p_ref) ** n → n * p_ref * upto ** (n - 1)",
                "no subtraction": "upto**n - (upto - p_ref) ** n → upto**n",
                "worst of n": "reward[None, :] <= reward[:, None] → reward[None, :] >= reward[:, None]",
                "left in order": lambda p, r, n: best_of_n(p, r, n)[r.argsort()],
                "one too many": lambda p, r, n: best_of_n(p, r, n + 1),
                "tempered": lambda p, r, n: p**n / (p**n).sum(),
            },
            {
                "density": "n π F^{n−1} is the formula for a density. In a finite set a response can be drawn twice, "
                "so these numbers do not sum to one.",
                "no subtraction": "F^n is the chance that no draw is better than y, including the case that y was "
                "never drawn. Subtract the chance that all are worse.",
                "worst of n": "this is the worst of n draws, because the comparison of the rewards is inverted.",
                "left in order": "the result is sorted by reward. Give the probabilities in the order of the input.",
                "one too many": "this is one draw too many, because n counts all draws.",
                "tempered": "π_ref^n, normalised, does not depend on the reward. It is the reference at a lower "
                "temperature.",
            },
        ),
        hints=(
            "The best of n is y if no draw is better than y, and not all draws are worse.",
            "Let F(y) = P_ref(r ≤ r(y)). All draws are at most as good as y with probability F^n, and all are worse "
            "with probability (F − π_ref)^n.",
            "`(p_ref * (reward[None, :] <= reward[:, None])).sum(-1)` is F.",
        ),
    ),
    Exercise(
        key="nb09.least_regret",
        title="The best threshold",
        objective="compute for a given β how close the filter can come to π* with the best threshold",
        difficulty=3,
        minutes=12,
        cases=(
            Case("four responses, β = 0.5", _ONE | {"beta": 0.5}),
            Case("four responses, β = 2", _ONE | {"beta": 2.0}),
        ),
        solution=least_regret,
        mistakes=wrong_answers(
            least_regret,
            {
                "no beta": lambda lr, r, b: _regrets(lr, r, b)[0].min().item() / b,
                "most reward": lambda lr, r, b: _regrets(lr, r, b)[0][-1].item(),
                "worst threshold": lambda lr, r, b: _regrets(lr, r, b)[0].max().item(),
                "mean over thresholds": lambda lr, r, b: _regrets(lr, r, b)[0].mean().item(),
                "swapped KL": _forward,
            },
            {
                "no beta": "β is missing. A KL is in nats, a regret in units of reward.",
                "most reward": "this takes the threshold with the highest reward and ignores its KL.",
                "worst threshold": "this is the maximum regret over the thresholds, not the minimum.",
                "mean over thresholds": "this is the mean over the thresholds. Choose the best one.",
                "swapped KL": "KL(π*‖π_τ) is infinite as soon as the filter drops a response. Regret is β KL(π_τ‖π*).",
            },
        ),
        hints=(
            "Only K thresholds differ, one for each response that can be the lowest one to pass.",
            "Regret is β KL(π_τ‖π*), with π* the softmax of log π_ref + r/β. Where π_τ is zero, its term is zero.",
            "`torch.special.xlogy(p, p)` is p log p with 0 at p = 0.",
        ),
    ),
)
