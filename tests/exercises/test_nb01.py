"""Notebook 01: right lines and training loops in other forms pass, and wrong ones outside the known mistakes do not."""

import pytest
import torch

from rlhf_lab.exercises import check

RIGHT_LINES = {
    "nb01.sft_gradient": [
        lambda w: -(w.ref - w.policy),
        lambda w: w.policy * (1 - w.ref) - w.ref * (1 - w.policy),
        lambda w: w.policy - w.ref * w.policy.sum(-1, keepdim=True),
    ],
}
WRONG_LINES = {
    "nb01.sft_gradient": [
        (lambda w: w.policy + w.ref, "not yet"),
        (lambda w: w.policy, "not yet"),
        (lambda w: (w.policy - w.ref).sum(-1), "expected shape"),
        (lambda w: w.policy - w.log_ref.exp(), "may not contain w.log_ref"),
        (lambda w: w.policy.log() - w.ref.log(), "not yet"),
    ],
}


@pytest.mark.parametrize("line", RIGHT_LINES["nb01.sft_gradient"])
def test_the_gradient_of_sft_in_another_form_passes(line):
    assert check("nb01.sft_gradient", line).passed


@pytest.mark.parametrize(("line", "words"), WRONG_LINES["nb01.sft_gradient"])
def test_another_wrong_gradient_of_sft_does_not_pass(line, words):
    feedback = check("nb01.sft_gradient", line)
    assert not feedback.passed and words in repr(feedback), feedback


def sampled(logits, samples, generator):
    """Responses of the current policy, and their log-probabilities."""
    y = torch.multinomial(logits.detach().softmax(-1), samples, True, generator=generator)
    return y, logits.log_softmax(-1).gather(-1, y)


def gained(y, log_prob, log_ref, reward, beta):
    return reward.gather(-1, y) - beta * (log_prob.detach() - log_ref.gather(-1, y))


def two_optimisers(logits, log_ref, reward, beta, steps, learning_rate, samples, generator):
    value, losses = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True), []
    tools = torch.optim.SGD([logits], learning_rate), torch.optim.Adam([value], 0.1)
    for _ in range(steps):
        y, log_prob = sampled(logits, samples, generator)
        returns = gained(y, log_prob, log_ref, reward, beta)
        parts = -((returns - value.detach()) * log_prob).mean(), (returns - value).square().mean()
        for tool, loss in zip(tools, parts, strict=True):
            tool.zero_grad()
            loss.backward()
            tool.step()
        losses.append(parts[0].item())
    return losses


def running_mean(logits, log_ref, reward, beta, steps, learning_rate, samples, generator):
    """The critic is a running mean of the returns, and the gradient is written by hand."""
    value, losses = torch.zeros(2, 1, dtype=torch.float64), []
    for _ in range(steps):
        y, log_prob = sampled(logits, samples, generator)
        returns = gained(y, log_prob, log_ref, reward, beta)
        loss = -((returns - value) * log_prob).mean()
        (slope,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= learning_rate * slope
        value = 0.9 * value + 0.1 * returns.mean(-1, keepdim=True)
        losses.append(loss)
    return torch.stack(losses).detach()


def with_adam(logits, log_ref, reward, beta, steps, learning_rate, samples, generator):
    value, losses = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True), []
    tool = torch.optim.Adam([logits, value], 0.1)
    for _ in range(steps):
        y, log_prob = sampled(logits, samples, generator)
        returns = gained(y, log_prob, log_ref, reward, beta)
        loss = -((returns - value).detach() * log_prob).mean() + (value - returns).square().mean()
        tool.zero_grad()
        loss.backward()
        tool.step()
        losses.append(loss.item())
    return losses


def ppo(advantage=lambda r: r - r.mean(-1, keepdim=True), epochs=4, clip=0.2, reference=None, rate=1.0):
    """PPO with one thing done otherwise."""

    def train(logits, log_ref, reward, beta, steps, learning_rate, samples, generator):
        tool, losses = torch.optim.SGD([logits], rate * learning_rate), []
        for _ in range(steps):
            y, log_prob = sampled(logits, samples, generator)
            old, ref = log_prob.detach(), log_ref if reference is None else reference(log_ref)
            advantages = advantage(gained(y, log_prob, ref, reward, beta))
            for _ in range(epochs):
                ratio = (logits.log_softmax(-1).gather(-1, y) - old).exp()
                limit = torch.where(advantages > 0, (1 + clip) * advantages, (1 - clip) * advantages)
                loss = -torch.minimum(ratio * advantages, limit).mean()
                tool.zero_grad()
                loss.backward()
                tool.step()
            losses.append(loss.item())
        return losses

    return train


RIGHT_LOOPS = {
    "nb01.actor_critic": [two_optimisers, running_mean, with_adam],
    "nb01.ppo_rounds": [
        ppo(),  # the clip by the sign of the advantage
        ppo(lambda r: (r - r.mean()) / r.std()),
        ppo(epochs=2, rate=2.0),
        ppo(clip=0.1),
    ],
}
WRONG_LOOPS = {
    "nb01.ppo_rounds": [
        (ppo(lambda r: -0.5 * (r - r.mean())), "does not reach the optimum"),
        (ppo(reference=lambda ref: ref.flip(0)), "does not reach the optimum"),
        (ppo(lambda r: 0 * r), "the same after training"),
    ],
    "nb01.actor_critic": [
        (ppo(lambda r: -0.5 * (r - r.mean())), "does not reach the optimum"),
        (ppo(epochs=0), "raises UnboundLocalError"),
    ],
}


@pytest.mark.parametrize("loop", RIGHT_LOOPS["nb01.actor_critic"])
def test_another_critic_passes(loop):
    feedback = check("nb01.actor_critic", loop)
    assert feedback.passed, feedback


@pytest.mark.parametrize("loop", RIGHT_LOOPS["nb01.ppo_rounds"])
def test_another_fix_of_ppo_passes(loop):
    feedback = check("nb01.ppo_rounds", loop)
    assert feedback.passed and "the bug is gone" in repr(feedback), feedback


@pytest.mark.parametrize(
    ("key", "loop", "words"), [(key, *pair) for key, pairs in WRONG_LOOPS.items() for pair in pairs]
)
def test_another_wrong_loop_does_not_pass(key, loop, words):
    feedback = check(key, loop)
    assert not feedback.passed and words in repr(feedback), feedback
