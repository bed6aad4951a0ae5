"""Look through the rollouts of a run in a notebook: filter, list, and every view of the one that is open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segviz.runs.run import Run

if TYPE_CHECKING:
    from segviz.notebook.explorer import Explorer


def explore(run: Run | Sequence[Run], **start: Any) -> Explorer:
    """A widget to look through a run's rollouts: filter, sort, read, compare.

    The list is narrowed by the controls above it or by `Explorer.narrow`. Arrow keys walk through it. Below stand the
    views that say something of the open rollout; what is chosen in one is chosen in all, and in `Explorer.selection`.

    Args:
        run: one run, or several to choose from.
        start: what to begin with: fields of `segviz.notebook.listing.Filter` (`steps=(1, 20)`, `verdict="wrong"`,
            `error_kind="perception"`, `text="three red"`, …), `sort` (a column), `descending`, and `rollout`, the
            (step, group, sample) to open; default the first of the list.

    Raises:
        ValueError: no run was given.
        TypeError: an argument that is none of these.
    """
    from segviz.notebook.explorer import Explorer  # ipywidgets take a while to import, and pages need none of them

    return Explorer([run] if isinstance(run, Run) else list(run), **start)
