"""Whether a run is still being written: its last step, how long ago, and how long the rest will take."""

from __future__ import annotations

import json
import os
import socket
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from segpo_core.record.files import read_plain, span_of
from segviz.runs.run import Run

WINDOW = 50  #: steps whose pace is taken for that of the rest
SIGN = 60.0  #: seconds within which a trainer that lives has touched its lock (segpo_core/training/hold.py)
BREAK = 30  #: steps' time (and a minute) without a file: the run was stopped in between, not slow


def trained_here(path: Path) -> bool | None:
    """Whether a trainer is at work in a run directory: True where it holds `trainer.lock`, or touches it from another
    machine, False where the one that wrote its name there has ended, None where nobody on this machine can tell."""
    lock = path / "trainer.lock"
    try:
        owner = json.loads(read_plain(lock))
        host, process = str(owner["host"]), int(owner["process"])
        if host != socket.gethostname():
            return True if abs(time.time() - lock.stat().st_mtime) < SIGN else None
        if process <= 0:
            return None
        # looked up, not tried: to try it is to hold it, and a trainer that begins just then would be refused
        if f":{lock.stat().st_ino} " in Path("/proc/locks").read_text():
            return True
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return None  # it lives, and may have let go of the run


def pulse(run: Run) -> tuple[int | None, float, float]:
    """Last step with metrics (None: none yet), seconds since the last file, seconds that a step takes (0: not known
    yet)."""
    written = _written(run)
    begun = (run.path / "run.json").stat().st_mtime
    gaps = [(b - a) / (after - before) for (before, a), (after, b) in pairwise(written[-21:])]
    latest = max([begun, *(at for _, at in written[-1:])])
    return written[-1][0] if written else None, max(0.0, time.time() - latest), median(gaps) if gaps else 0.0


def seconds_left(run: Run, planned: int) -> float | None:
    """Seconds that the steps up to `planned` will take, evaluations and all, at the pace of the last `WINDOW` steps;
    None before there are two."""
    written = _written(run)[-WINDOW - 1 :]
    paces = [((b - a) / (after - before), after - before) for (before, a), (after, b) in pairwise(written)]
    if not paces:
        return None
    usual = median(pace for pace, _ in paces)
    steady = [(pace, steps) for pace, steps in paces if pace <= max(60.0, BREAK * usual)]
    pace = sum(pace * steps for pace, steps in steady) / sum(steps for _, steps in steady)
    return max(0.0, pace * (planned - written[-1][0]))


def _written(run: Run) -> list[tuple[int, float]]:
    """(step, when its metrics were written, in seconds), in order. Of steps that lie together in one file the last is
    known alone: the file has its time."""
    spans = ((span_of(name), stamp) for name, stamp in run.files("metrics").items())
    return sorted((span.last, stamp.changed / 1e9) for span, stamp in spans if span is not None)
