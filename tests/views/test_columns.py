"""Columns of rollouts, from a run or from rows."""

from __future__ import annotations

import numpy as np
import pytest

from segpo_core.record.blame import spans
from segviz.runs.columns import rollout_columns


def test_columns_of_a_run_are_its_recorded_numbers(run):
    rows = rollout_columns(run, ["values", "segment_start", "mc_values", "reward", "loss_mask"], [1, 5])
    whole = run.rollout(5, 2, 3).row
    found = next(r for r in rows if (r["step"], r["group"], r["sample"]) == (5, 2, 3))
    assert found["values"].tolist() == whole["values"] and found["segment_start"].tolist() == whole["segment_start"]
    assert found["mc_values"] is None and found["reward"] == whole["reward"] and set(found["loss_mask"]) == {1.0}
    assert {r["step"] for r in rows} == {1, 5}
    (own,) = rollout_columns(run.rollout(5, 2, 3), ["values", "mc_values"])
    assert own["values"].tolist() == whole["values"] and own["mc_values"] is None


def test_what_cannot_be_read_as_rollouts_is_said(run, empty):
    with pytest.raises(ValueError, match="no recorded rollouts yet"):
        rollout_columns(empty, ["values"])
    with pytest.raises(ValueError, match="of step 3; recorded steps: 1, 5"):
        rollout_columns(run, ["values"], 3)
    with pytest.raises(ValueError, match="at least one rollout"):
        rollout_columns([], ["values"])
    with pytest.raises(TypeError, match="got str"):
        rollout_columns(["runs/demo"], ["values"])


def test_spans_without_recorded_segments():
    assert spans({"segment_ids": np.array([0, 0, 1, 2])}, 4).tolist() == [[0, 2], [2, 3], [3, 4]]
    assert spans({}, 3).tolist() == [[0, 3]] and spans({}, 0).tolist() == []
