"""The view of docs/your_view.md, drawn by the script and the style of that page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segviz.show import theme
from segviz.show.view import View

pytestmark = pytest.mark.browser
PAGE = (Path(__file__).parents[2] / "docs" / "your_view.md").read_text(encoding="utf-8")


def test_the_pages_script_draws(show, monkeypatch, tmp_path):
    shipped = theme.files

    def with_the_pages(suffix: str) -> list[Path]:
        (text,) = re.findall(rf"^```{suffix[1:]}\n(.*?)^```", PAGE, re.M | re.S)
        mine = tmp_path / f"places{suffix}"
        mine.write_text(text, encoding="utf-8")
        return [mine, *shipped(suffix)] if suffix == ".css" else [*shipped(suffix)[:-1], mine, shipped(suffix)[-1]]

    monkeypatch.setattr(theme, "files", with_the_pages)
    data = {"kind": "places", "title": "Where?", "said": "two steps \u202e<b>", "mean": [0.0, 0.5, 1.0]}
    page = show(View("places", "Where?", data, "<p>Where?</p>"))
    page.wait_for_selector(".pl-bar", state="attached")
    heights = [float(bar.get_attribute("height")) for bar in page.query_selector_all(".pl-bar")]
    assert heights[0] == 0 and heights[2] == pytest.approx(2 * heights[1]) and heights[2] > 100
    assert page.inner_text(".quiet") == "two steps ⟨202E⟩<b>"
    assert page.evaluate("getComputedStyle(document.querySelector('.pl-bar')).fill") == "rgb(15, 118, 110)"
