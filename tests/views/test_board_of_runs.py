"""The board of one run and of several."""

from __future__ import annotations

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.runs.series import Series
from tests.fakes.fake_run import write_run


def test_answer_perception_and_grounded_are_always_in_one_chart(run):
    charts = {chart["title"]: chart for chart in sv.board(run).data["charts"]}
    for title in ("Held-out problems, greedy", "Held-out problems, sampled", "Training completions"):
        assert [line["label"] for line in charts[title]["lines"]] == ["answer", "perception", "grounded"]
        assert len({line["style"] for line in charts[title]["lines"]}) == 3
    assert {"KL to the reference", "Clipped share", "Value loss", "Tokens per second"} <= set(charts)
    assert [chart["title"] for chart in sv.board(run).data["other"]] == ["grad_norm"]


def test_the_contracts_other_names_for_sampled_accuracy_are_understood(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.start({})
    recorder.metrics(0, {"eval/answer_sampled": 0.5, "reward": float("nan")})
    data = sv.board(sv.open(tmp_path / "r")).data
    assert [chart["title"] for chart in data["charts"]] == ["Held-out problems, sampled"]


def test_seeds_become_one_line_with_a_band_and_methods_stay_apart(tmp_path):
    runs = [
        sv.open(write_run(tmp_path / f"{method}{seed}", method, seed=seed, steps=8, rollouts=False))
        for method in ("sapo", "grpo")
        for seed in (1, 2)
    ]
    data = sv.board(runs).data
    assert data["groups"] == [{"label": "SAPO (segment-aligned)", "runs": 2}, {"label": "GRPO", "runs": 2}]
    chart = data["charts"][0]
    assert chart["panels"] and len(chart["lines"]) == 6
    line = chart["lines"][0]
    values = [run.metrics["eval/answer"].values[0] for run in runs[:2]]
    assert line["y"][0] == pytest.approx(sum(values) / 2, rel=1e-4)
    assert (line["low"][0], line["high"][0]) == pytest.approx((min(values), max(values)), rel=1e-4)


def test_a_long_curve_is_thinned(tmp_path, monkeypatch):
    run = sv.open(write_run(tmp_path / "r", steps=1, rollouts=False))
    monkeypatch.setattr(type(run), "metrics", {"kl": Series(list(range(5000)), [float(i) for i in range(5000)])})
    (chart,) = sv.board(run).data["charts"]
    assert len(chart["lines"][0]["x"]) <= 600 and chart["lines"][0]["y"][0] == pytest.approx(4)
