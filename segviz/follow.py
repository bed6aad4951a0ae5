"""Watch a run while it trains, in a notebook: curves and newest rollouts, as they are written."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from segpo_core.record import METRIC_SCHEMA
from segviz.run import Run, Series

if TYPE_CHECKING:
    from segviz.follower import Follower


def follow(run: Run | str | Path, every: float = 2.0) -> Follower:
    """A widget that shows a run while it is written: how it stands, learning curves, the newest rollouts.

    It looks for new files in the notebook's own event loop: between cells, never while one is running. Opening a
    rollout, choosing a token of it or pinning it keeps it there; pausing keeps everything. It ends with `stop()`, its
    button, or when the widget is closed, and does not look while nobody sees it (its cell was run again or cleared).

    Args:
        run: a run, or the path of one, which need not exist yet.
        every: seconds between looks.

    Raises:
        ValueError: `every` is not above zero.
        NotADirectoryError: the path is a file.
        RuntimeError: there is no event loop to run in, as in a plain script.
    """
    from segviz.follower import Follower  # ipywidgets take a while to import, and pages need none of them

    path = run.path if isinstance(run, Run) else Path(run)
    if not every > 0:
        raise ValueError(f"every={every}: seconds between looks, above zero")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; follow a run directory, the one that holds run.json")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "follow looks for new files in a notebook's event loop and none is running here; "
            "in a script use sv.board(run).save('board.html')"
        ) from None
    return Follower(path, every, loop)


class LiveRun(Run):
    """A run that is looked at again and again: a metrics file is read once, and again only when it changed."""

    last: int | None = None  #: last step whose metrics were seen

    def __init__(self, path: Path):
        super().__init__(path)
        self._files: dict[str, tuple[tuple[int, int], list[tuple[int, str, float]]]] = {}
        self._joined: dict[str, Series] = {}

    def pulse(self) -> tuple[int | None, float, float]:
        """Last step with metrics (None: none yet), seconds since the last file, seconds that a step takes (0: not
        known yet)."""
        written = sorted((int(name[5:11]), mtime / 1e9) for name, (mtime, _) in self._there().items())
        begun = (self.path / "run.json").stat().st_mtime
        gaps = [b - a for (_, a), (_, b) in pairwise(written[-21:])]
        self.last = written[-1][0] if written else None
        latest = max([begun, *(at for _, at in written[-1:])])
        return self.last, max(0.0, time.time() - latest), median(gaps) if gaps else 0.0

    @property
    def metrics(self) -> dict[str, Series]:
        """As `Run.metrics`; the same object as long as no file changed."""
        there = self._there()
        if there == {name: stamp for name, (stamp, _) in self._files.items()}:
            return self._joined
        for name in set(self._files) - set(there):
            del self._files[name]
        for name, stamp in there.items():
            if name not in self._files or self._files[name][0] != stamp:
                try:
                    table = pq.read_table(self.path / "metrics" / name, schema=METRIC_SCHEMA)
                except FileNotFoundError:  # a resumed run removes later steps
                    continue
                except (pa.ArrowException, OSError) as error:
                    self._problems[name] = f"Metrics in {name} could not be read: {error}"
                    self._files[name] = (stamp, [])
                    continue
                self._problems.pop(name, None)
                columns = (table[key].to_pylist() for key in ("step", "name", "value"))
                self._files[name] = (stamp, list(zip(*columns, strict=True)))
        joined: dict[str, Series] = {}
        for name in sorted(self._files):
            for step, metric, value in self._files[name][1]:
                if value is not None:
                    series = joined.setdefault(metric, Series([], []))
                    series.steps.append(step)
                    series.values.append(value)
        self._joined = joined
        return joined

    def _there(self) -> dict[str, tuple[int, int]]:
        """Metrics files: name -> (time, size). Names as the recorder gives them."""
        found = {}
        try:
            with os.scandir(self.path / "metrics") as entries:
                for entry in entries:
                    if entry.name.startswith("step-") and entry.name.endswith(".parquet"):
                        facts = entry.stat()
                        found[entry.name] = (facts.st_mtime_ns, facts.st_size)
        except FileNotFoundError:  # removed while looking
            pass
        return found
