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
from segviz.board import board
from segviz.page import together
from segviz.report import report
from segviz.ribbon import ribbon
from segviz.run import Rollout, Run, open  # noqa: A004
from segviz.view import View

try:
    __version__ = version("segpo")
except PackageNotFoundError:  # imported from a source tree that was not installed
    __version__ = "0+source"

__all__ = ["Rollout", "Run", "SchemaError", "View", "board", "open", "report", "ribbon", "together"]
