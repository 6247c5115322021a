"""Notebook 15: right lines and training loops in other forms pass, and wrong ones outside the known mistakes do not."""

import pytest
import torch
from torch.nn.functional import one_hot

from rlhf_lab.exercises import check

RIGHT_LINES = {
    "nb15.mean_of_all": [
        lambda w: (w.n - 1) * w.policy * (w.reward - (w.policy * w.reward).sum(-1)[:, None]) / w.n,
        lambda w: torch.stack([(p * r - (p @ r) * p) * (1 - 1 / w.n) for p, r in zip(w.policy, w.reward, strict=True)]),
        lambda w: (1 - 1 / w.n) * torch.einsum("xk,xk,xkj->xj", w.policy, w.reward, scores(w.policy)),
    ],
}
WRONG_LINES = {
    "nb15.mean_of_all": [
        (lambda w: w.policy * w.reward / w.n, "not yet"),
        (lambda w: w.policy, "not yet"),
        (lambda w: (w.policy * w.reward).sum(-1), "expected shape"),
        (lambda w: w.star * w.reward, "may not contain w.star"),
        (lambda w: None, "returns nothing"),
    ],
}


def scores(policy):
    """∂log π(y')/∂θ_y, (X, K, K)."""
    return torch.eye(policy.shape[-1], dtype=policy.dtype) - policy.unsqueeze(-2)


@pytest.mark.parametrize("line", RIGHT_LINES["nb15.mean_of_all"])
def test_the_gradient_with_the_mean_of_all_in_another_form_passes(line):
    assert check("nb15.mean_of_all", line).passed


@pytest.mark.parametrize(("line", "words"), WRONG_LINES["nb15.mean_of_all"])
def test_a_wrong_line_gets_a_sentence(line, words):
    feedback = check("nb15.mean_of_all", line)
    assert not feedback.passed and feedback.mistake == "" and words in repr(feedback), feedback


def loop(loss_of, optimizer=torch.optim.SGD, extra=lambda log_ref: None, value=lambda loss: loss.item(), **changes):
    """A group method from its loss, which gets log π_θ and log π_ref of the samples, their rewards, and β."""

    def train(logits, log_ref, reward, beta, steps, learning_rate, samples, generator):
        optimiser, losses = optimizer([logits], **({"lr": learning_rate} | changes)), []
        for _ in range(steps):
            extra(log_ref)
            with torch.no_grad():
                y = torch.multinomial(logits.softmax(-1), samples, True, generator=generator)
            new = (logits.log_softmax(-1).unsqueeze(1) * one_hot(y, logits.shape[-1])).sum(-1)
            loss = loss_of(new, log_ref.gather(-1, y), reward.gather(-1, y), beta)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(value(loss))
        return losses

    return train


def rloo(new, ref, reward, beta):
    score = (reward - beta * (new - ref)).detach()
    group = score.shape[-1]
    return -(group / (group - 1) * (score - score.mean(-1, keepdim=True)) * new).mean()


def without_baseline(new, ref, reward, beta):
    """One number for all prompts, which is no baseline of a group but leaves the expected gradient as it is."""
    return -((reward - beta * (new - ref)).detach() * new).mean()


def with_k2(new, ref, reward, beta):
    return -((reward - reward.mean(-1, keepdim=True)) * new).mean() + beta * (new - ref).square().mean() / 2


def dr_grpo(new, ref, reward, beta):
    ratio = torch.exp(ref - new)
    return -((reward - reward.mean(-1, keepdim=True)) * new - beta * (ratio - ratio.log() - 1)).mean()


def by_ratio(new, ref, reward, beta):
    """PPO's ratio to the policy that was sampled, and k3 without its terms of no gradient in expectation."""
    advantage = reward - reward.mean(-1, keepdim=True)
    return (beta * torch.exp(ref - new) - advantage * torch.exp(new - new.detach())).mean()


def change(log_ref):
    log_ref += 0.001


RIGHT_LOOPS = {
    "nb15.train_rloo": {
        "G/(G−1)": loop(rloo),
        "another optimiser": loop(rloo, torch.optim.Adam, lr=0.1),
        "another baseline": loop(without_baseline),
        "k2 in the loss": loop(with_k2),
    },
    "nb15.train_dr_grpo": {
        "k3 from the ratio": loop(dr_grpo),
        "another optimiser": loop(dr_grpo, torch.optim.Adam, lr=0.1),
        "PPO's ratio": loop(by_ratio),
    },
}
WRONG_LOOPS = {
    "nb15.train_rloo": {
        "changes π_ref": (loop(rloo, extra=change), "the loop changes log_ref"),
        "global state": (loop(rloo, extra=lambda x: torch.rand(1)), "uses the global random state"),
        "tiny steps": (loop(rloo, lr=0.005), "does not reach the optimum"),
        "no losses": (loop(rloo, value=lambda loss: None), "return a list of losses"),
        "raises": (loop(lambda new, *rest: new @ torch.zeros(7)), "raises RuntimeError"),
        "nothing": (lambda *given: None, "returns nothing"),
    },
    "nb15.train_dr_grpo": {
        "changes π_ref": (loop(dr_grpo, extra=change), "the loop changes log_ref"),
        "global state": (loop(dr_grpo, extra=lambda x: torch.rand(1)), "uses the global random state"),
        "tiny steps": (loop(dr_grpo, lr=0.005), "the bug’s trajectory is gone, but the loop is not right yet"),
        "k2 in the loss": (loop(with_k2), "the KL term is k2"),
        "k2 and another optimiser": (loop(with_k2, torch.optim.Adam, lr=0.1), "does not reach the optimum"),
        "nothing": (lambda *given: None, "returns nothing"),
        "no losses": (loop(dr_grpo, value=lambda loss: None), "return a list of losses"),
    },
}


def named(loops):
    return [(key, name) for key, forms in loops.items() for name in forms]


@pytest.mark.parametrize(("key", "name"), named(RIGHT_LOOPS))
def test_a_right_loop_in_another_form_passes(key, name):
    feedback = check(key, RIGHT_LOOPS[key][name])
    assert feedback.passed, feedback


@pytest.mark.parametrize(("key", "name"), named(WRONG_LOOPS))
def test_a_wrong_loop_is_told_what_is_wrong(key, name):
    answer, words = WRONG_LOOPS[key][name]
    feedback = check(key, answer)
    assert not feedback.passed and words in repr(feedback), feedback
