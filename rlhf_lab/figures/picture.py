"""Pictures as plain data, which explorers return and two views draw.

A `Picture` consists of panels, a row of numbers and a sentence. It says what is drawn (bars of π_ref over these
responses) and with which style. It has two views: `chart.js` draws it in the browser after every move of a control, and
`draw` draws it with matplotlib for stored notebooks and printed pages. Because a picture is data, it can be tested,
stored, and written for all states of a page that runs without Python.

Numbers that are not finite are allowed everywhere and are not drawn, because an explorer must show a picture for every
combination of its controls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import torch

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float] | torch.Tensor


def _floats(values: Values) -> tuple[float, ...]:
    if isinstance(values, torch.Tensor):
        values = values.detach().reshape(-1).tolist()
    return tuple(float(v) for v in values)


def reward_names(responses: Sequence[str], reward: torch.Tensor) -> tuple[str, ...]:
    """The names of bars: each response with its reward, rounded to two decimals, in a second line."""
    rounded = [round(r, 2) for r in reward.tolist()]
    return tuple(
        f"{tr(name)}\nr = {typeset(r, '+g') if r else '0'}" for name, r in zip(responses, rounded, strict=True)
    )


def _json(values: Iterable[float]) -> list[float | None]:
    # Six digits are enough for a screen and halve the size of a page with a thousand states.
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: with its unit in brackets, `"KL(π‖π_ref) [nats]"`.
        low: its lower end; None fits it to the data. Set both ends if the range of the data is known,
            because an axis that changes with a slider hides the change of the data.
        high: its upper end.
        log: logarithmic; `low` and `high` must then be above zero.
        names: the names of the positions 0, 1, 2, … of a categorical axis; empty for numbers. A name may contain
            line breaks.
    """

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bars:
    """Bars over a categorical axis; several `Bars` in a panel are side by side."""

    style: str
    height: Values
    label: str | None = None


@dataclass(frozen=True)
class Curve:
    """A line through points."""

    style: str
    x: Values
    y: Values
    label: str | None = None
    dash: str | None = None
    """`-`, `--`, `-.` or `:`; None takes that of the style."""


@dataclass(frozen=True)
class Band:
    """The area between two curves, such as an interval or the area under a curve."""

    style: str
    x: Values
    low: Values
    high: Values
    label: str | None = None


@dataclass(frozen=True)
class Points:
    """Markers, with intervals if `low` and `high` are given."""

    style: str
    x: Values
    y: Values
    label: str | None = None
    low: Values | None = None
    high: Values | None = None
    big: bool = False
    """Draw the points large, to mark the most important one."""


@dataclass(frozen=True)
class Rule:
    """A straight line across the panel at one value of an axis, with a name."""

    style: str
    at: float
    axis: Literal["x", "y"] = "x"
    label: str = ""
    dash: str = "--"


