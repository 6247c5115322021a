"""The package's error type, `LabError`, and checks of arguments and settings that raise it.

Each message says what is wrong, where, and how to fix it. This module is below all others and imports none of them.

The second half is about settings classes. The type of a field says which values are allowed, and `check_settings`,
which each settings class calls in `__post_init__`, checks them.
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
    """An error in the input. The message says what is wrong, where, and how to fix it.

    The command line prints only the message. A notebook shows it as the last line of a short traceback.
    """


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural, such as "1 row" and "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spaces_hint(name: str) -> str:
    """Return the end of a message about an unknown name, which may be several names with commas between them."""
    return " Several names are separated by spaces." if "," in name else ""


def check_utf8(text: str, what: str) -> str:
    """Return `text` if UTF-8 can encode it, else raise `LabError`.

    A Python string can contain one half of a surrogate pair. It comes from JSON's `\\ud83d` without its other half, or
    from a byte of the command line that is not UTF-8. Tokenizers and files do not accept it.

    Args:
        text: the text.
        what: its name in the message, such as "pairs.jsonl, line 3: `prompt`".
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LabError(
            f"{what} contains a lone surrogate (U+{ord(text[error.start]):04X}, half of a character or a byte that was "
            f"not UTF-8) at character {error.start + 1}. UTF-8 has no code for it. Correct or remove that character."
        ) from None
    return text


def check_path(path: str | Path, name: str) -> Path:
    """Check a path and replace `~` by the home folder.

    Args:
        path: of a file or folder, which need not exist.
        name: its name in the message, such as "out".

    Returns:
        The path.

    Raises:
        LabError: the path contains a NUL byte or a lone surrogate, there is no such home folder, or the path is a
            symbolic link to a file that does not exist.
    """
    text = check_utf8(str(path), name)
    if "\0" in text:
        raise LabError(f"{name} contains a NUL byte ({text!r}), which is not allowed in a path. Remove it.")
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise LabError(f"There is no home folder for {name} {text}. Write the full path.") from None
    if found.is_symlink() and not found.exists():
        raise LabError(
            f"{name} {text} is a symbolic link to {found.readlink()}, which does not exist. Create that, or give "
            f"another path."
        )
    return found


def check_paths(settings: T) -> T:
    """Check all paths and strings in a settings object.

    Args:
        settings: a dataclass.

    Returns:
        The settings, in which `~` is replaced in all paths.

    Raises:
        LabError: as in `check_path`, or a string contains a NUL byte or a lone surrogate.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            found[field.name] = check_path(value, field.name)
        elif isinstance(value, str) and "\0" in check_utf8(value, field.name):
            raise LabError(f"{field.name} contains a NUL byte ({value!r}). Remove it.")
    changed = {name: path for name, path in found.items() if path != getattr(settings, name)}
    return dataclasses.replace(settings, **changed) if changed else settings  # type: ignore[type-var]


def check_output_folder(out: Path, own: Collection[str] = ()) -> None:
    """Raise `LabError` unless `out` can be used as an output folder: it does not exist, or contains no other files.

    Args:
        out: the folder.
        own: names of files that it may contain. Names that begin with a dot (locks, temporary files) are allowed too.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise LabError(f"{out} is a file; nothing was changed. Give the path of a new folder.")
    other = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.name not in own)
    if other:
        raise LabError(
            f"{out} already contains other files ({other[0]}{', …' if len(other) > 1 else ''}); nothing was changed "
            f"there. Give an empty or new folder."
        )


