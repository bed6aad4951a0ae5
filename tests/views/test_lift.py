"""Lift: do decisions fall on high-entropy tokens?"""

from __future__ import annotations

import pytest

import segviz as sv


def test_the_lift_curve_of_a_run(run):
    figure = sv.lift(run, q=(0.1, 0.5, 1.0), draws=50)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert [name.split(":")[0] for name in lines] == ["large value change", "first true error"]
    assert all(line.y[-1] == pytest.approx(1) for line in lines.values())
    assert {trace.type for trace in figure.data} == {"scatter"}


def test_large_value_changes_are_the_largest_of_all_rollouts():
    flat = {"entropy": [0.0, 1.0, 0.0, 0.0, 0.0], "values": [0.5] * 5}
    jump = {"entropy": [0.0, 1.0, 0.0, 0.0, 0.0], "values": [0.5, 0.5, 0.9, 0.9, 0.9]}
    figure = sv.lift([flat, jump], q=(0.25, 1.0), share=0.125, draws=10)  # 1 of 2 · 4 changes, at token 1 of `jump`
    line = next(trace for trace in figure.data if trace.mode == "lines+markers")
    assert line.y[0] == pytest.approx(4)  # the top quarter is one token of four, and holds it


def test_lift_without_what_it_needs():
    with pytest.raises(ValueError, match="no entropy is recorded"):
        sv.lift([{"values": [0.5, 0.6], "error_start": 0}])
    with pytest.raises(ValueError, match="nothing to lift"):
        sv.lift([{"entropy": [0.5, 0.6]}])
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        sv.lift([{"entropy": [0.5, 0.6]}], q=(0.0, 0.5))
