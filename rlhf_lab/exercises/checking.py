"""Checks students' answers to the exercises and names the mistake and the input on which it shows.

An `Exercise` is data: inputs, a solution, and the classic mistakes as functions. `grade_answer` calls the student's
function on copies of every input and compares the results with the solution. If they differ, it looks for the mistake
that gives the same numbers, whatever their dtype. An error in the student's function never becomes a traceback.
"""

from __future__ import annotations

import copy
import html
import inspect
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style

RELATIVE, ABSOLUTE = 1e-5, 1e-7
"""Relative and absolute tolerance of an answer in float64, far below the effect of any mistake."""
SINGLE_RELATIVE, SINGLE_ABSOLUTE = 1e-4, 1e-5
"""The tolerances of an answer in float32, which has seven digits and loses some of them to rounding."""


@dataclass(frozen=True)
class GeneratorSeed:
    """Represents a `torch.Generator` with this seed in a case; every call gets a new one."""

    seed: int


@dataclass(frozen=True)
class Case:
    """One input of an exercise.

    Attributes:
        name: what is special about it; completes “on the input …”.
        inputs: the arguments by name, in order. They are passed by position, so a student may rename them.
    """

    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A common wrong answer.

    Attributes:
        name: two or three words, such as “swapped pair” or “no mask”.
        message: what is wrong and where to look, without the solution.
        function: the wrong answer, with the arguments of the solution.
    """

    name: str
    message: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Measure:
    """A quantity that is compared instead of the answers, for exercises with many correct answers.

    Attributes:
        name: the name of the numbers at the start of a sentence, such as “the expected gradient”.
        function: takes the student's function, which may be called any number of times, and the inputs of a case by
            position; returns the numbers. It may raise `Complaint`.
    """

    name: str
    function: Callable[..., Any]


def double(values: object) -> Tensor:
    """The values of a case as a tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)


class Feedback:
    """The result of `check`, which displays itself as a cell's last line.

    Attributes:
        passed: whether the answer is correct.
        mistake: the name of the recognised mistake, or an empty string.
        lines: the lines of the message, the verdict first.
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
    """Markdown text that a notebook renders and a terminal prints."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


class Complaint(Exception):
    """A call gave nothing to compare. `bare`: the input is not the reason and is not shown."""

    def __init__(self, text: str, bare: bool = False) -> None:
        super().__init__(text)
        self.bare = bare


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all kinds of exercises have: `Prediction`, `NextLine`, `Exercise` and `TrainingLoop`.

    Attributes:
        key: `nb05.dpo_loss`, the notebook and the name of the exercise, which is that of the function to write.
        title: as in the notebook's heading.
        objective: what the student learns to do.
        difficulty: 1, 2 or 3.
        minutes: estimated time of a student who has read the notebook.
        mistakes: common wrong answers.
        hints: from a first idea to nearly the solution.
    """

    key: str
    title: str
    objective: str
    difficulty: Literal[1, 2, 3]
    minutes: int
    mistakes: tuple[Mistake, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of exercise: predict, derive, implement, training loop or debug."""
        raise NotImplementedError

    @property
    def answer(self) -> str:
        """The answer in Markdown."""
        raise NotImplementedError

    def grade(self, given: Any) -> Feedback:
        """Check an answer."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The key without the notebook."""
        return self.key.split(".")[-1]

    @property
    def dots(self) -> str:
        """The difficulty: ●○○, ●●○ or ●●●."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    @property
    def heading(self) -> str:
        """The exercise's heading in the notebook."""
        kind = "" if self.kind == "implement" else f"{self.kind}, "
        return f"{self.title} ({kind}{self.dots}, {self.minutes} minute{'s' * (self.minutes > 1)})"


