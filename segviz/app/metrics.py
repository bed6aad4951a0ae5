"""The metrics of a run, each file read once, kept as small as a chart needs."""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.files import read_table, span_of
from segpo_core.record.store import METRIC_SCHEMA
from segviz.app.files import Watch
from segviz.runs.series import Series, by_name
from segviz.show.encode import tidy

POINTS = 600  #: a chart has no more pixels; older points are averaged in pairs, fours, …
BUDGET = 0.4  #: seconds of reading before what there is so far is shown
LEAST = 0.2  #: seconds between two looks at the directory, however many are watching


class MetricLog:
    """Reads what is new at every `refresh`. `unread` counts files still to come, `problems` says what is broken."""

    def __init__(self, path: Path, root: Path):
        self._watch = Watch(path / "metrics", root)
        self._lock = threading.Lock()
        self._points: dict[str, tuple[array, array]] = {}  # name -> steps, values
        self._todo: list[str] = []
        self._seen: set[int] = set()  #: steps that were read
        self._looked = 0.0
        self.problems: dict[str, str] = {}
        self.version = 0  #: grows whenever something changed
        self._thin: tuple[int, dict[str, Series]] = (-1, {})

    @property
    def unread(self) -> int:
        return len(self._todo)

    def refresh(self) -> None:
        """Read new files, newest first, for at most `BUDGET` seconds."""
        with self._lock:
            if not self._todo and time.monotonic() - self._looked < LEAST:
                return
            self._look()
            until = time.monotonic() + BUDGET
            while self._todo and time.monotonic() < until:
                if not self._read(self._todo.pop()):
                    self._look()  # it is gone: put together with others, say; they are read in the same refresh
                self.version += 1

    def _look(self) -> None:
        fresh, gone = self._watch.changes()
        self._looked = time.monotonic()
        files = self._watch.files
        if gone:  # put together, resumed, begun anew or deleted: what was read of these steps may be wrong
            first = min(map(_step, [*fresh, *gone]))
            kept = max((step for name in files if (step := _step(name)) < first), default=-1)
            self._forget_after(kept)
            fresh = [name for name in files if _step(name) > kept]
            self.problems = {name: words for name, words in self.problems.items() if _step(name) <= kept}
            self.version += 1
        self._todo = sorted({*self._todo, *fresh} & files.keys())

    def _forget_after(self, step: int) -> None:
        """Forget what was read of later steps. A file holds none of those that an earlier one is named after."""
        self._seen = {seen for seen in self._seen if seen <= step}
        for name, (steps, values) in list(self._points.items()):
            earlier = np.array(steps) <= step
            if not earlier.any():
                del self._points[name]
            elif not earlier.all():
                kept = np.array(steps, np.intc)[earlier], np.array(values)[earlier]
                self._points[name] = array("i", kept[0].tobytes()), array("d", kept[1].tobytes())

    def _read(self, name: str) -> bool:
        """Take in a file. Returns whether it was there."""
        try:
            table = read_table(self._watch.path / name, METRIC_SCHEMA)
        except FileNotFoundError:
            return False
        except (ValueError, OSError) as error:
            self.problems[name] = tidy(f"metrics/{name} cannot be read (being copied?): {error}")
            return True
        found = by_name(table)
        steps = set(pc.unique(table["step"]).to_pylist())
        if steps <= self._seen:  # put together into a later file, or out of earlier ones, that was read
            return True
        if twice := steps & self._seen:  # some of it is in files that it was put together from, and these were read
            other = pc.invert(pc.is_in(table["step"], pa.array(sorted(twice), pa.int32())))
            found = by_name(table.filter(other))
        self._seen |= steps
        for metric, (own, numbers) in found.items():
            known, values = self._points.setdefault(metric, (array("i"), array("d")))
            known.frombytes(own.tobytes())
            values.frombytes(numbers.tobytes())
        return True

    def series(self) -> dict[str, Series]:
        """Metric name -> steps and values, at most about `POINTS` of them; the last one is as it was recorded."""
        with self._lock:
            if self._thin[0] != self.version:
                found = {
                    name: thin(np.array(steps), np.array(values)) for name, (steps, values) in self._points.items()
                }
                self._thin = (self.version, found)
            return self._thin[1]


def _step(name: str) -> int:
    span = span_of(name)
    return span.last if span is not None else 0


def thin(steps: np.ndarray, values: np.ndarray) -> Series:
    """Steps in order; above `POINTS`, means over 2, 4, 8, … steps, so that old points stay put while a run grows."""
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    width = 1
    while len(steps) and (steps[-1] - steps[0]) // width >= POINTS and len(steps) > POINTS:
        width *= 2
    if width > 1:
        head, last = slice(None, -1), slice(-1, None)
        bucket = steps[head] // width
        starts = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
        counts = np.diff([*starts, len(bucket)])
        steps = np.concatenate([np.add.reduceat(steps[head], starts) // counts, steps[last]])
        values = np.concatenate([np.add.reduceat(values[head], starts) / counts, values[last]])
    return Series(steps.tolist(), values.tolist())
