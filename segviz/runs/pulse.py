"""Whether a run is still being written: its last step, and how long ago."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median

from segviz.runs.run import Run


def pulse(run: Run) -> tuple[int | None, float, float]:
    """Last step with metrics (None: none yet), seconds since the last file, seconds that a step takes (0: not known
    yet)."""
    written = sorted((int(name[5:11]), mtime / 1e9) for name, (mtime, _) in run.files("metrics").items())
    begun = (run.path / "run.json").stat().st_mtime
    gaps = [b - a for (_, a), (_, b) in pairwise(written[-21:])]
    latest = max([begun, *(at for _, at in written[-1:])])
    return written[-1][0] if written else None, max(0.0, time.time() - latest), median(gaps) if gaps else 0.0
