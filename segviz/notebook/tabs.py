"""Tabs with every view that says something of one rollout, or of its run's answers over training, each made when it is
first looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets
import traitlets

from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.status import status
from segviz.show.view import View
from segviz.show.widget import ViewWidget
from segviz.views.compare import compare
from segviz.views.groups import group
from segviz.views.over_training import over_training
from segviz.views.ribbon import ribbon
from segviz.views.roles import roles
from segviz.views.staircase import staircase, states_of
from segviz.views.tree import tree


@dataclass(frozen=True)
class Tab:
    """A view of a rollout: its title, whether it says anything of this rollout, and what makes it."""

    title: str
    fits: Callable[[Run, Rollout], bool]
    make: Callable[[Run, Rollout], View]


def _ids(rollout: Rollout) -> tuple[int, int, int]:
    return rollout.row["step"], rollout.row["group"], rollout.row["sample"]


def _siblings(run: Run, rollout: Rollout) -> int:
    step, number, _ = _ids(rollout)
    return sum(row["group"] == number for row in run.rollouts_at(step))


def _judged(run: Run, rollout: Rollout) -> bool:
    kinds = [f"credit/{folder.name}" for folder in (run.path / "credit").glob("*/")]
    return any(run.has(kind, rollout.row["step"]) for kind in kinds)


TABS = (
    Tab("Ribbon", lambda run, rollout: True, lambda run, rollout: ribbon(rollout)),
    Tab("Value", lambda run, rollout: bool(states_of(rollout)[1]), lambda run, rollout: staircase(rollout)),
    Tab("Group", lambda run, rollout: _siblings(run, rollout) > 1, lambda run, rollout: group(run, *_ids(rollout)[:2])),
    Tab(
        "Tree",
        lambda run, rollout: run.has("nodes", rollout.row["step"]),
        lambda run, rollout: tree(run, *_ids(rollout)[:2]),
    ),
    Tab(
        "Methods",
        _judged,
        lambda run, rollout: compare(run.credits(*_ids(rollout))),
    ),
    Tab("Roles", lambda run, rollout: any(rollout.column("role_ids") or []), lambda run, rollout: roles(rollout)),
    Tab("Over training", lambda run, rollout: bool(run.eval_steps), lambda run, rollout: over_training(run)),
)


class Tabs(ipywidgets.Tab):
    """The views of one rollout. A view is made when its tab is first looked at."""

    selection = traitlets.Dict()

    def __init__(self, opener: Callable[[int, int, int], None]):
        self._opener = opener
        self._boxes: dict[str, ipywidgets.Box] = {}
        self._widgets: dict[str, ViewWidget] = {}
        self._stale: set[str] = set()
        self._there: list[Tab] = []
        self._source: tuple[Run, Rollout] | None = None
        super().__init__()
        self.observe(lambda _: self._draw(), "selected_index")

    def show(self, run: Run, rollout: Rollout | None, problem: str) -> None:
        """Show the views of a rollout; without one, the problem."""
        before = self._there[self.selected_index].title if self._there and self.selected_index is not None else ""
        self._source = (run, rollout) if rollout else None
        self._problem = problem or "No rollout is open."
        there = [tab for tab in TABS if rollout and tab.fits(run, rollout)] or [TABS[0]]
        self._stale = {tab.title for tab in there}
        if there != self._there:
            self._there = there
            titles = [tab.title for tab in there]
            for title in titles:
                self._boxes.setdefault(title, ipywidgets.Box(layout={"display": "block"}))
            with self.hold_trait_notifications():
                self.children = [self._boxes[title] for title in titles]
                self.titles = titles
                self.selected_index = titles.index(before) if before in titles else 0
        self._draw()

    @property
    def fallback(self) -> str:
        """Static HTML of the tab that is open."""
        widget = self._widgets.get(self._there[self.selected_index or 0].title) if self._there else None
        return widget.view.fallback if widget else ""

    def _draw(self) -> None:
        if self.selected_index is None or not self._there:
            return
        tab = self._there[self.selected_index]
        if tab.title not in self._stale:
            return
        self._stale.discard(tab.title)
        if self._source is None:
            view = status("empty", "○", "", self._problem)
        else:
            try:
                view = tab.make(*self._source)
            except (KeyError, ValueError, OSError) as error:
                why = error.args[0] if isinstance(error, KeyError) else error
                view = status("unreadable", "✗", f"No {tab.title.lower()}:", str(why))
        if tab.title in self._widgets:
            self._widgets[tab.title].show(view)
            return
        widget = self._widgets[tab.title] = ViewWidget(view, selection=self.selection)
        widget.on_open(self._opener)
        traitlets.link((self, "selection"), (widget, "selection"))
        self._boxes[tab.title].children = [widget]
