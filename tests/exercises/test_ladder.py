"""Predictions, next lines, training loops and loops with a bug: right answers in several forms, wrong ones by name."""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from test_exercises import assert_the_cells_of_the_ladder
from torch.nn.functional import logsigmoid, softplus

from rlhf_lab import exact
from rlhf_lab.derivations import kl as kl_derivations
from rlhf_lab.errors import LabError
from rlhf_lab.exercises import Mistake, check, exercise, notebooks, of_notebook, predict, progress, records, reveal
from rlhf_lab.exercises.edits import Edited, wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.student_notebooks import STUB, student_version
from rlhf_lab.exercises.training_loops import TrainingLoop

ROOT = Path(__file__).resolve().parents[2]
ALL = [one for number in notebooks() for one in of_notebook(number)]


def of_kind(*kinds):
    return pytest.mark.parametrize("one", [task for task in ALL if task.kind in kinds], ids=lambda one: one.key)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    """Each test starts without events, in an empty folder."""
    monkeypatch.setattr(records, "_in_memory", [])
    monkeypatch.chdir(tmp_path)


# What holds for every exercise of a kind. ---------------------------------------------------------------------------


@of_kind("derive", "training loop", "debug")
@pytest.mark.parametrize("number", [2, pytest.param(None, marks=pytest.mark.slow)], ids=["two mistakes", "all"])
def test_the_solution_passes_and_each_known_mistake_gets_its_message(one, number):
    assert check(one.key, one.solution).passed, check(one.key, one.solution)
    assert len({mistake.name for mistake in one.mistakes}) == len(one.mistakes) >= 3 and len(one.hints) >= 2
    for mistake in one.mistakes[:number]:
        feedback = check(one.key, mistake.function)
        assert not feedback.passed and feedback.mistake == mistake.name, (mistake.name, feedback)
        assert one.kind == "debug" or mistake.message in repr(feedback)
    assert repr(feedback) == repr(check(one.key, mistake.function)), "the same text in every run"


@of_kind("predict")
def test_the_computed_answer_is_an_option_and_every_other_option_is_explained(one):
    truth = one.truth()
    if one.options:
        assert truth in one.options and set(one.why_not) == set(one.options) - {truth}
    assert one.grade(truth).passed and one.grade(truth).passed is not one.grade("nonsense").passed
    wrong = [*one.why_not, *(mistake.function() for mistake in one.mistakes)]
    assert len(wrong) >= 2
    for answer in wrong:
        feedback = one.grade(answer)
        reason = one.why_not[answer] if one.options else next(m.message for m in one.mistakes if m.function() == answer)
        assert not feedback.passed and reason in feedback.lines[2], feedback


@of_kind("debug")
def test_the_broken_loop_is_recognised_and_runs_like_the_mistake_that_is_its_name(one):
    feedback = check(one.key, one.broken)
    assert feedback.mistake == one.bug and "the bug is still there." in repr(feedback)
    scope = {"torch": torch, "TabularPolicy": object, "Pairs": object}
    exec(one.broken_source.replace("Tensor", "object").replace("torch.Generator", "object"), scope)
    assert check(one.key, scope[one.name]).mistake == one.bug


@pytest.mark.parametrize("number", notebooks())
def test_every_edit_fits_its_solution(number):
    found = [mistake.function for one in of_notebook(number) for mistake in one.mistakes]
    for function in (function for function in found if isinstance(function, Edited)):
        assert function.source != Edited(function.function, ()).source


@of_kind("training loop", "debug")
def test_the_arguments_are_the_same_in_every_call(one):
    first, second = one.arguments(), one.arguments()
    assert list(first) == list(second) and "steps" in first
    for name, value in first.items():
        assert repr(value) == repr(second[name])


# Right answers in other forms, and wrong ones that are not among the mistakes. --------------------------------------

