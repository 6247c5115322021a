"""What a student's answer is checked with: not only that it is wrong, but what is wrong, and on which input.

An `Exercise` is data: inputs, a solution, and the classic mistakes as functions of their own. `judge_answer` calls the
student's function on every input, compares with the solution, and, where they differ, looks for the mistake that
gives exactly what the student got. It never lets a student's error through as a traceback.
"""

from __future__ import annotations

import html
import inspect
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.checks import LabError
from rlhf_lab.figures import style

RELATIVE, ABSOLUTE = 1e-5, 1e-7
"""How near an answer must come: wide enough for float32, far narrower than any mistake."""


@dataclass(frozen=True)
class Seed:
    """Stands in a case for a `torch.Generator` with this seed, made anew for every call."""

    seed: int


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: what is special about it, completing “on the input …”.
        inputs: the arguments in their order, by name. They are passed by position, so a student may rename them.
    """

    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A classic wrong answer.

    Attributes:
        name: two or three words: “swapped pair”, “no mask”.
        message: what went wrong and where to look; it does not give the line away.
        function: the wrong answer, with the solution's arguments.
    """

    name: str
    message: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook.

    Attributes:
        key: `nb05.dpo_loss`, the notebook and the function to write.
        title: as in the notebook's heading.
        objective: what the student can do afterwards.
        difficulty: 1, 2 or 3.
        minutes: for a student who has read the notebook.
        cases: inputs on which the mistakes all differ, from the solution and from each other.
        solution: a named function; its source is what `solution` shows.
        mistakes: at least three.
        hints: at least two, from a nudge to nearly the line.
        differentiate: names of the arguments with respect to which the answer is differentiated.
        compare: the answer's `value`; its `gradient` alone, where many values will do; or `both`.
        judge: for open questions. Takes the answer and the inputs, gives a complaint, or None for a right answer;
            the solution is then one of many.
    """

    key: str
    title: str
    objective: str
    difficulty: Literal[1, 2, 3]
    minutes: int
    cases: tuple[Case, ...]
    solution: Callable[..., Any]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    differentiate: tuple[str, ...] = ()
    compare: Literal["value", "gradient", "both"] = "value"
    judge: Callable[..., str | None] | None = None

    def __post_init__(self) -> None:
        if not self.cases or len(self.mistakes) < 3 or len(self.hints) < 2:
            raise LabError(f"Exercise {self.key!r} needs a case, three mistakes and two hints.")
        if (self.compare == "value") == bool(self.differentiate):
            raise LabError(f"Exercise {self.key!r}: differentiate goes with compare='gradient' or 'both'.")

    @property
    def name(self) -> str:
        """The name of the function to write."""
        return self.solution.__name__

    @property
    def signature(self) -> str:
        """What is to be written, `dpo_loss(chosen_log_ratio, rejected_log_ratio, beta)`."""
        return f"{self.name}({', '.join(inspect.signature(self.solution).parameters)})"

    @property
    def dots(self) -> str:
        """The difficulty: ●○○, ●●○ or ●●●."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    @property
    def heading(self) -> str:
        """The heading that the notebook gives it."""
        return f"{self.title} ({self.dots}, {self.minutes} minutes)"

    @property
    def source(self) -> str:
        """The solution's code."""
        return textwrap.dedent(inspect.getsource(self.solution))


class Feedback:
    """What `check` says. Shows itself as a cell's last line.

    Attributes:
        passed: whether the answer is right.
        mistake: the name of the mistake that was recognised, or an empty string.
        lines: what is said, the verdict first.
    """

    def __init__(self, passed: bool, lines: Sequence[str], mistake: str = "") -> None:
        self.passed, self.lines, self.mistake = passed, list(lines), mistake

    def __repr__(self) -> str:
        return "\n".join([f"{'✓' if self.passed else '✗'} {self.lines[0]}", *(f"  {line}" for line in self.lines[1:])])

    def _repr_html_(self) -> str:
        edge = style.colour("rest" if self.passed else "wrong")
        first, *rest = map(html.escape, self.lines)
        body = "".join(f'<div style="margin-top:0.3em">{line}</div>' for line in rest)
        mark = "✓" if self.passed else "✗"
        return f'<div style="border-left:4px solid {edge};padding:0.3em 0.8em"><b>{mark} {first}</b>{body}</div>'


