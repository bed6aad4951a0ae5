"""Views of recorded credit: in a notebook, in an app beside a training run, and in one offline HTML file.

    import segviz as sv

    run = sv.open("runs/demo")                        # lazy, also while the run is being written
    sv.report(run)                                    # one offline HTML file: curves and telling rollouts
    row = run.rollouts.where(error_kind="perception")[0]
    sv.ribbon(run.rollout(row["step"], row["group"], row["sample"]))

Functions return a `View` and draw nothing themselves. Nothing here imports the trainer, torch or a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

#: What the extra `views` brings; a training needs none of it.
DRAWS = {
    "plotly", "kaleido", "anywidget", "ipywidgets", "traitlets", "IPython", "gradio", "fastapi", "starlette", "uvicorn",
    "duckdb",
}  # fmt: skip

if TYPE_CHECKING:
    from segpo_core.record.store import SchemaError
    from segviz.notebook.explore import explore
    from segviz.notebook.follow import follow
    from segviz.runs.annotate import annotate
    from segviz.runs.readers import read_trl, read_verl
    from segviz.runs.rollout import Rollout
    from segviz.runs.run import Run, open  # noqa: A004
    from segviz.show.page import together
    from segviz.show.view import View
    from segviz.views.audit import audit
    from segviz.views.board import board
    from segviz.views.boundaries import boundaries
    from segviz.views.compare import compare
    from segviz.views.counterfactual import counterfactual
    from segviz.views.forensics import forensics
    from segviz.views.groups import group
    from segviz.views.lift import lift
    from segviz.views.over_training import over_training
    from segviz.views.report import report
    from segviz.views.ribbon import ribbon
    from segviz.views.rightness import rightness
    from segviz.views.roles import roles
    from segviz.views.staircase import staircase
    from segviz.views.tree import tree
    from segviz.views.versus import versus

try:
    __version__ = version("segpo")
except PackageNotFoundError:  # imported from a source tree that was not installed
    __version__ = "0+source"

#: Module -> the names that come from it, when they are first used: plotly and anywidget take a while to import.
_DOOR = {
    "segpo_core.record.store": ("SchemaError",),
    "segviz.notebook.explore": ("explore",),
    "segviz.notebook.follow": ("follow",),
    "segviz.runs.annotate": ("annotate",),
    "segviz.runs.readers": (
        "read_trl",
        "read_verl",
    ),
    "segviz.runs.rollout": ("Rollout",),
    "segviz.runs.run": (
        "Run",
        "open",
    ),
    "segviz.show.page": ("together",),
    "segviz.show.view": ("View",),
    "segviz.views.audit": ("audit",),
    "segviz.views.board": ("board",),
    "segviz.views.boundaries": ("boundaries",),
    "segviz.views.compare": ("compare",),
    "segviz.views.counterfactual": ("counterfactual",),
    "segviz.views.forensics": ("forensics",),
    "segviz.views.groups": ("group",),
    "segviz.views.lift": ("lift",),
    "segviz.views.over_training": ("over_training",),
    "segviz.views.report": ("report",),
    "segviz.views.ribbon": ("ribbon",),
    "segviz.views.rightness": ("rightness",),
    "segviz.views.roles": ("roles",),
    "segviz.views.staircase": ("staircase",),
    "segviz.views.tree": ("tree",),
    "segviz.views.versus": ("versus",),
}
_HOME = {name: module for module, names in _DOOR.items() for name in names}

__all__ = [
    "Rollout", "Run", "SchemaError", "View",
    "annotate", "audit", "board", "boundaries", "compare", "counterfactual", "explore", "follow", "forensics",
    "group", "lift", "open", "over_training",
    "read_trl", "read_verl", "report", "ribbon", "rightness", "roles", "staircase", "together", "tree", "versus",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with drawing():
        value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


@contextmanager
def drawing() -> Iterator[None]:
    """For imports of the views: where a package that draws is not installed, the ImportError says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in DRAWS:
            raise
        raise ImportError(
            f"the views need {error.name}, which is not installed: pip install 'segpo[views]' (from a checkout: "
            "pip install -e '.[views]')"
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
