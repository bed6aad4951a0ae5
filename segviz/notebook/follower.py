"""The widget behind `segviz.follow`: how a run stands, its curves and newest rollouts, kept up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets

from segviz.notebook.listing import PAGE, listing, ordered
from segviz.parts.credit import key_of
from segviz.runs.pulse import pulse
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.status import status
from segviz.show.view import View
from segviz.show.widget import ViewWidget, display, with_still
from segviz.views.board import board, question
from segviz.views.ribbon import ribbon

PATIENCE = 10  #: steps' time without a new file before a run is called stalled …
LEAST_PATIENCE = 15.0  #: … and seconds that it is given in any case

#: State -> mark, word.
STATES = {
    "waiting": ("○", "Waiting."),
    "running": ("●", "Running."),
    "finished": ("✓", "Finished."),
    "stalled": ("!", "Stalled?"),
    "vanished": ("✗", "Vanished."),
    "unreadable": ("✗", "Cannot be read."),
    "stopped": ("■", "Stopped."),
}


class Follower(ipywidgets.VBox):
    """What `follow` returns, at work in `loop`."""

    state = traitlets.Enum(list(STATES), "waiting")
    selection = traitlets.Dict()  #: {key, token, segment, node}: what the reader chose last
    paused = traitlets.Bool(False)  #: nothing changes on the screen
    pinned = traitlets.Bool(False)  #: the rollout that is shown stays

    def __init__(self, path: Path, every: float, loop: asyncio.AbstractEventLoop):
        self.path, self.every = path, every
        self.run: Run | None = None
        self.rollout: Rollout | None = None
        self._manifest: tuple | None = None  # what tells whether run.json is still the same
        self._newest: int | None = None
        self._last: int | None = None  # last step whose metrics were seen
        self._rows: list[Mapping[str, Any]] = []
        self._sort, self._descending, self._page = "lowest", False, 0
        self._shown: dict[str, Any] = {}
        self._was_seen = False
        self._status = ViewWidget(self._say("waiting", ""))
        self._board = ViewWidget(status("empty", "", "", ""))
        self._list = ViewWidget(listing([]))
        self._ribbon = ViewWidget(status("empty", "", "", ""))
        self._list.on_open(self.read)
        self._list.on_ask(self._answer)
        self._pause = ipywidgets.ToggleButton(description="pause", icon="pause", tooltip="keep everything as it is")
        self._pin = ipywidgets.ToggleButton(description="pin rollout", icon="thumb-tack", tooltip="keep this rollout")
        self._stop = ipywidgets.Button(description="stop", icon="stop", tooltip="look no more")
        self._stop.on_click(lambda _: self.stop())
        for widget in (self._board, self._list, self._ribbon):
            widget.layout.display = "none"
        buttons = ipywidgets.HBox([self._pause, self._pin, self._stop])
        super().__init__([self._status, buttons, self._board, self._list, self._ribbon])
        self._view_count = 0  # asks the page to count where this is shown
        self.add_class("segviz-whole")
        traitlets.link((self, "paused"), (self._pause, "value"))
        traitlets.link((self, "pinned"), (self._pin, "value"))
        traitlets.link((self, "selection"), (self._ribbon, "selection"))
        self._ribbon.observe(self._reading, "selection")
        self.observe(lambda _: self.look(), ["paused", "pinned"])
        self.look()
        self._task: asyncio.Task | None = loop.create_task(self._watch(), name=f"segviz follows {path}")

    # --- what a program may call ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Look no more. What is shown stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            for widget in (self._pause, self._pin, self._stop):
                widget.disabled = True
            self.state = "stopped"
            self._put(self._status, self._say("stopped", f"{self._told(self.run)} Run the cell again to go on."))

    def close(self) -> None:
        """Stop, and take the widget away."""
        self.stop()
        super().close()

    def read(self, step: int, group: int, sample: int) -> None:
        """Open a rollout and pin it."""
        if self.run is None:
            return
        try:
            self.rollout = self.run.rollout(step, group, sample)
        except (KeyError, ValueError, OSError) as error:
            why = str(error.args[0] if isinstance(error, KeyError) else error)
            self._put(self._ribbon, status("unreadable", "✗", "This rollout cannot be shown.", why))
            return
        self._put(self._ribbon, ribbon(self.rollout))
        self.pinned = True
        self._show_rollouts()

    def look(self) -> None:
        """Look for new files now and show what they hold."""
        try:
            state, words = self._find()
        except (ValueError, OSError) as error:
            state, words = "unreadable", str(error)
        if state in ("running", "finished", "stalled") and not self.paused:
            try:
                self._show_run(self.run)
            except (ValueError, OSError) as error:
                state, words = "unreadable", str(error)
        self.state = state
        if self.paused:
            words += " Paused: what is below stays as it is."
        elif self.pinned and self.rollout is not None and self._newest is not None:
            words += f" Pinned: rollout {key_of(self.rollout.row)} stays; the newest are of step {self._newest}."
        notes = self.run.problems if self.run is not None and state != "vanished" else []
        self._put(self._status, self._say(state, words, notes))

    # --- the rest ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            started = time.monotonic()
            if self.comm is None:  # closed from the page's side
                return
            if seen := bool(self._view_count):
                self._was_seen = True
            if seen or not self._was_seen:
                self.look()
            # a long run takes long to read: most of the time is the notebook's
            await asyncio.sleep(max(self.every, 5 * (time.monotonic() - started)))

    def _find(self) -> tuple[str, str]:
        """How the run stands, and the sentence that says so. Opens it when it appears, or begins anew."""
        manifest = self.path / "run.json"
        try:
            facts = manifest.stat()
        except (FileNotFoundError, NotADirectoryError):
            if self.run is not None:
                return "vanished", f"{self.path} was removed. {self._told(self.run)} What is below is the last of it."
            if not self.path.exists():
                return "waiting", f"{self.path} is not there yet; it is shown as soon as training writes it."
            others = sorted(path.name for path in self.path.iterdir())[:4]
            there = f" It holds {', '.join(others)}." if others else ""
            return "waiting", f"{self.path} has no run.json yet, so it is not a run, or not yet.{there}"
        stamp = (facts.st_mtime_ns, facts.st_ino)
        if self.run is None or stamp != self._manifest:
            self.run, self._newest, self._rows = Run(self.path), None, []
            self._manifest = stamp
            if not self.pinned:
                self.rollout = None
        last, quiet, pace = pulse(self.run)
        self._last = last
        goal = self.run.config.get("max_steps")
        told = self._told(self.run)
        if isinstance(goal, int) and last is not None and last >= goal:
            return "finished", told
        limit = max(LEAST_PATIENCE, PATIENCE * pace) if pace else 4 * LEAST_PATIENCE
        if quiet > limit:
            usual = f"; a step took {_span(pace)}" if pace else ""
            return "stalled", f"{told} No new file for {_span(quiet)}{usual}."
        return "running", told + (f" A step takes {_span(pace)}." if pace else "")

    def _told(self, run: Run | None) -> str:
        if run is None:
            return "Nothing was seen."
        last, goal = self._last, run.config.get("max_steps")
        of = f" of {goal:,}" if isinstance(goal, int) else ""
        return f"{run.name}: " + ("no step yet." if last is None else f"step {last:,}{of}.")

    def _show_run(self, run: Run) -> None:
        metrics = run.metrics
        if self._shown.get("metrics") is not metrics:
            self._shown["metrics"] = metrics
            self._put(self._board, board(run, f"{run.name}: {question([run]).lower()}"))
        steps = self.run.steps
        if not steps:
            return
        rows = self.run.rollouts_at(steps[-1]).rows
        if (steps[-1], rows) != (self._newest, self._rows) or self._shown.get("pinned") != self.pinned:
            self._newest, self._rows, self._shown["pinned"] = steps[-1], rows, self.pinned
            if not self.pinned and rows:
                first = ordered(rows, "lowest")[0]
                self.rollout = self.run.rollout(first["step"], first["group"], first["sample"])
                self._put(self._ribbon, ribbon(self.rollout))
            self._show_rollouts()

    def _show_rollouts(self) -> None:
        rows = ordered(self._rows, self._sort, self._descending)
        current = key_of(self.rollout.row) if self.rollout else ""
        title = f"Newest rollouts, step {self._newest}"
        self._put(self._list, listing(rows, self._page, self._sort, self._descending, current, title=title))

    def _answer(self, wish: Mapping[str, Any]) -> None:
        if isinstance(wish.get("page"), int):
            self._page = wish["page"]
        elif isinstance(wish.get("sort"), str):
            self._descending = not self._descending if wish["sort"] == self._sort else False
            self._sort, self._page = wish["sort"], 0
        elif wish.get("step") in (1, -1):
            rows = ordered(self._rows, self._sort, self._descending)
            here = next((i for i, row in enumerate(rows) if key_of(row) == wish.get("from")), 0) + wish["step"]
            if 0 <= here < len(rows):
                self._page = here // PAGE
                self.read(rows[here]["step"], rows[here]["group"], rows[here]["sample"])
            return
        self._show_rollouts()

    def _reading(self, change: Mapping[str, Any]) -> None:
        """Who chooses a token reads the rollout."""
        if self.rollout is not None and change["new"].get("key") == key_of(self.rollout.row):
            self.pinned = True

    def _say(self, state: str, words: str, notes: list[str] | None = None) -> View:
        mark, word = STATES[state]
        return status(state, mark, word, words, notes or [])

    def _put(self, widget: ViewWidget, view: View) -> None:
        widget.show(view)  # unchanged data are not sent again
        widget.layout.display = None

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = "".join(widget.view.fallback for widget in (self._status, self._board, self._list, self._ribbon))
        return with_still(super()._repr_mimebundle_(**kwargs), shown)

    def _ipython_display_(self) -> None:
        display(self, *self._repr_mimebundle_())


def _span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