@dataclass(frozen=True, kw_only=True)
class FunctionTask(Task):
    """An exercise in which a function is written.

    Attributes:
        solution: a named function, whose source is shown as the solution.
    """

    solution: Callable[..., Any]

    def __post_init__(self) -> None:
        if len(self.mistakes) < 3 or len(self.hints) < 2:
            raise LabError(f"Exercise {self.key!r} needs three mistakes and two hints.")

    @property
    def name(self) -> str:
        """The name of the function to write."""
        return self.solution.__name__

    @property
    def signature(self) -> str:
        """The call of the function to write, such as `dpo_loss(chosen_log_ratio, rejected_log_ratio, beta)`."""
        return f"{self.name}({', '.join(inspect.signature(self.solution).parameters)})"

    @property
    def source(self) -> str:
        """The solution's code."""
        return textwrap.dedent(inspect.getsource(self.solution))

    @property
    def answer(self) -> str:
        """The solution's code as Markdown."""
        return f"```python\n{self.source.rstrip()}\n```"


@dataclass(frozen=True, kw_only=True)
class Exercise(FunctionTask):
    """A function to write, which is compared with the solution on every case.

    Attributes:
        cases: inputs on which all mistakes differ from the solution and from each other.
        differentiate: names of the arguments with respect to which the answer is differentiated. Every loss has some:
            a loss with the right value and no gradient cannot be trained.
        compare: the `value` of the answer, its `gradient` (if many values are correct), or `both`.
        grader: for open questions. Takes the answer and the inputs and returns a complaint, or None for a correct
            answer.
        measure: for exercises with many correct answers: the quantity that is compared.
        also: takes the actual and the expected result. Returns a remark if a different answer is also correct, else an
            empty string.
        relative: relative tolerance of the answer.
    """

    cases: tuple[Case, ...]
    differentiate: tuple[str, ...] = ()
    compare: Literal["value", "gradient", "both"] = "value"
    grader: Callable[..., str | None] | None = None
    measure: Measure | None = None
    also: Callable[[Any, Any], str] | None = None
    relative: float = RELATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cases:
            raise LabError(f"Exercise {self.key!r} needs a case.")
        if (self.compare == "value") == bool(self.differentiate):
            raise LabError(
                f"Exercise {self.key!r}: differentiate requires compare='gradient' or 'both', and the reverse."
            )

    @property
    def kind(self) -> str:
        """The kind of exercise."""
        return "implement"

    def grade(self, given: Any) -> Feedback:
        """Check a function."""
        return grade_answer(self, given)


def grade_answer(exercise: Exercise, function: Any) -> Feedback:
    """Call `function` on every case of `exercise` and report what is correct or wrong."""
    reason = refused(exercise, exercise.cases[0].inputs, function)
    if reason:
        return Feedback(False, [f"{exercise.key}: {reason}"])
    answers: list[_Answer] = []
    for case in exercise.cases:
        try:
            answers.append(_answer(exercise, case, function))
        except Complaint as complaint:
            return Feedback(False, [f"{exercise.key}: {complaint}", *([] if complaint.bare else [_said(case) + "."])])
    remarks: dict[str, None] = {}
    for case, answer in zip(exercise.cases, answers, strict=True):
        text, by_value, remark = _complaint(exercise, case, answer)
        if text:
            known = _recognised(exercise, answers, by_value)
            message, name = (known.message, known.name) if known else ("not yet.", "")
            return Feedback(False, [f"{exercise.key}: {message}", _said(case) + ":", text + answer.warning], name)
        if remark:
            remarks[remark] = None
    return Feedback(True, [f"{exercise.key}: right on every input.", *remarks])


@dataclass(frozen=True)
class _Answer:
    """The result of a function on one case: the normalised value, its gradients by name, and its dtype."""

    value: Any
    gradients: dict[str, Tensor]
    dtype: torch.dtype

    def within(self, exercise: Exercise) -> tuple[float, float]:
        """The relative and the absolute tolerance."""
        return tolerances(self.dtype, exercise.relative)

    @property
    def warning(self) -> str:
        """A warning about a dtype with too few digits."""
        if self.dtype not in (torch.float16, torch.bfloat16):
            return ""
        return f" It was computed in {str(self.dtype).removeprefix('torch.')}, which has too few digits. Use float64."


