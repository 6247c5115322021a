"""Exercises of notebook 02: the KL divergence and its estimators."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.kl import kl_gradient_k2, kl_gradient_k3
from rlhf_lab.exercises.checking import Case, Complaint, Exercise, Measure, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop

_PI = double([0.7, 0.2, 0.1]).log()
_REF = double([0.3, 0.3, 0.4]).log()
_SURE = double([0.04, 0.9, 0.06]).log()
_TWO_PROMPTS = (double([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log(), double([[0.2, 0.2, 0.6], [0.3, 0.5, 0.2]]).log())


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of (…, K) log-probabilities, (…)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def k3(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    """One estimate of KL(π‖π_ref) for each sample of π."""
    k = log_policy - log_ref
    return torch.exp(-k) - 1 + k


def response_k1(log_policy: Tensor, log_ref: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) − log π_ref(y|x) of each response, (B, G), from tokens (B, G, T)."""
    return ((log_policy - log_ref) * mask).sum(-1)


def kl_term(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    """A loss term of each sample; its mean gradient is that of KL(π‖π_ref)."""
    k = log_policy - log_ref
    return k.detach() * log_policy


def _scores(w: Any, weight: Tensor) -> Any:
    """E_π[weight ∇ log π] with respect to the logits, (X, K)."""
    return w.policy * (weight - (w.policy * weight).sum(-1, keepdim=True))


_BATCHES = (2, 3)


def _expected_gradient(term: Callable[..., Tensor], log_policy: Tensor, log_ref: Tensor) -> list[Tensor]:
    """The expectation of the gradient of a batch's mean term, with respect to the K logits of the policy.

    Every batch of two draws and every batch of three is enumerated with its probability. A term may therefore use the
    rest of its batch, as a baseline does, and its value and its noise do not matter.
    """
    logits = log_policy.clone().requires_grad_(True)
    found = []
    for size in _BATCHES:
        log_p = logits.log_softmax(-1)
        loss = torch.zeros((), dtype=log_p.dtype)
        for drawn in map(list, itertools.product(range(len(log_p)), repeat=size)):
            terms = term(log_p[drawn], log_ref[drawn])
            if not isinstance(terms, Tensor):
                raise Complaint("the function must return a tensor that can be differentiated.")
            if terms.shape != (size,):
                raise Complaint(
                    f"give one value for each sample, here shape ({size},), not {tuple(terms.shape)}. The caller takes "
                    "the mean over the samples."
                )
            loss = loss + log_policy[drawn].sum().exp() * terms.mean()
        if not loss.requires_grad:
            raise Complaint("no gradient reaches log_policy, so nothing can be trained. Was all of it detached?")
        found.append(torch.autograd.grad(loss, logits)[0])
    return found


def _self_in_baseline(got: object, want: list[Tensor]) -> str:
    """A remark if the gradient is (n − 1)/n times the correct one in batches of n, as with the mean as a baseline."""
    if not isinstance(got, list):
        return ""
    scaled = [gradient * (size - 1) / size for gradient, size in zip(want, _BATCHES, strict=True)]
    if not all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(got, scaled, strict=True)):
        return ""
    return (
        "In batches of n your gradient is (n − 1)/n of the correct one, because the baseline contains the sample "
        "itself. "
        "The direction is correct; with the mean of the other samples the size is correct too."
    )


_SAMPLES = {"log_policy": double([-0.4, -1.2, -2.3]), "log_ref": double([-1.2, -1.2, -0.9])}
_TOKENS = {
    "log_policy": double([[[-0.5, -1.0, -0.2], [-2.0, -0.3, -9.0]]]),
    "log_ref": double([[[-0.7, -0.4, -0.9], [-1.0, -0.8, -1.0]]]),
    "mask": torch.tensor([[[True, True, True], [True, True, False]]]),
}


def _effect_of_k1() -> str:
    """What descent on the mean of k1 does to KL(π‖π_ref) on average: A lowers it, B raises it, C neither."""
    logits = _PI.clone().requires_grad_(True)
    (uphill,) = torch.autograd.grad(exact.kl(logits.log_softmax(-1), _REF), logits)
    change = -float(_expected_gradient(lambda log_policy, log_ref: log_policy - log_ref, _PI, _REF)[0] @ uphill)
    return "C" if abs(change) < 1e-12 else "A" if change < 0 else "B"


def gradient_of_the_kl(w: Any) -> Any:
    """∇KL(π‖π_ref) with respect to the logits of π, (X, K)."""
    divergence = (w.policy * w.log_ratio).sum(-1, keepdim=True)
    return w.policy * (w.log_ratio - divergence)


