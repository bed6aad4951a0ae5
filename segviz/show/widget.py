"""A View as a notebook widget: the same renderer, with Python on the other side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

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

    A widget lives with its kernel. Notebooks that are not trusted, and nbconvert where the notebook holds no widget
    state, show the view's static HTML. A trusted notebook opened again in JupyterLab waits for the widget until its
    cell runs again.
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
        return with_fallback(super()._repr_mimebundle_(**kwargs), self.view.fallback)


def with_fallback(bundle: Any, fallback: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A widget's MIME bundle and static HTML for where none runs: GitHub, nbconvert, a notebook not trusted."""
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
    return {**data, "text/html": fallback}, metadata
