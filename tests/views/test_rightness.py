"""How right is the credit: what `segpo bench-credit` wrote, as a view, as still HTML, and in the app."""

from __future__ import annotations

import json

import httpx
import pytest

import segviz as sv
from segviz.views.rightness import RECORDED, results_of
from tests.app.served import serving
from tests.fakes.fake_run import write_run

FOUND = {
    "grpo": {"hit": 0.02, "within": 0.0, "chance": 0.02, "tokens": 0.0},
    "forks": {"hit": 0.97, "hit_low": 0.9, "hit_high": 1.0, "within": 0.96, "chance": 0.02, "tokens": 37.4},
    "forks num_continuations=2": {"hit": 0.9, "within": 0.9, "chance": 0.02, "tokens": 25.0},
    "oracle": {"hit": 1.0, "within": 1.0, "chance": 0.02, "tokens": 0.0},
    "sapo <img src=x>": {"hit": None, "within": float("nan"), "chance": None, "tokens": None},
}


def test_rows_are_sorted_and_bounds_are_no_methods():
    data = sv.rightness(FOUND).data
    assert [(row["arm"], row["settings"], row["plain"]) for row in data["rows"]] == [
        ("oracle", "", False),
        ("Fork values", "", True),
        ("Fork values", "num_continuations=2", False),
        ("GRPO", "", True),
        ("SAPO (segment-aligned)", "<img src=x>", False),
    ]
    assert data["verdict"][0] == (
        "The token that decided is found most often by Fork values: in 97% of failed completions (chance 2%), for 37 "
        "more tokens a completion."
    )
    assert data["verdict"][1] == "Then GRPO 2%."
    unknown = data["rows"][-1]
    assert unknown["hit"] is unknown["within"] is unknown["tokens"] is None


def test_what_ships_is_shown_and_reads_without_scripts():
    view = sv.rightness()
    recorded = json.loads(RECORDED.read_text())
    assert len(view.data["rows"]) == len(recorded)
    forks = next(row for row in view.data["rows"] if row["arm"] == "Fork values" and row["plain"])
    assert forks["hit"] == pytest.approx(recorded["forks"]["hit"], abs=1e-4)
    assert "Fork values" in view.fallback and "data:image/svg+xml" in view.fallback and "chance" in view.fallback
    assert "<img src=x" not in sv.rightness({"<img src=x onerror=1>": FOUND["grpo"]}).fallback


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must hold"),
        ("{", "not a JSON file"),
        ('{"forks": {"hit": "much", "within": 1, "tokens": 2}}', "'forks' lacks"),
        ('{"forks": {"hit": 1}}', "'forks' lacks"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, text, words):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        sv.rightness(path)
    with pytest.raises(OSError, match="bench-credit"):
        sv.rightness(tmp_path / "nothing.json")


def test_the_app_shows_a_runs_own(tmp_path):
    run, bare = write_run(tmp_path / "runs" / "one", steps=1), write_run(tmp_path / "runs" / "two", steps=1)
    results_of(run).write_text(json.dumps({"grpo": FOUND["grpo"]}))
    (tmp_path / "elsewhere.json").write_text(json.dumps(FOUND | {"gspo": FOUND["grpo"]}))
    results_of(bare).symlink_to(tmp_path / "elsewhere.json")
    with serving(tmp_path / "runs") as (address, _), httpx.Client(base_url=f"http://{address}") as web:
        assert "Fork values" in web.get("/view/rightness").text
        page = web.get("/view/rightness", params={"run": "one", "theme": "dark"})
        assert page.status_code == 200 and "by its own policy" in page.text and "Fork values" not in page.text
        assert "sandbox" in page.headers["content-security-policy"]
        refused = web.get("/view/rightness", params={"run": "two"})
        assert refused.status_code == 404 and "not followed" in refused.text
        assert web.get("/view/rightness", params={"run": "../one"}).status_code == 404
        judged = {one["name"]: one["judged"] for one in web.get("/segpo/api/runs").json()["runs"]}
    assert judged["one"] is True
