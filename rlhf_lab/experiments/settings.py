"""Settings of the experiments: every number of a run, with defaults that depend on the scale.

A claim's settings are a frozen dataclass that lists its fields, and a table of their defaults:

    @dataclass(frozen=True, init=False, kw_only=True)
    class Cost(Settings):
        labels: Count
        \"\"\"Preference labels.\"\"\"

        DEFAULTS: ClassVar[Defaults] = {"seeds": PerScale(10, 6, 4), "labels": PerScale(2000, 2000, 384)}
        QUICK: ClassVar[Defaults] = {"seeds": 2, "labels": PerScale(100, 100, 32)}

`Cost(scale="tree", labels=50)` takes the number of labels from the call and every other number from the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from rlhf_lab.errors import Count, Natural, check_settings
from rlhf_lab.experiments.scales import scale_of

__all__ = ["SEARCH_SEED", "Defaults", "PerScale", "Settings"]


class PerScale(NamedTuple):
    """A default that depends on the scale. Every language model has that of `small`; see `scales.Scale.column`."""

    bandit: Any = None
    tree: Any = None
    small: Any = None


SEARCH_SEED = 1000
"""The first seed of a search for settings. Results use smaller seeds, so no result depends on a seed of its search."""
Defaults = Mapping[str, Any]
"""Field → its default: a `PerScale`, or one value for all scales."""


@dataclass(frozen=True, init=False)
class Settings:
    """The settings that all experiments have."""

    scale: str = "bandit"
    """The scale: bandit, tree, small (the language model that ships), or a model's name or folder."""
    quick: bool = False
    """Run for a few seconds with far too few samples, to see that everything works. The outcome means nothing."""
    seeds: Count = 1
    """Number of runs. Each draws its own labels and samples."""
    first_seed: Natural = 0
    """Seed of the first run. The others have the seeds after it. A new range repeats an experiment with new samples."""
    out: Path | None = None
    """Folder of the result. Default: results/NAME/SCALE, or results/NAME/SCALE-own where a setting was changed."""
    workers: Count = 1
    """Number of processes, with one thread each. The numbers do not depend on it."""
    progress: bool = True
    """Show a progress bar."""

    DEFAULTS: ClassVar[Defaults] = {}
    QUICK: ClassVar[Defaults] = {}

    def __init__(self, **given: Any) -> None:
        """Take the given fields, fill the others from the table of the scale, and check all.

        Raises:
            LabError: a number out of its range.
            TypeError: an unknown field, or one that neither the call nor the table names.
        """
        fields = {field.name: field for field in dataclasses.fields(self)}
        if unknown := given.keys() - fields.keys():
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(sorted(unknown))}.")
        values = {name: f.default for name, f in fields.items() if f.default is not dataclasses.MISSING} | given
        scale, quick = values["scale"], values["quick"]
        values = {**values, **self.defaults(scale, quick), **given}
        values = {**values, **self.derived(values), **given}
        if missing := fields.keys() - values.keys():
            raise TypeError(f"{type(self).__name__} has no default for {', '.join(sorted(missing))}.")
        for name in fields:
            value = values[name]
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        check_settings(self)
        self.check()

    @classmethod
    def defaults(cls, scale: str, quick: bool = False) -> dict[str, Any]:
        """Return the defaults of a scale.

        A quick run has those of `QUICK` in place of the same ones in `DEFAULTS`, and begins with seed 0.
        """
        column = scale_of(scale).column
        table = {**cls.DEFAULTS, **({"first_seed": 0, **cls.QUICK} if quick else {})}
        return {name: getattr(value, column) if isinstance(value, PerScale) else value for name, value in table.items()}

    @classmethod
    def derived(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that follow from other settings.

        Args:
            values: the given settings and the defaults of the tables.
        """
        return {}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the settings that a `result.json` holds. JSON's lists become tuples."""
        return cls(**{name: _tuples(value) for name, value in record.items()})

    def with_defaults_except(self, given: Collection[str]) -> Self:
        """Return settings that keep the given fields of these. All others have their defaults."""
        fields = [field.name for field in dataclasses.fields(self) if field.name in given]
        return type(self)(**{name: getattr(self, name) for name in fields})

    @property
    def exact(self) -> bool:
        """Whether π* is exact on this scale."""
        return scale_of(self.scale).exact

    @property
    def seed_range(self) -> range:
        """The seeds of the runs."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def check(self) -> None:
        """Raise `LabError` where settings contradict each other. Ranges of single numbers are checked before."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
