"""The tab Inspect: whether a run's credit can be trusted, what a step learned from, where a completion was cut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

import segviz as sv
from segviz.app.kept import Kept
from segviz.app.shelf import Missing, Shelf, ShelfRun
from segviz.show.encode import tidy
from segviz.show.figures import Figure, page
from segviz.show.view import View
from segviz.views.audit import audit
from segviz.views.boundaries import RULES

#: Question of a whole run -> the figure that answers it; `narrow`: for a page on which one panel fits beside none.
FIGURES: dict[str, Callable[[ShelfRun, bool], Figure]] = {
    "audit": lambda run, narrow: audit(run, columns=1 if narrow else 2),
    "lift": lambda run, narrow: sv.lift(run),
}
CUTS = ("", *RULES)  #: what a completion's recorded cut can be held against; "": what suits it


class Inspector:
    """Makes the pages, one at a time: they read thousands of rollouts. The last few are kept."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        self._made, self._one = Kept(12), threading.Lock()

    def figure(self, name: str, kind: str, narrow: bool, theme: str) -> str:
        """The page of a figure about a whole run.

        Raises:
            Missing: no such run or question; SchemaError, OSError: it cannot be read; ValueError: too little is
                recorded.
        """
        if kind not in FIGURES:
            raise Missing("There is no such page.")

        def make(run: ShelfRun) -> Figure:
            run.check_links()
            # a running run has a newer answer with each step that it records
            state = run.manifest.get("started"), dict(run.files("rollouts"))
            return self._made.get((run.path, kind, narrow), lambda: FIGURES[kind](run, narrow), state)

        with self._one:  # out here: one that hangs lets go of it in time
            made = self.shelf.reading(name, make)
        return page(made, theme if theme in ("light", "dark") else "")

    def forensics(self, name: str, step: int) -> View:
        """What a step learned from; of a step that is not recorded, the nearest one that is. Raises as `figure`."""

        def make(run: ShelfRun) -> tuple[int, View]:
            run.check_step(step)
            steps = run.steps
            if not steps:
                raise Missing(f"{tidy(run.name)} has no recorded rollouts yet.")
            nearest = min(steps, key=lambda there: (abs(there - step), there))
            run.check_step(nearest)
            return nearest, sv.forensics(run, nearest)

        with self._one:
            nearest, made = self.shelf.reading(name, make)
        if nearest == step:
            return made
        note = f"Step {step} is not recorded; this is the nearest one that is, step {nearest}."
        return replace(made, data=dict(made.data) | {"notices": [note, *made.data["notices"]]})


def boundaries_page(shelf: Shelf, name: str, step: int, group: int, sample: int, cut: str = "") -> View:
    """The cuts of one completion beside those of a rule.

    Raises:
        Missing, SchemaError, KeyError: as `pages.rollout_page`; ValueError: the rule's signal is not recorded.
    """
    if cut not in CUTS:
        raise Missing(f"There is no rule {cut[:40]!r}; there are: {', '.join(RULES)}.")
    return shelf.reading(name, lambda run: sv.boundaries(run.rollout(step, group, sample), cut or None))


def steps_of(shelf: Shelf, name: str) -> dict[str, Any]:
    """{steps: those that are recorded}. Raises as `Shelf.reading`."""
    return {"steps": shelf.reading(name, lambda run: run.steps)}


def tab() -> None:
    """The tab; it draws itself (see static/inspect.js)."""
    gr.HTML("<segpo-inspect></segpo-inspect>", elem_classes="bare")
