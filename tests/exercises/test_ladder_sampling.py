"""Notebooks 07 to 09: next lines, training loops and loops with a bug, in other right forms and other wrong ones."""

import random
from functools import partial

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus

from rlhf_lab.exercises import check, exercise, records


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Each test starts without events, in an empty folder."""
    monkeypatch.setattr(records, "_in_memory", [])
    monkeypatch.chdir(tmp_path)


def take_steps(logits, loss_of, steps, learning_rate, make=torch.optim.SGD, value=lambda x: x.item()):
    """The part that all loops have in common: `steps` steps on `loss_of()`."""
    optimizer, losses = make([logits], lr=learning_rate), []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(value(loss))
    return losses


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=0.1)


# Notebook 08. -------------------------------------------------------------------------------------------------------


def gumbel(y, score, beta, accepted, generator):
    u = torch.rand(score.shape, dtype=score.dtype, generator=generator)
    return (score / beta - torch.log(-torch.log(u))).topk(accepted).indices


def one_by_one(y, score, beta, accepted, generator):
    """Candidates in order, each accepted by its own u; of those the first ones."""
    u = torch.rand(score.shape, dtype=score.dtype, generator=generator)
    passed = u < ((score - score.amax(-1, keepdim=True)) / beta).exp()
    return torch.argsort(passed.double(), dim=-1, descending=True, stable=True)[:, :accepted]


def first_ones(y, score, beta, accepted, generator):
    torch.rand(1, generator=generator)
    return torch.arange(accepted).expand(len(y), -1)


def rso(accept=gumbel, loss=lambda m: -logsigmoid(m).mean(), extra=lambda log_sft: None, **how):
    """A correct RSO loop with one thing done otherwise."""

    def train(logits, log_sft, reward, beta, gamma, steps, learning_rate, candidates, generator):
        accepted = candidates // 8

        def loss_of():
            extra(log_sft)
            y = torch.multinomial(log_sft.exp(), candidates, True, generator=generator)
            y = y.gather(-1, accept(y, reward.gather(-1, y), beta, accepted, generator))
            half = accepted // 2
            one, two = y[:, :half], y[:, half:]
            u = torch.rand(one.shape, dtype=reward.dtype, generator=generator)
            sign = torch.where(u < torch.sigmoid(reward.gather(-1, one) - reward.gather(-1, two)), 1.0, -1.0)
            ratio = logits.log_softmax(-1) - log_sft
            return loss(gamma * sign * (ratio.gather(-1, one) - ratio.gather(-1, two)))

        return take_steps(logits, loss_of, steps, how.get("rate", learning_rate), **how.get("steps", {}))

    return train


def add(log_sft):
    log_sft += 0.001


# Notebook 07. -------------------------------------------------------------------------------------------------------


def accepted(probability=None, loss=lambda p: -p.mean(), extra=lambda log_sft: None, per_prompt=False, **how):
    """A correct loop over accepted draws with one thing done otherwise."""

    def train(logits, log_sft, reward, beta, steps, learning_rate, draws, generator):
        ratio = (log_sft + reward / beta).log_softmax(-1) - log_sft
        accept = (probability or (lambda: (ratio - ratio.amax(-1, keepdim=True)).exp()))()

        def loss_of():
            extra(log_sft)
            y = torch.multinomial(log_sft.exp(), draws, True, generator=generator)
            u = torch.rand(y.shape, dtype=reward.dtype, generator=generator)
            mask = (u < accept.gather(-1, y)).double()
            log_prob = logits.log_softmax(-1).gather(-1, y)
            if per_prompt:
                return -((mask * log_prob).sum(-1) / mask.sum(-1)).mean()
            return loss(log_prob[mask.bool()])

        return take_steps(logits, loss_of, steps, learning_rate, **how)

    return train


def best_by_weights(logits, log_sft, reward, beta, steps, learning_rate, candidates, generator, **how):
    """One of the candidates by its weight, without Gumbel noise."""

    def loss_of():
        y = torch.multinomial(log_sft.exp(), 32 * candidates, True, generator=generator)
        y = y.reshape(-1, candidates)
        score = reward.repeat_interleave(32, 0).gather(-1, y)
        chosen = y.gather(-1, torch.multinomial((score / beta).softmax(-1), 1, generator=generator))
        return -logits.log_softmax(-1).repeat_interleave(32, 0).gather(-1, chosen).mean()

    return take_steps(logits, loss_of, steps, learning_rate, **how)


# Notebook 09. -------------------------------------------------------------------------------------------------------


def raft(loss=lambda p: -p.mean(), draw=torch.multinomial, extra=lambda reward: None, **how):
    """A correct round of RAFT with one thing done otherwise."""

    def train(logits, reward, n, copies, steps, learning_rate, generator):
        start = logits.detach().softmax(-1).repeat_interleave(copies, 0)
        y = draw(start, n, True, generator=generator)
        score = reward.repeat_interleave(copies, 0).gather(-1, y)
        y = y[torch.arange(len(y)), score.argmax(-1)]

        def loss_of():
            extra(reward)
            return loss(logits.log_softmax(-1).repeat_interleave(copies, 0)[torch.arange(len(y)), y])

        return take_steps(logits, loss_of, steps, learning_rate, **how)

    return train


def improve_only_what_passes(logits, reward, threshold, samples, steps, learning_rate, generator, **how):
    """The mean over the samples that pass, with a threshold in units of reward."""
    y = torch.multinomial(logits.detach().softmax(-1), samples, True, generator=generator)
    r = reward.gather(-1, y)
    passes = r > r.min() + threshold * (r.max() - r.min())
    return take_steps(logits, lambda: -logits.log_softmax(-1).gather(-1, y)[passes].mean(), steps, learning_rate, **how)


RIGHT = {
    "nb07.train_on_accepted": {
        "the ratio of two policies": accepted(),
        "another optimiser": accepted(make=adam),
        "a mean for each prompt": accepted(per_prompt=True),
        "losses as tensors": accepted(value=lambda x: x.detach()),
    },
    "nb07.train_on_best": {
        "by weights": best_by_weights,
        "another optimiser": partial(best_by_weights, make=adam),
        "losses as tensors": partial(best_by_weights, value=lambda x: x.detach()),
    },
    "nb09.train_raft": {
        "one row for each sample": raft(),
        "another optimiser": raft(make=adam),
        "a larger loss": raft(loss=lambda p: -2 * p.mean()),
    },
    "nb09.improve": {
        "the mean over what passes": improve_only_what_passes,
        "another optimiser": partial(improve_only_what_passes, make=adam),
        "losses as tensors": partial(improve_only_what_passes, value=lambda x: x.detach()),
    },
    "nb08.train_rso": {
        "halves are paired": rso(),
        "another optimiser": rso(steps={"make": adam}),
        "accept and reject": rso(one_by_one),
        "pairs from π_sft have the same limit": rso(first_ones),
        "softplus": rso(loss=lambda m: softplus(-m).mean()),
        "losses as tensors": rso(steps={"value": lambda x: x.detach()}),
    },
}
WRONG = {
    "nb07.train_on_accepted": {
        "changes π_sft": (accepted(extra=add), "the loop changes log_sft"),
        "global state": (accepted(extra=lambda x: torch.rand(1)), "uses the global random state"),
        "tiny steps": (accepted(loss=lambda p: -p.mean() / 200), "does not reach the optimum"),
        "no losses": (accepted(value=lambda x: None), "return a list of losses"),
        "raises": (accepted(loss=lambda p: p @ torch.zeros(7)), "raises RuntimeError"),
    },
    "nb07.train_on_best": {
        "too short": (lambda *given: best_by_weights(*given[:4], 1, *given[5:]), "return a list of losses"),
        "tiny steps": (
            lambda *given: best_by_weights(*given[:5], given[5] / 100, *given[6:]),
            "the bug’s trajectory is gone, but the loop is not right yet",
        ),
    },
    "nb09.train_raft": {
        "changes the reward": (raft(extra=add), "the loop changes reward"),
        "global state": (raft(extra=lambda x: random.random()), "uses the global random state"),
        "no generator": (
            raft(
                draw=lambda p, n, *rest, **given: torch.multinomial(
                    p, n, True, generator=torch.Generator().manual_seed(3)
                )
            ),
            "does not use its generator",
        ),
        "tiny steps": (raft(loss=lambda p: -p.mean() / 200), "does not reach the optimum"),
        "probabilities": (raft(loss=lambda p: -p.exp().mean()), "does not reach the optimum"),
        "nothing": (lambda *given: None, "returns nothing"),
    },
    "nb08.train_rso": {
        "changes π_sft": (rso(extra=add), "the loop changes log_sft"),
        "global state": (rso(extra=lambda x: random.random()), "uses the global random state"),
        "tiny steps": (rso(loss=lambda m: -logsigmoid(m).mean() / 200), "does not reach the optimum"),
        "lost sign": (rso(loss=lambda m: logsigmoid(m).mean()), "does not reach the optimum"),
        "no logarithm": (rso(loss=lambda m: 1 + 0 * m.mean()), "is the same after training"),
        "no losses": (rso(steps={"value": lambda x: None}), "return a list of losses"),
        "raises": (rso(loss=lambda m: m @ torch.zeros(7)), "raises RuntimeError"),
    },
}


def cases(table):
    return [(key, name) for key, forms in table.items() for name in forms]


@pytest.mark.parametrize(("key", "name"), cases(RIGHT))
def test_a_right_loop_in_another_form_passes(key, name):
    feedback = check(key, RIGHT[key][name])
    assert feedback.passed, feedback


@pytest.mark.parametrize(("key", "name"), cases(WRONG))
def test_a_wrong_loop_is_told_what_is_wrong(key, name):
    loop, words = WRONG[key][name]
    feedback = check(key, loop)
    assert not feedback.passed and words in repr(feedback), feedback


def labels_by_reward(logits, log_sft, candidates, scores, beta, accepted, steps, learning_rate, generator, **how):
    """A correct offline loop that keeps the pairs as indices into the candidates."""
    top = gumbel(candidates, scores, beta, accepted, generator)
    one, two = top[:, 0::2], top[:, 1::2]
    u = torch.rand(one.shape, dtype=scores.dtype, generator=generator)
    flip = u >= torch.sigmoid(scores.gather(-1, one) - scores.gather(-1, two))
    chosen = candidates.gather(-1, torch.where(flip, two, one))
    rejected = candidates.gather(-1, torch.where(flip, one, two))

    def loss_of():
        ratio = logits.log_softmax(-1) - log_sft
        return -logsigmoid(beta * (ratio.gather(-1, chosen) - ratio.gather(-1, rejected))).mean()

    return take_steps(logits, loss_of, steps, learning_rate, **how)


RIGHT_FIXES = {
    "nb08.fit_accepted": [
        labels_by_reward,
        partial(labels_by_reward, make=adam),
        partial(labels_by_reward, value=lambda x: x.detach()),
    ],
}


def test_the_bug_of_rso_is_gone_with_other_code_and_a_second_bug_is_named():
    key = "nb08.fit_accepted"
    for loop in RIGHT_FIXES[key]:
        assert check(key, loop).passed
    both = next(one for one in exercise(key).mistakes if one.name == "scores of other candidates + no beta")
    assert "the bug is still there, and another one came in" in repr(check(key, both.function))
    other = next(one for one in exercise(key).mistakes if one.name == "swapped pair")
    assert "the bug is gone, but another one came in: chosen and rejected are swapped" in repr(
        check(key, other.function)
    )
    unknown = check(key, lambda *given: labels_by_reward(*given[:7], given[7] / 100, given[8]))
    assert "the bug’s trajectory is gone, but the loop is not right yet" in repr(unknown)


# Next lines. --------------------------------------------------------------------------------------------------------

RIGHT_LINES = {
    "nb07.first_accepted": [
        lambda w: (w.ref.log() + w.acceptance.log()).softmax(-1),
        lambda w: w.ref * w.acceptance / (w.ref * w.acceptance).sum(-1)[:, None],
        lambda w: torch.nn.functional.normalize(w.ref * w.acceptance, p=1, dim=-1),
    ],
    "nb09.filter_gradient": [
        lambda w: w.ref * w.passes - w.policy * (w.ref * w.passes).sum(-1)[:, None],
        lambda w: (
            (w.ref * w.passes) @ (torch.eye(w.ref.shape[-1]).double()) - (w.ref * w.passes).sum(1, True) * w.policy
        ),
        lambda w: torch.stack([f * p - (f * p).sum() * q for f, p, q in zip(w.passes, w.ref, w.policy, strict=True)]),
    ],
    "nb08.hinge_slope": [
        lambda w: w.gamma * (1 - 2 * w.p),
        lambda w: -w.p * w.gamma + (1 - w.p) * w.gamma,
        lambda w: -w.gamma * torch.tanh(torch.logit(w.p) / 2),
    ],
}
WRONG_LINES = {
    "nb07.first_accepted": [
        (lambda w: (w.ref * w.acceptance).softmax(-1), "not yet"),
        (lambda w: w.ref * w.acceptance**2 / (w.ref * w.acceptance).sum(-1, True), "not yet"),
        (lambda w: (w.ref * w.acceptance).sum(), "expected shape"),
        (lambda w: w.star, "may not contain w.star"),
        (lambda w: "text", "got text"),
    ],
    "nb09.filter_gradient": [
        (lambda w: w.ref * w.passes - w.policy / 2, "not yet"),
        (lambda w: torch.zeros_like(w.ref), "not yet"),
        (lambda w: w.ref[0], "expected shape"),
        (lambda w: w.reward, "may not contain w.reward"),
        (lambda w: w.ref @ w.passes, "raises RuntimeError"),
    ],
    "nb08.hinge_slope": [
        (lambda w: -w.gamma * (2 * w.p - 1) ** 2, "not yet"),
        (lambda w: w.p * 0, "not yet"),
        (lambda w: (-w.gamma * (2 * w.p - 1)).mean(), "expected shape"),
        (lambda w: -w.gamma * w.delta, "may not contain w.delta"),
        (lambda w: None, "returns nothing"),
    ],
}


@pytest.mark.parametrize(("key", "line"), [(key, line) for key, lines in RIGHT_LINES.items() for line in lines])
def test_a_right_line_in_another_form_passes(key, line):
    assert check(key, line).passed, check(key, line)


@pytest.mark.parametrize(
    ("key", "line", "words"), [(key, *pair) for key, pairs in WRONG_LINES.items() for pair in pairs]
)
def test_a_wrong_line_gets_a_sentence(key, line, words):
    feedback = check(key, line)
    assert not feedback.passed and feedback.mistake == "" and words in repr(feedback), feedback