def refused(exercise: FunctionTask, arguments: Mapping[str, Any], function: Any) -> str:
    """The reason why `function` cannot be called, or an empty string."""
    if not callable(function):
        return f"give the function, not its result: check({exercise.key!r}, {exercise.name})."
    try:
        inspect.signature(function).bind(*arguments.values())
    except TypeError:
        return (
            f"the function is called with {len(arguments)} arguments, {exercise.signature}. Yours does not accept them."
        )
    except ValueError:  # some builtins have no signature: the call itself decides
        pass
    return ""


def _answer(exercise: Exercise, case: Case, function: Callable[..., Any]) -> _Answer:
    """Call `function` on `case` and return the normalised result with its gradients.

    Raises:
        Complaint: the result cannot be compared.
    """
    names = list(case.inputs)
    inputs = {name: fresh(value) for name, value in case.inputs.items()}
    if exercise.measure is not None:
        try:
            answer = exercise.measure.function(guarded(function, names), *inputs.values())
        except RuntimeError as error:
            raise Complaint(f"the result cannot be differentiated: {' '.join(str(error).split())[:300]}") from None
        return _Answer(normal(answer), {}, coarsest(answer))
    leaves = {name: inputs[name].requires_grad_(True) for name in exercise.differentiate}
    # Copies of the leaves are passed, so that a change in place is found and named rather than refused by autograd.
    inputs |= {name: leaf.clone() for name, leaf in leaves.items()}
    answer = guarded(function, names)(*inputs.values())
    gradients = _gradients(answer, leaves) if leaves else {}
    return _Answer(normal(answer), gradients, coarsest(answer))


def guarded(function: Callable[..., Any], names: list[str] | None) -> Callable[..., Any]:
    """Wrap `function` so that every result that cannot be compared raises a `Complaint`.

    Args:
        function: the student's function.
        names: the names of its arguments, none of which may change; None if they may.
    """

    def call(*given: Any) -> Any:
        before = [snapshot(value) for value in given] if names else []
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = function(*given)
        except NotImplementedError:
            raise Complaint(
                "the function is not written yet. Replace the line that raises NotImplementedError.", bare=True
            ) from None
        except Complaint:  # of an input, such as a world that hides some quantities
            raise
        except Exception as error:
            raise Complaint(raised(error, function)) from None
        for name, old, new in zip(names or (), before, given, strict=bool(names)):
            if not unchanged(old, new):
                kind = "list" if isinstance(new, list) else "tensor" if isinstance(new, Tensor) else "object"
                copied = {"list": f"list({name})", "tensor": f"{name}.clone()"}.get(kind, f"copy.copy({name})")
                raise Complaint(
                    f"the function changes its argument {name} in place. Do not change the caller's {kind}; work on a "
                    f"copy, {copied}."
                )
        if answer is None or answer is ...:
            raise Complaint("the function returns nothing. Is the return missing?", bare=True)
        return answer

    return call


def fresh(value: Any) -> Any:
    """A copy for a call, so that changes do not persist after it."""
    return torch.Generator().manual_seed(value.seed) if isinstance(value, GeneratorSeed) else copy.deepcopy(value)


def snapshot(value: Any) -> Any:
    """A copy for a later comparison; None for a generator, which may change."""
    if isinstance(value, torch.Generator):
        return None
    if isinstance(value, torch.nn.Module):
        return {name: tensor.detach().clone() for name, tensor in value.state_dict().items()}
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def unchanged(before: Any, after: Any) -> bool:
    """Whether `after` is equal to its earlier `snapshot`; a generator may change."""
    if isinstance(before, Tensor):
        if before.shape != after.shape:
            return False
        return bool(((before == after) | ((before != before) & (after != after))).all())
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(unchanged, before, after))
    if isinstance(after, torch.nn.Module):
        after = after.state_dict()
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[key], after[key]) for key in before)
    if is_dataclass(after):
        return all(unchanged(getattr(before, one.name), getattr(after, one.name)) for one in fields(after))
    return isinstance(after, torch.Generator) or bool(before == after)


