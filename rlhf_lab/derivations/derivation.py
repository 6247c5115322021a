r"""Derivations as data: aligned equations with reasons, whose two sides are computed on random worlds and compared.

    d = Derivation(
        "kl-is-an-expectation",
        "KL is an expectation",
        lines=(
            Line(r"\sum_y \pi(y)\log\frac{\pi(y)}{\pi_\text{ref}(y)}", "definition",
                 lambda w: (w.policy * (w.log_policy - w.log_ref)).sum(-1),
                 left=r"\mathrm{KL}(\pi\|\pi_\text{ref})", left_value=lambda w: exact.kl(w.log_policy, w.log_ref)),
        ),
        wrong=(Wrong(..., "The ratio is inverted.", lambda w: ...),),
        source="…",
    )
    d.check()            # in a notebook: the equations, with what was computed on each line

A line has the form *left relation right*. Its left side is the right side of the line above, unless `left` is given.
`check` draws random worlds, computes both sides of every line in float64 on each of them, and stores the largest error.
A wrong line replaces a correct one and is compared with the same left side; it must fail.

The display is Markdown, in which each line can be unfolded to the code of its two sides (`display.py`), and plain text.
It is the same on every machine: an error within the tolerance is shown as "≤ 1e-10". The raw numbers are in
`Checked.errors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.derivations import display
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world
from rlhf_lab.errors import LabError
from rlhf_lab.training import seeded

TOLERANCE = 1e-10
"""The maximum error of a line that is true."""
MUST_FAIL_IN = 0.9
"""The share of the worlds in which a wrong line must fail."""
VISIBLE = 1e-6
"""The minimum error that counts as a failure, far above rounding errors."""

Value = Callable[[Any], Tensor | float]
"""One side of a line: a function from a world to a number or a tensor."""

_RELATIONS = {"=": "=", "≤": r"\le", "≥": r"\ge"}


@dataclass(frozen=True)
class Line:
    """One line of a derivation, *left relation right*, with its reason.

    Attributes:
        right: LaTeX of the right side, without the relation.
        reason: why the step is allowed, plain text with `$…$` where needed.
        value: computes the right side.
        left: LaTeX of the left side; empty if it is the right side of the line above.
        left_value: computes the left side; required exactly if `left` is given.
        relation: `=`, `≤` or `≥`.
    """

    right: str
    reason: str
    value: Value
    left: str = ""
    left_value: Value | None = None
    relation: str = "="


@dataclass(frozen=True)
class Wrong:
    """A plausible wrong version of a line.

    Attributes:
        right: LaTeX of the wrong right side.
        mistake: the mistake in words.
        value: computes the wrong right side.
        instead_of: the number of the line that it replaces, counted from 1.
    """

    right: str
    mistake: str
    value: Value
    instead_of: int = 1


@dataclass(frozen=True)
class Derivation:
    """A derivation: lines with reasons, at least one plausible mistake, and a source.

    Attributes:
        key: its name in the library, in lower-case letters and hyphens.
        title: what is derived.
        lines: the correct lines.
        wrong: at least one plausible wrong line.
        source: paper and equation, and the lecture's slide.
        world: draws a world from a generator.
    """

    key: str
    title: str
    lines: tuple[Line, ...]
    wrong: tuple[Wrong, ...]
    source: str
    world: Callable[[torch.Generator], Any] = random_world

    def __post_init__(self) -> None:
        if not self.lines or not self.wrong:
            raise LabError(f"Derivation {self.key!r} needs at least one line and at least one wrong line.")
        if not self.lines[0].left:
            raise LabError(f"The first line of {self.key!r} continues nothing: give it left and left_value.")
        for number, line in enumerate(self.lines, 1):
            if bool(line.left) != (line.left_value is not None):
                raise LabError(f"Line {number} of {self.key!r} needs both left and left_value, or neither.")
            if line.relation not in _RELATIONS:
                raise LabError(f"Line {number} of {self.key!r}: relation must be =, ≤ or ≥, not {line.relation!r}.")
        for wrong in self.wrong:
            if not 1 <= wrong.instead_of <= len(self.lines):
                raise LabError(f"{self.key!r} has no line {wrong.instead_of} to get wrong; it has {len(self.lines)}.")

    def check(self, worlds: int = 200, seed: int = 0, strict: bool = False) -> Checked:
        """Compute both sides of every line on random worlds.

        Args:
            worlds: number of worlds, at least 1.
            seed: seed of the worlds.
            strict: raise if a line fails or a wrong line does not.

        Returns:
            the result; as a cell's last line it displays itself.

        Raises:
            LabError: worlds below 1; with `strict`, the first line that fails or the first wrong line that does not.
        """
        if worlds < 1:
            raise LabError(f"worlds must be at least 1, not {worlds}: nothing is ticked that was not computed.")
        errors = torch.zeros(worlds, len(self.lines), dtype=torch.float64)
        wrong = torch.zeros(worlds, len(self.wrong), dtype=torch.float64)
        for i in range(worlds):
            errors[i], wrong[i] = self._errors(self.world(seeded(seed, i)))
        checked = Checked(self, errors, wrong, len(self.lines), True)
        if strict:
            checked.demand()
        return checked

    def _errors(self, world: Any) -> tuple[Tensor, Tensor]:
        """The error of each line and of each wrong line in one world."""
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for line in self.lines:
            lefts.append(_double(line.left_value(world)) if line.left_value is not None else rights[-1])
            rights.append(_double(line.value(world)))
        sides = zip(lefts, rights, self.lines, strict=True)
        errors = [_error(left, right, line.relation) for left, right, line in sides]
        slips = []
        for slip in self.wrong:
            at = slip.instead_of - 1
            slips.append(_error(lefts[at], _double(slip.value(world)), self.lines[at].relation))
        return torch.tensor(errors, dtype=torch.float64), torch.tensor(slips, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.lines)} lines, not computed yet; call .check()."

    def _repr_markdown_(self) -> str:
        uncomputed = ["not computed"] * len(self.lines)
        return display.markdown(self.title, "nothing computed yet", self._rows(uncomputed), [], [], self.source)

    def _rows(self, verdicts: Sequence[str]) -> list[display.TableRow]:
        """The first lines, as many as there are verdicts."""
        found = []
        for number, (line, verdict) in enumerate(zip(self.lines, verdicts, strict=False), 1):
            found.append((str(number), verdict, _equation(line, line.right), line.reason))
        return found

    def _code(self, lines: int) -> list[tuple[str, str]]:
        """The Python code of the first lines, and that of the functions that they call."""
        found, used = [], []
        for number, line in enumerate(self.lines[:lines], 1):
            above = "# left side: the right side of the line above"
            left = f"# left side\n{display.source_of(line.left_value)}" if line.left_value else above
            found.append((f"Line {number} in Python", f"{left}\n\n# right side\n{display.source_of(line.value)}"))
            used += [one for one in (line.left_value, line.value) if one is not None]
        helpers = display.helpers_of(used)
        return [*found, ("The functions that these lines call", "\n\n\n".join(helpers))] if helpers else found


@dataclass(frozen=True)
class Checked:
    """The result of `Derivation.check`.

    Attributes:
        derivation: what was computed.
        errors: (worlds, lines) float64: |left − right| divided by the larger of 1 and the sides' largest entry; for an
            inequality, the violation.
        wrong_errors: (worlds, wrong lines), the same for the wrong lines.
        shown: number of lines that are shown.
        wrong_shown: whether the wrong lines are shown.
    """

    derivation: Derivation
    errors: Tensor
    wrong_errors: Tensor
    shown: int
    wrong_shown: bool

    @property
    def ticked(self) -> list[bool]:
        """For each line, whether it held in every world."""
        # Written so that a nan fails.
        return [bool((column <= TOLERANCE).all()) for column in self.errors.T]

    @property
    def failing(self) -> list[float]:
        """For each wrong line, the share of the worlds in which it fails."""
        return [(~(column <= VISIBLE)).double().mean().item() for column in self.wrong_errors.T]

    @property
    def ok(self) -> bool:
        """Whether every line is true and every wrong line fails."""
        return all(self.ticked) and all(share >= MUST_FAIL_IN for share in self.failing)

    def demand(self) -> Checked:
        """Return this if all is `ok`.

        Raises:
            LabError: names the first line that fails, or the first wrong line that does not.
        """
        key, worlds = self.derivation.key, len(self.errors)
        for number, (line, ticked) in enumerate(zip(self.derivation.lines, self.ticked, strict=True), 1):
            if not ticked:
                largest = self.errors[:, number - 1].max().item()
                raise LabError(f"{key}, line {number} ({line.reason}) does not hold: error {largest:.2g}.")
        for wrong, share in zip(self.derivation.wrong, self.failing, strict=True):
            if share < MUST_FAIL_IN:
                seen = f"{round(share * worlds)} of {worlds} worlds"
                raise LabError(f"{key}, wrong line “{wrong.mistake}” fails only in {seen}: it is no mistake there.")
        return self

    def reveal(self, lines: int, wrong: bool = False) -> Checked:
        """Show only the first `lines` lines, for a slide; with `wrong`, also the wrong versions of those lines.

        Raises:
            LabError: no such number of lines.
        """
        if not 1 <= lines <= len(self.derivation.lines):
            raise LabError(f"{self.derivation.key!r} has {len(self.derivation.lines)} lines; {lines} cannot be shown.")
        return replace(self, shown=lines, wrong_shown=wrong)

    def _verdicts(self) -> list[str]:
        worst = self.errors.amax(0).tolist()
        return [
            "✓ ≤ 1e-10" if ticked else f"✗ FAILS by {_two_digits(error)}"
            for ticked, error in zip(self.ticked, worst, strict=True)
        ]

    def _slips(self) -> list[tuple[Wrong, str, str]]:
        """The wrong lines that are shown: each with its typical error, and the worlds in which it fails."""
        if not self.wrong_shown:
            return []
        found, worlds = [], len(self.errors)
        for wrong, share, column in zip(self.derivation.wrong, self.failing, self.wrong_errors.T, strict=True):
            if wrong.instead_of <= self.shown:
                mark = "✗" if share >= MUST_FAIL_IN else "?"
                typical = f"{mark} by {_two_digits(column.median().item())}"
                found.append((wrong, typical, f"fails in {round(share * worlds)} of {worlds} worlds"))
        return found

    def _found(self) -> str:
        computed = f"both sides computed in float64 on {len(self.errors)} random worlds"
        bad = self.ticked[: self.shown].count(False)
        return f"{computed}; {bad} of {self.shown} lines FAIL" if bad else f"{computed}; every line shown holds"

    def __repr__(self) -> str:
        rows = [f"{self.derivation.title}: {self._found()}."]
        shown = self.derivation._rows(self._verdicts()[: self.shown]) + self._wrong_rows()
        rows += [f"  {number}  {verdict}\n       {latex}\n       {words}" for number, verdict, latex, words in shown]
        return "\n".join(rows)

    def _repr_markdown_(self) -> str:
        rows = self.derivation._rows(self._verdicts()[: self.shown])
        code = self.derivation._code(self.shown)
        one = self.derivation
        return display.markdown(one.title, self._found(), rows, self._wrong_rows(), code, one.source)

    def _wrong_rows(self) -> list[display.TableRow]:
        found = []
        for wrong, typical, worlds in self._slips():
            line = self.derivation.lines[wrong.instead_of - 1]
            equation = _equation(line, wrong.right)
            found.append((f"not {wrong.instead_of}", typical, equation, f"{wrong.mistake} ({worlds})"))
        return found


def _equation(line: Line, right: str) -> str:
    """*left relation right* in LaTeX; the left side is empty if it is the right side of the line above."""
    return f"{line.left} {_RELATIONS[line.relation]} {right}".strip()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """∇ of the sum of `function`'s values at `at`, by autograd, which gives independent rows their own gradients."""
    point = at.detach().clone().requires_grad_(True)
    return torch.autograd.grad(function(point).sum(), point)[0]


