"""Figures that can be kept as files."""

from __future__ import annotations

import math
import re

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

import segviz as sv
from segviz.show.figures import DIVERGING, diverging, finish


def test_the_finisher_keeps_text_as_text_and_sends_nothing_away():
    figure = finish(go.Figure(go.Scatter(x=[0], y=[0])), "<b>a & b</b>", "does it? " * 30)
    text = figure.layout.title.text
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text and text.count("<br>") > 2
    assert figure.layout.height > finish(go.Figure(), "a", "b").layout.height
    assert {"sendChartToCloud", "sendDataToCloud"} <= set(figure.layout.modebar.remove)
    assert figure.layout.paper_bgcolor == "#ffffff" and figure.layout.font.color == "#1c1d21"  # never faint
    panels = finish(make_subplots(2, 2), "a")
    assert all(panels.layout[f"xaxis{i}"].gridcolor for i in ("", 2, 3, 4))


def test_lines_can_be_seen_on_light_and_on_dark_paper():
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from segviz.show.figures import COLOURS, INK

    for colour in (*COLOURS, INK):
        for paper in ("#ffffff", "#111111"):
            high, low = sorted((light(colour), light(paper)), reverse=True)
            assert (high + 0.05) / (low + 0.05) > 4


def test_the_diverging_scale_is_symmetric_and_made_of_trained_tokens():
    scale = diverging([0.2, -0.5, 9.0, None, math.nan], [True, True, False, True, True])
    assert (scale["zmin"], scale["zmid"], scale["zmax"]) == (-0.5, 0, 0.5)
    assert scale["colorscale"] == [list(stop) for stop in DIVERGING]
    assert diverging([], axis="c") == {"colorscale": scale["colorscale"], "cmin": -1, "cmid": 0, "cmax": 1}
    go.Heatmap(z=[[0.2, -0.5]], **scale)
    go.Scatter(x=[0], y=[0], marker={"color": [0.1], **diverging([0.1], axis="c")})


def test_a_figure_is_saved_as_a_page_without_a_browser(tmp_path, monkeypatch, run):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    figure = sv.lift(run, draws=5)
    page = figure.save(tmp_path / "lift.html").read_text(encoding="utf-8")
    assert "plotly" in page and not re.search(r'src="http|cdn\.plot\.ly/plotly', page)
    assert '"displaylogo": false' in page and '"paper_bgcolor":"#ffffff"' in page
    with pytest.raises(RuntimeError, match=r"working Chromium \(BROWSER_PATH is .*nothing\).*lift\.html") as caught:
        figure.save(tmp_path / "lift.png")
    assert caught.value.__cause__ is not None and not (tmp_path / "lift.png").exists()
    with pytest.raises(ValueError, match=r"choose one of \.html"):
        figure.save(tmp_path / "lift.gif")