def raised(error: Exception, function: Callable[..., Any]) -> str:
    """The error as one sentence, with the student's line if it can be found."""
    code = getattr(function, "__code__", None)
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if code is not None and frame.filename == code.co_filename and frame.line:
            where = f" in the line “{frame.line.strip()}”"
    words = " ".join(str(error).split())
    if "numpy() on Tensor that requires grad" in words:
        # Torch suggests to detach, which would hide that nothing can be trained.
        return f"your function converts a tensor to numpy{where}. {_NO_GRADIENT}"
    return f"your function raises {type(error).__name__}{where}: {words[:300]}"


_NO_GRADIENT = (
    "The result must be differentiable, and numbers outside torch have no gradient. Use torch functions throughout."
)


def _gradients(answer: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """∂/∂leaf of a weighted sum of the answer's entries; zeros where no gradient arrives."""
    if not isinstance(answer, Tensor):
        raise Complaint(
            f"the function must return a tensor that can be differentiated, not {_kind(answer)}. {_NO_GRADIENT}"
        )
    if not answer.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    # The weights differ, so that swapped entries are detected.
    weights = 1 + 0.1 * torch.arange(answer.numel(), dtype=answer.dtype).reshape(answer.shape)
    try:
        found = torch.autograd.grad((answer * weights).sum(), list(leaves.values()), allow_unused=True)
    except RuntimeError as error:
        raise Complaint(f"the result cannot be differentiated: {' '.join(str(error).split())[:300]}") from None
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if got is None else got.detach() for (name, leaf), got in pairs}


def tolerances(dtype: torch.dtype, relative: float = RELATIVE) -> tuple[float, float]:
    """The relative and the absolute tolerance of an answer in this dtype."""
    if dtype == torch.float64:
        return relative, ABSOLUTE
    return max(relative, SINGLE_RELATIVE), SINGLE_ABSOLUTE


def coarsest(x: Any) -> torch.dtype:
    """The floating-point dtype with the fewest digits in `x`; float64 if there is none."""
    if isinstance(x, tuple | list):
        found = [coarsest(item) for item in x] or [torch.float64]
    elif isinstance(x, dict):
        found = [coarsest(item) for item in x.values()] or [torch.float64]
    else:
        kind = str(getattr(x, "dtype", "float64")).removeprefix("torch.")
        found = [getattr(torch, kind) if kind in ("float32", "float16", "bfloat16") else torch.float64]
    return max(found, key=lambda dtype: torch.finfo(dtype).eps)


def normal(x: Any) -> Any:
    """Tensors in double, detached; arrays as tensors; sequences as lists."""
    if isinstance(x, Tensor):
        return x.detach().double() if not x.is_complex() else x.detach()
    if isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, tuple | list):
        return [normal(item) for item in x]
    if isinstance(x, dict):
        return {key: normal(value) for key, value in x.items()}
    if hasattr(x, "__array__"):
        try:
            return normal(torch.as_tensor(x))
        except (TypeError, ValueError, RuntimeError):  # an array of text, or of objects
            return x
    return x


def as_tensor(x: Any) -> Tensor | None:
    """A normalised answer (tensor, number or list of numbers) as a tensor; None for anything else."""
    if isinstance(x, Tensor):
        return None if x.is_complex() else x
    if isinstance(x, list):
        parts = [as_tensor(item) for item in x]
        whole = [part for part in parts if part is not None]
        return torch.stack(whole) if whole and len({p.shape for p in whole}) == 1 and len(whole) == len(x) else None
    try:
        return torch.tensor(float(x), dtype=torch.float64) if isinstance(x, bool | int | float) else None
    except OverflowError:  # an integer too large for a float
        return None


def _kind(x: Any) -> str:
    if isinstance(x, Tensor):
        whose = "a tensor of complex numbers, of shape" if x.is_complex() else "a tensor of shape"
        return f"{whose} {tuple(x.shape)}" if x.ndim else "a tensor of a single number"
    names = {"bool": "True or False", "int": "a number", "float": "a number", "str": "text", "ndarray": "a numpy array"}
    return names.get(type(x).__name__, f"a {type(x).__name__}")


