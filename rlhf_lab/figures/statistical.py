"""Statistical pictures, drawn by seaborn from tidy data frames: intervals, bars, heat maps, values over seeds.

A frame can be of two kinds, and every function that draws intervals accepts both:

- rows of single runs: the mean over the rows is drawn with Student's t interval (95%);
- a summary: if the frame has the columns `<value>_low` and `<value>_high`, these are the interval's ends.

A column of the frame (`hue`) names what each row belongs to. Its values are keys of `figures.style`, or `looks` maps
them to styles. Further keyword arguments go to `Axes.set` after the drawing: title, xlabel, ylabel, xscale, ….
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import mean_interval
from rlhf_lab.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Looks = Mapping[Any, style.Style]
"""The style of each value of the hue column."""

_ERRORS = {"elinewidth": 1.6, "capsize": 3}


def check_columns(frame: pd.DataFrame, name: str, *wanted: str) -> None:
    """Refuse a frame without rows or without one of the columns `wanted`.

    Raises:
        LabError: it has no rows, or a column is missing.
    """
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise LabError(f"{name} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}.")
    if len(frame) == 0:
        raise LabError(f"{name} has no rows.")


def _t_interval(values: pd.Series) -> tuple[float, float]:
    return mean_interval(values.to_numpy(float))[1:]


def _rows(frame: pd.DataFrame, value: str, *by: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that seaborn aggregates, and how it does.

    A row of a summary becomes three, with the value and both ends: their median and range are the point and its
    interval. A value without a finite interval stays alone and is drawn without one.
    """
    import pandas as pd

    check_columns(frame, "frame", value, *by)
    ends = [f"{value}_low", f"{value}_high"]
    if not {*ends} <= {*frame.columns}:
        return frame, {"estimator": "mean", "errorbar": _t_interval}
    if frame.duplicated([*by]).any():
        raise LabError(f"frame has several rows with the same {', '.join(by)}, but a summary has one row for each.")
    closed = frame[np.isfinite(frame[ends].to_numpy(float)).all(axis=1)]
    # Rounding may leave an end on the wrong side of the value.
    sides = [closed.assign(**{value: closed[ends[0]].clip(upper=closed[value])})]
    sides.append(closed.assign(**{value: closed[ends[1]].clip(lower=closed[value])}))
    return pd.concat([frame, *sides], ignore_index=True), {"estimator": "median", "errorbar": ("pi", 100)}


def _looks(levels: Iterable[Any], looks: Looks | None) -> dict[Any, style.Style]:
    """The style of each level that occurs, in the order of `looks` or else of appearance."""
    present = list(dict.fromkeys(levels))
    if looks is None:
        return {level: style.of(str(level)) for level in present}
    unknown = [level for level in present if level not in looks]
    if unknown:
        raise LabError(f"looks has no style for {', '.join(map(str, unknown))}. Add one, or leave those rows out.")
    return {level: look for level, look in looks.items() if level in present}


def _finish(ax: Axes, legend: bool, labels: dict[str, Any]) -> None:
    ax.set(**labels)
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


@style.use()
def interval_lines(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    looks: Looks | None = None,
    *,
    along: Literal["x", "y"] = "y",
    band: bool = False,
    dodge: float = 0.0,
    legend: bool = True,
    lines: Mapping[str, Any] | None = None,
    **labels: Any,
) -> None:
    """Draw a line with intervals for each value of `hue`.

    Args:
        ax: where to draw.
        frame: rows of runs or a summary, see the module.
        x: the column along the x axis.
        y: the column along the y axis.
        hue: the column that separates the lines.
        looks: the style of each line; None takes `style.of` each value of `hue`.
        along: the axis whose column has the means and the intervals.
        band: shade the intervals instead of drawing bars.
        dodge: distance between neighbouring lines, which keeps their bars apart; where `xscale="log"` is given, a
            step multiplies x by `1 + dodge`.
        legend: put a legend to the right of the axes.
        lines: more settings of matplotlib's lines, for all of them.
        **labels: for `Axes.set`.

    Raises:
        LabError: a missing column or style; no rows; several rows of a summary for one point.
    """
    import seaborn as sns

    value, at = (y, x) if along == "y" else (x, y)
    rows, how = _rows(frame, value, at, hue)
    styles = _looks(rows[hue], looks)
    for place, (level, look) in enumerate(styles.items()):
        part = rows[rows[hue] == level].astype({x: float, y: float})
        steps = place - (len(styles) - 1) / 2
        part[at] = part[at] * (1 + dodge) ** steps if labels.get("xscale") == "log" else part[at] + steps * dodge
        sns.lineplot(
            part, x=x, y=y, orient="x" if along == "y" else "y", ax=ax, err_style="band" if band else "bars",
            err_kws={"lw": 0} if band else _ERRORS, **how,
            **{**look.line(), "label": look.label, "legend": False, **(lines or {})},
        )  # fmt: skip
    _finish(ax, legend, labels)