class Prose:
    """Markdown to show in a notebook, readable as it stands elsewhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


def judge_answer(exercise: Exercise, function: Any) -> Feedback:
    """Call `function` on every case of `exercise` and say what is right or wrong with it."""
    refused = _refused(exercise, function)
    if refused:
        return Feedback(False, [f"{exercise.key}: {refused}"])
    answers: list[Any] = []
    for case in exercise.cases:
        try:
            answers.append(_answer(exercise, case, function))
        except _Complaint as complaint:
            return Feedback(False, [f"{exercise.key}: {complaint}", *([] if complaint.bare else [_said(case) + "."])])
    wrong = None
    for case, answer in zip(exercise.cases, answers, strict=True):
        complaint_text = _complaint(exercise, case, answer)
        if complaint_text:
            wrong = (case, complaint_text)
            break
    if wrong is None:
        return Feedback(True, [f"{exercise.key}: right on every input."])
    case, text = wrong
    for mistake in exercise.mistakes:
        if _is(exercise, mistake, answers):
            return Feedback(False, [f"{exercise.key}: {mistake.message}", _said(case) + ":", text], mistake.name)
    return Feedback(False, [f"{exercise.key}: not yet.", _said(case) + ":", text])


class _Complaint(Exception):
    """What is wrong with a call that gave nothing to compare. `bare`: not because of the input."""

    def __init__(self, text: str, bare: bool = False) -> None:
        super().__init__(text)
        self.bare = bare


def _refused(exercise: Exercise, function: Any) -> str:
    """Why `function` cannot even be called, or an empty string."""
    if not callable(function):
        return f"give the function itself, not its result: check({exercise.key!r}, {exercise.name})."
    first = exercise.cases[0].inputs
    try:
        inspect.signature(function).bind(*first.values())
    except TypeError:
        return f"it is called with {len(first)} arguments, {exercise.signature}; yours does not take them."
    except ValueError:  # a builtin that tells nothing of itself: try it
        pass
    return ""


def _answer(exercise: Exercise, case: Case, function: Callable[..., Any]) -> tuple[Any, dict[str, Tensor]]:
    """What `function` gives on `case`, normalised, and its gradients by name."""
    inputs = {name: _fresh(value) for name, value in case.inputs.items()}
    for name in exercise.differentiate:
        inputs[name].requires_grad_(True)
    try:
        answer = function(*inputs.values())
    except NotImplementedError:
        raise _Complaint("not written yet. Replace the line that raises NotImplementedError.", bare=True) from None
    except Exception as error:
        raise _Complaint(_raised(error, function)) from None
    for name, value in case.inputs.items():
        if isinstance(value, Tensor) and not torch.equal(inputs[name].detach(), value):
            raise _Complaint(f"it changes its argument {name} in place; leave the caller's tensor as it is.")
    if answer is None or answer is ...:
        raise _Complaint("it returns nothing: is the return missing?", bare=True)
    gradients = {}
    if exercise.differentiate:
        gradients = _gradients(answer, {name: inputs[name] for name in exercise.differentiate})
    return _normal(answer), gradients


def _fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return torch.Generator().manual_seed(value.seed) if isinstance(value, Seed) else value


def _raised(error: Exception, function: Callable[..., Any]) -> str:
    """The error as one sentence, with the student's own line where it can be found."""
    code = getattr(function, "__code__", None)
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if code is not None and frame.filename == code.co_filename and frame.line:
            where = f" in the line “{frame.line.strip()}”"
    words = " ".join(str(error).split())
    return f"your function raises {type(error).__name__}{where}: {words[:300]}"


def _gradients(answer: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """∂/∂leaf of a weighted sum of the answer's entries; zeros where none flows."""
    if not isinstance(answer, Tensor):
        raise _Complaint(f"it must return a tensor that can be differentiated, not {_kind(answer)}.")
    if not answer.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    # Different weights, so that entries which trade places are noticed.
    weights = 1 + 0.1 * torch.arange(answer.numel(), dtype=answer.dtype).reshape(answer.shape)
    found = torch.autograd.grad((answer * weights).sum(), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if got is None else got for (name, leaf), got in pairs}


def _normal(x: Any) -> Any:
    """Tensors in double, detached; arrays as tensors; sequences as lists."""
    if isinstance(x, Tensor):
        return x.detach().double() if not x.is_complex() else x.detach()
    if isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, tuple | list):
        return [_normal(item) for item in x]
    if isinstance(x, dict):
        return {key: _normal(value) for key, value in x.items()}
    if hasattr(x, "__array__"):
        return torch.as_tensor(x).double()
    return x


def _kind(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}" if x.ndim else "a tensor of a single number"
    names = {bool: "True or False", int: "a number", float: "a number", str: "text", list: "a list", dict: "a dict"}
    return names.get(type(x), f"a {type(x).__name__}")


def _complaint(exercise: Exercise, case: Case, answer: tuple[Any, dict[str, Tensor]]) -> str:
    """What is wrong with an answer, or an empty string."""
    got, gradients = answer
    if exercise.judge is not None:
        inputs = {name: _fresh(value) for name, value in case.inputs.items()}
        try:
            return exercise.judge(got, *inputs.values()) or ""
        except Exception:  # an answer of another kind than the judge was written for
            return f"got {_kind(got)}, expected {_kind(_answer(exercise, case, exercise.solution)[0])}."
    want, want_gradients = _answer(exercise, case, exercise.solution)
    if exercise.compare != "gradient":
        text = _difference(got, want)
        if text:
            return text
    for name in exercise.differentiate if exercise.compare != "value" else ():
        if not gradients[name].any() and want_gradients[name].any():
            return f"no gradient reaches {name}: was it detached?"
        text = _difference(gradients[name], want_gradients[name])
        if text:
            return f"the gradient with respect to {name} (of a weighted sum of the answers): {text}"
    return ""


