"""The ladders of notebooks 00 and 02 to 04: other right answers, and wrong ones that are no known mistakes."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from rlhf_lab.exercises import check


def scores(policy):
    """∂log π(y')/∂θ_y, (X, K, K)."""
    return torch.eye(policy.shape[-1], dtype=policy.dtype) - policy.unsqueeze(-2)


RIGHT_LINES = {
    "nb00.objective_by_kl": [
        lambda w: w.beta * (w.log_z - w.kl_to_star),
        lambda w: w.beta * torch.log(w.log_z.exp() / w.kl_to_star.exp()),
        lambda w: -torch.stack([w.beta * k - w.beta * z for k, z in zip(w.kl_to_star, w.log_z, strict=True)]),
    ],
    "nb02.gradient_of_the_kl": [
        lambda w: torch.einsum("xk,xk,xkj->xj", w.policy, w.log_ratio, scores(w.policy)),
        lambda w: w.policy * w.log_ratio - w.policy * (w.policy * w.log_ratio).sum(-1)[:, None],
        lambda w: torch.stack([p * (k - p @ k) for p, k in zip(w.policy, w.log_ratio, strict=True)]),
    ],
    "nb02.gradient_of_k3": [
        lambda w: w.policy * (1 - torch.exp(-w.log_ratio)),
        lambda w: -torch.einsum("xk,xkj->xj", w.ref, scores(w.policy)),
        lambda w: w.policy * w.ref.sum(-1, keepdim=True) - w.ref,
    ],
    "nb03.objective_by_kl": [
        lambda w: w.beta * (w.log_z - (w.log_policy.exp() * (w.log_policy - w.log_star)).sum(-1)),
        lambda w: w.beta * (w.log_policy.exp() * (w.log_star - w.log_policy + w.log_z[:, None])).sum(-1),
        lambda w: torch.stack(
            [
                w.beta * z - w.beta * (p.exp() @ (p - s))
                for z, p, s in zip(w.log_z, w.log_policy, w.log_star, strict=True)
            ]
        ),
    ],
    "nb03.gradient_of_j": [
        lambda w: torch.einsum("xk,xk,xkj->xj", w.policy, w.reward - w.beta * w.log_ratio, scores(w.policy)),
        lambda w: (
            w.policy * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True))
            - w.beta * w.policy * (w.log_ratio - (w.policy * w.log_ratio).sum(-1, keepdim=True))
        ),
        lambda w: torch.stack(
            [
                p * (r - w.beta * k - p @ (r - w.beta * k))
                for p, r, k in zip(w.policy, w.reward, w.log_ratio, strict=True)
            ]
        ),
    ],
    "nb04.two_prompts": [
        lambda w: torch.sigmoid(
            (w.implicit + w.beta * w.log_z[:, None])[0][:, None] - (w.implicit + w.beta * w.log_z[:, None])[1]
        ),
        lambda w: 1 / (1 + (w.implicit[1][None] - w.implicit[0][:, None] + w.beta * (w.log_z[1] - w.log_z[0])).exp()),
        lambda w: torch.softmax(
            torch.stack(
                torch.broadcast_tensors(
                    w.implicit[0][:, None] + w.beta * w.log_z[0], w.implicit[1][None] + w.beta * w.log_z[1]
                )
            ),
            0,
        )[0],
    ],
    "nb04.variance_of_z": [
        lambda w: torch.expm1(w.log_z_half - 2 * w.log_z) / w.n,
        lambda w: (w.log_z_half.exp() / w.log_z.exp() ** 2 - 1) / 2,
        lambda w: (w.log_z_half.exp() - w.log_z.exp().square()) / (w.n * (2 * w.log_z).exp()),
    ],
}


@pytest.mark.parametrize(("key", "number"), [(key, i) for key, lines in RIGHT_LINES.items() for i in range(len(lines))])
def test_a_right_line_in_another_form_passes(key, number):
    feedback = check(key, RIGHT_LINES[key][number])
    assert feedback.passed, feedback


