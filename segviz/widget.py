"""A View as a notebook widget: the same renderer, with Python on the other side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import traitlets

from segviz.theme import css, script
from segviz.view import View, plain_json


class ViewWidget(anywidget.AnyWidget):
    """Shows a View and says what is chosen in it.

    `selection` is {key, token, segment, node}: what the reader chose last (key: "step/group/sample"). Set it to choose
    from Python; link it to another widget's to make both show the same place. `show(view)` replaces what is shown.
    `on_open(f)` calls f(step, group, sample) when the reader asks for another rollout.
    """

    _esm = script()
    _css = css()
    data = traitlets.Unicode().tag(sync=True)
    selection = traitlets.Dict().tag(sync=True)

    def __init__(self, view: View, **kwargs: Any):
        super().__init__(data=plain_json(view.data), **kwargs)
        self._openers: list[Callable[[int, int, int], Any]] = []
        self.on_msg(self._hear)

    def show(self, view: View) -> None:
        """Show another View in the same place."""
        self.data = plain_json(view.data)

    def on_open(self, opener: Callable[[int, int, int], Any]) -> None:
        """Call `opener(step, group, sample)` whenever the reader asks for a rollout."""
        self._openers.append(opener)

    def _hear(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        wanted = content.get("open")
        if isinstance(wanted, Mapping) and all(isinstance(wanted.get(n), int) for n in ("step", "group", "sample")):
            for opener in self._openers:
                opener(wanted["step"], wanted["group"], wanted["sample"])
