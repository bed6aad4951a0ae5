"""Whether the credit of runs finds the first true error, counted file by file while they are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from segpo_core.record.blame import BLAMED
from segpo_core.record.files import read_table, span_of
from segpo_core.record.store import ROLLOUT_SCHEMA, step_of
from segviz.app.files import Watch
from segviz.app.kept import Kept
from segviz.app.shelf import ShelfRun
from segviz.parts.scoreboard import Judged, board, by_method, tally, told, untold
from segviz.parts.trust import trust
from segviz.runs.columns import MOST, table_rows
from segviz.runs.folder import Stamp
from segviz.show.encode import tidy

BUDGET = 0.4  #: seconds of reading before what is known so far is shown
_SCHEMA = pa.schema([ROLLOUT_SCHEMA.field(name) for name in BLAMED])

Counted = tuple[int, list[Judged]]  #: completions of a file, and where the blame fell in its wrong ones


class Found:
    """Boards of runs. Each file of rollouts is read once; `unread` of an answer counts those still to come."""

    def __init__(self) -> None:
        #: Of each run a lock of its own: one whose files hang keeps no other waiting.
        self._files: dict[Path, tuple[threading.Lock, dict[str, tuple[Stamp, Counted]]]] = {}
        self._lock = threading.Lock()  #: of the runs there are; nothing is read while it is held
        self._trust, self._methods = Kept(16), Kept(8)

    def board(self, run: ShelfRun, watch: Watch) -> tuple[dict[str, Any] | None, int]:
        """(what `views` draw of a run's latest completions, files still to be read)."""
        known, unread = self._read(run.path, watch)
        spans = [span for name in known if (span := span_of(name)) is not None]
        steps = sorted({step for span in spans for step in (span.first, span.last)})
        judged = [one for _, (_, (_, found)) in sorted(known.items()) for one in found]
        if judged:
            span = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
            made = board(judged, f"{span}, {len(judged):,} rollouts")
            return made and told(made), unread
        if unread or not known:
            return None, unread
        newest = max(known)
        return self._trust.get(run.path, lambda: untold(_trusted(run)), (newest, known[newest][0])), 0

    def methods(self, run: ShelfRun, watch: Watch) -> list[dict[str, Any]]:
        """`by_method` of a run, and its own credit alone where no other was computed."""
        folders = sorted((run.path / "credit").glob("*/*.parquet"))
        state = dict(watch.files), [(path, path.stat().st_mtime_ns) for path in folders]

        def make() -> list[dict[str, Any]]:
            for step in sorted({step for path in folders if (step := step_of(path)) is not None}):
                run.check_step(step)
            return by_method(run)

        return self._methods.get(run.path, make, state)

    def _read(self, path: Path, watch: Watch) -> tuple[dict[str, tuple[Stamp, Counted]], int]:
        """Of the newest files, up to `MOST` completions: those that are read, and how many are not yet."""
        until = time.monotonic() + BUDGET
        with self._lock:
            lock, known = self._files.setdefault(path, (threading.Lock(), {}))
        with lock:
            total, unread, used = 0, 0, {}
            for name, stamp in sorted(watch.files.items(), reverse=True):
                if total >= MOST:
                    break
                if name in known and known[name][0] == stamp:
                    used[name] = known[name]
                elif time.monotonic() > until:
                    unread += 1
                    continue
                else:
                    used[name] = stamp, _counted(watch.path / name)
                total += used[name][1][0]
            known.clear()
            known.update(used)  # older ones are not asked for again
            return used, unread

    def forget(self, kept: Sequence[Path]) -> None:
        """Drop every run that is not among `kept`."""
        with self._lock:
            self._files = {path: known for path, known in self._files.items() if path in set(kept)}


def side_by_side(boards: Sequence[tuple[str, dict[str, Any] | None]]) -> dict[str, Any] | None:
    """The boards of several runs as one, a line each: (name, board as `Found.board` gives it)."""
    rows = [{"label": tidy(name), "own": False, **found} for name, found in boards if found and found["lines"]]
    lines = [f"{tidy(name)}: {line}" for name, found in boards if found for line in found["trust"]]
    if not rows and not lines:
        return None
    return {"said": "", "whence": "", "by_token": False, "lines": [], "methods": rows, "trust": lines, "beside": "Run"}


def _counted(path: Path) -> Counted:
    try:
        rows = table_rows(read_table(path, _SCHEMA))
    except (ValueError, OSError):  # the index has noted it
        return 0, []
    return len(rows), [one for _, one in tally(rows)]


def _trusted(run: ShelfRun) -> list[str]:
    try:
        for step in run.steps[-8:]:
            run.check_step(step)
        return trust(run)
    except (ValueError, OSError, LookupError):
        return []
