"""Exercises of notebook 02: the KL divergence and its estimators."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Complaint, Exercise, Measure, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_PI = _double([0.7, 0.2, 0.1]).log()
_REF = _double([0.3, 0.3, 0.4]).log()
_SURE = _double([0.04, 0.9, 0.06]).log()
_TWO_PROMPTS = (_double([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log(), _double([[0.2, 0.2, 0.6], [0.3, 0.5, 0.2]]).log())


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


_SAMPLES = {"log_policy": _double([-0.4, -1.2, -2.3]), "log_ref": _double([-1.2, -1.2, -0.9])}
_TOKENS = {
    "log_policy": _double([[[-0.5, -1.0, -0.2], [-2.0, -0.3, -9.0]]]),
    "log_ref": _double([[[-0.7, -0.4, -0.9], [-1.0, -0.8, -1.0]]]),
    "mask": torch.tensor([[[True, True, True], [True, True, False]]]),
}

EXERCISES = (
    Exercise(
        key="nb02.kl",
        title="KL of two tables",
        objective="write KL(p‖q) from log-probabilities, over the right axis",
        difficulty=1,
        minutes=4,
        cases=(
            Case("three responses", {"log_p": _PI, "log_q": _REF}),
            Case("two prompts", {"log_p": _TWO_PROMPTS[0], "log_q": _TWO_PROMPTS[1]}),
        ),
        solution=kl,
        mistakes=(
            Mistake(
                "swapped KL",
                "this is KL(q‖p). The expectation is under the first argument.",
                lambda log_p, log_q: (log_q.exp() * (log_q - log_p)).sum(-1),
            ),
            Mistake(
                "sign",
                "the sign is wrong. This is −KL, and a KL is never negative.",
                lambda log_p, log_q: (log_p.exp() * (log_q - log_p)).sum(-1),
            ),
            Mistake(
                "mean for sum",
                "this is a mean over the responses instead of a sum. The weights are p, and nothing is divided by K.",
                lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).mean(-1),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the wrong axis. The responses are the last axis, and every prompt has its own KL.",
                lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).sum(0),
            ),
            Mistake(
                "summed over everything",
                "this is one number for all prompts. Sum over the last axis only; every prompt has its own KL.",
                lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).sum(),
            ),
            Mistake(
                "no weights",
                "the log-ratios are summed without weights, but an expectation under p multiplies each by p.",
                lambda log_p, log_q: (log_p - log_q).sum(-1),
            ),
            Mistake(
                "forgot exp",
                "the weights are log p instead of p. The weights of an expectation are probabilities.",
                lambda log_p, log_q: (log_p * (log_p - log_q)).sum(-1),
            ),
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
        mistakes=(
            Mistake(
                "inverted ratio",
                "the ratio is inverted. With samples from π, k is log π − log π_ref.",
                lambda log_policy, log_ref: torch.exp(log_policy - log_ref) - 1 - (log_policy - log_ref),
            ),
            Mistake(
                "forgot the minus one",
                "the estimate is not zero where π equals π_ref. A constant is missing.",
                lambda log_policy, log_ref: torch.exp(log_ref - log_policy) + (log_policy - log_ref),
            ),
            Mistake(
                "sign of k",
                "the sign of k outside the exponential is wrong, so the mean is not the KL.",
                lambda log_policy, log_ref: torch.exp(log_ref - log_policy) - 1 - (log_policy - log_ref),
            ),
            Mistake(
                "k1",
                "this is k1, which is unbiased too but can be negative. Add a term with mean zero that makes it "
                "non-negative.",
                lambda log_policy, log_ref: log_policy - log_ref,
            ),
            Mistake(
                "k2",
                "this is k2, k²/2. It is never negative, but its mean is not the KL.",
                lambda log_policy, log_ref: (log_policy - log_ref).square() / 2,
            ),
            Mistake(
                "mean over samples",
                "this is averaged over the samples. Give one value for each sample; the caller takes the mean.",
                lambda log_policy, log_ref: k3(log_policy, log_ref).mean(),
            ),
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
        mistakes=(
            Mistake(
                "no mask",
                "padding is counted. Positions outside the mask belong to no response.",
                lambda log_policy, log_ref, mask: (log_policy - log_ref).sum(-1),
            ),
            Mistake(
                "mean for sum",
                "this is divided by the length. log π(y|x) is the sum over tokens, so its log-ratio is a sum too.",
                lambda log_policy, log_ref, mask: ((log_policy - log_ref) * mask).sum(-1) / mask.sum(-1),
            ),
            Mistake(
                "mean over padding",
                "this is a mean over all positions with padding. Take the sum, and exclude padding by the mask.",
                lambda log_policy, log_ref, mask: ((log_policy - log_ref) * mask).mean(-1),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the responses, but the tokens are the last axis of (B, G, T).",
                lambda log_policy, log_ref, mask: ((log_policy - log_ref) * mask).sum(1),
            ),
            Mistake(
                "sign",
                "the ratio is inverted. This would reward distance from the reference.",
                lambda log_policy, log_ref, mask: ((log_ref - log_policy) * mask).sum(-1),
            ),
            Mistake(
                "inverted mask",
                "the mask is inverted. It is True on the response's tokens.",
                lambda log_policy, log_ref, mask: ((log_policy - log_ref) * ~mask).sum(-1),
            ),
        ),
        hints=(
            "The probability of a response is the product of its tokens' probabilities. What is its logarithm?",
            "Multiply by the mask before you sum, and sum over the last axis.",
        ),
    ),
    Exercise(
        key="nb02.kl_term",
        title="A loss term with the gradient of KL(π‖π_ref)",
        objective="write a loss term of a sample whose expected gradient is that of KL(π‖π_ref)",
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
        mistakes=(
            Mistake(
                "k1 as a loss",
                "this is k1 as a loss. Its gradient is ∇log π, which has mean zero, so on average it has no effect.",
                lambda log_policy, log_ref: log_policy - log_ref,
            ),
            Mistake(
                "k3 as a loss",
                "this is k3 as a loss. Its expected gradient is that of the other divergence, KL(π_ref‖π).",
                k3,
            ),
            Mistake(
                "forgot detaching",
                "k is not detached. The product rule adds log π · ∇k, which is wrong here.",
                lambda log_policy, log_ref: (log_policy - log_ref) * log_policy,
            ),
            Mistake(
                "log π for the log-ratio",
                "the reference is missing. This is the gradient of the negative entropy, E[log π].",
                lambda log_policy, log_ref: log_policy.detach() * log_policy,
            ),
            Mistake(
                "weighted twice",
                "the samples come from π already; weighting each by its probability counts it twice.",
                lambda log_policy, log_ref: log_policy.exp() * (log_policy - log_ref),
            ),
            Mistake(
                "sign",
                "the sign is wrong. Descent on this term would move the policy away from the reference.",
                lambda log_policy, log_ref: -(log_policy - log_ref).detach() * log_policy,
            ),
            Mistake(
                "forgot the half",
                "this is too large by a factor of two. k² has the gradient 2k ∇k.",
                lambda log_policy, log_ref: (log_policy - log_ref).square(),
            ),
        ),
        hints=(
            "∇KL(π‖π_ref) = E_π[k ∇log π]. You need a term whose gradient is k ∇log π for each sample.",
            "Either treat k as a number (`.detach()`) and multiply it by log π, or find the function of k that has "
            "this derivative.",
        ),
    ),
)
