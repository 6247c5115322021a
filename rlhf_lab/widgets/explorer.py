"""Explorers: interactive pictures made of controls, a pure function from their values to a picture, and a view.

    def picture(beta: float, prompt: int) -> Picture: ...

    Explorer(picture, {"beta": Slider(0.5, 0.01, 100, log=True, label="β"), "prompt": Choice(...)}, title="…")

The function contains the mathematics and is tested as a function. Whenever a control moves, the explorer calls it with
the values of all controls and passes the result to the view. Nothing is stored in the notebook's global variables, so a
later cell may use any name again.
"""

from __future__ import annotations

import base64
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import torch
import traitlets
from torch import Tensor

from rlhf_lab import language
from rlhf_lab.errors import LabError, check_positive, check_responses_axis, count_of
from rlhf_lab.figures import style
from rlhf_lab.figures.picture import Picture, draw, failed
from rlhf_lab.language import tr
from rlhf_lab.widgets.prefetch import Ahead, seen_by_page

_HERE = Path(__file__).parent
_WIDE = {"description_width": "initial"}


class Chart(anywidget.AnyWidget):
    """The view, which draws a picture in the browser. See `chart.js`."""

    _esm = _HERE / "chart.js"
    _css = _HERE / "chart.css"
    title = traitlets.Unicode().tag(sync=True)
    palette = traitlets.Dict().tag(sync=True)
    picture = traitlets.Dict().tag(sync=True)
    controls: Any = traitlets.List().tag(sync=True)


@dataclass(frozen=True)
class Slider:
    """A number between `low` and `high`.

    Attributes:
        value: the value at the start.
        low: the minimum; above zero if `log` is set.
        high: the maximum.
        label: name and unit.
        step: distance between two stops; for a log slider, in powers of ten. None makes about a hundred stops. The
            step is changed a little if `value` would lie between two stops.
        log: equal steps multiply the value instead of adding to it.
        whole: only whole numbers.
    """

    value: float
    low: float
    high: float
    label: str
    step: float | None = None
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high or self.low == self.high:
            raise LabError(f"Slider {self.label!r} needs low ≤ value ≤ high and low < high: {self}.")
        if self.log:
            check_positive(self.low, f"The low end of the log slider {self.label!r}")

    def widget(self) -> ipywidgets.Widget:
        """A new ipywidget, which arrow keys, Page Up, Page Down, Home and End move."""
        wide = ipywidgets.Layout(width="26em", max_width="100%")
        common = {"description": self.label, "continuous_update": True, "style": _WIDE, "layout": wide}
        if self.whole:
            return ipywidgets.IntSlider(
                value=round(self.value), min=round(self.low), max=round(self.high), step=round(self.step or 1), **common
            )
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, self.value))
        step = self.step or (high - low) / 100
        # The page counts its stops from the low end and moves a value between two of them to the nearer one. A slider
        # would then open elsewhere than at `value`, so `value` is made a stop.
        if value > low:
            step = (value - low) / max(round((value - low) / step), 1)
        kind = ipywidgets.FloatLogSlider if self.log else ipywidgets.FloatSlider
        return kind(value=self.value, min=low, max=high, step=step, readout_format=".3g", **common)

    def grid(self, stops: int) -> list[Any]:
        """At most `stops` values from end to end; `value` is always among them."""
        if self.whole:
            step = max(round(self.step or 1), math.ceil((self.high - self.low) / max(stops - 1, 1)))
            return sorted({*range(round(self.low), round(self.high) + 1, step), round(self.high), round(self.value)})
        ends = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        marks = [ends[0] + (ends[1] - ends[0]) * i / (stops - 1) for i in range(stops)] if stops > 1 else []
        values = [float(f"{10**m if self.log else m:.6g}") for m in marks]
        if not any(math.isclose(v, self.value, rel_tol=1e-5) for v in values):
            values.append(self.value)
        return sorted(min(max(v, self.low), self.high) for v in values)


