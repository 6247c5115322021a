"""What every room says when it is given something it cannot use.

One error type, and the few checks that the pure functions share. Each message names the thing, the place
and the fix. This module lies below every other one and imports nothing of the lab.

The second half is about settings. A field's type says which values it takes, and `check_settings`, which each
settings class calls in `__post_init__`, is the one place that looks.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

T = TypeVar("T")


class LabError(ValueError):
    """A mistake in what the lab was given. Its message says what, where and how to fix it.

    The command line prints the message alone; a notebook shows it as the last line of a short traceback.
    """


def check_utf8(text: str, what: str) -> str:
    """Return `text` if UTF-8 can encode it, else raise `LabError`.

    A Python string can hold half of a surrogate pair: JSON's `\\ud83d` without its other half gives one, and so does
    a byte of the command line that is not UTF-8. Tokenizers and files do not accept it.

    Args:
        text: the text.
        what: how the message names it, such as "pairs.jsonl, line 3: `prompt`".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LabError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}, half of a character or a byte that was "
            f"not UTF-8) at character {error.start + 1}. UTF-8 has no code for it; correct or remove that character."
        ) from None
    return text


def check_path(path: str | Path, name: str) -> Path:
    """`path` with `~` replaced by the home folder.

    Args:
        path: of a file or folder that may be there or not.
        name: what it is for, as the message names it, such as "out".

    Raises:
        LabError: no system can hold it (a NUL byte, a lone surrogate), nobody has that home folder, or it is a
            symbolic link to what is not there.
    """
    text = check_utf8(str(path), name)
    if "\0" in text:
        raise LabError(f"{name} holds a NUL byte ({text!r}), which no path can. Remove it.")
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise LabError(f"{name} {text}: there is no such home folder. Write the path out.") from None
    if found.is_symlink() and not found.exists():
        raise LabError(
            f"{name} {text} is a symbolic link to {found.readlink()}, which is not there. Make that, or give another "
            f"path."
        )
    return found


def check_paths(settings: T) -> T:
    """`settings`, a dataclass, with every path in it made usable, and its names (of models, of data) checked.

    Raises:
        LabError: as `check_path`; or a name that holds a NUL byte or a lone surrogate.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            found[field.name] = check_path(value, field.name)
        elif isinstance(value, str) and "\0" in check_utf8(value, field.name):
            raise LabError(f"{field.name} holds a NUL byte ({value!r}). Remove it.")
    changed = {name: path for name, path in found.items() if path != getattr(settings, name)}
    return dataclasses.replace(settings, **changed) if changed else settings  # type: ignore[type-var]


def check_output_folder(out: Path, own: Collection[str] = ()) -> None:
    """Raise `LabError` unless `out` can become a folder of results: it is not there, or holds nothing but `own`.

    Args:
        out: the folder.
        own: names of files that may be there. Names that begin with a dot, of locks and of half-written files, may too.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise LabError(f"{out} is a file; nothing was changed. Give the path of a new folder.")
    other = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.name not in own)
    if other:
        raise LabError(
            f"{out} already holds other files ({other[0]}{', …' if len(other) > 1 else ''}); nothing was changed "
            f"there. Give an empty or new folder."
        )


