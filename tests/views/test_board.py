"""The board: learning curves."""

from __future__ import annotations

import math

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.views.board import board_data, status, telling


def metrics_run(path, values: dict[str, list[float]], config: dict | None = None) -> sv.Run:
    recorder = Recorder(path)
    recorder.start(config or {})
    for step in range(len(next(iter(values.values())))):
        recorder.metrics(step, {name: column[step] for name, column in values.items()})
    return sv.open(path)


def test_a_spike_is_marked_on_its_line(tmp_path):
    kl = [0.01 + 0.001 * math.sin(7 * i) for i in range(40)]
    kl[25] = 0.5
    data = board_data([metrics_run(tmp_path / "r", {"kl": kl, "reward": [0.5] * 40})])
    charts = {chart["title"]: chart for chart in data["charts"]}
    (odd,) = charts["KL to the reference"]["lines"][0]["odd"]
    assert odd["step"] == 25 and odd["y"] == 0.5 and odd["usual"] == pytest.approx(0.01, abs=0.001)
    assert charts["Reward"]["lines"][0]["odd"] == []


def test_one_bad_explained_variance_does_not_flatten_the_chart(tmp_path):
    values = [-37.0, -1.5, *[0.1] * 10]
    (chart,) = board_data([metrics_run(tmp_path / "r", {"explained_variance": values})])["charts"]
    assert chart["floor"] == {"at": -1.0, "below": 2, "lowest": -37.0, "step": 0}
    assert chart["lines"][0]["y"][0] == -37  # the number itself stays
    (plain,) = board_data([metrics_run(tmp_path / "s", {"explained_variance": [0.1, -0.9]})])["charts"]
    assert "floor" not in plain


def test_a_step_lists_its_telling_rollouts(run):
    found = [item for item in telling([run]) if item["step"] == 5]
    table = run.rollouts_at(5)
    assert len(found) == len({(i["group"], i["sample"]) for i in found}) == 4
    worst = min(table, key=lambda r: r["lowest"])
    assert (found[0]["group"], found[0]["sample"]) == (worst["group"], worst["sample"])
    assert "first error" in " ".join(i["words"] for i in found) and "strongest credit −" in found[0]["words"]
    assert {item["step"] for item in sv.board(run).data["rollouts"]} == set(run.steps)
    assert {item["run"] for item in telling([run, run])} == {"demo"} and {item["run"] for item in found} == {""}


def test_a_run_is_shown_for_what_it_is(tmp_path, empty):
    assert status(empty).startswith("empty: started 2") and "no step is finished yet" in status(empty)
    assert sv.board(empty).data["status"] == [status(empty)] and "no step is finished" in sv.board(empty).fallback
    running = metrics_run(tmp_path / "r", {"reward": [0.1, 0.2, 0.3]}, {"max_steps": 60})
    assert status(running).startswith(
        "r: step 2 of 60, last written 2"
    ) and "still being written, or was stopped" in status(running)
    assert status(metrics_run(tmp_path / "s", {"reward": [0.1, 0.2]}, {"max_steps": 1})) == ""