def check_positive(value: float, name: str, fix: str = "") -> float:
    """Return `value` as a float if it is a finite number above zero, else raise `LabError`.

    Args:
        value: the number.
        name: its name in the message.
        fix: a sentence at the end of the message.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LabError(f"{name} must be a number above 0, not {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        raise LabError(f"{name} must be a finite number above 0, not {number}.{' ' + fix if fix else ''}")
    return number


def check_beta(beta: float) -> float:
    """Return `beta`, the KL penalty per nat, as a float if it is finite and above 0, else raise `LabError`."""
    return check_positive(
        beta,
        "beta",
        "It is the KL penalty per nat. For the limit beta → 0 use best_of_n or a small beta such as 1e-3.",
    )


def check_float(x: Tensor, name: str) -> Tensor:
    """Return `x` if it is a floating-point tensor of any precision, else raise `LabError`."""
    if not isinstance(x, Tensor):
        raise LabError(f"{name} must be a torch tensor, not {type(x).__name__}. Wrap it in torch.tensor(...).")
    if not x.is_floating_point():
        raise LabError(f"{name} must contain floating-point numbers, not {x.dtype}. Call {name}.double().")
    return x


def check_same_shape(**tensors: Tensor) -> None:
    """Raise `LabError` unless all named tensors broadcast to one shape."""
    if len({t.shape for t in tensors.values()}) == 1:  # the usual case, without torch's slow general function
        return
    try:
        torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise LabError(f"The shapes do not match: {shapes}. They must be equal or broadcast.") from None


def check_responses_axis(**tensors: Tensor) -> None:
    """Raise `LabError` unless all tensors have the same last axis of K ≥ 1 responses and their other axes broadcast."""
    for name, t in tensors.items():
        check_float(t, name)
        if t.ndim == 0 or t.shape[-1] == 0:
            raise LabError(f"{name} has shape {tuple(t.shape)}, but its last axis must have at least one response.")
    if len({t.shape[-1] for t in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise LabError(f"The shapes do not match: {shapes}. The last axis is the K responses of a prompt.")
    check_same_shape(**tensors)


def first_true_index(bad: Tensor) -> str:
    """The first index at which a boolean tensor is True, as text for a message."""
    where = bad.nonzero()[0].tolist()
    return f"index {tuple(where)}" if len(where) != 1 else f"index {where[0]}"


def check_finite(x: Tensor, name: str) -> Tensor:
    """Return `x` if all its values are finite, else raise `LabError` with the first index where one is not."""
    bad = ~torch.isfinite(x.detach())
    if bad.any():
        value = x.detach()[bad][0].item()
        raise LabError(f"{name} contains {value} at {first_true_index(bad)}. Every {name} must be finite.")
    return x


def check_weights(weights: Iterable[tuple[str, Tensor]], place: Callable[[str], str]) -> None:
    """Raise `LabError` unless all weights are finite. Each is read once, without a temporary tensor of its size.

    Args:
        weights: their names and values.
        place: a function from a weight's name to the file that contains it, for the message.
    """
    for name, value in weights:
        value = value.detach()
        # The sum is not finite if a value is not. It can also overflow, so the values are then checked one by one.
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())):
            bad = value[~torch.isfinite(value)]
            if len(bad):
                raise LabError(
                    f"{place(name)}: the weight {name} contains {bad[0].item()} ({len(bad):,} of its "
                    f"{value.numel():,} values are not finite). Download the model again, or train it again with a "
                    f"lower learning rate."
                )


def check_no_nan(x: Tensor, name: str) -> Tensor:
    """Return `x` if it contains no NaN (infinities are allowed), else raise `LabError` with the first index."""
    bad = torch.isnan(x.detach())
    if bad.any():
        raise LabError(f"{name} contains nan at {first_true_index(bad)}. Remove or correct it.")
    return x


def check_log_distribution(log_p: Tensor, name: str) -> Tensor:
    """Return `log_p` if its exp sums to one over the last axis (`-inf` is allowed), else raise `LabError`.

    The tolerance is 1e-4 in float64 and 1e-3 in lower precision. This allows for the rounding of a sum over a million
    terms, and detects logits, probabilities without the logarithm, and values that are not normalised.
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
            f"{name} are not log-probabilities, because their exp sums to {mass:.6g} instead of 1{place}. "
            f"Apply torch.log_softmax over the last axis, or take the logarithm of the probabilities."
        )
    return log_p


