"""What the Inspect tab shows: the pages of a run, a step and a completion's cuts, and whom they refuse."""

import json
import re

import pytest

from segpo_core.record.store import step_name
from segviz.app.inspecting import Inspector
from segviz.app.shelf import Missing, Shelf
from tests.app.served import get, told
from tests.fakes.fake_run import write_run


@pytest.mark.parametrize(
    ("kind", "words"), [("audit", "Can I trust these advantages?"), ("lift", "Do decisions fall on high-entropy")]
)
def test_figures_come_with_their_words_and_may_fetch_nothing(address, kind, words):
    status, headers, body = get(address, f"/inspect/first/{kind}?theme=dark")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200 and words in page.partition("<main")[2] and 'data-segviz-theme="dark"' in page
    assert (
        "default-src 'none'" in policy
        and "sandbox allow-scripts" in policy
        and "unsafe-inline" not in (policy.partition("script-src")[2].partition(";")[0])
    )
    data = json.loads(re.search(r'id="segviz-data">(.*?)</script>', page, re.S)[1])
    assert data["figure"]["data"] and data["words"].startswith("first · SAPO")
    assert b"data-segviz-theme" not in get(address, f"/inspect/first/{kind}?theme=x%22onload=1")[2][:60]


def test_a_step_that_is_not_recorded_is_shown_by_the_nearest(address):
    page = get(address, "/inspect/first/forensics/5")[2].decode()
    assert "this is the nearest one" not in page and "What did this step learn from?" in page
    page = get(address, "/inspect/first/forensics/7")[2].decode()
    assert "Step 7 is not recorded; this is the nearest one that is, step 5." in page
    assert told(address, "steps", run="first")[1] == {"steps": [1, 5, 9, 13, 17, 21]}


def test_the_cuts_of_a_completion_against_a_rule(address):
    page = get(address, "/view/first/boundaries/1/0/1?cut=newline")[2].decode()
    assert "Are the cuts at real decisions?" in page and "rule: newline" in page


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/inspect/nope/audit", "no run"),
        ("/inspect/nope/forensics/1", "no run"),
        ("/inspect/first/secrets", "no such page"),
        ("/inspect/first/forensics/x", "no such page"),
        ("/inspect/first/forensics/1234567890", "no such page"),
        ("/view/first/boundaries/1/0/1?cut=%3Cb%3E", "no rule"),
        ("/view/first/boundaries/1/77/1", "no group 77"),
    ],
)
def test_what_is_not_there_is_said(address, path, words):
    status, headers, body = get(address, path)
    assert status == 404 and words in body.decode() and "<b>" not in body.decode()
    assert "sandbox" in headers["Content-Security-Policy"]


def test_links_that_lead_outside_are_not_read(tmp_path):
    secret = write_run(tmp_path / "secret", steps=1)
    mine = write_run(tmp_path / "runs" / "mine", steps=1)
    (mine / "rollouts" / f"{step_name(9)}.rank0.parquet").symlink_to(next((secret / "rollouts").iterdir()))
    inspector = Inspector(Shelf([tmp_path / "runs"]))
    for look in (lambda: inspector.figure("mine", "audit", False, ""), lambda: inspector.forensics("mine", 9)):
        with pytest.raises(Missing, match="leads out of"):
            look()