def gradient_of_k3(w: Any) -> Any:
    """∇KL(π_ref‖π) with respect to the logits of π, (X, K)."""
    return w.policy - w.ref


def policy_gradient_with_k2(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """REINFORCE on the reward, with β k2 in the loss: train `logits`, return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        p = log_policy.detach().exp()
        drawn = torch.multinomial(p, samples, True, generator=generator)
        log_prob = log_policy.gather(-1, drawn)
        k2 = (log_prob - log_ref.gather(-1, drawn)).square() / 2
        loss = (-reward.gather(-1, drawn) * log_prob + beta * k2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def reinforce_with_kl(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """REINFORCE on the reward minus β KL: train `logits` in place and return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        p = log_policy.detach().exp()
        drawn = torch.multinomial(p, samples, True, generator=generator)
        log_prob = log_policy.gather(-1, drawn)
        k1 = log_prob - log_ref.gather(-1, drawn)
        value = reward.gather(-1, drawn) - beta * k1.detach()
        loss = -(value * log_prob).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb02.effect_of_k1",
        title="The effect of k1 as a loss",
        objective="predict the effect of a KL estimator from its gradient, not from its value",
        difficulty=2,
        minutes=2,
        question=(
            "You draw samples from the policy and minimise the mean of "
            "$k_1=\\log\\pi_\\theta(y)-\\log\\pi_\\text{ref}(y)$ over them by gradient descent. Autograd "
            "treats the samples as constants. What happens to the policy on average?"
        ),
        options={
            "A": "It moves towards the reference, because $k_1$ is an unbiased estimate of the KL.",
            "B": "It moves away from the reference.",
            "C": "It stays where it is.",
        },
        truth=_effect_of_k1,
        explanation=(
            "The gradient of k1 is ∇log π, whose mean under π is zero. The value of k1 is unbiased, but its gradient "
            "is not the gradient of the KL."
        ),
        why_not={
            "A": "an unbiased value does not make the gradient unbiased. The derivative must also count that the "
            "samples come from π.",
            "B": "the expected gradient is zero. Single steps move the policy, but they cancel on average.",
        },
    ),
    NextLine(
        key="nb02.gradient_of_the_kl",
        title="The gradient of KL(π‖π_ref)",
        objective="differentiate KL(π‖π_ref) with respect to the logits of a softmax",
        difficulty=2,
        minutes=6,
        derivation=kl_gradient_k2,
        line=3,
        quantities=("policy", "log_ratio"),
        solution=gradient_of_the_kl,
        mistakes=wrong_answers(
            gradient_of_the_kl,
            {
                "no mean": lambda w: w.policy * w.log_ratio,
                "derivative with respect to π": lambda w: w.policy * (w.log_ratio + 1),
                "sign": lambda w: -gradient_of_the_kl(w),
                "twice": lambda w: 2 * gradient_of_the_kl(w),
                "no probability": lambda w: w.log_ratio - (w.policy * w.log_ratio).sum(-1, keepdim=True),
            },
            {
                "no mean": "the mean of k is not subtracted. A larger logit of one response lowers all other "
                "probabilities.",
                "derivative with respect to π": "this is π times the derivative with respect to π(y), with the 1 of "
                "the product rule. The softmax of the logits is missing from the chain rule.",
                "sign": "the sign is wrong. The gradient is positive where π is too large, that is where k is above "
                "its mean.",
                "twice": "this is twice the gradient. The ½ of k2 cancels the 2 of the square.",
                "no probability": "the factor π(y) is missing. The derivative of log π(y') with respect to the logit "
                "of y is 1[y' = y] − π(y).",
            },
        ),
        hints=(
            "Which k does the gradient ∇π(y') multiply? For a softmax, ∂π(y')/∂θ_y = π(y') (1[y' = y] − π(y)).",
            "Σ_y' k(y') π(y') (1[y' = y] − π(y)) has two parts: π(y) k(y), and π(y) times the mean of k.",
        ),
    ),
    NextLine(
        key="nb02.gradient_of_k3",
        title="The expected gradient of k3",
        objective="find out which divergence k3 minimises as a loss",
        difficulty=2,
        minutes=5,
        derivation=kl_gradient_k3,
        line=3,
        quantities=("policy", "ref", "log_ratio"),
        solution=gradient_of_k3,
        mistakes=wrong_answers(
            gradient_of_k3,
            {
                "sign": lambda w: w.ref - w.policy,
                "own logit only": lambda w: -w.ref,
                "zero": lambda w: torch.zeros_like(w.policy),
                "log-ratio": lambda w: w.log_ratio,
                "inverted ratio": lambda w: _scores(w, torch.expm1(w.log_ratio)),
            },
            {
                "sign": "the sign is wrong. Gradient descent must increase π where it is below π_ref.",
                "own logit only": "this uses ∂log π(y)/∂θ_y = 1, but the normalisation of the softmax depends on θ_y "
                "too.",
                "zero": "this is the expected gradient of k1. For k3 the term e^{−k} has a gradient too.",
                "log-ratio": "this is k, not its gradient.",
                "inverted ratio": "this is the gradient for e^{k} − 1 − k, which is k3 with the inverted ratio.",
            },
        ),
        hints=(
            "Write log π(y) = θ_y − log Σ_y' e^{θ_y'}. What is its derivative with respect to the logit of another "
            "response?",
            "−Σ_y' π_ref(y') (1[y' = y] − π(y)) has two parts. The probabilities of the reference sum to one.",
        ),
    ),
    TrainingLoop(
        key="nb02.policy_gradient_with_k2",
        title="A policy gradient with k2 in the loss",
        objective="write a training loop whose KL term has the correct expected gradient",
        difficulty=2,
        minutes=12,
        arguments=partial(loop_arguments, 60, 1.0, samples=128),
        distance=loop_regret,
        loss_falls=False,
        solution=policy_gradient_with_k2,
        mistakes=wrong_answers(
            policy_gradient_with_k2,
            {
                "k1 as a loss": "drawn)).square() / 2 → drawn))",
                "k3 as a loss": (
                    (
                        "k2 = (log_prob - log_ref.gather(-1, drawn)).square() / 2 → "
                        "k1 = log_prob - log_ref.gather(-1, drawn)"
                    ),
                    "beta * k2 → beta * (torch.exp(-k1) - 1 + k1)",
                ),
                "no half": ".square() / 2 → .square()",
                "sign of the penalty": "+ beta * → - beta *",
                "sign of the reward": "-reward.gather → reward.gather",
                "sampled once": (
                    "for _ in → for step in",
                    "drawn = → drawn = drawn if step else",
                ),
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "k1 as a loss": "this uses k1 in the loss. Its expected gradient is zero.",
                "k3 as a loss": "this uses k3 in the loss. Its expected gradient is that of KL(π_ref‖π), so the loop "
                "converges to another policy.",
                "no half": "the penalty is twice as large as it should be. Is the ½ of k2 missing, or β?",
                "sign of the penalty": "the penalty has the wrong sign, so distance from the reference is rewarded.",
                "sign of the reward": "the reward has the wrong sign. Gradient descent on the loss then lowers the "
                "reward.",
                "sampled once": "the responses are sampled once and used in every step. After the first step they are "
                "no longer samples of the policy.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no half", "sampled once"), ("k1 as a loss", "sign of the reward")),
        ),
        hints=(
            "A step samples responses from the current policy, computes a loss for each of them, and takes the mean.",
            "The loss of a sample is −r · log π(y) + β k²/2 with k = log π(y) − log π_ref(y).",
            "`torch.multinomial(p, samples, True, generator=generator)` samples, and `log_policy.gather(-1, drawn)` "
            "is log π of the samples.",
        ),
    ),
    TrainingLoop(
        key="nb02.reinforce_with_kl",
        title="A KL penalty without effect",
        objective="find the bug in a policy-gradient loop with a KL penalty",
        difficulty=3,
        minutes=10,
        arguments=partial(loop_arguments, 60, 1.0, samples=128),
        distance=loop_regret,
        loss_falls=False,
        solution=reinforce_with_kl,
        bug="k1 as a loss",
        mistakes=wrong_answers(
            reinforce_with_kl,
            {
                "k1 as a loss": (
                    "value = reward.gather(-1, drawn) - beta * k1.detach()\n"
                    "        loss = -(value * log_prob).mean() → "
                    "loss = -(reward.gather(-1, drawn) * log_prob).mean() + beta * k1.mean()"
                ),
                "k3 as a loss": (
                    "reward.gather(-1, drawn) - beta * k1.detach() → reward.gather(-1, drawn)",
                    "(value * log_prob).mean() → (value * log_prob).mean() + beta * (torch.exp(-k1) - 1 + k1).mean()",
                ),
                "not detached": "k1.detach() → k1",
                "sign of the penalty": "- beta * → + beta *",
                "sign of the reward": "reward.gather(-1, drawn) → -reward.gather(-1, drawn)",
                "no beta": "beta * k1 → k1",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "k1 as a loss": "k1 is a term of the loss, and its expected gradient is zero.",
                "k3 as a loss": "k3 as a loss has the expected gradient of the other divergence, KL(π_ref‖π). Here "
                "KL(π‖π_ref) is penalised.",
                "not detached": "k1 is multiplied by log π without being detached, so that the product rule adds log π "
                "· ∇k1.",
                "sign of the penalty": "the penalty has the wrong sign, so distance from the reference is rewarded.",
                "sign of the reward": "the reward has the wrong sign. Gradient descent on the loss then lowers the "
                "reward.",
                "no beta": "β is missing from the penalty.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(
                ("k1 as a loss", "sign of the reward"),
                ("k1 as a loss", "gradients not reset"),
                ("no beta", "not detached"),
            ),
        ),
        hints=(
            "Train once with β = 0 and once with a large β. What do you expect, and what do you see?",
            "Which expected gradient does the term with k1 have? Section 4 of the notebook computes it.",
            "Subtract β k1 from the reward, as a number: `k1.detach()`.",
        ),
    ),
    Exercise(
        key="nb02.kl",
        title="KL of two tables",
        objective="compute KL(p‖q) from log-probabilities, summing over the correct axis",
        difficulty=1,
        minutes=4,
        cases=(
            Case("three responses", {"log_p": _PI, "log_q": _REF}),
            Case("two prompts", {"log_p": _TWO_PROMPTS[0], "log_q": _TWO_PROMPTS[1]}),
        ),
        solution=kl,
        mistakes=wrong_answers(
            kl,
            {
                "swapped KL": lambda log_p, log_q: (log_q.exp() * (log_q - log_p)).sum(-1),
                "sign": lambda log_p, log_q: (log_p.exp() * (log_q - log_p)).sum(-1),
                "mean for sum": lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).mean(-1),
                "wrong axis": lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).sum(0),
                "summed over everything": lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).sum(),
                "no weights": lambda log_p, log_q: (log_p - log_q).sum(-1),
                "forgot exp": lambda log_p, log_q: (log_p * (log_p - log_q)).sum(-1),
            },
            {
                "swapped KL": "this is KL(q‖p). The expectation is under the first argument.",
                "sign": "the sign is wrong. This is −KL, and a KL is never negative.",
                "mean for sum": "this is a mean over the responses instead of a sum. The weights are p, and nothing is "
                "divided by K.",
                "wrong axis": "the sum is over the wrong axis. The responses are the last axis, and every prompt has "
                "its own KL.",
                "summed over everything": "this is one number for all prompts. Sum over the last axis only; every "
                "prompt has its own KL.",
                "no weights": "the log-ratios are summed without weights, but an expectation under p multiplies each "
                "by p.",
                "forgot exp": "the weights are log p instead of p. The weights of an expectation are probabilities.",
            },
        ),
        hints=(
            "An expectation over a finite set is a sum of probability times value. Which values and which "
            "probabilities do you need?",
            "The values are `log_p - log_q`, and the probabilities are `log_p.exp()`. Which axis has the responses?",
        ),
    ),
    Exercise(
        key="nb02.k3",
        title="k3 of a sample",
        objective="write the estimator that is unbiased and never negative",
        difficulty=1,
        minutes=3,
        cases=(
            Case("three samples", _SAMPLES),
            Case("π equals π_ref", {"log_policy": _REF, "log_ref": _REF}),
        ),
        solution=k3,
        mistakes=wrong_answers(
            k3,
            {
                "inverted ratio": lambda log_policy, log_ref: (
                    torch.exp(log_policy - log_ref) - 1 - (log_policy - log_ref)
                ),
                "forgot the minus one": lambda log_policy, log_ref: (
                    torch.exp(log_ref - log_policy) + (log_policy - log_ref)
                ),
                "sign of k": lambda log_policy, log_ref: torch.exp(log_ref - log_policy) - 1 - (log_policy - log_ref),
                "k1": lambda log_policy, log_ref: log_policy - log_ref,
                "k2": lambda log_policy, log_ref: (log_policy - log_ref).square() / 2,
                "mean over samples": lambda log_policy, log_ref: k3(log_policy, log_ref).mean(),
            },
            {
                "inverted ratio": "the ratio is inverted. With samples from π, k is log π − log π_ref.",
                "forgot the minus one": "the estimate is not zero where π equals π_ref. A constant is missing.",
                "sign of k": "the sign of k outside the exponential is wrong, so the mean is not the KL.",
                "k1": "this is k1, which is unbiased too but can be negative. Add a term with mean zero that makes it "
                "non-negative.",
                "k2": "this is k2, k²/2. It is never negative, but its mean is not the KL.",
                "mean over samples": "this is averaged over the samples. Give one value for each sample; the caller "
                "takes the mean.",
            },
        ),
        hints=(
            "Let k = log π − log π_ref. E_π[k] is the KL. Which other term has the expectation zero under π and can be "
            "added?",
            "E_π[π_ref/π] = 1, and π_ref/π = exp(−k).",
        ),
    ),
    Exercise(
        key="nb02.response_k1",
        title="From tokens to a response",
        objective="sum a penalty over the tokens of a response and over no others",
        difficulty=2,
        minutes=5,
        cases=(Case("two responses, the second one shorter", _TOKENS),),
        solution=response_k1,
        mistakes=wrong_answers(
            response_k1,
            {
                "no mask": lambda log_policy, log_ref, mask: (log_policy - log_ref).sum(-1),
                "mean for sum": lambda log_policy, log_ref, mask: (
                    ((log_policy - log_ref) * mask).sum(-1) / mask.sum(-1)
                ),
                "mean over padding": lambda log_policy, log_ref, mask: ((log_policy - log_ref) * mask).mean(-1),
                "wrong axis": lambda log_policy, log_ref, mask: ((log_policy - log_ref) * mask).sum(1),
                "sign": lambda log_policy, log_ref, mask: ((log_ref - log_policy) * mask).sum(-1),
                "inverted mask": lambda log_policy, log_ref, mask: ((log_policy - log_ref) * ~mask).sum(-1),
            },
            {
                "no mask": "padding is counted. Positions outside the mask belong to no response.",
                "mean for sum": "this is divided by the length. log π(y|x) is the sum over tokens, so its log-ratio is "
                "a sum too.",
                "mean over padding": "this is a mean over all positions with padding. Take the sum, and exclude "
                "padding by the mask.",
                "wrong axis": "the sum is over the responses, but the tokens are the last axis of (B, G, T).",
                "sign": "the ratio is inverted. This would reward distance from the reference.",
                "inverted mask": "the mask is inverted. It is True on the response's tokens.",
            },
        ),
        hints=(
            "The probability of a response is the product of its tokens' probabilities. What is its logarithm?",
            "Multiply by the mask before you sum, and sum over the last axis.",
        ),
    ),
    Exercise(
        key="nb02.kl_term",
        title="A loss term with the gradient of KL(π‖π_ref)",
        objective="write a per-sample loss term whose expected gradient is that of KL(π‖π_ref)",
        difficulty=3,
        minutes=8,
        cases=(
            Case("samples of a policy over three responses", {"log_policy": _PI, "log_ref": _REF}),
            Case("a policy that gives one response far too often", {"log_policy": _SURE, "log_ref": _REF}),
        ),
        solution=kl_term,
        measure=Measure(
            "the expected gradient with respect to the logits, in batches of two and of three", _expected_gradient
        ),
        also=_self_in_baseline,
        mistakes=wrong_answers(
            kl_term,
            {
                "k1 as a loss": lambda log_policy, log_ref: log_policy - log_ref,
                "k3 as a loss": k3,
                "forgot detaching": lambda log_policy, log_ref: (log_policy - log_ref) * log_policy,
                "log π for the log-ratio": lambda log_policy, log_ref: log_policy.detach() * log_policy,
                "weighted twice": lambda log_policy, log_ref: log_policy.exp() * (log_policy - log_ref),
                "sign": lambda log_policy, log_ref: -(log_policy - log_ref).detach() * log_policy,
                "forgot the half": lambda log_policy, log_ref: (log_policy - log_ref).square(),
            },
            {
                "k1 as a loss": "this is k1 as a loss. Its gradient is ∇log π, which has mean zero, so on average it "
                "has no effect.",
                "k3 as a loss": "this is k3 as a loss. Its expected gradient is that of the other divergence, "
                "KL(π_ref‖π).",
                "forgot detaching": "k is not detached. The product rule adds log π · ∇k, which is wrong here.",
                "log π for the log-ratio": "the reference is missing. This is the gradient of the negative entropy, "
                "E[log π].",
                "weighted twice": "the samples come from π already; weighting each by its probability counts it twice.",
                "sign": "the sign is wrong. Descent on this term would move the policy away from the reference.",
                "forgot the half": "this is too large by a factor of two. k² has the gradient 2k ∇k.",
            },
        ),
        hints=(
            "∇KL(π‖π_ref) = E_π[k ∇log π]. You need a term whose gradient is k ∇log π for each sample.",
            "Either treat k as a number (`.detach()`) and multiply it by log π, or find the function of k that has "
            "this derivative.",
        ),
    ),
)
