"""Watch a run while it trains, in a notebook: curves and newest rollouts, as they are written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from segviz.runs.run import Run

if TYPE_CHECKING:
    from segviz.notebook.follower import Follower


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
    from segviz.notebook.follower import Follower  # ipywidgets take a while to import, and pages need none of them

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