@style.use()
def interval_points(
    ax: Axes,
    frame: pd.DataFrame,
    category: str,
    value: str,
    hue: str | None = None,
    looks: Looks | None = None,
    *,
    names: Mapping[Any, str] | None = None,
    vertical: bool = False,
    dodge: float = 0.26,
    legend: bool = True,
    **labels: Any,
) -> None:
    """Draw a point with its interval for each category: one row each, from top to bottom in order of appearance.

    Args:
        ax: where to draw.
        frame: rows of runs or a summary, see the module.
        category: the column that names the rows of the picture.
        value: the column whose mean and interval are drawn.
        hue: the column that separates several points of one category; None gives each category a separate style.
        looks: the style of each point; None takes `style.of` each value of `hue`.
        names: what is written at each category; its style's label, or without a style the category itself.
        vertical: values along y, categories from left to right.
        dodge: distance between neighbouring points of a category; categories are 1 apart.
        legend: put a legend to the right of the axes, if there is a `hue`.
        **labels: for `Axes.set`.

    Raises:
        LabError: as `interval_lines`.
    """
    import seaborn as sns

    rows, how = _rows(frame, value, *dict.fromkeys([category, hue or category]))
    places = {one: place for place, one in enumerate(dict.fromkeys(frame[category]))}
    styles = _looks(rows[hue or category], looks)
    for number, (level, look) in enumerate(styles.items()):
        shift = (number - (len(styles) - 1) / 2) * dodge if hue else 0.0
        part = rows[rows[hue or category] == level].astype({value: float})
        part = part.assign(place=part[category].map(places).astype(float) + shift)
        across = {"x": "place", "y": value, "orient": "x"} if vertical else {"x": value, "y": "place", "orient": "y"}
        sns.lineplot(
            part, **across, ax=ax, err_style="bars", err_kws=_ERRORS, **how,
            **{**look.line(), "linestyle": "none", "label": look.label, "legend": False},
        )  # fmt: skip
    written = dict(names or {}) or ({} if hue else {level: look.label for level, look in styles.items()})
    axis = ax.xaxis if vertical else ax.yaxis
    axis.set_ticks(list(places.values()), [written.get(one, str(one)) for one in places])
    axis.grid(visible=False)
    low, high = -0.6, len(places) - 0.4
    ax.set(xlim=(low, high), xlabel="") if vertical else ax.set(ylim=(high, low), ylabel="")
    _finish(ax, legend and hue is not None, labels)


@style.use()
def interval_bars(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    looks: Looks | None = None,
    *,
    legend: bool = True,
    bars: dict[str, Any] | None = None,
    **labels: Any,
) -> None:
    """Draw bars with intervals: a group for each value of `x`, in it a bar for each value of `hue`.

    If the column `y` is text, bars are horizontal and their intervals are those of `x`.

    Args:
        ax: where to draw.
        frame: rows of runs or a summary, see the module.
        x: the column along the x axis.
        y: the column along the y axis.
        hue: the column that separates the bars of a group; None gives each group a separate style.
        looks: the style of each bar; None takes `style.of` each value of `hue`.
        legend: put a legend to the right of the axes, if there is a `hue`.
        bars: more settings of seaborn's `barplot`.
        **labels: for `Axes.set`.

    Raises:
        LabError: as `interval_lines`.
    """
    import seaborn as sns
    from pandas.api.types import is_numeric_dtype

    check_columns(frame, "frame", x, y)
    category, value = (x, y) if is_numeric_dtype(frame[y]) else (y, x)
    by = hue or category
    rows, how = _rows(frame, value, *dict.fromkeys([category, by]))
    styles = _looks(rows[by], looks)
    rows = rows.assign(**{by: rows[by].map({level: look.label for level, look in styles.items()})})
    palette = {look.label: look.light for look in styles.values()}
    sns.barplot(
        rows, x=x, y=y, hue=by, hue_order=[*palette], palette=palette, saturation=1, gap=0.08, ax=ax,
        err_kws={"color": "#222222", "linewidth": 1.6}, legend="full" if legend and hue else False,
        **(how | (bars or {})),
    )  # fmt: skip
    (ax.xaxis if category == x else ax.yaxis).grid(visible=False)
    _finish(ax, legend and hue is not None, labels)