RIGHT_LINES = {
    "nb05.cdpo_slope": [
        lambda w: w.beta * (w.epsilon - torch.sigmoid(-w.margin)),
        lambda w: w.beta * (w.epsilon - 1 / (1 + w.margin.exp())),
        lambda w: w.beta * (w.epsilon * torch.sigmoid(w.margin) - (1 - w.epsilon) * (1 - torch.sigmoid(w.margin))),
    ],
    "nb06.gradient_line": [
        lambda w: w.beta * (1 - w.margin.sigmoid()) * (w.rejected_score - w.chosen_score),
        lambda w: -w.beta / (1 + w.margin.exp()) * (w.chosen_score - w.rejected_score),
        lambda w: (
            w.beta * torch.special.expit(-w.margin) * w.rejected_score - w.beta * w.chosen_score / (1 + w.margin.exp())
        ),
    ],
}
WRONG_LINES = {
    "nb05.cdpo_slope": [
        (lambda w: torch.zeros_like(w.margin), "not yet"),
        (lambda w: -w.beta * torch.sigmoid(-w.margin) * w.epsilon, "not yet"),
        (lambda w: (w.beta * (w.epsilon - torch.sigmoid(-w.margin))).sum(), "expected shape"),
        (lambda w: w.beta * (w.epsilon - torch.sigmoid(-w.log_ratio)), "may not contain w.log_ratio"),
        (lambda w: (w.beta * (w.epsilon - torch.sigmoid(-w.margin))).float(), "float64"),
        (lambda w: w.margin @ torch.zeros(7, 7), "raises RuntimeError"),
        (lambda w: None, "returns nothing"),
        (lambda w: "text", "got text"),
        (lambda: 0, "called with 1 arguments"),
        (3.0, "give the function"),
    ],
    "nb06.gradient_line": [
        (lambda w: -w.beta * w.margin * (w.chosen_score - w.rejected_score), "not yet"),
        (lambda w: -(w.beta**2) * torch.sigmoid(-w.margin) * (w.chosen_score - w.rejected_score), "not yet"),
        (lambda w: -w.beta * torch.sigmoid(-w.beta * w.margin) * (w.chosen_score - w.rejected_score), "not yet"),
        (lambda w: (w.chosen_score - w.rejected_score).sum(-1), "expected shape"),
        (lambda w: w.reward, "may not contain w.reward"),
    ],
}


@pytest.mark.parametrize(("key", "line"), [(key, line) for key, lines in RIGHT_LINES.items() for line in lines])
def test_a_right_line_in_another_form_passes(key, line):
    feedback = check(key, line)
    assert feedback.passed and "in all 200 random worlds" in repr(feedback), feedback


@pytest.mark.parametrize(
    ("key", "line", "words"), [(key, *pair) for key, pairs in WRONG_LINES.items() for pair in pairs]
)
def test_a_wrong_line_gets_a_sentence_and_a_counterexample(key, line, words):
    feedback = check(key, line)
    assert not feedback.passed and feedback.mistake == "" and words in repr(feedback), feedback
    if "raises" in words or "text" in words:
        assert "In random world 1 of 200" in repr(feedback)
    if words == "not yet":
        assert "In random world 1 of 200, with w.beta = " in repr(feedback) and "expected" in repr(feedback)


def test_the_counterexample_is_the_first_world_in_which_the_line_fails():
    """The line is wrong only where w.n is 3, and the first such world is named with its number."""
    world = exercise("nb05.cdpo_slope").derivation.world
    from rlhf_lab.training import seeded

    first = next(number for number in range(200) if world(seeded(0, number)).n == 3)
    one = exercise("nb05.cdpo_slope")
    task = replace(one, quantities=(*one.quantities, "n"), mistakes=one.mistakes[:3])
    feedback = task.grade(lambda w: one.solution(w) + (w.n == 3))
    assert f"In random world {first + 1} of 200" in repr(feedback)


