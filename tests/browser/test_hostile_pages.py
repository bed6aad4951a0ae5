"""A few of the hostile texts of `make torture PARTS=pages`, and that the harness sees what gets out."""

from __future__ import annotations

import pytest

from tests.torture import pages

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_texts_stay_texts(browser, tmp_path):
    """Each of the forms once, words of thousands of letters among them."""
    number = len(pages.CODE) + len(pages.ASKS) + len(pages.HOSTILE)
    told = pages.shown(browser, tmp_path, number, 0, at_once=number)
    assert (told.executed, told.asked, told.broken) == (0, [], [])
    assert told.pages == 7 and told.texts == number


def test_what_gets_out_is_seen(browser, tmp_path):
    told = pages.Told()
    page = tmp_path / "page.html"
    page.write_text(f"<div id=segviz><p style='width:3000px'>x</p></div><script>{pages.HIT}</script>"
                    f"<img src='{pages.ELSEWHERE}'>")  # fmt: skip
    pages._look(browser, f"file://{page}", told, "open door")
    assert told.executed == 1 and told.asked == [pages.ELSEWHERE] and len(told.broken) == 1