def check_positive(value: float, name: str, fix: str = "") -> float:
    """Return `value` as a float if it is a finite number above zero, else raise `LabError`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LabError(f"{name} must be a number above 0, not {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        raise LabError(f"{name} must be a finite number above 0, not {number}.{' ' + fix if fix else ''}")
    return number


def check_beta(beta: float) -> float:
    """Return `beta` as a float if it is usable as the weight of the KL term, else raise `LabError`."""
    return check_positive(
        beta,
        "beta",
        "It is the price of one nat of KL to the reference; for the limit beta → 0 use best_of_n "
        "or a small beta such as 1e-3.",
    )


def check_float(x: Tensor, name: str) -> Tensor:
    """Return `x` if it is a float32 or float64 tensor (half precision passes too), else raise `LabError`."""
    if not isinstance(x, Tensor):
        raise LabError(f"{name} must be a torch tensor, not {type(x).__name__}: wrap it in torch.tensor(...).")
    if not x.is_floating_point():
        raise LabError(f"{name} must hold floating-point numbers, not {x.dtype}: call {name}.double().")
    return x


def check_same_shape(**tensors: Tensor) -> None:
    """Raise `LabError` unless all named tensors broadcast to one shape."""
    try:
        torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise LabError(f"Shapes that do not match: {shapes}. They must be equal or broadcast.") from None


def check_responses_axis(**tensors: Tensor) -> None:
    """Raise `LabError` unless all named tensors share a last axis of K ≥ 1 responses and broadcast before it."""
    for name, t in tensors.items():
        check_float(t, name)
        if t.ndim == 0 or t.shape[-1] == 0:
            raise LabError(f"{name} has shape {tuple(t.shape)}: its last axis must hold at least one response.")
    if len({t.shape[-1] for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise LabError(f"Shapes that do not match: {shapes}. The last axis is the K responses of a prompt.")
    check_same_shape(**tensors)


def first_true_index(bad: Tensor) -> str:
    """Say where `bad`, a boolean tensor, is first True, as an index a reader can type."""
    where = bad.nonzero()[0].tolist()
    return f"index {tuple(where)}" if len(where) != 1 else f"index {where[0]}"


def check_finite(x: Tensor, name: str) -> Tensor:
    """Return `x` if all of it is finite, else raise `LabError` that names the first bad place."""
    bad = ~torch.isfinite(x.detach())
    if bad.any():
        value = x.detach()[bad][0].item()
        raise LabError(f"{name} holds {value} at {first_true_index(bad)}; every {name} must be finite.")
    return x


def check_weights(weights: Iterable[tuple[str, Tensor]], place: Callable[[str], str]) -> None:
    """Raise `LabError` unless all weights are finite. Each is read once, and nothing of its size is written.

    Args:
        weights: their names and values.
        place: of a weight's name, where it comes from, as the message names it.
    """
    for name, value in weights:
        value = value.detach()
        # nan and infinity survive a sum. It can also overflow, so a closer look follows.
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())):
            bad = value[~torch.isfinite(value)]
            if len(bad):
                raise LabError(
                    f"{place(name)}: the weight {name} holds {bad[0].item()} ({len(bad):,} of its {value.numel():,} "
                    f"numbers are not finite). Fetch the model again, or train it again with a lower learning rate."
                )


def check_no_nan(x: Tensor, name: str) -> Tensor:
    """Return `x` if none of it is NaN (infinities pass), else raise `LabError` that names the first place."""
    bad = torch.isnan(x.detach())
    if bad.any():
        raise LabError(f"{name} holds nan at {first_true_index(bad)}.")
    return x


def check_log_distribution(log_p: Tensor, name: str) -> Tensor:
    """Return `log_p` if exp of it sums to one over the last axis (`-inf` allowed), else raise `LabError`.

    The tolerance is 1e-4 in float64 and 1e-3 below it: wide enough for a sum over a million terms, narrow
    enough to catch raw logits, plain probabilities and a forgotten normalisation.
    """
    check_float(log_p, name)
    check_no_nan(log_p, name)
    values = log_p.detach()
    total = values.logsumexp(-1)
    bad = ~(total.abs() < (1e-4 if values.dtype == torch.float64 else 1e-3))
    if bad.any():
        mass = total[bad][0].exp().item()
        place = f" at {first_true_index(bad)}" if bad.ndim else ""
        raise LabError(
            f"{name} are not log-probabilities: they sum to {mass:.6g} instead of 1{place}. "
            f"Apply torch.log_softmax over the last axis, or take the logarithm of probabilities first."
        )
    return log_p


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes: finite ones from `least` to `most`.

    Attributes:
        least: the lower end.
        most: the upper end.
        above: `least` itself is not allowed.
        below: `most` itself is not allowed.
        fix: what to do about a number outside, as a sentence; for where the range alone does not say it.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    fix: str = ""

    def __contains__(self, number: float) -> bool:
        # Also false for nan, and for a whole number that no float can hold.
        if not abs(number) <= sys.float_info.max:
            return False
        low = number > self.minimum if self.exclusive_minimum else number >= self.minimum
        return low and (number < self.maximum if self.exclusive_maximum else number <= self.maximum)

    def __str__(self) -> str:
        if math.isfinite(self.minimum + self.maximum) and not (self.exclusive_minimum or self.exclusive_maximum):
            return f"between {self.minimum:g} and {self.maximum:g}"
        low = f"above {self.minimum:g}" if self.exclusive_minimum else f"of at least {self.minimum:g}"
        high = f"below {self.maximum:g}" if self.exclusive_maximum else f"at most {self.maximum:g}"
        parts = [low] * math.isfinite(self.minimum) + [high] * math.isfinite(self.maximum)
        return " and ".join(parts)


Positive = Annotated[float, Range(0, exclusive_minimum=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Finite = Annotated[float, Range()]
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 10**18)]
Temperature = Annotated[float, Range(1e-6, fix="For the likeliest token use a small one, such as 1e-3.")]
"""Below 1e-6 logits divided by it overflow in float32."""


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """The fields of a settings class with their types, `Annotated` and all."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check_settings(settings: Any) -> None:
    """Check that each field of a settings object has a value of its declared type, and a number one of its `Range`.

    Numbers of other libraries (numpy) become Python's, so that a run's record can be written as JSON.

    Raises:
        LabError: names the setting, its value, what is allowed and, where the range declares it, the fix.
    """
    kind: Any = type(settings)
    for name, hint in field_types(kind).items():
        value = getattr(settings, name)
        checked = _checked(value, hint, name)
        if checked is not value:
            object.__setattr__(settings, name, checked)


