"""Statistical figures: plotly with one look, and one way to keep them as a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import plotly.graph_objects as go

from segviz.theme import PALETTE
from segviz.view import write_whole

#: Line colours, with a dash and a marker each: colour is never the only difference.
COLOURS = ("#4f46c8", "#0b8a84", "#c4307a", "#a27400", "#64748b")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross")

#: Orange below zero, blue above, light between; for symmetric scales only.
DIVERGING = ((0.0, "#ea580c"), (0.5, "#e9e7e2"), (1.0, "#2563eb"))

#: Readable on light and on dark paper alike: a figure cannot ask which of the two it lies on.
INK = "#767c88"
LINE = "rgba(128,134,146,0.25)"

_SUFFIXES = (".html", ".png", ".svg", ".pdf")


class Figure(go.Figure):
    """A plotly figure that can be kept as a file."""

    def save(self, path: str | Path) -> Path:
        """Write the figure: .html (interactive, offline), .png, .svg or .pdf. Whole or not at all.

        Raises:
            ValueError: another suffix.
            RuntimeError: a picture needs a Chromium, and none was found or it failed; .html needs none.
        """
        path = Path(path)
        if path.suffix not in _SUFFIXES:
            raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; choose one of {', '.join(_SUFFIXES)}")
        if path.suffix == ".html":
            config = {"displaylogo": False, "responsive": True}
            return write_whole(path, self.to_html(include_plotlyjs=True, config=config).encode("utf-8"))
        browser = os.environ.get("BROWSER_PATH") or next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
        )
        if browser:
            os.environ.setdefault("BROWSER_PATH", browser)
        paper, ink = PALETTE["card"][0], PALETTE["ink"][0]
        printed = go.Figure(self).update_layout(paper_bgcolor=paper, plot_bgcolor=paper, font_color=ink)
        try:
            picture = printed.to_image(format=path.suffix[1:], scale=2)
        except Exception as error:  # the picture maker raises many kinds, and each has the same remedy
            found = browser or "none was found; set BROWSER_PATH"
            raise RuntimeError(
                f"{path} was not written: a picture needs a working Chromium ({found}) and the package kaleido. {path.with_suffix('.html').name} needs neither. ({error})"
            ) from error
        return write_whole(path, picture)


def finish(figure: go.Figure, title: str, question: str = "", height: int = 380) -> Figure:
    """The look that all figures share: paper, fonts, palette, legend, and no button that sends data away.

    Args:
        figure: made of traces that plotly.js 3 and 4 both know (the app and the notebook carry different ones).
        title: what is shown, question: what it answers; both plain text.
        height: px.
    """
    heading = _plain(title) + (f"<br><sup>{_plain(question)}</sup>" if question else "")
    figure = Figure(figure)
    figure.update_layout(
        template="none",
        title={"text": heading, "x": 0, "xanchor": "left", "xref": "paper", "font": {"size": 17}},
        font={"family": "system-ui, Liberation Sans, Arial, sans-serif", "size": 13, "color": INK},
        colorway=COLOURS,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 60, "r": 24, "t": 84, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        modebar={"remove": ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d"]},
    )
    axis = {
        "gridcolor": LINE,
        "zerolinecolor": "rgba(128,134,146,0.6)",
        "linecolor": LINE,
        "ticks": "",
        "automargin": True,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def _plain(text: str) -> str:
    """Text for plotly, which reads some markup in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
