"""The widget behind `segviz.explore`: controls, a list, and every view of the rollout that is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import ipywidgets
import traitlets

from segviz.notebook.controls import Controls
from segviz.notebook.listing import PAGE, Filter, listing, narrow, ordered
from segviz.notebook.tabs import Tabs
from segviz.parts.credit import key_of
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.widget import ViewWidget, display, with_still


class Explorer(ipywidgets.VBox):
    """What `explore` returns; arguments as there. `rows` are those that fit, `rollout` is the open one."""

    selection = traitlets.Dict()  #: {key, token, segment, node}: what the reader chose last; set it to choose

    def __init__(self, runs: Sequence[Run], sort: str = "step", descending: bool = False,
                 rollout: tuple[int, int, int] | None = None, **start: Any):  # fmt: skip
        if not runs:
            raise ValueError("explore needs at least one run: sv.explore(sv.open('runs/…'))")
        if unknown := set(start) - {field.name for field in fields(Filter)}:
            there = ", ".join([field.name for field in fields(Filter)] + ["sort", "descending", "rollout"])
            raise TypeError(f"explore knows no {', '.join(sorted(unknown))}; there are: {there}")
        self.runs, self.run = list(runs), runs[0]
        self.filter, self.sort, self.descending = Filter(**start), sort, descending
        self.rows: list[Mapping[str, Any]] = []
        self._places: dict[str, int] = {}  # step/group/sample -> where in `rows`
        self.rollout: Rollout | None = None
        self._recorded: list[Mapping[str, Any]] = []
        self._page, self._problem = 0, ""
        self._list = ViewWidget(listing([]))
        self._list.on_open(self.read)
        self._list.on_ask(self._answer)
        self._controls = Controls(self.filter, self.narrow)
        self._tabs = Tabs(self.read)
        self._back = ipywidgets.Button(description="previous", icon="chevron-up", tooltip="the row above")
        self._forth = ipywidgets.Button(description="next", icon="chevron-down", tooltip="the row below")
        self._again = ipywidgets.Button(description="look for new", icon="refresh", tooltip="read what training wrote")
        self._back.on_click(lambda _: self.step(-1))
        self._forth.on_click(lambda _: self.step(1))
        self._again.on_click(lambda _: self.refresh())
        self._chooser = None
        if len(self.runs) > 1:
            named = [(f"{r.name}, {r.method_label}", i) for i, r in enumerate(self.runs)]
            self._chooser = ipywidgets.Dropdown(description="run", options=named)
            self._chooser.observe(lambda change: self._use(self.runs[change["new"]]), "value")
        buttons = ipywidgets.HBox([self._back, self._forth, self._again])
        parts = [self._controls.box, self._list, buttons, self._tabs]
        super().__init__([self._chooser, *parts] if self._chooser else parts)
        self.add_class("segviz-whole")
        traitlets.link((self, "selection"), (self._tabs, "selection"))
        self._load()
        if rollout:
            self.read(*rollout)
        elif self.rows:
            self._open_row(0)
        self._show_list()

    # --- what a program may call ---------------------------------------------------------------------------------

    def narrow(self, **wanted: Any) -> None:
        """Change conditions of the filter and keep the others: `narrow(verdict="wrong", steps=None)`. Opens the first
        row that fits, unless the open one still does.

        Raises:
            TypeError, ValueError: as `Filter`.
        """
        self.filter = replace(self.filter, **wanted)
        self._controls.show(self.filter)
        self._find()
        self._open_first()
        self._show_list()

    def order(self, column: str, descending: bool = False) -> None:
        """Sort the list by a column of `segviz.notebook.listing.COLUMNS`.

        Raises:
            ValueError: no such column.
        """
        self._set(ordered(self.rows, column, descending))
        self.sort, self.descending, self._page = column, descending, 0
        self._show_list()

    def read(self, step: int, group: int, sample: int) -> None:
        """Open a rollout. One that is not in the list, or cannot be read, is said to be so."""
        try:
            self.rollout, self._problem = self.run.rollout(step, group, sample), ""
        except (KeyError, ValueError, OSError) as error:
            why = error.args[0] if isinstance(error, KeyError) else str(error)
            self.rollout, self._problem = None, f"Rollout {step}/{group}/{sample} cannot be shown: {why}"
        place = self._places.get(f"{step}/{group}/{sample}")
        if place is not None:
            self._page = place // PAGE
        self._tabs.show(self.run, self.rollout, self._problem)
        self._show_list()

    def step(self, by: int = 1) -> None:
        """Open the row `by` places further down the list; at an end it stays there."""
        here = self._places.get(self.current)
        if self.rows:
            self._open_row(min(max(0, 0 if here is None else here + by), len(self.rows) - 1))

    def refresh(self) -> None:
        """Read what training wrote since; what is open stays open."""
        self._load()
        self._open_first()
        self._show_list()

    @property
    def current(self) -> str:
        """step/group/sample of the open rollout, "" where none is."""
        return key_of(self.rollout.row) if self.rollout else ""

    # --- the rest ------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._recorded = list(self.run.rollouts)
        self._controls.fit(self._recorded, self.filter)
        self._find()

    def _find(self) -> None:
        self._set(ordered(narrow(self.run, self.filter, self._recorded), self.sort, self.descending))
        self._page = self._places.get(self.current, 0) // PAGE

    def _set(self, rows: list[Mapping[str, Any]]) -> None:
        self.rows, self._places = rows, {key_of(row): i for i, row in enumerate(rows)}

    def _open_row(self, place: int) -> None:
        row = self.rows[place]
        self.read(row["step"], row["group"], row["sample"])

    def _open_first(self) -> None:
        if self.rows and self.current not in self._places:
            self._open_row(0)

    def _use(self, run: Run) -> None:
        self.run, self.rollout = run, None
        self._load()
        self._tabs.show(run, None, "")
        self._open_first()
        self._show_list()

    def _show_list(self) -> None:
        place = self._places.get(self.current)
        self._back.disabled = not self.rows or place == 0
        self._forth.disabled = not self.rows or place == len(self.rows) - 1
        empty = "No rollout fits all of these." if self._recorded else f"{self.run.name} has no recorded rollouts yet."
        self._list.show(
            listing(
                self.rows, self._page, self.sort, self.descending, self.current, len(self._recorded), empty,
                notices=self.run.problems,
            )
        )  # fmt: skip

    def _answer(self, wish: Mapping[str, Any]) -> None:
        if isinstance(wish.get("page"), int):
            self._page = min(max(0, wish["page"]), max(0, len(self.rows) - 1) // PAGE)
            self._show_list()
        elif isinstance(wish.get("sort"), str):
            again = wish["sort"] == self.sort
            self.order(wish["sort"], not self.descending if again else False)
        elif wish.get("step") in (1, -1) and self.rows:
            here = self._places.get(str(wish.get("from")), self._places.get(self.current, 0))
            self._open_row(min(max(0, here + wish["step"]), len(self.rows) - 1))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return with_still(super()._repr_mimebundle_(**kwargs), self._list.view.fallback + self._tabs.fallback)

    def _ipython_display_(self) -> None:
        display(self, *self._repr_mimebundle_())