Layer = Bars | Curve | Band | Points | Rule


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `width` is its share of the row."""

    title: str
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]
    width: float = 1.0


@dataclass(frozen=True)
class Readout:
    """A number below the panels: its symbol, value and unit."""

    symbol: str
    value: float
    unit: str = ""
    digits: int = 3

    @property
    def text(self) -> str:
        """The value as text. Rounded zeros have no sign, and infinity is written as ∞."""
        if math.isnan(self.value):
            return tr("undefined")
        if math.isinf(self.value):
            return "−∞" if self.value < 0 else "∞"
        if self.value != 0 and not 1e-3 <= abs(self.value) < 1e5:
            return typeset(self.value, ".2e")
        return typeset(self.value, f".{self.digits}f")


@dataclass(frozen=True)
class Picture:
    """A picture: text, panels and numbers.

    Attributes:
        text: the state in words, as an alternative to the picture.
        panels: side by side if there is space, else one below the other.
        numbers: the numbers of this state.
    """

    text: str
    panels: tuple[Panel, ...] = ()
    numbers: tuple[Readout, ...] = ()
    failed: bool = field(default=False)
    """True if the compute function refused its input; `text` then gives the reason."""

    def to_dict(self) -> dict[str, Any]:
        """The picture in the present language as JSON data for `chart.js`. NaN and infinity become None."""
        return {
            "text": tr(self.text),
            "failed": self.failed,
            "panels": [_panel_dict(panel) for panel in self.panels],
            "numbers": [{"symbol": tr(n.symbol), "text": n.text, "unit": tr(n.unit)} for n in self.numbers],
        }

    def styles(self) -> set[str]:
        """The style keys it uses."""
        return {layer.style for panel in self.panels for layer in panel.layers}


def _panel_dict(panel: Panel) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for layer in panel.layers:
        item: dict[str, Any] = {"kind": type(layer).__name__.lower(), "style": layer.style}
        for name in ("height", "x", "y", "low", "high"):
            values = getattr(layer, name, None)
            if values is not None:
                item[name] = _json(_floats(values))
        for name in ("dash", "axis", "big"):
            if getattr(layer, name, None) is not None:
                item[name] = getattr(layer, name)
        if isinstance(layer, Rule):
            item["at"] = _json([layer.at])[0]
        item["label"] = tr(style.label(layer.style) if layer.label is None else layer.label)
        layers.append(item)
    (x_low, x_high), (y_low, y_high) = limits(panel)
    return {
        "title": tr(panel.title),
        "width": panel.width,
        "x": _axis_dict(panel.x, x_low, x_high),
        "y": _axis_dict(panel.y, y_low, y_high),
        "layers": layers,
    }


def _axis_dict(axis: Axis, low: float, high: float) -> dict[str, Any]:
    names = [tr(name) for name in axis.names]
    return {"label": tr(axis.label), "low": low, "high": high, "log": axis.log, "names": names}


def limits(panel: Panel) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of both axes: those that are set, or else such that all finite data are visible."""
    xs: list[float] = []
    ys: list[float] = []
    for layer in panel.layers:
        if isinstance(layer, Bars):
            ys += [0.0, *_floats(layer.height)]
        elif isinstance(layer, Rule):
            (xs if layer.axis == "x" else ys).append(float(layer.at))
        else:
            xs += _floats(layer.x)
            for name in ("y", "low", "high"):
                values = getattr(layer, name, None)
                ys += _floats(values) if values is not None else ()
    grounded = any(isinstance(layer, Bars) for layer in panel.layers)
    return _ends(panel.x, xs), _ends(panel.y, ys, grounded)


def _ends(axis: Axis, data: list[float], grounded: bool = False) -> tuple[float, float]:
    if axis.names:
        return -0.5, len(axis.names) - 0.5
    usable = [v for v in data if math.isfinite(v)]
    if axis.log:
        return _log_ends(axis, [v for v in usable if v > 0])
    low, high = (min(usable), max(usable)) if usable else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    # Bars start at zero: no space is left below them.
    low = (low if grounded and low == 0 else low - room) if axis.low is None else axis.low
    high = high + room if axis.high is None else axis.high
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _log_ends(axis: Axis, usable: list[float]) -> tuple[float, float]:
    if not all(end is None or end > 0 for end in (axis.low, axis.high)):
        raise LabError(f"Axis {axis.label!r} is logarithmic, so its ends must be above 0.")
    low, high = (min(usable), max(usable)) if usable else (0.1, 1.0)
    low, high = axis.low or low / 1.2, axis.high or high * 1.2
    return (low, high) if low < high else (low / 2, low * 2)


def failed(message: str) -> Picture:
    """The picture of a refused state, which contains only the reason."""
    return Picture(text=message, failed=True)


# --- the view without a browser ---------------------------------------------------------------------------


def show(text: str, *panels: Panel, title: str = "", width: float = 10.0, height: float = 4.4) -> style.Shown:
    """`panels` side by side for a notebook, with `text`, which says in words what they show, below them.

    Arguments and sizes are those of `draw`.
    """
    return style.show(draw(Picture(text, panels), title, width, height), text)