def loop(loss_of, optimizer=torch.optim.SGD, **changes):
    """A training loop from the loss of one step, which takes the arguments of the exercise between logits and steps."""

    def train(logits, *given):
        sampled = isinstance(given[-1], torch.Generator)
        *data, steps, rate = given[:-2] if sampled else given
        extra = torch.zeros(len(logits), 1, dtype=logits.dtype, requires_grad=True)
        tool, losses = optimizer([logits, extra], lr=changes.get("lr", rate)), []
        for _ in range(steps):
            loss = loss_of(logits, *data, *((given[-2], given[-1]) if sampled else ()), extra)
            tool.zero_grad()
            loss.backward()
            tool.step()
            losses.append(loss.detach())
        return losses

    return train


def draw(log_p, samples, generator):
    return torch.multinomial(log_p.detach().exp(), samples, True, generator=generator)


def with_k2(logits, log_ref, reward, beta, samples, generator, extra):
    """The gradient of β k2 as a detached weight, and a baseline for the reward."""
    log_policy = logits.log_softmax(-1)
    y = draw(log_policy, samples, generator)
    log_prob, r = log_policy.gather(-1, y), reward.gather(-1, y)
    k = (log_prob - log_ref.gather(-1, y)).detach()
    return -((r - r.mean(-1, keepdim=True) - beta * k) * log_prob).mean()


def on_reference(logits, log_ref, reward, beta, samples, generator, extra):
    """Weighted SFT with the weights exp(r/β) divided by their mean."""
    y = draw(log_ref, samples, generator)
    weight = (reward.gather(-1, y) / beta).exp()
    weight = weight / weight.mean(-1, keepdim=True)
    return -(weight * logits.log_softmax(-1).gather(-1, y)).mean()


def corrected(logits, log_ref, reward, beta, samples, generator, extra):
    """Samples of the policy, with the ratio of the reference to the policy in the weights."""
    log_policy = logits.log_softmax(-1)
    y = draw(log_policy, samples, generator)
    ratio = (log_ref - log_policy.detach()).gather(-1, y)
    weight = torch.softmax(reward.gather(-1, y) / beta + ratio, -1)
    return -(weight * log_policy.gather(-1, y)).sum(-1).mean()


def counted(logits, log_ref, reward, beta, samples, generator, extra):
    """The weights summed by response, and a cross-entropy."""
    y = draw(log_ref, samples, generator)
    weight = one_hot(y, logits.shape[-1]) * (reward.gather(-1, y) / beta).exp().unsqueeze(-1)
    share = weight.sum(-2) / weight.sum((-1, -2)).unsqueeze(-1)
    return cross_entropy(logits, share)


def thumbs(logits, log_ref, p_up, beta, extra):
    return binary_cross_entropy_with_logits(beta * (logits.log_softmax(-1) - log_ref) + extra, p_up)


def thumbs_in_nats(logits, log_ref, p_up, beta, extra):
    return binary_cross_entropy_with_logits(beta * (logits.log_softmax(-1) - log_ref + extra), p_up)


def minus_j(logits, log_ref, reward, beta, extra):
    policy = logits.softmax(-1)
    return (policy * (beta * (policy.log() - log_ref) - reward)).sum(-1).mean()


def minus_j_by_cross_entropy(logits, log_ref, reward, beta, extra):
    """Entropy, cross-entropy and reward apart."""
    policy = logits.softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return ((-policy * (beta * log_ref + reward)).sum(-1) - beta * entropy).mean()


def natural(advantage):
    """Natural gradient ascent in which `advantage` gives the direction."""

    def train(logits, log_ref, reward, beta, steps, learning_rate):
        values = []
        for _ in range(steps):
            p = logits.detach().log_softmax(-1)
            q = reward - beta * (p - log_ref)
            with torch.no_grad():
                logits += learning_rate * advantage(q, p)
            values.append(-(p.exp() * q).sum().item())
        return values

    return train