@style.use()
def heat_map(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    scale: str,
    form: str = ".2g",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
    **labels: Any,
) -> None:
    """Draw a table of numbers as coloured cells, with the number in each cell, and below it the interval of a summary.

    Args:
        ax: where to draw.
        frame: one row for each cell.
        x: the column that names the table's columns, in order of appearance.
        y: the column that names the table's rows, in order of appearance.
        value: the column of numbers.
        scale: the colour bar's label, with the unit.
        form: how a number is written, in Python's format language.
        centre: the number of the neutral colour, from which two colours diverge; None takes one scale of colours.
        limits: the numbers at the ends of the colours; None takes those of the frame.
        bar: whether a colour bar stands beside the table.
        **labels: for `Axes.set`.

    Raises:
        LabError: a missing column; no rows; several rows for one cell.
    """
    import seaborn as sns

    check_columns(frame, "frame", x, y, value)
    if frame.duplicated([x, y]).any():
        raise LabError(f"frame has several rows with the same {x} and {y}, but a cell shows one number.")
    ends = [f"{value}_low", f"{value}_high"]

    def written(row: pd.Series) -> str:
        text = format(row[value], form)
        if {*ends} <= {*frame.columns}:
            text += f"\n[{', '.join(format(row[end], form) for end in ends)}]"
        return text.replace("-", "−")

    frame = frame.assign(written=[written(row) for _, row in frame.iterrows()])
    table, texts = (
        frame.pivot(index=y, columns=x, values=column).reindex(
            index=frame[y].drop_duplicates(), columns=frame[x].drop_duplicates()
        )
        for column in (value, "written")
    )
    low, high = limits or (None, None)
    with warnings.catch_warnings():
        # seaborn 0.13 calls a function that matplotlib 3.11 announces to remove.
        warnings.filterwarnings("ignore", "The set_bad function", PendingDeprecationWarning)
        sns.heatmap(
            table, annot=texts, fmt="", cmap="crest" if centre is None else "vlag", center=centre, vmin=low, vmax=high,
            annot_kws={"size": 9} if {*ends} <= {*frame.columns} else None, cbar=bar, cbar_kws={"label": scale},
            linewidths=0.5, ax=ax,
        )  # fmt: skip
    ax.tick_params(length=0)
    ax.set(**labels)


@style.use()
def seed_values(ax: Axes, frame: pd.DataFrame, x: str, y: str, looks: Looks | None = None, **labels: Any) -> None:
    """Draw every run's value as a point, and beside the points of each group their mean with Student's t interval.

    Args:
        ax: where to draw.
        frame: one row for each run.
        x: the column that names the group, from left to right in order of appearance.
        y: the column of values.
        looks: the style of each group; None takes `style.of` each value of `x`.
        **labels: for `Axes.set`.

    Raises:
        LabError: a missing column or style; no rows.
    """
    import seaborn as sns

    check_columns(frame, "frame", x, y)
    styles = _looks(frame[x], looks)
    palette = {level: look.light for level, look in styles.items()}
    frame = frame.drop(columns=[f"{y}_low", f"{y}_high"], errors="ignore").assign(
        **{x: frame[x].astype("category").cat.set_categories([*styles], ordered=True)}
    )
    # Without jitter: seaborn would take it from numpy's global generator.
    sns.stripplot(frame, x=x, y=y, hue=x, palette=palette, jitter=False, alpha=0.45, size=5, legend=False, ax=ax)
    for place, (level, look) in enumerate(styles.items()):
        part = frame[frame[x] == level].assign(place=place + 0.22)
        sns.lineplot(
            part, x="place", y=y, estimator="mean", errorbar=_t_interval, err_style="bars", err_kws=_ERRORS, ax=ax,
            **{**look.line(), "linestyle": "none"},
        )  # fmt: skip
    ax.set_xticks(range(len(styles)), [look.label for look in styles.values()])
    ax.grid(visible=False, axis="x")
    ax.set(xlabel="", **labels)


def log_ticks(ax: Axes, steps: Sequence[int] = (1, 2, 5)) -> None:
    """Use a logarithmic x axis with plain numbers at `steps` times 1, 10, 100, …."""
    from matplotlib import ticker

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def legend_below(drawing: Figure, *axes: Axes, columns: int = 4) -> None:
    """Put one legend for several axes below them, each label once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    with style.use():
        drawing.legend([*found.values()], [*found], loc="outside lower center", ncols=columns)
