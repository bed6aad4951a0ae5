"""A page holds its data as data, and only its own script may run."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

import segviz as sv
from segviz.show.encode import escape, script_json
from segviz.show.view import View
from tests.fakes.fake_run import HOSTILE, hostile_row, row
from tests.views.made import Page, unpack


def test_hostile_texts_stay_data():
    view = sv.ribbon(hostile_row())
    page = Page(view.html())
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == ["script", "script"]
    assert json.loads(page.scripts[0])["facts"]["reference"] == HOSTILE[0]
    assert unpack(view.data["pack"])["text"] == hostile_row()["text"]
    assert not re.search(r"</?script|<!--", page.scripts[0])
    from tests.views import inert

    assert "<img" in inert.check(view._repr_html_())


def test_lone_surrogates_reach_no_file(tmp_path):
    view = sv.ribbon(row(pieces=["a\ud800", "\udfffb"], answer="\ud83d", example_id="\udc00"), title="\ud800?")
    view.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert unpack(view.data["pack"])["units"].tolist() == [2, 2]
    view._repr_html_().encode()


def test_escaping():
    assert escape("<a b='c'>\ud800&") == "&lt;a b=&#x27;c&#x27;&gt;\ufffd&amp;"
    text = script_json({"x": ["</script>&\u2028", float("nan"), float("inf"), 1.5], 3: None})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {"x": ["</script>&\u2028", None, None, 1.5], "3": None}


def test_the_page_may_run_only_its_own_script_and_fetch_nothing(run):
    page = sv.ribbon(run.rollout(1, 0, 1)).html()
    policy = next(a["content"] for tag, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "img-src data:" in policy
    assert not [a for _, a in Page(page).tags if {"src", "href"} & set(a)]
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|innerHTML", page)


def test_a_view_is_frozen_and_saves_whole_or_not_at_all(run, tmp_path):
    view = sv.ribbon(run.rollout(1, 0, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.title = "other"
    assert view.save(tmp_path / "a.html").read_text(encoding="utf-8") == view.html()
    with pytest.raises(OSError):
        view.save(tmp_path / "missing" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert View("board", "<b>", {})._repr_html_() == "<p>&lt;b&gt;</p>"
