"""Computes the pictures of an explorer's next stops in advance, while no control moves.

A slider usually moves to a neighbouring stop. When no control has moved for a moment, the pictures a few stops away are
computed by the explorer's function and sent to the page. The page shows such a picture as soon as a control reaches its
stop (`chart.js`), before the kernel has answered. A longer move waits for the kernel.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import ipywidgets

PAUSE = 0.04
"""Seconds without a move before anything is computed in advance."""
REACH = 5
"""Number of stops to either side. Page Up and Page Down move a slider by five."""


def stops_near(box: ipywidgets.Widget, reach: int = REACH) -> list[Any]:
    """The values that `box` can reach in a few moves, nearest first."""
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
    """How the page stores `value` of `box`: a drop-down's value as its index, any other value unchanged."""
    return list(box._options_values).index(value) if isinstance(box, ipywidgets.Dropdown) else value


class Ahead:
    """Computes one picture at a time, so that a move waits for at most one of them."""

    def __init__(self, inputs: dict[str, Any], compute: Callable[[dict[str, Any]], None]) -> None:
        """Store the controls. Nothing is computed until `moved` is called.

        Args:
            inputs: the explorer's controls by name.
            compute: computes the picture at the given values and sends it.
        """
        self.inputs, self.compute = inputs, compute
        self._todo: list[dict[str, Any]] = []
        self._handle: asyncio.Handle | None = None

    def moved(self, name: str) -> None:
        """Plan the pictures around the present values, since control `name` moved; needs an event loop."""
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
            # The picture has not been requested. If it is, the error is raised again and shown.
            self._todo = []
            return
        self._handle = loop.call_soon(self._one, loop)