def test_the_derivation_s_own_wrong_lines_are_mistakes_and_its_text_explains_the_quantities():
    one = exercise("nb05.cdpo_slope")
    assert "this is the derivative of DPO; ε is missing" in [mistake.name for mistake in one.mistakes]
    assert check(one.key, lambda w: -w.beta * torch.sigmoid(-w.margin)).mistake.startswith("this is the derivative")
    assert r"\mathcal{L}(w,l) + \varepsilon\,\beta\Delta" in one.statement and "= \\;\\;?" in one.statement
    assert "| `w.epsilon` | ε in (0.05, 0.4), the rate of flipped labels |" in one.statement
    on_property = replace(one, quantities=("log_policy",), derivation=kl_derivations.kl_values)
    assert "| `w.log_policy` | log π_θ, (X, K) |" in on_property.statement


def by_hand(logits, log_ref, prompts, chosen, rejected, beta, steps, learning_rate):
    """The gradient of DPO's loss by hand, without an optimiser."""
    losses = []
    for _ in range(steps):
        log_ratio = logits.detach().log_softmax(-1) - log_ref
        margin = beta * (log_ratio[prompts, chosen] - log_ratio[prompts, rejected])
        push = torch.zeros_like(logits)
        weight = beta * torch.sigmoid(-margin) / len(margin)
        push.index_put_((prompts, chosen), weight, accumulate=True)
        push.index_put_((prompts, rejected), -weight, accumulate=True)
        with torch.no_grad():
            logits += learning_rate * push
        losses.append(softplus(-margin).mean())
    return torch.stack(losses)


def dpo(optimizer=None, step=lambda loss: loss, value=lambda x: x.item(), batch=None, extra=lambda *given: None):
    """A correct DPO loop with one thing done otherwise."""

    def train(logits, log_ref, prompts, chosen, rejected, beta, steps, learning_rate):
        tool = (optimizer or (lambda p, lr: torch.optim.SGD(p, lr=lr)))([logits], learning_rate)
        generator, losses = torch.Generator().manual_seed(0), []
        for _ in range(steps):
            extra(logits, log_ref)
            rows = slice(None) if batch is None else torch.randint(len(prompts), (batch,), generator=generator)
            ratio = logits.log_softmax(-1) - log_ref
            gap = ratio[prompts[rows], chosen[rows]] - ratio[prompts[rows], rejected[rows]]
            loss = step(-logsigmoid(beta * gap).mean())
            tool.zero_grad()
            loss.backward()
            tool.step()
            losses.append(value(loss))
        return losses

    return train


PLAIN_DPO = {
    "another optimiser": dpo(lambda p, lr: torch.optim.Adam(p, lr=0.1)),
    "momentum": dpo(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5)),
    "half the step": dpo(step=lambda loss: loss / 2),
    "batches": dpo(batch=600),
    "losses as tensors": dpo(value=lambda x: x.detach()),
    "by hand": by_hand,
}


def spoil(logits, log_ref):
    log_ref += 0.001


def overwrite(logits, log_ref):
    log_ref.copy_(logits.detach().log_softmax(-1))


FAULTY_DPO = {
    "changes the reference": (dpo(extra=spoil), "the loop changes log_ref, but only logits may change"),
    "updates the reference": (dpo(extra=overwrite), "log-ratio is taken to the current policy"),
    "torch's global state": (dpo(extra=lambda *x: torch.rand(1)), "uses the global random state"),
    "python's global state": (dpo(extra=lambda *x: random.random()), "uses the global random state"),
    "numpy's global state": (dpo(extra=lambda *x: np.random.rand()), "uses the global random state"),  # noqa: NPY002
    "another policy": (dpo(lambda p, lr: torch.optim.SGD([torch.zeros(1)])), "logits is the same after training"),
    "no losses": (lambda *given: dpo()(*given)[:3], "return a list of losses, one for each of the 60"),
    "text for losses": (lambda *given: ["low"] * len(dpo()(*given)), "return a list of losses"),
    "rising losses": (lambda *given: dpo()(*given)[::-1], "the loss does not fall"),
    "losses that are no numbers": (dpo(value=lambda x: float("nan")), "one of the losses is not finite"),
    "diverges": (dpo(lambda p, lr: torch.optim.SGD(p, lr=torch.inf)), "logits is not finite"),
    "opposite": (dpo(step=lambda loss: -0.3 * loss), "the first step goes in the opposite direction"),
    "too slow": (dpo(step=lambda loss: loss / 50), "the right direction and 0.02 times the right length"),
    "too short": (
        lambda logits, ref, *rest: [*dpo()(logits, ref, *rest[:-2], 1, rest[-1]), *[0.6] * (rest[-2] - 1)],
        "the first step is right, but a later one is not",
    ),
    "raises": (lambda *given: torch.zeros(2) @ torch.zeros(3), "your function raises RuntimeError"),
    "nothing": (lambda *given: None, "returns nothing"),
}


