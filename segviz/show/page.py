"""Several views on one page, linked: what is selected in one is shown in the others."""

from __future__ import annotations

from segviz.show.encode import escape
from segviz.show.view import View


def together(*views: View, title: str = "") -> View:
    """One page of several views. A token chosen in one is chosen in all that show the same rollout.

    Raises:
        ValueError: no view was given.
    """
    if not views:
        raise ValueError("together needs at least one view: sv.together(sv.ribbon(rollout), sv.staircase(rollout))")
    data = {"kind": "together", "title": title, "parts": [dict(view.data) for view in views]}
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    return View("together", title or views[0].title, data, heading + "".join(view.fallback for view in views))