@dataclass(frozen=True)
class Choice:
    """One of several named values.

    Attributes:
        value: the value at the start.
        options: the name shown → the value passed on. A tuple is a name of several parts, which are translated one by
            one.
        label: what is chosen.
    """

    value: Any
    options: Mapping[Any, Any]
    label: str

    def __post_init__(self) -> None:
        if self.value not in list(self.options.values()):
            raise LabError(f"Choice {self.label!r}: {self.value!r} is none of {list(self.options.values())}.")

    def widget(self) -> ipywidgets.Widget:
        """A new drop-down list."""
        wide = ipywidgets.Layout(width="auto", max_width="100%")
        options = list(zip(self.names(), self.options.values(), strict=True))
        return ipywidgets.Dropdown(options=options, value=self.value, description=self.label, style=_WIDE, layout=wide)

    def names(self) -> list[str]:
        """The names of the options in the present language."""
        return ["".join(map(tr, (key,) if isinstance(key, str) else key)) for key in self.options]

    def grid(self, stops: int) -> list[Any]:
        """All values, whatever `stops` is."""
        return list(self.options.values())


@dataclass(frozen=True)
class Toggle:
    """A checkbox: yes or no."""

    value: bool
    label: str

    def widget(self) -> ipywidgets.Widget:
        """A new checkbox."""
        return ipywidgets.Checkbox(value=self.value, description=self.label, indent=False)

    def grid(self, stops: int) -> list[Any]:
        """Both values."""
        return [False, True]


Control = Slider | Choice | Toggle


class Explorer:
    """Controls, a pure function of their values, and its picture. As a cell's last line it displays itself.

    Attributes:
        controls: the specifications, by the function's argument names.
        inputs: the ipywidgets, by the same names; setting `inputs["beta"].value` moves the picture.
        chart: the view.
        widget: controls and view together, for use in a larger layout.
        title: above the picture, in English.
        advice: above the controls, in English.
    """

    def __init__(
        self, compute: Callable[..., Picture], controls: Mapping[str, Control], title: str, advice: str = ""
    ) -> None:
        """Build the explorer with the initial values of its controls.

        Args:
            compute: takes the value of every control by name and returns a `Picture`. It must be pure: the same
                values give the same picture. The message of a `LabError` is shown in place of the picture. Any
                other error is a bug and is raised.
            controls: by argument name, in the order in which they are shown.
            title: above the picture.
            advice: one line above the controls that says what to try.

        Raises:
            LabError: no control.
        """
        if not controls:
            raise LabError("An explorer needs at least one control.")
        self.compute, self.controls, self.title = compute, dict(controls), title
        self._language, self.advice, self._advice = "en", advice, ipywidgets.Label(advice)
        self.inputs: dict[str, Any] = {name: control.widget() for name, control in controls.items()}
        for box in self.inputs.values():
            box.tooltip = box.description  # without one, the page shows "null"
        # For each control, the model that the page reads and the name under which the model stores the value.
        seen = [
            [name, box.model_id, "index" if isinstance(box, ipywidgets.Dropdown) else "value"]
            for name, box in self.inputs.items()
        ]
        self.chart = Chart(title=title, palette=palette(), picture=self._message(self.values), controls=seen)
        self._ahead = Ahead(self.inputs, self._send_ahead)
        for name, box in self.inputs.items():
            box.observe(functools.partial(self._update, name), names="value")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", width="100%")
        parts: list[Any] = [self._advice] if advice else []
        self.widget = ipywidgets.VBox([*parts, ipywidgets.Box(list(self.inputs.values()), layout=row), self.chart])

    @property
    def language(self) -> str:
        """The language that the explorer shows, one of `rlhf_lab.language.LANGUAGES`; English at the start."""
        return self._language

    @language.setter
    def language(self, to: str) -> None:
        values = self.values
        with language.use(to):
            self._language, self._advice.value = to, tr(self.advice)
            for name, control in self.controls.items():
                self.inputs[name].description = self.inputs[name].tooltip = tr(control.label)
                if isinstance(control, Choice):  # new options select the first one
                    self.inputs[name].options = list(zip(control.names(), control.options.values(), strict=True))
                    self.inputs[name].value = values[name]
        self.chart.picture = self._message(values)

    @property
    def values(self) -> dict[str, Any]:
        """The present values of the controls."""
        return {name: box.value for name, box in self.inputs.items()}

    def picture(self, **values: Any) -> Picture:
        """The picture at `values`, in the present language of `rlhf_lab.language`.

        Controls that are not named keep their present values.
        """
        try:
            return self.compute(**{**self.values, **values})
        except LabError as error:
            return failed(str(error))

    @property
    def text(self) -> str:
        """The present state in words."""
        return str(self.chart.picture["text"])

    def _message(self, values: dict[str, Any]) -> dict[str, Any]:
        """The picture at `values` for the page, and the values as the page knows them."""
        at = {name: seen_by_page(box, values[name]) for name, box in self.inputs.items()}
        with language.use(self._language):
            shown = {"title": tr(self.title), "language": self._language, "at": at}
            return {**self.picture(**values).to_dict(), **shown}

    def _update(self, name: str, change: Any) -> None:
        # A single assignment sends a single message, so that picture, numbers and words change together.
        self.chart.picture = self._message(self.values)
        self._ahead.moved(name)

    def _send_ahead(self, values: dict[str, Any]) -> None:
        self.chart.send({"ahead": self._message(values)})

    def states(self, stops: int = 21) -> dict[str, Any]:
        """Every state on a grid of the controls in the present language, as JSON data for a page without a kernel.

        Args:
            stops: at most so many values of each slider; choices and toggles keep all of theirs.

        Returns:
            `title`, `palette`, `controls` (name, label, kind, values, names, first: the place of the value at
            the start), `pictures`: one for each combination, the last control running fastest.
        """
        described, axes = [], []
        for name, control in self.controls.items():
            axes.append(control.grid(stops))
            names = [_written(v) for v in axes[-1]]
            if isinstance(control, Choice):
                names = control.names()
            elif isinstance(control, Toggle):
                names = [tr("no"), tr("yes")]
            described.append(
                {
                    "name": name,
                    "label": tr(control.label),
                    "kind": type(control).__name__.lower(),
                    "names": names,
                    "first": axes[-1].index(_nearest(axes[-1], control.value)),
                }
            )
        pictures = [
            self.picture(**dict(zip(self.controls, values, strict=True))) for values in itertools.product(*axes)
        ]
        used = {key for picture in pictures for key in picture.styles()}
        return {
            "title": tr(self.title),
            "palette": {key: look for key, look in palette().items() if key in used},
            "controls": described,
            "pictures": [picture.to_dict() for picture in pictures],
        }

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """The live widget, and a static picture with its text for pages without a kernel."""
        bundle = dict(self.widget._repr_mimebundle_() or {})
        now = self.picture()
        bundle["image/png"] = base64.b64encode(
            style.png(draw(now, f"{self.title} (static: run the cell to use the controls)"), dpi=96)
        ).decode()
        bundle["text/plain"] = f"{self.title}: {now.text}"
        return bundle, {"image/png": {"alt": now.text}}


