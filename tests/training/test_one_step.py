"""One step of the loop on modules of a few numbers: optimisers, parts of a batch, their weights and metrics.

What a step is with language models, on disk and over processes is tested in the files beside this one.
"""

import math

import pytest
import torch

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Loop, Training


def training(**changes):
    settings = {"steps": 3, "learning_rate": 0.1, "schedule": "constant", "log_every": 1, "progress": False}
    return Training(**(settings | changes))


class Numbers(torch.nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_epsilon_and_weight_decay_reach_the_optimiser(optimizer):
    """Kingma & Ba 2015, algorithm 1, with the decay of Loshchilov & Hutter 2019 beside the gradient, not in it:
    x ← x − rate λ x − rate m̂/(√v̂ + ε), at an ε and a λ that are not the defaults."""
    module, decay = Numbers(1.0, -2.0), 0.3 if optimizer == "adamw" else 0.0
    with Loop("x", module, training(optimizer=optimizer, adam_epsilon=0.5, weight_decay=decay)) as loop:
        for _ in loop:
            loop.update((module.x - 3).square().sum())
    for index, start in enumerate((1.0, -2.0)):
        x, m, v = start, 0.0, 0.0
        for t in range(1, 4):
            g = 2 * (x - 3)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            x = x - 0.1 * decay * x - 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 0.5)
        assert module.x[index].item() == pytest.approx(x, abs=1e-12)


WEIGHTS = torch.tensor([1.0, 2.0, 5.0, 0.5, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("weighted", ["not", "by pairs", "explicitly"])
def test_parts_of_a_batch_are_weighted_by_their_rows(parts, weighted):
    """Σ w_i (a_i x)² / Σ w_i over five rows in parts of unequal size: gradient, loss and a metric are those of the
    whole at x = 1: 2 Σ w a²/Σ w, half of that, and Σ w a/Σ w."""
    a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    w = torch.ones(5, dtype=torch.float64) if weighted == "not" else WEIGHTS
    module = Numbers(1.0)

    def mean(values, weight):
        return (values * weight).sum() / weight.sum()

    def loss(rows, weight):
        values = a[rows.prompts.ids[:, 0]] if isinstance(rows, Pairs) else a[rows]
        weight = rows.weight if isinstance(rows, Pairs) else weight
        return mean((values * module.x).square(), weight), {"size": mean(values, weight)}

    rows = torch.arange(5)
    if weighted == "by pairs":
        rows = Pairs(Tokens.full(rows[:, None]), Tokens.full(torch.zeros(5, 2, 1, dtype=torch.long)), w)
    with Loop("x", module, training(steps=1, accumulate=parts)) as loop:
        for _ in loop:
            loop.update(loss, batch=(rows, w), weight=w if weighted == "explicitly" else None)
    gradient = 2 * mean(a.square(), w).item()
    assert module.x.grad.item() == pytest.approx(gradient)
    assert loop.history[0]["loss"] == pytest.approx(gradient / 2)
    assert loop.history[0]["size"] == pytest.approx(mean(a, w).item())


def test_the_gradient_of_a_step_is_that_step_s_alone():
    module = Numbers(1.0)
    seen = []
    with Loop("x", module, training()) as loop:
        for _ in loop:
            before = module.x.item()
            loop.update(module.x.square().sum())
            seen.append(module.x.grad.item() == pytest.approx(2 * before))
    assert seen == [True] * 3


def test_only_weights_that_require_a_gradient_move():
    module = Numbers(1.0)
    module.still = torch.nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    with Loop("x", module, training()) as loop:
        for _ in loop:
            loop.update((module.x * module.still).sum())
    assert torch.equal(module.still, torch.ones(2, dtype=torch.float64)) and not module.still.requires_grad
    assert module.x.item() != 1.0


def test_a_finite_gradient_whose_sum_overflows_is_taken():
    """Two numbers of 3e38 are finite in float32, and their sum is not. The loss is 2 · 0.1 · 3e38 = 6e37."""
    module = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.1)
    with Loop("x", module, training(steps=1)) as loop:
        for _ in loop:
            loop.update((module.weight * 3e38 * 1e-30).sum() * 1e30)
    assert torch.isinf(module.weight.grad.sum()) and torch.isfinite(module.weight).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_row_of_a_loss_that_is_not_finite_is_named_by_its_place_in_the_batch(value):
    """Row 3 of five is the first of the second part of two."""
    module, factor = Numbers(1.0), torch.ones(5, dtype=torch.float64)
    factor[3] = value

    def loss(rows):
        return (module.x * factor[rows]).mean(), {}

    with pytest.raises(LabError, match="in row 3 of its batch"), Loop("x", module, training(accumulate=2)) as loop:
        for _ in loop:
            loop.update(loss, batch=(torch.arange(5),))
    assert module.x.item() == 1.0


def test_the_norm_of_the_whole_gradient_is_clipped():
    """(3, 4) has norm 5: at 0.5 it becomes (0.3, 0.4). Clipped by element it would be (0.5, 0.5)."""
    module = Numbers(1.0, 1.0)
    with Loop("x", module, training(steps=1, max_grad_norm=0.5)) as loop:
        for _ in loop:
            loop.update((module.x * torch.tensor([3.0, 4.0])).sum())
    assert module.x.grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-4)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_history_has_the_learning_rate_and_the_norm_of_the_gradient_before_it_is_clipped(clip):
    """The loss 3x − 4y has the gradient (3, −4), whose norm is 5 at every step. With three steps and a linear schedule
    the rates are 1, 2/3 and 1/3 of the peak."""
    module = Numbers(1.0, 1.0)
    with Loop("x", module, training(max_grad_norm=clip, schedule="linear", learning_rate=0.3)) as loop:
        for _ in loop:
            loop.update(module.x @ torch.tensor([3.0, -4.0], dtype=torch.float64))
    assert [row["grad_norm"] for row in loop.history] == pytest.approx([5, 5, 5])
    assert [row["learning_rate"] for row in loop.history] == pytest.approx([0.3, 0.2, 0.1])


def test_lbfgs_whose_line_search_finds_the_steps_has_no_learning_rate_in_its_history():
    module = Numbers(1.0)
    with Loop("x", module, Training(steps=1, optimizer="lbfgs", progress=False)) as loop:
        for _ in loop:
            loop.update(lambda: (module.x.square().sum(), {}))
    assert "learning_rate" not in loop.history[0]


def test_log_lines_print_one_line_for_each_logged_step_and_nothing_else_does(capsys):
    """Five steps, of which steps 1, 4 and 5 are logged (counted from 1)."""
    for lines in (False, True):
        module = Numbers(2.0)
        with Loop("my run", module, training(steps=5, log_every=3, log_lines=lines)) as loop:
            for _ in loop:
                loop.update(3 * module.x.sum(), zebra=1.5)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == (3 if lines else 0)
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [f" step {i} of 5" for i in (1, 4, 5)]
    assert said[0].endswith("loss 6, zebra 1.5, grad_norm 3, learning_rate 0.1")
