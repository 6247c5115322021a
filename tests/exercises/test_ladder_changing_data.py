"""Notebooks 10, 13 and 14: next lines and training loops in other right forms and in other wrong ones."""

import math
import random
from functools import partial

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from rlhf_lab.exercises import check, exercise, records


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Each test starts without events, in an empty folder."""
    monkeypatch.setattr(records, "_in_memory", [])
    monkeypatch.chdir(tmp_path)


def take_steps(logits, loss_of, steps, learning_rate, make=torch.optim.SGD, value=lambda x: x.item()):
    """The part that all loops have in common: a step on the loss of each number below `steps`."""
    optimizer, losses = make([logits], lr=learning_rate), []
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(value(loss))
    return losses


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=0.1)


def add(log_ref):
    log_ref += 0.001


# Notebook 10. -------------------------------------------------------------------------------------------------------


def parts(logits, log_ref, reward):
    log_policy = logits.log_softmax(-1)
    return torch.nn.functional.kl_div(log_ref, log_policy, reduction="none", log_target=True), log_policy.exp() * reward


def to_kl(control=lambda beta, error: beta * (1 + 0.1 * error), extra=lambda log_ref: None, scale=1.0, **how):
    """A correct loop to a given KL with one thing done otherwise."""

    def train(logits, log_ref, reward, target, steps, learning_rate):
        beta = [1.0]

        def loss_of(step):
            extra(log_ref)
            kl, gain = (one.sum() / len(logits) for one in parts(logits, log_ref, reward))
            loss = scale * (beta[0] * kl - gain)
            beta[0] = control(beta[0], min(max(kl.item() / target - 1, -0.2), 0.2))
            return loss

        return take_steps(logits, loss_of, steps, learning_rate, **how)

    return train


def mean_of_j(reduce=lambda kl, gain, beta: (beta * kl - gain).sum(-1).mean(), extra=lambda log_ref: None, **how):
    """A correct loop on J with one thing done otherwise."""

    def train(logits, log_ref, reward, beta, steps, learning_rate):
        def loss_of(step):
            extra(log_ref)
            return reduce(*parts(logits, log_ref, reward), beta)

        return take_steps(logits, loss_of, steps, learning_rate, **how)

    return train


# Notebook 13. -------------------------------------------------------------------------------------------------------


def on_window(loss=lambda m: -logsigmoid(m).mean(), extra=lambda log_ref: None, weighted=False, **how):
    """A correct fit to a window with one thing done otherwise."""

    def train(logits, log_ref, chosen, rejected, age, window, beta, steps, learning_rate):
        keep = (age <= window).double() if weighted else (age <= window).nonzero().squeeze(-1)

        def loss_of(step):
            extra(log_ref)
            ratio = logits.log_softmax(-1) - log_ref
            margin = beta * (ratio.gather(0, chosen) - ratio.gather(0, rejected))
            return -(keep * logsigmoid(margin)).sum() / keep.sum() if weighted else loss(margin[keep])

        return take_steps(logits, loss_of, steps, learning_rate, **how)

    return train


def in_rounds(logits, log_ref, chosen, rejected, beta, steps, learning_rate, loss=lambda m: softplus(-m).mean(), **how):
    """A correct refit that goes through lists."""
    pairs = list(zip(chosen, rejected, strict=True))

    def loss_of(step):
        t = step * len(pairs) // steps
        one, two = (torch.cat(part) for part in zip(*pairs[max(t - 2, 0) : t + 1], strict=True))
        ratio = logits.log_softmax(-1) - log_ref
        return loss(beta * (ratio[one] - ratio[two]))

    return take_steps(logits, loss_of, steps, learning_rate, **how)


# Notebook 14. -------------------------------------------------------------------------------------------------------


def adam_rewards(parameters, lr):
    return torch.optim.Adam(parameters, lr=0.05)


def likelihood(wins, rewards):
    """log σ(r_i − r_j) of every label, summed pair by pair."""
    rows, columns = wins.nonzero(as_tuple=True)
    return (wins[rows, columns] * -softplus(rewards[columns] - rewards[rows])).sum()


def from_both(scale=1.0, extra=lambda log_ref: None, mean=True, **how):
    """A correct fit to demonstrations and labels with one thing done otherwise."""

    def train(rewards, log_ref, demonstrations, wins, demo_beta, steps, learning_rate):
        total = demonstrations.sum() + wins.sum() if mean else 2000.0
        drawn = torch.arange(len(rewards)).repeat_interleave(demonstrations.long())

        def loss_of(step):
            extra(log_ref)
            log_demo = log_ref + rewards / demo_beta - (log_ref + rewards / demo_beta).logsumexp(0)
            return -scale * (log_demo[drawn].sum() + likelihood(wins, rewards)) / total

        return take_steps(rewards, loss_of, steps, learning_rate, **how)

    return train


def from_counts(scale=1.0, weight=lambda wins: wins, extra=lambda wins: None, **how):
    """A correct fit to counts with one thing done otherwise."""

    def train(rewards, wins, steps, learning_rate):
        def loss_of(step):
            extra(wins)
            return -scale * likelihood(weight(wins), rewards) / weight(wins).sum()

        return take_steps(rewards, loss_of, steps, learning_rate, **how)

    return train


RIGHT = {
    "nb10.train_to_kl": {
        "log β": to_kl(lambda beta, error: beta * math.exp(0.1 * error)),
        "faster control": to_kl(lambda beta, error: beta * (1 + 0.2 * error)),
        "another optimiser": to_kl(make=adam),
        "losses as tensors": to_kl(value=lambda x: x.detach()),
    },
    "nb10.over_prompts": {
        "sums divided": mean_of_j(lambda kl, gain, beta: (beta * kl.sum() - gain.sum()) / len(kl)),
        "another optimiser": mean_of_j(make=adam),
        "sums": mean_of_j(lambda kl, gain, beta: beta * kl.sum() - gain.sum()),
    },
    "nb13.train_on_window": {
        "weights": on_window(weighted=True),
        "another optimiser": on_window(make=adam),
        "cross-entropy": on_window(loss=lambda m: binary_cross_entropy_with_logits(m, torch.ones_like(m))),
        "losses as tensors": on_window(value=lambda x: x.detach()),
    },
    "nb13.refit": {
        "softplus": in_rounds,
        "another optimiser": partial(in_rounds, make=adam),
        "losses as tensors": partial(in_rounds, value=lambda x: x.detach()),
    },
    "nb14.fit_both": {
        "each demonstration": from_both(),
        "another optimiser": from_both(make=adam_rewards),
        "another divisor": from_both(mean=False),
        "losses as tensors": from_both(value=lambda x: x.detach()),
    },
    "nb14.fit_counts": {
        "pair by pair": from_counts(),
        "another optimiser": from_counts(make=adam_rewards),
        "half the step": from_counts(scale=0.5),
    },
}
WRONG = {
    "nb10.train_to_kl": {
        "changes π_ref": (to_kl(extra=add), "the loop changes log_ref"),
        "global state": (to_kl(extra=lambda x: random.random()), "uses the global random state"),
        "slow control": (to_kl(lambda beta, error: beta * (1 + 0.001 * error)), "but a later one is not"),
        "tiny steps": (to_kl(scale=0.002), "times the right length"),
        "no losses": (to_kl(value=lambda x: None), "return a list of losses"),
        "raises": (to_kl(lambda beta, error: beta @ error), "raises AttributeError"),
    },
    "nb10.over_prompts": {
        "changes π_ref": (mean_of_j(extra=add), "the loop changes log_ref"),
        "tiny steps": (mean_of_j(lambda kl, gain, beta: (beta * kl - gain).mean() / 200), "times the right length"),
        "only the reward": (mean_of_j(lambda kl, gain, beta: -gain.sum(-1).mean()), "is not right yet"),
        "no losses": (mean_of_j(value=lambda x: None), "return a list of losses"),
        "nothing": (lambda *given: None, "returns nothing"),
    },
    "nb13.train_on_window": {
        "changes π_ref": (on_window(extra=add), "the loop changes log_ref"),
        "global state": (on_window(extra=lambda x: random.random()), "uses the global random state"),
        "tiny steps": (on_window(loss=lambda m: -logsigmoid(m).mean() / 500), "times the right length"),
        "no losses": (on_window(value=lambda x: None), "return a list of losses"),
        "raises": (on_window(loss=lambda m: m @ torch.zeros(7)), "raises RuntimeError"),
    },
    "nb13.refit": {
        "tiny steps": (
            partial(in_rounds, loss=lambda m: softplus(-m).mean() / 500),
            "the bug’s trajectory is gone, but the loop is not right yet",
        ),
        "no losses": (partial(in_rounds, value=lambda x: None), "return a list of losses"),
    },
    "nb14.fit_both": {
        "changes π_ref": (from_both(extra=add), "the loop changes log_ref"),
        "global state": (from_both(extra=lambda x: random.random()), "uses the global random state"),
        "tiny steps": (from_both(scale=0.002), "times the right length"),
        "no losses": (from_both(value=lambda x: None), "return a list of losses"),
        "raises": (from_both(extra=lambda x: x @ torch.zeros(7)), "raises RuntimeError"),
    },
    "nb14.fit_counts": {
        "changes the counts": (from_counts(extra=add), "the loop changes wins"),
        "square roots": (from_counts(weight=lambda wins: wins.sqrt()), "is not right yet"),
        "tiny steps": (from_counts(scale=0.002), "times the right length"),
        "no losses": (from_counts(value=lambda x: None), "return a list of losses"),
        "nothing": (lambda *given: None, "returns nothing"),
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


@pytest.mark.parametrize(
    ("key", "pair", "other", "words"),
    [
        ("nb10.over_prompts", "sum over prompts + no beta", "no beta", "β is missing"),
        ("nb13.refit", "moving reference + all labels", "sign", "chosen and rejected are swapped"),
        ("nb14.fit_counts", "rates + swapped", "swapped", "rows and columns of wins are swapped"),
    ],
)
def test_a_second_bug_is_named_with_and_without_the_first(key, pair, other, words):
    mistakes = {one.name: one.function for one in exercise(key).mistakes}
    assert "the bug is still there, and another one came in" in repr(check(key, mistakes[pair]))
    assert f"the bug is gone, but another one came in: {words}" in repr(check(key, mistakes[other]))


# Next lines. --------------------------------------------------------------------------------------------------------

RIGHT_LINES = {
    "nb10.kl_slope": [
        lambda w: (1 / w.beta) * w.variance,
        lambda w: torch.stack([v / w.beta for v in w.variance]),
        lambda w: w.mean + w.variance / w.beta - w.mean,
    ],
    "nb13.window_curvature": [
        lambda w: torch.arange(1, w.window + 1).double().mean() ** 2 / w.beta * w.variance,
        lambda w: (w.window + 1) ** 2 * w.variance / (4 * w.beta),
        lambda w: float(w.variance) * (w.window**2 + 2 * w.window + 1) / 4 / w.beta,
    ],
    "nb14.trace_line": [
        lambda w: (w.sigma * w.inverse).sum() / w.beta / 2,
        lambda w: torch.einsum("ij,ji->", w.inverse, w.sigma) / (2 * w.beta),
        lambda w: float((w.inverse @ w.sigma).diagonal().sum()) / (2 * w.beta),
    ],
}
WRONG_LINES = {
    "nb10.kl_slope": [
        (lambda w: -w.variance / w.beta, "not yet"),
        (lambda w: w.variance / w.beta**2, "not yet"),
        (lambda w: w.mean / w.beta - w.log_z, "not yet"),
        (lambda w: (w.variance / w.beta).squeeze(-1), "expected shape"),
        (lambda w: w.star * w.reward, "may not contain w.star"),
    ],
    "nb13.window_curvature": [
        (lambda w: (w.window / 2) ** 2 * w.variance / w.beta, "not yet"),
        (lambda w: w.variance / w.beta, "not yet"),
        (lambda w: torch.ones(3) * w.variance, "expected shape"),
        (lambda w: w.omega**2 * w.variance, "may not contain w.omega"),
        (lambda w: None, "returns nothing"),
    ],
    "nb14.trace_line": [
        (lambda w: torch.trace(w.sigma) / (2 * w.beta), "not yet"),
        (lambda w: torch.linalg.norm(w.sigma @ w.inverse) / (2 * w.beta), "not yet"),
        (lambda w: w.sigma @ w.inverse / (2 * w.beta), "expected shape"),
        (lambda w: w.reward.sum(), "may not contain w.reward"),
        (lambda w: "text", "got text"),
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