def _complaint(exercise: Exercise, case: Case, answer: _Answer) -> tuple[str, bool, str]:
    """The complaint about an answer or an empty string, whether its value shows it, and a remark on a correct one."""
    if exercise.grader is not None:
        inputs = {name: fresh(value) for name, value in case.inputs.items()}
        try:
            return exercise.grader(answer.value, *inputs.values()) or "", True, ""
        except Exception:  # an answer of a type that the grader does not expect
            expected = _kind(_answer(exercise, case, exercise.solution).value)
            return f"got {_kind(answer.value)}, expected {expected}.", True, ""
    want = _answer(exercise, case, exercise.solution)
    within = answer.within(exercise)
    if exercise.compare != "gradient":
        text = difference(answer.value, want.value, within)
        if text and exercise.also is not None:
            remark = exercise.also(answer.value, want.value)
            if remark:
                return "", True, remark
        if text:
            return (f"{exercise.measure.name}: {text}" if exercise.measure else text), True, ""
    for name in exercise.differentiate if exercise.compare != "value" else ():
        got, due = answer.gradients[name], want.gradients[name]
        if not got.any() and due.any():
            so = "the values are correct, but " if exercise.compare == "both" else ""
            return f"{so}no gradient reaches {name}, so nothing can be trained. Was it detached?", False, ""
        text = difference(got, due, within)
        if text:
            return f"the gradient with respect to {name} (of a weighted sum of the answers): {text}", False, ""
    return "", True, ""


def difference(got: Any, want: Any, within: tuple[float, float]) -> str:
    """Describe how `got` differs from `want`; an empty string if it does not."""
    number = isinstance(want, bool | int | float)
    if isinstance(got, Tensor) and got.ndim == 0 and number and not got.is_complex():
        got = got.item()
    if isinstance(got, bool | int | float) and (number or (isinstance(want, Tensor) and want.ndim == 0)):
        exact = as_tensor(got)
        got, want = (exact if exact is not None else got), as_tensor(want)
    if isinstance(want, Tensor):
        return _tensor_difference(got, want, within)
    if isinstance(want, list) and (isinstance(got, list) or (isinstance(got, Tensor) and got.ndim)):
        return _list_difference(list(got), want, within)
    if isinstance(want, dict) and isinstance(got, dict):
        return _dict_difference(got, want, within)
    if type(got) is not type(want):
        return f"expected {_kind(want)}, got {_kind(got)}."
    return "" if got == want else f"expected {want!r}, got {got!r}."


def _list_difference(got: list[Any], want: list[Any], within: tuple[float, float]) -> str:
    if len(got) != len(want):
        return f"expected {len(want)} parts, got {len(got)}."
    texts = (difference(one, other, within) for one, other in zip(got, want, strict=True))
    return next((f"part {place} of {len(want)}: {text}" for place, text in enumerate(texts, 1) if text), "")


def _dict_difference(got: dict[Any, Any], want: dict[Any, Any], within: tuple[float, float]) -> str:
    if set(got) != set(want):
        return f"expected the keys {sorted(map(str, want))}, got {sorted(map(str, got))}."
    texts = ((key, difference(got[key], value, within)) for key, value in want.items())
    return next((f"{key}: {text}" for key, text in texts if text), "")


