"""Statistical figures: plotly with one look, and one way to keep them as a file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from segviz.show.encode import escape, script_json, write_whole
from segviz.show.theme import PALETTE, css, symmetric_limit

#: Line colours, with a dash and a marker each: colour is never the only difference.
COLOURS = ("#716ae6", "#0b8a84", "#d03a86", "#a27400", "#767c88")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross")

#: Orange below zero, blue above, light between; for symmetric scales only.
DIVERGING = ((0.0, "#ea580c"), (0.5, "#e9e7e2"), (1.0, "#2563eb"))

#: Of lines that are no data; readable on light and on dark paper alike, as the app shows figures on either.
INK = "#767c88"
LINE = "rgba(128,134,146,0.25)"
ZERO = "rgba(128,134,146,0.6)"

FONT = "system-ui, Liberation Sans, Arial, sans-serif"
LINE_OF_WORDS = 96  #: characters of a line under the title; plotly breaks none itself

_CLEAR = "rgba(0,0,0,0)"

#: The script of `page`.
DRAWN = """
const { figure, ink, theme, words } = JSON.parse(document.getElementById("segviz-data").textContent);
const box = document.getElementById("figure");
const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
figure.layout.font.color = ink[dark ? 1 : 0];
box.setAttribute("aria-label", words);
const to = window !== parent ? parent : null;
addEventListener("keydown", (event) => { if (event.key === "Escape") to?.postMessage({ segviz: "close" }, "*"); });
Plotly.newPlot(box, figure.data, figure.layout, { displayModeBar: false, responsive: true });
"""

_SUFFIXES = (".html", ".png", ".svg", ".pdf")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Figure(go.Figure):
    """A plotly figure that can be kept as a file."""

    def save(self, path: str | Path) -> Path:
        """Write the figure: .html (interactive, offline), .png, .svg or .pdf. Whole or not at
        all.

        Raises:
            ValueError: another suffix.
            RuntimeError: a picture needs a Chromium, and none was found or it failed; .html needs none.
        """
        path = Path(path)
        if path.suffix not in _SUFFIXES:
            raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; choose one of {', '.join(_SUFFIXES)}")
        if path.suffix == ".html":
            config = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
            return write_whole(path, self.to_html(include_plotlyjs=True, config=config).encode("utf-8"))
        browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, _BROWSERS)), None)
        if browser:
            os.environ.setdefault("BROWSER_PATH", browser)
        try:
            picture = self.to_image(format=path.suffix[1:], scale=2)
        except Exception as error:  # the picture maker raises many kinds, and each has the same remedy
            tried = f"BROWSER_PATH is {browser}" if browser else "none was found; BROWSER_PATH may name one"
            raise RuntimeError(
                f"{path} was not written: a {path.suffix} needs a working Chromium ({tried}) and the package kaleido. "
                f"Without them, save({str(path.with_suffix('.html'))!r}) writes the same figure. ({error})"
            ) from error
        return write_whole(path, picture)


def finish(figure: go.Figure, title: str, question: str = "", height: int = 380) -> Figure:
    """The look that all figures share: paper, fonts, palette, legend, and no button that sends data away.

    Args:
        figure: made of traces that plotly.js 3 and 4 both know (the app and the notebook carry different ones).
        title: what is shown, question: what it answers; both plain text, the question broken into lines.
        height: px of the whole figure without the question's further lines.
    """
    lines = [plain(line) for line in textwrap.wrap(question, LINE_OF_WORDS)]
    words = "".join(f'<br><span style="font-size:13px">{line}</span>' for line in lines)
    further = 18 * max(0, len(lines) - 1)
    figure = Figure(figure)
    figure.update_layout(
        meta={"title": title, "words": question},  # for a page that says them itself
        template="none",
        title={
            "text": f"<b>{plain(title)}</b>{words}",
            "x": 0,
            "xanchor": "left",
            "xref": "paper",
            "y": 1 - 20 / (height + further),
            "yanchor": "top",
            "yref": "container",
            "font": {"size": 17},
        },
        # a figure in a notebook cannot ask whether the page is light or dark: it brings its own paper
        font={"family": FONT, "size": 13, "color": PALETTE["ink"][0]},
        colorway=COLOURS,
        paper_bgcolor=PALETTE["card"][0],
        plot_bgcolor=PALETTE["card"][0],
        height=height + further,
        margin={"l": 60, "r": 24, "t": 92 + further, "b": 52},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 12}},
        modebar={"remove": ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d"], "bgcolor": "rgba(0,0,0,0)"},
    )
    axis = {
        "gridcolor": LINE,
        "zerolinecolor": ZERO,
        "linecolor": LINE,
        "ticks": "",
        "automargin": True,
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def page(figure: go.Figure, theme: str) -> str:
    """The page of a finished figure, for a frame: its title and words as text, the rest drawn by plotly.js, which is in
    the page, as a frame of no origin may load nothing.

    Args:
        figure: from `finish`.
        theme: "light", "dark", or "" for what the system says.
    """
    title, words = figure.layout.meta["title"], figure.layout.meta["words"]
    top = 60 if len(figure.layout.annotations) else 36
    drawn = go.Figure(figure).update_layout(title_text="", margin_t=top, paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR)
    drawn.update_layout(height=figure.layout.height - figure.layout.margin.t + top)
    data = script_json({"figure": json.loads(drawn.to_json()), "ink": PALETTE["ink"], "theme": theme, "words": words})
    attribute = f' data-segviz-theme="{theme}"' if theme else ""
    return (
        f'<!doctype html>\n<html lang="en"{attribute}>\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{css()}</style>\n</head>\n<body class="segviz">\n'
        f'<main id="segviz"><div class="page"><h1>{escape(title)}</h1><p class="verdict">{escape(words)}</p>'
        '<div id="figure" role="img"></div></div></main>\n'
        f'<script type="application/json" id="segviz-data">{data}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>{DRAWN}</script>\n</body>\n</html>\n"
    )


@cache
def policy() -> str:
    """What a page of `page` may do: run its two scripts and nothing else, and fetch nothing."""
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (get_plotlyjs(), DRAWN))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:"


def diverging(values: Sequence[float | None], trained: Sequence[bool] | None = None, axis: str = "z") -> dict[str, Any]:
    """Colour scale for credit: symmetric around 0, as wide as the largest credit of a trained token.

    For a Heatmap, `go.Heatmap(z=…, **diverging(values, trained))`, or a marker, with axis="c". What lies beyond (a
    token that is kept out of the loss) gets the colour of the end; nothing to scale by gives −1 … 1.

    Args:
        values: credit; None and NaN do not count.
        trained: which of them entered the loss; None: all.
    """
    limit = symmetric_limit(values, trained) or 1.0
    return {
        "colorscale": [list(stop) for stop in DIVERGING],
        f"{axis}min": -limit,
        f"{axis}mid": 0.0,
        f"{axis}max": limit,
    }


def plain(text: str) -> str:
    """Text for plotly, which reads some markup in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
