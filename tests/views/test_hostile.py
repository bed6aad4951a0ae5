"""Texts of models stay texts in the staircase, the diff and the group."""

from __future__ import annotations

import json

import pytest

import segviz as sv
from segviz.views.groups import group_data
from tests.fakes.fake_run import hostile_row, row, write_run
from tests.views import inert
from tests.views.made import Page, hostile_views


@pytest.fixture
def run(tmp_path) -> sv.Run:
    return sv.open(write_run(tmp_path / "demo", steps=4, extra=[hostile_row()]))


def test_hostile_texts_stay_data(run):
    for kind, view in hostile_views(run).items():
        page = Page(view.html())
        assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == ["script", "script"], kind
        assert json.loads(page.scripts[0])["kind"] == kind
        inert.check(view._repr_html_())


def test_lone_surrogates_reach_no_file(tmp_path):
    item = row(pieces=["a\ud800", "\udfffb"], answer="\ud83d", example_id="\udc00")
    for view in (sv.staircase(item), sv.compare(item), sv.View("group", "?", group_data([sv.Rollout(item)]))):
        view.save(tmp_path / "page.html").read_text(encoding="utf-8")
        view._repr_html_().encode()