def test_a_wrong_loop_leaves_the_global_random_state_as_it_was():
    before = torch.get_rng_state(), random.getstate()
    check("nb05.train_dpo", FAULTY_DPO["torch's global state"][0])
    check("nb05.train_dpo", FAULTY_DPO["python's global state"][0])
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_an_unwritten_loop_and_one_with_other_arguments_are_named():
    def stub(*given):
        raise NotImplementedError("your code here")

    assert "not written yet" in repr(check("nb05.train_dpo", stub))
    assert "called with 8 arguments" in repr(check("nb05.train_dpo", lambda logits: []))


def test_the_direction_of_a_wrong_first_step_is_given_as_an_angle():
    """Only the first prompt's logits move, so the angle is that between a vector and one of its two parts."""

    def half(logits, log_ref, prompts, chosen, rejected, beta, steps, learning_rate):
        rows = prompts == 0
        return dpo()(logits, log_ref, prompts[rows], chosen[rows], rejected[rows], beta, steps, learning_rate)

    one = exercise("nb05.train_dpo")
    arguments = {**one.arguments(), "steps": 1}
    start = arguments["logits"].detach().clone()
    one.solution(*arguments.values())
    moved = arguments["logits"].detach() - start
    degrees = torch.rad2deg(torch.acos(moved[0].norm() / moved.norm()))
    assert f"is wrong by {degrees:.0f} degrees" in repr(check(one.key, half))


def reference_first(make):
    """DPO without a given reference: `make` computes it from the logits before the first step."""

    def train(logits, *rest):
        return dpo()(logits, make(logits), *rest)

    return train


def formula(gradient):
    """Descent on a table by `gradient(margin, chosen, rejected, beta, K)`, which returns K derivatives."""

    def train(logits, log_ref, chosen, rejected, beta, steps, learning_rate):
        losses = []
        for _ in range(steps):
            ratio = logits.detach().log_softmax(-1) - log_ref
            margin = beta * (ratio[chosen] - ratio[rejected])
            logits.data -= learning_rate * gradient(margin, chosen, rejected, beta, len(log_ref))
            losses.append(softplus(-margin).mean())
        return losses

    return train


def one_hot(y, size):
    return torch.nn.functional.one_hot(y, size).double()


def scattered(m, w, r, b, k):
    push = b * torch.sigmoid(-m) / len(m)
    return torch.zeros(k).double().scatter_add(0, r, push).scatter_add(0, w, -push)


def last_pair_only(m, w, r, b, k):
    gradient = torch.zeros(k, dtype=torch.float64)
    for push, i, j in zip(b * torch.sigmoid(-m) / len(m), w, r, strict=True):
        gradient[i], gradient[j] = -push, push
    return gradient