RIGHT_LOOPS = {
    "nb00.maximise_objective": [
        loop(minus_j),
        loop(minus_j, optimizer=torch.optim.Adam, lr=0.1),
        loop(lambda *given: 2 * minus_j(*given)),
    ],
    "nb00.penalised_reward": [
        loop(minus_j_by_cross_entropy),
        loop(minus_j, optimizer=torch.optim.Adam, lr=0.1),
        loop(minus_j, lr=1.0),
    ],
    "nb02.policy_gradient_with_k2": [
        loop(with_k2),
        loop(with_k2, optimizer=torch.optim.Adam, lr=0.05),
        loop(lambda *given: 0.7 * with_k2(*given)),
    ],
    "nb03.gradient_ascent": [
        loop(minus_j),
        loop(minus_j, optimizer=torch.optim.Adam, lr=0.1),
        loop(lambda *given: 2 * minus_j(*given)),
    ],
    "nb03.natural_gradient": [
        natural(lambda q, p: q),  # a constant does not change a softmax
        natural(lambda q, p: q - q.mean(-1, keepdim=True)),
        natural(lambda q, p: 2 * (q - (p.exp() * q).sum(-1, keepdim=True))),
    ],
    "nb04.fit_thumbs": [
        loop(thumbs),
        loop(thumbs, optimizer=torch.optim.Adam, lr=0.05),
        loop(thumbs_in_nats),
    ],
    "nb04.weighted_sft": [loop(on_reference), loop(corrected), loop(counted)],
}


@pytest.mark.parametrize(("key", "number"), [(key, i) for key, loops in RIGHT_LOOPS.items() for i in range(len(loops))])
def test_a_right_loop_in_another_form_passes(key, number):
    feedback = check(key, RIGHT_LOOPS[key][number])
    assert feedback.passed, feedback


WRONG = {
    "nb00.objective_by_kl": [(lambda w: w.beta * (w.log_z - w.kl_to_star).mean(), "expected shape")],
    "nb00.maximise_objective": [(loop(lambda *given: minus_j(*given) / 100), "times the right length")],
    "nb00.penalised_reward": [
        (
            loop(lambda *given: minus_j(*given) / 100),
            "the bug’s trajectory is gone, but the loop is not right yet",
        )
    ],
    "nb02.gradient_of_k3": [(lambda w: (w.policy - w.ref) / 2, "not yet")],
    "nb02.gradient_of_the_kl": [(lambda w: w.policy * (w.log_policy - w.log_ref), "may not contain")],
    "nb03.objective_by_kl": [(lambda w: w.beta * w.log_z, "not yet")],
    "nb03.gradient_of_j": [(lambda w: w.policy * (w.reward - w.beta * w.log_ratio).sum(-1), "shape")],
    "nb04.two_prompts": [(lambda w: torch.sigmoid(w.implicit), "expected shape")],
    "nb04.variance_of_z": [(lambda w: torch.exp(w.log_z_half - 2 * w.log_z) / w.n - 1, "not yet")],
    "nb03.gradient_ascent": [(loop(lambda *given: minus_j(*given) / 100), "times the right length")],
    "nb04.fit_thumbs": [(loop(lambda *given: thumbs(*given) / 100), "times the right length")],
    "nb02.policy_gradient_with_k2": [(loop(lambda *given: with_k2(*given) / 100), "does not reach the optimum")],
}


@pytest.mark.parametrize(("key", "answer", "words"), [(key, *pair) for key, pairs in WRONG.items() for pair in pairs])
def test_a_wrong_answer_that_is_no_known_mistake_gets_a_sentence(key, answer, words):
    feedback = check(key, answer)
    assert not feedback.passed and feedback.mistake == "" and words in repr(feedback), feedback
