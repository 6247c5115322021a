"""A widget that answers the page's pings, so that the page notices when the kernel has died."""

from __future__ import annotations

from typing import Any

import anywidget


class Heartbeat(anywidget.AnyWidget):
    """Answers every `{"ping": n}` of the page with `{"pong": n}`. It is invisible."""

    _esm = "export default { render() {} };"

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.on_msg(self._answer)

    def _answer(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if "ping" in content:
            self.send({"pong": content["ping"]})