def by_prompt(
    log_ref: Tensor, reward: Tensor, responses: Sequence[Any], prompts: Sequence[str]
) -> tuple[Tensor, Tensor, list[str]]:
    """Check what an explorer is given, and return its tensors with one row for each prompt, and the prompts' names.

    Args:
        log_ref: log-probabilities of the responses, (K,) or (X, K), nats.
        reward: of the same shape, or one that broadcasts with it.
        responses: K names.
        prompts: X names; empty for x1, x2, …

    Returns:
        log_ref and reward, (X, K) in float64, and X names.

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    log_ref, reward = (t.detach().double().reshape(-1, t.shape[-1]) for t in torch.broadcast_tensors(log_ref, reward))
    rows, width = log_ref.shape
    names = list(prompts) or [f"x{i + 1}" for i in range(rows)]
    if len(names) != rows or len(responses) != width:
        raise LabError(
            f"The tensors have {count_of(rows, 'prompt')} and {count_of(width, 'response')}, but the names are those "
            f"of {count_of(len(names), 'prompt')} and {count_of(len(responses), 'response')}."
        )
    return log_ref, reward, names


def palette() -> dict[str, dict[str, str]]:
    """The styles as data for the view."""
    return {
        key: {"light": look.light, "dark": look.dark, "marker": look.marker, "dash": look.dash}
        for key, look in style.STYLES.items()
    }


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _nearest(values: Sequence[Any], value: Any) -> Any:
    if value in values:
        return value
    return min(values, key=lambda v: abs(v - value))
