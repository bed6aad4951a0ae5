"""Whole pages of one rollout or one comparison, for frames and for keeping."""

from __future__ import annotations

import re

import segviz as sv
from segviz.app.shelf import Missing, Shelf, ShelfRun, inside
from segviz.parts.heading import where
from segviz.show.view import View
from segviz.views.report import report_view
from segviz.views.rightness import results_of, rightness


def rollout_page(shelf: Shelf, name: str, step: int, group: int, sample: int, heading: bool = False) -> View:
    """Everything about one rollout on one page, its parts linked: credit, values, group, and tree or chain.

    `heading`: the page says itself which rollout it is; in a frame of the app, the app does.

    Raises:
        Missing, SchemaError: the run cannot be read.
        KeyError: the rollout is not recorded.
    """

    def made(run: ShelfRun) -> View:
        rollout = run.rollout(step, group, sample)
        parts = [sv.ribbon(rollout), sv.staircase(rollout), sv.roles(rollout), sv.group(run, step, group)]
        if run.nodes(step, group):
            parts.append(sv.tree(run, step, group))
        return sv.together(*parts, title=f"{run.name} · {where(rollout)}" if heading else "")

    return shelf.reading(name, made)


def rightness_page(shelf: Shelf, name: str) -> View:
    """How right each method's credit is: on a run's own policy and problems, where `segpo bench-credit --run` measured
    it; without a name, on the completions that ship.

    Raises:
        Missing, ValueError, OSError: there is nothing to show; why.
    """
    if not name:
        return rightness()
    place = shelf.place(name)

    def made() -> View:
        found = results_of(place.path)
        if not inside(found, place.path.parent):
            raise Missing(f"{found.name} is a link that leads out of {place.root}; it is not followed.")
        return rightness(found, whence=f"held-out problems of {place.name}, by its own policy")

    return shelf.within(place, made)


def report_page(shelf: Shelf, name: str) -> View:
    """The report of a run as it is now. Raises Missing, SchemaError: the run cannot be read."""

    def made(run: ShelfRun) -> View:
        for step in run.steps:
            run.check_step(step)
        return report_view(run)

    return shelf.reading(name, made)


def over_training_page(shelf: Shelf, name: str) -> View:
    """One prompt over training.

    Raises:
        Missing, SchemaError: the run cannot be read.
        ValueError: it recorded no evaluations.
    """
    return shelf.reading(name, sv.over_training)


def methods_page(shelf: Shelf, name: str, step: int, group: int, sample: int) -> View:
    """One rollout under every method whose credit is known. Raises as `rollout_page`."""
    return shelf.reading(name, lambda run: sv.compare(run.credits(step, group, sample)))


def versus_page(shelf: Shelf, first: str, second: str) -> View:
    """Two rollouts beside each other, each as run/step/group/sample.

    Raises:
        Missing: a name that is none; else as `rollout_page`.
    """
    found, names = [], []
    for said in (first, second):
        name, *ids = said.rsplit("/", 3)
        if len(ids) != 3 or not all(re.fullmatch(r"\d{1,9}", one) for one in ids):
            raise Missing("A rollout is named as run/step/group/sample.")
        found.append(shelf.reading(name, lambda run, ids=ids: run.rollout(*map(int, ids))))
        names.append(name)
    return sv.versus(*found, names=(f"A: {names[0]}", f"B: {names[1]}"))