def _difference(got: Any, want: Any) -> str:
    """How `got` differs from `want`, or an empty string."""
    number = isinstance(want, bool | int | float)
    if isinstance(got, Tensor) and number and got.ndim == 0:
        got = got.item()
    if isinstance(want, Tensor) and want.ndim == 0 and isinstance(got, int | float):
        got = torch.tensor(got, dtype=torch.float64)
    if number and isinstance(got, bool | int | float):
        got, want = (torch.tensor(float(x), dtype=torch.float64) for x in (got, want))
    if isinstance(want, Tensor):
        return _tensor_difference(got, want)
    if isinstance(want, list) and isinstance(got, list) and len(got) == len(want):
        for place, (one, other) in enumerate(zip(got, want, strict=True), 1):
            text = _difference(one, other)
            if text:
                return f"part {place} of {len(want)}: {text}"
        return ""
    if isinstance(want, list) and isinstance(got, list):
        return f"expected {len(want)} parts, got {len(got)}."
    if isinstance(want, dict) and isinstance(got, dict):
        if set(got) != set(want):
            return f"expected the keys {sorted(map(str, want))}, got {sorted(map(str, got))}."
        texts = (
            f"{key}: {_difference(got[key], value)}" for key, value in want.items() if _difference(got[key], value)
        )
        return next(texts, "")
    if type(got) is not type(want):
        return f"expected {_kind(want)}, got {_kind(got)}."
    return "" if got == want else f"expected {want!r}, got {got!r}."


def _tensor_difference(got: Any, want: Tensor) -> str:
    if not isinstance(got, Tensor):
        mend = ": wrap it in torch.tensor(…)" if isinstance(got, list | int | float) else ""
        return f"expected {_kind(want)}, got {_kind(got)}{mend}."
    if got.shape != want.shape:
        return f"expected shape {tuple(want.shape)}, got shape {tuple(got.shape)}."
    if torch.isnan(got).any() and not torch.isnan(want).any():
        return f"got nan{_place(torch.isnan(got))}, expected {_shown(want[torch.isnan(got)][0])}."
    near = _close(got, want)
    if near.all():
        return ""
    gap = torch.where(near, 0.0, torch.nan_to_num((got - want).abs(), nan=torch.inf, posinf=torch.inf))
    if want.numel() <= 6:
        return f"expected {_shown(want)}, got {_shown(got)}."
    worst = torch.zeros_like(near).reshape(-1)
    worst[gap.argmax()] = True
    worst = worst.reshape(near.shape)
    count = f"{int((~near).sum())} of {near.numel()} entries differ, most of all the one{_place(worst)}"
    return f"{count}: expected {_shown(want[worst][0])}, got {_shown(got[worst][0])}."


def _close(got: Tensor, want: Tensor) -> Tensor:
    return torch.isclose(got, want, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def _place(bad: Tensor) -> str:
    where = bad.nonzero()[0].tolist()
    return f" at index {where[0] if len(where) == 1 else tuple(where)}" if where else ""


def _is(exercise: Exercise, mistake: Mistake, answers: list[tuple[Any, dict[str, Tensor]]]) -> bool:
    """Whether `mistake` gives these very answers on every case."""
    for case, (got, gradients) in zip(exercise.cases, answers, strict=True):
        try:
            theirs, their_gradients = _answer(exercise, case, mistake.function)
        except _Complaint:
            return False
        if exercise.compare != "gradient" and _difference(got, theirs):
            return False
        if any(_difference(gradients[name], their_gradients[name]) for name in exercise.differentiate):
            return False
    return True


def _said(case: Case) -> str:
    """The input in words."""
    values = ", ".join(f"{name} = {_shown(value)}" for name, value in case.inputs.items())
    return f"On the input “{case.name}”, {values}"


def _shown(x: Any) -> str:
    """A value in four digits, long tensors by their shape."""
    if isinstance(x, Seed):
        return f"a generator with seed {x.seed}"
    if isinstance(x, Tensor):
        if x.numel() > 12:
            return f"a tensor of shape {tuple(x.shape)}"
        return _listed(x.tolist())
    return _listed(x) if isinstance(x, list | float) else repr(x)


def _listed(x: Any) -> str:
    if isinstance(x, list):
        return f"[{', '.join(map(_listed, x))}]"
    return f"{x:.4g}" if isinstance(x, float) else str(x)
