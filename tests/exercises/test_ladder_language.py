"""Notebooks 11 and 12: predictions, next lines and training loops, in other right forms and other wrong ones."""

import random
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid, softplus

from rlhf_lab.exercises import check, exercise, records


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Each test starts without events, in an empty folder."""
    monkeypatch.setattr(records, "_in_memory", [])
    monkeypatch.chdir(tmp_path)


def take_steps(parameters, loss_of, steps, rate, make=torch.optim.SGD, value=lambda x: x.item()):
    """The part that all loops have in common: `steps` steps on `loss_of()`."""
    optimizer, losses = make(parameters, lr=rate), []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(value(loss))
    return losses


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=0.1)


# Each function makes a correct loop with one thing done otherwise. ---------------------------------------------------


def head(loss=lambda m: softplus(-m).mean(), extra=lambda x: None, **how):
    def train(weights, states, lengths, steps, learning_rate):
        rows = torch.arange(len(states))
        chosen, rejected = (states[rows, side, lengths[:, side] - 1] for side in (0, 1))

        def loss_of():
            extra(states)
            return loss((chosen - rejected) @ weights)

        return take_steps([weights], loss_of, steps, learning_rate, **how)

    return train


def filtered(loss=lambda p: -p.mean(), extra=lambda x: None, draw=torch.multinomial, **how):
    def train(logits, proxy, samples, share, steps, learning_rate, generator):
        y = draw(logits.detach().softmax(-1), samples, True, generator=generator)
        score = proxy.gather(-1, y)
        kept = torch.stack([row >= row.sort().values[int((1 - share) * samples)] for row in score])

        def loss_of():
            extra(proxy)
            return loss(log_softmax(logits, -1).gather(-1, y)[kept])

        return take_steps([logits], loss_of, steps, learning_rate, **how)

    return train


def lora(loss=lambda m: softplus(-m).mean(), extra=lambda x: None, only=None, **how):
    def train(adapter, weight, scale, features, chosen, rejected, beta, steps, learning_rate):
        def loss_of():
            extra(weight)
            # log Z and the logits of W cancel in the difference of two responses
            change = scale * (features @ adapter.A.T) @ adapter.B.T
            return loss(beta * (change.gather(-1, chosen) - change.gather(-1, rejected)))

        parameters = [getattr(adapter, only)] if only else [adapter.B, adapter.A]
        return take_steps(parameters, loss_of, steps, learning_rate, **how)

    return train


def responses(loss=lambda p, n: -p.sum() / n, extra=lambda x: None, **how):
    def train(logits, ids, lengths, steps, learning_rate):
        counts = torch.zeros_like(logits)
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
            for before, after in pairwise(row[:length]):
                counts[before, after] += 1

        def loss_of():
            extra(ids)
            return loss(counts.detach() * logits.log_softmax(-1), len(ids))

        return take_steps([logits], loss_of, steps, learning_rate, **how)

    return train


def add(values):
    values += 1


RIGHT = {
    "nb11.train_reward_head": {
        "softplus": head(),
        "logsigmoid": head(lambda m: -logsigmoid(m).mean()),
        "another optimiser": head(make=adam),
        "losses as tensors": head(value=lambda x: x.detach()),
    },
    "nb11.train_on_filtered": {
        "a sorted threshold": filtered(),
        "another optimiser": filtered(make=adam),
        "a larger loss": filtered(lambda p: -2 * p.mean()),
        "losses as tensors": filtered(value=lambda x: x.detach()),
    },
    "nb12.train_lora": {
        "without W, which cancels": lora(),
        "another optimiser": lora(make=adam),
        "logsigmoid": lora(lambda m: -logsigmoid(m).mean()),
        "losses as tensors": lora(value=lambda x: x.detach()),
    },
    "nb12.fit_responses": {
        "counts": responses(),
        "another optimiser": responses(make=adam),
        "losses as tensors": responses(value=lambda x: x.detach()),
    },
}
WRONG = {
    "nb11.train_reward_head": {
        "changes the states": (head(extra=add), "the loop changes states"),
        "global state": (head(extra=lambda x: random.random()), "uses the global random state"),
        "tiny steps": (head(lambda m: softplus(-m).mean() / 500), "0.002 times the right length"),
        "no losses": (head(value=lambda x: None), "return a list of losses"),
        "raises": (head(lambda m: m @ torch.zeros(7)), "raises RuntimeError"),
    },
    "nb11.train_on_filtered": {
        "changes the proxy": (filtered(extra=add), "the loop changes proxy"),
        "global state": (filtered(extra=lambda x: torch.rand(1)), "uses the global random state"),
        "no generator": (
            filtered(
                draw=lambda p, n, *rest, **given: torch.multinomial(
                    p, n, True, generator=torch.Generator().manual_seed(3)
                )
            ),
            "does not use its generator",
        ),
        "tiny steps": (filtered(lambda p: -p.mean() / 500), "the loop is not right yet"),
        "no losses": (filtered(value=lambda x: None), "return a list of losses"),
    },
    "nb12.train_lora": {
        "changes W": (lora(extra=add), "the loop changes weight"),
        "only A": (lora(only="A"), "is the same after training"),
        "tiny steps": (lora(lambda m: softplus(-m).mean() / 500), "0.002 times the right length"),
        "no losses": (lora(value=lambda x: None), "return a list of losses"),
        "raises": (lora(lambda m: m @ torch.zeros(7)), "raises RuntimeError"),
    },
    "nb12.fit_responses": {
        "changes the ids": (responses(extra=add), "the loop changes ids"),
        "global state": (responses(extra=lambda x: torch.rand(1)), "uses the global random state"),
        "tiny steps": (responses(lambda p, n: -p.sum() / n / 500), "the loop is not right yet"),
        "no losses": (responses(value=lambda x: None), "return a list of losses"),
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
    ("key", "two", "other"),
    [
        ("nb11.train_on_filtered", "one threshold + lowest", "lowest"),
        ("nb12.fit_responses", "end token masked + no shift", "no shift"),
    ],
)
def test_a_second_bug_beside_the_first_and_another_one_in_its_place_are_named(key, two, other):
    wrong = {one.name: one.function for one in exercise(key).mistakes}
    assert "the bug is still there, and another one came in" in repr(check(key, wrong[two]))
    assert "the bug is gone, but another one came in" in repr(check(key, wrong[other]))


RIGHT_LINES = {
    "nb11.regret_as_kl": [
        lambda w: w.beta * torch.einsum("xk,xk->x", w.policy, w.log_policy - w.log_star),
        lambda w: -(w.policy * w.beta * (w.log_star - w.log_policy)).sum(-1),
        lambda w: w.beta * ((w.policy * w.log_policy).sum(1) - (w.policy * w.log_star).sum(1)),
    ],
    "nb12.solved_for_reward": [
        lambda w: w.beta * (w.log_star - w.log_ref) + w.beta * w.log_z.unsqueeze(-1),
        lambda w: (w.log_star - w.log_ref + w.log_z.reshape(-1, 1)) * w.beta,
        lambda w: w.beta * torch.log(w.log_star.exp() * w.log_z.exp()[:, None] / w.log_ref.exp()),
    ],
}
WRONG_LINES = {
    "nb11.regret_as_kl": [
        (lambda w: w.beta * (w.policy * (w.log_policy - w.log_star) ** 2).sum(-1), "not yet"),
        (lambda w: w.beta * (w.log_policy - w.log_star).mean(-1), "not yet"),
        (lambda w: (w.policy * (w.log_policy - w.log_star)).sum(), "expected shape"),
        (lambda w: w.beta * w.log_z, "may not contain w.log_z"),
        (lambda w: None, "returns nothing"),
    ],
    "nb12.solved_for_reward": [
        (lambda w: w.beta * (w.log_star + w.log_ref + w.log_z[:, None]), "not yet"),
        (lambda w: w.log_star - w.log_ref + w.log_z[:, None], "not yet"),
        (lambda w: w.beta * w.log_z, "expected shape"),
        (lambda w: w.reward, "may not contain w.reward"),
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


def test_the_predictions_are_computed():
    weights = [0.5] + [0.5 / 63] * 63
    assert exercise("nb11.effective_samples").truth() == pytest.approx(1 / sum(w * w for w in weights))
    assert exercise("nb12.end_without_targets").truth() == "C"
