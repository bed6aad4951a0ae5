"""A View as a notebook widget: the same renderer, with Python on the other side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets
from ipywidgets import DOMWidget, Widget

from segviz.show.living import beside, still
from segviz.show.theme import css, script

if TYPE_CHECKING:
    from segviz.show.view import View
from segviz.show.encode import plain_json

_SELECTION = {"key": str, "token": int, "segment": int, "node": int}


class ViewWidget(anywidget.AnyWidget):
    """Shows a View and says what is chosen in it.

    `selection` is {key, token, segment, node}: what the reader chose last (key: "step/group/sample"). Set it to choose
    from Python; link it to another widget's to make both show the same place. `show(view)` replaces what is shown and
    keeps layer, selection and scrolling. `on_open(f)` calls f(step, group, sample) when the reader asks for another
    rollout, `on_ask(f)` calls f(wish) with what else a view may ask for (a list: another page, another order).

    A widget lives with its kernel. After it stands the view's still form, which shows itself where the widget cannot be
    drawn: in a notebook that was saved and opened again, on GitHub, in what nbconvert makes.
    """

    _esm = script()
    _css = css()
    data = traitlets.Unicode().tag(sync=True)
    selection = traitlets.Dict().tag(sync=True)

    def __init__(self, view: View, **kwargs: Any):
        super().__init__(data=plain_json(view.data), **kwargs)
        self.view = view
        self._openers: list[Callable[[int, int, int], Any]] = []
        self._askers: list[Callable[[Mapping[str, Any]], Any]] = []
        self.on_msg(self._hear)

    def show(self, view: View) -> None:
        """Show another View in the same place."""
        self.view = view
        self.data = plain_json(view.data)

    def on_open(self, opener: Callable[[int, int, int], Any]) -> None:
        """Call `opener(step, group, sample)` whenever the reader asks for a rollout."""
        self._openers.append(opener)

    def on_ask(self, asker: Callable[[Mapping[str, Any]], Any]) -> None:
        """Call `asker(wish)` whenever the reader asks the view for something else; what, says the view's module."""
        self._askers.append(asker)

    @traitlets.validate("selection")
    def _known_places(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        chosen = proposal["value"]
        for name, value in chosen.items():
            want = _SELECTION.get(name)
            if want is None or not (value is None or (isinstance(value, want) and not isinstance(value, bool))):
                raise traitlets.TraitError(
                    f"a selection has no {name}={value!r}; it is "
                    '{"key": "step/group/sample", "token": int, "segment": int, "node": int}, each optional'
                )
        return chosen

    def _hear(self, _: Any, content: Any, __: Any) -> None:
        content = content if isinstance(content, Mapping) else {}
        wanted, wish = content.get("open"), content.get("ask")
        if isinstance(wanted, Mapping) and all(isinstance(wanted.get(n), int) for n in ("step", "group", "sample")):
            for opener in self._openers:
                opener(wanted["step"], wanted["group"], wanted["sample"])
        if isinstance(wish, Mapping):
            for asker in self._askers:
                asker(wish)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return with_still(super()._repr_mimebundle_(**kwargs), self.view.fallback)

    def _ipython_display_(self) -> None:
        display(self, *self._repr_mimebundle_())


def with_still(bundle: Any, fallback: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A widget's MIME bundle and its still form, for where none runs: GitHub, nbconvert, a notebook not trusted."""
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
    return {**data, "text/html": still(fallback)}, metadata


def display(widget: DOMWidget, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Show a widget in the cell that runs: the widget, then its still form, which steps in where the widget is gone.

    What the cell showed when it ran before is closed, unless another cell shows it too: widgets are kept alive by their
    kernel, not by whoever made them.
    """
    from IPython.display import publish_display_data

    _shown_by(_cell(), widget)
    # empty where the widget's own place is not drawn: the still form comes once
    publish_display_data({**data, "text/html": ""}, dict(metadata))
    publish_display_data({"text/plain": "", "text/html": beside(data["text/html"])})


#: Cell -> (the execution that showed them, the widgets it showed).
_SHOWN: dict[str, tuple[str, list[DOMWidget]]] = {}


def _shown_by(cell: tuple[str, str] | None, widget: DOMWidget) -> None:
    if cell is None:
        return
    where, execution = cell
    before, widgets = _SHOWN.get(where, (execution, []))
    if before != execution:
        old, widgets = widgets, []
        _SHOWN[where] = (execution, widgets)
        kept = {id(one) for _, others in _SHOWN.values() for one in others} | {id(widget)}
        for one in old:
            if id(one) not in kept:
                close(one)
    if not any(one is widget for one in widgets):
        _SHOWN[where] = (execution, [*widgets, widget])


def close(widget: Widget) -> None:
    """Close a widget with all that it is made of: children, layouts, styles, and what it holds for later."""
    held = [getattr(widget, name, None) for name in ("layout", "style", "children")]
    held += [value for value in vars(widget).values() if isinstance(value, (Widget, dict))]
    widget.close()
    for some in held:
        several = some.values() if isinstance(some, dict) else some if isinstance(some, tuple) else (some,)
        for one in [one for one in several if isinstance(one, Widget) and one.comm is not None]:
            close(one)


def _cell() -> tuple[str, str] | None:
    """(cell, execution) that runs now; None outside a notebook that says so."""
    from IPython import get_ipython

    parent = getattr(get_ipython(), "get_parent", dict)()
    cell = (parent.get("metadata") or {}).get("cellId")
    return (str(cell), str(parent["header"]["msg_id"])) if cell else None
