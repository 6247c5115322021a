"""Pictures computed before they are asked for, while the hand rests.

A slider's next stop is nearly always beside its last one. When nothing has moved for a moment, the pictures a few
stops away are computed by the explorer's own function and sent to the page, which shows one the instant a control
stands there (`chart.js`); the kernel's answer to the move itself then finds it already drawn. A move that leaps
further takes the plain way there and back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import ipywidgets

PAUSE = 0.04
"""Seconds of rest before anything is computed ahead."""
REACH = 5
"""Stops to either side. Page Up and Page Down move a slider by five."""


def stops_near(box: ipywidgets.Widget, reach: int = REACH) -> list[Any]:
    """Values that `box` takes a few moves away from the one it has, nearest first."""
    if isinstance(box, ipywidgets.Checkbox):
        return [not box.value]
    if isinstance(box, ipywidgets.Dropdown):
        return [value for value in box._options_values if value != box.value]
    log = isinstance(box, ipywidgets.FloatLogSlider)
    here = math.log(box.value, box.base) if log else box.value
    places = [here + sign * k * box.step for k in range(1, reach + 1) for sign in (1, -1)]
    # The last stop may lie less than a step away.
    kept = list(dict.fromkeys(min(max(place, box.min), box.max) for place in places))
    values = [box.base**place if log else place for place in kept if not math.isclose(place, here, abs_tol=1e-12)]
    return [round(v) for v in values] if isinstance(box, ipywidgets.IntSlider) else values


def seen_by_page(box: ipywidgets.Widget, value: Any) -> Any:
    """What the page knows of `box` at `value`: a drop-down's place in its list, everything else itself."""
    return list(box._options_values).index(value) if isinstance(box, ipywidgets.Dropdown) else value


class Ahead:
    """One picture at a time, so that a move in between waits for one at most."""

    def __init__(self, inputs: dict[str, Any], compute: Callable[[dict[str, Any]], None]) -> None:
        """Watch nothing yet; `moved` starts the clock.

        Args:
            inputs: the explorer's controls by name.
            compute: makes the picture at these values, and sends it.
        """
        self.inputs, self.compute = inputs, compute
        self._todo: list[dict[str, Any]] = []
        self._handle: asyncio.Handle | None = None

    def moved(self, name: str) -> None:
        """The control `name` has moved: forget what was planned, plan anew. Without an event loop, nothing."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._handle is not None:
            self._handle.cancel()
        here = {key: box.value for key, box in self.inputs.items()}
        self._todo = [{**here, name: value} for value in stops_near(self.inputs[name])]
        self._handle = loop.call_later(PAUSE, self._one, loop)

    def _one(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        if not self._todo:
            return
        try:
            self.compute(self._todo.pop(0))
        except Exception:
            # Nobody has asked yet. If somebody goes there, the error is raised where it is seen.
            self._todo = []
            return
        self._handle = loop.call_soon(self._one, loop)