def _tensor_difference(got: Any, want: Tensor, within: tuple[float, float]) -> str:
    numbers = as_tensor(got)
    if numbers is None:
        return f"expected {_kind(want)}, got {_kind(got)}."
    if numbers.shape != want.shape:
        if not isinstance(got, Tensor) and numbers.ndim == 0:
            return f"expected {_kind(want)}, {shown(want)}, got a single number, {shown(numbers)}."
        return f"expected shape {tuple(want.shape)}, got shape {tuple(numbers.shape)}."
    if torch.isnan(numbers).any() and not torch.isnan(want).any():
        return f"got nan{_place(torch.isnan(numbers))}, expected {shown(want[torch.isnan(numbers)][0])}."
    near = _close(numbers, want, within)
    if near.all():
        return (
            f"the numbers are correct, but got {_kind(got)}. Wrap it in torch.tensor(…)." if type(got) is list else ""
        )
    if want.numel() <= 6:
        return "expected {}, got {}.".format(*_apart(want, numbers, near))
    gap = torch.where(near, 0.0, torch.nan_to_num((numbers - want).abs(), nan=torch.inf, posinf=torch.inf))
    worst = torch.zeros_like(near).reshape(-1)
    worst[gap.argmax()] = True
    worst = worst.reshape(near.shape)
    count = f"{int((~near).sum())} of {near.numel()} entries differ, most of all the entry{_place(worst)}"
    return "{}: expected {}, got {}.".format(count, *_apart(want[worst][0], numbers[worst][0], near[worst][0]))


def _close(got: Tensor, want: Tensor, within: tuple[float, float]) -> Tensor:
    return torch.isclose(got, want, rtol=within[0], atol=within[1], equal_nan=True)


def _apart(want: Tensor, got: Tensor, near: Tensor) -> tuple[str, str]:
    """Both with enough digits to show every difference above the tolerance."""
    for digits in range(4, 18):
        if all(f"{w:.{digits}g}" != f"{g:.{digits}g}" for w, g in torch.stack([want[~near], got[~near]], -1).tolist()):
            break
    return _listed(want.tolist(), digits), _listed(got.tolist(), digits)


def _place(bad: Tensor) -> str:
    where = bad.nonzero()[0].tolist()
    return f" at index {where[0] if len(where) == 1 else tuple(where)}" if where else ""


def _recognised(exercise: Exercise, answers: list[_Answer], by_value: bool) -> Mistake | None:
    """The mistake that gives these answers on every case: values and gradients, or wrong values alone."""
    for gradients in (True, False) if by_value and exercise.differentiate else (True,):
        for mistake in exercise.mistakes:
            if _is(exercise, mistake, answers, gradients):
                return mistake
    return None


def _is(exercise: Exercise, mistake: Mistake, answers: list[_Answer], gradients: bool) -> bool:
    """Whether `mistake` gives the same answers on every case."""
    for case, answer in zip(exercise.cases, answers, strict=True):
        try:
            theirs = _answer(exercise, case, mistake.function)
        except Complaint:
            return False
        within = answer.within(exercise)
        if exercise.compare != "gradient" and difference(_in_shape(answer.value, theirs.value), theirs.value, within):
            return False
        names = exercise.differentiate if gradients else ()
        if any(difference(answer.gradients[name], theirs.gradients[name], within) for name in names):
            return False
    return True


def _in_shape(got: Any, theirs: Any) -> Any:
    """`got` in the shape of `theirs`, if only axes of length one differ or `got` is a single number."""
    numbers = as_tensor(got) if isinstance(theirs, Tensor) else None
    if numbers is None:
        return got
    if numbers.numel() == 1:
        return numbers.reshape(()).expand(theirs.shape)
    return numbers.reshape(theirs.shape) if numbers.squeeze().shape == theirs.squeeze().shape else numbers


def _said(case: Case) -> str:
    """The input in words."""
    values = ", ".join(f"{name} = {shown(value)}" for name, value in case.inputs.items())
    return f"On the input “{case.name}”, {values}"


def shown(x: Any) -> str:
    """A value with four digits; long tensors by their shape."""
    if isinstance(x, GeneratorSeed):
        return f"a generator with seed {x.seed}"
    if isinstance(x, Tensor):
        if x.numel() > 12:
            return f"a tensor of shape {tuple(x.shape)}"
        return _listed(x.tolist())
    return _listed(x) if isinstance(x, list | float) else repr(x)


def _listed(x: Any, digits: int = 4) -> str:
    if isinstance(x, list):
        return f"[{', '.join(_listed(item, digits) for item in x)}]"
    return f"{x:.{digits}g}" if isinstance(x, float) else str(x)
