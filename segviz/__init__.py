"""Views of recorded credit: in a notebook, in an app beside a training run, and in one offline HTML file.

    import segviz as sv

    run = sv.open("runs/demo")                        # lazy, also while the run is being written
    sv.report(run)                                    # one offline HTML file: curves and telling rollouts
    row = run.rollouts.where(error_kind="perception")[0]
    sv.ribbon(run.rollout(row["step"], row["group"], row["sample"]))

Functions return a `View` and draw nothing themselves. Nothing here imports the trainer, torch or a GPU.
"""

from importlib.metadata import PackageNotFoundError, version

from segpo_core.record import SchemaError
from segviz.annotate import annotate
from segviz.audit import audit
from segviz.board import board
from segviz.boundaries import boundaries
from segviz.compare import compare
from segviz.counterfactual import counterfactual
from segviz.explore import explore
from segviz.follow import follow
from segviz.forensics import forensics
from segviz.groups import group
from segviz.lift import lift
from segviz.page import together
from segviz.readers import read_trl, read_verl
from segviz.report import report
from segviz.ribbon import ribbon
from segviz.roles import roles
from segviz.rollout import Rollout
from segviz.run import Run, open  # noqa: A004
from segviz.staircase import staircase
from segviz.tree import tree
from segviz.view import View

try:
    __version__ = version("segpo")
except PackageNotFoundError:  # imported from a source tree that was not installed
    __version__ = "0+source"

__all__ = [
    "Rollout", "Run", "SchemaError", "View",
    "annotate", "audit", "board", "boundaries", "compare", "counterfactual", "explore", "follow", "forensics",
    "group", "lift", "open",
    "read_trl", "read_verl", "report", "ribbon", "roles", "staircase", "together", "tree",
]  # fmt: skip