def sequences(reduce):
    """DPO on sequences with `reduce` of the log-ratios of the tokens."""

    def train(policy, token_log_ref, pairs, beta, steps, learning_rate):
        optimizer, losses = torch.optim.SGD(policy.parameters(), lr=learning_rate), []
        for _ in range(steps):
            ratio = reduce(policy, pairs, token_log_ref)
            loss = softplus(-beta * (ratio[:, 0] - ratio[:, 1])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return train


def each_token(policy, pairs, token_log_ref):
    return policy.token_log_probs(pairs.prompts, pairs.responses) - token_log_ref


RIGHT_LOOPS = {
    "nb05.train_dpo": list(PLAIN_DPO.values()),
    "nb05.train_from_reference": [
        reference_first(lambda logits: logits.detach().clone().log_softmax(-1)),
        reference_first(lambda logits: torch.log_softmax(logits, -1).detach()),
        reference_first(lambda logits: logits.detach().softmax(-1).log()),
    ],
    "nb06.train_by_formula": [
        formula(scattered),
        formula(lambda m, w, r, b, k: (b * torch.sigmoid(-m)[:, None] * (one_hot(r, k) - one_hot(w, k))).mean(0)),
        formula(lambda m, w, r, b, k: -b * (1 - m.sigmoid()) @ (one_hot(w, k) - one_hot(r, k)) / len(m)),
    ],
    "nb06.train_on_sequences": [
        sequences(lambda policy, pairs, ref: policy.log_prob(pairs.prompts, pairs.responses) - ref.sum(-1)),
        sequences(
            lambda policy, pairs, ref: torch.where(pairs.responses.mask, each_token(policy, pairs, ref), 0).sum(2)
        ),
        sequences(lambda policy, pairs, ref: each_token(policy, pairs, ref).cumsum(-1)[..., -1]),
    ],
}


@pytest.mark.parametrize(("key", "loop"), [(key, loop) for key, loops in RIGHT_LOOPS.items() for loop in loops])
def test_a_right_loop_in_another_form_passes(key, loop):
    feedback = check(key, loop)
    assert feedback.passed, feedback


WRONG_LOOPS = {
    "nb05.train_dpo": list(FAULTY_DPO.values()),
    "nb05.train_from_reference": [
        (reference_first(lambda logits: 0 * logits.detach()), "the reference is missing"),
        (reference_first(lambda x: -5 * x.detach()), "is not right yet"),
        (lambda logits, *rest: [0.7] * rest[-2], "both gradients cancel and nothing moves"),
    ],
    "nb06.train_by_formula": [
        (formula(last_pair_only), "Look at the loss of that step"),
        (formula(lambda *given: -scattered(*given)), "the sign is lost"),
        (formula(lambda *given: scattered(*given) / 100), "0.01 times the right length"),
    ],
    "nb06.train_on_sequences": [
        (sequences(lambda *given: each_token(*given).abs().sum(-1)), "is not right yet"),
        (sequences(lambda *given: each_token(*given)[..., 0]), "is not right yet"),
        (sequences(lambda *given: each_token(*given).mean(-1)), "the bug is still there"),
    ],
}


@pytest.mark.parametrize(
    ("key", "loop", "words"), [(key, *pair) for key, pairs in WRONG_LOOPS.items() for pair in pairs]
)
def test_a_wrong_loop_is_told_what_is_wrong(key, loop, words):
    feedback = check(key, loop)
    assert not feedback.passed and words in repr(feedback), feedback


def reinforce(term, value=lambda score: score, generator=None):
    def train(logits, log_ref, reward, beta, steps, learning_rate, samples, given):
        optimizer, losses = torch.optim.SGD([logits], lr=learning_rate), []
        for _ in range(steps):
            log_policy = logits.log_softmax(-1)
            source = torch.Generator().manual_seed(3) if generator else given
            drawn = torch.multinomial(log_policy.detach().exp(), samples, True, generator=source)
            log_prob, log_prob_ref = log_policy.gather(-1, drawn), log_ref.gather(-1, drawn)
            loss = term(value(reward.gather(-1, drawn)), log_prob, log_prob_ref, beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


RIGHT_FIXES = {
    "nb02.reinforce_with_kl": [
        reinforce(lambda r, p, q, b: (-(r * p) + b * (p - q).square() / 2).mean()),
        reinforce(lambda r, p, q, b: -((r - b * (p - q)).detach() * p).mean()),
        reinforce(
            lambda r, p, q, b: -((r - b * (p - q) - (r - b * (p - q)).mean(-1, keepdim=True)).detach() * p).mean()
        ),
    ],
}


@pytest.mark.parametrize("loop", RIGHT_FIXES["nb02.reinforce_with_kl"], ids=["k2 as a loss", "k1 in r", "baseline"])
def test_other_fixes_of_the_bug_pass(loop):
    feedback = check("nb02.reinforce_with_kl", loop)
    assert feedback.passed and "the bug is gone, and no other one came in" in repr(feedback), feedback


def test_the_check_says_whether_the_bug_is_gone_and_whether_another_one_came_in():
    key = "nb02.reinforce_with_kl"
    other = {one.name: one for one in exercise(key).mistakes}
    assert "the bug is gone, but another one came in: β is missing" in repr(check(key, other["no beta"].function))
    both = check(key, other["k1 as a loss + sign of the reward"].function)
    assert "the bug is still there, and another one came in: the reward has the wrong sign" in repr(both)
    unknown = check(key, reinforce(lambda r, p, q, b: -((r - b * (p - q)).detach() * p).mean() * 0))
    assert "the bug’s trajectory is gone, but the loop is not right yet" in repr(unknown)
    fixed_noise = reinforce(lambda r, p, q, b: -((r - b * (p - q)).detach() * p).mean(), generator=True)
    assert "does not use its generator" in repr(check(key, fixed_noise))
    far = reinforce(lambda r, p, q, b: -((r - 3 * b * (p - q)).detach() * p).mean())
    assert "does not reach the optimum" in repr(check(key, far))


def test_a_module_can_be_the_policy():
    """A linear layer is fitted to zero; a loop that changes a second module is found out."""

    def fit(layer, frozen, steps):
        """Train `layer`."""
        optimizer, losses = torch.optim.SGD(layer.parameters(), lr=0.1), []
        for _ in range(steps):
            loss = sum(one.square().sum() for one in layer.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def both(layer, frozen, steps):
        with torch.no_grad():
            frozen.weight += 1
        return fit(layer, frozen, steps)

    def layers():
        layer = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(layer.weight, 1.0)
        torch.nn.init.zeros_(layer.bias)
        return {"layer": layer, "frozen": layer.requires_grad_(True), "steps": 20}

    task = TrainingLoop(
        key="nb99.fit",
        title="",
        objective="",
        difficulty=1,
        minutes=1,
        arguments=layers,
        distance=lambda layer: layer.weight.norm().item(),
        quantity="the norm",
        solution=fit,
        mistakes=tuple(Mistake(str(i), "", lambda *given: [0.0]) for i in range(3)),
        hints=("", ""),
    )
    assert task.grade(fit).passed and "The norm is 1.41 before" in repr(task.grade(fit))
    assert "the loop changes frozen, but only layer may change" in repr(task.grade(both))


def test_a_bug_that_is_not_an_edit_of_the_solution_is_refused():
    with pytest.raises(LabError, match="'unknown' is not a mistake that edits the solution"):
        TrainingLoop(**{**vars(exercise("nb05.train_dpo")), "bug": "unknown"})


def _add(x):
    x = x + 1
    return x * 10


def test_a_mistake_is_the_solution_with_code_replaced_and_pairs_of_mistakes_are_made_together():
    wrong = {"a": "x + 1 → x + 2", "b": ("x * 10 → x * 20", "x + → 5 + x +"), "c": lambda x: -x}
    found = wrong_answers(_add, wrong, {"c": "C.", "a": "A.", "b": "B."}, (("a", "b"),))
    # From x = 1: −1, (1 + 2)·10, (5 + 1 + 1)·20, and (5 + 1 + 2)·20 with both.
    assert [(one.name, one.function(1)) for one in found] == [("c", -1), ("a", 30), ("b", 140), ("a + b", 160)]
    assert found[-1].message == "A. B."
    assert _add(1) == 20, "the solution itself is not changed"


@pytest.mark.parametrize("edit", ["y → z", "x → y", "x + 1"])
def test_an_edit_that_does_not_fit_exactly_once_is_refused(edit):
    with pytest.raises(LabError, match="does not fit _add"):
        Edited(_add, (edit,))(0)


def test_mistakes_without_messages_are_refused():
    with pytest.raises(LabError, match="different names: b"):
        wrong_answers(_add, {"a": "x + 1 → x + 2"}, {"a": "A.", "b": "B."})


# Predictions and what is recorded. ----------------------------------------------------------------------------------


def test_nothing_is_revealed_before_a_prediction():
    feedback = reveal("nb05.first_loss")
    assert not feedback.passed and "predict first" in repr(feedback) and "0.69" not in repr(feedback)
    assert "in nats" in repr(predict("nb05.first_loss")) and "predict first" in repr(reveal("nb05.first_loss"))


@pytest.mark.parametrize("answer", [0.69, "0.5x", torch.tensor(0.6931), np.float32(0.7), 1, 0.5, 0, 3])
def test_a_number_is_recorded_compared_and_explained(answer):
    said = predict("nb05.first_loss", answer)
    if answer == "0.5x":
        assert "Nothing is recorded" in repr(said) and "predict first" in repr(reveal("nb05.first_loss"))
        return
    feedback = reveal("nb05.first_loss")
    near = abs(float(answer) - float(torch.tensor(2.0).log())) < 0.05 * 0.694
    assert feedback.passed == near and "0.693" in repr(feedback), feedback
    reasons = {1: "bits", 0.5: "half", 0: "zero"}
    assert feedback.mistake == reasons.get(answer, "")


def test_a_prediction_can_be_changed_until_the_answer_is_revealed():
    key = "nb02.effect_of_k1"
    predict(key, "B")
    predict(key, "a")
    first = reveal(key)
    assert first.mistake == "A" and "The computed answer is C" in repr(first)
    assert first.lines[2].startswith("A is wrong: an unbiased value")
    assert "already revealed. Your recorded prediction is **A**" in repr(predict(key, "C"))
    assert repr(reveal(key)) == repr(first)
    assert "one of the letters A, B, C" in repr(predict(key, "D"))


def test_the_answer_is_computed_so_another_truth_changes_it():
    one = exercise("nb05.first_loss")
    other = Prediction(**{**vars(one), "truth": lambda: 0.5})
    assert not other.grade(0.6931).passed and other.grade(0.5).passed


def test_the_kinds_are_not_mixed_up():
    with pytest.raises(LabError, match="is a prediction"):
        check("nb05.first_loss", abs)
    with pytest.raises(LabError, match="is not a prediction"):
        reveal("nb05.train_dpo")


def test_in_a_students_folder_answers_are_saved_and_survive_the_kernel(tmp_path, monkeypatch):
    (tmp_path / records.COURSE_FILE).write_text("{}")
    predict("nb05.first_loss", 0.5)
    reveal("nb05.first_loss")
    check("nb05.cdpo_slope", exercise("nb05.cdpo_slope").solution)
    check("nb05.cdpo_slope", abs)  # a later wrong answer does not take the solved one away
    lines = [json.loads(line) for line in (tmp_path / records.ANSWERS_FILE).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["predicted", "revealed", "checked", "checked"]
    assert lines[0]["answer"] == 0.5 and lines[1]["passed"] is False
    monkeypatch.setattr(records, "_in_memory", [])
    assert "already revealed" in repr(predict("nb05.first_loss", 0.7))
    found = progress("nb05")
    assert found.solved["nb05"]["predict"] == (1, 1) and found.solved["nb05"]["derive"] == (1, 1)
    assert found.solved["nb05"]["training loop"] == (0, 1) and found.right == {"nb05": 0}
    assert "0 of 1 predictions are right" in repr(found)
    assert progress("nb05", tmp_path).solved == found.solved


def test_outside_a_students_folder_no_file_is_written(tmp_path):
    predict("nb05.first_loss", 0.5)
    reveal("nb05.first_loss")
    assert list(tmp_path.iterdir()) == [] and progress("nb05").solved["nb05"]["predict"] == (1, 1)


def test_a_folder_that_cannot_be_written_to_is_said_and_the_answer_counts_until_the_kernel_stops(tmp_path):
    (tmp_path / records.COURSE_FILE).write_text("{}")
    (tmp_path / records.ANSWERS_FILE).mkdir()
    assert "This is not saved" in repr(predict("nb05.first_loss", 0.5))
    assert "you predicted 0.5" in repr(reveal("nb05.first_loss"))
    assert "This is not saved" in repr(check("nb05.cdpo_slope", exercise("nb05.cdpo_slope").solution))


def test_damaged_lines_are_skipped(tmp_path):
    (tmp_path / records.COURSE_FILE).write_text("{}")
    (tmp_path / records.ANSWERS_FILE).write_text(
        '{"key": "nb05.cdpo_slope", "event": "checked", "passed": true}\n[1]\n{"ke'
    )
    assert progress("nb05").solved["nb05"]["derive"] == (1, 1)


def test_the_summary_adds_up():
    for one in of_notebook("nb05"):
        if one.kind != "predict":
            records.record(one.key, "checked", passed=one.kind == "implement")
    found = progress()
    number = sum(one.kind == "implement" for one in ALL)
    mine = sum(one.kind == "implement" for one in of_notebook("nb05"))
    assert found.rows()[-1][0] == "all" and f"{mine} of {number}" in found.rows()[-1]
    assert found.rows()[-1][-1] == f"{mine} of {len(ALL)}" and "<td>nb05</td>" in found._repr_html_()


def test_the_regret_in_the_message_is_that_of_the_policy():
    one = exercise("nb05.train_dpo")
    arguments = one.arguments()
    one.solution(*arguments.values())
    world_regret = one.distance(arguments["logits"])
    assert f"{world_regret:.3g} after 60 steps" in repr(check(one.key, one.solution))
    star = exact.optimal_policy(arguments["log_ref"], _reward(), 0.5)
    assert one.distance(star) == pytest.approx(0, abs=1e-12)


def _reward():
    from rlhf_lab.worlds import bandit

    return bandit.lecture().rewards()


# The cells in a notebook. -------------------------------------------------------------------------------------------


@of_kind("predict", "derive", "training loop", "debug")
def test_the_cells_that_are_inserted_pass_their_own_test_and_the_student_gets_no_answer(one, tmp_path, capsys):
    """Inserted into a notebook with another exercise: numbered 2, solved, and without answers for students."""
    spec = importlib.util.spec_from_file_location("add_exercise", ROOT / "tools" / "add_exercise.py")
    add_exercise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(add_exercise)
    made = nbformat.v4.new_notebook()
    made.cells = [
        nbformat.v4.new_markdown_cell("### Exercise 1: another", id="one"),
        nbformat.v4.new_code_cell('check("nb99.other", other)', id="two"),
        nbformat.v4.new_markdown_cell("<details>x</details>", id="three"),
        nbformat.v4.new_markdown_cell("## Sources", id="four"),
    ]
    path = tmp_path / "05_x.ipynb"
    nbformat.write(made, path)
    add_exercise.main([str(path), one.key])
    with pytest.raises(SystemExit, match="already contains"):
        add_exercise.main([str(path), one.key])
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = notebook.cells[3:-1]
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert notebook.cells[-1].source == "## Sources" and cells[0].source.startswith(f"### Exercise 2: {one.title} (")
    assert_the_cells_of_the_ladder(one, code, prose)
    assert all(len(line) <= 92 for source in code for line in source.split("\n"))
    space = {"torch": torch, "Tensor": torch.Tensor, "check": check, "predict": predict, "reveal": reveal}
    exec(code[0], space)
    last = eval(code[1], space)
    assert last.passed == (one.kind != "debug"), last
    student = [cell.source for cell in student_version(notebook, "x").cells[3:-1] if cell.cell_type == "code"]
    if one.kind == "predict":
        assert student[0] == f'predict("{one.key}", ...)'
    elif one.kind != "debug":
        assert student[0].endswith(f"    {STUB}")