def finite_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 5e-3) -> Tensor:
    """∇ of the sum of `function`'s values by central differences of sixth order, six evaluations for each entry.

    The error is about step⁶/140 times the seventh derivative, and rounding about 1e-16/step: near 1e-12 for
    functions of order one.

    Args:
        function: maps a tensor of the shape of `at`, (…, K), to (…,); each value depends on its row only.
        at: (…, K).
        step: the distance between two evaluations.
    """
    result = torch.zeros_like(at)
    for place in range(at.shape[-1]):
        nudge = torch.zeros_like(at)
        nudge[..., place] = step
        for far, weight in ((1, 45.0), (2, -9.0), (3, 1.0)):
            result[..., place] += weight * (function(at + far * nudge) - function(at - far * nudge)).detach()
    return result / (60 * step)


def _double(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).detach().double()


def _error(left: Tensor, right: Tensor, relation: str) -> float:
    """The violation of *left relation right*, divided by the larger of 1 and the largest entry; infinite for nan."""
    left, right = torch.broadcast_tensors(left, right)
    gap = left - right
    broken = {"=": gap.abs(), "≤": gap.clamp(min=0), "≥": (-gap).clamp(min=0)}[relation]
    scale = max(1.0, left.abs().max().item(), right.abs().max().item())
    error = (broken / scale).max().item()
    return error if math.isfinite(error) else math.inf


def _two_digits(x: float) -> str:
    return f"{x:.1e}" if x >= 1000 or 0 < x < 0.001 else f"{x:.2g}"


__all__ = ["TOLERANCE", "Checked", "Derivation", "Line", "RandomWorld", "Wrong", "finite_differences", "gradient"]