def draw(picture: Picture, title: str = "", width: float = 10.0, height: float = 4.4) -> Figure:
    """Draw `picture` with matplotlib, as `chart.js` draws it in a browser.

    Args:
        picture: the picture.
        title: above all panels.
        width: inches.
        height: inches.
    """
    drawing = style.figure(width, height)
    with style.use():
        if title:
            drawing.suptitle(title, x=0.01, ha="left", weight="bold")
        if not picture.panels:
            drawing.text(0.5, 0.5, picture.text, ha="center", va="center", wrap=True)
        else:
            shares = [panel.width for panel in picture.panels]
            axes = drawing.subplots(1, len(shares), width_ratios=shares, squeeze=False)[0]
            for ax, panel in zip(axes, picture.panels, strict=True):
                draw_panel(ax, panel)
        if picture.numbers:
            line = "      ".join(f"{n.symbol} = {n.text}{f' {n.unit}' if n.unit else ''}" for n in picture.numbers)
            drawing.supxlabel(line, x=0.01, ha="left", fontsize=11)
    return drawing


@style.use()
def draw_panel(ax: Axes, panel: Panel) -> None:
    """Draw one panel on `ax`."""
    x_ends, y_ends = limits(panel)
    if panel.x.log:
        ax.set_xscale("log")
    if panel.y.log:
        ax.set_yscale("log")
    bars = [layer for layer in panel.layers if isinstance(layer, Bars)]
    for layer in panel.layers:
        _draw_layer(ax, layer, bars)
    figure: Any = ax.get_figure(root=True)
    letters = figure.get_figwidth() * 9 * _share(ax)  # so many fit beside each other
    if panel.x.names:
        room = letters / len(panel.x.names)
        folded = ["\n".join(w for line in n.split("\n") for w in wrap(line, max(int(room), 6))) for n in panel.x.names]
        ax.set_xticks(range(len(folded)), folded)
        ax.grid(visible=False, axis="x")
    ax.set(xlabel=panel.x.label, ylabel=panel.y.label, xlim=x_ends, ylim=y_ends)
    _, names = ax.get_legend_handles_labels()
    if len(names) < 2:
        ax.set_title(panel.title)
        return
    # The legend is between title and data, as in the browser, where it covers nothing.
    sizes, room = [len(name) + 4 for name in names], 1.2 * letters  # with the handles; the legend's font is smaller
    one_row = sum(sizes) <= room
    columns = len(names) if one_row else max(1, int(room / max(sizes)))
    ax.set_title(panel.title, pad=10 + 18 * math.ceil(len(names) / columns))
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.1, columnspacing=1.2,
        handlelength=1.4 if one_row else 2.2, borderpad=0.2,
    )  # fmt: skip


def _draw_layer(ax: Axes, layer: Layer, bars: list[Bars]) -> None:
    look = style.of(layer.style)
    name = look.label if layer.label is None else layer.label
    if isinstance(layer, Bars):
        span = 0.8 / len(bars)
        heights = _floats(layer.height)
        at = [i - 0.4 + (bars.index(layer) + 0.5) * span for i in range(len(heights))]
        ax.bar(at, heights, span * 0.92, color=look.light, label=name)
    elif isinstance(layer, Curve):
        dash = look.dash if layer.dash is None else layer.dash
        ax.plot(_floats(layer.x), _floats(layer.y), dash, color=look.light, label=name)
    elif isinstance(layer, Band):
        ax.fill_between(
            _floats(layer.x), _floats(layer.low), _floats(layer.high), color=look.light, alpha=0.2, label=name
        )
    elif isinstance(layer, Points):
        x, y = _floats(layer.x), _floats(layer.y)
        if layer.low is not None and layer.high is not None:
            ax.vlines(x, _floats(layer.low), _floats(layer.high), color=look.light)
        ax.plot(x, y, look.marker, color=look.light, ms=16 if layer.big else 7, label=name, zorder=5)
    else:
        across = ax.axvline if layer.axis == "x" else ax.axhline
        across(layer.at, color=look.light, ls=layer.dash, lw=1.5, label=layer.label or None)


def _share(ax: Axes) -> float:
    """The part of the figure's width that `ax` has."""
    spec = ax.get_subplotspec()
    if spec is None:
        return 1.0
    ratios: Any = spec.get_gridspec().get_width_ratios() or [1]
    return float(ratios[spec.colspan.start] / sum(ratios))