def _checked(value: Any, hint: Any, name: str, allowed: Range = Range(), optional: str = "") -> Any:
    """`value` as a setting of the type `hint`, or `LabError`."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        # On the command line a setting may have another name.
        name = next((told for extra in inner[1:] if (told := getattr(extra, "name", ""))), name).replace("-", "_")
        allowed = next((extra for extra in inner[1:] if isinstance(extra, Range)), allowed)
        return _checked(value, inner[0], name, allowed, optional)
    if kind in (Union, UnionType):
        if value is None and NoneType in inner:
            return value
        (only,) = (part for part in inner if part is not NoneType)
        return _checked(value, only, name, allowed, " or None" if NoneType in inner else "")
    if kind is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            choices = ", ".join(map(str, inner[:-1])) + f" or {inner[-1]}"
            raise LabError(f"{name} must be {choices}{optional}, not {value!r}.")
        return value
    if kind is tuple:
        if not isinstance(value, tuple | list):
            raise LabError(f"{name} must be a tuple of values, not {value!r}.")
        parts = tuple(_checked(part, inner[0], f"{name}[{place}]") for place, part in enumerate(value))
        return value if isinstance(value, tuple) and all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if hint in (int, float):
        return _number(value, hint, name, allowed, optional)
    if not isinstance(value, hint):
        what = {bool: "True or False", str: "a text"}.get(hint, f"a {hint.__name__}")
        raise LabError(f"{name} must be {what}{optional}, not {value!r}.")
    return value


def _number(value: Any, kind: type, name: str, allowed: Range, optional: str) -> int | float:
    whole = kind is int
    real = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if real and type(value) not in (int, float):
        value = kind(value)
    if real and value in allowed:
        return value
    range_ = f" {allowed}" if str(allowed) else ""
    what = f"a {'whole' if whole else 'finite'} number{range_}{optional}"
    fix = allowed.fix
    if whole and isinstance(value, float) and value.is_integer():
        fix = f"Write {int(value)}, without a decimal point."
    raise LabError(f"{name} must be {what}, not {value!r}.{' ' + fix if fix else ''}")


def refuse_unused(settings: Any, names: Collection[str], reason: str) -> None:
    """Refuse settings that were changed but have no effect beside the others.

    Args:
        settings: the object whose fields `names` are.
        names: fields that nothing reads.
        reason: when that is so, to follow "has no effect": `with optimizer='adam'`.

    Raises:
        LabError: one of them differs from its default.
    """
    for field in dataclasses.fields(settings):
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(settings, field.name)
        if field.name in names and value != usual:
            raise LabError(f"{field.name}={value!r} has no effect {reason}. Leave it out.")