@dataclass(frozen=True)
class Range:
    """The finite numbers between two limits, which are the allowed values of a setting.

    Attributes:
        minimum: the lower limit.
        maximum: the upper limit.
        exclusive_minimum: whether `minimum` itself is excluded.
        exclusive_maximum: whether `maximum` itself is excluded.
        fix: a sentence that says what to do about another number, if the range does not make it clear.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    exclusive_minimum: bool = False
    exclusive_maximum: bool = False
    fix: str = ""

    def __contains__(self, number: float) -> bool:
        # The comparison is also false for nan, and for an integer above the largest float.
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
"""A number above 0."""
NonNegative = Annotated[float, Range(0)]
"""A number of at least 0."""
Fraction = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Finite = Annotated[float, Range()]
"""Any finite number."""
Count = Annotated[int, Range(1)]
"""A whole number of at least 1."""
Natural = Annotated[int, Range(0)]
"""A whole number of at least 0."""
Seed = Annotated[int, Range(0, 10**18)]
"""A seed of a random generator."""
Temperature = Annotated[float, Range(1e-6, fix="To get the most likely token, use a small one such as 1e-3.")]
"""With less than 1e-6, logits divided by the temperature overflow in float32."""


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """The fields of a settings class with their types, including `Annotated`."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check_settings(settings: Any) -> None:
    """Check that the value of each field has the declared type and, if it is a number, is in the declared `Range`.

    Numbers of other libraries (numpy) are converted to Python numbers, so that the settings can be written as JSON.

    Args:
        settings: a dataclass, which is changed in place.

    Raises:
        LabError: a value is not allowed. The message says what is allowed, and the range's `fix`.
    """
    kind: Any = type(settings)
    for name, hint in field_types(kind).items():
        value = getattr(settings, name)
        checked = _checked(value, hint, name)
        if checked is not value:
            object.__setattr__(settings, name, checked)


def _checked(value: Any, hint: Any, name: str, allowed: Range = Range(), optional: str = "") -> Any:
    """Return `value` as a setting of the type `hint`, or raise `LabError`."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        # On the command line a setting may have another name.
        name = next((other for extra in inner[1:] if (other := getattr(extra, "name", ""))), name).replace("-", "_")
        allowed = next((extra for extra in inner[1:] if isinstance(extra, Range)), allowed)
        return _checked(value, inner[0], name, allowed, optional)
    if kind in (Union, UnionType):
        if value is None and NoneType in inner:
            return value
        kinds = [part for part in inner if part is not NoneType]
        several = [part for part in kinds if get_origin(part) is tuple and isinstance(value, tuple | list)]
        only = (several or kinds)[0]
        return _checked(value, only, name, allowed, " or None" if NoneType in inner else "")
    if kind is Literal:
        return _choice(value, inner, name, optional)
    if kind is tuple:
        return _values(value, inner[0], name)
    if hint in (int, float):
        return _number(value, hint, name, allowed, optional)
    if not isinstance(value, hint):
        what = {bool: "True or False", str: "a text"}.get(hint, f"a {hint.__name__}")
        raise LabError(f"{name} must be {what}{optional}, not {value!r}.")
    return value


def _choice(value: Any, choices: tuple[Any, ...], name: str, optional: str) -> Any:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        words = ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"
        raise LabError(f"{name} must be {words}{optional}, not {value!r}.")
    return value


def _values(value: Any, hint: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise LabError(f"{name} must be a tuple of values, not {value!r}.")
    parts = tuple(_checked(part, hint, f"{name}[{place}]") for place, part in enumerate(value))
    return value if isinstance(value, tuple) and all(a is b for a, b in zip(parts, value, strict=True)) else parts


def _number(value: Any, kind: type, name: str, allowed: Range, optional: str) -> int | float:
    whole = kind is int
    real = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if real and type(value) not in (int, float):
        value = kind(value)
    if real and value in allowed:
        number: int | float = value
        return number
    range_ = f" {allowed}" if str(allowed) else ""
    what = f"a {'whole' if whole else 'finite'} number{range_}{optional}"
    fix = allowed.fix
    if whole and isinstance(value, float) and value.is_integer():
        fix = f"Write {int(value)}, without a decimal point."
    raise LabError(f"{name} must be {what}, not {value!r}.{' ' + fix if fix else ''}")


def refuse_unused(settings: Any, names: Collection[str], reason: str) -> None:
    """Refuse settings that were changed but have no effect.

    Args:
        settings: a dataclass.
        names: its fields that have no effect, given the other settings.
        reason: why they have none, for the message after "has no effect", such as `with optimizer='adam'`.

    Raises:
        LabError: the value of one of them differs from its default.
    """
    for field in dataclasses.fields(settings):
        usual = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(settings, field.name)
        if field.name in names and value != usual:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
            raise LabError(f"{field.name}={shown} has no effect {reason}. Leave it out.")
