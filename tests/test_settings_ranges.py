"""Every number of every settings class has a declared range, and what lies outside is refused by the field's name."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest

import rlhf_lab.algorithms
import rlhf_lab.cli
import rlhf_lab.experiments
from rlhf_lab.algorithms import active, grpo_rloo, ppo
from rlhf_lab.errors import LabError, Range, check_settings, field_types, refuse_unused
from rlhf_lab.experiments.settings import Settings
from rlhf_lab.training import Training


def modules(package) -> list[str]:
    return [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def settings_classes() -> list[type]:
    """The classes that call `check_settings`, themselves or in a base: found in the source, not listed by hand."""
    packages = (rlhf_lab.algorithms, rlhf_lab.cli, rlhf_lab.experiments)
    found = {Training}
    for name in [name for package in packages for name in modules(package)]:
        for kind in vars(importlib.import_module(name)).values():
            if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and kind.__module__ == name:
                checks = [base.__post_init__ for base in kind.__mro__ if "__post_init__" in vars(base)]
                checks += [Settings.__init__] if issubclass(kind, Settings) else []
                if any("check_settings(" in inspect.getsource(check) for check in checks):
                    found.add(kind)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


CLASSES = settings_classes()


def numbers(kind: type) -> list[tuple[str, Any, Range | None, bool]]:
    """(field, int or float, its range, whether the field is a tuple of them) of every number in a settings class."""
    out = []

    def look(name: str, hint: Any, allowed: Range | None, many: bool) -> None:
        kind_of, inner = get_origin(hint), get_args(hint)
        if kind_of is Annotated:
            look(name, inner[0], next((one for one in inner[1:] if isinstance(one, Range)), allowed), many)
        elif kind_of in (Union, UnionType):
            for part in inner:
                look(name, part, allowed, many)
        elif kind_of is tuple:
            look(name, inner[0], allowed, True)
        elif hint in (int, float):
            out.append((name, hint, allowed, many))
        else:
            assert kind_of is Literal or hint is NoneType or inspect.isclass(hint), (kind, name, hint)

    for name, hint in field_types(kind).items():
        look(name, hint, None, False)
    return out


def outside(number: type, allowed: Range) -> list[Any]:
    """Values of the wrong kind, not finite, and just outside both ends of the range."""
    wrong: list[Any] = [math.nan, math.inf, -math.inf, "3", True]
    if number is int:
        wrong += [1.5, 3.0, allowed.minimum - 1]
    elif math.isfinite(allowed.minimum):
        wrong.append(allowed.minimum if allowed.exclusive_minimum else math.nextafter(allowed.minimum, -math.inf))
        wrong.append(-1.0)
    if math.isfinite(allowed.maximum):
        wrong.append(allowed.maximum + 1 if number is int else math.nextafter(allowed.maximum, math.inf))
        wrong += [allowed.maximum] * allowed.exclusive_maximum
    return wrong


def bare(kind: type) -> Any:
    """An object of the class with the defaults of its fields, made without its own checks if they allow that."""
    if issubclass(kind, Settings):  # its defaults are in a table
        return kind()
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is dataclasses.MISSING:
            hint = field_types(kind)[field.name]
            while get_origin(hint) is Annotated:
                hint = get_args(hint)[0]
            if isinstance(hint, UnionType):
                hint = get_args(hint)[0]
            many = get_origin(hint) is tuple
            value = (get_args(hint)[0]("x"),) if many else hint("x")  # texts or paths
        object.__setattr__(made, field.name, value)
    return made


def test_the_search_finds_the_classes_that_are_known_to_be_settings():
    names = {kind.__name__ for kind in CLASSES}
    assert {"Training", "DPO", "KTO", "PPO", "Group", "RSO", "ReST", "RAFT", "Online", "Active"} <= names
    assert {"RewardModel", "Ranker"} <= names
    assert {"EnoughLabels", "DPOFrontier", "Cost"} <= names, "settings of claims, which are checked by their base"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_and_the_default_lies_in_it(kind):
    missing = [name for name, _, allowed, _ in numbers(kind) if allowed is None]
    assert not missing, f"{kind.__name__}: declare the range of {', '.join(missing)}, as in rlhf_lab/errors.py"
    check_settings(bare(kind))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_number_outside_its_range_is_refused_by_its_name(kind):
    for name, number, allowed, many in numbers(kind):
        for value in outside(number, allowed):
            made = bare(kind)
            object.__setattr__(made, name, (value,) if many else value)
            with pytest.raises(LabError) as error:
                check_settings(made)
            said = str(error.value)
            assert name in said + said.replace("data_", "") and repr(value) in said, (name, value)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_words_and_truth_values_of_another_kind_are_refused_by_name(kind):
    for name, hint in field_types(kind).items():
        if bool in (hint, *get_args(hint)):
            made = bare(kind)
            object.__setattr__(made, name, "no")
            with pytest.raises(LabError, match=f"{name} must be True or False"):
                check_settings(made)
        elif get_origin(hint) is Literal:
            made = bare(kind)
            object.__setattr__(made, name, "such a choice is not there")
            with pytest.raises(LabError, match=f"{name} must be"):
                check_settings(made)


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if kind.__module__.startswith("rlhf_lab.algorithms")] + [Training],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_a_method_checks_its_settings_when_they_are_made(kind):
    """The check is called, and not only there to be called."""
    name = numbers(kind)[0][0]
    with pytest.raises(LabError, match=name):
        kind(**{name: (math.nan,) if numbers(kind)[0][3] else math.nan})


@dataclasses.dataclass(frozen=True)
class Example:
    """Settings of a test."""

    rate: Annotated[float, Range(0, 1, exclusive_minimum=True, fix="Try 0.5.")] = 0.5
    count: Annotated[int, Range(1)] | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def test_an_error_says_name_value_range_and_fix():
    with pytest.raises(LabError) as error:
        Example(rate=0.0)
    assert str(error.value) == "rate must be a finite number above 0 and at most 1, not 0.0. Try 0.5."
    with pytest.raises(LabError) as error:
        Example(count=3.0)
    assert str(error.value) == (
        "count must be a whole number of at least 1 or None, not 3.0. Write 3, without a decimal point."
    )
    with pytest.raises(LabError, match="not 1000"):
        Example(rate=10**400)


def test_numbers_of_numpy_become_pythons():
    made = Example(rate=np.float32(0.25), count=np.int64(7))
    assert (type(made.rate), made.rate, type(made.count), made.count) == (float, 0.25, int, 7)


def test_a_setting_that_is_not_read_may_stand_at_its_default_and_at_nothing_else():
    refuse_unused(Example(), ["rate"], "today")
    with pytest.raises(LabError, match=r"^rate=0.25 has no effect today. Leave it out.$"):
        refuse_unused(Example(rate=0.25), ["rate"], "today")


def test_more_minibatches_than_prompts_in_a_step_are_refused():
    """A step of min(batch_size, prompts) = 3 prompts has no fourth part."""
    from rlhf_lab.worlds import bandit

    world, training = bandit.random(5, 3, seed=0), Training(steps=1, batch_size=3, progress=False)
    policy = world.reference.copy()
    with pytest.raises(LabError, match="minibatches=4 is more than the 3 prompts"):
        grpo_rloo.group(policy, world.reference, world.reward, world.prompts, grpo_rloo.Group(minibatches=4), training)
    with pytest.raises(LabError, match="minibatches=4 is more than the 3 prompts"):
        critic = policy.new_critic()
        ppo.ppo(policy, world.reference, world.reward, critic, world.prompts, ppo.PPO(minibatches=4), training)
    assert active.Active in CLASSES
