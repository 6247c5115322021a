"""A widget that connects the page with the kernel: it answers pings and passes on the page's language."""

from __future__ import annotations

from typing import Any

import anywidget

from rlhf_lab.widgets.explorer import Explorer


class Heartbeat(anywidget.AnyWidget):
    """Answers every `{"ping": n}` of the page with `{"pong": n}`, so that the page notices when the kernel has died.

    A message may also contain the page's language, which all explorers then show. The widget is invisible.

    Attributes:
        explorers: the explorers of the page.
    """

    _esm = "export default { render() {} };"

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.explorers: list[Explorer] = []
        self.on_msg(self._answer)

    def _answer(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        for explorer in self.explorers:
            if explorer.language != content.get("language", explorer.language):
                explorer.language = content["language"]
        if "ping" in content:
            self.send({"pong": content["ping"]})
